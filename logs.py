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
from shlex import quote
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

import distributed
import metrics
from cli import progress
from corpus import Example
from learning import STAGES, Reading
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
CARD = 350  # pixels, the side of such a picture

# In a chart all lines of a run have one colour: two of unlike density can be told apart, not four.
LAYOUT = {
    "1. Is it learning? (to see few points as they are, set Smoothing to 0 at the left)": {
        "CIDEr, validation": ["Multiline", ["score/CIDEr"]],
        "stage: 1 xe, 2 finetune, 3 scst": ["Multiline", ["stage"]],
    },
    "2. Is it overfitting? (val rises while train falls)": {
        "loss, nats per word (val: once an epoch)": ["Multiline", ["loss/train", "loss/val"]],
        "loss, validation alone": ["Multiline", ["loss/val"]],
    },
    "3. Does it learn at a good rate?": {
        "learning rate": ["Multiline", ["learning_rate"]],
        "gradient norm": ["Multiline", ["gradient_norm"]],
    },
    "4. What does it say? (the pictures are under IMAGES)": {
        "distinct captions, %": ["Multiline", ["captions/distinct"]],
        "mean length, words": ["Multiline", ["captions/words"]],
    },
    "5. What do the other scores say?": {
        f"{name}, validation": ["Multiline", [f"score/{name}"]]
        for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L")
    },
}

# Opens TensorBoard with the charts above and without smoothing, which no log file can turn off.
UNSMOOTHED = "?smoothing=0#custom_scalars&_smoothingWeight=0"

# Columns of the table of runs. TensorBoard keeps the values that it reads first, so these are
# settings that no resumed run may change. Its results are the last points of all curves.
COMPARED = (
    *("encoder", "encoder_weights", "init", "image_size", "embedding_size", "hidden_size"),
    *("num_layers", "dropout", "freq_threshold", "batch_size", "learning_rate", "seed"),
)

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
    """What the progress bar shows of the last steps: little, it has to fit into 80 columns."""
    return f"{measure} {recent.mean:.2f}"


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
    settings: Mapping[str, Any],
    scores: Mapping[str, float],
    which_epoch: str,
    val_examples: Sequence[Example],
) -> str:
    """Where the best checkpoint is, what it scored, and what to do with it."""
    path = Path(settings["checkpoints"]) / "best.pt"
    shown = "  ".join(f"{name} {value:.1f}" for name, value in scores.items() if name != "loss")
    which = "" if path == Path("checkpoints/best.pt") else f"--checkpoint {quote(str(path))} "
    if which_epoch.startswith("epoch 0 "):
        which_epoch = "the model of --init as it was: no epoch was better"
    more = ""
    if not settings["finetune_epochs"] and not settings["scst_epochs"] and not settings["demo"]:
        more = f"better      {resume_command(settings)} --finetune-epochs 7 --crop 0.4\n"
    return (
        f"\nbest        {path}, {which_epoch}\n"
        f"scores      {shown}\n"
        f"            on {len(val_examples):,} validation images, beam {settings['beam_size']}\n"
        f"try it      python predict.py {which}--image {quote(str(val_examples[-1].path))}\n"
        f"{more}curves      tensorboard --logdir {quote(str(settings['runs']))}\n"
        f"            http://localhost:6006/{UNSMOOTHED}"
    )


def resume_command(settings: Mapping[str, Any]) -> str:
    """What finds this run again."""
    folder = settings["checkpoints"]
    return "python train.py --resume" + (
        "" if folder == "checkpoints" else f" --checkpoints {quote(str(folder))}"
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
        writer.add_custom_scalars(LAYOUT)
        rows = _utf8("\n".join(f"| {name} | {value} |" for name, value in self.settings.items()))
        writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")
        begun, _ = _table_row(self.settings)
        writer._get_file_writer().add_summary(begun)
        return writer

    @_or_go_on_without
    def steps(
        self,
        measure: str,
        recent: Reading,
        *,
        norm: float,
        learning_rate: float,
        stage: str,
        step: int,
    ) -> None:
        """Points on the curves of training, for the steps since the last ones."""
        values = {
            f"{measure}/train": recent.mean,
            "learning_rate": learning_rate,
            "gradient_norm": norm,
            "words_per_second": recent.words_per_second,
            "stage": 1 + STAGES.index(stage),
        }
        self._scalars(values, step)

    @_or_go_on_without
    def epoch(
        self,
        scores: Mapping[str, float],
        captions: Sequence[str],
        examples: Sequence[Example],
        *,
        best: Mapping[str, float],
        step: int,
    ) -> None:
        """Points on the curves of validation; some pictures with our caption and a human one.

        Args:
            scores: of this epoch.
            captions: of the validation images.
            examples: these images.
            best: scores of the best epoch so far.
            step: of the training.
        """
        n_words = sum(len(metrics.tokens(text)) for text in captions)
        values = {f"score/{name}": value for name, value in scores.items() if name != "loss"}
        values |= {
            "best/CIDEr": best["CIDEr"],
            "loss/val": scores["loss"],
            "captions/distinct": _distinct(captions),
            "captions/words": n_words / len(captions),
        }
        self._scalars(values, step)
        shown = zip(captions[:N_PICTURES], examples[:N_PICTURES], strict=True)
        for number, (text, example) in enumerate(shown, start=1):
            card = _card(read_image(example.path, size=CARD), text, example.captions[0])
            self.writer.add_image(_utf8(f"captions/{number} {example.path.name}"), card, step)
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
        shown = progress(examples, about="drawing thumbnails", unit="picture")
        pictures = [read_image(example.path, size=64) for example in shown]
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
    def results(self, card: str) -> None:
        """The model card; and this run is done in the table of runs (HParams)."""
        self.writer.add_text("model card", _utf8(card))
        _, ended = _table_row(self.settings)
        self.writer._get_file_writer().add_summary(ended)
        self.writer.close()

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


def _table_row(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """What begins and what ends the row of a run in the table of runs (HParams).

    torch also names the columns of all runs. That is left out: so TensorBoard finds them by itself
    and shows those first in which the runs differ.
    """
    from torch.utils.tensorboard.summary import hparams

    compared = {name: settings[name] for name in COMPARED if name in settings}
    plain = {n: v if isinstance(v, int | float) else _utf8(str(v)) for n, v in compared.items()}
    _, begun, ended = hparams(plain, {})
    return begun, ended


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


def _card(image: Image.Image, ours: str, human: str, *, size: int = CARD) -> Tensor:
    """A picture beside two captions: (3, size, 2 size) uint8.

    TensorBoard shows it about 350 pixels wide, and leaves out every other row and column: the
    letters are large.
    """
    card = Image.new("RGB", (2 * size, size), "white")
    picture = ImageOps.contain(image, (size, size))
    card.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    draw = ImageDraw.Draw(card)
    font, line = ImageFont.load_default(size // 13), size // 10
    left, top = size + size // 24, size // 48
    for text, colour in ((ours, "black"), (f"human: {human}", "dimgray")):
        for row in textwrap.wrap(text, 24)[:5]:
            draw.text((left, top), row, fill=colour, font=font)
            top += line
        top += line // 2
    return _tensor(card)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _label(text: str) -> str:
    """Tabs and line ends would shift the projector's rows; an empty label would drop one."""
    return " ".join(text.split()) or "-"


def _utf8(text: str) -> str:
    """What a log file takes: a question mark for each byte of a file name that is no text."""
    return text.encode("utf-8", "replace").decode()
