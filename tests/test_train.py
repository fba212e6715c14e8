import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import checkpoint
import cli
import demo
import evaluate
import learning
import metrics
import predict
import run
import train
from corpus import load_corpus
from loader import Vocabulary

CPU = torch.device("cpu")
ROOT = Path(train.__file__).parent


class Killed(BaseException):
    """The end of a process that nothing can be done about, as by SIGKILL."""


class StopsAfter:
    """A progress bar under which a run is stopped after so many steps."""

    def __init__(self, bar, n_steps, error):
        self.bar, self.n_steps, self.error = bar, n_steps, error
        self.set_postfix_str = bar.set_postfix_str

    def __iter__(self):
        for n, item in enumerate(self.bar, start=1):
            if n > self.n_steps:
                raise self.error
            yield item


def stop(monkeypatch, *, stage, after, error=KeyboardInterrupt):
    """Press Ctrl-C, or kill the run, after so many steps of an epoch of this stage."""
    progress = cli.progress

    def stopping(items, *, about, **options):
        bar = progress(items, about=about, **options)
        return StopsAfter(bar, after, error) if about.startswith(f"{stage} ") else bar

    monkeypatch.setattr(cli, "progress", stopping)


def weights_in(checkpoints):
    """The weights a run has come to."""
    return checkpoint.load(checkpoints / "last.pt", CPU).model.state_dict()


def assert_equal(weights, expected):
    """To the last bit."""
    assert set(weights) == set(expected)
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


def scores_of(path):
    return checkpoint.load(path, CPU).scores


def test_trains_keeps_best_and_last_and_says_so(trained):
    assert scores_of(trained.checkpoints / "best.pt")["CIDEr"] >= 0
    last = checkpoint.load(trained.checkpoints / "last.pt", CPU)
    assert last.epoch == 2
    assert last.training["state"]["epoch"] == 2
    assert not checkpoint.load(trained.checkpoints / "best.pt", CPU).training
    assert f"{trained.checkpoints / 'best.pt'}" in trained.stdout
    assert "predict.py --checkpoint" in trained.stdout
    assert "tensorboard --logdir" in trained.stdout
    assert not list(trained.checkpoints.glob(".*")), "a temporary file was left behind"


def test_vocabulary_sees_training_captions_only(trained):
    """Half of the field counts the words of the test captions too."""
    corpus = load_corpus(trained.data)
    captions = [text for example in corpus.splits["train"] for text in example.captions]
    expected = Vocabulary.build(captions, freq_threshold=5)
    found = checkpoint.load(trained.checkpoints / "best.pt", CPU).vocabulary
    assert found.words == expected.words
    assert found.counts == expected.counts


def test_the_model_learns(trained):
    events = trained.scalars("loss/train")
    assert events[-1].value < events[0].value


def test_tensorboard_has_what_the_house_promises(trained):
    tags = trained.tags()
    for name in ("loss/train", "loss/val", "score/CIDEr", "score/BLEU-4", "best/CIDEr",
                 "captions/distinct", "learning_rate", "words_per_second", "gradient_norm",
                 "stage"):  # fmt: skip
        assert name in tags["scalars"]
    single = [name for name in tags["scalars"] if len(trained.scalars(name)) < 2]
    assert not single, "charts of one point, in a run of two epochs"
    val = load_corpus(trained.data).splits["val"]
    assert tags["images"] == [f"captions/{n} {e.path.name}" for n, e in enumerate(val, start=1)]
    assert any("model card" in tag for tag in tags["tensors"])
    assert any("settings" in tag for tag in tags["tensors"])
    folder = trained.runs / trained.run_name
    projector = (folder / "projector_config.pbtxt").read_text()
    assert 'tensor_name: "words' in projector
    assert 'tensor_name: "images' in projector
    labels = next(folder.glob("*/words/metadata.tsv")).read_text().splitlines()
    vocabulary = checkpoint.load(trained.checkpoints / "best.pt", CPU).vocabulary
    assert len(labels) == 1 + len(vocabulary) - 4


def test_a_run_gone_on_with_shows_the_epochs_before(trained, tmp_path):
    """The scores of the epoch at whose end a run had stopped were hidden."""
    for name, source in (("checkpoints", trained.checkpoints), ("runs", trained.runs)):
        shutil.copytree(source, tmp_path / name)
    where = ["--checkpoints", str(tmp_path / "checkpoints"), "--runs", str(tmp_path / "runs")]
    assert train.main(["--resume", *where, "--epochs", "3"]) == 0
    gone_on = replace(trained, runs=tmp_path / "runs")
    assert len(gone_on.scalars("score/CIDEr")) == 3


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
    stop(monkeypatch, stage="xe", after=3)
    flags = trained.flags(tmp_path)
    assert train.main(flags) == 130
    monkeypatch.undo()
    stopped = checkpoint.load(tmp_path / "checkpoints" / "last.pt", CPU)
    assert stopped.training["state"]["step"] == 3
    assert set(stopped.training) == {"optimizer", "state", "corpus"}  # of random numbers nothing
    torch.rand(3)  # what was drawn before does not matter
    assert train.main(["--resume", "--checkpoints", str(tmp_path / "checkpoints")]) == 0
    assert_equal(weights_in(tmp_path / "checkpoints"), weights_in(trained.checkpoints))


def test_a_kill_loses_no_more_than_what_came_after_the_last_save(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    stop(monkeypatch, stage="xe", after=2, error=Killed)
    with pytest.raises(Killed):
        train.main(trained.flags(tmp_path))
    monkeypatch.undo()
    stopped = checkpoint.load(tmp_path / "checkpoints" / "last.pt", CPU)
    assert stopped.training["state"]["batch"] == 2
    assert train.main(["--resume", "--checkpoints", str(tmp_path / "checkpoints")]) == 0
    assert_equal(weights_in(tmp_path / "checkpoints"), weights_in(trained.checkpoints))


def test_resume_refuses_another_model_but_takes_more_epochs(trained, tmp_path, capsys):
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    where = ["--resume", "--checkpoints", str(tmp_path / "checkpoints")]
    assert train.main([*where, "--hidden-size", "99"]) == 2
    assert "--hidden-size is 32 in the run to resume, not 99" in capsys.readouterr().err
    assert train.main([*where, "--epochs", "3"]) == 0
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt", CPU).epoch == 3


def test_resume_refuses_other_images(trained, tmp_path, capsys):
    """The scores of the first data set were told as if they were of the second."""
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    where = ["--resume", "--checkpoints", str(tmp_path / "checkpoints"), "--epochs", "3"]
    demo.draw(tmp_path / "others", n_scenes=30, size=32)
    assert train.main([*where, "--data", str(tmp_path / "others")]) == 2
    assert "not those of the run" in capsys.readouterr().err
    assert train.main([*where, "--data", str(tmp_path / "nowhere")]) == 2
    assert "give --data" in capsys.readouterr().err
    shutil.copytree(trained.data, tmp_path / "moved")
    assert train.main([*where, "--data", str(tmp_path / "moved/results.csv")]) == 0


def test_two_runs_at_once_do_not_share_a_folder(trained, tmp_path, capsys):
    """The second moved the first one's checkpoints away, and each wrote over the other's."""
    (tmp_path / "checkpoints").mkdir()
    with FileLock(tmp_path / "checkpoints" / "running.lock"):
        assert train.main(trained.flags(tmp_path)) == 2
    assert "another run" in capsys.readouterr().err
    assert train.main(trained.flags(tmp_path, epochs=1)) == 0


def test_the_demo_does_not_draw_over_other_data(tmp_path, capsys):
    (tmp_path / "results.csv").write_text("mine.jpg| 0| My own words .")
    assert train.main(["--demo", "--data", str(tmp_path)]) == 2
    assert "results.csv, which the demo did not draw" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_where_cider_is_always_0_the_loss_tells_the_best_epoch(trained, tmp_path, capsys):
    """With one validation image no word is rarer than another: no epoch was better than the first.

    A model to start from then never changed.
    """
    shutil.copytree(trained.data, tmp_path / "data")
    val = tmp_path / "data" / "split_val.txt"
    val.write_text(val.read_text().split("\n")[0])
    flags = trained.flags(tmp_path, data=tmp_path / "data", epochs=4)
    init = ["--init", str(trained.checkpoints / "best.pt"), "--learning-rate", "0.003"]
    assert train.main([*flags, *init]) == 0
    assert "warning: only 1 images to validate on" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt", CPU).epoch > 0


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
    names = [example.path.name for example in load_corpus(data).splits["train"]]
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
        ({"freq_threshold": 1000}, "give a smaller --freq-threshold"),
        ({"encoder": "resnet19", "encoder_weights": "none"}, "resnet18"),
        ({"encoder_weights": "IMAGENET9"}, "IMAGENET1K_V1"),
        ({"encoder_weights": "missing.pth"}, "no file missing.pth"),
        ({"encoder_weights": "train.py"}, "no weights"),
        ({"encoder_weights": "of_resnet34"}, "do not fit resnet18"),
        ({"checkpoints": "a_file"}, "a_file"),
        ({"epochs": -1}, "--epochs must be at least 0"),
        ({"epochs": 0}, "are all 0"),
        ({"crop": 1.5}, "--crop must be at most 1"),
        ({"init": "missing.pt"}, "no checkpoint missing.pt"),
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
    err = capsys.readouterr().err
    assert f"the {split} split" in err
    assert f"the split {split} in {data / 'metadata.jsonl'}" in err  # lists would not be read


def test_a_loss_that_is_not_finite_stops_the_run(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    assert train.main(trained.flags(tmp_path, learning_rate=1e30)) == 2
    err = capsys.readouterr().err
    assert re.search(
        r"the loss is (nan|inf) at step \d, learning rate \S+e\+\d\d: try a smaller one", err
    )
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


@pytest.mark.parametrize("part", ["mean", "total"])  # checked on a CPU at once, elsewhere later
def test_the_step_whose_loss_is_not_finite_is_named(trained, tmp_path, capsys, monkeypatch, part):
    """Where it was checked after the step, it was called the next one."""
    cross_entropy, n_calls = learning.cross_entropy, 0

    def broken(*args, **options):
        nonlocal n_calls
        n_calls += 1
        loss = cross_entropy(*args, **options)
        return replace(loss, **{part: getattr(loss, part) * (torch.nan if n_calls == 2 else 1)})

    monkeypatch.setattr(learning, "cross_entropy", broken)
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    assert train.main(trained.flags(tmp_path)) == 2
    assert "the loss is nan at step 2," in capsys.readouterr().err


def test_a_stop_after_the_weights_are_broken_keeps_the_last_good_ones(
    trained, tmp_path, monkeypatch
):
    """On a GPU the loss is looked at every so many steps: a Ctrl-C between saved broken weights."""
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    good = checkpoint.load(tmp_path / "checkpoints/last.pt", CPU).model.state_dict()

    def broken(model, *_, **__):
        model.output.bias.data.fill_(torch.nan)
        raise KeyboardInterrupt

    monkeypatch.setattr(learning, "cross_entropy", broken)
    where = ["--resume", "--checkpoints", str(tmp_path / "checkpoints")]
    assert train.main([*where, "--epochs", "3"]) == 2
    kept = checkpoint.load(tmp_path / "checkpoints/last.pt", CPU).model.state_dict()
    assert all(torch.equal(kept[name], good[name]) for name in good)


def test_a_last_step_that_breaks_the_weights_stops_the_run(trained, tmp_path, capsys):
    """There is no next loss to tell: the beam search found no caption and said "list index"."""
    assert train.main(trained.flags(tmp_path, learning_rate=1e38, batch_size=100_000)) == 2
    err = capsys.readouterr().err
    assert "the loss is nan at step 1," in err  # the one that broke them
    assert "last good" not in err  # there is none
    assert not (tmp_path / "checkpoints" / "best.pt").exists()


def test_rewards_that_break_the_weights_stop_the_run(trained, tmp_path, capsys):
    """Sentences cannot be drawn from what is no probability."""
    changed = {"scst_epochs": 1, "scst_learning_rate": 1e30, "batch_size": 20}
    assert train.main([*staged(trained, tmp_path, **changed)]) == 2
    assert "The last good checkpoints are in" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "best.pt").exists()


def staged(trained, tmp_path, **changed):
    """Flags of a run whose encoder has weights of its own, through all three stages."""
    weights = tmp_path / "weights.pth"
    if not weights.exists():
        torch.manual_seed(5)
        from torchvision import models

        torch.save(models.resnet18().state_dict(), weights)
    stages = {"epochs": 1, "finetune_epochs": 1, "scst_epochs": 1, "encoder_weights": weights}
    return trained.flags(tmp_path, **{**stages, **changed})


def give_scores(monkeypatch, ciders):
    """In place of what the captions of each validation score."""
    given, validate = iter(ciders), run.Run.validate

    def validated(self, val_set):
        scores, captions = validate(self, val_set)
        return {**scores, "CIDEr": next(given)}, captions

    monkeypatch.setattr(run.Run, "validate", validated)


@dataclass(frozen=True)
class Staged:
    """A run through all three stages."""

    folder: Path
    stderr: str
    saves: list[str]  # names of the files in the order in which they were written
    weights: dict[str, torch.Tensor]  # at the end

    def as_after(self, n_saves, folder):
        """Its checkpoints as they were when so many files had been written."""
        shutil.copytree(self.folder / f"after {n_saves}", folder)
        return ["--resume", "--checkpoints", str(folder)]


@pytest.fixture(scope="module")
def through_all_stages(trained, tmp_path_factory):
    """Each stage starts from the best: here that is the last."""
    folder, saves, stderr = tmp_path_factory.mktemp("staged"), [], io.StringIO()
    save = checkpoint.save

    def save_and_copy(path, content):
        save(path, content)
        saves.append(path.name)
        # Links will do: a checkpoint is never written into, but replaced.
        ignored = shutil.ignore_patterns("*.lock")
        copy = folder / f"after {len(saves)}"
        shutil.copytree(path.parent, copy, ignore=ignored, copy_function=os.link)

    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stderr(stderr):
        give_scores(monkeypatch, [1.0, 2.0, 3.0])
        monkeypatch.setattr(checkpoint, "save", save_and_copy)
        monkeypatch.setattr(cli, "PROGRESS_AFTER", 0.0)  # a line for everything
        monkeypatch.setattr(cli, "PROGRESS_EVERY", 0.0)
        assert train.main(staged(trained, folder)) == 0
    return Staged(folder, stderr.getvalue(), saves, weights_in(folder / "checkpoints"))


def test_all_stages_train_what_they_should(through_all_stages):
    for line in ("xe 1/1  loss", "finetune 1/1  loss", "scst 1/1  reward"):
        assert line in through_all_stages.stderr
    last = checkpoint.load(through_all_stages.folder / "checkpoints" / "last.pt", CPU)
    assert last.epoch == 3
    before = torch.load(through_all_stages.folder / "weights.pth", weights_only=True)
    after = last.model.encoder.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"layer3", "layer4"}
    assert not [name for name in changed if "bn" in name], "pretrained BatchNorm moved"


def test_all_that_can_take_long_shows_how_far_it_is(through_all_stages):
    """Validation wrote captions for a minute, and nothing was seen of it."""
    shown = re.findall(r"^(\D+?)(?: 1/1)?  \d+/\d+ \w+s, ", through_all_stages.stderr, re.M)
    assert list(dict.fromkeys(shown)) == [
        *("counting words", "reading pictures", "reading captions", "xe"),
        *("validating", "captioning", "finetune", "encoding", "scst", "drawing thumbnails"),
    ]


def test_what_no_longer_trains_leaves_no_gradients(trained, tmp_path, monkeypatch):
    """Those of the last step in stage 2 counted in stage 3's norm, by which it is clipped."""
    make_optimizer, left = learning.make_optimizer, []

    def noted(model, **rates):
        left.append(sum(weight.grad is not None for weight in model.parameters()))
        return make_optimizer(model, **rates)

    monkeypatch.setattr(learning, "make_optimizer", noted)
    assert train.main(staged(trained, tmp_path)) == 0
    assert left == [0, 0, 0]


@pytest.mark.parametrize(("stage", "scores_left"), [("finetune", [2.0, 3.0]), ("scst", [3.0])])
def test_resume_within_a_later_stage_equals_the_unbroken_run(
    trained, tmp_path, monkeypatch, through_all_stages, stage, scores_left
):
    give_scores(monkeypatch, [1.0, 2.0])
    stop(monkeypatch, stage=stage, after=2)
    weights = through_all_stages.folder / "weights.pth"
    assert train.main(staged(trained, tmp_path, encoder_weights=weights)) == 130
    monkeypatch.undo()
    stopped = checkpoint.load(tmp_path / "checkpoints" / "last.pt", CPU).training["state"]
    assert (stopped["stage"], stopped["batch"]) == (stage, 2)
    give_scores(monkeypatch, scores_left)
    assert train.main(["--resume", "--checkpoints", str(tmp_path / "checkpoints")]) == 0
    assert_equal(weights_in(tmp_path / "checkpoints"), through_all_stages.weights)


def test_files_are_written_when_an_epoch_ends_and_when_a_later_stage_begins(through_all_stages):
    epoch, begin, end = ["best.pt", "last.pt"], ["last.pt"], ["best.pt"]  # with its neighbours
    assert through_all_stages.saves == [*epoch, *begin, *epoch, *begin, *epoch, *end]


@pytest.mark.parametrize(
    ("n_saves", "stage", "scores_left"),
    [
        (3, "finetune", [2.0, 3.0]),  # just begun
        (4, "finetune", [2.0, 3.0]),  # the first epoch's best.pt is there, its last.pt not yet
        (6, "scst", [3.0]),
        (7, "scst", [3.0]),
    ],
)
def test_a_kill_on_entering_a_stage_resumes_in_that_stage(
    through_all_stages, tmp_path, monkeypatch, n_saves, stage, scores_left
):
    """After best.pt of the stage's first epoch, it once began again from these weights."""
    resume = through_all_stages.as_after(n_saves, tmp_path / "killed")
    last = checkpoint.load(tmp_path / "killed" / "last.pt", CPU)
    best = checkpoint.load(tmp_path / "killed" / "best.pt", CPU)
    assert last.training["state"]["stage"] == stage
    assert best.epoch == last.epoch + (n_saves in (4, 7))
    give_scores(monkeypatch, scores_left)
    assert train.main(resume) == 0
    assert_equal(weights_in(tmp_path / "killed"), through_all_stages.weights)


def test_a_finished_run_goes_on_with_another_stage(trained, tmp_path, capsys):
    assert train.main(staged(trained, tmp_path, finetune_epochs=0, scst_epochs=0)) == 0
    where = ["--resume", "--checkpoints", str(tmp_path / "checkpoints")]
    assert train.main([*where, "--scst-epochs", "1"]) == 0
    assert "scst 1/1  reward" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt", CPU).epoch == 2


def test_an_epochs_clock_does_not_run_while_pictures_are_encoded(
    trained, tmp_path, monkeypatch, capsys
):
    """The first epoch once logged a third of its words a second: it had encoded every photo."""
    clock, later = time.perf_counter, 0.0

    def slow(load):
        def loading(*args, **options):
            nonlocal later
            later += 5000
            return load(*args, **options)

        return loading

    for name in ("load_features", "load_pixels"):
        monkeypatch.setattr(run, name, slow(getattr(run, name)))
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + later)
    assert train.main(staged(trained, tmp_path)) == 0
    seconds = re.findall(r"words/s +(\d+) s", capsys.readouterr().err)
    assert len(seconds) == 3
    assert all(int(n) < 5000 for n in seconds)


def test_resume_changes_only_stages_that_have_not_begun(trained, tmp_path, capsys):
    """Another number of stages in mid-stage once met an optimizer of other weights: a traceback."""
    assert train.main(staged(trained, tmp_path, scst_epochs=0)) == 0
    where = ["--resume", "--checkpoints", str(tmp_path / "checkpoints")]
    refused = {
        "--finetune-layers": ("1", "comes too late, finetune has begun"),
        "--crop": ("0.9", "comes too late"),
        "--init": ("other.pt", "is left out in the run to resume"),
        "--epochs": ("9", "comes too late"),
    }
    for flag, (value, message) in refused.items():
        assert train.main([*where, "--finetune-epochs", "2", flag, value]) == 2
        assert f"{flag} {message}" in capsys.readouterr().err
    assert train.main([*where, "--scst-epochs", "1", "--scst-samples", "3"]) == 0
    assert train.main([*where, "--scst-epochs", "0"]) == 2
    assert "no epochs are left to train from scst on" in capsys.readouterr().err
    assert train.main([*where, "--finetune-epochs", "6"]) == 2  # once nothing happened, and 0
    assert "--finetune-epochs comes too late, scst has begun" in capsys.readouterr().err


@pytest.mark.parametrize(("patience", "n_epochs"), [(5, 2), (1, 1)])
def test_scst_ends_when_validation_falls(
    trained, tmp_path, monkeypatch, capsys, patience, n_epochs
):
    """The training reward goes on rising while captions get worse: the best ones are kept."""
    give_scores(monkeypatch, [50.0, 40.0, 30.0, 20.0])
    flags = staged(trained, tmp_path, finetune_epochs=0, scst_epochs=9, patience=patience)
    assert train.main(flags) == 0
    wanted = f"scst ended early: no better CIDEr in {n_epochs} epochs"
    assert wanted in capsys.readouterr().err
    assert scores_of(tmp_path / "checkpoints" / "last.pt")["CIDEr"] == 50.0
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt").epoch == 1


def own_captions(trained, tmp_path):
    """The same pictures, described in words that the trained model does not know."""
    data = shutil.copytree(trained.data, tmp_path / "own")
    pictures = sorted((data / "flickr30k_images").iterdir())
    lines = [f"{p.name},A splendid {'zebra' if i % 2 else 'dog'} ." for i, p in enumerate(pictures)]
    (data / "captions.txt").write_text("\n".join(["image,caption", *lines]))
    return {"data": data, "captions": "captions.txt"}


def test_init_keeps_the_words_it_knows_and_learns_new_ones(trained, tmp_path, capsys):
    best = trained.checkpoints / "best.pt"
    flags = trained.flags(tmp_path, init=best, epochs=3, **own_captions(trained, tmp_path))
    kept = ("--hidden-size", "--embedding-size", "--image-size", "--encoder", "--encoder-weights")
    flags = [f for i, f in enumerate(flags) if not {f, flags[i - 1]} & set(kept)]
    assert train.main(flags) == 0
    old = checkpoint.load(best, CPU).vocabulary
    found = checkpoint.load(tmp_path / "checkpoints" / "best.pt", CPU)
    assert found.vocabulary.words[: len(old)] == old.words
    assert {"splendid", "zebra"} <= set(found.vocabulary.words[len(old) :])
    assert found.model.options["hidden_size"] == 32
    assert "xe 0/3" in capsys.readouterr().err  # what every later epoch has to surpass


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder": "resnet34"}, "--encoder is resnet18 in"),
        ({"language": "fr"}, "--language is en in"),
        ({"hidden_size": 64}, "--hidden-size is 32 in"),
    ],
)
def test_init_from_another_kind_of_model(trained, tmp_path, capsys, changed, message):
    flags = trained.flags(tmp_path, init=trained.checkpoints / "best.pt", **changed)
    assert train.main(flags) == 2
    assert message in capsys.readouterr().err


def test_more_epochs_of_the_stage_under_way_make_its_schedule_anew(trained, tmp_path, capsys):
    """The learning rate jumps, so it is said."""
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    where = ["--resume", "--checkpoints", str(tmp_path / "checkpoints")]
    assert train.main(where) == 0
    assert "schedule" not in capsys.readouterr().err
    assert train.main([*where, "--epochs", "3"]) == 0
    assert "schedule    made anew for 18 steps instead of 12" in capsys.readouterr().err


def test_the_model_card_is_kept_beside_the_models(trained, tmp_path):
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    card = (tmp_path / "checkpoints" / "model_card.md").read_text(encoding="utf-8")
    assert train.main(trained.flags(tmp_path, epochs=1)) == 0
    began = checkpoint.load(trained.checkpoints / "best.pt").started_at
    kept = tmp_path / "checkpoints" / began / "model_card.md"
    assert kept.read_text(encoding="utf-8") == card


def test_on_the_cpu_cuda_is_left_alone(trained, tmp_path, monkeypatch):
    """To start it costs seconds, and 300 MB of the GPU's memory."""
    torch_asks = torch.cuda.is_available

    def is_available():
        caller = Path(sys._getframe(1).f_code.co_filename)
        assert caller.parent != ROOT, f"{caller.name} asked"  # torch's optimizers ask too
        return torch_asks()

    def begun(*_):
        raise AssertionError("CUDA was initialised")

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "_lazy_init", begun)
    assert train.main(trained.flags(tmp_path, epochs=1)) == 0
    model = ["--checkpoint", str(tmp_path / "checkpoints" / "best.pt"), "--device", "cpu"]
    assert evaluate.main([*model, "--cache", str(tmp_path / "cache")]) == 0
    picture = next((trained.data / "flickr30k_images").iterdir())
    assert predict.main([str(picture), *model]) == 0
    assert not torch.cuda.is_initialized()


def test_a_finished_run_can_be_resumed_and_says_the_same(trained, tmp_path, capsys):
    """Torch's writer printed a warning about the embeddings, which were there already."""
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    for _ in range(2):
        assert train.main(["--resume", "--checkpoints", str(tmp_path / "checkpoints")]) == 0
        out, _ = capsys.readouterr()
        assert trained.stdout.split("scores")[1].splitlines()[0] in out
        assert "warning" not in out


def test_a_run_stopped_while_it_validates_resumes_with_the_validation(
    trained, tmp_path, monkeypatch
):
    score, n_calls = metrics.score, 0

    def stopped(*args):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 2:
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr(metrics, "score", stopped)
    assert train.main(trained.flags(tmp_path)) == 130
    monkeypatch.undo()
    stopped_at = checkpoint.load(tmp_path / "checkpoints" / "last.pt").training["state"]
    assert stopped_at["epoch"] == 1
    assert stopped_at["batch"] > 0
    assert train.main(["--resume", "--checkpoints", str(tmp_path / "checkpoints")]) == 0
    resumed = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    unbroken = checkpoint.load(trained.checkpoints / "last.pt")
    assert resumed.scores == unbroken.scores
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.parametrize("stage", ["finetune", "scst"])
def test_a_model_to_start_from_can_go_straight_to_a_later_stage(trained, tmp_path, capsys, stage):
    """It started from the best.pt of an earlier run in the folder, or failed if there was none."""
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"another model's")
    init = {"init": trained.checkpoints / "best.pt", "epochs": 0, f"{stage}_epochs": 1}
    assert train.main(trained.flags(tmp_path, **init)) == 0
    err = capsys.readouterr().err
    assert f"{stage} 0/1  val" in err  # what the stage has to surpass
    assert f"{stage} 1/1  " in err


def test_a_resumed_run_may_leave_the_stage_under_way_for_the_next(trained, tmp_path, capsys):
    """The optimizer of the stage left was loaded into that of the next: a traceback."""
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    where = ["--resume", "--checkpoints", str(tmp_path / "checkpoints")]
    assert train.main([*where, "--epochs", "0", "--finetune-epochs", "1"]) == 0
    assert "finetune 1/1  loss" in capsys.readouterr().err
