"""A trained model, or an ensemble, at work: pictures in, captions out.

    captioner = Captioner.load("checkpoints/best.pt")
    print(captioner.caption("photo.jpg"))

The one way from a picture to its captions, whoever asks for them.
"""

# N pictures, S side of a picture, F features.

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from itertools import count, islice
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from torch import Tensor

import checkpoint
import cli
from checkpoint import Checkpoint
from cli import UserError
from familiarity import UNFAMILIAR
from pictures import Source, read_image, read_pictures, transform
from search import Hypothesis, Search, caption

_AS_TRAINED: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Caption:
    """A caption of a picture.

    Attributes:
        text: the caption.
        log_prob: its log-probability in nats.
        log_prob_per_word: the same divided by the number of words, the end counted as one.
        familiarity: of the picture: see `familiarity.Familiarity`; None if the model has none.
        tokens: ids of its words.
    """

    text: str
    log_prob: float
    log_prob_per_word: float
    familiarity: float | None
    tokens: list[int]

    @property
    def is_unfamiliar(self) -> bool:
        """Whether the picture is unlike those trained on, so that this may well be wrong."""
        return self.familiarity is not None and self.familiarity < UNFAMILIAR


class Captioner:
    """A model, or an ensemble, with the way it searches for captions."""

    def __init__(
        self,
        ensemble: Sequence[Checkpoint],
        asked: Mapping[str, Any] = _AS_TRAINED,
        *,
        n_best: int = 1,
        sentence: bool = False,
    ) -> None:
        """Fold the encoders, which takes a moment.

        Args:
            ensemble: models of the same vocabulary and image size.
            asked: settings of the search by name; the others are those of the training.
            n_best: captions for each picture.
            sentence: begin captions with a capital, and end them with a full stop.
        """
        self.models = [trained.model for trained in ensemble]
        self.vocabulary, self.image_size = ensemble[0].vocabulary, ensemble[0].image_size
        self.familiarity = ensemble[0].familiarity
        self._search = ensemble[0].search
        self._neighbours = [trained.neighbours for trained in ensemble]
        self.n_best, self.sentence = n_best, sentence
        self.search = self._search_for(asked)
        self._encoders = [model.make_encoder() for model in self.models]

    @classmethod
    def load(
        cls,
        *paths: str | Path,
        device: str = "auto",
        n_best: int = 1,
        sentence: bool = False,
        **asked: Any,
    ) -> Captioner:
        """Read a checkpoint, or an ensemble of several; ``asked`` as ``beam_size=5``.

        Raises:
            TypeError: something else is asked for than there is in ``cli.SamplingSettings``.
            UserError: as ``checkpoint.load_ensemble``.
        """
        if unknown := asked.keys() - {field.name for field in fields(cli.SamplingSettings)}:
            raise TypeError(f"no setting of the search: {', '.join(sorted(unknown))}")
        ensemble = checkpoint.load_ensemble([*map(Path, paths)], cli.device(device))
        return cls(ensemble, asked, n_best=n_best, sentence=sentence)

    def with_search(self, asked: Mapping[str, Any], *, n_best: int) -> Captioner:
        """The same model, searching for captions in another way; shares all memory."""
        other = copy(self)
        other.n_best = n_best
        other.search = other._search_for(asked)
        return other

    def _search_for(self, asked: Mapping[str, Any]) -> Search:
        search = self._search(asked)
        return replace(search, beam_size=max(search.beam_size, self.n_best))

    def caption(self, picture: str | Path | IO[bytes]) -> str:
        """The best caption of a picture: a path or an open file.

        Raises:
            UserError: it cannot be read.
        """
        pixels = transform(read_image(picture, size=self.image_size), self.image_size)
        return self.describe(pixels.unsqueeze(0))[0][0].text

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> list[Tensor]:
        """(N, 3, S, S) uint8 → the features that each model's encoder makes of them, (N, F)."""
        pixels = pixels.to(self.models[0].device)
        return [encode(pixels) for encode in self._encoders]

    def describe(self, pixels: Tensor) -> list[list[Caption]]:
        """(N, 3, S, S) uint8, as ``pictures.transform`` makes them → captions, best first."""
        return self.describe_features(self.encode(pixels))

    @torch.inference_mode()
    def describe_features(self, features: Sequence[Tensor]) -> list[list[Caption]]:
        """What ``encode`` made of N pictures → captions of each, best first."""
        n_pictures = len(features[0])
        familiarity: Sequence[float | None] = [None] * n_pictures
        if self.familiarity:
            familiarity = self.familiarity.of_features(features[0]).tolist()
        found = caption(
            self.models,
            features,
            self.search,
            neighbours=self._neighbours,
            batch_size=n_pictures,
        )
        return [
            [self._caption(hypothesis, familiar) for hypothesis in hypotheses[: self.n_best]]
            for hypotheses, familiar in zip(found, familiarity, strict=True)
        ]

    def describe_all(
        self,
        sources: Iterable[Source],
        *,
        batch_size: int = 64,
        is_done: Callable[[Source], bool] = lambda _: False,
    ) -> Iterator[tuple[Source, list[Caption] | UserError]]:
        """Describe pictures, ``batch_size`` at once, while the next are read.

        A batch with a picture to do is computed as a whole, and sampled with random numbers of its
        own, so that a run that is resumed gets what an unbroken one does, to the last digit.

        Args:
            sources: taken only as they are needed.
            batch_size: pictures computed at a time.
            is_done: says of each picture, in their order, whether to leave it out.

        Yields:
            In order each picture with its captions, best first, or the reason why there are none.
        """
        seed = self.search.seed
        batches: deque[tuple[int, list[bool]]] = deque()  # read, but not described yet
        batch_size = min(batch_size, 2**31)  # islice takes no number above 2**63

        def left() -> Iterator[Source]:
            rest = iter(sources)
            for number in count():
                if not (batch := list(islice(rest, batch_size))):
                    return
                done = [is_done(source) for source in batch]
                if not all(done):
                    batches.append((number, done))
                    yield from batch

        pictures = read_pictures(left(), self.image_size, ahead=2 * batch_size)
        while batch := list(islice(pictures, batch_size)):
            number, done = batches.popleft()
            torch.manual_seed((seed + (number << 32)) % 2**63)
            readable = [picture for _, picture in batch if isinstance(picture, Tensor)]
            described = iter(self.describe(torch.stack(readable)) if readable else [])
            for (source, picture), was_done in zip(batch, done, strict=True):
                found = next(described) if isinstance(picture, Tensor) else picture
                if not was_done:
                    yield source, found

    def _caption(self, hypothesis: Hypothesis, familiarity: float | None) -> Caption:
        text = self.vocabulary.decode(hypothesis.tokens)
        text = f"{text[:1].upper()}{text[1:]}." if self.sentence else text
        nats, nats_per_word = hypothesis.log_prob, hypothesis.log_prob_per_word
        return Caption(text, nats, nats_per_word, familiarity, hypothesis.tokens)
