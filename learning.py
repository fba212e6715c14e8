"""How weights change: cross-entropy, the optimizer, its schedule, and the stages of a training."""

# N images, F features, V vocabulary.

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.optim import AdamW

from integrity import is_count, is_number, is_scores, require
from loader import Batch
from model import ImageCaptioningModel, autocast_bfloat16
from resnet import ALL_LAYERS

CHUNK_LOGITS = 2**17  # half a MB in float32: stays in a core's cache
STAGES = ("xe", "finetune", "scst")  # of a training, in their order; see train.py


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, or of a process's part of one: those of all parts add up."""

    mean: Tensor  # to be minimised: a sum divided by what there is in the whole batch
    total: Tensor  # to be logged: a sum of nats, or of rewards; no gradient
    count: int  # of so many words, or captions, in the whole batch


# What a stage minimises: (model, (N, F) features, batch) → its loss.
LossFunction = Callable[[ImageCaptioningModel, Tensor, Batch], Loss]


def cross_entropy(
    model: ImageCaptioningModel, features: Tensor, batch: Batch, *, label_smoothing: float
) -> Loss:
    """Cross-entropy of the captions' words with teacher forcing.

    Args:
        model: in train mode.
        features: (N, F), of the batch's images.
        batch: its captions.
        label_smoothing: share of the target spread over all words, arXiv:1512.00567 section 7.

    Returns:
        The mean per word; logged is the sum in nats without label smoothing.
    """
    if not len(batch.positions):  # this process's part of the batch
        return no_loss(model, batch.n_words)
    share = batch.whole and batch.whole.captions
    with autocast_bfloat16(features.device):
        logits = model(features, batch.tokens, batch.caption_to_image, batch.positions, share)
    mean, nats = word_losses(logits, batch.targets, label_smoothing, batch.n_words)
    return Loss(mean, nats, batch.n_words)


def no_loss(model: ImageCaptioningModel, count: int) -> Loss:
    """The loss of an empty part of a batch; its gradients are 0."""
    nothing = 0 * model.output.bias.sum()
    return Loss(nothing, nothing.detach(), count)


def word_losses(
    logits: Tensor, targets: Tensor, label_smoothing: float, n_words: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of words.

    Args:
        logits: (n_words, V).
        targets: (n_words,) ids.
        label_smoothing: as for ``cross_entropy``.
        n_words: what the sum is divided by; None: by the number of these words.

    Returns:
        The mean to minimise, and the sum in nats without smoothing and gradient.
    """
    mean, nats = _WordLosses.apply(logits, targets, label_smoothing, n_words or len(targets))
    return mean, nats


class _WordLosses(torch.autograd.Function):
    """The loss and its gradient in one go, on a CPU a few words at a time.

    The logits of all words are larger than a CPU's cache, and the usual chain of operations passes
    over them a dozen times: in chunks, and without keeping what lies between, it is three times as
    fast.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, label_smoothing: float, divisor: int
    ) -> tuple[Tensor, Tensor]:
        n_words, vocabulary_size = logits.shape
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        is_cpu = logits.device.type == "cpu"
        chunk_rows = max(1, CHUNK_LOGITS // vocabulary_size) if is_cpu else n_words
        nats = logits.new_zeros((), dtype=torch.float32)
        uniform_nats = nats.clone()  # if every word of the vocabulary were as much the target
        for start in range(0, n_words, chunk_rows):
            rows = slice(start, start + chunk_rows)
            log_probs = F.log_softmax(logits[rows], dim=-1, dtype=torch.float32)
            index = targets[rows].unsqueeze(1)
            nats -= log_probs.gather(1, index).sum()
            uniform_nats -= log_probs.sum() / vocabulary_size
            if gradient is not None:  # softmax less the smoothed target
                grad = log_probs.exp_().sub_(label_smoothing / vocabulary_size)
                grad.scatter_add_(1, index, grad.new_full(index.shape, label_smoothing - 1))
                gradient[rows] = grad.mul_(1 / divisor)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(nats)
        return ((1 - label_smoothing) * nats + label_smoothing * uniform_nats) / divisor, nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(loss_gradient), None, None, None


def make_optimizer(
    model: ImageCaptioningModel,
    *,
    learning_rate: float,
    encoder_learning_rate: float,
    weight_decay: float,
) -> AdamW:
    """AdamW; weight decay on matrices, not on biases, BatchNorm and word embeddings.

    Args:
        model: its parameters that require gradients are trained.
        learning_rate: peak for the decoder, and for an encoder without pretrained weights.
        encoder_learning_rate: peak for an encoder that has.
        weight_decay: share of a weight that goes with each unit of learning rate.
    """
    is_pretrained = 0 < model.trained_layers < ALL_LAYERS
    decayed, others, encoder = [], [], []
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if is_pretrained and name.startswith("encoder."):
            encoder.append(weight)
        elif weight.dim() > 1 and weight is not model.word_embedding.weight:
            decayed.append(weight)
        else:
            others.append(weight)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "peak": learning_rate},
        {"params": others, "weight_decay": 0.0, "peak": learning_rate},
        {"params": encoder, "weight_decay": weight_decay, "peak": encoder_learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)


def set_learning_rate(optimizer: AdamW, factor: float) -> float:
    """Scale every group's peak learning rate; returns the decoder's."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    learning_rate: float = optimizer.param_groups[0]["lr"]
    return learning_rate


def warmup_then_cosine(step: int, n_steps: int, warmup: float) -> float:
    """The learning rate's factor at a step: up in a line, down to zero in half a cosine.

    Args:
        step: 0 is the first.
        n_steps: how many there will be.
        warmup: share of them in which the rate rises.
    """
    n_warmup = int(n_steps * warmup)
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    done = (step - n_warmup) / max(1, n_steps - n_warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def seed_step(device: torch.device, seed: int, step: int) -> None:
    """Let the random numbers of a training step depend on nothing but the run's seed and the step.

    So a run that is resumed draws what the unbroken one would, with no state to be saved.
    """
    # A CPU's generator takes 32 bits; neighbouring seeds are put millions of steps apart.
    number = (seed * 2_654_435_761 + step) % 2**32
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)


class Meter:
    """A sum over the batches of an epoch, so that a mean is a sum divided by a count."""

    def __init__(
        self, total: float = 0.0, count: int = 0, n_words: int = 0, seconds: float = 0.0
    ) -> None:
        """Begin with what was there before."""
        self.total: Tensor | float = total
        self.count, self.n_words = count, n_words
        self.started_at = time.perf_counter() - seconds

    def add(self, loss: Loss, n_words: int) -> None:
        """Add a batch, of which so many words were learned."""
        self.total = self.total + loss.total
        self.count += loss.count
        self.n_words += n_words

    def read(self) -> Reading:
        """The sums of now; waits for the device."""
        seconds = time.perf_counter() - self.started_at
        return Reading(float(self.total), self.count, self.n_words, seconds)


@dataclass(frozen=True)
class Reading:
    """What a meter shows at a moment, or has gained between two."""

    total: float = 0.0
    count: int = 0
    n_words: int = 0
    seconds: float = 0.0

    def since(self, earlier: Reading) -> Reading:
        """What was added after an earlier reading."""
        return Reading(
            self.total - earlier.total,
            self.count - earlier.count,
            self.n_words - earlier.n_words,
            self.seconds - earlier.seconds,
        )

    @property
    def mean(self) -> float:
        """Nats per word, or reward per caption."""
        return self.total / max(1, self.count)

    @property
    def words_per_second(self) -> float:
        """Words of captions learned a second."""
        return self.n_words / max(self.seconds, 1e-9)


def is_better(scores: dict[str, float], others: dict[str, float]) -> bool:
    """By CIDEr; on very few images that is always 0, and the loss decides."""
    return (scores["CIDEr"], -scores["loss"]) > (others["CIDEr"], -others["loss"])


@dataclass(frozen=True)
class Stage:
    """A part of the training: what learns, from what, how fast, for how long.

    Attributes:
        trained_layers: how many of the ResNet's last layers train; with 0 it is frozen.
        whole_images: a batch holds all captions of its images.
        crop: least area of the random crops of training pictures; 1: no crops and no mirroring.
        loss: cross-entropy of people's captions, or rewards for the model's own (self-critical).
    """

    name: str
    epochs: int
    learning_rate: float  # the peak, of the decoder
    patience: int
    trained_layers: int
    whole_images: bool
    crop: float
    loss: Literal["cross-entropy", "self-critical"]

    @property
    def measure(self) -> str:
        """What the loss logs: nats per word, or the reward of a caption."""
        return "loss" if self.loss == "cross-entropy" else "reward"


@dataclass
class TrainState:
    """How far a training has come: with model and optimizer all that it takes to resume."""

    stage: str  # the one under way
    epoch: int = 0  # epochs of the stage that are done
    batch: int = 0  # batches done in the epoch under way
    stage_step: int = 0  # optimizer steps done in the stage
    n_steps: int = 0  # that the stage's schedule is made for
    epochs_without_improvement: int = 0  # of the stage
    step: int = 0  # optimizer steps done in all stages
    total_epochs: int = 0  # epochs done in all stages
    best_scores: dict[str, float] = field(default_factory=dict)  # on the validation images
    best_epoch: str = ""
    meter: Meter = field(default_factory=Meter)  # of the epoch under way

    def enter(self, stage: str) -> None:
        """Begin another stage."""
        self.stage, self.epoch, self.batch, self.stage_step = stage, 0, 0, 0
        self.n_steps, self.epochs_without_improvement = 0, 0

    def finish_step(self, loss: Loss, n_words: int) -> None:
        """Count an optimizer step, its loss and the words it learned from."""
        self.meter.add(loss, n_words)
        self.batch += 1
        self.stage_step += 1
        self.step += 1

    def finish_epoch(self) -> None:
        """Count an epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.total_epochs += 1

    def plain(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        return {**vars(self), "meter": list(astuple(self.meter.read()))}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> TrainState:
        """The state that ``plain`` was made from.

        Raises:
            ValueError: it was made from none, or changed since.
        """
        counts = [f.name for f in fields(cls) if f.type == "int"]
        require(plain.keys() == {f.name for f in fields(cls)}, "its training state lacks a part")
        require(plain["stage"] in STAGES, "its training state is of an unknown stage")
        require(all(is_count(plain[name]) for name in counts), "a number of its state is none")
        require(is_scores(plain["best_scores"]), "its training state has no scores")
        require(isinstance(plain["best_epoch"], str), "its training state has no best epoch")
        meter = plain["meter"]
        require(
            isinstance(meter, list)
            and len(meter) == len(fields(Reading))
            and all(map(is_number, meter))
            and all(map(is_count, meter[1:3]))
            and meter[3] >= 0,
            "the meter of its training state shows no numbers",
        )
        return cls(**{**plain, "meter": Meter(*meter)})
