import json
import logging
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

import cli
import logs
import predict
import train
from corpus import Example
from learning import STAGES, Reading
from loader import Vocabulary
from model import ImageCaptioningModel

SCORES = {"loss": 2.613, "CIDEr": 44.06, "BLEU-4": 19.5}
LEARNED = Reading(total=2480.0, count=1000, n_words=1000, seconds=0.5)


@pytest.mark.parametrize(
    ("learned", "is_best", "line"),
    [
        (
            LEARNED,
            True,
            "xe 3/8  loss 2.48  2,000 words/s  0 s  val 2.61 nats/word  CIDEr 44.1  BLEU-4 19.5  "
            "distinct 50 %  best",
        ),
        (  # before the first step, of a model to start from
            Reading(),
            False,
            "xe 3/8  val 2.61 nats/word  CIDEr 44.1  BLEU-4 19.5  distinct 50 %",
        ),
    ],
)
def test_the_line_of_an_epoch(learned, is_best, line):
    captions = ["a dog", "a dog", "a cat", "a cat"]
    assert logs.epoch_line("xe 3/8", "loss", learned, SCORES, captions, is_best=is_best) == line


def test_the_note_beside_the_progress_is_of_the_last_steps():
    recent = LEARNED.since(Reading(total=1480.0, count=500, n_words=500, seconds=0.25))
    assert logs.step_note("loss", recent) == "loss 2.00"


def closing(**changed):
    settings = cli.plain(train.Settings(**changed))
    examples = [Example("a.jpg", Path("my photos/a.jpg"), ["A dog ."])]
    return logs.closing_lines(settings, SCORES, "epoch 3 of 8 (xe)", examples)


def test_a_run_ends_with_commands_that_can_be_given():
    text = closing(checkpoints=Path("elsewhere"))
    assert f"best        {Path('elsewhere/best.pt')}, epoch 3 of 8 (xe)" in text
    assert "scores      CIDEr 44.1  BLEU-4 19.5\n" in text
    commands = re.findall(r"python (\w+)\.py (.*)", text)
    assert [name for name, _ in commands] == ["predict", "train"]
    (_, predicting), (_, resuming) = commands
    found, _ = cli.parse(train.Settings, shlex.split(resuming))
    assert (found.resume, found.checkpoints) == (True, Path("elsewhere"))
    assert (found.finetune_epochs, found.crop) == (7, 0.4)
    found, _ = cli.parse(predict.Settings, shlex.split(predicting))
    assert found.checkpoint == (Path("elsewhere/best.pt"),)


def test_the_end_says_how_to_see_curves_that_nothing_bends():
    """At TensorBoard's own 0.6 a CIDEr that fell from 67 to 54 still seemed to be 56."""
    *_, command, address = closing().splitlines()
    assert command.split() == ["curves", "tensorboard", "--logdir", "runs/image_captioning"]
    assert address.split() == [f"http://localhost:6006/{logs.UNSMOOTHED}"]


@pytest.mark.parametrize("changed", [{"finetune_epochs": 1}, {"scst_epochs": 1}, {"demo": True}])
def test_more_stages_are_offered_only_after_the_first(changed):
    assert "better" not in closing(**changed)
    assert "python train.py --resume --finetune-epochs 7 --crop 0.4" in closing()


def test_nothing_is_written_before_the_first_entry(tmp_path):
    """An earlier run's folder of this name has to be moved first."""
    log = logs.RunLog(tmp_path / "a_run", {})
    assert list(tmp_path.iterdir()) == []
    log.steps("loss", LEARNED, norm=1.0, learning_rate=0.1, stage="xe", step=1)
    log.writer.close()
    assert (tmp_path / "a_run").is_dir()


def test_words_and_captions_of_any_kind_keep_the_projectors_rows(drawn, tmp_path):
    """A tab would shift a row, a line end break it, an empty label drop it."""
    vocabulary = Vocabulary.build(["a dog runs"], freq_threshold=1)
    model = ImageCaptioningModel(len(vocabulary), encoder="resnet18", embedding_size=8)
    path = next((drawn / "flickr30k_images").iterdir())
    examples = [Example("a.png", path, ["A\tdog\nruns ."]), Example("b.png", path, [""])]
    log = logs.RunLog(tmp_path, {})
    features = torch.zeros(2, model.feature_size)
    log.embeddings(vocabulary, model, features, ["", "a\tdog"], examples, step=1)
    log.writer.close()
    rows = next(tmp_path.glob("*/images/metadata.tsv")).read_text(encoding="utf-8").splitlines()
    assert rows == ["caption\thuman", "-\tA dog runs .", "a dog\t-"]
    rows = next(tmp_path.glob("*/words/metadata.tsv")).read_text(encoding="utf-8").splitlines()
    assert rows == ["word\tfrequency", "a\t1", "dog\t1", "runs\t1"]


def test_names_that_are_no_text_are_logged_too(drawn, tmp_path):
    """A file name in Latin-1 ended the training with a traceback."""
    path = Path(os.fsdecode(b"caf\xe9.png"))
    copy = shutil.copy(next((drawn / "flickr30k_images").iterdir()), tmp_path / path)
    settings = cli.plain(train.Settings(data=path, init=path))
    log = logs.RunLog(tmp_path / "runs", settings)
    log.epoch(SCORES, ["a dog"], [Example("a", Path(copy), ["A dog ."])], best=SCORES, step=1)
    log.results(f"# A model trained on {path}")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    assert events.Tags()["images"] == ["captions/1 caf?.png"]


def log_steps(log, steps):
    for step in steps:
        log.steps("loss", LEARNED, norm=1.0, learning_rate=0.1, stage="xe", step=step)


def logged_steps(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("loss/train")]


def test_a_resumed_line_has_neither_gaps_nor_doubled_points(tmp_path):
    """What was logged after the checkpoint is logged again; what was before is on the disk."""
    killed = logs.RunLog(tmp_path, {})
    log_steps(killed, range(1, 8))
    killed.flush()  # with the checkpoint of step 7
    log_steps(killed, range(8, 11))
    killed.flush()
    (first,) = tmp_path.iterdir()  # read in the order of names, which begin with the second
    first.rename(first.with_name("events.out.tfevents.0"))
    resumed = logs.RunLog(tmp_path, {}, step=7)
    log_steps(resumed, range(8, 13))
    resumed.flush()
    assert logged_steps(tmp_path) == list(range(1, 13))


def test_what_is_logged_before_a_checkpoint_is_on_the_disk(tmp_path):
    log = logs.RunLog(tmp_path, {})
    log.flush()  # nothing is opened for it
    assert list(tmp_path.iterdir()) == []
    log_steps(log, [1, 2])
    log.flush()
    assert logged_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("trouble", ["full", "full later", "gone", "a file"])
def test_a_folder_that_cannot_be_written_costs_one_warning(
    tmp_path, caplog, capfd, monkeypatch, trouble
):
    # Those of scripts that earlier tests ran write to a stderr that is closed by now.
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    folder = tmp_path / "runs"
    if trouble == "a file":
        folder.write_text("")
    log = logs.RunLog(folder, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if trouble in ("full later", "gone"):
        log_steps(log, [1])
        log.flush()
    if trouble == "gone":
        shutil.rmtree(folder)
    if trouble.startswith("full"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if "later" in trouble else 0, limits[1]))
    try:
        for step in range(2, 60):
            log_steps(log, [step])
            log.flush()
        log.results("a card")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.text.count("training goes on without them") == 1
    assert capfd.readouterr().err == ""


def test_two_runs_that_begin_in_the_same_second_get_two_folders(tmp_path):
    names = [logs.make_folder(tmp_path / "runs", "2026-01-31_18-30-00") for _ in range(3)]
    assert names == ["2026-01-31_18-30-00", "2026-01-31_18-30-00-2", "2026-01-31_18-30-00-3"]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == set(names)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ["2 words that occur 5 times or more", "(frozen, weights IMAGENET1K_V1)"]),
        ({"finetune_epochs": 2}, ["frozen in stage 1"]),
        ({"init": Path("a.pt")}, ["2 words, those of --init first", "weights of a.pt"]),
        ({"encoder_weights": "none"}, ["trained from scratch, weights none"]),
    ],
)
def test_what_is_said_of_the_model_is_true(changed, expected):
    vocabulary = Vocabulary.build(["a dog"], freq_threshold=1)
    model = ImageCaptioningModel(len(vocabulary), encoder="resnet18", embedding_size=8)
    text = logs.model_lines(model, vocabulary, cli.plain(train.Settings(**changed)))
    assert all(part in text for part in expected)


# --------------------------------------------------------------------- in a browser


def log_run(folder, hidden_size, examples):
    """A run of an epoch of each stage; the second is the best."""
    log = logs.RunLog(folder, cli.plain(train.Settings(hidden_size=hidden_size)))
    captions, best = ["a dog runs"] * len(examples), {"CIDEr": 0.0}
    for epoch, stage in enumerate(STAGES):
        for step in (10 * epoch + 5, 10 * epoch + 10):
            measure = "reward" if stage == "scst" else "loss"
            log.steps(measure, LEARNED, norm=1.0, learning_rate=0.1, stage=stage, step=step)
        scores = {**SCORES, **{f"BLEU-{n}": 60 / n for n in range(1, 5)}}
        scores["CIDEr"] = 50 - 10 * abs(epoch - 1)
        best = max(best, scores, key=lambda scores: scores["CIDEr"])
        log.epoch(scores, captions, examples, best=best, step=step)
    return log


@pytest.fixture(scope="module")
def tensorboard(drawn, tmp_path_factory, chromium):  # noqa: ARG001 (skips where there is none)
    """The address of one that shows two runs, which differ in a setting; one is under way."""
    folder = tmp_path_factory.mktemp("runs")
    paths = sorted((drawn / "flickr30k_images").iterdir())[:3]
    examples = [Example(path.name, path, ["A dog ."]) for path in paths]
    log_run(folder / "a", 64, examples).results("# The model's card")
    log_run(folder / "b", 128, examples).writer.close()
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (found := re.search(r" at (http://\S+)", line := server.stderr.readline())):
        assert line, "it did not start"
    for _ in range(600):
        if all(n_epochs_shown(found[1], run) == len(STAGES) for run in "ab"):
            break
        time.sleep(0.1)
    yield found[1]
    server.terminate()
    server.stderr.close()
    server.wait()


def n_epochs_shown(address, run):
    try:
        where = f"{address}data/plugin/scalars/scalars?tag=loss/val&run={run}"
        with urllib.request.urlopen(where) as points:
            return len(json.load(points))
    except urllib.error.HTTPError:  # it has not read any of it
        return 0


# What is shown, top to bottom: TensorBoard hides its elements in shadow trees.
TEXT = """() => {
    const text = node => node.nodeType === Node.TEXT_NODE ? node.data.trim()
        : node.nodeName === "STYLE" || node.nodeName === "TEMPLATE" ? ""
        : node.nodeName === "SLOT" ? node.assignedNodes().map(text).join("\\n")
        : [...(node.shadowRoot || node).childNodes].map(text).filter(Boolean).join("\\n");
    return text(document.body);
}"""


def lines_of(page):
    return [line.strip() for line in page.evaluate(TEXT).splitlines()]


def test_the_first_screen_asks_what_one_wants_to_know(tensorboard, open_tab):
    """Four curves of BLEU had one colour; the learning rate stood under overfitting."""
    page = open_tab(tensorboard + logs.UNSMOOTHED).page
    chart = page.locator("tf-custom-scalar-multi-line-chart-card")
    for n in range(1, 5):  # a line for each run, and no other
        chart.filter(has_text=f"BLEU-{n}, validation").get_by_text("Matches (2)").wait_for()
    wanted = [text for heading, charts in logs.LAYOUT.items() for text in (heading, *charts)]
    assert [line for line in lines_of(page) if line in wanted] == wanted
    assert page.locator("tf-smoothing-input input").input_value() == "0"


def test_captioned_pictures_are_wide_and_have_names(tensorboard, open_tab):
    page = open_tab(f"{tensorboard}#images").page
    pictures = page.locator("tf-image-loader img")
    pictures.nth(5).wait_for()
    sizes = pictures.evaluate_all("all => all.map(i => [i.naturalWidth, i.naturalHeight])")
    assert sizes == 6 * [[2 * logs.CARD, logs.CARD]]
    names = [line for line in lines_of(page) if line.startswith("captions/")]
    assert list(dict.fromkeys(names)) == [f"captions/{n + 1} scene_0000{n}.png" for n in range(3)]


def test_the_table_of_runs_begins_with_what_differs_and_the_best_score(tensorboard, open_tab):
    """It had all settings by the alphabet, and charts of a single point for its scores."""
    page = open_tab(f"{tensorboard}#hparams").page
    page.get_by_text("Trial ID").first.wait_for()
    lines = lines_of(page)
    settings = [line for line in lines[: lines.index("Metrics")] if line in logs.COMPARED]
    assert settings[0] == "hidden_size"
    assert set(settings) == set(logs.COMPARED)
    assert lines[lines.index("Metrics") + 1] == "best/CIDEr"
    page.get_by_text("50.000", exact=True).nth(1).wait_for()  # of the best epoch, not of the last


def test_a_training_that_was_no_better_says_so():
    epoch = "epoch 0 of 2 (xe)"
    settings = {"checkpoints": "c", "runs": "r", "beam_size": 3, "demo": True}
    settings |= {"finetune_epochs": 0, "scst_epochs": 0}
    text = logs.closing_lines(settings, {}, epoch, [Example("a.jpg", Path("a.jpg"), ["a dog"])])
    assert "best        c/best.pt, the model of --init as it was: no epoch was better" in text
