"""Draw the demo's data: little scenes with five captions each, in Flickr30k's own layout.

A scene is one large coloured thing, sometimes a small second one, and the ground they are on.
Picture and captions follow from it, so what a captioner says can be checked word by word: every
caption names the large thing first, by exactly one colour word and one shape word.

The shapes are signed distance fields: their smooth edges, their soft rims and the light on them
all come from one distance a pixel, at any size. Nothing here reads a file or trains a model.
"""

import json
import math
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from cli import UserError, progress

SETTINGS: dict[
    str, Any
] = {  # of train.py, in place of its defaults; a flag given beside --demo wins
    "data": Path("checkpoints/demo/scenes"),
    "checkpoints": Path("checkpoints/demo"),
    "run_name": "demo",
    "encoder": "resnet18",
    "encoder_weights": "none",
    "image_size": 64,
    "embedding_size": 256,
    "hidden_size": 256,
    "dropout": 0.1,
    "label_smoothing": 0.0,
    "epochs": 7,
    "batch_size": 160,
}

COLOURS = {
    "red": "#de262c",
    "orange": "#fc8414",
    "yellow": "#ffd61e",
    "green": "#108e3e",
    "blue": "#2454e2",
    "purple": "#7e34b8",
    "pink": "#ff84ba",
    "black": "#2c2c34",
}
SHAPES = ("ball", "cube", "star", "heart", "cone", "ring", "cross", "moon")

Surface = tuple[np.ndarray, tuple[np.ndarray, ...] | None]  # distance to the outline, normals


@dataclass(frozen=True)
class Ground:
    """How the place looks that things are in."""

    high: str  # the sky's colour at the top
    low: str  # and at the horizon
    far: str  # the floor's colour at the horizon
    near: str  # and at our feet
    clouds: float  # how white they are, 0 to 1
    hills: float  # how much the horizon swings, in picture heights
    grain: tuple[int, int, float]  # the floor's texture: cells across, cells along, contrast
    mirror: float  # how clearly the floor mirrors things, 0 to 1
    specks: int  # how many stars or snowflakes


# fmt: off
GROUNDS = {
    "grass": Ground("#58aae8", "#d8f0fa", "#bcdc7a", "#80c04e", 0.9, 0.035, (46, 30, 0.085), 0, 0),
    "sand": Ground("#74c4e0", "#fcecce", "#f4deb2", "#e2be8a", 0.35, 0.05, (7, 46, 0.06), 0, 0),
    "snow": Ground("#88aede", "#f6e6ea", "#f4f4fa", "#d2e0f2", 0.3, 0.045, (9, 12, 0.05), 0, 60),
    "water": Ground("#faae92", "#ffeac6", "#b6e0d6", "#42a0ac", 0.45, 0, (6, 40, 0.13), 0.5, 0),
    "table": Ground("#86aaa6", "#d6decc", "#dcae7c", "#c8925e", 0, 0, (90, 5, 0.05), 0.22, 0),
    "night": Ground("#1a2252", "#6a70b0", "#a4aed6", "#6c7cb0", 0.1, 0.06, (10, 14, 0.06), 0, 60),
}
# fmt: on


@dataclass(frozen=True)
class Thing:
    """One coloured shape; lengths in picture widths, y downwards, tilt in radians."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    tilt: float
    floor: float  # the height of its shadow; y + radius if it stands


@dataclass(frozen=True)
class Scene:
    """All that `paint` and `captions` need.

    `relation` says where the main thing is, seen from the second (see `RELATIONS`); both are None
    when the main thing is alone.
    """

    main: Thing
    second: Thing | None
    relation: str | None
    ground: str
    texture: int  # seeds the ground's hills, clouds and grain


def draw(
    folder: Path,
    *,
    n_scenes: int = 3600,
    size: int = 64,
    seed: int = 0,
) -> None:
    """Write a data set of scenes; the same arguments write the same bytes.

    `scenes.jsonl`, what was drawn, appears last and whole: where it is, the folder is complete.

    Args:
        folder: gets `flickr30k_images/*.png`, `results.csv` as Kaggle has it, the image names of
            `split_val.txt` and `split_test.txt`, and `scenes.jsonl`.
        n_scenes: pictures to draw; one of 18 is for validation, one of 18 for testing.
        size: width and height of a picture, in pixels.
        seed: another seed, other scenes.

    Raises:
        ValueError: `n_scenes` below 3 or `size` below 16.
    """
    if n_scenes < 3 or size < 16:
        raise ValueError(
            f"expected at least 3 scenes of at least 16 pixels, got {n_scenes} of {size}"
        )
    (folder / "flickr30k_images").mkdir(parents=True, exist_ok=True)
    (folder / "scenes.jsonl").unlink(missing_ok=True)
    rng = random.Random(seed)
    rows, facts = ["image_name| comment_number| comment"], []
    for i in progress(range(n_scenes), about="drawing scenes", unit="scene"):
        scene, name = random_scene(rng), f"scene_{i:05d}.png"
        paint(scene, size).save(folder / "flickr30k_images" / name, compress_level=3)
        rows += [f"{name}| {j}| {text}" for j, text in enumerate(captions(scene, rng))]
        facts.append(json.dumps({"image": name, **_facts(scene)}))

    names = [f"scene_{i:05d}.png" for i in range(n_scenes)]
    part = max(1, n_scenes // 18)
    held_out = rng.sample(names, 2 * part)
    _write(folder / "results.csv", rows)
    _write(folder / "split_val.txt", sorted(held_out[:part]))
    _write(folder / "split_test.txt", sorted(held_out[part:]))
    _write(folder / "scenes.jsonl", facts)


def draw_data(folder: Path, *, size: int) -> None:
    """Draw the demo's data set, unless it is there.

    Raises:
        UserError: the folder holds other files; an interrupted drawing may be there.
    """
    if (folder / "scenes.jsonl").is_file():
        return
    others = {path.name for path in folder.glob("*")} - {"flickr30k_images"}
    if others:
        raise UserError(
            f"{folder} holds {min(others)}, which the demo did not draw: leave --data out, or name "
            "a new folder for its scenes."
        )
    draw(folder, size=size)


def _facts(scene: Scene) -> dict[str, Any]:
    main, second = scene.main, scene.second
    return {
        "colour": main.colour,
        "shape": main.shape,
        "second": second and {"colour": second.colour, "shape": second.shape},
        "ground": scene.ground,
        "relation": scene.relation,
    }


def _write(path: Path, lines: list[str]) -> None:
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def random_scene(rng: random.Random) -> Scene:
    """Make up a scene; in one of three there are two things, unlike in colour and shape."""

    def near(middle: float, spread: float = 0.025) -> float:
        return rng.uniform(middle - spread, middle + spread)

    ground = rng.choice(tuple(GROUNDS))
    colours, shapes = rng.sample(tuple(COLOURS), 2), rng.sample(SHAPES, 2)
    relation = rng.choice(tuple(RELATIONS)) if rng.random() < 1 / 3 else None
    big, small = rng.uniform(0.235, 0.26), rng.uniform(0.09, 0.11)
    side = -1 if relation == "left" else 1 if relation == "right" else rng.choice((-1, 1))

    # Where the main thing stands: x, the floor below it, its height over that floor.
    x, floor, height = near(0.5, 0.1), near(0.86, 0.04), 0.0
    if relation in ("left", "right"):
        x = near(0.5 + 0.18 * side)
    elif relation == "above":
        floor, height = near(0.8, 0.02), near(0.25, 0.02)
    elif relation == "below":
        floor = near(0.92, 0.02)
    elif relation in ("front", "behind"):
        x, floor = near(0.5 + 0.07 * side), near(0.9 if relation == "front" else 0.77)
    # And the second thing, seen from there.
    x2, floor2, height2 = {
        "above": (near(x, 0.05), near(0.92), 0.0),
        "below": (near(x, 0.05), floor, 2 * big + near(0.09, 0.02)),
        "front": (x - side * (big + near(0.03)), floor - near(0.25), 0.0),
        "behind": (x - side * (big - near(0.03)), floor + near(0.14, 0.015), 0.0),
    }.get(relation or "", (near(0.5 - 0.29 * side), near(floor, 0.03), 0.0))

    tilts = near(0, 0.16), near(0, 0.16)
    main = Thing(colours[0], shapes[0], x, floor - height - big, big, tilts[0], floor)
    second = Thing(colours[1], shapes[1], x2, floor2 - height2 - small, small, tilts[1], floor2)
    return Scene(main, second if relation else None, relation, ground, rng.getrandbits(32))


# What a thing on the ground is said to be, and one in the air over it.
PLACES = {
    "grass": (
        ("on the grass", "on fresh grass", "in a meadow"),
        ("over the grass", "over a meadow"),
    ),
    "sand": (
        ("on the sand", "on warm sand", "in the desert"),
        ("over the sand", "over the desert"),
    ),
    "snow": (("in the snow", "on fresh snow", "on the snow"), ("over the snow", "over fresh snow")),
    "water": (("on the water", "on calm water", "on the sea"), ("over the water", "over the sea")),
    "table": (("on a table", "on a wooden table"), ("over a table", "over a wooden table")),
    "night": (("at night", "in the dark"), ("at night", "in the dark")),
}
# Where the main thing is, seen from the second; where the second is, seen from the main one.
RELATIONS = {
    "left": (("left of", "to the left of", "next to"), ("to its right", "on its right")),
    "right": (("right of", "to the right of", "next to"), ("to its left", "on its left")),
    "above": (("above", "high above"), ("below it", "under it")),
    "below": (("below", "under", "just below"), ("above it", "over it")),
    "front": (("in front of",), ("behind it",)),
    "behind": (("behind",), ("in front of it",)),
}
# {M} the main thing, {S} the second ({m}, {s} without adjective), {v} and {w} what they do, {G}
# on or over which ground the main thing is, {H} on which ground it all is, {R} and {C} as above.
ALONE = (
    "{M} {v} {G}",
    "{M} {v} alone {G}",
    "{M} all alone {G}",
    "there is {M} {G}",
    "there is only {M} {G}",
    "you can see {M} {G}",
    "a picture of {M} {G}",
    "just {M} {G} , and nothing else",
    "{G} there is {M}",
    "{G} , {M} {v} all by itself",
)
TOGETHER = (
    "{M} {v} {R} {S} {H}",
    "{M} {v} {R} {S}",
    "{M} {R} {S} {H}",
    "{M} is {R} {S}",
    "{M} {G} , with {S} {C}",
    "{M} {v} {G} and {S} {w} {C}",
    "{M} {v} {G} with {S} {C}",
    "{m} is larger than the {s} {C}",
    "{G} , {M} {v} {R} {S}",
    "{G} there is {M} and {S}",
    "there is {M} {G} and {S} {C}",
    "there is {M} {R} {S}",
    "you can see {M} {R} {S} {H}",
    "a picture of {M} and {S} {H}",
    "a picture of {M} with {S} {C}",
    "{M} {v} {G}",
)
REST, SWIM, HOVER = ("lies", "sits", "stands"), ("floats", "drifts"), ("floats", "hangs", "hovers")


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """Word a scene in five ways, of 5 to 14 words each, in the spacing of Flickr30k."""
    main, second, (on, over) = scene.main, scene.second, PLACES[scene.ground]
    stay = SWIM if scene.ground == "water" else REST
    texts: list[str] = []
    templates: list[str] = []
    while len(texts) < 5:
        templates = templates or rng.sample(TOGETHER if second else ALONE, 10)
        words = {
            "m": _name(main, ""),
            "M": _name(main, rng.choice(("", "", "", "big ", "large "))),
            "G": rng.choice(over if scene.relation == "above" else on),
            "H": rng.choice(on),
            "v": rng.choice(HOVER if scene.relation == "above" else stay),
            "w": rng.choice(HOVER if scene.relation == "below" else stay),
        }
        if second and scene.relation:
            words["S"] = _name(second, rng.choice(("", "", "small ", "little ")))
            words["s"] = f"{second.colour} {second.shape}"
            words["R"], words["C"] = map(rng.choice, RELATIONS[scene.relation])
        text = templates.pop().format(**words)
        text = text[0].upper() + text[1:] + " ."
        if text not in texts and 5 <= len(re.findall(r"\w+", text)) <= 14:
            texts.append(text)
    return texts


def _name(thing: Thing, adjective: str) -> str:
    name = f"{adjective}{thing.colour} {thing.shape}"
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def paint(scene: Scene, size: int = 64) -> Image.Image:
    """Paint a scene, RGB, `size` by `size` pixels; the same scene looks the same at any size."""
    ground = GROUNDS[scene.ground]
    canvas = _paint_ground(scene.ground, np.random.default_rng(scene.texture), size)
    things = sorted((t for t in (scene.main, scene.second) if t), key=lambda thing: thing.floor)
    for thing in things:
        _paint_shadow(canvas, thing, ground)
    canvas = canvas.repeat(2, axis=0).repeat(2, axis=1)  # things are drawn at twice the size
    for mirrored in (True, False) if ground.mirror else (False,):
        for thing in things:
            _paint_thing(canvas, thing, ground, mirrored=mirrored)
    canvas = canvas[0::2] + canvas[1::2]
    canvas = (canvas[:, 0::2] + canvas[:, 1::2]) / 4
    return Image.fromarray((canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def _rgb(colour: str) -> np.ndarray:
    return np.array(ImageColor.getrgb(colour), np.float32) / 255


def _mix(a: np.ndarray, b: np.ndarray | float, t: np.ndarray | float) -> np.ndarray:
    return a + (b - a) * t


def _ramp(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 up to `low`, 1 from `high` on, smooth between."""
    t = ((x - low) / (high - low)).clip(0, 1)
    return t * t * (3 - 2 * t)


def _grid(top: int, bottom: int, left: int, right: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the centres of these pixels in picture widths: y as a column, x as a row."""
    y, x = np.ogrid[top:bottom, left:right]
    return (y.astype(np.float32) + 0.5) / size, (x.astype(np.float32) + 0.5) / size


def _noise(rng: np.random.Generator, across: int, along: int, size: int) -> np.ndarray:
    cells = Image.fromarray(rng.standard_normal((along, across), dtype=np.float32))
    return np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC))


def _paint_ground(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    ground = GROUNDS[name]
    y, x = _grid(0, size, 0, size, size)
    horizon = rng.uniform(0.44, 0.5) + ground.hills * _noise(rng, 4, 1, size)[:1]
    sky = _mix(_rgb(ground.high), _rgb(ground.low), _ramp(0, 0.5, y)[..., None])
    clouds = _ramp(0.1, 1.3, _noise(rng, 4, 10, size) + 0.4 * _noise(rng, 12, 26, size))
    clouds = ground.clouds * clouds * _ramp(0.6, 0.1, y)
    glow = 0.16 * np.exp(-5 * (x - 0.15) ** 2) * np.exp(-9 * (y - 0.1) ** 2)
    sky = _mix(sky, 1.0, np.maximum(clouds, glow)[..., None])

    depth = ((y - horizon) / (1 - horizon)).clip(0, 1)  # 0 at the horizon, 1 at our feet
    near = np.sqrt(depth)
    rows = (near * (size - 1)).astype(np.intp)  # far rows lie close together
    across, along, contrast = ground.grain
    fine = np.take_along_axis(_noise(rng, across, along, size), rows, axis=0)
    broad = np.take_along_axis(_noise(rng, 5, 9, size), rows, axis=0)
    light = 1 + contrast * (fine * (0.35 + 0.65 * depth) + 0.5 * broad)
    if name == "table":
        plank = (x - 0.5) / (0.55 + depth) * 6 + rng.uniform(20, 21)
        tone = rng.standard_normal(40, dtype=np.float32)[plank.astype(np.intp)]
        seam = np.abs(plank - plank.round()) * (0.55 + depth)
        light *= (1 + 0.035 * tone) * (1 - 0.35 * _ramp(0.07, 0.01, seam))
    floor = _mix(_rgb(ground.far), _rgb(ground.near), near[..., None]) * light[..., None]
    picture = _mix(sky, floor, _ramp(-0.75, 0.75, (y - horizon) * size)[..., None])

    if not ground.specks:
        return picture.astype(np.float32)
    lowest = 0.42 if name == "night" else 1.0  # stars keep to the sky, snowflakes do not
    left, top, radius, white = rng.random((4, ground.specks, 1), dtype=np.float32)
    radius = np.maximum(0.0025 + 0.005 * radius, 0.45 / size)
    columns = np.exp(-(((x - left) / radius) ** 2)) * (0.3 + 0.6 * white)
    specks = np.exp(-(((y.T - lowest * top) / radius) ** 2)).T @ columns
    return _mix(picture, 1.0, specks.clip(0, 1)[..., None]).astype(np.float32)


def _paint_shadow(canvas: np.ndarray, thing: Thing, ground: Ground) -> None:
    y, x = _grid(0, len(canvas), 0, len(canvas), len(canvas))
    height = thing.floor - thing.radius - thing.y
    width = thing.radius * (1 + height)
    shadow = np.exp(-1.6 * ((x - thing.x - 0.25 * thing.radius - 0.1 * height) / width) ** 2)
    shadow = shadow * np.exp(-1.6 * ((y - thing.floor + 0.01) / (0.26 * width)) ** 2)
    canvas *= 1 - shadow[..., None] * (1 - 0.42 * _rgb(ground.near)) * 0.55 / (1 + 4 * height)


# Light falls from the upper left, towards the viewer; x to the right, y down, z to the viewer.
LIGHT = np.array([-0.42, -0.68, 0.60], np.float32)
SHINE = np.array([-0.235, -0.380, 0.895], np.float32)  # halfway between the light and the viewer


def _paint_thing(canvas: np.ndarray, thing: Thing, ground: Ground, *, mirrored: bool) -> None:
    size = len(canvas)
    middle, reach = 2 * thing.floor - thing.y if mirrored else thing.y, 1.15 * thing.radius
    top, left = (max(0, int((c - reach) * size)) for c in (middle, thing.x))
    bottom, right = (min(size, int((c + reach) * size) + 1) for c in (middle, thing.x))
    if top >= bottom - 1:
        return  # mirrored below the picture's edge
    y, x = _grid(top, bottom, left, right, size)
    opacity: np.ndarray | float = 1.0
    if mirrored:
        opacity = ground.mirror * (1 - (y - thing.floor) / (2.2 * thing.radius)).clip(0, 1)
        if ground is GROUNDS["water"]:
            x = x + 0.012 * np.sin(y * 150 / (0.3 + y))
        y = 2 * thing.floor - y

    # From the picture to the thing's own measure: upright, from -1 to 1.
    x, y = (x - thing.x) / thing.radius, (y - thing.y) / thing.radius
    c, s = math.cos(thing.tilt), math.sin(thing.tilt)
    distance, normal = OUTLINES[thing.shape](c * x + s * y, c * y - s * x)
    pixel = 1 / (thing.radius * size)
    nx, ny, nz = _pillow(distance, pixel) if normal is None else normal
    nx, ny = c * nx - s * ny, s * nx + c * ny

    lit = (nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2])[..., None]
    shine = (nx * SHINE[0] + ny * SHINE[1] + nz * SHINE[2]).clip(0, 1)[..., None]
    base = _rgb(COLOURS[thing.colour])
    colour = _mix(base * np.array([0.52, 0.45, 0.58], np.float32), base, _ramp(-0.5, 0.55, lit))
    colour = _mix(colour, _mix(base, 1.0, 0.32), _ramp(0.6, 1.05, lit))
    colour += 0.22 * _ramp(0.2, 1.0, ny)[..., None] * _rgb(ground.near)  # light from below
    glow = np.square(np.square(np.square(shine)))  # to the 8th; a general power is far slower
    colour += 0.12 * glow + 0.75 * np.square(np.square(np.square(glow)))
    window = canvas[top:bottom, left:right]
    window += (colour - window) * ((0.5 - distance / pixel).clip(0, 1) * opacity)[..., None]


def _pillow(distance: np.ndarray, pixel: float) -> tuple[np.ndarray, ...]:
    """Turn distances to a flat shape's outline into normals that round its edge off."""
    dy, dx = np.gradient(distance, pixel)
    slope = (1 + distance / 0.3).clip(0, 1)  # 1 on the outline, 0 on the plateau
    slope = slope.clip(0, 0.99) / np.sqrt(dx * dx + dy * dy + 1e-6)
    dx, dy = dx * slope, dy * slope
    return dx, dy, np.sqrt((1 - dx * dx - dy * dy).clip(0, 1))


# Each outline takes points in the shape's own measure and returns their signed distance to its
# edge, negative inside, and the surface's normals, or None for `_pillow`'s. The formulas for star,
# heart, cross and moon are Inigo Quilez's, https://iquilezles.org/articles/distfunctions2d.


def _ball(x: np.ndarray, y: np.ndarray) -> Surface:
    square = x * x + y * y
    return np.sqrt(square) - 1, (x, y, np.sqrt((1 - square).clip(0, 1)))


def _cube(x: np.ndarray, y: np.ndarray) -> Surface:
    half, round_ = 0.6, 0.06
    cy, sy, cp, sp = math.cos(0.62), math.sin(0.62), math.cos(0.5), math.sin(0.5)
    axes = ((cy, sy * sp, sy * cp), (-sy, cy * sp, cy * cp), (0.0, -cp, sp))  # of the seen faces
    total = np.zeros_like(x, np.float32)
    for ax, ay, _ in axes:  # two sides of the outline run along each axis
        norm = math.hypot(ax, ay)
        reach = half * sum(abs(ay * bx - ax * by) for bx, by, _ in axes) / norm
        total = total + np.exp(24 * (np.abs(ay * x - ax * y) / norm - reach))  # a soft maximum
    height = np.stack([(half - ax * x - ay * y) / az for ax, ay, az in axes])
    weight = np.exp((height.min(axis=0) - height) / 0.05)  # the lowest face is the one we see
    normal = np.tensordot(np.array(axes, np.float32).T, weight, 1)
    return np.log(total) / 24 - round_, tuple(normal / np.sqrt((normal**2).sum(axis=0)))


def _star(x: np.ndarray, y: np.ndarray) -> Surface:
    cos, sin, inner = math.cos(math.pi / 5), math.sin(math.pi / 5), 0.5
    x, y = np.abs(x), 0.1 - y
    for kx, ky in ((cos, -sin), (-cos, -sin)):  # fold the five points into one
        fold = 2 * (kx * x + ky * y).clip(0)
        x, y = x - fold * kx, y - fold * ky
    x, y = np.abs(x), y - 1
    bx, by = inner * sin, inner * cos - 1
    along = ((x * bx + y * by) / (bx * bx + by * by)).clip(0, 1)
    inside = np.sign(y * bx - x * by)
    return np.hypot(x - bx * along, y - by * along) * inside - 0.09, None


def _heart(x: np.ndarray, y: np.ndarray) -> Surface:
    x, y = np.abs(x) / 1.6, (0.98 - y) / 1.6
    lobe = np.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    near = 0.5 * (x + y).clip(0)
    tip = np.sqrt(np.minimum(x * x + (y - 1) ** 2, (x - near) ** 2 + (y - near) ** 2))
    return 1.6 * np.where(x + y > 1, lobe, tip * np.sign(x - y)) - 0.03, None


def _cone(x: np.ndarray, y: np.ndarray) -> Surface:
    apex, base, half = -1.0, 0.72, 0.82
    slope = half / (base - apex)
    side = (np.abs(x) - slope * (y - apex)) / math.hypot(1, slope)
    rim = 0.24 * (np.hypot(x / half, (y - base) / 0.24) - 1)  # the lower half of an ellipse
    turn = (x / (slope * (y - apex)).clip(0.02, half)).clip(-1, 1)
    normal = 0.92 * turn, np.full_like(turn, -0.38), 0.92 * np.sqrt(1 - 0.98 * turn * turn)
    return np.where(y > base, np.maximum(rim, np.abs(x) - half), side) - 0.03, normal


def _ring(x: np.ndarray, y: np.ndarray) -> Surface:
    return np.abs(np.hypot(x, y) - 0.7) - 0.3, None


def _cross(x: np.ndarray, y: np.ndarray) -> Surface:
    x, y = np.abs(x), np.abs(y)
    x, y = np.maximum(x, y) - 0.92, np.minimum(x, y) - 0.2  # past the end, past the side
    outside = np.maximum(x, y) > 0
    notch = np.hypot((0.2 - 0.92 - x).clip(0), -np.maximum(x, y))
    return np.where(outside, np.hypot(x.clip(0), y.clip(0)), -notch) - 0.08, None


def _moon(x: np.ndarray, y: np.ndarray) -> Surface:
    shift, outer, inner = 0.5, 0.95, 0.72
    x, y = x + 0.12, np.abs(y)
    tip_x = (outer**2 - inner**2 + shift**2) / (2 * shift)
    tip_y = math.sqrt(outer**2 - tip_x**2)
    at_tip = x * tip_y - y * tip_x > shift * (tip_y - y).clip(0)
    body = np.maximum(np.hypot(x, y) - outer, inner - np.hypot(x - shift, y))
    return np.where(at_tip, np.hypot(x - tip_x, y - tip_y), body) - 0.05, None


OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], Surface]] = {
    "ball": _ball,
    "cube": _cube,
    "star": _star,
    "heart": _heart,
    "cone": _cone,
    "ring": _ring,
    "cross": _cross,
    "moon": _moon,
}
