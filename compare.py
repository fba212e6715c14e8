"""Two reports of the same images side by side: is one model better, or were the images kind to it?

Reads what `evaluate.py --output report.json` wrote. No model is run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cli
import metrics
from cli import UserError, flag

SCORES = ("CIDEr", "BLEU-4", "BLEU-1", "ROUGE-L")
RESAMPLES = 1000
SEED = 0
INTERVAL = (2.5, 97.5)  # percentiles: 95 % are between
N_CHANGED = 5  # pictures shown each way

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What is compared of a report.

    Attributes:
        path: the file.
        summary: how its captions were made, and their scores.
        captions: image → the model's caption.
        references: image → people's.
    """

    path: Path
    summary: dict[str, Any]
    captions: dict[str, str]
    references: dict[str, list[str]]


@dataclass(frozen=True)
class Difference:
    """A score of two models.

    Attributes:
        a, b: the scores, times 100, on all images.
        low, high: of the differences on resampled images 95 % lie between these.
    """

    a: float
    b: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """What b has more than a."""
        return self.b - self.a

    @property
    def could_be_chance(self) -> bool:
        """Whether other images might have had it the other way round."""
        return self.low <= 0 <= self.high

    def plain(self) -> dict[str, Any]:
        """All of it, for JSON."""
        derived = {"difference": self.difference, "could_be_chance": self.could_be_chance}
        return {**vars(self), **derived}


def compare(first: Path, second: Path) -> None:
    """Print what tells two reports apart: a table, the captions, and a line of JSON.

    Raises:
        UserError: one is no report, or they are not of the same images and references.
    """
    reports = read_report(first), read_report(second)
    if first.samefile(second):
        raise UserError(f"{first} and {second} are the same file: give two reports.")
    _check_same_images(*reports)
    images = list(reports[0].captions)
    references = [reports[0].references[image] for image in images]
    measured = [
        metrics.measure([report.captions[image] for image in images], references)
        for report in reports
    ]
    if len(images) < metrics.FEW:
        log.warning(f"warning: scores mean little on fewer than {metrics.FEW} images.")
    found = differences(*measured)
    print(_table(reports, found))
    print(_changes(reports, measured, images))
    result: dict[str, Any] = {"a": str(first), "b": str(second), "images": len(images)}
    result |= {"resamples": RESAMPLES} | {name: value.plain() for name, value in found.items()}
    print(f"\n{json.dumps(result)}")


def differences(first: metrics.Measured, second: metrics.Measured) -> dict[str, Difference]:
    """The scores of two models on the same images, and how sure their differences are.

    A paired bootstrap: images are drawn with replacement, as many as there are, and both models
    are scored on each such corpus anew. CIDEr's document frequencies stay those of all images;
    BLEU is computed from the resampled counts.

    Source: Koehn 2004, "Statistical significance tests for machine translation evaluation",
    aclanthology.org/W04-3250.
    """
    n_images = len(first.cider)
    random = np.random.default_rng(SEED)
    times = random.multinomial(n_images, np.full(n_images, 1 / n_images), RESAMPLES)  # (B, N)
    scores = first.scores(), second.scores()
    resampled = first.resampled(times), second.resampled(times)
    found = {}
    for name in SCORES:
        gaps: NDArray[np.float64] = resampled[1][name] - resampled[0][name]  # (B,)
        low, high = np.percentile(gaps, INTERVAL)
        found[name] = Difference(scores[0][name], scores[1][name], float(low), float(high))
    return found


def read_report(path: Path) -> Report:
    """What `evaluate.py --output` wrote as JSON.

    Raises:
        UserError: there is no such file, or it is something else.
    """
    if not path.exists():
        raise UserError(f"no report {path}: make one by evaluate.py --output {path.name}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images, summary = content["images"], dict(content["summary"])
        captions = {image["image"]: image["caption"] for image in images}
        references = {image["image"]: image["references"] for image in images}
        is_report = len(captions) == len(images) > 0 and all(
            isinstance(text, str) for text in [*captions, *captions.values()]
        )
        is_report &= all(
            isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
            for texts in references.values()
        )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        is_report = False
    if not is_report:
        raise UserError(f"{path} is no report that evaluate.py --output report.json wrote.")
    return Report(path, summary, captions, references)


def _check_same_images(first: Report, second: Report) -> None:
    apart = sorted(first.captions.keys() ^ second.captions.keys())
    if apart:
        lacking = second if apart[0] in first.captions else first
        raise UserError(
            f"{first.path} and {second.path} are of different images: {len(apart):,} are in one "
            f"only, as {apart[0]}, which {lacking.path} lacks. Evaluate both models on one split."
        )
    changed = [i for i, texts in first.references.items() if texts != second.references[i]]
    if changed:
        raise UserError(
            f"{first.path} and {second.path} have different references for {len(changed):,} of "
            f"their images, as {changed[0]}: evaluate both models with the same captions file."
        )


def _table(reports: tuple[Report, Report], found: dict[str, Difference]) -> str:
    summaries = [report.summary for report in reports]
    settings = [field.name for field in fields(cli.SamplingSettings)]
    differ = [name for name in settings if len({str(s.get(name)) for s in summaries}) > 1]
    lines = []
    for letter, report in zip("ab", reports, strict=True):
        made = [str(report.summary.get("checkpoint", "?"))]
        made += [f"{flag(name)} {report.summary.get(name, '?')}" for name in differ]
        lines.append(f"{letter}  {report.path}: {', '.join(made)}")
    n_images = len(reports[0].captions)
    lines.append(f"\n{n_images:,} images, resampled {RESAMPLES:,} times\n")
    lines.append(f"{'':<8}{'a':>8}{'b':>8}{'b - a':>8}   95 % between")
    for name, value in found.items():
        chance = "   could be chance" if value.could_be_chance else ""
        lines.append(
            f"{name:<8}{value.a:8.1f}{value.b:8.1f}{_signed(value.difference):>8}"
            f"   {_signed(value.low)} and {_signed(value.high)}{chance}"
        )
    return "\n".join(lines)


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # never -0.0


def _changes(
    reports: tuple[Report, Report], measured: Sequence[metrics.Measured], images: Sequence[str]
) -> str:
    """The pictures whose CIDEr differs most, with both captions."""
    gains = measured[1].cider - measured[0].cider  # (N,)
    lines = []
    for letter, gained in (("b", gains), ("a", -gains)):
        order = np.argsort(-gained, kind="stable")[:N_CHANGED]
        if gained[order[0]] > 0:
            lines.append(f"\nwhere {letter} is better by most, by the picture's CIDEr")
        for i in order[gained[order] > 0]:
            lines.append(f"\n  {images[i]}")
            for name, report, scores in zip("ab", reports, measured, strict=True):
                lines.append(f"  {name} {scores.cider[i]:6.1f}  {report.captions[images[i]]}")
    return "\n".join(lines)
