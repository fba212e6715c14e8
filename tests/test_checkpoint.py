import copy
import errno
import math
import os
import random
import resource
import shutil
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny
import torch

import checkpoint
import cli
import files
import pretrained
import run
import train
from cli import UserError
from familiarity import Familiarity
from integrity import restore_optimizer
from learning import STAGES, TrainState, make_optimizer
from loader import SPECIAL_TOKENS, Vocabulary
from model import ImageCaptioningModel
from resnet import BLOCKS_PER_LAYER

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


def test_a_model_of_0_5_0_searches_as_it_did(trained, tmp_path):
    path = edited(trained, tmp_path, lambda content: content["settings"].pop("image_weight"))
    assert checkpoint.load(path, CPU).search().image_weight == 1.0
    assert checkpoint.load(path, CPU).search({"image_weight": 1.2}).image_weight == 1.2
    assert cli.BeamSettings().image_weight == 1.2


def test_a_vocabulary_that_does_not_fit_the_model(trained, tmp_path):
    def shorten(content):
        content["vocabulary"]["words"].pop()
        content["vocabulary"]["counts"].pop()

    with pytest.raises(UserError, match="its model and its vocabulary of"):
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
    pretrained.load_encoder(other, str(tmp_path / "half.pth"))
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


# ---------------------------------------------------------------------- damaged and edited files


@pytest.fixture
def last(tmp_path, monkeypatch):
    """A small `last.pt` within an epoch of stage 1, with every part that a file can have.

    Beside it is the best.pt of its run.
    """
    monkeypatch.setitem(BLOCKS_PER_LAYER, "tiny", (1, 1, 1, 1))
    words = [*SPECIAL_TOKENS, "a", "dog", "runs"]
    model = tiny.make(len(words), encoder="tiny")
    optimizer = optimizer_of(model)
    model(torch.randn(2, 512), *BATCH).sum().backward()
    optimizer.step()
    settings = train.Settings(
        encoder="tiny", embedding_size=8, hidden_size=8, image_size=32, run_name="a_run"
    )
    state = TrainState("xe", epoch=1, batch=2, stage_step=5, n_steps=9, step=5, total_epochs=1)
    state.best_scores = {"loss": 2.5, "CIDEr": 31.0}
    trained = checkpoint.Checkpoint(
        model,
        Vocabulary(words, [0, 0, 0, 1, 9, 3, 2], language="en"),
        settings=cli.plain(settings),
        epoch=1,
        scores=state.best_scores,
        started_at="2026-01-31_18-30-00",
        training={
            "optimizer": optimizer.state_dict(),
            "state": state.plain(),
            "corpus": "0123456789ab",
        },
        familiarity=Familiarity(
            torch.zeros(512), torch.ones(512), torch.eye(512)[:2], torch.arange(3.0)
        ),
    )
    for name in ("last.pt", "best.pt"):
        checkpoint.save(tmp_path / name, trained)
    return tmp_path / "last.pt"


BATCH = (torch.tensor([[1, 4, 5, 2], [1, 5, 6, 2]]), torch.tensor([0, 1]), torch.tensor([1, 2, 5]))


def optimizer_of(model):
    return make_optimizer(model, learning_rate=1e-3, encoder_learning_rate=1e-4, weight_decay=0.01)


def resume(path):
    """All that is made of a file before the first step of a resumed run, and that step."""
    resumed = checkpoint.load_last(path.parent, CPU, train.Settings)
    state = TrainState.of(resumed.training["state"])
    assert state.stage in STAGES
    settings = train.Settings(resume=True)
    run.resumed_settings(settings, frozenset(), resumed.settings, ())
    run.inherited_settings(train.Settings(), frozenset(), resumed.settings, path)
    resumed.search()
    checkpoint.model_card(resumed)
    optimizer = optimizer_of(resumed.model)
    restore_optimizer(optimizer, resumed.training["optimizer"])
    resumed.model(torch.randn(2, 512), *BATCH).sum().backward()
    optimizer.step()
    return resumed


def test_a_run_is_resumed_from_a_small_checkpoint(last):
    assert resume(last).epoch == 1


def rewritten(last, edit):
    content = torch.load(last, weights_only=True)
    edit(content)
    torch.save(content, last)
    return last


def put(*keys, value):
    """An edit: put a value where the keys lead."""

    def edit(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (put("encoder", "bn1.running_mean", value=None), "something else where a tensor"),
        (put("encoder", "encoder.bn1.running_mean", value=torch.full((64,), torch.nan)), "finite"),
        (put("encoder", "encoder.bn1.running_var", value=-torch.ones(64)), "variances"),
        (put("encoder", "encoder.bn1.running_var", value=torch.ones(65)), "another size or type"),
        (put("decoder", "output.bias", value=torch.zeros(7).double()), "another size or type"),
        (put("decoder", "output.bias", value=torch.zeros(1).expand(10**12)), "unusual layout"),
        (put("model", "num_layers", value=10**9), "num_layers|sizes"),
        (put("model", "hidden_size", value=9), "hidden_size|sizes"),
        (put("model", "dropout", value="much"), "dropout"),
        (put("settings", "beam_size", value=2.5), "beam_size"),
        (put("settings", "beam_size", value=0), "beam-size must be at least 1"),
        (put("settings", "image_size", value="large"), "image_size"),
        (put("settings", "image_size", value=10**9), "image_size"),
        (put("settings", "batch_size", value="100"), "batch_size"),
        (put("settings", "run_name", value="../../x"), "run_name"),
        (put("settings", "run_name", value="/x"), "run_name"),
        (put("settings", "run_name", value=r"..\x"), "run_name"),
        (put("settings", "data", value="a\0b"), "data"),
        (put("started_at", value="../../x"), "time"),
        (put("scores", value={"CIDEr": "high", "loss": 1.0}), "scores"),
        (put("epoch", value=True), "epoch"),
        (put("settings", value=torch.zeros(2)), "another kind"),
        (put("familiarity", "mean", value=torch.zeros(511)), "its familiarity"),
        (put("training", "state", "stage", value="scst2"), "stage"),
        (put("training", "state", "step", value=-1), "number"),
        (put("training", "state", "meter", value=[0.0, 0, 0, math.inf]), "meter"),
        (put("training", "corpus", value=None), "fingerprint"),
        (put("training", "optimizer", "state", 0, "step", value=torch.ones(2)), "AdamW"),
        (put("training", "optimizer", "state", 0, "exp_avg", value=None), "tensor"),
        (put("training", "optimizer", "param_groups", 0, "lr", value=math.nan), "not numbers"),
        (put("training", "optimizer", "state", 0, "exp_avg", value=torch.ones(3)), "another model"),
    ],
)
def test_an_edited_file_says_what_is_wrong(last, edit, reason):
    path = rewritten(last, lambda content: edit(content))
    with pytest.raises(UserError, match=reason) as caught:
        resume(path)
    assert "damaged" in str(caught.value)


def test_a_flipped_bit_of_a_weight_is_noticed(last):
    """It loaded without a word, forty times of forty."""
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        checkpoint.load(last)


def test_a_compressed_file_is_refused(last):
    """One of 42 MB took 8.9 GB of memory."""
    with (
        zipfile.ZipFile(last) as file,
        zipfile.ZipFile(last.with_name("small.pt"), "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in file.namelist():
            small.writestr(name, file.read(name))
    with pytest.raises(UserError, match="compressed"):
        checkpoint.load(last.with_name("small.pt"))


class Command:
    def __reduce__(self):
        return os.system, ("echo run > it_ran",)


def test_code_in_a_file_is_not_run(last, monkeypatch):
    monkeypatch.chdir(last.parent)
    path = rewritten(last, put("epoch", value=Command()))
    for load in (checkpoint.load, resume):
        with pytest.raises(UserError, match="no checkpoint"):
            load(path)
    assert not Path("it_ran").exists()


def test_a_folder_is_named_after_no_path_in_a_file(last):
    """`../../x` moved the earlier run's checkpoints out of their folder."""
    rewritten(last, put("started_at", value="../x"))
    checkpoint.set_aside(last.parent, last.parent / "no logs")
    (moved,) = last.parent.glob("*/last.pt")
    assert moved.parent.parent == last.parent


def test_a_model_card_without_models_is_set_aside_too(tmp_path):
    """It may be somebody's own, and was written over."""
    (tmp_path / "model_card.md").write_text("my own")
    checkpoint.set_aside(tmp_path, tmp_path / "no logs")
    (moved,) = tmp_path.glob("*/model_card.md")
    assert moved.read_text() == "my own"


@pytest.mark.parametrize("other", ["of another run", "missing"])
def test_a_run_is_not_resumed_beside_another_ones_best_model(last, other):
    """It ended well, with the other one's weights and words, scored with its own."""
    checkpoint.load_last(last.parent, CPU)
    best = last.with_name("best.pt")
    if other == "missing":
        best.unlink()
    else:
        content = torch.load(best, weights_only=True)
        torch.save({**content, "started_at": "2020-01-01_10-00-00"}, best)
    with pytest.raises(UserError, match=r"best\.pt is not of the run to resume, which began at 20"):
        checkpoint.load_last(last.parent, CPU)


ODD = [None, True, "x", "", "\0", 0, -1, 2.5, 10**9, -(10**9), 10**400, math.nan, math.inf]
ODD += [[], {}, (), b"x", [[]], {"x": 1}, torch.zeros(2), torch.zeros(1).expand(10**12), 1 + 2j]


def random_edit(content, random):
    """Change one thing, somewhere in dicts and lists within each other."""
    place, key = {"": content}, ""
    while isinstance(place[key], dict | list) and len(place[key]) and random.random() < 0.85:
        place = place[key]
        key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
    if key == "":
        return
    value = place[key]
    kind = random.random()
    if kind < 0.15:
        del place[key]
    elif kind < 0.25 and isinstance(place, dict):
        place[random.choice([f"{key}x", 5, None])] = value
    elif isinstance(value, torch.Tensor) and kind < 0.8:
        place[key] = random.choice(
            [
                lambda: value.double(),
                lambda: value.half(),
                lambda: value.long(),
                lambda: value.flatten()[:1],
                lambda: value.unsqueeze(0),
                lambda: torch.cat([value.flatten()] * 2),
                lambda: value.new_full(value.shape, torch.nan) if value.is_floating_point() else 0,
                lambda: value.new_zeros(1).expand(10**11),
                lambda: value.to_sparse(),
                lambda: -value - 1,
            ]
        )()
    else:
        place[key] = copy.deepcopy(random.choice(ODD))


def random_damage(path, random):
    """Flip a byte of a file, or cut its end off."""
    content = bytearray(path.read_bytes())
    if random.random() < 0.3:
        del content[random.randrange(len(content)) :]
    else:  # half of them near the end, where the index of the records is
        start = random.choice([0, len(content) - 20_000])
        for _ in range(random.choice([1, 5])):
            content[random.randrange(start, len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def test_an_edited_file_is_a_checkpoint_or_an_error_of_the_user(last):
    """Of 430 edited files 114 ended in a traceback; some corrupted memory."""
    n_refused, n_edits = 0, int(os.environ.get("FUZZ", "60"))
    original = last.with_name("original.pt")
    shutil.copy(last, original)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(n_edits):
        generator = random.Random(seed)
        if generator.random() < 0.2:
            shutil.copy(original, last)
            random_damage(last, generator)
        else:
            content = torch.load(original, weights_only=True)
            random_edit(content, generator)
            torch.save(content, last)
        for load in (checkpoint.load, resume):
            try:
                load(last)
            except UserError as error:
                n_refused += 1
                assert len(str(error)) < 500  # noqa: PT017
            except Exception as error:
                raise AssertionError(f"with seed {seed}") from error
    assert n_refused > n_edits / 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KB: 1 GB


# -------------------------------------------------------------------------------- a full disk


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999])
def test_a_disk_that_is_full_at_any_place_costs_the_new_file_only(last, share):
    """torch said "unexpected pos", a traceback of forty lines."""
    loaded = checkpoint.load(last)
    before, size = last.read_bytes(), last.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            checkpoint.save(last, loaded)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(last)
    assert last.read_bytes() == before
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.pt", "last.pt"]


def test_a_write_that_fails_at_any_place_is_the_disks_error(tmp_path, monkeypatch):
    """Of a small file, so that the places are near each other."""
    content = {"a": torch.zeros(300), "b": torch.zeros(10), "c": "text"}
    torch.save(content, tmp_path / "whole.pt")
    size = (tmp_path / "whole.pt").stat().st_size
    for room in range(0, size, 13):
        full_after(room, monkeypatch)
        with pytest.raises(OSError, match="No space left"):
            checkpoint._write(tmp_path / "x.pt", content)
    full_after(2 * size, monkeypatch)
    checkpoint._write(tmp_path / "x.pt", content)


def full_after(room, monkeypatch):
    """Let files have room for so many bytes."""
    left = room

    class Full(files.WatchedFile):
        def __init__(self, file):
            class Disk:
                def write(self, data):
                    nonlocal left
                    if len(data) > left:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    left -= len(data)
                    return file.write(data)

                flush = file.flush

            super().__init__(Disk())

    monkeypatch.setattr(checkpoint, "WatchedFile", Full)
