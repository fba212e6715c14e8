"""What a run shows of itself: lines on the terminal, curves and pictures in TensorBoard."""

from __future__ import annotations

import itertools
import logging
import shutil
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import distributed
import metrics
from corpus import Example
from learning import Reading, TrainState
from loader import SPECIAL_TOKENS, Vocabulary
from model import ImageCaptioningModel
from pictures import read_image

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

# The projector keeps its tensors as text: more rows make it slow to open.
PROJECTED_WORDS = 2000
PROJECTED_IMAGES = 500
THUMBNAIL = 48
N_PICTURES = 8  # captioned after every epoch

LAYOUT = {
    "1. Is it learning?": {
        "CIDEr, validation": ["Multiline", ["score/CIDEr"]],
        "BLEU-1 to 4, validation": ["Multiline", [f"score/BLEU-{n}" for n in range(1, 5)]],
    },
    "2. Is it overfitting? (val rises while train falls)": {
        "loss, nats per word": ["Multiline", ["loss/train", "loss/val"]],
        "learning rate": ["Multiline", ["learning_rate"]],
    },
    "3. What does it say? (the pictures are under IMAGES)": {
        "distinct captions, %": ["Multiline", ["captions/distinct"]],
        "mean length, words": ["Multiline", ["captions/words"]],
    },
}

# --------------------------------------------------------------------------- the terminal


def model_lines(
    model: ImageCaptioningModel, vocabulary: Vocabulary, settings: Mapping[str, Any]
) -> str:
    """What is about to be trained, and where."""
    is_scratch = settings["encoder_weights"] == "none"
    decoder = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("encoder."))
    encoder = sum(p.numel() for p in model.encoder.parameters()) if is_scratch else 0
    if is_scratch:
        state = "trained further" if settings["init"] else "trained from scratch"
    else:
        state = "frozen in stage 1" if settings["finetune_epochs"] else "frozen"
    if settings["init"]:
        weights, source = f"of {settings['init']}", "words, those of --init first"
    else:
        weights = settings["encoder_weights"]
        source = f"words that occur {settings['freq_threshold']} times or more in training captions"
    n_words = len(vocabulary) - len(SPECIAL_TOKENS)
    return (
        f"vocabulary  {n_words:,} {source} ({vocabulary.language})\n"
        f"model       {settings['encoder']} ({state}, weights {weights}) and LSTM of "
        f"{settings['hidden_size']}: {(decoder + encoder) / 1e6:.1f} million parameters train\n"
        f"device      {model.device}"
    )


def step_note(measure: str, recent: Reading) -> str:
    """What the progress bar shows of the last steps."""
    return f"{measure} {recent.mean:.2f}, {recent.words_per_second:,.0f} words/s"


def epoch_line(
    where: str,
    measure: str,
    learned: Reading,
    scores: Mapping[str, float],
    captions: Sequence[str],
    *,
    is_best: bool,
) -> str:
    """One line for an epoch.

    Args:
        where: stage and epoch.
        measure: what ``learned`` is the mean of.
        learned: of the epoch; empty before the first.
        scores: on the validation images, with their loss.
        captions: of the validation images.
        is_best: so far.
    """
    trained = ""
    if learned.count:
        seconds = f"{learned.words_per_second:,.0f} words/s  {learned.seconds:.0f} s"
        trained = f"{measure} {learned.mean:.2f}  {seconds}  "
    return (
        f"{where}  {trained}val {scores['loss']:.2f} nats/word  CIDEr {scores['CIDEr']:.1f}  "
        f"BLEU-4 {scores['BLEU-4']:.1f}  distinct {_distinct(captions):.0f} %"
        f"{'  best' if is_best else ''}"
    )


def closing_lines(
    settings: Mapping[str, Any], state: TrainState, val_examples: Sequence[Example]
) -> str:
    """Where the best checkpoint is, what it scored, and what to do with it."""
    path = Path(settings["checkpoints"]) / "best.pt"
    best = state.best_scores.items()
    scores = "  ".join(f"{name} {value:.1f}" for name, value in best if name != "loss")
    which = "" if path == Path("checkpoints/best.pt") else f"--checkpoint {path} "
    more = ""
    if not settings["finetune_epochs"] and not settings["scst_epochs"] and not settings["demo"]:
        more = f"better      {resume_command(settings)} --finetune-epochs 6 --scst-epochs 3\n"
    return (
        f"\nbest        {path}, {state.best_epoch}\n"
        f"scores      {scores}\n"
        f"            on {len(val_examples):,} validation images, beam {settings['beam_size']}\n"
        f"try it      python predict.py {which}--image {val_examples[-1].path}\n"
        f"{more}curves      tensorboard --logdir {settings['runs']}"
    )


def resume_command(settings: Mapping[str, Any]) -> str:
    """What finds this run again."""
    folder = settings["checkpoints"]
    return "python train.py --resume" + (
        "" if folder == "checkpoints" else f" --checkpoints {folder}"
    )


def _distinct(captions: Sequence[str]) -> float:
    """Share of captions that differ from all others before them, in percent."""
    return 100 * len(set(captions)) / len(captions)


# --------------------------------------------------------------------------- TensorBoard


P = ParamSpec("P")


def _or_go_on_without(entry: Callable[P, None]) -> Callable[P, None]:
    """Let an entry of a ``RunLog`` fail with a warning, and those after it be nothing.

    What training is for are the checkpoints: a folder that is full or gone must not end it.
    """

    @wraps(entry)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        run_log = args[0]
        assert isinstance(run_log, RunLog)
        if run_log.has_failed:
            return
        try:
            entry(*args, **kwargs)
        except OSError as error:  # also one of the writer's thread, which shows at the next entry
            run_log.has_failed = True
            log.warning(
                f"warning: TensorBoard's logs in {run_log.folder} cannot be written "
                f"({error.strerror or error}): training goes on without them."
            )

    return guarded


class RunLog:
    """One run's folder of TensorBoard events; the horizontal axis is the training step.

    What cannot be written is left out with one warning.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, step: int = 0) -> None:
        """Nothing is written yet: an earlier run's folder may have to be moved first.

        Args:
            folder: of this run.
            settings: shown as a table.
            step: of a run that is resumed; what it logged after this step is hidden.
        """
        self.folder, self.settings, self.first_step = folder, settings, step
        self.has_failed = not distributed.is_first()  # the others write nothing

    @cached_property
    def writer(self) -> SummaryWriter:
        """Opened by the first entry."""
        from torch.utils.tensorboard import SummaryWriter

        _say_nothing_of_disks()
        step = self.first_step
        writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)
        if not step:
            writer.add_custom_scalars(LAYOUT)
        rows = "\n".join(f"| {name} | {value} |" for name, value in self.settings.items())
        writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")
        return writer

    @_or_go_on_without
    def steps(
        self, measure: str, recent: Reading, *, norm: float, learning_rate: float, step: int
    ) -> None:
        """Points on the curves of training, for the steps since the last ones."""
        values = {
            f"{measure}/train": recent.mean,
            "learning_rate": learning_rate,
            "gradient_norm": norm,
            "words_per_second": recent.words_per_second,
        }
        self._scalars(values, step)

    @_or_go_on_without
    def epoch(
        self,
        scores: Mapping[str, float],
        captions: Sequence[str],
        examples: Sequence[Example],
        *,
        step: int,
    ) -> None:
        """Points on the curves of validation; some pictures with our caption and a human one."""
        n_words = sum(len(metrics.tokens(text)) for text in captions)
        values = {f"score/{name}": value for name, value in scores.items() if name != "loss"}
        values |= {
            "loss/val": scores["loss"],
            "captions/distinct": _distinct(captions),
            "captions/words": n_words / len(captions),
        }
        self._scalars(values, step)
        shown = zip(captions[:N_PICTURES], examples[:N_PICTURES], strict=True)
        for number, (text, example) in enumerate(shown, start=1):
            card = _card(read_image(example.path, size=256), text, example.captions[0])
            self.writer.add_image(f"captions/{number}", card, step)
        self.writer.flush()  # the checkpoint of this epoch is on the disk too

    @_or_go_on_without
    def flush(self) -> None:
        """Write out what is in memory: with a checkpoint, so that a resumed line has no gap."""
        if "writer" in vars(self):  # opened
            self.writer.flush()

    @_or_go_on_without
    def embeddings(
        self,
        vocabulary: Vocabulary,
        model: ImageCaptioningModel,
        features: Tensor,
        captions: Sequence[str],
        examples: Sequence[Example],
        *,
        step: int,
    ) -> None:
        """Fill the projector: the most frequent words, and images with their captions.

        Args:
            vocabulary: labels and frequencies of the words.
            model: its word embeddings, and its projection of the features.
            features: (N, F).
            captions: ours, N.
            examples: the images, N.
            step: of the training, which they are shown with.
        """
        # A finished run that is resumed writes them again: torch would warn of the old ones.
        shutil.rmtree(self.folder / f"{step:05}", ignore_errors=True)
        first = len(SPECIAL_TOKENS)
        rows = slice(first, first + PROJECTED_WORDS)
        self.writer.add_embedding(
            model.word_embedding.weight.detach()[rows],
            metadata=[
                (_label(word), str(count))
                for word, count in zip(vocabulary.words[rows], vocabulary.counts[rows], strict=True)
            ],
            metadata_header=["word", "frequency"],
            tag="words",
            global_step=step,
        )
        with torch.inference_mode():
            vectors = model.eval().project(features)
        pictures = [read_image(example.path, size=64) for example in examples]
        thumbnails = [_tensor(picture.resize((THUMBNAIL, THUMBNAIL))) for picture in pictures]
        self.writer.add_embedding(
            vectors,
            metadata=[
                (_label(text), _label(example.captions[0]))
                for text, example in zip(captions, examples, strict=True)
            ],
            metadata_header=["caption", "human"],
            label_img=torch.stack(thumbnails).float() / 255,
            tag="images",
            global_step=step,
        )

    @_or_go_on_without
    def results(self, card: str, scores: Mapping[str, float]) -> None:
        """The model card, and the row of this run in the table of runs (HParams)."""
        self.writer.add_text("model card", card)
        plain = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in self.settings.items()
        }
        finals = {f"final/{name}": value for name, value in scores.items()}
        self.writer.add_hparams(plain, finals, run_name=".")
        self.writer.close()

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


@cache
def _say_nothing_of_disks() -> None:
    """No traceback of a writer's thread that cannot write: the next entry gets its error."""
    before = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        is_writer = type(ended.thread).__name__ == "_AsyncWriterThread"
        if not (is_writer and isinstance(ended.exc_value, OSError)):
            before(ended)

    threading.excepthook = hook


def make_folder(runs: Path, name: str) -> str:
    """Make a new run's folder of this name, with a number if there is one; its name.

    Two runs that begin in the same second get two.
    """
    runs.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        free = f"{name}-{number}" if number > 1 else name
        try:
            (runs / free).mkdir()
        except FileExistsError:
            continue
        return free
    raise AssertionError("numbers do not end")


def _card(image: Image.Image, ours: str, human: str, *, size: int = 256) -> Tensor:
    """A picture over two captions: (3, 1.5 size, size) uint8."""
    card = Image.new("RGB", (size, size + size // 2), "white")
    card.paste(image.resize((size, size)), (0, 0))
    draw = ImageDraw.Draw(card)
    font = ImageFont.load_default(15)
    lines = textwrap.wrap(ours, 33)[:3]
    draw.multiline_text((6, size + 5), "\n".join(lines), fill="black", font=font)
    below = size + 12 + 19 * len(lines)
    lines = textwrap.wrap(f"human: {human}", 33)[:3]
    draw.multiline_text((6, below), "\n".join(lines), fill="gray", font=font)
    return _tensor(card)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _label(text: str) -> str:
    """Tabs and line ends would shift the projector's rows; an empty label would drop one."""
    return " ".join(text.split()) or "-"
