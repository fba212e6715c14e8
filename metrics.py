"""Scores of captions: CIDEr-D, BLEU-1 to BLEU-4 and ROUGE-L. Text in, numbers out.

`score` gives the row of a paper's table. The functions under it take tokens, as `tokens` makes
them: those of the tokenizer behind published scores, on both sides, since a full stop kept on one
side only moves BLEU-4 by two points. `CiderD` takes token ids: it also rewards in stage 3.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEW = 50  # images: with fewer, CIDEr's document frequencies mean little

Words = Sequence[Hashable]  # the tokens of one caption
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]

BLOCK = 500  # images whose references are counted at once, to save memory
NO_TOKEN = np.uint64(0x9E3779B97F4A7C15)  # hash of an n-gram of none
FREE = np.uint64(2**64 - 1)  # slot of a hash table; above any hash in it

# --------------------------------------------------------------------------- tokens

CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # written without blanks
MARKS = r"\u0300-\u036f\u064b-\u065f\u0900-\u0963\u0966-\u109f"  # vowel signs: not in \w
LETTER = rf"[^\W\d_{CJK}]"
CHARACTER = rf"(?:[^\W_{CJK}]|[{MARKS}])"
END = rf"(?!{CHARACTER})"  # of a word
BODY = rf"(?:(?!n't{END}){CHARACTER})+"  # of a word, up to a clitic
ABBREVIATIONS = (  # keep their full stop
    "mr|mrs|ms|dr|prof|rev|st|mt|jr|sr|sgt|lt|col|capt|gen|gov|sen|pres|ave|blvd|rd|dept|univ"
    "|inc|co|corp|ltd|bros|etc|vs|ft|jan|feb|mar|apr|aug|sept?|oct|nov|dec|mon|tues?|wed|fri"
)
TOKEN = re.compile(
    rf"""
      (?:{LETTER}\.)+{END}                                      # U.S.  p.m.
    | (?:{ABBREVIATIONS})\.{END} | no\.(?=\s*\d)                # Mr.  No. 5
    | can(?=not{END}) | (?:gon|wan)(?=na{END}) | got(?=ta{END}) # can|not  gon|na
    | (?:gim|lem)(?=me{END}) | 't(?=(?:is|was){END})            # gim|me  't|is
    | n't{END} | '(?:s|m|d|ll|re|ve){END}                       # is|n't  man|'s
    | '(?:n'|(?:em|til|cause|\d0s){END})                        # rock 'n' roll  '50s
    | (?-i:[A-Z]+(?:[&+][A-Z]+)+){END}                          # A&M, but a|&|m
    | [-+]?(?:\d*(?:[.,:]\d+)+ | \d+{END})(?:[-/]{CHARACTER}+)* # 1,000  10:30|am  3-year-old
    | (?:(?:[cdlno] | {LETTER}*qu | ma)'(?={LETTER}{{2}}))?     # o'clock  l'eau  ma'am
      {BODY}(?:(?:[-/_] | (?<={LETTER})[.!?](?={LETTER})){BODY})*  # t-shirt  and/or  x.com
    | [{CJK}]
    | [()\[\]{{}}] | [&$%\#@=+*<>/~^°]
    """,
    re.VERBOSE | re.IGNORECASE,
)
RESPELT = str.maketrans("\u2018\u2019\u20ac\u00a3", "''$#")  # curly quotes, euro, pound
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def tokens(text: str) -> list[str]:
    """Split a caption into the tokens that published scores count.

    They are those of coco-caption's tokenizer (Stanford CoreNLP 3.4.1, lower case, its list of
    punctuation dropped): clitics apart, hyphenated words whole, ``& $ % #`` kept, brackets as
    ``-lrb-``. Abbreviations keep their full stop. On all English captions of Flickr8k and
    Flickr30k more than 99.99 % come out identical. Chinese and Japanese differ on purpose: one
    character is one token.

    >>> tokens("A man's T-shirt isn't wet.")
    ['a', 'man', "'s", 't-shirt', 'is', "n't", 'wet']
    """
    text = unicodedata.normalize("NFC", text).replace("&amp;", "&").translate(RESPELT)
    return [BRACKETS.get(token, token.lower()) for token in TOKEN.findall(text)]


# --------------------------------------------------------------------------- scores


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score one caption per image against its references, of which each image has at least one.

    Returns:
        CIDEr (0 to 1000), BLEU-1 to BLEU-4 and ROUGE-L (0 to 100), all times 100 as papers print
        them; CIDEr's weights come from these very references, so it means little for few images.

    Raises:
        ValueError: no images, an image without references, or not one hypothesis per image.
    """
    return measure(hypotheses, references).scores()


def measure(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    shown: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Measured:
    """What ``score`` sums up, of each image; ``shown`` may tell how far the counting is."""
    _check(references, hypotheses)
    words, reference_words, rouge, counts = [], [], [], []
    for text, image in zip(shown(hypotheses), references, strict=True):
        words.append(tokens(text))
        reference_words.append([tokens(reference) for reference in image])
        rouge += rouge_l(words[-1:], reference_words[-1:])
        counts.append(bleu_counts(words[-1:], reference_words[-1:]))
    cider = np.array(cider_d(words, reference_words))
    return Measured(100 * cider, 100 * np.array(rouge), np.concatenate(counts))


class Measured(NamedTuple):
    """What the scores of N images are made of."""

    cider: Floats  # (N,) times 100
    rouge: Floats  # (N,) times 100
    counts: Ints  # (N, 10), see `bleu_counts`

    def scores(self) -> dict[str, float]:
        """As ``score``."""
        once = self.resampled(np.ones((1, len(self.cider)), np.int64))
        return {name: float(value[0]) for name, value in once.items()}

    def resampled(self, times: Ints) -> dict[str, Floats]:
        """The scores if the images occurred so often: (B, N) → for each score (B,), times 100.

        CIDEr's weights stay those of the N images.
        """
        n_images, of_bleu = times.sum(axis=1), 100 * bleu_of(times @ self.counts)  # (B,), (B, 4)
        scores = {"CIDEr": times @ self.cider / n_images}
        scores |= {f"BLEU-{n}": of_bleu[:, n - 1] for n in range(1, 5)}
        return scores | {"ROUGE-L": times @ self.rouge / n_images}


def bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1, 2, 3 and 4 of the whole corpus, 0 to 1, not smoothed, of nltk's counts.

    The same as coco-caption's (to 1e-7) while every hypothesis has at least four words. For a
    shorter one nltk counts a missed n-gram where coco-caption counts none, so that the score is a
    little lower. Where words are shared but no four in a row, BLEU-4 is not 0 but below 1e-50.

    Source: Papineni et al. 2002, "BLEU", aclanthology.org/P02-1040.
    """
    return [float(value) for value in bleu_of(bleu_counts(hypotheses, references).sum(axis=0))]


def bleu_counts(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> Ints:
    """(N, 10): n-grams that match, n-grams, both of n = 1 to 4; words, the nearest reference's."""
    from nltk.translate.bleu_score import closest_ref_length, modified_precision  # slow: late

    _check(references, hypotheses)
    counts = []
    for words, image in zip(hypotheses, references, strict=True):
        shares = [modified_precision(image, words, n) for n in range(1, 5)]
        matches, ngrams = [p.numerator for p in shares], [p.denominator for p in shares]
        counts.append([*matches, *ngrams, len(words), closest_ref_length(image, len(words))])
    return np.array(counts)


def bleu_of(counts: Ints) -> Floats:
    """BLEU-1 to 4, 0 to 1, of sums of ``bleu_counts``: (..., 10) → (..., 4)."""
    matches, ngrams, n_words = counts[..., :4], counts[..., 4:8], counts[..., 8:9]
    precisions = np.maximum(matches / ngrams, np.finfo(np.float64).tiny)
    means = np.log(precisions).cumsum(axis=-1) / np.arange(1, 5)
    brevity = np.minimum(0, 1 - counts[..., 9:] / np.maximum(1, n_words))
    return np.where(matches[..., :1] > 0, np.exp(means + brevity), 0.0)


def rouge_l(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """ROUGE-L of each image, 0 to 1: how much of a caption is a common subsequence.

    As in coco-caption, the best precision and the best recall may come from two references, and
    recall counts 1.2 times as much.

    Source: Lin 2004, "ROUGE", aclanthology.org/W04-1013.
    """
    _check(references, hypotheses)
    scores = []
    for hypothesis, image in zip(hypotheses, references, strict=True):
        common = [_longest_common(hypothesis, reference) for reference in image]
        precision = max(common) / max(1, len(hypothesis))
        recall = max(n / max(1, len(words)) for n, words in zip(common, image, strict=True))
        weighted = recall + 1.2**2 * precision
        scores.append((1 + 1.2**2) * precision * recall / weighted if weighted else 0.0)
    return scores


def cider_d(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each image, 0 to 10, n-grams weighted by these references; see `CiderD`."""
    _check(references, hypotheses)
    ids: dict[Hashable, int] = {}

    def to_ids(words: Words) -> list[int]:
        return [ids.setdefault(word, len(ids)) for word in words]

    cider = CiderD([[to_ids(words) for words in image] for image in references])
    padded = np.full((len(hypotheses), max(map(len, hypotheses))), -1)
    for row, words in zip(padded, hypotheses, strict=True):
        row[: len(words)] = to_ids(words)
    return [float(value) for value in cider.scores(np.arange(len(hypotheses)), padded)]


class CiderD:
    """CIDEr-D against references that are prepared once, for batches of hypotheses.

    With h and r the counts of an n-gram in a hypothesis and in a reference, l their lengths in
    bigrams, and idf = ln(images) - ln(max(1, images whose references hold the n-gram)),

        CIDEr-D = 10 * mean over references and n = 1 to 4 of
                  exp(-(l_h - l_r)^2 / (2 * 6^2)) * sum(min(h, r) * r * idf^2) / (|h idf| |r idf|)

    where sum and norms run over the n-grams of one n. Repeating a word is not rewarded, and a
    length unlike the reference's is punished. With one image every idf is 0, and so is the score.

    An n-gram is a 64-bit hash of its ids, so that numpy scores a whole batch at once. Hashes of
    different n are never equal; that any two are equal among the 1.9 million n-grams of
    Flickr30k has a probability below 1e-6.

    Args:
        references: for each image its captions, each a sequence of token ids, 0 or more. The idf
            are those of these images.

    Raises:
        ValueError: no images, or an image without references.

    Source: Vedantam et al. 2015, arXiv:1411.5726, section 6; the numbers are coco-caption's.
    """

    # In the shapes: N images, C references of all images, M hypotheses, T tokens, P pairs of a
    # hypothesis and a reference of its image, G n-grams (the distinct ones of each sentence),
    # R runs (the distinct n-grams of each image).

    def __init__(self, references: Sequence[Sequence[Sequence[int]]]) -> None:
        _check(references)
        captions = [caption for image in references for caption in image]
        self._n_references = np.array([len(image) for image in references])  # (N,)
        self._first_reference = np.cumsum(self._n_references) - self._n_references  # (N,)
        self._n_tokens = np.array([len(caption) for caption in captions])  # (C,)
        image_index = np.repeat(np.arange(len(references), dtype=np.int32), self._n_references)

        # Sorted by image, then n-gram: the references of an image that hold an n-gram are a run.
        ngrams = _count_by_image(captions, self._n_tokens, image_index)  # (G,)
        image = image_index[ngrams.sentence]  # (G,)
        starts = _find_runs(ngrams.hashes, image)  # (R,)
        self._starts = np.append(starts, len(image)).astype(np.int32)  # (R+1,)
        self._reference, self._counts = ngrams.sentence, ngrams.counts  # (G,), (G,)
        n_runs = np.bincount(image[starts], minlength=len(references))  # (N,)
        hashes = ngrams.hashes[starts]  # (R,)

        # An n-gram of one image weighs as much as one of none. Most are: they need no entry.
        distinct, n_images = np.unique(hashes, return_counts=True)
        distinct, n_images = distinct[n_images > 1], n_images[n_images > 1]
        self._frequent = _HashTable(distinct, np.array([len(distinct)]))
        self._idf: Floats = math.log(len(references)) - np.log(np.append(n_images, 1))
        self._norms = ngram_norms(ngrams, self._weigh(ngrams), len(captions))  # (C, 4)

        del ngrams, image, starts  # to make room for the largest table
        self._runs = _HashTable(hashes, n_runs)

    def scores(self, image_index: NDArray[np.integer], hypotheses: NDArray[np.integer]) -> Floats:
        """CIDEr-D of each hypothesis, 0 to 10, higher is better.

        Args:
            image_index: (M,) the image of each hypothesis, an index of ``references``.
            hypotheses: (M, T) token ids; those below 0 are padding.

        Returns:
            (M,) float64.
        """
        sentence, position = np.nonzero(hypotheses >= 0)
        n_tokens = np.bincount(sentence, minlength=len(hypotheses))  # (M,)
        ngrams, _ = count_ngrams(hypotheses[sentence, position], sentence)  # (G,)
        idf = self._weigh(ngrams)  # (G,)
        norms = ngram_norms(ngrams, idf, len(hypotheses))  # (M, 4)

        n_references = self._n_references[image_index]  # (M,)
        first_reference = self._first_reference[image_index]  # (M,)
        hypothesis, reference = expand(first_reference, n_references)  # (P,), (P,)
        first_pair = np.cumsum(n_references) - n_references  # (M,)

        # Each n-gram of a hypothesis beside the same one of each reference that holds it.
        run = self._runs.find(ngrams.hashes, image_index[ngrams.sentence])  # (G,)
        shared = np.flatnonzero(run >= 0)
        run = run[shared]
        index, other = expand(self._starts[run], self._starts[run + 1] - self._starts[run])
        shared = shared[index]
        h, r = ngrams.counts[shared], self._counts[other]
        pair = (first_pair - first_reference)[ngrams.sentence[shared]] + self._reference[other]
        products = sum_by(
            4 * pair + ngrams.n_minus_1[shared],
            idf[shared] ** 2 * np.minimum(h, r) * r,
            4 * len(hypothesis),
        ).reshape(-1, 4)  # (P, 4)

        norms = norms[hypothesis] * self._norms[reference]  # (P, 4)
        cosines = np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)
        gaps = _n_bigrams(n_tokens[hypothesis]) - _n_bigrams(self._n_tokens[reference])  # (P,)
        similarities = np.exp(-(gaps**2) / (2 * 6**2)) * cosines.mean(axis=1)  # (P,)
        means: Floats = sum_by(hypothesis, similarities, len(hypotheses)) / n_references
        return 10 * means

    def _weigh(self, ngrams: Ngrams) -> Floats:
        """(G,) idf of n-grams; not found is -1, the last entry: the idf of all others."""
        return self._idf[self._frequent.find(ngrams.hashes)]


class Ngrams(NamedTuple):
    """The distinct n-grams of each of several sentences."""

    hashes: Hashes  # (G,)
    sentence: NDArray[np.int32]  # (G,)
    counts: NDArray[np.int32]  # (G,) in this sentence

    @property
    def n_minus_1(self) -> Ints:
        """(G,) which the last two bits of a hash hold."""
        return (self.hashes & np.uint64(3)).astype(np.int64)


def count_ngrams(tokens: NDArray[np.integer], sentence: Ints) -> tuple[Ngrams, Ints]:
    """Count the n-grams of one to four tokens in each sentence.

    Args:
        tokens: (W,) ids of all sentences, one sentence after the other.
        sentence: (W,) the sentence of each token, ascending.

    Returns:
        The n-grams, and (G,) where in ``tokens`` each ends.
    """
    hashes, ends, ngram = [], [], np.full(len(tokens), NO_TOKEN)
    for n in range(1, 5):
        ngram = combine_hash(ngram[: max(0, len(tokens) - n + 1)], tokens[n - 1 :])
        is_whole = sentence[: len(ngram)] == sentence[n - 1 :]
        hashes.append(ngram[is_whole] & ~np.uint64(3) | np.uint64(n - 1))
        ends.append(n - 1 + np.flatnonzero(is_whole))
    ngram, end = np.concatenate(hashes), np.concatenate(ends)

    keys = combine_hash(ngram, sentence[end])
    order = np.argsort(keys)
    starts = _find_runs(keys[order])
    count = np.diff(starts, append=len(order)).astype(np.int32)
    end = end[order[starts]]
    return Ngrams(ngram[order[starts]], sentence[end].astype(np.int32), count), end


def _count_by_image(
    captions: Sequence[Sequence[int]], n_tokens: Ints, image_index: NDArray[np.int32]
) -> Ngrams:
    """Count the n-grams of many captions, a block at a time since sorting takes memory.

    Args:
        captions: (C,) token ids.
        n_tokens: (C,) lengths.
        image_index: (C,) the image of each caption, ascending.

    Returns:
        (G,) sorted by image, then hash.
    """
    most = sum(int(np.maximum(n_tokens - n, 0).sum()) for n in range(4))
    hashes = np.empty(most, np.uint64)
    sentence, counts = np.empty((2, most), np.int32)
    end = 0
    for first in range(0, int(image_index[-1]) + 1, BLOCK):
        block = slice(*np.searchsorted(image_index, [first, first + BLOCK]))
        tokens = np.fromiter(chain.from_iterable(captions[block]), np.int64)
        sentences = np.arange(len(captions))[block].repeat(n_tokens[block])
        counted, _ = count_ngrams(tokens, sentences)
        order = np.lexsort((counted.hashes, image_index[counted.sentence]))
        start, end = end, end + len(order)
        hashes[start:end] = counted.hashes[order]
        sentence[start:end] = counted.sentence[order]
        counts[start:end] = counted.counts[order]
    return Ngrams(hashes[:end], sentence[:end], counts[:end])


def ngram_norms(ngrams: Ngrams, weights: Floats, n_sentences: int) -> Floats:
    """(n_sentences, 4) norms of the counts, weighted by (G,), of each n."""
    cell = 4 * ngrams.sentence + ngrams.n_minus_1
    squares = sum_by(cell, (ngrams.counts * weights) ** 2, 4 * n_sentences)
    return np.sqrt(squares).reshape(-1, 4)


def combine_hash(hashes: Hashes, numbers: NDArray[np.integer]) -> Hashes:
    """Combine each hash with a number; the multiplier is from Steele and Vigna 2021."""
    mixed = (hashes ^ numbers.astype(np.uint64)) * np.uint64(0xD1342543DE82EF95)
    mixed ^= mixed >> np.uint64(32)
    return mixed


class _HashTable:
    """Where a hash is in a sorted list, for several lists at once: linear probing in numpy.

    Each list is spread over slots, twice as many as it has hashes. A hash belongs at its share of
    the range of all hashes, or else at the first free slot after.
    """

    def __init__(self, hashes: Hashes, lengths: Ints) -> None:
        """Take (R,) hashes: the lists, each in ascending order, one after the other."""
        self._n_homes: Hashes = 2 * lengths.astype(np.uint64)
        which = np.arange(len(lengths)).repeat(lengths)  # (R,) list
        # A hash gets its home, or the slot after the hash before it in the same list: `which << 32`
        # is above any slot of the lists before.
        offset = (which << 32) - np.arange(len(hashes))
        slots = np.maximum.accumulate(self._home(hashes, which) + offset) - offset  # (R,)
        n_slots = 2 * lengths
        np.maximum.at(n_slots, which, slots + 1)
        n_slots += 1  # a free one, where every search ends
        self._starts = np.cumsum(n_slots) - n_slots
        slots += self._starts[which]
        self._hashes = np.full(n_slots.sum(), FREE)
        self._hashes[slots] = hashes
        self._rows = np.full(n_slots.sum(), -1, np.int32)
        self._rows[slots] = np.arange(len(hashes))

    def find(self, hashes: Hashes, which: NDArray[np.integer] | int = 0) -> NDArray[np.int32]:
        """Row (of R) of each hash in the list that ``which`` numbers; -1 where it is not."""
        slots = self._starts[which] + self._home(hashes, which)
        behind = np.flatnonzero(self._hashes[slots] < hashes)
        while behind.size:
            slots[behind] += 1
            behind = behind[self._hashes[slots[behind]] < hashes[behind]]
        rows: NDArray[np.int32] = self._rows[slots]
        rows[self._hashes[slots] != hashes] = -1
        return rows

    def _home(self, hashes: Hashes, which: NDArray[np.integer] | int) -> Ints:
        half = np.uint64(32)
        homes: Hashes = (hashes >> half) * self._n_homes[which] >> half
        return homes.astype(np.int64)


def _find_runs(*columns: NDArray[np.integer]) -> Ints:
    """Where each run of equal neighbours begins."""
    is_start = np.zeros(len(columns[0]), bool)
    is_start[:1] = True
    for column in columns:
        is_start[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(is_start)


def expand(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> tuple[Ints, Ints]:
    """All numbers of the ranges ``start, start + 1, ..``: (index of the range, number)."""
    index = np.arange(len(starts)).repeat(lengths)
    offsets = starts - (np.cumsum(lengths) - lengths)
    return index, np.arange(len(index)) + offsets[index]


def sum_by(cell: Ints, values: Floats, n_cells: int) -> Floats:
    """Sum the values of each cell."""
    return np.bincount(cell, values, n_cells).astype(np.float64, copy=False)


def _n_bigrams(n_tokens: Ints) -> Ints:
    return np.maximum(n_tokens - 1, 0)


def _longest_common(first: Words, second: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)  # row[j]: with the words of first so far and j of second
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            longest = diagonal + 1 if word == other else max(row[j], row[j - 1])
            diagonal, row[j] = row[j], longest
    return row[-1]


def _check(
    references: Sequence[Sequence[Words]], hypotheses: Sequence[Words] | None = None
) -> None:
    if not references:
        raise ValueError("no images to score")
    n = len(references) if hypotheses is None else len(hypotheses)
    if n != len(references):
        raise ValueError(f"{n} hypotheses for {len(references)} images: give one an image")
    for index, image in enumerate(references):
        if not image:
            raise ValueError(f"image {index} has no references: give at least one, or leave it out")
