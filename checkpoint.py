"""A trained model as one self-contained file: save, load, describe.

A checkpoint holds plain data only (dicts, lists, numbers, strings, tensors), so that loading one
never runs code, and needs neither the data set, nor spaCy, nor a download.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import cli
from cli import UserError
from files import whole_file
from loader import Vocabulary
from model import ImageCaptioningModel
from resnet import LAYERS
from search import Search

log = logging.getLogger(__name__)

FORMAT = 4
TIME_FORMAT = "%Y-%m-%d_%H-%M-%S"  # of the time a run began
_NOTHING: Mapping[str, Any] = MappingProxyType({})
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
    """

    model: ImageCaptioningModel
    vocabulary: Vocabulary
    settings: dict[str, Any]
    epoch: int
    scores: dict[str, float]
    started_at: str
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def image_size(self) -> int:
        """The side of the square pictures the model was trained on, in pixels."""
        return self.settings["image_size"]

    def search(self, given: Mapping[str, Any] = _NOTHING) -> Search:
        """How captions are searched for: see ``search_settings``."""
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
    """Write a checkpoint, whole or not at all; a model to use gets a model card beside it."""
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
    with whole_file(path) as part, part.open("wb") as file:  # by its name, torch hides a full disk
        torch.save(content, file)
    if not checkpoint.training:
        with whole_file(path.with_name(CARD)) as part:
            part.write_text(model_card(checkpoint), encoding="utf-8")


def load(path: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint and build its model on a device, in eval mode.

    Raises:
        UserError: there is no such file, it is no checkpoint, damaged, or of another format.
            Damaged is also one whose weights are not numbers.
    """
    path = Path(path)
    content = _read(path, device)
    try:
        encoder = content["model"]["encoder"]
        if encoder not in LAYERS:
            raise UserError(
                f"{path} has the encoder {encoder!r}, which this version does not know (it knows "
                f"{', '.join(LAYERS)}): update the project."
            )
        vocabulary = Vocabulary(**content["vocabulary"])
        with _Unfilled():  # the file's tensors become the model's
            model = ImageCaptioningModel(**content["model"])
        model.load_state_dict({**content["encoder"], **content["decoder"]}, assign=True)
        model.to(device)  # its constants too
        model.lstm.flatten_parameters()  # else cuDNN packs the weights anew at every token
        checkpoint = Checkpoint(
            model.eval(),
            vocabulary,
            settings=content["settings"],
            epoch=content["epoch"],
            scores=content["scores"],
            started_at=content["started_at"],
            training=content["training"],
        )
        checkpoint.search()
        int(checkpoint.image_size)
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0].rstrip(":")
        raise UserError(
            f"{path} is damaged, or no checkpoint of this project: give another. ({reason})"
        ) from error
    n_words = len(vocabulary)
    if model.output.out_features != n_words:
        raise UserError(
            f"{path} is damaged: its model knows {model.output.out_features} words, "
            f"its vocabulary {n_words}."
        )
    if not model.is_finite():
        raise UserError(f"{path} is damaged: not all of its weights are numbers. Give another.")
    return checkpoint


class _Unfilled(TorchFunctionMode):
    """Modules made in this block get no random weights, which take long to draw.

    The meta device would do the same, but some of what draws imports half of torch to work there:
    a second of `predict.py`'s start.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What is called in the block comes through here."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs.get("tensor", *args[:1])
        return func(*args, **kwargs)


def load_last(folder: Path, device: torch.device) -> Checkpoint:
    """Read the run in a checkpoints folder that is to be resumed.

    Raises:
        UserError: as ``load``; or there is no run, or only a copy of its best model.
    """
    path = folder / "last.pt"
    if not path.is_file():
        raise UserError(
            f"nothing to resume in {folder}: leave --resume out, or name the run's folder with "
            "--checkpoints (give --demo for the demo's)."
        )
    resumed = load(path, device)
    if not resumed.training:
        raise UserError(f"{path} holds no training state to resume: it is a copy of best.pt.")
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
                f"{paths[0]} and {path} know different words ({len(models[0].vocabulary):,} and "
                f"{len(other.vocabulary):,}): only models trained on the same captions can be "
                "given to --checkpoint together."
            )
        if other.image_size != models[0].image_size:
            raise UserError(
                f"{paths[0]} takes pictures of {models[0].image_size} pixels, {path} of "
                f"{other.image_size}: give --checkpoint models of the same --image-size."
            )
    return models


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(
            f"no checkpoint {path}, since {path} is a folder: name the model in it, such as "
            f"{path / 'best.pt'}."
        )
    if not path.is_file():
        others = sorted(path.parent.glob(f"*/{path.name}"), key=lambda p: p.stat().st_mtime)
        hint = f" There is {others[-1]}." if others else ""
        raise UserError(
            f"no checkpoint {path}: train one with `python train.py` (--demo needs no data), or "
            f"name another.{hint}"
        )
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(f"{path} is damaged or no checkpoint: {error}") from error
    except Exception as error:  # what torch raises on a file of another kind is not documented
        raise UserError(
            f"{path} is no checkpoint of this project, or damaged: give a best.pt or last.pt "
            "that train.py wrote."
        ) from error
    found = content.get("format") if isinstance(content, Mapping) else None
    if not isinstance(found, int):
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
    return dict(content)


def set_aside(folder: Path, logs: Path) -> None:
    """Move what an earlier run left where a new one will write, so that nothing is lost.

    Args:
        folder: with ``best.pt``, ``last.pt`` and the model card; they go into a folder named after
            the beginning of their run.
        logs: the new run's TensorBoard folder; one that is there already gets another name.
    """
    files = [path for path in (folder / "best.pt", folder / "last.pt") if path.exists()]
    when = _started(files[0]) if files else _time(logs.stat().st_mtime) if logs.exists() else ""
    if files:
        aside = _free(folder / when)
        aside.mkdir(parents=True)
        for path in [*files, *folder.glob(CARD)]:
            path.rename(aside / path.name)
        log.info(f"kept        the earlier run's checkpoints, now in {aside}")
    if logs.exists():
        logs.rename(_free(logs.with_name(f"{logs.name}_{when}")))


def _started(path: Path) -> str:
    """When the run that wrote a checkpoint began; for a damaged one, when it was written."""
    try:
        return str(_read(path, "meta")["started_at"])
    except (UserError, KeyError):
        return _time(path.stat().st_mtime)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime(TIME_FORMAT)


def _free(path: Path) -> Path:
    """The path, or with a number if there is something by that name."""
    names = (path.with_name(f"{path.name}-{n}") for n in range(2, 1000))
    return path if not path.exists() else next(name for name in names if not name.exists())


def model_card(checkpoint: Checkpoint) -> str:
    """A model card in Markdown: what the model is, is for and is not for, its data and scores.

    Source of the headings: Mitchell et al. 2019, "Model Cards for Model Reporting",
    arXiv:1810.03993.
    """
    options, settings = checkpoint.model.options, checkpoint.settings
    vocabulary = checkpoint.vocabulary
    n_words = sum(vocabulary.counts)
    scores = "\n".join(
        f"| {name} | {value:.1f} |" for name, value in checkpoint.scores.items() if name != "loss"
    )
    return f"""# Model card: an image captioner

**Model.** {options["encoder"]} + LSTM (Show and Tell, arXiv:1411.4555), {len(vocabulary):,} words
({vocabulary.language}), embedding {options["embedding_size"]}, hidden {options["hidden_size"]},
{options["num_layers"]} layer(s). Encoder weights: {settings["encoder_weights"]}. Begun
{checkpoint.started_at}, {checkpoint.epoch} epoch(s).

**Data.** Trained on the captions of {settings["data"]}: {n_words:,} words, the validation and test
images left out.

**For.** A sentence on photos like those it was trained on: drafts of descriptions, search in a
collection, teaching and research.

**Not for.** Decisions about people, safety, or anything that no person checks. It names what such
photos mostly show: it guesses sex, age and clothing from appearance, with the biases of its data,
and describes any picture, an unfamiliar one too, as if it were familiar. It reads no text, counts
badly and confuses colours.

**Scores.** On the validation images, which also chose the best epoch; beam
{settings["beam_size"]}, x 100:

| score | |
|---|---|
{scores}
"""


def load_encoder(model: ImageCaptioningModel, weights: str) -> None:
    """Give the model's ResNet its pretrained weights.

    Args:
        model: its encoder is filled in.
        weights: a name of torchvision's, as IMAGENET1K_V1; a file with a ResNet's state dict,
            with or without its ``fc``; or ``none`` to leave it random.

    Raises:
        UserError: no such name or file, no way to download, or weights of another network.
    """
    if weights == "none":
        return
    name = str(model.options["encoder"])
    state = _weights_file(Path(weights)) if _is_file(weights) else _download(name, weights)
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    try:
        model.encoder.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"the weights {weights} do not fit {name}: give those of a torchvision {name}, or "
            "choose the network they belong to with --encoder."
        ) from error


def _is_file(weights: str) -> bool:
    return Path(weights).exists() or "/" in weights or "." in weights


def _weights_file(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise UserError(f"no file {path}: check --encoder-weights.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # see _read
        raise UserError(f"{path} holds no weights or is damaged: expected a state dict.") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict of a ResNet: expected names and tensors.")
    return state


def _download(encoder: str, weights: str) -> Mapping[str, Tensor]:
    from torchvision import models

    known = models.get_model_weights(encoder).__members__
    if weights not in known:
        raise UserError(
            f"{encoder} has no weights {weights!r}: give --encoder-weights {', '.join(known)}, a "
            "file, or none."
        )
    try:
        show = log.isEnabledFor(logging.INFO)
        return known[weights].get_state_dict(progress=show, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a download that was cut short
        reason = getattr(error, "reason", error)
        raise UserError(
            f"cannot download {known[weights].url} ({reason}). Fetch it on another machine and "
            "give --encoder-weights FILE, or train from scratch with --encoder-weights none."
        ) from error
