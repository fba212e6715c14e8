"""The vocabulary, the data set of images and token ids, and batches of them.

No models, no devices of its own choosing; words are counted in training captions only. Captions
files and pictures are found by `corpus`, whose command line `python loader.py FOLDER` is.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

import distributed
from cli import UserError, progress
from corpus import Example
from draws import Share, Whole
from languages import CLITICS, NEVER_FINAL, SIDES, UNSPACED, Tokenizer
from model import END, PAD, START, UNK

T = TypeVar("T")

SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")  # ids PAD, START, END, UNK

# --------------------------------------------------------------------------- vocabulary


class Vocabulary:
    """Captions to token ids and back.

    Tokens are those of spaCy's tokenizer, lower-cased, without punctuation but for what is needed
    to write the words out again: the hyphen inside a word, a clitic's apostrophe.

    Attributes:
        words: id → word, ``SPECIAL_TOKENS`` first, then the most frequent first.
        counts: id → how often it occurs in the training captions; of ``<unk>``, all other words.
        language: a code that ``spacy.blank`` knows, or the name of an installed pipeline.
        separator: what stands between words: a blank, nothing in ``UNSPACED`` languages.
    """

    def __init__(
        self, words: Sequence[str], counts: Sequence[int], *, language: str, separator: str = " "
    ) -> None:
        assert tuple(words[:4]) == SPECIAL_TOKENS
        assert len(words) == len(counts)
        self.words = list(words)
        self.counts = list(counts)
        self.language = language
        self.separator = separator
        self.id_of = {word: id_ for id_, word in enumerate(words)}

    @classmethod
    def build(
        cls, captions: Sequence[str], *, freq_threshold: int, language: str = "en"
    ) -> Vocabulary:
        """Count the words of the training captions; rarer ones become ``<unk>``.

        Raises:
            UserError: spaCy has no such language, or all words are too rare.
        """
        tokenizer = Tokenizer(language)
        count_of = _count(captions, tokenizer)
        frequent = _frequent(count_of, freq_threshold)
        if not frequent:
            raise UserError(
                f"no word of the {len(captions):,} training captions occurs {freq_threshold} "
                "times: give a smaller --freq-threshold."
            )
        words = [*SPECIAL_TOKENS, *frequent]
        separator = "" if tokenizer.language in UNSPACED else " "
        vocabulary = cls(words, _counts(words, count_of), language=language, separator=separator)
        vocabulary.tokenizer = tokenizer  # its cache is worth keeping
        return vocabulary

    def extended(self, captions: Iterable[str], *, freq_threshold: int) -> Vocabulary:
        """This vocabulary and, after its words, the new ones of these captions; ids stay.

        The counts are those of these captions: 0 of a word that does not occur in them.
        """
        count_of = _count(captions, self.tokenizer)
        added = [word for word in _frequent(count_of, freq_threshold) if word not in self.id_of]
        words = [*self.words, *added]
        vocabulary = Vocabulary(
            words, _counts(words, count_of), language=self.language, separator=self.separator
        )
        vocabulary.tokenizer = self.tokenizer
        return vocabulary

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Made when first needed: prediction never waits for spaCy."""
        return Tokenizer(self.language)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str) -> list[int]:
        """``"A dog runs ."`` → ids of ``<start> a dog runs <end>``."""
        return [START, *(self.id_of.get(word, UNK) for word in self.tokenizer(caption)), END]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids → words as people write them: ``a man 's t - shirt`` becomes "a man's t-shirt"."""
        return self.separator.join(text for text, _ in self.group(ids))

    def group(self, ids: Iterable[int]) -> list[tuple[str, list[int]]]:
        """Ids → words as people write them, each with its ids; special tokens are left out."""
        groups: list[tuple[str, list[int]]] = []
        glued = False
        for id_ in ids:
            word = self.words[id_]
            if word in SPECIAL_TOKENS:
                continue
            if not groups or not (glued or word.startswith("-") or word in CLITICS):
                groups.append(("", []))
            text, before = groups.pop()
            groups.append((text + word, [*before, id_]))
            # After a hyphen, and after an elision as in French "l'homme", no blank follows.
            glued = word == "-" or (len(word) > 1 and word.endswith("'"))
        return groups

    @property
    def banned_final_ids(self) -> tuple[int, ...]:
        """Ids of words that no caption should end on; none in a language without such a list."""
        words = NEVER_FINAL.get(self.language.split("_")[0], "").split()
        return tuple(self.id_of[word] for word in words if word in self.id_of)

    def fits_mirror(self, captions: Iterable[str]) -> bool:
        """Whether captions still fit the mirror image: they name no left and right.

        In a language whose words for left and right are not known, none does.
        """
        sides = set(SIDES.get(self.language.split("_")[0], "").split())
        return bool(sides) and all(sides.isdisjoint(self.tokenizer(text)) for text in captions)


def _count(captions: Iterable[str], tokenizer: Tokenizer) -> Counter[str]:
    shown = progress(captions, about="counting words", unit="caption")
    return Counter(token for caption in shown for token in tokenizer(caption))


def _frequent(count_of: Mapping[str, int], threshold: int) -> list[str]:
    """The words that occur so often, the most frequent first."""
    kept = [word for word, count in count_of.items() if count >= threshold]
    return sorted(kept, key=lambda word: (-count_of[word], word))


def _counts(words: Sequence[str], count_of: Counter[str]) -> list[int]:
    """How often these words occur, the special tokens first: ``<unk>`` for all other words."""
    counts = [count_of[word] for word in words]
    counts[UNK] = count_of.total() - sum(counts)
    return counts


# --------------------------------------------------------------------------- data set

# N images, C captions of a data set, B captions of a batch, T tokens, F features of an image,
# S side of a picture.


class Pixels(Protocol):
    """N pictures, each (3, S, S) uint8, read when asked for: a list, or ``features.Rows``."""

    def __getitem__(self, index: int, /) -> Tensor: ...
    def __len__(self) -> int: ...


class Flickr30k:
    """The images of a split with all their captions; Flickr30k's, or any other corpus's.

    Token ids, and features where the encoder is frozen, are tensors on the model's device, so that
    making a batch is indexing: no DataLoader with its workers could be faster.

    Attributes:
        examples: the images.
        tokens: (C, T) ids of all C captions, ``<start>`` words ``<end>`` and ``<pad>``; an image's
            captions stand next to each other.
        lengths: (C,) how many of them are not padding.
        caption_to_image: (C,) which image each caption describes.
        features: (N, F) float32, or None if the images are given as pixels.
        pixels: N times (3, S, S) uint8, or None.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        vocabulary: Vocabulary,
        device: torch.device,
        *,
        features: Tensor | None = None,
        pixels: Pixels | None = None,
    ) -> None:
        """Encode the captions; exactly one of features and pixels is given."""
        assert (features is None) != (pixels is None)
        self.examples, self.vocabulary, self.device = examples, vocabulary, device
        shown = progress(examples, about="reading captions", unit="image")
        captions = [[vocabulary.encode(text) for text in example.captions] for example in shown]
        encoded = [ids for image in captions for ids in image]
        self.lengths = np.array([len(ids) for ids in encoded])
        tokens = np.full((len(encoded), self.lengths.max()), PAD)
        tokens[np.arange(tokens.shape[1]) < self.lengths[:, None]] = np.concatenate(encoded)
        self.tokens = torch.from_numpy(tokens).to(device)
        self.caption_to_image = np.repeat(np.arange(len(captions)), [len(ids) for ids in captions])
        self.features = None if features is None else features.to(device)
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def may_mirror(self) -> Tensor:
        """(N,) bool, whether an image's captions fit its mirror image; only crops ask for it."""
        fits = [self.vocabulary.fits_mirror(example.captions) for example in self.examples]
        return torch.tensor(fits, device=self.device)

    def with_features(self, features: Tensor) -> Flickr30k:
        """The same images and captions, the images given by these features, (N, F)."""
        other = copy.copy(self)
        other.features, other.pixels = features, None
        return other


@dataclass(frozen=True)
class Batch:
    """Captions and the images they describe, each image once; of several processes, a part.

    Attributes:
        tokens: (B, T) ids, ``<start>`` words ``<end>``, padded with ``<pad>``.
        caption_to_image: (B,) the row of ``features`` or ``pixels`` that each caption describes.
        positions: (n_words,) where in ``tokens.flatten()`` the words to learn are, ``<end>`` one
            of them.
        image_index: the images' indices in the data set, (N,), on the device.
        host_image_index: the same on the host.
        features: (N, F) float32, or None; empty if the part is.
        pixels: (N, 3, S, S) uint8, or None.
        whole: what it is a part of; None with one process.
    """

    tokens: Tensor
    caption_to_image: Tensor
    positions: Tensor
    image_index: Tensor
    host_image_index: np.ndarray
    features: Tensor | None = None
    pixels: Tensor | None = None
    whole: Whole | None = None

    @property
    def n_words(self) -> int:
        """How many words there are to learn in the whole batch."""
        return self.whole.n_words if self.whole else len(self.positions)

    @property
    def targets(self) -> Tensor:
        """(n_words,) the words to learn."""
        return self.tokens.flatten().index_select(0, self.positions)


Plan = list[list[int]]  # batches of caption indices

POOL = 20  # batches' worth of captions that are sorted by length together


def plan_batches(dataset: Flickr30k, *, batch_size: int, seed: int, whole_images: bool) -> Plan:
    """Which captions are in which batch of an epoch.

    Args:
        dataset: images and captions.
        batch_size: captions in a batch.
        seed: of its own for each epoch of a stage; the same seed gives the same plan.
        whole_images: True keeps all captions of an image together, so that an encoder that
            trains encodes it once. Else captions are shuffled one by one and batched with others
            of like length, so that hardly any time goes into padding.
    """
    rng = random.Random(seed)
    if whole_images:
        return _plan_images(dataset, batch_size, rng)
    return _plan_captions(dataset, batch_size, rng)


def _plan_images(dataset: Flickr30k, batch_size: int, rng: random.Random) -> Plan:
    """Images in random order, each with all its captions, about ``batch_size`` captions a batch."""
    counts = np.bincount(dataset.caption_to_image, minlength=len(dataset))
    first = np.concatenate([[0], counts.cumsum()]).tolist()  # caption of each image
    images = list(range(len(dataset)))
    rng.shuffle(images)
    plan: Plan = [[]]
    for image in images:
        captions = list(range(first[image], first[image + 1]))
        if plan[-1] and len(plan[-1]) + len(captions) > batch_size:
            plan.append([])
        plan[-1] += captions
    return plan


def _plan_captions(dataset: Flickr30k, batch_size: int, rng: random.Random) -> Plan:
    """Captions in random order, sorted by length within pools, the batches shuffled again."""
    lengths = dataset.lengths.tolist()
    captions = list(range(len(lengths)))
    rng.shuffle(captions)
    plan: Plan = []
    for pool_start in range(0, len(captions), POOL * batch_size):
        pool = captions[pool_start : pool_start + POOL * batch_size]
        pool.sort(key=lengths.__getitem__)
        plan += [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
    rng.shuffle(plan)
    return plan


def batches(dataset: Flickr30k, plan: Plan) -> Iterator[Batch]:
    """Make the batches of a plan.

    All indices go to the device at the beginning, and with features nothing else does. Pixels are
    read for the next batch while the caller works on one. Of several processes each gets its part
    of every batch: some of the images, with their captions; perhaps none.
    """
    if not plan:  # a run that is resumed may have nothing left of its epoch
        return
    host = [_indices(dataset, np.array(captions)) for captions in plan]
    copied = [_copied(column, dataset.device) for column in zip(*host, strict=True)]
    pixel_batches = None
    if dataset.features is None:
        images_of = (on_host.images for on_host in host if len(on_host.images))
        pixel_batches = _prefetched(_read_pixels(dataset, images) for images in images_of)
    for captions, on_host, caption_index, positions, caption_to_image, image_index, rows in zip(
        plan, host, *copied, strict=True
    ):
        longest = int(dataset.lengths[on_host.captions].max(initial=1))
        tokens = dataset.tokens[:, :longest].index_select(0, caption_index)  # (B, T)
        features, pixels = dataset.features, None
        if features is not None:
            features = features.index_select(0, image_index)
        if pixel_batches is not None:
            if len(on_host.images):
                is_pinned = dataset.device.type == "cuda"
                pixels = next(pixel_batches).to(dataset.device, non_blocking=is_pinned)
            else:
                features = torch.empty(0, device=dataset.device)
        images = (image_index, on_host.images)
        whole = _whole(dataset, captions, rows) if distributed.size > 1 else None
        yield Batch(tokens, caption_to_image, positions, *images, features, pixels, whole)


class _Indices(NamedTuple):
    """Of a batch, on the host: its captions and images in the data set, and as in ``Batch``."""

    captions: np.ndarray  # (B,)
    positions: np.ndarray  # (n_words,)
    caption_to_image: np.ndarray  # (B,)
    images: np.ndarray  # (N,)
    rows: np.ndarray  # (B,) of the captions in the whole batch; with one process empty


def _indices(dataset: Flickr30k, captions: np.ndarray) -> _Indices:
    of_captions, rows = dataset.caption_to_image[captions], captions[:0]
    if distributed.size > 1:
        mine = distributed.part(np.unique(of_captions))
        rows = np.flatnonzero(np.isin(of_captions, mine))
        captions, of_captions = captions[rows], of_captions[rows]
    lengths = dataset.lengths[captions]  # (B,)
    column = np.arange(lengths.max(initial=0))
    is_word = (column > 0) & (column < lengths[:, None])  # (B, T), all but <start>
    images, caption_to_image = np.unique(of_captions, return_inverse=True)
    return _Indices(captions, np.flatnonzero(is_word), caption_to_image, images, rows)


def _whole(dataset: Flickr30k, captions: list[int], rows: Tensor) -> Whole:
    n_words = int((dataset.lengths[captions] - 1).sum())
    n_images = len(np.unique(dataset.caption_to_image[captions]))
    image_rows = distributed.part(torch.arange(n_images, device=rows.device))
    return Whole(n_words, Share(len(captions), rows), Share(n_images, image_rows))


def _copied(arrays: Sequence[np.ndarray], device: torch.device) -> Sequence[Tensor]:
    """The arrays on the device, in one copy."""
    joined = torch.from_numpy(np.concatenate(arrays)).to(device)
    return joined.split([len(array) for array in arrays])


def _read_pixels(dataset: Flickr30k, images: np.ndarray) -> Tensor:
    """(N, 3, S, S) uint8; for a GPU in pinned memory, which is copied while the host goes on."""
    assert dataset.pixels is not None
    pixels = torch.stack([dataset.pixels[image] for image in images.tolist()])
    return pixels.pin_memory() if dataset.device.type == "cuda" else pixels


def _prefetched(items: Iterable[T]) -> Iterator[T]:
    """The same items, the next one made in a thread while this one is used."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, iterator, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, iterator, None)
            yield item


if __name__ == "__main__":  # python loader.py FOLDER: look at a data set
    from corpus import main

    raise SystemExit(main())
