"""The captioner: a ResNet that looks, an LSTM that speaks (Show and Tell, arXiv:1411.4555).

The image is read as the first "word" of the sentence, as the paper has it. It is also added to
every word that is read and to what the LSTM says before the next word is chosen: a short way from
picture to word, which learns in one epoch what takes the paper's way several. This file knows ids,
not words, and nothing of files, losses or devices.
"""

# N images, B captions, T tokens, E embedding, H hidden, L layers, V vocabulary, K beams,
# F features: the length of the ResNet's pooled vector.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The same numbers as in loader.py.
PAD, START, END, UNK = range(4)

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

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
        train_encoder: bool = False,
    ) -> None:
        """Build the model with random weights; ``load_encoder`` and checkpoints fill them in.

        Args:
            vocabulary_size: V, the four special tokens included.
            encoder: one of ``ENCODERS``.
            embedding_size: E, the size of image and word vectors.
            hidden_size: H of the LSTM.
            num_layers: L, LSTM layers on top of each other.
            dropout: share of the values dropped from word vectors and from the LSTM's output.
            train_encoder: False freezes the ResNet: no gradients, and always in eval mode.
        """
        super().__init__()
        self.options = {  # what it takes to build the same model again
            "vocabulary_size": vocabulary_size,
            "encoder": encoder,
            "embedding_size": embedding_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "dropout": dropout,
            "train_encoder": train_encoder,
        }
        if encoder not in ENCODERS:
            raise ValueError(f"unknown encoder {encoder!r}: choose one of {', '.join(ENCODERS)}")
        # torchvision takes two seconds to import: only those who build a model wait for it.
        from torchvision import models

        self.encoder = getattr(models, encoder)(weights=None).to(memory_format=torch.channels_last)
        self.feature_size = self.encoder.fc.in_features
        # The linear layer that replaces the ResNet's own `fc` stands beside it, not in it, so
        # that the pooled vectors in front of it can be computed once and kept.
        self.encoder.fc = nn.Identity()
        # Raw pooled vectors are all positive and nearly alike: standardised they tell images
        # apart (+3 CIDEr on Flickr8k).
        self.image_embedding = nn.Sequential(
            nn.BatchNorm1d(self.feature_size, affine=False),
            nn.Linear(self.feature_size, embedding_size),
        )
        self.image_output = nn.Linear(embedding_size, hidden_size)
        self.word_embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=PAD)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(
            embedding_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.words = nn.Linear(hidden_size, vocabulary_size)
        self.train_encoder = train_encoder
        self.encoder.requires_grad_(train_encoder)

    def train(self, mode: bool = True) -> ImageCaptioningModel:
        """As ``nn.Module.train``; a frozen encoder stays in eval mode whatever is asked."""
        super().train(mode)
        if not self.train_encoder:
            self.encoder.eval()  # else BatchNorm's statistics drift: frozen would not be frozen
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Look at the images.

        Args:
            images: (N, 3, S, S) uint8, RGB, as ``loader.transform`` makes them.

        Returns:
            (N, F) float32, the ResNet's pooled vectors.
        """
        mean = torch.tensor(PIXEL_MEAN, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(PIXEL_STD, device=images.device).view(1, 3, 1, 1)
        pixels = (images.float() / 255 - mean) / std
        return self.encoder(pixels.contiguous(memory_format=torch.channels_last)).float()

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 images, or (N, F) vectors that ``encode`` gave before → (N, F)."""
        return images if images.dim() == 2 else self.encode(images)

    def start(self, features: Tensor) -> State:
        """The state after the image has been read: (N, F) → N rows."""
        # One image has no variance to be standardised by: the running statistics serve.
        self.image_embedding[0].train(self.training and len(features) > 1)
        image = self.image_embedding(features)  # (N, E)
        _, (hidden, cell) = self.lstm(image.unsqueeze(1))
        return State(hidden, cell, image)

    def read(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read words after ``state``: (B, T) ids → (B, T, H), and the state after the last."""
        words = self.dropout(self.word_embedding(tokens)) + state.image.unsqueeze(1)  # (B, T, E)
        hidden, (last, cell) = self.lstm(words, (state.hidden, state.cell))  # (B, T, H)
        hidden = hidden + self.image_output(state.image).unsqueeze(1)
        return self.dropout(hidden), State(last, cell, state.image)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read words after ``state`` and score each one's successor.

        Args:
            tokens: (B, T) ids.
            state: after everything before them.

        Returns:
            (B, T, V) logits, and the state after the last word.
        """
        hidden, state = self.read(tokens, state)
        return self.words(hidden), state

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
        state = self.start(self.features(images)).of(image_of)
        hidden, _ = self.read(tokens[:, :-1], state)  # (B, T-1, H)
        return self.words(hidden[tokens[:, 1:] != PAD])  # (n_words, V)

    @torch.inference_mode()
    def caption(
        self,
        images: Tensor | Sequence[Tensor],
        *,
        beam_size: int = 3,
        max_words: int = 20,
        length_penalty: float = 0.7,
        batch_size: int = 64,
    ) -> list[list[Hypothesis]]:
        """Describe each image by beam search, ``batch_size`` images at once, in eval mode.

        A beam that has ended stays and competes with the open ones, longer by the step, on
        log-probability per length^length_penalty. Beams still open after ``max_words`` compete
        as they are, so every image gets a caption. ``<pad>``, ``<start>`` and ``<unk>`` are
        never chosen, nor is an empty sentence.

        Args:
            images: N times (3, S, S) uint8 images or (F,) vectors from ``encode``, on any device.
            beam_size: K, sentences kept per image; 1 is greedy search.
            max_words: the longest caption.
            length_penalty: 0 ranks by plain log-probability, which favours short sentences;
                1 by the mean per token.
            batch_size: images decoded at a time.

        Returns:
            For each image at most ``beam_size`` hypotheses, best first.

        Raises:
            ValueError: ``beam_size`` or ``max_words`` below 1.

        Source: Vinyals et al. 2015, arXiv:1411.4555, "Inference"; length normalisation: Wu et
        al. 2016, arXiv:1609.08144, section 7, without its constants.
        """
        if beam_size < 1 or max_words < 1:
            raise ValueError(f"beam_size and max_words start at 1, got {beam_size}, {max_words}")
        self.eval()
        device = self.words.weight.device
        found: list[list[Hypothesis]] = []
        for start in range(0, len(images), batch_size):
            part = [images[i] for i in range(start, min(start + batch_size, len(images)))]
            features = self.features(torch.stack(part).to(device))
            found += self._beam_search(features, beam_size, max_words, length_penalty)
        return found

    def _beam_search(
        self, features: Tensor, beam_size: int, max_words: int, length_penalty: float
    ) -> list[list[Hypothesis]]:
        n_images, device = len(features), features.device
        rows = torch.arange(n_images, device=device).repeat_interleave(beam_size)
        state = self.start(features).of(rows)  # N*K rows: every image's, once for each beam
        tokens = torch.full((n_images, beam_size, max_words), PAD, device=device)
        last = torch.full((n_images, beam_size), START, device=device)
        log_prob = torch.full((n_images, beam_size), -torch.inf, device=device)
        log_prob[:, 0] = 0.0  # one beam to begin with: K equal ones would stay equal
        length = torch.zeros_like(last)  # words and <end>
        ended = torch.zeros_like(last, dtype=torch.bool)

        for position in range(max_words):
            logits, state = self.step(last.view(-1, 1), state)
            next_log_prob = F.log_softmax(logits[:, 0].float(), dim=-1)
            next_log_prob = next_log_prob.view(n_images, beam_size, -1)  # (N, K, V)
            _allow(next_log_prob, ended, first=position == 0)
            n_words = next_log_prob.shape[-1]
            candidates = log_prob.unsqueeze(-1) + next_log_prob
            length = length + (~ended).long()
            scores = candidates / length.unsqueeze(-1) ** length_penalty

            best = scores.view(n_images, -1).topk(beam_size).indices  # (N, K), into K*V
            beam, last = best // n_words, best % n_words
            log_prob = candidates.view(n_images, -1).gather(1, best)
            length, ended = length.gather(1, beam), ended.gather(1, beam) | (last == END)
            tokens = tokens.gather(1, beam.unsqueeze(-1).expand_as(tokens))
            tokens[:, :, position] = last
            if bool(ended.all()):
                break
            state = state.of(rows * beam_size + beam.view(-1))

        scores = log_prob / length**length_penalty
        return [
            _hypotheses(*image)
            for image in zip(tokens.tolist(), log_prob.tolist(), scores.tolist(), strict=True)
        ]


def targets(tokens: Tensor) -> Tensor:
    """(B, T) padded ids → (n_words,) what ``forward``'s logits should say: all but ``<start>``."""
    following = tokens[:, 1:]
    return following[following != PAD]


def _allow(next_log_prob: Tensor, ended: Tensor, *, first: bool) -> None:
    """Forbid, in place, what may not follow in (N, K, V); ended beams (N, K) only go on as is."""
    next_log_prob[..., [PAD, START, UNK]] = -torch.inf
    if first:
        next_log_prob[..., END] = -torch.inf
    next_log_prob.masked_fill_(ended.unsqueeze(-1), -torch.inf)
    next_log_prob[..., PAD].masked_fill_(ended, 0.0)


def _hypotheses(
    tokens: list[list[int]], log_probs: list[float], scores: list[float]
) -> list[Hypothesis]:
    """One image's beams, best first; beams that never came to life are left out."""
    found = [
        Hypothesis([token for token in beam if token not in (PAD, END)], log_prob, score)
        for beam, log_prob, score in zip(tokens, log_probs, scores, strict=True)
        if log_prob > -torch.inf
    ]
    return sorted(found, key=lambda hypothesis: hypothesis.score, reverse=True)
