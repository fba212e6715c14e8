import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import checkpoint
import loader
import train

CPU = torch.device("cpu")
ROOT = Path(train.__file__).parent


def scores_of(path):
    return checkpoint.load(path, CPU).scores


def test_trains_keeps_best_and_last_and_says_so(trained):
    assert scores_of(trained.checkpoints / "best.pt")["CIDEr"] >= 0
    last = checkpoint.load(trained.checkpoints / "last.pt", CPU)
    assert last.epoch == 2
    assert last.training["place"]["epoch"] == 2
    assert not checkpoint.load(trained.checkpoints / "best.pt", CPU).training
    assert f"{trained.checkpoints / 'best.pt'}" in trained.stdout
    assert "predict.py --checkpoint" in trained.stdout
    assert "tensorboard --logdir" in trained.stdout
    assert not list(trained.checkpoints.glob(".*")), "a temporary file was left behind"


def test_vocabulary_sees_training_captions_only(trained):
    """Half of the field counts the words of the test captions too."""
    corpus = loader.load_corpus(trained.data)
    captions = [text for example in corpus.splits["train"] for text in example.captions]
    expected = loader.Vocabulary.build(captions)
    found = checkpoint.load(trained.checkpoints / "best.pt", CPU).vocabulary
    assert found.words == expected.words
    assert found.counts == expected.counts


def test_the_model_learns(trained):
    events = trained.scalars("loss/train")
    assert events[-1].value < events[0].value


def test_tensorboard_has_what_the_house_promises(trained):
    tags = trained.tags()
    for name in ("loss/train", "loss/val", "score/CIDEr", "score/BLEU-4", "learning_rate",
                 "words_per_second", "gradient_norm", "captions/distinct"):  # fmt: skip
        assert name in tags["scalars"]
    n_val = len(loader.load_corpus(trained.data).splits["val"])
    assert tags["images"] == [f"captions/{n}" for n in range(1, n_val + 1)]
    assert any("model card" in tag for tag in tags["tensors"])
    assert any("settings" in tag for tag in tags["tensors"])
    folder = trained.runs / trained.run_name
    projector = (folder / "projector_config.pbtxt").read_text()
    assert 'tensor_name: "words' in projector
    assert 'tensor_name: "images' in projector
    labels = next(folder.glob("*/words/metadata.tsv")).read_text().splitlines()
    vocabulary = checkpoint.load(trained.checkpoints / "best.pt", CPU).vocabulary
    assert len(labels) == 1 + len(vocabulary) - 4


def test_a_second_run_keeps_the_first(trained, tmp_path, capsys):
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    first = (tmp_path / "checkpoints" / "best.pt").read_bytes()
    flags = trained.flags(tmp_path, epochs=1)
    assert train.main(flags) == 0
    began = checkpoint.load(trained.checkpoints / "best.pt", CPU).started_at
    assert (tmp_path / "checkpoints" / began / "best.pt").read_bytes() == first
    assert f"{tmp_path / 'checkpoints' / began}" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "best.pt").read_bytes() != first


def test_resume_equals_the_unbroken_run(trained, tmp_path, monkeypatch):
    """Interrupted in the middle of an epoch, gone on with: the same weights, word for word."""
    n_steps = 0
    step = train.Run.train_step

    def interrupted(self, *args):
        nonlocal n_steps
        n_steps += 1
        if n_steps == 4:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(train.Run, "train_step", interrupted)
    flags = trained.flags(tmp_path)
    assert train.main(flags) == 130
    monkeypatch.undo()
    stopped = checkpoint.load(tmp_path / "checkpoints" / "last.pt", CPU)
    assert stopped.training["place"]["step"] == 3
    assert train.main(["--resume", "--checkpoints", str(tmp_path / "checkpoints")]) == 0
    resumed = checkpoint.load(tmp_path / "checkpoints" / "last.pt", CPU).model.state_dict()
    unbroken = checkpoint.load(trained.checkpoints / "last.pt", CPU).model.state_dict()
    for name, value in unbroken.items():
        torch.testing.assert_close(resumed[name], value, msg=name)


def test_resume_refuses_another_model_but_takes_more_epochs(trained, tmp_path, capsys):
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    where = ["--resume", "--checkpoints", str(tmp_path / "checkpoints")]
    assert train.main([*where, "--hidden-size", "99"]) == 2
    assert "--hidden-size is 32" in capsys.readouterr().err
    assert train.main([*where, "--epochs", "3"]) == 0
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt", CPU).epoch == 3


def test_sigterm_saves_and_says_143(trained, tmp_path):
    flags = trained.flags(tmp_path, epochs=500, patience=500)
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *flags], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoints" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "--resume" in err
    assert "Traceback" not in err


def test_an_unreadable_picture_is_left_out_and_named(trained, tmp_path, capsys):
    data = shutil.copytree(trained.data, tmp_path / "data")
    names = [example.path.name for example in loader.load_corpus(data).splits["train"]]
    pictures = data / "flickr30k_images"
    (pictures / names[0]).write_bytes((pictures / names[0]).read_bytes()[:200])
    (pictures / names[1]).unlink()
    assert train.main(trained.flags(tmp_path, epochs=1, data=data)) == 0
    err = capsys.readouterr().err
    assert names[0] in err
    assert "1 images missing" in err


def weights_of(kind, tmp_path):
    from torchvision import models

    path = tmp_path / f"{kind}.pth"
    state = models.resnet18().state_dict()
    if kind == "without_fc":
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    if kind == "of_resnet34":
        state = models.resnet34().state_dict()
    torch.save(state, path)
    return path


@pytest.mark.parametrize("kind", ["with_fc", "without_fc"])
def test_frozen_encoder_from_a_file_of_weights(trained, tmp_path, kind):
    weights = weights_of(kind, tmp_path)
    flags = trained.flags(tmp_path, epochs=1, encoder_weights=weights)
    assert train.main(flags) == 0
    expected = torch.load(weights, weights_only=True)
    found = checkpoint.load(tmp_path / "checkpoints" / "best.pt", CPU).model.encoder.state_dict()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "nowhere"}, "--demo, which needs no data"),
        ({"captions": "nothing.csv"}, "no captions file"),
        ({"language": "qq"}, "no language 'qq'"),
        ({"encoder": "resnet19", "encoder_weights": "none"}, "resnet18"),
        ({"encoder_weights": "IMAGENET9"}, "IMAGENET1K_V1"),
        ({"encoder_weights": "missing.pth"}, "no file missing.pth"),
        ({"encoder_weights": "train.py"}, "no weights"),
        ({"encoder_weights": "of_resnet34"}, "do not fit resnet18"),
        ({"checkpoints": "a_file"}, "a_file"),
        ({"epochs": -1}, "--epochs must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"device": "cuda"}, "no cuda device"),
    ],
)  # fmt: skip
def test_bad_input_is_one_or_two_lines_and_2(
    trained, tmp_path, capsys, monkeypatch, changed, message
):
    if changed.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    if changed.get("encoder_weights") == "of_resnet34":
        changed = {"encoder_weights": weights_of("of_resnet34", tmp_path)}
    (tmp_path / "train.py").write_text("not weights")
    (tmp_path / "a_file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    try:
        status = train.main(trained.flags(tmp_path, **changed))
    except SystemExit as error:  # argparse's way
        status = error.code
    err = capsys.readouterr().err
    assert status == 2
    assert message in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.pt"))


def test_weights_that_cannot_be_downloaded(trained, tmp_path, capsys, monkeypatch):
    import urllib.request

    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert train.main(trained.flags(tmp_path, encoder_weights="IMAGENET1K_V1")) == 2
    err = capsys.readouterr().err
    assert "cannot download https://download.pytorch.org" in err
    assert "--encoder-weights FILE" in err


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_refused(trained, tmp_path, capsys, split):
    data = shutil.copytree(trained.data, tmp_path / "data")
    rows = [json.dumps({"file_name": "scene_00000.png", "text": "A ball .", "split": "test"})]
    other = {"train": "val", "val": "train"}[split]
    rows += [json.dumps({"file_name": "scene_00001.png", "text": "A star .", "split": other})]
    (data / "metadata.jsonl").write_text("\n".join(rows))
    flags = trained.flags(tmp_path, data=data, captions="metadata.jsonl")
    assert train.main(flags) == 2
    assert f"the {split} split" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    assert train.main(trained.flags(tmp_path, learning_rate=1e30)) == 2
    assert "smaller --learning-rate" in capsys.readouterr().err


def test_word_losses():
    torch.manual_seed(0)
    logits, expected = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    loss, nats = train.word_losses(logits, expected, 0.1)
    peer = torch.nn.functional.cross_entropy
    torch.testing.assert_close(loss, peer(logits, expected, label_smoothing=0.1))
    torch.testing.assert_close(nats, peer(logits, expected, reduction="sum"))


def test_schedule_warms_up_and_comes_to_rest():
    factor = train._warmup_then_cosine(100, 0.1)
    factors = [factor(step) for step in range(101)]
    assert factors[:10] == sorted(factors[:10])
    assert max(factors) == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.0)
