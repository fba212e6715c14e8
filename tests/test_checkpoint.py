from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import checkpoint
from cli import UserError
from model import ImageCaptioningModel

CPU = torch.device("cpu")


def test_save_and_load_give_the_same_logits(trained, tmp_path):
    loaded = checkpoint.load(trained.checkpoints / "last.pt", CPU)
    checkpoint.save(tmp_path / "copy.pt", loaded)
    copy = checkpoint.load(tmp_path / "copy.pt", CPU)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    tokens = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]])
    logits = [
        which.model(
            which.model.make_encoder()(pixels),
            tokens,
            torch.tensor([0, 1]),
            torch.tensor([1, 2, 3, 5, 6]),
        )
        for which in (loaded, copy)
    ]
    assert torch.equal(*logits)
    assert copy.vocabulary.words == loaded.vocabulary.words
    assert copy.settings == loaded.settings


def test_only_plain_data_is_in_the_file(trained):
    torch.load(trained.checkpoints / "last.pt", weights_only=True)  # raises if it is not


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_a_damaged_file(trained, tmp_path, length):
    path = tmp_path / "damaged.pt"
    path.write_bytes((trained.checkpoints / "best.pt").read_bytes()[:length])
    with pytest.raises(UserError, match=r"damaged\.pt"):
        checkpoint.load(path, CPU)


def edited(trained, tmp_path, edit):
    content = torch.load(trained.checkpoints / "best.pt", weights_only=True)
    edit(content)
    torch.save(content, tmp_path / "edited.pt")
    return tmp_path / "edited.pt"


def test_a_newer_format(trained, tmp_path):
    path = edited(trained, tmp_path, lambda content: content.update(format=99))
    with pytest.raises(UserError, match="newer version"):
        checkpoint.load(path, CPU)


def test_an_earlier_format(trained, tmp_path):
    path = edited(trained, tmp_path, lambda content: content.update(format=3))
    with pytest.raises(
        UserError, match=r"earlier version \(format 3, this one reads 4\): train again"
    ):
        checkpoint.load(path, CPU)


def test_an_encoder_that_is_not_known(trained, tmp_path):
    path = edited(trained, tmp_path, lambda content: content["model"].update(encoder="vit_b_16"))
    with pytest.raises(UserError, match=r"edited\.pt has the encoder 'vit_b_16'.*resnet50"):
        checkpoint.load(path, CPU)


def test_models_that_cannot_be_an_ensemble(trained, tmp_path):
    best = trained.checkpoints / "best.pt"

    def other_words(content):
        content["vocabulary"]["words"][-1] = "zebra"

    with pytest.raises(UserError, match="know different words"):
        checkpoint.load_ensemble([best, edited(trained, tmp_path, other_words)], CPU)
    path = edited(trained, tmp_path, lambda content: content["settings"].update(image_size=64))
    with pytest.raises(UserError, match=r"pictures of 32 pixels, .* of 64"):
        checkpoint.load_ensemble([best, path], CPU)
    assert len(checkpoint.load_ensemble([best, best], CPU)) == 2


def test_searches_as_it_validated_but_for_what_is_given(trained):
    loaded = checkpoint.load(trained.checkpoints / "best.pt", CPU)
    found = loaded.search({"max_words": 7, "image": "not of the search"})
    assert (found.beam_size, found.max_words) == (loaded.settings["beam_size"], 7)
    assert {loaded.vocabulary.words[id_] for id_ in found.banned_final_ids} >= {"a", "the"}
    assert loaded.search({"temperature": 0.5}).beam_size == 1
    assert loaded.search({"temperature": 0.5, "beam_size": 4}).beam_size == 4


def test_a_vocabulary_that_does_not_fit_the_model(trained, tmp_path):
    def shorten(content):
        content["vocabulary"]["words"].pop()
        content["vocabulary"]["counts"].pop()

    with pytest.raises(UserError, match="words, its vocabulary"):
        checkpoint.load(edited(trained, tmp_path, shorten), CPU)


def test_another_file_of_tensors(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="no checkpoint of this project"):
        checkpoint.load(tmp_path / "weights.pt", CPU)


def test_a_failed_save_keeps_the_old_file(trained, tmp_path, monkeypatch):
    loaded = checkpoint.load(trained.checkpoints / "best.pt", CPU)
    path = tmp_path / "best.pt"
    path.write_text("old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, loaded)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is always full")
def test_a_full_disk_is_an_error_of_the_disk(trained, tmp_path, monkeypatch):
    """torch.save, given a name, says "unexpected pos 704 vs 598" instead."""
    loaded = checkpoint.load(trained.checkpoints / "best.pt", CPU)
    monkeypatch.setattr(checkpoint, "whole_file", lambda _: nullcontext(Path("/dev/full")))
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path / "best.pt", loaded)


@pytest.mark.parametrize("harm", ["weights", "settings"])
def test_a_damaged_model_is_refused(trained, tmp_path, harm):
    content = torch.load(trained.checkpoints / "best.pt", weights_only=True)
    if harm == "weights":
        content["decoder"]["output.weight"][0, 0] = torch.nan
    else:
        del content["settings"]["image_size"]
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(tmp_path / "best.pt", CPU)


def test_half_precision_weights_are_welcome(tmp_path):
    model = ImageCaptioningModel(9, encoder="resnet18", embedding_size=8, hidden_size=8)
    state = {name: value.half() for name, value in model.encoder.state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    other = ImageCaptioningModel(9, encoder="resnet18", embedding_size=8, hidden_size=8)
    checkpoint.load_encoder(other, str(tmp_path / "half.pth"))
    assert other.encoder.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(
        other.encoder.conv1.weight, model.encoder.conv1.weight, atol=1e-3, rtol=1e-3
    )


def test_the_model_card_says_what_it_is(trained):
    loaded = checkpoint.load(trained.checkpoints / "best.pt", CPU)
    card = (trained.checkpoints / "model_card.md").read_text(encoding="utf-8")
    assert card == checkpoint.model_card(loaded)
    for words in ("resnet18", "CIDEr", "**Not for.**", str(trained.data)):
        assert words in card


def test_loaded_weights_are_made_flat_for_cudnn(trained, monkeypatch):
    """Tensors taken over one by one are packed anew at every word, with a warning."""
    calls = []
    monkeypatch.setattr(torch.nn.LSTM, "flatten_parameters", lambda self: calls.append(self))
    loaded = checkpoint.load(trained.checkpoints / "best.pt")
    assert calls[-1] is loaded.model.lstm
