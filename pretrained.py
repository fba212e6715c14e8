"""Pretrained weights of a ResNet: from torchvision, or from a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cli import UserError
from model import ImageCaptioningModel

log = logging.getLogger(__name__)


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
    except Exception as error:  # what torch raises is not documented
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
