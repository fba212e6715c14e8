"""Score a trained model, or an ensemble: `python evaluate.py --split val`.

Captions a split's images by beam search and compares with what people wrote. Prints a
table and, as the last line, the same as one line of JSON; `--output report.html` writes a page to
browse.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import cli
from cli import option


@dataclass(frozen=True)
class Settings(cli.SamplingSettings):
    """Score a trained model on a split of a data set."""

    EXAMPLES: ClassVar = (
        "python evaluate.py --split test",
        "python evaluate.py --checkpoint a.pt b.pt --output report.html",
    )

    checkpoint: tuple[Path, ...] = option(
        (Path("checkpoints/best.pt"),),
        "the trained model, or an ensemble of several",
        group="model",
    )
    device: str = option("auto", "where to compute", choices=cli.DEVICES)
    split: str = option("val", "which images", choices=("train", "val", "test"), group="data")
    data: Path | None = option(None, "folder with captions and photos; left out, as in training")
    captions: str | None = option(None, "captions file in that folder; left out, as in training")
    cache: Path = option(Path("cache"), "where computed features are kept")
    output: Path | None = option(None, "report for each image: .html or .json", group="output")
    overwrite: bool = option(False, "replace the output file if it exists")
    coco: bool = option(False, "score with coco-caption too: needs pycocoevalcap and Java")
    quiet: bool = option(False, "no progress and notes, only results and errors", group="run")
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

import torch
from torch import Tensor

import checkpoint
import metrics
import report
from checkpoint import Checkpoint
from cli import UserError
from corpus import Corpus, Example, load_corpus
from features import load_features
from search import Hypothesis, Search, caption

log = logging.getLogger(__name__)


def evaluate(settings: Settings, given: frozenset[str]) -> int:
    """Caption the split's images, score the captions, print the scores, write the report.

    Args:
        settings: of the command line.
        given: names of those that were given as flags; the others of the search are the model's.

    Returns:
        The exit status, which says whether all pictures could be read.
    """
    if settings.output and settings.output.exists() and not settings.overwrite:
        raise UserError(f"{settings.output} exists: give --overwrite to replace it.")
    models = checkpoint.load_ensemble(settings.checkpoint, cli.device(settings.device))
    corpus = _corpus(settings, models[0])
    search = models[0].search({name: getattr(settings, name) for name in given})
    torch.manual_seed(settings.seed)
    examples, found = _caption(settings, models, corpus.splits[settings.split], search)
    if len(examples) < metrics.FEW:
        log.warning(f"warning: CIDEr means little on fewer than {metrics.FEW} images.")

    vocabulary = models[0].vocabulary
    captions = [vocabulary.decode(hypotheses[0].tokens) for hypotheses in found]
    references = [example.captions for example in examples]
    scores: dict[str, float] = metrics.score(captions, references)
    official = _official(captions, references) if settings.coco else {}
    diversity = _diversity(models[0], captions, found, references, corpus)
    asked = {
        "checkpoint": " ".join(map(str, settings.checkpoint)),
        "split": settings.split,
        "images": len(captions),
        **{name: value for name, value in asdict(search).items() if name != "banned_final_ids"},
    }
    theirs = {f"{name} (official)": value for name, value in official.items()}
    summary = {**scores, **theirs, **diversity}
    _print({**asked, **summary}, scores, official, diversity)
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
        raise UserError(f"{data}, where the model was trained, is not there: give --data.")
    corpus = load_corpus(data, captions_name, language=trained.settings["language"])
    log.info(corpus.describe())
    if corpus.is_predicted:
        raise UserError(
            f"a model wrote the captions of {corpus.path}: give people's by --captions or --data."
        )
    if not corpus.splits[settings.split]:
        filled = ", ".join(split for split, images in corpus.splits.items() if images)
        raise UserError(
            f"the {settings.split} split of {corpus.path} is empty: give --split {filled}."
        )
    return corpus


def _caption(
    settings: Settings, models: Sequence[Checkpoint], examples: list[Example], search: Search
) -> tuple[list[Example], list[list[Hypothesis]]]:
    """The examples whose pictures can be read, and the models' hypotheses for each."""
    features: list[dict[Path, Tensor]] = []  # of each model: picture → (F,)
    for trained in models:
        examples, found = load_features(
            examples, trained.model, image_size=trained.image_size, cache=settings.cache
        )
        features.append({e.path: row for e, row in zip(examples, found, strict=True)})
    stacked = [torch.stack([of[example.path] for example in examples]) for of in features]
    return examples, caption([trained.model for trained in models], stacked, search)


def _diversity(
    trained: Checkpoint,
    captions: Sequence[str],
    found: Sequence[Sequence[Hypothesis]],
    references: Sequence[Sequence[str]],
    corpus: Corpus,
) -> dict[str, float]:
    """Diversity statistics: they expose a dull model, which scores alone do not."""
    ours = [metrics.tokens(text) for text in captions]
    in_training = {
        tuple(metrics.tokens(text))
        for example in corpus.splits["train"]
        for text in example.captions
    }
    lengths = [len(metrics.tokens(text)) for image in references for text in image]
    banned = set(trained.vocabulary.banned_final_ids)
    used = {word for hypotheses in found for word in hypotheses[0].tokens}
    n = len(captions) / 100
    return {
        "distinct captions, %": len(set(captions)) / n,
        "vocabulary used, %": 100 * len(used) / (len(trained.vocabulary) - 4),
        "copied from training, %": sum(tuple(words) in in_training for words in ours) / n,
        "mean length, words": sum(map(len, ours)) / len(ours),
        "people's mean length": sum(lengths) / len(lengths),
        "ending on an article or preposition, %": (
            sum(not banned.isdisjoint(best.tokens[-1:]) for best, *_ in found) / n
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
    diversity: dict[str, float],
) -> None:
    """A table for people, a line of JSON for scripts."""
    way = f"beam {summary['beam_size']}"
    if summary["temperature"]:
        way = f"sampled at temperature {summary['temperature']:g}"
    print(f"{summary['checkpoint']} on {summary['images']:,} {summary['split']} images, {way}\n")
    width = max(map(len, diversity))
    if official:
        print(f"{'':<{width}}    ours  official")
    for name in dict.fromkeys([*scores, *official]):
        ours = f"{scores[name]:8.1f}" if name in scores else " " * 8
        theirs = f"{official[name]:10.1f}" if name in official else ""
        print(f"{name:<{width}}{ours}{theirs}")
    print()
    for name, value in diversity.items():
        print(f"{name:<{width}}{value:8.1f}")
    print(f"\n{json.dumps(summary)}")


def main(argv: list[str] | None = None) -> int:
    """Score as the command line says; the exit status."""
    settings, given = cli.parse(Settings, argv)
    return cli.run(lambda: evaluate(settings, given), settings)


if __name__ == "__main__":
    raise SystemExit(main())
