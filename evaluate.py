"""Score a trained model, or an ensemble: `python evaluate.py --split val`.

Captions a split's images by beam search and compares with what people wrote. Prints a
table and, as the last line, the same as one line of JSON; `--output report.html` writes a page to
browse, `--figures folder` pictures for a report. `--compare a.json b.json` compares two reports.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cli
from cli import option


@dataclass(frozen=True)
class Settings(cli.SamplingSettings):
    """Score a trained model on a split of a data set."""

    EXAMPLES: ClassVar = (
        "python evaluate.py --split test",
        "python evaluate.py --output report.html --figures figures",
        "python evaluate.py --compare a.json b.json",
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
    output: Path | None = option(
        None, "report for each image: .html, .json or .csv", group="output"
    )
    csv_separator: str = option(
        "comma",
        "of .csv; semicolon: for spreadsheets with decimal commas",
        choices=("comma", "semicolon", "tab"),
    )
    explain: int = option(
        20, "of the worst captions .html shows what each word saw; 0: none, quicker", at_least=0
    )
    figures: Path | None = option(
        None, "folder for figures: curves, pictures, distribution of scores"
    )
    overwrite: bool = option(False, "replace what is there of the output")
    coco: bool = option(False, "score with coco-caption too: needs pycocoevalcap and Java")
    compare: tuple[Path, ...] = option(
        (),
        "two .json reports of the same images: could the difference be chance?",
        metavar="REPORT",
        group="two models",
    )
    quiet: bool = option(False, "no progress and notes, only results and errors", group="run")
    debug: bool = option(False, "show where an error comes from")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output and self.output.suffix not in (".html", ".json", ".csv"):
            raise ValueError(f"--output must end in .html, .json or .csv, got {self.output}")
        if self.csv_separator != "comma" and not (self.output and self.output.suffix == ".csv"):
            raise ValueError("--csv-separator is for --output report.csv")
        if self.explain != 20 and not (self.output and self.output.suffix == ".html"):
            raise ValueError("--explain is for --output report.html")
        if len(self.compare) not in (0, 2):
            raise ValueError(f"--compare takes two reports, got {len(self.compare)}")


if __name__ == "__main__":  # before the slow imports
    cli.answer_at_once(Settings)

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import torch
from PIL import Image
from torch import Tensor

import checkpoint
import explain
import figures
import metrics
from captioner import Captioner
from checkpoint import Checkpoint
from cli import UserError, progress
from compare import compare
from corpus import Corpus, Example, load_corpus
from features import load_features
from official import official
from report import Evaluation, Row, write
from search import Hypothesis, Search, caption
from yardsticks import yardsticks

log = logging.getLogger(__name__)


def evaluate(settings: Settings, given: frozenset[str]) -> int:
    """Caption the split's images, score the captions, print the scores, write the report.

    Args:
        settings: of the command line.
        given: names of those that were given as flags; the others of the search are the model's.

    Returns:
        The exit status, which says whether all pictures could be read.
    """
    if settings.compare:
        _compare(settings, given)
        return cli.DONE
    _check_output(settings)
    models = checkpoint.load_ensemble(settings.checkpoint, cli.device(settings.device))
    corpus = _corpus(settings, models[0])
    asked = {name: getattr(settings, name) for name in given}
    search = models[0].search(asked)
    if settings.split != "train":
        _warn_of_training_photos(corpus.photo_ids(settings.split), models)
    elif search.neighbour_weight and any(trained.neighbours for trained in models):
        log.warning(
            "warning: each training photo is among its own similar photos, which raises the "
            "scores: give --neighbour-weight 0 to leave them out."
        )
    torch.manual_seed(settings.seed)
    examples, found = _caption(settings, models, corpus.splits[settings.split], search)
    if len(examples) < metrics.FEW:
        log.warning(f"warning: CIDEr means little on fewer than {metrics.FEW} images.")
    evaluation = _score(settings, models[0], corpus, search, examples, found)
    tokens = [hypotheses[0].tokens for hypotheses in found]
    try:
        _print(evaluation)
    finally:  # a reader that has gone, as in `… | head`, does not cost the files
        _write(settings, asked, evaluation, models, tokens)
    is_whole = len(examples) == len(corpus.splits[settings.split])
    return cli.DONE if is_whole else cli.SOME_FAILED


def _compare(settings: Settings, given: frozenset[str]) -> None:
    others = sorted(given - {"compare", "quiet", "debug"})
    if others:
        raise UserError(
            f"--compare reads two reports and runs no model: leave {cli.flag(others[0])} out."
        )
    compare(*settings.compare)


def _check_output(settings: Settings) -> None:
    """Before the work begins: nothing is written over, and what is needed is installed."""
    if settings.figures:
        figures.require()
        if settings.figures.is_file():
            raise UserError(f"{settings.figures} is a file: name a folder for --figures.")
    wanted = [settings.output] if settings.output else []
    wanted += figures.files(settings.figures) if settings.figures else []
    for path in wanted:
        if path.exists() and not settings.overwrite:
            raise UserError(f"{path} exists: give --overwrite to replace it.")


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


def _warn_of_training_photos(photos: Sequence[int], models: Sequence[Checkpoint]) -> None:
    """Where splits were changed since, or in another folder, they may be among those scored."""
    known = {id_ for m in models if m.trained_on is not None for id_ in m.trained_on.tolist()}
    if n_known := sum(photo in known for photo in photos):
        log.warning(
            f"warning: {n_known:,} of the {len(photos):,} photos were trained on: the scores say "
            "little of new ones."
        )


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
    return examples, caption(
        [trained.model for trained in models],
        stacked,
        search,
        neighbours=[trained.neighbours for trained in models],
        about="captioning",
    )


def _score(
    settings: Settings,
    trained: Checkpoint,
    corpus: Corpus,
    search: Search,
    examples: Sequence[Example],
    found: Sequence[Sequence[Hypothesis]],
) -> Evaluation:
    """The best hypotheses scored, as a split and one by one, and what stands beside the scores."""
    captions = [trained.vocabulary.decode(hypotheses[0].tokens) for hypotheses in found]
    references = [example.captions for example in examples]
    shown = partial(progress, about="scoring", unit="caption")
    measured = metrics.measure(captions, references, shown=shown)
    theirs = official(captions, references) if settings.coco else None
    asked = {name: value for name, value in asdict(search).items() if name != "banned_final_ids"}
    return Evaluation(
        settings={
            "checkpoint": " ".join(map(str, settings.checkpoint)),
            "split": settings.split,
            "images": len(captions),
            **asked,
        },
        scores=measured.scores(),
        statistics=_diversity(trained, captions, found, references, corpus),
        yardsticks=[
            *([theirs] if theirs else []),
            *yardsticks(corpus, settings.split, examples, shown=shown),
        ],
        rows=[  # without BLEU, which says nothing of a single caption
            Row(
                example.name,
                captions[i],
                found[i][0].log_prob,
                {"CIDEr": float(measured.cider[i]), "ROUGE-L": float(measured.rouge[i])},
                example.captions,
            )
            for i, example in enumerate(examples)
        ],
        pictures=[example.path for example in examples],
    )


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


def _print(evaluation: Evaluation) -> None:
    """A table for people, a line of JSON for scripts."""
    asked, statistics = evaluation.settings, evaluation.statistics
    way = f"beam {asked['beam_size']}"
    if asked["temperature"]:
        way = f"sampled at temperature {asked['temperature']:g}"
    for yardstick in evaluation.computed:
        log.info(f"{yardstick.name:<14}{yardstick.meaning.partition('. ')[0]}")  # all: in .html
    print(f"{asked['checkpoint']} on {asked['images']:,} {asked['split']} images, {way}\n")
    width = max(map(len, statistics))
    columns = {"ours": evaluation.scores, **{y.name: y.scores for y in evaluation.computed}}
    print(" " * width + "".join(whose.rjust(max(8, len(whose) + 2)) for whose in columns))
    for name in dict.fromkeys(name for scores in columns.values() for name in scores):
        cells = [
            (f"{scores[name]:.1f}" if name in scores else "").rjust(max(8, len(whose) + 2))
            for whose, scores in columns.items()
        ]
        print(f"{name:<{width}}{''.join(cells)}")
    print()
    for name, value in statistics.items():
        print(f"{name:<{width}}{value:8.1f}")
    print(f"\n{json.dumps(evaluation.summary())}")


def _write(
    settings: Settings,
    asked: Mapping[str, Any],
    evaluation: Evaluation,
    models: Sequence[Checkpoint],
    tokens: Sequence[Sequence[int]],
) -> None:
    """Write the report and draw the figures that were asked for."""
    if settings.output and settings.output.suffix == ".html":
        captioner = Captioner(models, asked)
        evaluation = replace(
            evaluation, strips=_strips(evaluation, captioner, tokens, settings.explain)
        )
    if settings.output:
        write(settings.output, evaluation, separator=settings.csv_separator)
        log.info(f"written to {settings.output}")
    if settings.figures:
        figures.draw(settings.figures, evaluation, _runs(models))
        log.info(f"written to {settings.figures}")


def _strips(
    evaluation: Evaluation,
    captioner: Captioner,
    tokens: Sequence[Sequence[int]],
    n_worst: int,
) -> dict[str, Image.Image]:
    """What each word of the worst captions saw, by the image's name."""
    rows = evaluation.rows
    worst = sorted(range(len(rows)), key=lambda i: rows[i].scores["CIDEr"])[:n_worst]
    strips = {}
    for i in progress(worst, about="hiding parts of pictures", unit="picture"):
        with suppress(UserError):  # it has gone since
            strips[rows[i].image] = explain.draw(captioner, evaluation.pictures[i], tokens[i])
    return strips


def _runs(models: Sequence[Checkpoint]) -> list[Path]:
    """The folders in which the models' trainings logged their curves, if they are there."""
    wanted = [Path(m.settings["runs"]) / m.settings["run_name"] for m in models]
    found = [run for run in dict.fromkeys(wanted) if any(run.glob("events.out.tfevents.*"))]
    if len(found) < len(set(wanted)):
        gone = next(run for run in wanted if run not in found)
        log.warning(f"warning: no curves of {gone}, where the training logged: it is not there.")
    return found


def main(argv: list[str] | None = None) -> int:
    """Score as the command line says; the exit status."""
    settings, given = cli.parse(Settings, argv)
    return cli.run(lambda: evaluate(settings, given), settings)


if __name__ == "__main__":
    raise SystemExit(main())
