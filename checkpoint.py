"""A trained model as one self-contained file: save, load, describe.

A checkpoint holds plain data only (dicts, lists, numbers, strings, tensors), so that loading one
never runs code, and needs neither the data set, nor spaCy, nor a download.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import cli
import integrity
from cli import UserError
from familiarity import UNFAMILIAR, Familiarity
from files import WatchedFile, whole_file
from loader import SPECIAL_TOKENS, Vocabulary
from model import ImageCaptioningModel
from neighbours import Neighbours
from resnet import BLOCKS_PER_LAYER
from search import Search

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

FORMAT = 4
TIME_FORMAT = "%Y-%m-%d_%H-%M-%S"  # of the time a run began
_NOTHING: Mapping[str, Any] = MappingProxyType({})
PARTS = ("model", "encoder", "decoder", "vocabulary", "settings", "training")  # by name each
# What code raises that is given other data than it expects.
DAMAGE = (LookupError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError)
CARD = "model_card.md"  # beside the checkpoints


@dataclass
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        model: in eval mode once loaded.
        vocabulary: the words of the model's ids.
        settings: those of the training run, plain values by name.
        epoch: how many epochs it was trained.
        scores: validation scores of the best epoch so far, by name.
        started_at: when the run began, as ``2026-01-31_18-30-00``.
        training: what it takes to resume the run; empty in ``best.pt``.
        familiarity: tells pictures unlike those trained on; only in the ``best.pt`` of a run that
            is done, and not if there were too few photos.
        neighbours: the training photos with their captions, if those count in the search; only in
            the ``best.pt`` of a run that is done.
        trained_on: (M,) int64, ``Corpus.photo_ids`` of the training photos, if the run is done.
    """

    model: ImageCaptioningModel
    vocabulary: Vocabulary
    settings: dict[str, Any]
    epoch: int
    scores: dict[str, float]
    started_at: str
    training: dict[str, Any] = field(default_factory=dict)
    familiarity: Familiarity | None = None
    neighbours: Neighbours | None = None
    trained_on: Tensor | None = None

    @property
    def image_size(self) -> int:
        """The side of the square pictures the model was trained on, in pixels."""
        return self.settings["image_size"]

    def search(self, given: Mapping[str, Any] = _NOTHING) -> Search:
        """How captions are searched for: see ``search_settings``.

        Raises:
            UserError: neighbours are asked for, and the model knows none.
        """
        if given.get("neighbour_weight") and not self.neighbours:
            raise UserError(
                "this model (of several the first) has no captions of similar photos, since its "
                "training left them out, did not end or is of before 0.7.0: leave "
                "--neighbour-weight out."
            )
        return search_settings(self.settings, self.vocabulary, given)


def search_settings(
    settings: Mapping[str, Any], vocabulary: Vocabulary, given: Mapping[str, Any] = _NOTHING
) -> Search:
    """How captions are searched for: as a training run validated, but for what is given.

    Args:
        settings: of the run.
        vocabulary: says which words no caption ends on.
        given: settings by name; those that are not about the search are passed over. With a
            temperature one caption is sampled, unless ``beam_size`` asks for more.
    """
    validated = {field.name: settings[field.name] for field in fields(cli.BeamSettings)}
    if given.get("temperature"):
        validated["beam_size"] = 1
    names = {field.name for field in fields(Search)}
    asked = {name: value for name, value in given.items() if name in names}
    return Search(**{**validated, **asked, "banned_final_ids": vocabulary.banned_final_ids})


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all; a model to use gets a model card beside it.

    Raises:
        OSError: it cannot be written; an earlier file of this name is as it was.
    """
    state = checkpoint.model.state_dict()
    vocabulary = checkpoint.vocabulary
    content = {
        "format": FORMAT,
        "model": checkpoint.model.options,
        "encoder": {name: value for name, value in state.items() if name.startswith("encoder.")},
        "decoder": {
            name: value for name, value in state.items() if not name.startswith("encoder.")
        },
        "vocabulary": {
            "words": vocabulary.words,
            "counts": vocabulary.counts,
            "language": vocabulary.language,
            "separator": vocabulary.separator,
        },
        "settings": checkpoint.settings,
        "epoch": checkpoint.epoch,
        "scores": checkpoint.scores,
        "started_at": checkpoint.started_at,
        "training": checkpoint.training,
    }
    if checkpoint.familiarity:
        content["familiarity"] = checkpoint.familiarity.plain()
    if checkpoint.neighbours:
        content["neighbours"] = checkpoint.neighbours.plain()
    if checkpoint.trained_on is not None:
        content["trained_on"] = checkpoint.trained_on
    try:
        with whole_file(path) as part:
            _write(part, content)
        if not checkpoint.training:
            with whole_file(path.with_name(CARD)) as part:
                part.write_text(model_card(checkpoint), encoding="utf-8")
    except OSError as error:
        error.filename = error.filename or str(path)  # so that the message can name the place
        raise


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """As ``torch.save``, but with the disk's error: torch says "unexpected pos" for a full one."""
    with path.open("wb") as file:
        watched = WatchedFile(file)
        try:
            torch.save(content, watched)  # type: ignore[arg-type]  # it only writes and flushes
        except RuntimeError as error:
            raise (watched.error or error) from None


def load(
    path: Path | str, device: torch.device | str = "cpu", *, flag: str = "--checkpoint"
) -> Checkpoint:
    """Read a checkpoint and build its model on a device, in eval mode.

    ``flag`` is the one that names it, for the message if it is missing.

    Raises:
        UserError: there is no such file, it is no checkpoint, damaged, or of another format.
            Damaged is also one whose parts do not fit together, or whose weights are not numbers.
    """
    path = Path(path)
    content = _read(path, flag)
    with _explained(path):
        if not all(isinstance(content[part], dict) for part in PARTS):
            raise ValueError("a part of it is of another kind")
        content["settings"].setdefault("image_weight", 1.0)  # of those before 0.6.0
        content["settings"].setdefault("neighbour_weight", 0.0)  # of those before 0.7.0
        encoder = content["model"]["encoder"]
        if isinstance(encoder, str) and encoder not in BLOCKS_PER_LAYER:
            raise UserError(
                f"{path} has the encoder {encoder[:80]!r}, which this version does not know (it "
                f"knows {', '.join(BLOCKS_PER_LAYER)}): update the project."
            )
        integrity.check_vocabulary(content["vocabulary"])
        vocabulary = Vocabulary(**content["vocabulary"])
        if content["model"]["vocabulary_size"] != len(vocabulary):
            raise ValueError(
                f"its model and its vocabulary of {len(vocabulary):,} words do not fit"
            )
        _check_values(content)
        model = _build(content, path.stat().st_size)
        if not model.is_finite():
            raise ValueError("not all of its weights are finite numbers")
        familiarity = content.get("familiarity")
        if familiarity is not None:
            integrity.check_familiarity(familiarity, model.feature_size, path.stat().st_size)
        neighbours = content.get("neighbours")
        if neighbours is not None:
            integrity.check_neighbours(neighbours, content["model"], path.stat().st_size)
        if (trained_on := content.get("trained_on")) is not None:
            integrity.check_tensors([trained_on], path.stat().st_size)
            integrity.require(trained_on.dtype == torch.int64, "it names photos in another way")
    model.to(device)  # its constants too
    model.lstm.flatten_parameters()  # else cuDNN packs the weights anew at every token
    return Checkpoint(
        model.eval(),
        vocabulary,
        settings=content["settings"],
        epoch=content["epoch"],
        scores=content["scores"],
        started_at=content["started_at"],
        training=content["training"],
        familiarity=Familiarity.of(familiarity).to(device) if familiarity else None,
        neighbours=Neighbours.of(neighbours).to(device) if neighbours else None,
        trained_on=trained_on,
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes of the block is a ``UserError``."""
    try:
        yield
    except DAMAGE as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} is damaged, or no checkpoint of this project: give another. "
            f"({reason.split(chr(10))[0][:200].rstrip(': ')})"
        ) from error


def _check_values(content: Mapping[str, Any]) -> None:
    """Check what is neither words nor tensors."""
    integrity.check_used_settings(content["settings"], content["model"])
    integrity.require(
        integrity.is_count(content["epoch"])
        and integrity.is_scores(content["scores"])
        and integrity.is_time(content["started_at"]),
        "its epoch, scores or time are not what they should be",
    )


def _build(content: Mapping[str, Any], n_bytes: int) -> ImageCaptioningModel:
    """Build the model of a file of so many bytes, and give it the file's tensors as they are."""
    state = {**content["encoder"], **content["decoder"]}
    integrity.check_tensors(state.values(), n_bytes)
    integrity.check_options(content["model"], content["decoder"])
    with _Unfilled():
        model = ImageCaptioningModel(**content["model"])
    integrity.check_state(state, model.state_dict())
    model.load_state_dict(state, assign=True)
    return model


class _Unfilled(TorchFunctionMode):
    """Modules made in this block get no random weights, which take long to draw.

    The meta device would do the same, but some of what draws imports half of torch to work there:
    a second of `predict.py`'s start.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What is called in the block comes through here; `init.zeros_(x)` returns x as it is."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def load_last(
    folder: Path,
    device: torch.device,
    settings_class: type[DataclassInstance] = cli.BeamSettings,
) -> Checkpoint:
    """Read the run in a checkpoints folder that is to be resumed.

    Args:
        folder: with ``last.pt``.
        device: for the model.
        settings_class: what the run's settings are made into again.

    Raises:
        UserError: as ``load``; or there is no run, or only a copy of its best model, or what it
            takes to resume is damaged.
    """
    from learning import TrainState  # which predict.py does not need

    path = folder / "last.pt"
    if not path.is_file():
        raise UserError(
            f"nothing to resume in {folder}: leave --resume out, or name the run's folder with "
            "--checkpoints (give --demo for the demo's)."
        )
    resumed = load(path, device)
    training = resumed.training
    if not training:
        raise UserError(f"{path} holds no training state to resume: it is a copy of best.pt.")
    with _explained(path):
        integrity.check_settings(settings_class, resumed.settings)
        if not integrity.is_inside(resumed.settings.get("run_name", "")):
            raise ValueError("its run_name would lead out of --runs")
        TrainState.of(training["state"])
        integrity.check_optimizer(training["optimizer"], path.stat().st_size)
        integrity.require(isinstance(training["corpus"], str), "its data set has no fingerprint")
    best = folder / "best.pt"
    if resumed.scores and not (best.is_file() and _started(best) == resumed.started_at):
        raise UserError(
            f"{best} is not of the run to resume, which began at {resumed.started_at}: put that "
            "run's best.pt beside its last.pt."
        )
    return resumed


def load_ensemble(paths: Sequence[Path], device: torch.device) -> list[Checkpoint]:
    """Read one checkpoint, or several that form an ensemble.

    Raises:
        UserError: as ``load``; or their vocabularies or image sizes differ.
    """
    models = [load(path, device) for path in paths]
    for path, other in zip(paths[1:], models[1:], strict=True):
        if other.vocabulary.words != models[0].vocabulary.words:
            raise UserError(
                f"{paths[0]} and {path} know different words: only models trained on the same "
                "captions can be given to --checkpoint together."
            )
        if other.image_size != models[0].image_size:
            raise UserError(
                f"{paths[0]} takes pictures of {models[0].image_size} pixels, {path} of "
                f"{other.image_size}: give --checkpoint models of the same --image-size."
            )
    return models


def _read(path: Path, flag: str = "--checkpoint") -> dict[str, Any]:
    """The content of a checkpoint of this version's format, of which nothing else is known."""
    if path.is_dir():
        raise UserError(
            f"no checkpoint {path}, since {path} is a folder: name the model in it, such as "
            f"{path / 'best.pt'}."
        )
    if not path.is_file():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        others = sorted(path.parent.glob(f"*/{path.name}"), key=lambda p: p.stat().st_mtime)
        other = f"give {flag} {others[-1]}" if others else "name another"
        raise UserError(
            f"no checkpoint {path}{where}: train one by `python train.py` (--demo needs no data), "
            f"or {other}."
        )
    try:
        content = integrity.read(path)
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is no checkpoint of this project, or damaged ({error}): give a best.pt or "
            "last.pt that train.py wrote."
        ) from error
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, int) or not integrity.is_count(found):
        raise UserError(f"{path} is no checkpoint of this project: give one that train.py wrote.")
    if found > FORMAT:
        raise UserError(
            f"{path} was written by a newer version (format {found}, this one reads up to "
            f"{FORMAT}): update the project."
        )
    if found < FORMAT:
        raise UserError(
            f"{path} was written by an earlier version (format {found}, this one reads {FORMAT}): "
            "train again, or use the version that wrote it."
        )
    return content


def set_aside(folder: Path, logs: Path) -> None:
    """Move what an earlier run left where a new one will write, so that nothing is lost.

    Args:
        folder: with ``best.pt``, ``last.pt`` and the model card; they go into a folder named after
            the beginning of their run.
        logs: the new run's TensorBoard folder; one that is there already gets another name.
    """
    files = [path for path in (folder / n for n in ("best.pt", "last.pt", CARD)) if path.exists()]
    if files:
        when = _started(files[0])
        aside = _free(folder / when)
        aside.mkdir(parents=True)
        for path in files:
            path.rename(aside / path.name)
        log.info(f"kept        the earlier run's checkpoints, now in {aside}")
    elif logs.exists():
        when = _time(logs.stat().st_mtime)
    if logs.exists() and any(logs.iterdir()):  # else it was made for the new run
        logs.rename(_free(logs.with_name(f"{logs.name}_{when}")))


def _started(path: Path) -> str:
    """When the run that wrote a checkpoint began; for a damaged one, when it was written."""
    try:
        started_at = _read(path).get("started_at")
    except UserError:
        started_at = None
    if isinstance(started_at, str) and integrity.is_time(started_at):  # it becomes a folder's name
        return started_at
    return _time(path.stat().st_mtime)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime(TIME_FORMAT)


def _free(path: Path) -> Path:
    """The path, or with a number if there is something by that name."""
    names = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return path if not path.exists() else next(name for name in names if not name.exists())


def model_card(checkpoint: Checkpoint) -> str:
    """A model card in Markdown: what the model is, is for and is not for, its data and scores.

    Source of the headings: Mitchell et al. 2019, "Model Cards for Model Reporting",
    arXiv:1810.03993.
    """
    options, settings = checkpoint.model.options, checkpoint.settings
    vocabulary = checkpoint.vocabulary
    n_words = sum(vocabulary.counts)
    vocabulary_size = len(vocabulary) - len(SPECIAL_TOKENS)
    origin = f"Encoder weights: {settings['encoder_weights']}"
    if settings.get("init"):
        origin = f"Started from {settings['init']}"
    scores = "\n".join(
        f"| {name} | {value:.1f} |" for name, value in checkpoint.scores.items() if name != "loss"
    )
    held = ""
    if checkpoint.neighbours:
        held = f"\nThe file holds the captions of {len(checkpoint.neighbours.n_captions):,} photos."
    unfamiliar = "as if it were familiar."
    if checkpoint.familiarity:
        unfamiliar = f"but most of those have a\nfamiliarity below {UNFAMILIAR:g}."
    return f"""# Model card: an image captioner

**Model.** {options["encoder"]} + LSTM (Show and Tell, arXiv:1411.4555), {vocabulary_size:,} words
({vocabulary.language}), embedding {options["embedding_size"]}, hidden {options["hidden_size"]},
{options["num_layers"]} layer(s). {origin}. Begun
{checkpoint.started_at}, {checkpoint.epoch} epoch(s).

**Data.** Trained on the captions of {settings["data"]}: {n_words:,} words, the validation and test
images left out.{held}

**For.** A sentence on photos like those it was trained on: drafts of descriptions, search in a
collection, teaching and research.

**Not for.** Decisions about people, safety, or anything that no person checks. It names what such
photos mostly show: it guesses sex, age and clothing from appearance, with the biases of its data,
and describes any picture, an unfamiliar one too, {unfamiliar}
It reads no text, counts badly and confuses colours.

**Scores.** On the validation images, which also chose the best epoch; beam
{settings["beam_size"]}, x 100:

| score | |
|---|---|
{scores}
"""
