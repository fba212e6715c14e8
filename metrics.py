"""Scores of captions: CIDEr-D, BLEU-1 to BLEU-4 and ROUGE-L. Text in, numbers out.

`score` gives the row of a paper's table. The functions under it take tokens, as `tokens` makes
them: those of the tokenizer behind published scores, on both sides, since a full stop kept on one
side only moves BLEU-4 by two points. No files, no models, no devices.
"""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

FEW = 50  # images: with fewer, CIDEr's document frequencies mean little

Words = Sequence[Hashable]  # one caption's tokens; word ids do as well
Ngram = tuple[Hashable, ...]

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
    """Split a caption into the words that official scores count.

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
    """Score one caption an image against what people wrote for it.

    Args:
        hypotheses: one caption an image.
        references: for each image its captions, at least one.

    Returns:
        CIDEr (0 to 1000), BLEU-1 to BLEU-4 and ROUGE-L (0 to 100), all times 100 as papers print
        them; CIDEr's weights come from these very references, so it means little for few images.

    Raises:
        ValueError: no images, an image without references, or not one hypothesis an image.
    """
    words = [tokens(text) for text in hypotheses]
    truth = [[tokens(text) for text in image] for image in references]
    cider, rouge = cider_d(words, truth), rouge_l(words, truth)
    scores = {"CIDEr": sum(cider) / len(cider)}
    scores |= {f"BLEU-{n}": value for n, value in enumerate(bleu(words, truth), 1)}
    scores["ROUGE-L"] = sum(rouge) / len(rouge)
    return {name: 100 * value for name, value in scores.items()}


def score_each(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> list[dict[str, float]]:
    """CIDEr and ROUGE-L of each image, times 100; their means are those of ``score``.

    BLEU is left out: of a single caption, most often without four words in a row right, it says
    nothing.
    """
    words = [tokens(text) for text in hypotheses]
    truth = [[tokens(text) for text in image] for image in references]
    return [
        {"CIDEr": 100 * cider, "ROUGE-L": 100 * rouge}
        for cider, rouge in zip(cider_d(words, truth), rouge_l(words, truth), strict=True)
    ]


def bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1, 2, 3 and 4 of the whole corpus, 0 to 1, not smoothed, by nltk.

    The same as coco-caption's (to 1e-7) while every hypothesis has at least four words. For a
    shorter one nltk counts a missed n-gram where coco-caption counts none, so that the score is a
    little lower. Where words are shared but no four in a row, BLEU-4 is not 0 but below 1e-50.

    Source: Papineni et al. 2002, "BLEU", aclanthology.org/P02-1040.
    """
    from nltk.translate.bleu_score import corpus_bleu  # imported late: it is slow

    _check(references, hypotheses)
    weights = [(1 / n,) * n for n in range(1, 5)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*The hypothesis contains 0 counts", UserWarning)
        return [float(value) for value in corpus_bleu(references, hypotheses, weights)]


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
    cider = CiderD(references)
    return [cider.score(index, hypothesis) for index, hypothesis in enumerate(hypotheses)]


class CiderD:
    """CIDEr-D against references that are prepared once, for any number of hypotheses.

    A caption is compared with each reference by the cosine of their n-gram counts (n = 1 to 4),
    in which n-grams that fit many images count little. Repeating a word is not rewarded, and a
    length unlike the reference's is punished. With one image every n-gram weighs 0, and so does
    the score.

    Args:
        references: for each image its tokenised captions; n-grams are counted in these images.

    Raises:
        ValueError: no images, or an image without references.

    Source: Vedantam et al. 2015, arXiv:1411.5726, section 6; the numbers are coco-caption's.
    """

    def __init__(self, references: Sequence[Sequence[Words]]) -> None:
        _check(references)
        n_images: Counter[Ngram] = Counter()
        for image in references:
            n_images.update(set().union(*(_ngrams(words) for words in image)))
        # An n-gram of one image weighs as much as one never seen. Most are: they need no entry.
        self._rarest = math.log(len(references))
        self._idf = {ngram: self._rarest - math.log(n) for ngram, n in n_images.items() if n > 1}
        self._references = references
        self._image = lru_cache(maxsize=256)(self._prepare)

    def score(self, index: int, hypothesis: Words) -> float:
        """CIDEr-D of a hypothesis for the image at ``index``: 0 to 10, higher is better.

        Images in use stay prepared, so score all hypotheses of an image close together.
        """
        image = self._image(index)
        n_bigrams = max(0, len(hypothesis) - 1)
        penalties = [math.exp(-((n_bigrams - n) ** 2) / (2 * 6**2)) for n in image.n_bigrams]
        weights, norms = self._vector(hypothesis)
        products = [0.0] * 4
        for ngram, weight in weights.items():
            for reference, theirs, normed in image.holders.get(ngram, ()):
                products[len(ngram) - 1] += penalties[reference] * min(weight, theirs) * normed
        cosines = [product / norm for product, norm in zip(products, norms, strict=True) if norm]
        return 10 * sum(cosines) / (4 * len(penalties))

    def _vector(self, words: Words) -> tuple[dict[Ngram, float], list[float]]:
        """Weigh the n-grams of a caption; the norms are those of n = 1 to 4."""
        weights = {}
        squares = [0.0] * 4
        for ngram, count in _ngrams(words).items():
            weights[ngram] = weight = count * self._idf.get(ngram, self._rarest)
            squares[len(ngram) - 1] += weight**2
        return weights, [math.sqrt(square) for square in squares]

    def _prepare(self, index: int) -> _Image:
        """List for each n-gram which references of the image hold it."""
        image = self._references[index]
        holders: dict[Ngram, list[tuple[int, float, float]]] = {}
        for reference, words in enumerate(image):
            weights, norms = self._vector(words)
            for ngram, weight in weights.items():
                if weight:
                    holder = (reference, weight, weight / norms[len(ngram) - 1])
                    holders.setdefault(ngram, []).append(holder)
        return _Image([max(0, len(words) - 1) for words in image], holders)


class _Image(NamedTuple):
    """One image's references, arranged for `CiderD.score`."""

    n_bigrams: list[int]  # of each reference
    holders: dict[Ngram, list[tuple[int, float, float]]]  # reference, weight, weight / norm


def _ngrams(words: Words) -> Counter[Ngram]:
    """Count the n-grams of one to four words."""
    counts: Counter[Ngram] = Counter()
    for n in range(1, 5):
        counts.update(zip(*(words[start:] for start in range(n)), strict=False))
    return counts


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
    if hypotheses is not None and len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses for {len(references)} images: give one an image"
        )
    for index, image in enumerate(references):
        if not image:
            raise ValueError(f"image {index} has no references: give at least one, or leave it out")
