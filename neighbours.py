"""What people said of similar photos: the hypotheses that agree with it are the better ones.

Beam search finds captions that are likely word by word, several almost equally so. Here the
training photos nearest to a picture are looked up, and a hypothesis gains by every phrase that
people used for them. On Flickr8k that is worth four CIDEr: docs/captioning.md.

Source: consensus re-ranking, Devlin et al. 2015, arXiv:1505.04467; Mao et al. 2015,
arXiv:1412.6632, section 8. Here near photos count for more, and rare words in place of an idf.
"""

# N pictures, K neighbours, E image embedding, M training photos, C their captions, W the words of
# these, V vocabulary, H hypotheses of all pictures, G n-grams.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics import Floats, Hashes, Ints, combine_hash, count_ngrams, expand, ngram_norms, sum_by

N_NEIGHBOURS = 20
TEMPERATURE = 0.1  # of the softmax of cosines, by which neighbours count
MOST_PHOTOS = 30_000  # that are kept: 30 MB, for embeddings of 512


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Training photos as the model sees them, and what people said of them.

    Attributes:
        mean: (E,), of the photos' image embeddings.
        directions: (M, E) float16: how each photo's embedding differs from it, of length 1.
        n_captions: (M,), each photo's.
        lengths: (C,), words of each caption, ``<end>`` one of them.
        tokens: (W,) int32, the captions one after the other.
        rareness: (V,), ln(all words / (this one + 1)) of the training captions, in nats.
    """

    mean: Tensor
    directions: Tensor
    n_captions: Tensor
    lengths: Tensor
    tokens: Tensor
    rareness: Tensor

    def agreement(
        self, image: Tensor, hypotheses: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """How far hypotheses agree with the captions of the photos nearest to their pictures.

        Args:
            image: (N, E), the pictures' image embeddings.
            hypotheses: for each picture token ids of some, each with ``<end>``.

        Returns:
            For each hypothesis from 0 to 1, the mean cosine of its n-grams with a caption's, over
            n = 1 to 4 and all captions of the ``N_NEIGHBOURS`` nearest photos. In it an n-gram
            weighs the sum of its words' rareness, and a photo its share of the softmax of
            cosines / ``TEMPERATURE``.
        """
        photos, shares = self._nearest(image)
        keys, means = self._said(photos, shares)
        flat = [np.array(one) for mine in hypotheses for one in mine]
        sentence = np.arange(len(flat)).repeat([len(one) for one in flat])
        ngrams, caption, parts = self._vectors(np.concatenate(flat), sentence)
        picture = np.arange(len(hypotheses)).repeat([len(mine) for mine in hypotheses])  # (H,)
        key = combine_hash(ngrams, picture[caption])
        row = np.searchsorted(keys, key).clip(max=len(keys) - 1)
        products = np.where(keys[row] == key, means[row], 0) * parts
        values = iter((sum_by(caption, products, len(flat)) / 4).tolist())
        return [[next(values) for _ in mine] for mine in hypotheses]

    def _nearest(self, image: Tensor) -> tuple[Ints, Floats]:
        """(N, E) image embeddings → (N, K) photos, and the share that each has among them."""
        cosines = F.normalize(image.float() - self.mean) @ self.directions.float().T  # (N, M)
        nearest = cosines.topk(min(N_NEIGHBOURS, len(self.directions)))
        shares = (nearest.values / TEMPERATURE).softmax(dim=1)
        return nearest.indices.cpu().numpy(), shares.cpu().numpy()

    def _said(self, photos: Ints, shares: Floats) -> tuple[Hashes, Floats]:
        """The mean caption vector of each picture's (N, K) photos, by their shares.

        Returns:
            Ascending hashes of an n-gram and a picture's number, and the n-gram's part.
        """
        n_captions, lengths = self.n_captions.numpy(), self.lengths.numpy()
        n_told = n_captions[photos.ravel()]  # (N*K,)
        neighbour, told = expand((n_captions.cumsum() - n_captions)[photos.ravel()], n_told)
        sentence, word = expand((lengths.cumsum() - lengths)[told], lengths[told])
        ngrams, caption, parts = self._vectors(self.tokens.numpy()[word], sentence)
        picture = neighbour // photos.shape[1]
        share = (shares.ravel() / n_told)[neighbour]
        keys, row = np.unique(combine_hash(ngrams, picture[caption]), return_inverse=True)
        return keys, sum_by(row, parts * share[caption], len(keys))

    def _vectors(self, tokens: Ints, sentence: Ints) -> tuple[Hashes, Ints, Floats]:
        """The n-grams of sentences, of unit length for each n.

        Args:
            tokens: (W,), one sentence after the other.
            sentence: (W,) of each of them.

        Returns:
            (G,) n-grams, each's sentence, and its part of the sentence's unit vector of its n.
        """
        ngrams, end = count_ngrams(tokens, sentence)
        until = np.append(0.0, self.rareness.numpy()[tokens].cumsum(dtype=np.float64))
        weights = until[end + 1] - until[end - ngrams.n_minus_1]  # (G,)
        norms = ngram_norms(ngrams, weights, int(sentence[-1]) + 1)
        parts = ngrams.counts * weights / norms[ngrams.sentence, ngrams.n_minus_1]
        return ngrams.hashes, ngrams.sentence.astype(np.int64), parts

    def to(self, device: torch.device | str) -> Neighbours:
        """The same, what is computed with the pictures' embeddings on a device."""
        on_device = {"mean": self.mean.to(device), "directions": self.directions.to(device)}
        return Neighbours(**{**self.plain(), **on_device})

    def plain(self) -> dict[str, Tensor]:
        """As plain data, for a checkpoint."""
        return dict(vars(self))

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Neighbours:
        """What ``plain`` gave; ``integrity.check_neighbours`` has looked at a file's."""
        return cls(**plain)


def remember(
    embeddings: Tensor, captions: Sequence[Sequence[Sequence[int]]], counts: Sequence[int]
) -> Neighbours:
    """Keep training photos with their captions.

    Args:
        embeddings: (M, E), ``ImageCaptioningModel.project`` of their features.
        captions: of each photo at least one, token ids with ``<end>``, without ``<start>``.
        counts: (V,) how often each word of the vocabulary occurs in training.
    """
    embeddings = embeddings.cpu().float()
    mean = embeddings.mean(dim=0)
    told = [caption for photo in captions for caption in photo]
    rareness = torch.tensor(max(1, sum(counts))).log() - (torch.tensor(counts) + 1).log()
    return Neighbours(
        mean,
        F.normalize(embeddings - mean).half(),
        torch.tensor([len(photo) for photo in captions]),
        torch.tensor([len(caption) for caption in told]),
        torch.tensor(list(chain.from_iterable(told)), dtype=torch.int32),
        rareness.clamp(min=1e-3),  # so that no n-gram weighs nothing
    )
