import re
import shlex
from pathlib import Path

import pytest
import torch

import cli
import logs
import predict
import train
from corpus import Example
from learning import Reading, TrainState
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
    assert logs.step_note("loss", recent) == "loss 2.00, 2,000 words/s"


def closing(**changed):
    settings = cli.plain(train.Settings(**changed))
    state = TrainState("xe", best_scores=SCORES, best_epoch="epoch 3 of 8 (xe)")
    examples = [Example("a.jpg", Path("my photos/a.jpg"), ["A dog ."])]
    return logs.closing_lines(settings, state, examples)


def test_a_run_ends_with_commands_that_can_be_given():
    text = closing(checkpoints=Path("elsewhere"))
    assert f"best        {Path('elsewhere/best.pt')}, epoch 3 of 8 (xe)" in text
    assert "scores      CIDEr 44.1  BLEU-4 19.5\n" in text
    commands = re.findall(r"python (\w+)\.py (.*)", text)
    assert [name for name, _ in commands] == ["predict", "train"]
    (_, predicting), (_, resuming) = commands
    found, _ = cli.parse(train.Settings, shlex.split(resuming))
    assert (found.resume, found.checkpoints) == (True, Path("elsewhere"))
    assert (found.finetune_epochs, found.scst_epochs) == (6, 3)
    found, _ = cli.parse(predict.Settings, shlex.split(predicting.replace("y p", "y_p")))
    assert found.checkpoint == (Path("elsewhere/best.pt"),)


@pytest.mark.parametrize("changed", [{"finetune_epochs": 1}, {"scst_epochs": 1}, {"demo": True}])
def test_more_stages_are_offered_only_after_the_first(changed):
    assert "better" not in closing(**changed)
    assert "python train.py --resume --finetune-epochs 6 --scst-epochs 3" in closing()


def test_nothing_is_written_before_the_first_entry(tmp_path):
    """An earlier run's folder of this name has to be moved first."""
    log = logs.RunLog(tmp_path / "a_run", {})
    assert list(tmp_path.iterdir()) == []
    log.steps("loss", LEARNED, norm=1.0, learning_rate=0.1, step=1)
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
