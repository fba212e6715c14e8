"""Score a trained model: `python evaluate.py --split val`.

Lets the model describe a split's images freely and compares with what people wrote. Prints a
table and, as the last line, the same as one line of JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cli
from cli import option


@dataclass(frozen=True)
class Settings:
    """Score a trained model on a split of a data set."""

    checkpoint: Path = option(Path("checkpoints/best.pt"), "the trained model")
    split: str = option("val", "which images", choices=("train", "val", "test"))
    data: Path | None = option(None, "folder with captions and photos; left out, as in training")
    captions: str | None = option(None, "captions file in that folder; left out, as in training")
    beam_size: int | None = option(
        None, "sentences kept while searching, 1 is greedy; left out, as in training", at_least=1
    )
    max_words: int | None = option(None, "longest caption; left out, as in training", at_least=1)
    length_penalty: float | None = option(
        None, "0 favours short captions, 1 long ones; left out, as in training", at_least=0
    )
    cache: Path = option(Path("cache"), "where computed image vectors are kept")
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    quiet: bool = option(False, "no progress and notes, only results and errors")
    debug: bool = option(False, "show where an error comes from")

    def __post_init__(self) -> None:
        cli.check(self)


if __name__ == "__main__":  # --help and typos answer at once, before the slow imports
    cli.parse(Settings)

import json
import logging
from functools import partial

import checkpoint
import features
import metrics
from loader import DataError, load_corpus

log = logging.getLogger(__name__)

FEW = 50  # images: with fewer, CIDEr's document frequencies mean little


def evaluate(settings: Settings) -> None:
    """Describe the split's images, score the captions, print the scores."""
    device = cli.device(settings.device)
    trained = checkpoint.load(settings.checkpoint, device)
    data = settings.data or Path(trained.settings["data"])
    captions_name = settings.captions
    if captions_name is None:
        captions_name = "" if settings.data else trained.settings["captions"]
    corpus = load_corpus(data, captions_name)
    log.info(corpus.describe())
    examples = corpus.splits[settings.split]
    if not examples:
        filled = ", ".join(split for split, images in corpus.splits.items() if images)
        raise DataError(
            f"the {settings.split} split of {corpus.captions.path} is empty: give --split {filled}."
        )
    examples, rows = features.prepare_examples(
        examples,
        trained.model,
        image_size=trained.image_size,
        cache=settings.cache,
        device=device,
        progress=partial(cli.progress, about="looking at pictures", unit="picture"),
    )
    if len(examples) < FEW:
        log.warning(f"warning: CIDEr means little on fewer than {FEW} images.")

    search = trained.search(settings.beam_size, settings.max_words, settings.length_penalty)
    found = trained.model.caption(rows, **search)
    captions = [trained.vocabulary.text(hypotheses[0].tokens) for hypotheses in found]
    references = [example.captions for example in examples]
    _print(settings, search["beam_size"], captions, metrics.score(captions, references))


def _print(
    settings: Settings, beam_size: int, captions: list[str], scores: dict[str, float]
) -> None:
    """A table for people, a line of JSON for scripts."""
    n_images, distinct = len(captions), 100 * len(set(captions)) / len(captions)
    print(f"{settings.checkpoint} on {n_images:,} {settings.split} images, beam {beam_size}\n")
    for name, value in scores.items():
        print(f"{name:<20}{value:6.1f}")
    print(f"{'distinct captions':<20}{distinct:6.1f} %\n")
    line = {**scores, "images": n_images, "split": settings.split, "beam_size": beam_size}
    print(json.dumps(line))


def main(argv: list[str] | None = None) -> int:
    """Score as the command line says; the exit status."""
    settings, _ = cli.parse(Settings, argv)
    return cli.run(lambda: evaluate(settings), settings, errors=(DataError,))


if __name__ == "__main__":
    raise SystemExit(main())
