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
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from loader import DataError, Vocabulary, whole_file
from model import ENCODERS, ImageCaptioningModel, Search

log = logging.getLogger(__name__)

FORMAT = 3
MOMENT = "%Y-%m-%d_%H-%M-%S"  # how the time a run began is written


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
        training: what it takes to go on with the run; empty in ``best.pt``.
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

    def search(self, given: Mapping[str, Any]) -> Search:
        """How sentences are looked for: as the run validated, but for what is given and no None.

        With a temperature one sentence is drawn, unless more are asked for.
        """
        asked = {name: value for name, value in given.items() if value is not None}
        if asked.get("temperature"):
            asked = {"beam_size": 1, **asked}
        return search({**self.settings, **asked}, self.vocabulary)


def search(settings: Mapping[str, Any], vocabulary: Vocabulary) -> Search:
    """What the settings of that name say; the words no sentence ends on are the vocabulary's."""
    names = [field.name for field in fields(Search) if field.name in settings]
    chosen = {name: settings[name] for name in names}
    return Search(**chosen, not_last=vocabulary.hanging)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all."""
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


def load(path: Path, device: torch.device) -> Checkpoint:
    """Read a checkpoint and build its model.

    Raises:
        DataError: there is no such file, it is no checkpoint, damaged, or of another format.
            Damaged is also one whose weights are not numbers.
    """
    content = _read(path, device)
    try:
        encoder = content["model"]["encoder"]
        if encoder not in ENCODERS:
            raise DataError(
                f"{path} looks with {encoder!r}, which this version does not know (it knows "
                f"{', '.join(ENCODERS)}): update the project."
            )
        vocabulary = Vocabulary(**content["vocabulary"])
        with _Unfilled():  # the file's tensors become the model's
            model = ImageCaptioningModel(**content["model"])
        model.load_state_dict({**content["encoder"], **content["decoder"]}, assign=True)
        checkpoint = Checkpoint(
            model.eval(),
            vocabulary,
            settings=content["settings"],
            epoch=content["epoch"],
            scores=content["scores"],
            started_at=content["started_at"],
            training=content["training"],
        )
        checkpoint.search({})
        int(checkpoint.image_size)
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0].rstrip(":")
        raise DataError(
            f"{path} is damaged, or no checkpoint of this project: give another. ({reason})"
        ) from error
    n_words = len(vocabulary)
    if model.words.out_features != n_words:
        raise DataError(
            f"{path} is damaged: its model knows {model.words.out_features} words, "
            f"its vocabulary {n_words}."
        )
    if not model.is_finite():
        raise DataError(f"{path} is damaged: not all of its weights are numbers. Give another.")
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


def load_ensemble(paths: Sequence[Path], device: torch.device) -> list[Checkpoint]:
    """Read one checkpoint, or several whose models can speak as one.

    Raises:
        DataError: as ``load``; or they know different words, or look at pictures of other sizes.
    """
    models = [load(path, device) for path in paths]
    for path, other in zip(paths[1:], models[1:], strict=True):
        if other.vocabulary.words != models[0].vocabulary.words:
            raise DataError(
                f"{paths[0]} and {path} know different words ({len(models[0].vocabulary):,} and "
                f"{len(other.vocabulary):,}): only models trained on the same captions can be "
                "given to --checkpoint together."
            )
        if other.image_size != models[0].image_size:
            raise DataError(
                f"{paths[0]} looks at pictures of {models[0].image_size} pixels, {path} of "
                f"{other.image_size}: give --checkpoint models of the same --image-size."
            )
    return models


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    if path.is_dir():
        raise DataError(
            f"no checkpoint {path}, since {path} is a folder: name the model in it, such as "
            f"{path / 'best.pt'}."
        )
    if not path.is_file():
        others = sorted(path.parent.glob(f"*/{path.name}"), key=lambda p: p.stat().st_mtime)
        hint = f" There is {others[-1]}." if others else ""
        raise DataError(
            f"no checkpoint {path}: train one with `python train.py` (--demo needs no data), or "
            f"name another.{hint}"
        )
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise
        raise DataError(f"{path} is damaged or no checkpoint: {error}") from error
    except Exception as error:  # what torch raises on a file of another kind is not documented
        raise DataError(
            f"{path} is no checkpoint of this project, or damaged: give a best.pt or last.pt "
            "that train.py wrote."
        ) from error
    found = content.get("format") if isinstance(content, Mapping) else None
    if not isinstance(found, int):
        raise DataError(f"{path} is no checkpoint of this project: give one that train.py wrote.")
    if found > FORMAT:
        raise DataError(
            f"{path} was written by a newer version (format {found}, this one reads up to "
            f"{FORMAT}): update the project."
        )
    if found < FORMAT:
        raise DataError(
            f"{path} was written by an earlier version (format {found}, this one reads {FORMAT}): "
            "train again, or use the version that wrote it."
        )
    return dict(content)


def set_aside(folder: Path, logs: Path) -> None:
    """Move what an earlier run left where a new one will write, so that nothing is lost.

    Args:
        folder: with ``best.pt`` and ``last.pt``; they go into a folder named after their beginning.
        logs: the new run's TensorBoard folder; one that is there already gets another name.
    """
    files = [path for path in (folder / "best.pt", folder / "last.pt") if path.exists()]
    when = _began(files[0]) if files else _moment(logs.stat().st_mtime) if logs.exists() else ""
    if files:
        aside = _free(folder / when)
        aside.mkdir(parents=True)
        for path in files:
            path.rename(aside / path.name)
        log.info(f"kept        the earlier run's checkpoints, now in {aside}")
    if logs.exists():
        logs.rename(_free(logs.with_name(f"{logs.name}_{when}")))


def _began(path: Path) -> str:
    """When the run that wrote a checkpoint began; for a damaged one, when it was written."""
    try:
        return str(_read(path, torch.device("meta"))["started_at"])
    except (DataError, KeyError):
        return _moment(path.stat().st_mtime)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime(MOMENT)


def _free(path: Path) -> Path:
    """The path, or with a number if there is something by that name."""
    names = (path.with_name(f"{path.name}-{n}") for n in range(2, 1000))
    return path if not path.exists() else next(name for name in names if not name.exists())


def describe(checkpoint: Checkpoint) -> str:
    """A model card in Markdown: what the model is, what it saw, what it scored."""
    options, settings = checkpoint.model.options, checkpoint.settings
    scores = "\n".join(
        f"| {name} | {value:.1f} |" for name, value in checkpoint.scores.items() if name != "loss"
    )
    return (
        f"**{options['encoder']} + LSTM**, {len(checkpoint.vocabulary):,} words "
        f"({checkpoint.vocabulary.language}), embedding {options['embedding_size']}, hidden "
        f"{options['hidden_size']}, {options['num_layers']} layer(s)\n\n"
        f"Encoder weights: {settings['encoder_weights']}. Trained on {settings['data']} for "
        f"{checkpoint.epoch} epoch(s), begun {checkpoint.started_at}.\n\n"
        f"Validation, beam {settings['beam_size']}:\n\n| score | x 100 |\n|---|---|\n{scores}\n"
    )


def load_encoder(model: ImageCaptioningModel, weights: str) -> None:
    """Give the model's ResNet its pretrained weights.

    Args:
        model: its encoder is filled in.
        weights: a name of torchvision's, as IMAGENET1K_V1; a file with a ResNet's state dict,
            with or without its ``fc``; or ``none`` to leave it random.

    Raises:
        DataError: no such name or file, no way to download, or weights of another network.
    """
    if weights == "none":
        return
    name = model.options["encoder"]
    state = _weights_file(Path(weights)) if _is_file(weights) else _download(name, weights)
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    try:
        model.encoder.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(
            f"the weights {weights} do not fit {name}: give those of a torchvision {name}, or "
            "choose the network they belong to with --encoder."
        ) from error


def _is_file(weights: str) -> bool:
    return Path(weights).exists() or "/" in weights or "." in weights


def _weights_file(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise DataError(f"no file {path}: check --encoder-weights.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # see _read
        raise DataError(f"{path} holds no weights or is damaged: expected a state dict.") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(f"{path} holds no state dict of a ResNet: expected names and tensors.")
    return state


def _download(encoder: str, weights: str) -> Mapping[str, Tensor]:
    from torchvision import models

    known = models.get_model_weights(encoder).__members__
    if weights not in known:
        raise DataError(
            f"{encoder} has no weights {weights!r}: give --encoder-weights {', '.join(known)}, a "
            "file, or none."
        )
    try:
        show = log.isEnabledFor(logging.INFO)
        return known[weights].get_state_dict(progress=show, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a download that was cut short
        reason = getattr(error, "reason", error)
        raise DataError(
            f"cannot download {known[weights].url} ({reason}). Fetch it on another machine and "
            "give --encoder-weights FILE, or train from scratch with --encoder-weights none."
        ) from error
