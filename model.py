"""The captioner: a ResNet that looks, an LSTM that speaks (Show and Tell, arXiv:1411.4555).

The image is read as the first "word" of the sentence, as the paper has it. It is also added to
every word that is read: seen all along, it need not be remembered, which is worth ten CIDEr on
Flickr8k. This file knows ids, not words, and nothing of files and losses.
"""

# N images, B captions, T tokens, E embedding, H hidden, L layers, V vocabulary, K beams,
# F features: the length of the ResNet's pooled vector.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet import LAYERS, ResNet

# The same numbers as in loader.py.
PAD, START, END, UNK = range(4)

ENCODERS = tuple(LAYERS)

# The number of words that a batch scores is rounded up to a multiple of this: oneDNN prepares a
# bfloat16 product anew for each shape it meets, which takes a third of a step, and keeps it, which
# takes gigabytes.
FEW_SHAPES = 64

ALL_STAGES = 5  # the four residual stages of a ResNet, and the layers before them

# What torchvision's ImageNet weights expect of pixels in 0..1.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


class State(NamedTuple):
    """What the decoder carries from word to word."""

    hidden: Tensor  # (L, B, H)
    cell: Tensor  # (L, B, H)
    image: Tensor  # (B, E), the same at every word

    def of(self, rows: Tensor) -> State:
        """The states of these rows of the batch, in this order; a row may come several times."""
        return State(self.hidden[:, rows], self.cell[:, rows], self.image[rows])


@dataclass(frozen=True)
class Search:
    """How sentences are looked for.

    Attributes:
        beam_size: K, sentences kept per image; 1 is greedy search. With a temperature, the number
            of sentences drawn.
        max_words: the longest caption.
        length_penalty: 0 ranks by plain log-probability, which favours short sentences; 1 by the
            mean per token.
        no_repeat: no sentence holds the same n-gram of so many words twice; 0 lets them.
        not_last: ids of words that no sentence ends on, such as articles.
        temperature: 0 looks for the best sentences; above 0 they are drawn at random, bolder the
            higher: 1 as likely as the model believes them to be.
        top_p: draw from the likeliest words that make up this share (arXiv:1904.09751).

    Raises:
        ValueError: a value out of its range.
    """

    beam_size: int = 3
    max_words: int = 20
    length_penalty: float = 1.0
    no_repeat: int = 0
    not_last: tuple[int, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.beam_size < 1 or self.max_words < 1:
            raise ValueError(
                f"beam_size and max_words start at 1, got {self.beam_size}, {self.max_words}"
            )
        if self.no_repeat < 0 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "no_repeat and temperature start at 0, top_p is above 0 and at most 1, got "
                f"{self.no_repeat}, {self.temperature}, {self.top_p}"
            )


class SteadyDropout(nn.Dropout):
    """Drops the same values at every word of a sentence.

    It trains as well as a new choice at every word, and asks a tenth of the random numbers, which
    a CPU draws slowly. PyTorch's own dropout draws each four times as slowly as this one.

    Source: Gal and Ghahramani 2016, arXiv:1512.05287.
    """

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, T, H) → (B, T, H), or (N, F) → (N, F)."""
        if not self.training:
            return vectors
        each = vectors[:, :1] if vectors.dim() == 3 else vectors
        kept = torch.rand_like(each, dtype=torch.float32) >= self.p
        return vectors * (kept.to(vectors.dtype) / (1 - self.p))


@dataclass(frozen=True)
class Hypothesis:
    """A sentence the model proposes.

    Attributes:
        tokens: ids of its words, without ``<start>`` and ``<end>``.
        log_prob: log-probability of the whole sentence in nats, ``<end>`` included if it ended.
        score: what hypotheses are ranked by: ``log_prob`` divided by length^length_penalty.
    """

    tokens: list[int]
    log_prob: float
    score: float


class ImageCaptioningModel(nn.Module):
    """A ResNet encoder and an LSTM decoder."""

    def __init__(
        self,
        vocabulary_size: int,
        *,
        encoder: str = "resnet50",
        embedding_size: int = 512,
        hidden_size: int = 512,
        num_layers: int = 1,
        dropout: float = 0.5,
        image_dropout: float = 0.0,
    ) -> None:
        """Build the model with random weights; ``load_encoder`` and checkpoints fill them in.

        Args:
            vocabulary_size: V, the four special tokens included.
            encoder: one of ``ENCODERS``.
            embedding_size: E, the size of image and word vectors.
            hidden_size: H of the LSTM.
            num_layers: L, LSTM layers on top of each other.
            dropout: share of the values dropped from word vectors and from the LSTM's output.
            image_dropout: share of the values dropped from image vectors.
        """
        super().__init__()
        self.options = {  # what it takes to build the same model again
            "vocabulary_size": vocabulary_size,
            "encoder": encoder,
            "embedding_size": embedding_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "dropout": dropout,
            "image_dropout": image_dropout,
        }
        if encoder not in ENCODERS:
            raise ValueError(f"unknown encoder {encoder!r}: choose one of {', '.join(ENCODERS)}")
        # The linear layer that replaces the ResNet's own `fc` stands beside it, not in it, so
        # that the pooled vectors in front of it can be computed once and kept.
        self.encoder = ResNet(encoder)
        self.feature_size = self.encoder.feature_size
        # Raw pooled vectors are all positive and nearly alike: standardised they tell images
        # apart (+1.4 CIDEr on Flickr8k).
        self.image_embedding = nn.Sequential(
            nn.BatchNorm1d(self.feature_size, affine=False),
            SteadyDropout(image_dropout),
            nn.Linear(self.feature_size, embedding_size),
        )
        self.word_embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=PAD)
        self.dropout = SteadyDropout(dropout)
        self.lstm = nn.LSTM(
            embedding_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.words = nn.Linear(hidden_size, vocabulary_size)
        self.train_encoder(0)

    def train_encoder(self, stages: int) -> None:
        """Let the last stages of the ResNet learn, or none.

        Args:
            stages: 0 freezes all of it. 1 to 4 train so many of its four last stages, but not
                their BatchNorm: a batch of some twenty images knows less than its statistics.
                ``ALL_STAGES`` trains all, BatchNorm too: what random weights need.
        """
        self.trained_stages = stages
        self.encoder.requires_grad_(stages == ALL_STAGES)
        if stages:  # their gradients are a tenth faster to come by in the images' own layout
            self.encoder.to(memory_format=torch.channels_last)
        if 0 < stages < ALL_STAGES:
            for number in range(ALL_STAGES - stages, ALL_STAGES):
                for module in getattr(self.encoder, f"layer{number}").modules():
                    if isinstance(module, nn.Conv2d):
                        module.requires_grad_(True)

    def standardise(self, features: Tensor) -> None:
        """Take the mean and deviation of image vectors, (N, F), from these, once and for all."""
        correction = int(len(features) > 1)  # a single one has no deviation: it becomes 0
        variance, mean = torch.var_mean(features, dim=0, correction=correction)
        self.image_embedding[0].running_mean.copy_(mean)
        self.image_embedding[0].running_var.copy_(variance)

    @torch.no_grad()
    def start_from(self, other: ImageCaptioningModel) -> None:
        """Take the weights of a like model that knows the first of these words, or all."""
        mine = self.state_dict()
        for name, theirs in other.state_dict().items():
            place = mine[name][: len(theirs)] if theirs.dim() else mine[name]
            place.copy_(theirs)

    def train(self, mode: bool = True) -> ImageCaptioningModel:
        """As ``nn.Module.train``, but pretrained BatchNorm stays in eval mode whatever is asked."""
        super().train(mode)
        if self.trained_stages < ALL_STAGES:
            self.encoder.eval()  # else its statistics drift: frozen would not be frozen
            self.image_embedding[0].eval()
        return self

    def is_finite(self) -> bool:
        """Whether all weights are numbers; those of a run that has diverged are not."""
        return all(bool(weight.detach().sum().isfinite()) for weight in self.parameters())

    def encode(self, images: Tensor) -> Tensor:
        """Look at the images.

        Args:
            images: (N, 3, S, S) uint8, RGB, as ``loader.transform`` makes them.

        Returns:
            (N, F) float32, the ResNet's pooled vectors.
        """
        mean = torch.tensor(PIXEL_MEAN, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(PIXEL_STD, device=images.device).view(1, 3, 1, 1)
        pixels = images.float().div_(255).sub_(mean).div_(std)
        with half_precision(images.device):
            return self.encoder(pixels).float()

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 images, or (N, F) vectors that ``encode`` gave before → (N, F)."""
        return images if images.dim() == 2 else self.encode(images)

    def see(self, features: Tensor) -> Tensor:
        """The images as words are: (N, F) → (N, E)."""
        norm = self.image_embedding[0]
        is_training = norm.training
        norm.training &= len(features) > 1  # one has no variance: running statistics serve
        image = self.image_embedding(features)
        norm.training = is_training
        return image

    def start(self, features: Tensor) -> State:
        """The state after the image has been read: (N, F) → N rows."""
        image = self.see(features)  # (N, E)
        _, (hidden, cell) = self.lstm(image.unsqueeze(1))
        return State(hidden, cell, image)

    def inputs(self, tokens: Tensor, image: Tensor) -> Tensor:
        """What the LSTM reads: (B, T) words and the (B, E) images they are said of → (B, T, E)."""
        return self.dropout(self.word_embedding(tokens)) + image.unsqueeze(1)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read words after ``state`` and score each one's successor.

        Args:
            tokens: (B, T) ids.
            state: after everything before them.

        Returns:
            (B, T, V) logits, and the state after the last word.
        """
        image = state.image
        hidden, (last, cell) = self.lstm(self.inputs(tokens, image), (state.hidden, state.cell))
        return self.words(self.dropout(hidden)), State(last, cell, image)

    def forward(self, images: Tensor, tokens: Tensor, image_of: Tensor) -> Tensor:
        """Teacher forcing: read each caption and score the word that follows each of its words.

        Only real words are scored: the large vocabulary layer does no work for padding.

        Args:
            images: (N, 3, S, S) uint8 images or (N, F) vectors from ``encode``.
            tokens: (B, T) ids, ``<start>`` words ``<end>``, padded with ``<pad>``.
            image_of: (B,) the row of ``images`` each caption belongs to.

        Returns:
            (n_words, V) logits of the tokens after ``<start>``, in the order of
            ``targets(tokens)``.
        """
        image = self.see(self.features(images)).index_select(0, image_of)  # (B, E)
        words = self.inputs(tokens[:, :-1], image)
        hidden, _ = self.lstm(torch.cat([image.unsqueeze(1), words], dim=1))  # (B, T, H)
        hidden = self.dropout(hidden[:, 1:])[tokens[:, 1:] != PAD]  # (n_words, H)
        rows = F.pad(hidden, (0, 0, 0, -len(hidden) % FEW_SHAPES))
        return self.words(rows)[: len(hidden)]  # (n_words, V)

    def caption(
        self, images: Tensor | Sequence[Tensor], *, batch_size: int = 64, **search: Any
    ) -> list[list[Hypothesis]]:
        """Describe each image: ``caption`` with this model alone and ``Search(**search)``."""
        return caption([self], [images], Search(**search), batch_size=batch_size)


@torch.inference_mode()
def caption(
    models: Sequence[ImageCaptioningModel],
    images: Sequence[Tensor | Sequence[Tensor]],
    search: Search,
    *,
    batch_size: int = 64,
) -> list[list[Hypothesis]]:
    """Describe each image, ``batch_size`` images at once, with one model or several.

    Several models speak as one: each next word is as likely as they believe on average. A beam
    that has ended stays and competes with the open ones, longer by the step, on log-probability
    per length^length_penalty. Beams still open after ``max_words`` compete as they are, so every
    image gets a caption. ``<pad>``, ``<start>`` and ``<unk>`` are never chosen, nor is an empty
    sentence.

    Args:
        models: with the same vocabulary; all go into eval mode.
        images: for each model N times (3, S, S) uint8 images or (F,) vectors of its ``encode``,
            on any device.
        search: how sentences are looked for, or drawn.
        batch_size: images decoded at a time.

    Returns:
        For each image at most ``beam_size`` hypotheses, best first.

    Source: Vinyals et al. 2015, arXiv:1411.4555, "Inference"; length normalisation: Wu et
    al. 2016, arXiv:1609.08144, section 7, without its constants.
    """
    write = _sampling if search.temperature else _beam_search
    found: list[list[Hypothesis]] = []
    for start in range(0, len(images[0]), batch_size):
        states = []
        for model, theirs in zip(models, images, strict=True):
            device = model.eval().words.weight.device
            part = [theirs[i] for i in range(start, min(start + batch_size, len(theirs)))]
            states.append(model.start(model.features(torch.stack(part).to(device))))
        found += write(models, states, search)
    return found


class Beams(NamedTuple):
    """The sentences kept for each image."""

    tokens: Tensor  # (N, K, T) words so far, and <end>, padded
    log_prob: Tensor  # (N, K) nats
    length: Tensor  # (N, K) words and <end>
    ended: Tensor  # (N, K) whether <end> was said

    def of(self, images: Tensor) -> Beams:
        """Those of these images, in this order."""
        return Beams(*(part[images] for part in self))


def _beam_search(
    models: Sequence[ImageCaptioningModel], states: list[State], search: Search
) -> list[list[Hypothesis]]:
    beam_size, max_words = search.beam_size, search.max_words
    n_images, device = len(states[0].image), states[0].image.device
    images = torch.arange(n_images, device=device)  # those that are still being described
    first = images.repeat_interleave(beam_size)
    states = [state.of(first) for state in states]  # N*K rows: every image's, once for each beam
    last = torch.full((n_images, beam_size), START, device=device)
    beams = Beams(
        torch.full((n_images, beam_size, max_words), PAD, device=device),
        torch.full((n_images, beam_size), -torch.inf, device=device),
        torch.zeros_like(last),
        torch.zeros_like(last, dtype=torch.bool),
    )
    beams.log_prob[:, 0] = 0.0  # one beam to begin with: K equal ones would stay equal
    done: list[tuple[Tensor, Beams]] = []

    for position in range(max_words):
        next_log_prob, states = _next_log_prob(models, last.view(-1), states)
        next_log_prob = next_log_prob.view(len(images), beam_size, -1)  # (N, K, V)
        _forbid(next_log_prob, beams.tokens[:, :, :position], beams.ended, search)
        beams, beam = _extend(beams, next_log_prob, position, search.length_penalty)
        is_done = beams.ended.all(dim=1) | (position == max_words - 1)
        gone, left = is_done.nonzero().squeeze(1), (~is_done).nonzero().squeeze(1)
        done.append((images[gone], beams.of(gone)))
        if not len(left):
            break
        chosen = torch.arange(0, len(images) * beam_size, beam_size, device=device)
        chosen = (chosen.unsqueeze(1) + beam)[left].view(-1)
        states = [state.of(chosen) for state in states]
        images, beams = images[left], beams.of(left)
        last = beams.tokens[:, :, position]

    order = torch.cat([images for images, _ in done]).argsort()
    beams = Beams(*map(torch.cat, zip(*(beams for _, beams in done), strict=True))).of(order)
    score = beams.log_prob / beams.length**search.length_penalty
    return _hypotheses(beams.tokens, beams.log_prob, score)


def _extend(
    beams: Beams, next_log_prob: Tensor, position: int, length_penalty: float
) -> tuple[Beams, Tensor]:
    """Each image's best sentences that are a word longer, or have ended.

    Returns:
        The new beams, and (N, K) which beams they come from.
    """
    beam_size, n_words = next_log_prob.shape[1:]
    # No beam can give an image more than its K best words, so the others need not be compared.
    words = next_log_prob.topk(min(beam_size, n_words))  # W of them: (N, K, W)
    candidates = beams.log_prob.unsqueeze(-1) + words.values
    length = beams.length + (~beams.ended).long()
    scores = candidates / length.unsqueeze(-1) ** length_penalty
    best = scores.flatten(1).topk(beam_size).indices  # (N, K), into K*W
    beam, last = best // words.values.shape[-1], words.indices.flatten(1).gather(1, best)
    tokens = beams.tokens.gather(1, beam.unsqueeze(-1).expand_as(beams.tokens))
    tokens[:, :, position] = last
    extended = Beams(
        tokens,
        candidates.flatten(1).gather(1, best),
        length.gather(1, beam),
        beams.ended.gather(1, beam) | (last == END),
    )
    return extended, beam


def _sampling(
    models: Sequence[ImageCaptioningModel], states: list[State], search: Search
) -> list[list[Hypothesis]]:
    """Sentences drawn at random, ``beam_size`` for each image."""
    tokens, log_prob = sample(models, states, search)
    shape = (len(states[0].image), search.beam_size)
    length = (tokens != PAD).sum(dim=1)
    scores = log_prob / length**search.length_penalty
    return _hypotheses(tokens.view(*shape, -1), log_prob.view(shape), scores.view(shape))


@torch.no_grad()
def sample(
    models: Sequence[ImageCaptioningModel], states: list[State], search: Search
) -> tuple[Tensor, Tensor]:
    """Draw ``beam_size`` sentences for each image, word by word.

    Args:
        models: in the mode they are in.
        states: for each model that after the N images.
        search: ``temperature`` above 0.

    Returns:
        (N*K, T) ids of words and ``<end>``, padded, an image's sentences next to each other; and
        their (N*K,) log-probabilities in nats, as the models believe them to be.
    """
    n_images, device = len(states[0].image), states[0].image.device
    rows = torch.arange(n_images, device=device).repeat_interleave(search.beam_size)
    states = [state.of(rows) for state in states]
    tokens = torch.empty((len(rows), 0), dtype=torch.long, device=device)
    last = torch.full_like(rows, START)
    log_prob = torch.zeros(len(rows), device=device)
    ended = torch.zeros_like(rows, dtype=torch.bool)
    while tokens.shape[1] < search.max_words and not bool(ended.all()):
        next_log_prob, states = _next_log_prob(models, last, states)
        _forbid(next_log_prob, tokens, ended, search)
        probability = _nucleus((next_log_prob / search.temperature).softmax(dim=-1), search.top_p)
        last = torch.multinomial(probability, 1).squeeze(1)
        log_prob += next_log_prob.gather(1, last.unsqueeze(1)).squeeze(1)
        ended |= last == END
        tokens = torch.cat([tokens, last.unsqueeze(1)], dim=1)
    return tokens, log_prob


def _nucleus(probability: Tensor, top_p: float) -> Tensor:
    """(B, V) with all but the likeliest words that make up ``top_p`` set to 0."""
    if top_p >= 1:
        return probability
    falling, words = probability.sort(dim=-1, descending=True)
    before = falling.cumsum(dim=-1) - falling
    return torch.zeros_like(probability).scatter(-1, words, falling * (before < top_p))


def _next_log_prob(
    models: Sequence[ImageCaptioningModel], last: Tensor, states: list[State]
) -> tuple[Tensor, list[State]]:
    """What (B,) words are followed by: (B, V) logarithms of the models' mean probabilities."""
    steps = [
        model.step(last.to(state.image.device).unsqueeze(1), state)
        for model, state in zip(models, states, strict=True)
    ]
    log_probs = [F.log_softmax(logits[:, 0].float(), dim=-1) for logits, _ in steps]
    states = [state for _, state in steps]
    if len(models) == 1:
        return log_probs[0], states
    return torch.stack(log_probs).logsumexp(dim=0) - math.log(len(models)), states


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where it is the faster arithmetic: on a GPU, and on a CPU with instructions for it.

    A processor without them only imitates bfloat16, slower than float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=has_half_precision(device))


def has_half_precision(device: torch.device) -> bool:
    """Whether ``half_precision`` does anything there; numbers differ a little if it does."""
    if device.type == "cuda":  # older GPUs imitate it
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    able = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.10
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def targets(tokens: Tensor) -> Tensor:
    """(B, T) padded ids → (n_words,) what ``forward``'s logits should say: all but ``<start>``."""
    following = tokens[:, 1:]
    return following[following != PAD]


def _forbid(next_log_prob: Tensor, tokens: Tensor, ended: Tensor, search: Search) -> None:
    """Forbid, in place, what may not follow.

    Args:
        next_log_prob: (..., V), of each sentence.
        tokens: (..., T) its words so far.
        ended: (...) whether it is done: then it only goes on as it is.
        search: what else is not wanted.
    """
    as_believed = next_log_prob[..., END].clone()
    next_log_prob[..., [PAD, START, UNK]] = -torch.inf
    if tokens.shape[-1] == 0:
        next_log_prob[..., END] = -torch.inf
    if search.not_last:
        not_last = torch.tensor(search.not_last, device=tokens.device)
        if tokens.shape[-1]:
            hanging = torch.isin(tokens[..., -1], not_last)
            next_log_prob[..., END].masked_fill_(hanging, -torch.inf)
        if tokens.shape[-1] == search.max_words - 1:  # this word is the last, <end> or not
            next_log_prob[..., not_last] = -torch.inf
    if 0 < search.no_repeat <= tokens.shape[-1]:
        repeated = _would_repeat(tokens, search.no_repeat)
        next_log_prob.scatter_(-1, repeated, -torch.inf)
    stuck = next_log_prob.amax(dim=-1).isneginf()  # nothing is left to say: end here
    next_log_prob[..., END] = torch.where(stuck, as_believed, next_log_prob[..., END])
    next_log_prob.masked_fill_(ended.unsqueeze(-1), -torch.inf)
    next_log_prob[..., PAD].masked_fill_(ended, 0.0)


def _would_repeat(tokens: Tensor, n: int) -> Tensor:
    """(..., T) words so far → (..., T-n+1) words that would close an n-gram a second time.

    Where nothing would be repeated stands ``<pad>``, which is forbidden anyway.
    """
    if n == 1:
        return tokens
    ngrams = tokens.unfold(-1, n, 1)  # (..., T-n+1, n)
    tail = tokens[..., -(n - 1) :].unsqueeze(-2)  # the n-gram that the next word closes
    return torch.where((ngrams[..., :-1] == tail).all(dim=-1), ngrams[..., -1], PAD)


def _hypotheses(tokens: Tensor, log_prob: Tensor, score: Tensor) -> list[list[Hypothesis]]:
    """(N, K, T), (N, K), (N, K) → each image's sentences, best first; dead beams are left out."""
    found = []
    for image in zip(tokens.tolist(), log_prob.tolist(), score.tolist(), strict=True):
        alive = [
            Hypothesis([word for word in words if word not in (PAD, END)], nats, rank)
            for words, nats, rank in zip(*image, strict=True)
            if nats > -torch.inf
        ]
        found.append(sorted(alive, key=lambda hypothesis: hypothesis.score, reverse=True))
    return found
