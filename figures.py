"""Figures for a report: a run's curves, pictures with captions, how scores are distributed.

Each is written as PNG and as SVG, for print: light, with colours that the colour-blind tell apart.
Drawn by matplotlib, without a display.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import UserError
from files import whole_file
from pictures import read_thumbnail
from report import Evaluation, Row, binned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("curves", "pictures", "scores")
SUFFIXES = (".png", ".svg")
WIDTH = 7.0  # inches: a page's text
DPI = 200
MAX_ROWS, N_COLUMNS = 3, 4  # of pictures
TITLE, CARD, TEXT = 0.3, 2.55, 0.75  # inches: above the pictures; one with captions; these
THUMBNAIL = 400  # pixels
LINE = 31  # letters of a caption in a line
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito 2008
GREY = "#666666"
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # captions may hold dollars
    "svg.hashsalt": "figures",  # the same file every time
}
# For what matplotlib's own font has no letters; those that are installed are used.
OTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Devanagari", "Arial Unicode MS"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "PingFang SC"),
)

Curve = tuple[list[int], list[float]]  # steps and values

log = logging.getLogger(__name__)


def require() -> None:
    """Raise a ``UserError`` if there is no matplotlib."""
    if not importlib.util.find_spec("matplotlib"):
        raise UserError("--figures needs: pip install matplotlib.")


def files(folder: Path) -> list[Path]:
    """All that is written to a folder."""
    return [folder / f"{name}{suffix}" for name in NAMES for suffix in SUFFIXES]


def draw(folder: Path, evaluation: Evaluation, runs: Sequence[Path]) -> None:
    """Draw all figures into a folder, each whole or not at all.

    Args:
        folder: made if need be.
        evaluation: whose pictures and scores.
        runs: the models' folders of TensorBoard events; without any there are no curves.
    """
    n_rows = min(MAX_ROWS, math.ceil(len(evaluation.rows) / N_COLUMNS))
    with _figure(folder / "pictures", height=TITLE + n_rows * CARD) as figure:
        _draw_pictures(figure, evaluation)
    with _figure(folder / "scores", height=3.0) as figure:
        _draw_scores(figure, evaluation)
    if runs:
        with _figure(folder / "curves", height=4.6) as figure:
            _draw_curves(figure, {run.name: read_curves(run) for run in runs})


@contextmanager
def _figure(stem: Path, *, height: float) -> Iterator[Figure]:
    """An empty figure to draw on, which is written at the end."""
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure  # of its own: pyplot would ask for a display

    there = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans", *(font for font in OTHER_FONTS if font in there)]
    with matplotlib.rc_context({**STYLE, "font.family": fonts}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
        yield figure
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for suffix in SUFFIXES:
                date = {"Date": None} if suffix == ".svg" else {}
                with whole_file(stem.with_name(stem.name + suffix)) as part:
                    figure.savefig(part, format=suffix[1:], dpi=DPI, metadata=date)
    if any("missing from font" in str(warning.message) for warning in caught):
        log.warning(
            f"warning: letters of captions in {stem.name} are boxes: no font here has them. "
            "Install one, such as Noto Sans CJK (Debian: fonts-noto-cjk)."
        )


# ------------------------------------------------------------------------------- pictures


def _draw_pictures(figure: Figure, evaluation: Evaluation) -> None:
    """Pictures spread evenly from the best CIDEr to the worst, with both captions."""
    rows = evaluation.rows
    order = sorted(range(len(rows)), key=lambda i: -rows[i].scores["CIDEr"])
    height = figure.get_figheight()
    n_rows = round((height - TITLE) / CARD)
    n = min(n_rows * N_COLUMNS, len(order))
    shown = [order[round(k * (len(order) - 1) / max(1, n - 1))] for k in range(n)]
    figure.suptitle(
        f"{n} of {len(rows):,} images, evenly spread from the best CIDEr to the worst",
        y=1 - 0.05 / height,
        va="top",
    )
    figure.set_layout_engine("none")  # the captions' places are known
    size = (0.94 / N_COLUMNS, 0.92 * (CARD - TEXT) / height)
    for number, i in enumerate(shown):
        row, column = divmod(number, N_COLUMNS)
        bottom = 1 - (TITLE + (row + 1) * CARD - TEXT) / height
        axes = figure.add_axes(((column + 0.03) / N_COLUMNS, bottom, *size))
        _draw_picture(axes, rows[i], evaluation.pictures[i])


def _draw_picture(axes: Axes, row: Row, picture: Path) -> None:
    axes.axis("off")
    axes.set_anchor("S")  # beside its captions
    with suppress(UserError):  # gone since: its captions are there
        axes.imshow(read_thumbnail(picture, THUMBNAIL), interpolation="lanczos")
    axes.set_title(f"CIDEr {row.scores['CIDEr']:.0f}", color=GREY, fontsize=7, pad=2)
    ours, human = _wrapped(row.caption), _wrapped(f"human: {row.references[0]}".rstrip(" ."))
    below = -3.0  # points
    for text, size, colour in ((ours, 7, "black"), (human, 6, GREY)):
        axes.annotate(text, (0.5, 0), (0, below), "axes fraction", textcoords="offset points",
                      ha="center", va="top", fontsize=size, color=colour)  # fmt: skip
        below -= 1.25 * size * (1 + text.count("\n")) + 2


def _wrapped(text: str, n_lines: int = 3) -> str:
    is_wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    width = LINE // 2 if is_wide else LINE
    return "\n".join(textwrap.wrap(text, width, max_lines=n_lines, placeholder=" …"))


# --------------------------------------------------------------------------------- scores


def _draw_scores(figure: Figure, evaluation: Evaluation) -> None:
    """How many images have which CIDEr and ROUGE-L, and where the means are."""
    for axes, name in zip(figure.subplots(1, 2), ("CIDEr", "ROUGE-L"), strict=True):
        values = [row.scores[name] for row in evaluation.rows]
        width, counts = binned(values)
        axes.bar([width * i for i in range(len(counts))], counts, 0.9 * width, align="edge",
                 color="#9ecae1")  # fmt: skip
        end = width * max(i + 1 for i, count in enumerate(counts) if count)
        axes.set(xlabel=f"{name} of the image", ylabel="images", xlim=(0, end))
        means = [("this model", evaluation.scores[name])]
        means += [(yardstick.name, yardstick.scores[name]) for yardstick in evaluation.computed]
        styles = itertools.cycle(("-", "--", ":"))
        for (label, mean), colour, style in zip(means, COLOURS, styles, strict=False):
            axes.axvline(mean, color=colour, linestyle=style, label=f"{label}: mean {mean:.1f}")
        axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.suptitle(f"Scores of {len(evaluation.rows):,} images")


# --------------------------------------------------------------------------------- curves


def read_curves(folder: Path) -> dict[str, Curve]:
    """The curves that a run logged for TensorBoard: tag → steps and values.

    What a stopped run had logged after the step that it was resumed from is left out.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = {"scalars": 0, "images": 1, "tensors": 1}  # 0: all of them
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells of every file
    events = EventAccumulator(str(folder), size_guidance=sizes).Reload()
    return {
        tag: ([e.step for e in events.Scalars(tag)], [e.value for e in events.Scalars(tag)])
        for tag in events.Tags()["scalars"]
    }


PANELS = {  # title → tags and their labels
    "Loss, nats per word": {"loss/train": "training", "loss/val": "validation"},
    "CIDEr, validation": {"score/CIDEr": "CIDEr"},
    "BLEU, validation": {f"score/BLEU-{n}": f"BLEU-{n}" for n in range(1, 5)},
    "Learning rate": {"learning_rate": "learning rate"},
}


def _draw_curves(figure: Figure, runs: Mapping[str, Mapping[str, Curve]]) -> None:
    """Four panels, with all curves of a run, or of several runs the last of each panel."""
    for axes, (title, labels) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        axes.set(title=title, xlabel="step")
        axes.margins(y=0.12)
        shown = [(curves, tag, label) for curves in runs.values() for tag, label in labels.items()]
        if len(runs) > 1:
            tag, label = list(labels.items())[-1]
            axes.set_title(title if len(labels) == 1 else f"{title}: {label}")
            shown = [(curves, tag, run) for run, curves in runs.items()]
        for (curves, tag, label), colour in zip(shown, itertools.cycle(COLOURS), strict=False):
            if tag in curves:
                _draw_curve(axes, curves[tag], tag, label, colour)
        if len(shown) > 1:
            axes.legend(fontsize=7)


def _draw_curve(axes: Axes, curve: Curve, tag: str, label: str, colour: str) -> None:
    """A curve, with a point for each epoch and a number at the best CIDEr."""
    steps, values = curve
    marker = "o" if tag.startswith(("score", "loss/val")) else None
    axes.plot(steps, values, color=colour, label=label, marker=marker, markersize=2.5, lw=1.1)
    if tag == "score/CIDEr":
        best = max(range(len(values)), key=values.__getitem__)
        axes.annotate(f"{values[best]:.1f}", (steps[best], values[best]), (0, 4),
                      textcoords="offset points", ha="center", color=colour)  # fmt: skip
