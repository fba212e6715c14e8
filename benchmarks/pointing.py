"""Do the maps of colour and shape words point at the drawn things that the words name?

    python train.py --demo
    python benchmarks/pointing.py

Draws new scenes, captions them, and asks both ways of `explain.py` what each colour word and shape
word saw. A word points right if the cell where its map is largest lies in the thing that it names:
if the cell's centre does, as far as the thing is to be seen; of a thing too small for any centre,
if no cell holds more of it. Words that are not true of a thing in the scene are left out.

The pointing game: Zhang et al. 2016, arXiv:1608.00507.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench import ROOT, Row, tell
from bench import main as run_benchmark

import demo
from captioner import Captioner
from demo import Scene, Thing
from explain import GRID, Explanation, grad_cam, occlusion
from pictures import transform

WAYS: dict[str, Callable[..., Explanation]] = {"occlusion": occlusion, "gradients": grad_cam}
FINE = 32  # points along a side of a cell, at which is asked whether it shows the thing


class Named(NamedTuple):
    """A word of a caption that names a thing."""

    place: int  # in the caption
    kind: str  # "colour" or "shape", of the main thing or of the small second one
    inside: np.ndarray  # (G, G) bool, the cells that lie in the thing
    touched: np.ndarray  # (G, G) bool, the cells that show some of it


def visible(scene: Scene, size: int) -> dict[Thing, np.ndarray]:
    """What is to be seen of each thing: (size, size) bool."""
    things = [thing for thing in (scene.main, scene.second) if thing]
    seen: dict[Thing, np.ndarray] = {}
    nearer = np.zeros((size, size), bool)
    for thing in sorted(things, key=lambda thing: -thing.floor):
        inside = _inside(thing, size)
        seen[thing], nearer = inside & ~nearer, nearer | inside
    return seen


def _inside(thing: Thing, size: int) -> np.ndarray:
    y, x = (np.mgrid[:size, :size] + 0.5) / size  # as `demo.paint` draws it, from here on
    x, y = (x - thing.x) / thing.radius, (y - thing.y) / thing.radius
    c, s = math.cos(thing.tilt), math.sin(thing.tilt)
    distance, _ = demo.OUTLINES[thing.shape](c * x + s * y, c * y - s * x)
    return distance < 0


def cells_of(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which cells lie in a thing, and which show a bit of it: (G*FINE, G*FINE) → (G, G) each."""
    grid = len(inside) // FINE
    share = inside.reshape(grid, FINE, grid, FINE).mean(axis=(1, 3))
    middle = slice(FINE // 2, None, FINE)
    cells = inside[middle, middle]
    return cells if cells.any() else share == share.max(), share > 0


def named(words: Sequence[str], scene: Scene) -> tuple[list[Named], int]:
    """The words that are true of a thing in the scene, and how many other colours and shapes."""
    found, n_wrong = [], 0
    seen = visible(scene, GRID * FINE)
    for place, word in enumerate(words):
        kind = "colour" if word in demo.COLOURS else "shape" if word in demo.SHAPES else ""
        things = [thing for thing in seen if kind and getattr(thing, kind) == word]  # one or none
        if things:
            which = "main" if things[0] is scene.main else "second"
            found.append(Named(place, f"{kind}, {which} thing", *cells_of(seen[things[0]])))
        n_wrong += bool(kind) and not things
    return found, n_wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints/demo/best.pt")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=54321, help="the demo itself draws with 0")
    args = parser.parse_args()

    captioner = Captioner.load(args.checkpoint, device="cpu")
    size, rng = captioner.image_size, random.Random(args.seed)
    hits: dict[str, dict[str, list[bool]]] = {way: defaultdict(list) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    chance, n_left_out = [], 0
    for _ in range(args.scenes):
        scene = demo.random_scene(rng)
        pixels = transform(demo.paint(scene, size), size)
        tokens = captioner.describe(pixels.unsqueeze(0))[0][0].tokens
        found, n_wrong = named([captioner.vocabulary.words[id_] for id_ in tokens], scene)
        n_left_out += n_wrong
        chance += [word.inside.mean() for word in found]
        for way, explain in WAYS.items():
            started = time.perf_counter()
            maps = explain(captioner, pixels, tokens).maps
            times[way].append(time.perf_counter() - started)
            for word in found:
                cell = divmod(int(maps[word.place].argmax()), GRID)
                hits[way]["all"].append(bool(word.inside[cell]))
                hits[way][word.kind].append(bool(word.inside[cell]))
                hits[way]["all, some of it shown"].append(bool(word.touched[cell]))
    rows = [Row("chance: cells that lie in the thing", [100 * float(np.mean(chance))], "%", None)]
    for way in WAYS:
        for kind, theirs in sorted(hits[way].items()):
            target = 90 if (way, kind) == ("occlusion", "all") else None
            note = f"{len(theirs)} words"
            rows.append(
                Row(f"{way}, {kind}", [100 * float(np.mean(theirs))], "%", target, note=note)
            )
        milliseconds = [1000 * statistics.median(times[way])]
        rows.append(Row(f"{way}, milliseconds a picture", milliseconds, "", None))
    print(
        f"{args.scenes} new scenes, {len(chance)} words. Left out, as true of no thing in their "
        f"scene: {n_left_out}\n"
    )
    tell(rows)


if __name__ == "__main__":
    run_benchmark(main)
