"""Whether a checkpoint file is what it should be, before anything is made of its content.

A disk flips bits, an editor changes sizes, a stranger's file claims what it does not hold. What
such a file holds reaches neither the model nor the optimizer, nor paths and loops: each check
raises a ``ValueError`` that says what is wrong, but never shows the value, which may be of any
size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import typing
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import UnionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import cli

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch.optim import Optimizer

LARGEST = 2**53  # of the whole numbers that settings and states hold: exact as a float too
LARGEST_IMAGE = 2**15  # side in pixels; nobody trains on larger ones
TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")  # as ``checkpoint.TIME_FORMAT`` writes it
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, each of its parameter's shape


def require(condition: bool, problem: str) -> None:
    """Raise a ``ValueError`` with the problem unless the condition holds."""
    if not condition:
        raise ValueError(problem)


# ------------------------------------------------------------------------------- the file


def read(path: Path) -> Any:
    """Read a file of `torch.save`: plain data, the tensors on the CPU.

    Raises:
        ValueError: it is no such file, or was changed since it was written.
        OSError: it cannot be read.
    """
    try:
        _check_records(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError):
        raise
    except Exception as error:  # what zipfile and torch raise is not documented
        raise ValueError("it is no file of torch.save, or damaged") from error


def _check_records(path: Path) -> None:
    """Compare each record with its checksum: torch writes them, but does not look at them.

    A record that is compressed could grow a thousandfold in memory; torch compresses none.
    """
    with zipfile.ZipFile(path) as file:
        records = file.infolist()
        require(all(r.compress_type == zipfile.ZIP_STORED for r in records), "it is compressed")
        n_bytes = sum(max(r.file_size, r.compress_size) for r in records)
        require(n_bytes <= path.stat().st_size, "it claims to hold more than it does")
        bad = file.testzip()
    require(bad is None, "its checksum is wrong: bits of it have changed since it was written")


def fingerprint(path: Path) -> str:
    """A short hash of what is in a file of `torch.save`: a copy of the file has the same."""
    with zipfile.ZipFile(path) as file:  # its records are in a folder called as the file was
        records = [(r.filename.partition("/")[2], r.CRC, r.file_size) for r in file.infolist()]
    return hashlib.sha256(repr(records).encode()).hexdigest()[:16]


def check_tensors(tensors: Iterable[object], n_bytes: int) -> None:
    """Check that these are plain tensors that are all there.

    A tensor with strides of 0 takes no room in a file and any amount in a model.

    Args:
        tensors: of the file.
        n_bytes: of the file.
    """
    total = 0
    for tensor in tensors:
        require(isinstance(tensor, Tensor), "it has something else where a tensor should be")
        assert isinstance(tensor, Tensor)
        require(
            tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and not tensor.is_quantized
            and _is_dense(tensor),
            "it has a tensor of an unusual layout",
        )
        total += tensor.numel() * tensor.element_size()
    require(total <= n_bytes, "its tensors claim more room than the file has")


def _is_dense(tensor: Tensor) -> bool:
    """Whether each number of a tensor has a place of its own."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return True
    return tensor.is_contiguous()


# ------------------------------------------------------------------------------ the model


def check_options(options: Mapping[str, Any], decoder: Mapping[str, Tensor]) -> None:
    """Check a model's options against the tensors of its decoder: they decide what is allocated."""
    sizes = {name: value for name, value in options.items() if name not in ("encoder", "dropout")}
    require(all(is_count(value, 1) for value in sizes.values()), "a size of its model is no size")
    dropout = options["dropout"]
    require(is_number(dropout) and 0 <= dropout < 1, "its dropout is not from 0 to 1")
    vocabulary_size, embedding_size = decoder["word_embedding.weight"].shape
    _, hidden_size = decoder["output.weight"].shape
    found = {
        "vocabulary_size": vocabulary_size,
        "embedding_size": embedding_size,
        "hidden_size": hidden_size,
        "num_layers": sum(name.startswith("lstm.weight_ih_l") for name in decoder),
    }
    recurrent = tuple(decoder["lstm.weight_hh_l0"].shape)
    require(
        sizes == found and recurrent == (4 * hidden_size, hidden_size),
        "its tensors are not of the sizes that its options say",
    )


def check_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check a model's tensors against those of a model of its options."""
    require(found.keys() == expected.keys(), "it lacks tensors of its model, or has others")
    for name, tensor in found.items():
        require(
            tensor.shape == expected[name].shape and tensor.dtype == expected[name].dtype,
            f"its tensor {name} has another size or type than its model's",
        )
        if name.endswith("running_var"):  # a constant feature has none, its square root exists
            require(bool((tensor >= 0).all()), f"its variances {name} are not all numbers above 0")


def check_familiarity(parts: Any, feature_size: int, n_bytes: int) -> None:
    """Check the tensors of a ``familiarity.Familiarity``, in a file of so many bytes."""
    require(
        isinstance(parts, dict)
        and parts.keys() == {"mean", "deviation", "directions", "residuals"},
        "its familiarity lacks parts, or has others",
    )
    check_tensors(parts.values(), n_bytes)
    require(
        all(tensor.dtype == torch.float32 for tensor in parts.values())
        and parts["mean"].shape == parts["deviation"].shape == (feature_size,)
        and parts["directions"].dim() == 2
        and parts["directions"].shape[1] == feature_size >= len(parts["directions"]) > 0
        and parts["residuals"].dim() == 1
        and len(parts["residuals"]) > 0,
        "the tensors of its familiarity are of other sizes or types than its encoder's features",
    )
    directions, residuals = parts["directions"], parts["residuals"]
    apart = directions @ directions.T - torch.eye(len(directions))
    require(
        all(bool(tensor.isfinite().all()) for tensor in parts.values())
        and bool((parts["deviation"] > 0).all())
        and bool(apart.abs().max() < 1e-3)  # orthonormal
        and bool(residuals[0] >= 0)
        and bool((residuals.diff() >= 0).all()),
        "the numbers in its familiarity are none that training makes",
    )


def check_neighbours(parts: Any, options: Mapping[str, Any], n_bytes: int) -> None:
    """Check the tensors of a ``neighbours.Neighbours``, in a file of so many bytes.

    ``options`` are the model's, which say how many words and numbers in an embedding there are.
    """
    names = {"mean", "directions", "n_captions", "lengths", "tokens", "rareness"}
    require(
        isinstance(parts, dict) and parts.keys() == names,
        "its neighbours lack parts, or have others",
    )
    check_tensors(parts.values(), n_bytes)
    mean, directions, rareness = parts["mean"], parts["directions"], parts["rareness"]
    n_captions, lengths, tokens = parts["n_captions"], parts["lengths"], parts["tokens"]
    require(
        mean.dtype == rareness.dtype == torch.float32
        and directions.dtype == torch.float16
        and n_captions.dtype == lengths.dtype == torch.int64
        and tokens.dtype == torch.int32
        and n_captions.dim() == lengths.dim() == tokens.dim() == 1
        and mean.shape == (options["embedding_size"],)
        and directions.shape == (len(n_captions), options["embedding_size"])
        and rareness.shape == (options["vocabulary_size"],),
        "the tensors of its neighbours are of other sizes or types than its model's",
    )
    require(
        len(n_captions) > 0
        and bool((n_captions > 0).all() and (lengths > 0).all() and (rareness > 0).all())
        and int(n_captions.sum()) == len(lengths)
        and int(lengths.sum()) == len(tokens)
        and 0 <= int(tokens.min()) <= int(tokens.max()) < options["vocabulary_size"]
        and all(bool(part.isfinite().all()) for part in (mean, directions, rareness)),
        "the numbers in its neighbours are none that training makes",
    )


# ---------------------------------------------------------------------------- plain values


def is_count(value: object, least: int = 0) -> bool:
    """Whether it is a whole number from ``least`` on, and not absurdly large."""
    return type(value) is int and least <= value < LARGEST  # True is no number here


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    if type(value) is int:
        return abs(value) < LARGEST
    return type(value) is float and math.isfinite(value)


def is_text(value: object) -> bool:
    """Whether it is text that can be part of a path."""
    return isinstance(value, str) and "\0" not in value


def is_inside(name: object) -> bool:
    """Whether a folder of this name stays in the folder that it is joined to."""
    if not isinstance(name, str) or not is_text(name):
        return False
    windows = PureWindowsPath(name)  # knows both separators, and drives
    return not (windows.anchor or PurePosixPath(name).is_absolute() or ".." in windows.parts)


def is_time(value: object) -> bool:
    """Whether it is the time of a run's beginning, which folders are named after."""
    return isinstance(value, str) and TIME.fullmatch(value) is not None


def is_scores(value: object) -> bool:
    """Whether these are validation scores by name; there are none before the first epoch."""
    return isinstance(value, dict) and (
        not value
        or ({"CIDEr", "loss"} <= value.keys() and all(is_number(v) for v in value.values()))
    )


def check_vocabulary(vocabulary: Mapping[str, Any]) -> None:
    """Check the parts of a ``loader.Vocabulary``."""
    words, counts = vocabulary["words"], vocabulary["counts"]
    require(
        isinstance(words, list)
        and isinstance(counts, list)
        and all(isinstance(word, str) for word in words)
        and all(is_count(count) for count in counts)
        and is_text(vocabulary["language"])
        and isinstance(vocabulary["separator"], str),
        "its vocabulary is not made of words and counts",
    )


def check_settings(kind: type[DataclassInstance], values: Mapping[str, Any]) -> None:
    """Check settings, as ``cli.plain`` made them, against the types and ranges of their class.

    One that is missing has its default.
    """
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        right = field.name not in values or _is_of(values[field.name], types[field.name])
        require(right, f"its setting {field.name} is of the wrong type")
    known = {field.name for field in dataclasses.fields(kind)}
    kind(**cli.typed(kind, {name: value for name, value in values.items() if name in known}))


def _is_of(value: object, kind: Any) -> bool:
    """Whether a plain value is one of a setting's type; a path is text."""
    if isinstance(kind, UnionType):
        return any(_is_of(value, one) for one in typing.get_args(kind))
    if kind is float:  # `--clip-norm inf` is fine, and nan is refused with the ranges
        return type(value) is float or is_number(value)
    if kind is int:
        return is_count(value, -LARGEST)
    return is_text(value) if kind in (str, Path) else type(value) is kind


def check_used_settings(settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Check those settings that a loaded model is used with.

    Args:
        settings: of the run that trained it.
        options: of the model; what is said twice must be the same.
    """
    beam = [field.name for field in dataclasses.fields(cli.BeamSettings)]
    check_settings(cli.BeamSettings, {name: settings[name] for name in beam})
    for name in ("data", "captions", "language", "encoder_weights"):
        require(is_text(settings[name]), f"its setting {name} is no text")
    size = settings["image_size"]
    require(is_count(size, 1) and size <= LARGEST_IMAGE, "its image_size is no size of an image")
    for name in ("encoder", "embedding_size", "hidden_size", "num_layers"):
        require(settings[name] == options[name], f"its setting {name} is not its model's")


# --------------------------------------------------------------------------- the optimizer


def check_optimizer(saved: Any, n_bytes: int) -> None:
    """Check the state dict of an AdamW, as far as it can be told without the optimizer."""
    require(
        isinstance(saved, dict)
        and isinstance(saved.get("state"), dict)
        and isinstance(saved.get("param_groups"), list),
        "its optimizer has no state",
    )
    for group in saved["param_groups"]:
        require(
            isinstance(group, dict)
            and isinstance(group.get("params"), list)
            and all(is_count(id_) for id_ in group["params"])
            and all(_is_hyperparameter(value) for n, value in group.items() if n != "params"),
            "the settings of its optimizer are not numbers",
        )
    ids = {id_ for group in saved["param_groups"] for id_ in group["params"]}
    require(saved["state"].keys() in (set(), ids), "its optimizer's state is of other parameters")
    for one in saved["state"].values():
        is_adams = isinstance(one, dict) and one.keys() == {"step", *MOMENTS}
        require(is_adams, "its optimizer's state is not AdamW's")
    tensors = [tensor for one in saved["state"].values() for tensor in one.values()]
    check_tensors(tensors, n_bytes)  # before anything is computed from them
    for one in saved["state"].values():
        require(
            all(tensor.dtype == torch.float32 for tensor in one.values())
            and all(bool(tensor.isfinite().all()) for tensor in one.values())
            and one["step"].dim() == 0
            and bool(one["step"] >= 0)
            and bool((one["exp_avg_sq"] >= 0).all()),
            "the numbers in its optimizer's state are none that AdamW makes",
        )


def _is_hyperparameter(value: object) -> bool:
    if isinstance(value, tuple | list):  # betas
        return len(value) < 10 and all(is_number(part) for part in value)
    return value is None or isinstance(value, bool) or is_number(value)


def restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Give an optimizer the state that ``check_optimizer`` has looked at.

    Its hyperparameters stay as they are: they follow from the run's settings.

    Raises:
        UserError: it is the state of other parameters. AdamW would not ask, and write beyond them.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    layout, theirs = (
        [group["params"] for group in kind] for kind in (groups, saved["param_groups"])
    )
    fits = layout == theirs and all(
        saved["state"][id_][name].shape == parameters[id_].shape
        for id_ in saved["state"]
        for name in MOMENTS
    )
    if not fits:
        raise cli.UserError(
            "the checkpoint to resume is damaged: its optimizer's state is of another model. "
            "Start from its best.pt with --init."
        )
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
