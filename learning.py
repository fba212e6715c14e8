"""How weights change: the loss of words, the optimizer, its schedule, the mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from model import ALL_STAGES, ImageCaptioningModel


def word_losses(logits: Tensor, expected: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of words.

    Args:
        logits: (n_words, V).
        expected: (n_words,) ids.
        label_smoothing: share of the target spread over all words, arXiv:1512.00567 section 7.

    Returns:
        The mean loss to minimise, and the summed plain loss in nats to report, without gradient.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    plain = F.nll_loss(log_probs, expected)
    smoothed = -log_probs.mean()
    loss = (1 - label_smoothing) * plain + label_smoothing * smoothed
    return loss, plain.detach() * len(expected)


def optimizer(
    model: ImageCaptioningModel,
    *,
    learning_rate: float,
    encoder_learning_rate: float,
    weight_decay: float,
) -> AdamW:
    """AdamW; weight decay on matrices, not on biases, BatchNorm and word vectors.

    Args:
        model: what of it wants gradients is trained.
        learning_rate: of the decoder, and of an encoder that has no pretrained weights.
        encoder_learning_rate: of an encoder that has.
        weight_decay: share of a weight that goes with each unit of learning rate.
    """
    is_pretrained = 0 < model.trained_stages < ALL_STAGES
    words = model.word_embedding.weight
    decayed, others, encoder = [], [], []
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if is_pretrained and name.startswith("encoder."):
            encoder.append(weight)
        elif weight.dim() > 1 and weight is not words:
            decayed.append(weight)
        else:
            others.append(weight)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": encoder, "weight_decay": weight_decay, "lr": encoder_learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)


def warmup_then_cosine(n_steps: int, warmup: float) -> Callable[[int], float]:
    """The learning rate's factor at each step: up in a line, down to zero in half a cosine."""
    n_warmup = int(n_steps * warmup)

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / (n_warmup + 1)
        done = (step - n_warmup) / max(1, n_steps - n_warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


class Average:
    """A running mean of the weights that train: it describes better than the last weights alone.

    Source: Polyak and Juditsky 1992; as exponential mean: Szegedy et al. 2016, arXiv:1512.00567.
    """

    def __init__(self, model: ImageCaptioningModel, decay: float) -> None:
        """Begin with the weights as they are; with ``decay`` 0 the last ones serve, at no cost."""
        self.decay, self.n_updates = decay, 0
        self.weights = [p for p in model.parameters() if p.requires_grad and decay]
        if (
            decay and model.trained_stages == ALL_STAGES
        ):  # BatchNorm's statistics belong to the weights
            self.weights += [b for b in model.buffers() if b.is_floating_point()]
        self.means = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step; the first ones, which are poor, are soon forgotten."""
        if not self.decay:
            return
        self.n_updates += 1
        decay = min(self.decay, self.n_updates / (10 + self.n_updates))
        torch._foreach_lerp_(self.means, self.weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the mean weights, for the length of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, mean in zip(self.weights, self.means, strict=True):
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)

    def state(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        return {"means": self.means, "n_updates": self.n_updates}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        for mean, saved in zip(self.means, state["means"], strict=True):
            mean.copy_(saved)
        self.n_updates = state["n_updates"]
