"""What scores are held against: one sentence for every picture, people, published systems.

A score alone says little: 45 BLEU-1 is what one constant sentence gets. No files, no models.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import metrics
from corpus import Corpus, Example
from splits import PUBLISHED_SPLIT
from tables import text_lines

ENOUGH = 3  # captions of a picture, to hold one against the others
N_PUBLISHED = 1000  # images of the published test splits, of five captions each
JUDGES = 400  # training images that choose the sentence
ROUNDS = ((1000, 20), (100, 100), (10, JUDGES))  # how many sentences are tried on how many images

# SHA-256 of the sorted names of Flickr8k's 1,000 validation images, one a line.
FLICKR8K_VAL = "51c9cff8a4e3cd845101a5848b8f8d33681429c6b8395d9fddf581ce5a69e942"


@dataclass(frozen=True)
class Yardstick:
    """Something with scores of the same split.

    Attributes:
        name: for the head of a column.
        meaning: what it is and what it tells, in sentences.
        scores: name → times 100; a published system has not all.
        source: where they are from, if they were not computed here.
    """

    name: str
    meaning: str
    scores: dict[str, float]
    source: str = ""


Shown = Callable[[Sequence[str]], Iterable[str]]  # as ``metrics.measure`` takes it


def yardsticks(
    corpus: Corpus, split: str, examples: Sequence[Example], *, shown: Shown = iter
) -> list[Yardstick]:
    """Those there are for the examples of a split whose pictures could be read."""
    references = [example.captions for example in examples]
    training = [example.captions for example in corpus.splits["train"]]
    found = [one_sentence(training, references, shown=shown), people(references, shown=shown)]
    is_whole = split == "test" and len(examples) == len(corpus.splits["test"])
    return [*filter(None, found), *(published(corpus) if is_whole else [])]


def one_sentence(
    training: Sequence[Sequence[str]], references: Sequence[Sequence[str]], *, shown: Shown = iter
) -> Yardstick | None:
    """The training caption that describes other training images best, said of every image.

    Of sentences drawn at random the best tenth goes on to the next round, on more images, by
    CIDEr-D. The references have no say, so that the score is as honest as a model's.

    Args:
        training: captions of each training image.
        references: captions of each image that is scored.
        shown: may tell how far the scoring is.
    """
    if len(training) < 2:
        return None
    images = random.Random(0).sample(training, len(training))
    n_judges = min(JUDGES, len(images) // 2)
    judges, others = images[:n_judges], images[n_judges:]  # no sentence is tried on its own image
    sentences = list(dict.fromkeys(image[0] for image in others))
    ids: dict[str, int] = {}

    def to_ids(text: str) -> list[int]:
        return [ids.setdefault(word, len(ids)) for word in metrics.tokens(text)]

    cider = metrics.CiderD([[to_ids(text) for text in image] for image in judges])
    for n_sentences, n_images in ROUNDS:
        sentences, n_images = sentences[:n_sentences], min(n_images, n_judges)
        words = [to_ids(text) for text in sentences]
        padded = np.full((len(words), max(1, *map(len, words))), -1)
        for row, numbers in zip(padded, words, strict=True):
            row[: len(numbers)] = numbers
        image_index = np.tile(np.arange(n_images), len(words))
        scores = cider.scores(image_index, padded.repeat(n_images, axis=0))
        order = np.argsort(-scores.reshape(-1, n_images).mean(axis=1), kind="stable")
        sentences = [sentences[i] for i in order]
    best = " ".join(sentences[0].split()).rstrip(" .")
    return Yardstick(
        "one sentence",
        f"The same words for every picture: \u201c{best}\u201d, the training caption that "
        "fits other pictures best, of those tried. A model that is not well above it has learned "
        "how captions sound, not what is on a picture.",
        metrics.measure([best] * len(references), references, shown=shown).scores(),
    )


def people(references: Sequence[Sequence[str]], *, shown: Shown = iter) -> Yardstick | None:
    """One caption of each image, drawn at random, against its others; if all have enough."""
    if min(map(len, references)) < ENOUGH:
        return None
    drawn = random.Random(0)
    captions, others = [], []
    for image in references:
        number = drawn.randrange(len(image))
        captions.append(image[number])
        others.append([*image[:number], *image[number + 1 :]])
    return Yardstick(
        "people",
        "What a person wrote, held against what the others wrote of the same picture. People word "
        "things differently, so they are far from the top themselves; a model that only uses the "
        "commonest words can pass them, in BLEU above all. They have one caption fewer to agree "
        "with than the model has.",
        metrics.measure(captions, others, shown=shown).scores(),
    )


# ------------------------------------------------------------------------------ published

NAMES = ("CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L")
PLAIN = "A CNN and an LSTM as here, the CNN frozen, beam 5."
ATTENTION = "A frozen ResNet-50 and an LSTM that looks at parts of the picture (attention), beam 5."
FINETUNED = "A ResNet-152 that learns too, and an LSTM with adaptive attention, beam 5."
SHOW_TELL = "https://github.com/sulabhkatiyar/show_tell"
ADAPTIVE = "https://github.com/sulabhkatiyar/Adaptive_Att"
NIHAL = "https://github.com/nihalreddy1449/image-captioning-flickr30k"

PUBLISHED = {  # name, meaning, source, scores in the order of NAMES
    "Flickr30k": (
        ("Show and Tell, VGG-16", PLAIN, SHOW_TELL, (36.3, 61.0, 41.0, 27.4, 18.4, 41.6)),
        ("attention", ATTENTION, NIHAL, (48.8, 62.3, 43.7, 30.3, 21.0, 45.5)),
        (
            *("attention, self-critical", "The same after self-critical training, beam 2.", NIHAL),
            (56.8, 68.1, 49.1, 34.9, 24.7, 46.7),
        ),
    ),
    "Flickr8k": (
        ("Show and Tell, VGG-16", PLAIN, SHOW_TELL, (47.9, 60.5, 42.1, 28.9, 19.7, 44.3)),
        ("adaptive attention", FINETUNED, ADAPTIVE, (58.9, 65.9, 48.0, 33.9, 23.5, 47.6)),
    ),
}


def published(corpus: Corpus) -> list[Yardstick]:
    """The systems that were scored on this very test split; of other data none."""
    data = _published_split(corpus)
    return [
        Yardstick(name, meaning, dict(zip(NAMES, scores, strict=True)), source)
        for name, meaning, source, scores in PUBLISHED.get(data, ())
    ]


def _published_split(corpus: Corpus) -> str:
    """Of which data set the test split is the one in papers; empty: of none that is known."""
    images = corpus.splits["test"]
    if len(images) != N_PUBLISHED or any(len(image.captions) != 5 for image in images):
        return ""
    names = {split: {Path(e.name).name for e in corpus.splits[split]} for split in ("val", "test")}
    if names["test"] == set(text_lines(PUBLISHED_SPLIT / "split_test.txt")):
        return "Flickr30k"
    val = hashlib.sha256("\n".join(sorted(names["val"])).encode()).hexdigest()
    return "Flickr8k" if val == FLICKR8K_VAL else ""
