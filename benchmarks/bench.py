"""What the benchmarks share: made-up data, timing in turn, a table of ratios with their targets."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import checkpoint  # noqa: E402
import demo  # noqa: E402
import train  # noqa: E402
from checkpoint import Checkpoint  # noqa: E402
from loader import (  # noqa: E402
    SPECIAL_TOKENS,
    Captions,
    Corpus,
    Example,
    Flickr30k,
    Vocabulary,
    load_corpus,
    read_captions,
)
from logs import RunLog  # noqa: E402
from model import ImageCaptioningModel, half_precision  # noqa: E402

Job = Callable[[], object]

DEVICE = torch.device("cpu")
BATCH = 32  # photos that the ResNet alone sees at a time
N_WORDS = 7000  # of the made-up language; English captions of 30,000 photos have as many


@dataclass(frozen=True)
class Row:
    """An answer: the figure of each round, and what was hoped for."""

    question: str
    rounds: Sequence[float]
    unit: str  # "x", "%" or none
    target: float | None  # None: only to be told
    at_most: bool = False
    note: str = ""

    @property
    def value(self) -> float:
        return statistics.median(self.rounds)

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        good = self.value <= self.target if self.at_most else self.value >= self.target
        return "reached" if good else "falls short"

    def line(self) -> str:
        """As a row of a Markdown table."""
        value = f"{self.value:.3g} {self.unit}".strip()
        if len(self.rounds) > 1:
            value += f" ({min(self.rounds):.3g} to {max(self.rounds):.3g})"
        limit = "at most" if self.at_most else "at least"
        target = "" if self.target is None else f"{limit} {self.target:g} {self.unit}".strip()
        return f"| {self.question} | {value} | {target} | {self.verdict} | {self.note} |"


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    head = "| question | median (and range of rounds) | target | | how |\n|---|---|---|---|---|\n"
    return head + "\n".join(row.line() for row in rows)


def tell(rows: Sequence[Row]) -> None:
    """Print the table for people and a line of JSON for `run.py`."""
    content = [{**asdict(row), "rounds": list(map(float, row.rounds))} for row in rows]
    print(f"{table(rows)}\n\n{json.dumps(content)}")


FLAGS: dict[str, dict[str, Any]] = {
    "data": {"type": Path, "help": "folder with captions and photos; else made up"},
    "captions": {"type": Path, "help": "a captions file; else made up"},
    "rounds": {"type": int, "default": 5, "help": "times that each way is timed"},
}


def arguments(doc: str, *names: str) -> argparse.ArgumentParser:
    """A parser with these of ``FLAGS``."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    for name in names:
        parser.add_argument(f"--{name}", **FLAGS[name])
    return parser


def seconds(job: Job) -> float:
    """How long it takes once."""
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def in_turn(jobs: dict[str, Job], rounds: int) -> dict[str, np.ndarray]:
    """Each job's seconds in every round: all once to warm up, then all in turn, ``rounds`` times.

    As arrays, so that the jobs of a round, which met the machine in the same mood, are compared.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for name in [*jobs, *(name for _ in range(rounds) for name in jobs)]:
        times[name].append(seconds(jobs[name]))
    return {name: np.array(found[1:]) for name, found in times.items()}


def forward_pass(model: ImageCaptioningModel) -> Callable[[int], None]:
    """The ResNet alone, in the precision it is used in: a job that looks at so many photos."""
    pixels = torch.rand(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)

    def look(n_photos: int) -> None:
        with torch.inference_mode(), half_precision(DEVICE):
            for _ in range(n_photos // BATCH):
                model.encoder(pixels)

    return look


def corpus(data: Path | None, folder: Path, *, n_images: int, pictures: int = 0) -> Corpus:
    """The data set in ``data``, or one with made-up captions: as long, and as rare, as people's.

    Args:
        data: a real data set; its training images count, at most ``n_images`` of them. A captions
            file is taken without its photos.
        folder: where ``pictures`` are drawn, JPEGs of 500 x 375; images beyond that number
            share them.
        n_images: how many.
        pictures: how many are drawn.
    """
    if data and data.is_file():
        captions = read_captions(data)
        named = list(captions.of_image.items())[:n_images]
        examples = [Example(image, folder / image, texts) for image, texts in named]
    elif data:
        found = load_corpus(data)
        captions, examples = found.captions, found.splits["train"][:n_images]
    else:
        examples = _made_up(folder, n_images, pictures)
        captions = Captions(folder / "made up", {e.name: e.captions for e in examples})
    return Corpus(captions, {"train": examples, "val": examples[:20]}, 0, "nothing")


def _made_up(folder: Path, n_images: int, pictures: int) -> list[Example]:
    rng = random.Random(0)
    words = [f"w{n}" for n in range(N_WORDS)]
    weights = [1 / (n + 1) for n in range(N_WORDS)]  # Zipf's law

    def caption() -> str:
        return " ".join(rng.choices(words, weights, k=max(4, round(rng.gauss(11.8, 4)))))

    paths = [draw(folder / f"{n:05d}.jpg", rng) for n in range(pictures)] or [folder / "none.jpg"]
    return [
        Example(f"{n:05d}.jpg", paths[n % len(paths)], [caption() for _ in range(5)])
        for n in range(n_images)
    ]


def draw(path: Path, rng: random.Random) -> Path:
    """A scene as a photo of common size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    demo.paint(demo.random_scene(rng), 256).resize((500, 375)).save(path, quality=90)
    return path


def train_in(folder: Path, flags: Sequence[str]) -> Path:
    """Train as `train.py` would with these flags, without a word: where best.pt is."""
    places = ["--checkpoints", f"{folder}/checkpoints", "--runs", f"{folder}/runs"]
    with contextlib.redirect_stdout(io.StringIO()):
        status = train.main([*flags, *places, "--quiet"])
    if status != 0:
        sys.exit("a run failed: see above.")
    return folder / "checkpoints/best.pt"


def run_on(
    found: Corpus,
    folder: Path,
    *,
    stage: int = 0,
    vocabulary: Vocabulary | None = None,
    **changed: object,
) -> train.Run:
    """A run with a random model, ready for the first step of a stage.

    Args:
        found: its captions are learned, with made-up image vectors.
        folder: for logs.
        stage: 0 is the first.
        vocabulary: left out, counted in the captions.
        changed: settings.
    """
    settings = train.Settings(
        **{"checkpoints": folder, "runs": folder, "cache": folder, "device": "cpu", **changed}
    )
    vocabulary = vocabulary or train._vocabulary(settings, found, None)
    model = ImageCaptioningModel(len(vocabulary), image_dropout=settings.image_dropout)
    run = train.Run(settings, model, vocabulary, found, "benchmark")
    examples = found.splits["train"]
    images = list(torch.rand(len(examples), model.feature_size))
    run.dataset = lambda *_, **__: Flickr30k(examples, vocabulary, images)
    run.place.stage = stage
    run.prepare()
    run.log = RunLog(folder / "log")
    return run


def save_model(path: Path, encoder: str, image_size: int) -> ImageCaptioningModel:
    """A checkpoint with random weights: its sentences end at 12 words, as long as people's."""
    torch.manual_seed(0)
    model = ImageCaptioningModel(N_WORDS, encoder=encoder).eval()
    words = [*SPECIAL_TOKENS, *(f"w{n}" for n in range(N_WORDS - 4))]
    vocabulary = Vocabulary(words, [0] * N_WORDS, language="en")
    settings = {
        **{"image_size": image_size, "beam_size": 3, "max_words": 12},
        **{"length_penalty": 1.0, "no_repeat": 3},
    }
    made = Checkpoint(model, vocabulary, settings, epoch=0, scores={}, started_at="")
    checkpoint.save(path, made)
    return model
