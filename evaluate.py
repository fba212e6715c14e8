"""Score a trained model: `python evaluate.py --split val`, or several that speak as one.

Lets the model describe a split's images freely and compares with what people wrote. Prints a
table and, as the last line, the same as one line of JSON; `--output report.html` writes a page to
browse.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import cli
from cli import option


@dataclass(frozen=True)
class Settings(cli.SearchSettings):
    """Score a trained model on a split of a data set."""

    checkpoint: tuple[Path, ...] = option(
        (Path("checkpoints/best.pt"),), "the trained model, or several that speak as one"
    )
    split: str = option("val", "which images", choices=("train", "val", "test"))
    data: Path | None = option(None, "folder with captions and photos; left out, as in training")
    captions: str | None = option(None, "captions file in that folder; left out, as in training")
    output: Path | None = option(None, "write a report for each image: .html or .json")
    overwrite: bool = option(False, "replace the output file if it exists")
    coco: bool = option(False, "score with coco-caption too: needs pycocoevalcap and Java")
    cache: Path = option(Path("cache"), "where computed image vectors are kept")
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    quiet: bool = option(False, "no progress and notes, only results and errors")
    debug: bool = option(False, "show where an error comes from")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output and self.output.suffix not in (".html", ".json"):
            raise ValueError(f"--output must end in .html or .json, got {self.output}")


if __name__ == "__main__":  # before the slow imports
    cli.answer_at_once(Settings)

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

import checkpoint
import features
import metrics
import report
from checkpoint import Checkpoint
from loader import Corpus, DataError, Example, load_corpus
from model import Hypothesis, Search, caption

log = logging.getLogger(__name__)


def evaluate(settings: Settings) -> int:
    """Describe the split's images, score the captions, print the scores, write the report.

    Returns:
        The exit status, which tells whether all pictures could be read.
    """
    if settings.output and settings.output.exists() and not settings.overwrite:
        raise DataError(f"{settings.output} exists: give --overwrite to replace it.")
    models = checkpoint.load_ensemble(settings.checkpoint, cli.device(settings.device))
    corpus = _corpus(settings, models[0])
    search = models[0].search(vars(settings))
    torch.manual_seed(settings.seed)
    examples, found = _describe(settings, models, corpus.splits[settings.split], search)
    if len(examples) < metrics.FEW:
        log.warning(f"warning: CIDEr means little on fewer than {metrics.FEW} images.")

    vocabulary = models[0].vocabulary
    captions = [vocabulary.text(hypotheses[0].tokens) for hypotheses in found]
    references = [example.captions for example in examples]
    scores: dict[str, float] = metrics.score(captions, references)
    official = _official(captions, references) if settings.coco else {}
    habits = _habits(models[0], captions, found, references, corpus)
    asked = {
        "checkpoint": " ".join(map(str, settings.checkpoint)),
        "split": settings.split,
        "images": len(captions),
        **{name: value for name, value in asdict(search).items() if name != "not_last"},
        "seed": settings.seed,
    }
    theirs = {f"{name} (official)": value for name, value in official.items()}
    summary = {**scores, **theirs, **habits}
    _print({**asked, **summary}, scores, official, habits)
    if settings.output:
        per_image = metrics.score_each(captions, references)
        rows = [
            report.Row(example.name, text, hypotheses[0].log_prob, each, example.captions)
            for example, text, hypotheses, each in zip(
                examples, captions, found, per_image, strict=True
            )
        ]
        report.write(
            settings.output,
            rows,
            summary=summary,
            settings=asked,
            pictures=[example.path for example in examples],
            progress=partial(cli.progress, about="writing the report", unit="picture"),
        )
        log.info(f"written to {settings.output}")
    is_whole = len(examples) == len(corpus.splits[settings.split])
    return cli.DONE if is_whole else cli.SOME_FAILED


def _corpus(settings: Settings, trained: Checkpoint) -> Corpus:
    """The data set asked for, or the one of the training; its split is not empty."""
    data = settings.data or Path(trained.settings["data"])
    captions_name = settings.captions
    if captions_name is None:
        captions_name = "" if settings.data else trained.settings["captions"]
    if not settings.data and not data.exists():
        raise DataError(f"{data}, where the model was trained, is not there: give --data.")
    corpus = load_corpus(data, captions_name)
    log.info(corpus.describe())
    if not corpus.splits[settings.split]:
        filled = ", ".join(split for split, images in corpus.splits.items() if images)
        raise DataError(
            f"the {settings.split} split of {corpus.captions.path} is empty: give --split {filled}."
        )
    return corpus


def _describe(
    settings: Settings, models: Sequence[Checkpoint], examples: list[Example], search: Search
) -> tuple[list[Example], list[list[Hypothesis]]]:
    """The examples whose pictures can be read, and what the models propose for each."""
    seen: list[dict[str, Tensor]] = []  # each model's image vectors, by the image's name
    for trained in models:
        examples, rows = features.prepare_examples(
            examples,
            trained.model,
            image_size=trained.image_size,
            cache=settings.cache,
            device=trained.model.words.weight.device,
            progress=partial(cli.progress, about="looking at pictures", unit="picture"),
        )
        seen.append({e.name: row for e, row in zip(examples, rows, strict=True)})
    images = [[vectors[example.name] for example in examples] for vectors in seen]
    return examples, caption([trained.model for trained in models], images, search)


def _habits(
    trained: Checkpoint,
    captions: Sequence[str],
    found: Sequence[Sequence[Hypothesis]],
    references: Sequence[Sequence[str]],
    corpus: Corpus,
) -> dict[str, float]:
    """What exposes a dull model, which scores alone do not."""
    said = [metrics.tokens(text) for text in captions]
    known = {
        tuple(metrics.tokens(text))
        for example in corpus.splits["train"]
        for text in example.captions
    }
    lengths = [len(metrics.tokens(text)) for image in references for text in image]
    hanging = set(trained.vocabulary.hanging)
    used = {word for hypotheses in found for word in hypotheses[0].tokens}
    n = len(captions) / 100
    return {
        "distinct captions, %": len(set(captions)) / n,
        "vocabulary used, %": 100 * len(used) / (len(trained.vocabulary) - 4),
        "copied from training, %": sum(tuple(words) in known for words in said) / n,
        "mean length, words": sum(map(len, said)) / len(said),
        "people's mean length": sum(lengths) / len(lengths),
        "ending on an article or preposition, %": (
            sum(not hanging.isdisjoint(best.tokens[-1:]) for best, *_ in found) / n
        ),
    }


def _official(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores of coco-caption itself, x 100; nothing but a warning where it does not run."""
    if not shutil.which("java"):
        log.warning("warning: --coco needs Java: install it (Debian: default-jre-headless).")
        return {}
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.rouge.rouge import Rouge
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError as error:
        log.warning(f"warning: --coco needs `pip install pycocoevalcap` ({error}).")
        return {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
            tokenizer = PTBTokenizer()
            theirs = tokenizer.tokenize(
                {
                    i: [{"caption": " ".join(t.split())} for t in image]
                    for i, image in enumerate(references)
                }
            )
            ours = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
            scores = dict(
                zip(
                    ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"),
                    Bleu(4).compute_score(theirs, ours)[0],
                    strict=True,
                )
            )
            for name, scorer in (("CIDEr", Cider()), ("ROUGE-L", Rouge()), ("METEOR", Meteor())):
                scores[name] = scorer.compute_score(theirs, ours)[0]
    except Exception as error:  # a Java process can fail in any way
        log.warning(f"warning: --coco failed, its scores are left out: {error!r}")
        return {}
    return {name: 100 * float(value) for name, value in scores.items()}


def _print(
    summary: dict[str, object],
    scores: dict[str, float],
    official: dict[str, float],
    habits: dict[str, float],
) -> None:
    """A table for people, a line of JSON for scripts."""
    way = f"beam {summary['beam_size']}"
    if summary["temperature"]:
        way = f"drawn at temperature {summary['temperature']:g}"
    print(f"{summary['checkpoint']} on {summary['images']:,} {summary['split']} images, {way}\n")
    width = max(map(len, habits))
    if official:
        print(f"{'':<{width}}    ours  official")
    for name in dict.fromkeys([*scores, *official]):
        ours = f"{scores[name]:8.1f}" if name in scores else " " * 8
        theirs = f"{official[name]:10.1f}" if name in official else ""
        print(f"{name:<{width}}{ours}{theirs}")
    print()
    for name, value in habits.items():
        print(f"{name:<{width}}{value:8.1f}")
    print(f"\n{json.dumps(summary)}")


def main(argv: list[str] | None = None) -> int:
    """Score as the command line says; the exit status."""
    settings, _ = cli.parse(Settings, argv)
    return cli.run(lambda: evaluate(settings), settings, errors=(DataError,))


if __name__ == "__main__":
    raise SystemExit(main())
