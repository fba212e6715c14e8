"""How weights change: the loss of words, the optimizer, its schedule, the mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.optim import AdamW

from cli import uninterrupted
from model import ALL_STAGES, ImageCaptioningModel

CACHED_SCORES = 2**17  # half a MB: stays in a core's cache


def word_losses(logits: Tensor, expected: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of words.

    Args:
        logits: (n_words, V).
        expected: (n_words,) ids.
        label_smoothing: share of the target spread over all words, arXiv:1512.00567 section 7.

    Returns:
        The mean loss to minimise, and the summed plain loss in nats to report, without gradient.
    """
    return _WordLosses.apply(logits, expected, label_smoothing)


class _WordLosses(torch.autograd.Function):
    """The loss and its gradient in one go, on a CPU a few words at a time.

    The scores of all words are larger than a CPU's cache, and the usual chain of operations passes
    over them a dozen times: in pieces, and without keeping what lies between, it is three times as
    fast.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, expected: Tensor, label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        n_words, vocabulary_size = logits.shape
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        piece = max(1, CACHED_SCORES // vocabulary_size) if logits.device.type == "cpu" else n_words
        plain = logits.new_zeros((), dtype=torch.float32)
        flat = plain.clone()  # cross-entropy against all words alike
        for start in range(0, n_words, piece):
            rows = slice(start, start + piece)
            log_probs = F.log_softmax(logits[rows], dim=-1, dtype=torch.float32)
            index = expected[rows].unsqueeze(1)
            plain -= log_probs.gather(1, index).sum()
            flat -= log_probs.sum() / vocabulary_size
            if gradient is not None:  # softmax less the smoothed target
                change = log_probs.exp_().sub_(label_smoothing / vocabulary_size)
                change.scatter_add_(1, index, change.new_full(index.shape, label_smoothing - 1))
                gradient[rows] = change.mul_(1 / n_words)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(plain)
        return ((1 - label_smoothing) * plain + label_smoothing * flat) / n_words, plain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(loss_gradient), None, None


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
        # Where BatchNorm trains its statistics belong to the weights.
        if decay and model.trained_stages == ALL_STAGES:
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
        is_swapped = False
        try:
            with uninterrupted():  # half swapped, both would be lost
                self._swap()
                is_swapped = True
            yield
        finally:
            if is_swapped:
                with uninterrupted():
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
