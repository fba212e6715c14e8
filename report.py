"""Pages to browse: the report of an evaluation (or JSON, CSV), and pictures with their captions.

Each page is one self-contained file that asks no other host for anything.
"""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from PIL import Image

from cli import UserError, progress
from familiarity import UNFAMILIAR
from files import whole_file
from pictures import Source, as_jpeg, read_thumbnail
from tables import csv_head, csv_line

if TYPE_CHECKING:
    from yardsticks import Yardstick

THUMBNAIL = 320  # pixels, the longer side
N_BARS = 20
DIGITS = 4  # of numbers in CSV: others depend on the machine


@dataclass(frozen=True)
class Row:
    """One image of the report."""

    image: str
    caption: str
    log_prob: float  # nats
    scores: dict[str, float]  # 0 to 100 and above, of this caption alone
    references: list[str]


@dataclass(frozen=True)
class Evaluation:
    """A split that was scored.

    Attributes:
        settings: name → value, what was scored and how its captions were written.
        scores: name → figure, of the split as a whole.
        statistics: name → figure, others of it.
        yardsticks: what the scores are held against.
        rows: one an image.
        pictures: each row's picture.
        strips: of some images, by name, what each word of the caption saw; on the page only.
    """

    settings: Mapping[str, Any]
    scores: Mapping[str, float]
    statistics: Mapping[str, float]
    yardsticks: Sequence[Yardstick]
    rows: Sequence[Row]
    pictures: Sequence[Path]
    strips: Mapping[str, Image.Image] = field(default_factory=dict)

    @property
    def computed(self) -> list[Yardstick]:
        """The yardsticks that are not from papers."""
        return [yardstick for yardstick in self.yardsticks if not yardstick.source]

    def summary(self) -> dict[str, Any]:
        """All of the split as a whole, for programs."""
        beside = {
            f"{name} ({yardstick.name})": value
            for yardstick in self.computed
            for name, value in yardstick.scores.items()
        }
        return {**self.settings, **self.scores, **beside, **self.statistics}


def write(path: Path, evaluation: Evaluation, *, separator: str = "comma") -> None:
    """Write the report, whole or not at all.

    Args:
        path: ends in ``.html``, ``.json`` or ``.csv``.
        evaluation: what to report.
        separator: of CSV, one of ``tables.CSV_SEPARATORS``.
    """
    escaped = "backslashreplace"  # names of files may be no UTF-8
    with (
        whole_file(path) as part,
        part.open("w", encoding="utf-8", errors=escaped, newline="") as file,
    ):
        if path.suffix == ".json":
            json.dump(_plain(evaluation), file, ensure_ascii=False, indent=1)
        elif path.suffix == ".csv":
            file.writelines(_csv(evaluation.rows, separator))
        else:
            file.writelines(_page(evaluation))


def _plain(e: Evaluation) -> dict[str, Any]:
    return {
        "summary": e.summary(),
        "yardsticks": [asdict(yardstick) for yardstick in e.yardsticks],
        "images": [asdict(row) for row in e.rows],
    }


def _csv(rows: Sequence[Row], separator: str) -> Iterator[str]:
    """A line an image: its caption, scores, and as many references as any has."""
    most = max(len(row.references) for row in rows)
    numbered = [f"reference_{number}" for number in range(1, most + 1)]
    yield csv_head(["image", "caption", "log_prob", *rows[0].scores, *numbered], separator)
    for row in rows:
        numbers = [round(number, DIGITS) for number in (row.log_prob, *row.scores.values())]
        texts = row.references + [""] * (most - len(row.references))
        yield csv_line([row.image, row.caption, *numbers, *texts], separator)


def _page(e: Evaluation) -> Iterator[str]:
    yield _head(f"Captions of {_images(len(e.rows))}")
    yield _scores(e.scores, e.yardsticks)
    yield _list({name: f"{value:.1f}" for name, value in e.statistics.items()})
    yield f"<details><summary>Settings</summary>{_list(e.settings)}</details>\n"
    yield f"{_histogram(e.rows)}{_controls(ORDERS)}{CARDS}"
    shown = progress(e.pictures, about="writing the report", unit="picture")
    for row, picture in zip(e.rows, shown, strict=True):
        yield _card(row, picture, e.strips.get(row.image))
    yield foot()


def captions_head() -> str:
    """The beginning of a page of pictures with captions, up to the first ``captions_card``."""
    return f"{_head('Captions')}{_controls(CAPTION_ORDERS)}{CARDS}"


def captions_card(source: Source, captions: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """A picture with its captions, best first, in one line of HTML.

    Args:
        source: the picture; one that is a file is linked to.
        captions: each with ``image``, ``caption``, ``log_prob_per_word`` and ``familiarity``.
        folder: of the page.
    """
    best, *others = captions
    caption, name = html.escape(best["caption"]), html.escape(best["image"])
    image = f'<img loading=lazy alt="{caption}" src="{_inline(source)}">'
    if source.content is None:
        with suppress(ValueError):  # on another drive of Windows
            link = os.fsencode(os.path.relpath(source.path, folder).replace(os.sep, "/"))
            image = f'<a href="{quote(link)}">{image}</a>'
    numbers = f"<span>log-probability a word {best['log_prob_per_word']:.2f}</span>"
    order = f'data-certainty="{best["log_prob_per_word"]}"'
    familiarity, mark = best["familiarity"], ""
    if familiarity is not None:
        order += f' data-familiarity="{familiarity}"'
        numbers += f"<span>familiarity {familiarity:.2f}</span>"
        if familiarity < UNFAMILIAR:
            mark = "<p class=unlike>unlike what the model was trained on</p>"
    items = "".join(f"<li>{html.escape(other['caption'])}</li>" for other in others)
    card = (
        f'<article data-image="{name}" {order}>{image}<h2>{caption}</h2>{mark}'
        f"<p class=scores>{numbers}</p>{f'<ul>{items}</ul>' if items else ''}"
        f"<p class=name>{name}</p></article>"
    )
    return card.replace("\n", "&#10;") + "\n"


def foot() -> str:
    """The end of a page."""
    return f"</div>\n</main>\n<script>{SCRIPT}</script>\n</html>\n"


def _head(title: str) -> str:
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{title}</title>\n"
        '<meta name=viewport content="width=device-width,initial-scale=1">\n'
        f"<style>{STYLE}</style>\n<main>\n<h1>{title}</h1>\n"
    )


# ---------------------------------------------------------------------------- the scores


def _scores(scores: Mapping[str, float], yardsticks: Sequence[Yardstick]) -> str:
    """The split's scores beside those of the yardsticks, and what all of them mean."""
    columns = {"this model": scores, **{y.name: y.scores for y in yardsticks}}
    names = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in columns)
    lines = []
    for score in dict.fromkeys(name for column in columns.values() for name in column):
        values = [column.get(score) for column in columns.values()]
        cells = "".join(f"<td>{'' if v is None else f'{v:.1f}'}</td>" for v in values)
        lines.append(f"<tr><th scope=row>{html.escape(score)}</th>{cells}</tr>")
    beside = [(y.name, y.meaning, y.source) for y in yardsticks]
    meanings = [(name, MEANINGS[name], "") for name in scores if name in MEANINGS]
    return (
        "<div class=top><div class=table role=region aria-label=Scores tabindex=0><table>"
        f"<tr><td></td>{names}</tr>{''.join(lines)}</table></div>\n{_said(beside)}</div>\n"
        f"<details><summary>What the scores mean</summary>{_said(meanings)}</details>\n"
    )


def _said(texts: Sequence[tuple[str, str, str]]) -> str:
    """Names, what they mean, and from where it is known."""
    items = []
    for name, meaning, source in texts:
        link = f' <a href="{html.escape(source)}">Source</a>' if source else ""
        items.append(
            f"<div><dt>{html.escape(name)}</dt> <dd>{html.escape(meaning)}{link}</dd></div>"
        )
    return f"<dl class=said>{''.join(items)}</dl>"


def _list(shown: Mapping[str, Any]) -> str:
    """Names over values, which wrap on a narrow screen."""
    cells = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd></div>"
        for name, value in shown.items()
    )
    return f"<dl class=summary>{cells}</dl>\n"


def binned(scores: Iterable[float]) -> tuple[int, list[int]]:
    """How wide the bars of a histogram of scores are, from 0, and what each counts.

    There are ``N_BARS``; the last holds what is at its end and above too.
    """
    scores = list(scores)
    width = next(w for w in (5, 10, 20, 25, 50) if w == 50 or w * N_BARS >= max(scores))
    counts = [0] * N_BARS
    for score in scores:
        counts[min(N_BARS - 1, int(score / width))] += 1
    return width, counts


def _histogram(rows: Sequence[Row]) -> str:
    """A histogram of CIDEr, whose bars are buttons: each filters the cards to its range."""
    width, counts = binned(row.scores["CIDEr"] for row in rows)
    step = next(s * 10**e for e in range(9) for s in (1, 2, 5) if max(counts) <= 4 * s * 10**e)
    top = -(-max(counts) // step) * step
    bars = "".join(
        f"<button type=button data-low={number * width} data-high={(number + 1) * width} "
        f'aria-pressed=false title="CIDEr {number * width} to {(number + 1) * width}: '
        f'{_images(count)}"{"" if count else " disabled"}>'
        f'<i style="height:{100 * count / top:.1f}%"></i></button>'
        for number, count in enumerate(counts)
    )
    heights = "".join(
        f'<span style="bottom:{100 * n / top:.1f}%">{n:,}</span>' for n in range(0, top + 1, step)
    )
    places = "".join(
        f'<span style="left:{100 * number / N_BARS:g}%">{number * width}</span>'
        for number in range(0, N_BARS + 1, 4)
    )
    return (
        "<figure><figcaption>Images by CIDEr: choose a bar to see its images</figcaption>\n"
        f"<div class=plot><div class=ytitle>images</div><div class=y>{heights}</div>"
        f'<div class=bars role=group aria-label="Images by CIDEr">{bars}</div>'
        f"<div class=x>{places}</div><div class=xtitle>CIDEr of the image</div></div></figure>\n"
    )


def _images(n: int) -> str:
    return f"{n:,} image{'' if n == 1 else 's'}"


# ------------------------------------------------------------------------------ the cards


def _card(row: Row, picture: Path, strip: Image.Image | None) -> str:
    caption = html.escape(row.caption)
    order = " ".join(f'data-{name.lower()}="{value:.3f}"' for name, value in row.scores.items())
    scores = "".join(f"<span>{name} {value:.1f}</span>" for name, value in row.scores.items())
    parts = [
        f'<img loading=lazy alt="{caption}" src="{_inline(picture)}">',
        f"<h2>{caption}</h2>",
        f"<p class=scores>{scores}</p>",
        f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in row.references)}</ul>",
        f"<p class=name>{html.escape(row.image)}</p>",
    ]
    if strip:
        shown = f'<img loading=lazy alt="a map for each word" src="{_data_url(strip)}">'
        parts.append(f"<details><summary>What each word saw</summary>{shown}</details>")
    return f"<article {order}>{''.join(parts)}</article>\n"


def _inline(picture: Path | Source) -> str:
    """The picture, small, as a data URL; nothing if it cannot be read any more."""
    try:
        return _data_url(read_thumbnail(picture, THUMBNAIL))
    except UserError:
        return "data:,"


def _data_url(image: Image.Image) -> str:
    content = as_jpeg(image, quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def _controls(orders: Mapping[str, str]) -> str:
    """The form to sort and search: ``data-`` attribute and direction → how it is called."""
    options = "".join(f'<option value="{value}">{name}' for value, name in orders.items())
    return f"""<form id=controls role=search>
<label><span>Sort</span> <select id=sort>{options}</select></label>
<label><span>Search</span>
<input id=search type=search placeholder="words, or a file's name"></label>
<button type=reset>All images</button> <output id=count></output>
</form>
<p id=none hidden>No image fits this search. <button type=reset form=controls>Show all</button></p>
"""


CARDS = "<div id=images>\n"
MEANINGS = {
    "CIDEr": "How many of the words that matter for just this picture are as people have them; "
    "rare words count most. 0 to 1000; the score to look at first.",
    "BLEU-1": "The share of the words that a person used too. 0 to 100.",
    "BLEU-2": "The same with pairs of words in a row, as BLEU-3 and BLEU-4 with three and four: "
    "is it said as people say it?",
    "ROUGE-L": "How much of the caption are words that a person has in the same order, with gaps. "
    "0 to 100.",
}
ORDERS = {
    "cider desc": "best CIDEr first",
    "cider asc": "worst CIDEr first",
    "rouge-l desc": "best ROUGE-L first",
    "rouge-l asc": "worst ROUGE-L first",
    "": "as in the data",
}
CAPTION_ORDERS = {
    "": "as found",
    "familiarity asc": "least familiar first",
    "certainty desc": "surest first",
    "certainty asc": "least sure first",
}

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent);
  background: Canvas; scroll-padding-top: 4.5rem }
body { font: 16px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 76rem;
  padding: 0 1rem }
h1 { font-size: 1.3rem; overflow-wrap: anywhere }
a { color: inherit }
.table { overflow-x: auto; margin-bottom: .6rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
tr + tr { border-top: 1px solid var(--line) }
th, td { padding: .25rem .7rem; text-align: right; vertical-align: bottom }
th { font-weight: 400; font-size: .85rem }
th[scope=row] { padding-left: 0; text-align: left; white-space: nowrap }
td:nth-child(2), th:nth-child(2) { font-weight: 700 }
.top { display: flex; flex-wrap: wrap; gap: 0 2.5rem }
.said { flex: 1 22rem; max-width: 46rem; margin: .2rem 0 .6rem; font-size: .88rem }
.said div { margin-bottom: .5rem } .said dt, .said dd { display: inline; margin: 0 }
.said dt { font-weight: 600 } .said dt::after { content: "." }
.summary { display: flex; flex-wrap: wrap; gap: .6rem 1.6rem; margin: .6rem 0 1rem }
.summary dt { font-size: .8rem; opacity: .7 }
.summary dd { margin: 0; font-weight: 600; overflow-wrap: anywhere }
details { margin-bottom: .6rem } summary { cursor: pointer }
figure { margin: 1.2rem 0 1rem; max-width: 46rem } figcaption { font-size: .88rem }
.plot { display: grid; grid-template-columns: 2.5rem 1fr; font-size: .75rem; margin-top: .3rem }
.ytitle { grid-column: 1 / 3; padding-bottom: .5rem }
.y, .x { position: relative }
.y span { position: absolute; right: .4rem; transform: translateY(50%) }
.bars { display: flex; height: 9rem; border: solid currentColor; border-width: 0 0 1px 1px }
.bars button { flex: 1; display: flex; align-items: end; padding: 0 1px; border: 0;
  background: none; cursor: pointer } .bars button:disabled { cursor: default }
.bars i { flex: 1; background: #3b7dd8; min-height: 2px } .bars :disabled i { min-height: 0 }
.bars button:hover i, .bars [aria-pressed=true] i { background: #c85a0c }
.x { grid-column: 2; height: 1.5rem } .x span { position: absolute; transform: translateX(-50%) }
.xtitle { grid-column: 2; text-align: center }
form { position: sticky; top: 0; z-index: 1; background: Canvas; padding: .6rem 0; display: flex;
  flex-wrap: wrap; gap: .5rem 1rem; align-items: center; border-bottom: 1px solid var(--line);
  margin-bottom: 1rem }
input, select, button { font: inherit; padding: .15rem .4rem }
@media (max-width: 40rem) {  /* two lines: the cards need the room */
  label { flex: 1 1 8rem } label span { position: absolute; clip-path: inset(50%) }
  input, select { width: 100%; box-sizing: border-box }
}
#images { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.2rem }
article { border: 1px solid var(--line); border-radius: .5rem; overflow: hidden;
  content-visibility: auto; contain-intrinsic-size: auto 26rem }
article:has([open]) { grid-column: 1 / -1 } article details { margin: 0 .8rem .6rem }
img { width: 100%; height: 12rem; object-fit: contain; background: var(--line); display: block }
details img { height: auto; max-width: 70rem }
h2 { font-size: 1.05rem; margin: .6rem .8rem .2rem }
.unlike { margin: .2rem .8rem; font-size: .8rem; font-weight: 600; color: #b3500b }
@media (prefers-color-scheme: dark) { .unlike { color: #ff9f5a } }
.scores { margin: 0 .8rem; font-size: .8rem; opacity: .75 }
.scores span { display: inline-block; margin-right: .7em }
ul { margin: .4rem .8rem; padding-left: 1.1rem; font-size: .88rem }
.name { margin: .3rem .8rem .6rem; font-size: .72rem; opacity: .7; overflow-wrap: anywhere }
[hidden] { display: none }
"""

SCRIPT = """
const main = document.getElementById('images'), cards = [...main.children];
const sort = document.getElementById('sort'), search = document.getElementById('search');
const bars = [...document.querySelectorAll('.bars button')];  // none on a page of captions alone
const text = new Map(cards.map(card => [card, card.textContent.toLowerCase()]));
let bar = null;
for (const option of [...sort.options]) {  // older models know no familiarity
  const key = option.value.split(' ')[0];
  if (key && cards.length && !cards[0].hasAttribute('data-' + key)) option.remove();
}
function order() {
  const [key, way] = sort.value.split(' ');
  const sorted = key ? [...cards].sort((a, b) =>
    (way == 'asc' ? 1 : -1) * (a.getAttribute('data-' + key) - b.getAttribute('data-' + key)))
    : cards;
  main.append(...sorted);
}
function show() {
  const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const card of cards) {
    const cider = +card.dataset.cider;
    const inBar = !bar || cider >= +bar.dataset.low &&
      (bar == bars.at(-1) || cider < +bar.dataset.high);
    card.hidden = !(inBar && words.every(word => text.get(card).includes(word)));
    shown += !card.hidden;
  }
  for (const other of bars) other.setAttribute('aria-pressed', other == bar);
  const [of, all] = [shown, cards.length].map(n => n.toLocaleString('en'));
  document.getElementById('count').value = of + ' of ' + all + ' images';
  document.getElementById('none').hidden = shown > 0;
}
for (const button of bars) {
  button.onclick = () => { bar = bar == button ? null : button; show(); };
}
sort.onchange = order;
search.oninput = show;
const form = document.getElementById('controls');
form.onsubmit = event => event.preventDefault();
form.onreset = () => { bar = null; setTimeout(() => { order(); show(); }); };
order();
show();
"""
