"""Pages to browse: the report of an evaluation (or JSON), and pictures with their captions.

Each is one self-contained file that asks no other host for anything.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cli import UserError, progress
from familiarity import UNFAMILIAR
from files import whole_file
from pictures import Source, read_image

THUMBNAIL = 320  # pixels, the longer side
N_BARS = 20


@dataclass(frozen=True)
class Row:
    """One image of the report."""

    image: str
    caption: str
    log_prob: float  # nats
    scores: dict[str, float]  # 0 to 100 and above, of this caption alone
    references: list[str]


def write(
    path: Path,
    rows: Sequence[Row],
    *,
    summary: Mapping[str, float],
    settings: Mapping[str, Any],
    pictures: Sequence[Path],
) -> None:
    """Write the report, whole or not at all.

    Args:
        path: ends in ``.html`` or ``.json``.
        rows: one an image.
        summary: name → figure, of the split as a whole.
        settings: name → value, what was scored and how it was written.
        pictures: each row's picture, shown on the page.
    """
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        if path.suffix == ".json":
            content = {"summary": {**settings, **summary}, "images": [asdict(row) for row in rows]}
            json.dump(content, file, ensure_ascii=False, indent=1)
            return
        shown = {**settings, **{name: f"{value:.1f}" for name, value in summary.items()}}
        file.write(_head(f"Captions of {len(rows):,} images"))
        file.write(f"{_summary(shown)}{_distribution(rows)}{_controls(ORDERS)}<main id=images>\n")
        for row, picture in zip(
            rows, progress(pictures, about="writing the report", unit="picture"), strict=True
        ):
            file.write(_card(row, picture))
        file.write(foot())


def captions_head() -> str:
    """The beginning of a page of pictures with captions, up to the first ``captions_card``."""
    return f"{_head('Captions')}{_controls(CAPTION_ORDERS)}<main id=images>\n"


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
    familiarity, mark = best["familiarity"], ""
    if familiarity is not None:
        numbers += f"<span>familiarity {familiarity:.2f}</span>"
        if familiarity < UNFAMILIAR:
            mark = "<p class=unlike>unlike what the model was trained on</p>"
    order = f'data-certainty="{best["log_prob_per_word"]}" data-familiarity="{familiarity or 0}"'
    items = "".join(f"<li>{html.escape(other['caption'])}</li>" for other in others)
    card = (
        f'<article data-image="{name}" {order}>{image}<h2>{caption}</h2>{mark}'
        f"<p class=scores>{numbers}</p>{f'<ul>{items}</ul>' if items else ''}"
        f"<p class=name>{name}</p></article>"
    )
    return card.replace("\n", "&#10;") + "\n"


def foot() -> str:
    """The end of a page."""
    return f"</main>\n<script>{SCRIPT}</script>\n</html>\n"


def _head(title: str) -> str:
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{title}</title>\n"
        '<meta name=viewport content="width=device-width,initial-scale=1">\n'
        f"<style>{STYLE}</style>\n<h1>{title}</h1>\n"
    )


def _summary(shown: Mapping[str, Any]) -> str:
    """The split's scores as a table of two rows, which wraps on a narrow screen."""
    cells = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd></div>"
        for name, value in shown.items()
    )
    return f"<dl class=summary>{cells}</dl>\n"


def _distribution(rows: Sequence[Row]) -> str:
    """A histogram of CIDEr, drawn as SVG; each bar filters the cards to its range."""
    scores = [row.scores["CIDEr"] for row in rows]
    width = next(w for w in (5, 10, 20, 25, 50) if w == 50 or w * N_BARS > max(scores))
    counts = [0] * N_BARS
    for score in scores:
        counts[min(N_BARS - 1, int(score / width))] += 1
    highest = max(counts)
    bars = "".join(
        f'<rect x="{40 * number}" y="{100 - 100 * count / highest:.1f}" width="36" '
        f'height="{100 * count / highest:.1f}" data-low="{number * width}" '
        f'data-high="{(number + 1) * width}" tabindex="0" role="button">'
        f"<title>CIDEr {number * width} to {(number + 1) * width}: {count} images</title>"
        "</rect>"
        for number, count in enumerate(counts)
    )
    labels = "".join(
        f'<text x="{40 * number}" y="118">{number * width}</text>' for number in range(0, N_BARS, 4)
    )
    return (
        "<figure><figcaption>Images by CIDEr: choose a bar to see its images</figcaption>"
        f'<svg viewBox="0 0 {40 * N_BARS} 122" role="group" aria-label="Images by CIDEr">'
        f"{bars}{labels}</svg></figure>\n"
    )


def _card(row: Row, picture: Path) -> str:
    references = "".join(f"<li>{html.escape(text)}</li>" for text in row.references)
    scores = " ".join(f"<span>{name} {value:.1f}</span>" for name, value in row.scores.items())
    order = " ".join(f'data-{name.lower()}="{value:.3f}"' for name, value in row.scores.items())
    caption, name = html.escape(row.caption), html.escape(row.image)
    return (
        f'<article {order}><img loading=lazy alt="{caption}" src="{_inline(picture)}">'
        f"<h2>{caption}</h2><p class=scores>{scores}</p><ul>{references}</ul>"
        f"<p class=name>{name}</p></article>\n"
    )


def _inline(picture: Path | Source) -> str:
    """The picture, small, as a data URL; nothing if it cannot be read any more."""
    try:
        image = read_image(picture, size=THUMBNAIL)
    except UserError:
        return "data:,"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _controls(orders: Mapping[str, str]) -> str:
    """The form to sort and search: ``data-`` attribute and direction → how it is called."""
    options = "".join(f'<option value="{value}">{name}' for value, name in orders.items())
    return f"""<form id=controls>
<label>Sort <select id=sort>{options}</select></label>
<label>Search <input id=search type=search placeholder="words, or a file's name"></label>
<button type=reset>All images</button> <output id=count></output>
</form>
"""


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
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent) }
body { font: 16px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 76rem;
  padding: 0 1rem }
h1 { font-size: 1.3rem; overflow-wrap: anywhere }
.summary { display: flex; flex-wrap: wrap; gap: .6rem 1.6rem; margin: 0 0 1rem }
.summary dt { font-size: .8rem; opacity: .7 } .summary dd { margin: 0; font-weight: 600 }
figure { margin: 0 0 1rem } figcaption { font-size: .85rem; opacity: .7 }
svg { width: 100%; max-width: 50rem; fill: currentColor; font-size: 13px }
rect { fill: #3b7dd8; cursor: pointer } rect:hover, rect:focus, rect[aria-pressed=true] {
  fill: #e07a2e; outline: none }
main a { color: inherit }
form { position: sticky; top: 0; z-index: 1; background: Canvas; padding: .6rem 0; display: flex;
  flex-wrap: wrap; gap: .5rem 1rem; align-items: center; border-bottom: 1px solid var(--line);
  margin-bottom: 1rem }
input, select, button { font: inherit; padding: .15rem .4rem }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.2rem }
article { border: 1px solid var(--line); border-radius: .5rem; overflow: hidden;
  content-visibility: auto; contain-intrinsic-size: auto 26rem }
img { width: 100%; height: 12rem; object-fit: contain; background: var(--line); display: block }
h2 { font-size: 1.05rem; margin: .6rem .8rem .2rem }
.unlike { margin: .2rem .8rem; font-size: .8rem; font-weight: 600; color: #b3500b }
@media (prefers-color-scheme: dark) { .unlike { color: #ff9f5a } }
.scores { margin: 0 .8rem; font-size: .8rem; opacity: .75 } .scores span { margin-right: .7em }
ul { margin: .4rem .8rem; padding-left: 1.1rem; font-size: .88rem }
.name { margin: .3rem .8rem .6rem; font-size: .72rem; opacity: .6; overflow-wrap: anywhere }
[hidden] { display: none }
"""

SCRIPT = """
const main = document.getElementById('images'), cards = [...main.children];
const sort = document.getElementById('sort'), search = document.getElementById('search');
const bars = [...document.querySelectorAll('rect')];  // none on a page of captions alone
const text = new Map(cards.map(card => [card, card.textContent.toLowerCase()]));
let bar = null;
function show() {
  const [key, way] = sort.value.split(' ');
  const sorted = key ? [...cards].sort((a, b) =>
    (way == 'asc' ? 1 : -1) * (a.getAttribute('data-' + key) - b.getAttribute('data-' + key)))
    : cards;
  for (const card of sorted) main.append(card);
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
  document.getElementById('count').value = shown + ' of ' + cards.length + ' images';
}
for (const rect of bars) {
  rect.onclick = () => { bar = bar == rect ? null : rect; show(); };
  rect.onkeydown = event => { if (event.key == 'Enter' || event.key == ' ') {
    event.preventDefault(); rect.onclick(); } };
}
sort.onchange = search.oninput = show;
document.getElementById('controls').onsubmit = event => event.preventDefault();
document.getElementById('controls').onreset = () => { bar = null; setTimeout(show); };
show();
"""
