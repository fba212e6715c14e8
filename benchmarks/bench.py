"""What the benchmarks share: made-up data, steps of training, timing in turn, a table of ratios."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
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
import cli  # noqa: E402
import demo  # noqa: E402
import distributed  # noqa: E402
import learning  # noqa: E402
import train  # noqa: E402
from captions import read_captions  # noqa: E402
from checkpoint import Checkpoint  # noqa: E402
from corpus import Corpus, Example, load_corpus  # noqa: E402
from learning import Loss  # noqa: E402
from loader import SPECIAL_TOKENS, Flickr30k, Vocabulary, batches  # noqa: E402
from model import ImageCaptioningModel, has_bfloat16  # noqa: E402
from neighbours import remember  # noqa: E402
from resnet import FoldedResNet  # noqa: E402
from run import make_vocabulary  # noqa: E402

Job = Callable[[], object]

DEVICE = torch.device("cpu")
BATCH = 32  # photos in a batch of the ResNet alone
N_WORDS = 7000  # of the made-up language; English captions of 30,000 photos have as many


@dataclass(frozen=True)
class Row:
    """An answer: the figure of each round, and what was hoped for."""

    question: str
    rounds: Sequence[float]
    unit: str  # "x", "%" or none
    target: float | None  # None: only for information
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


def main(job: Job) -> None:
    """Run a benchmark; what a user can cause ends it in one line and exit status 2."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR)  # as with --quiet
    try:
        job()
    except (cli.UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(cli.FAILED)


def forward_pass(model: ImageCaptioningModel) -> Callable[[int], None]:
    """The ResNet alone, in the precision it is used in: a job that encodes so many photos."""
    dtype = torch.bfloat16 if has_bfloat16(DEVICE) else torch.float32
    pixels = torch.rand(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    encoder = FoldedResNet(model.encoder, dtype)

    def encode(n_photos: int) -> None:
        with torch.inference_mode():
            for _ in range(n_photos // BATCH):
                encoder(pixels)

    return encode


def corpus(data: Path | None, folder: Path, *, n_images: int, pictures: int = 0) -> Corpus:
    """The data set in ``data``, or one with made-up captions: as long, and as rare, as people's.

    Args:
        data: a real data set; its training images count, at most ``n_images`` of them. A captions
            file is taken without its photos unless ``pictures`` are asked for.
        folder: where ``pictures`` are drawn, JPEGs of 500 x 375; images beyond that number
            share them.
        n_images: how many.
        pictures: how many are drawn.

    Raises:
        UserError: there is no such data set, or no image in its training split.
    """
    if data and data.is_file() and not pictures:
        named = list(read_captions(data).of_image.items())[:n_images]
        examples = [Example(image, folder / image, texts) for image, texts in named]
    elif data:
        examples = load_corpus(data).splits["train"][:n_images]
    else:
        examples = _made_up(folder, n_images, pictures)
    if not examples:
        raise cli.UserError(f"the train split of {data} is empty: give other --data.")
    return Corpus(data or folder, {"train": examples, "val": examples[:20], "test": []}, "nothing")


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


def draw(path: Path, rng: random.Random, size: tuple[int, int] = (500, 375)) -> Path:
    """A scene as a photo of common size, or another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    demo.paint(demo.random_scene(rng), 256).resize(size).save(path, quality=90)
    return path


def train_in(folder: Path, flags: Sequence[str]) -> Path:
    """Train as `train.py` would with these flags, without output: where best.pt is."""
    places = ["--checkpoints", f"{folder}/checkpoints", "--runs", f"{folder}/runs"]
    with contextlib.redirect_stdout(io.StringIO()):
        status = train.main([*flags, *places, "--quiet"])
    if status:
        sys.exit(status)  # it has said why
    return folder / "checkpoints/best.pt"


class Training:
    """The steps of `train.train_stage`, on made-up features, with a new model.

    The loop of a step stands here once more: in `train.train_stage` it cannot be had without the
    validation, the checkpoints and the logs of an epoch, which would be timed with it.

    Attributes:
        model: trained in place, its encoder frozen.
        vocabulary: of the captions.
        train_set: made-up features for the images of the corpus, with their captions.
        plan: of the first epoch.
        loss_function: of the stage.
    """

    def __init__(
        self,
        found: Corpus,
        *,
        stage: str = "xe",
        vocabulary: Vocabulary | None = None,
        **changed: object,
    ) -> None:
        """Get ready for the first step of a stage.

        Args:
            found: its captions are learned.
            stage: ``xe`` or ``scst``.
            vocabulary: left out, counted in the captions.
            changed: settings.
        """
        self.settings = settings = train.Settings(device="cpu", **changed)
        stages = {stage.name: stage for stage in train.make_stages(settings)}
        self.vocabulary = vocabulary or make_vocabulary(cli.plain(settings), found, None)
        torch.manual_seed(0)
        self.model = ImageCaptioningModel(len(self.vocabulary))
        examples = found.splits["train"]
        features = torch.rand(len(examples), self.model.feature_size)
        self.model.set_feature_stats(features)
        self.train_set = Flickr30k(examples, self.vocabulary, DEVICE, features=features)
        self.stage = stages[stage]
        self.loss_function = train.make_loss(settings, self.stage, self.train_set)
        self.optimizer = learning.make_optimizer(
            self.model,
            learning_rate=self.stage.learning_rate,
            encoder_learning_rate=settings.encoder_learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.gradients = distributed.Gradients(self.model.parameters())
        self.plan = self.make_plan()
        n_steps = self.stage.epochs * len(self.plan)
        self.state = learning.TrainState(stage, n_steps=n_steps)

    def make_plan(self) -> list[list[int]]:
        """The batches of an epoch."""
        return train.make_plan(self.settings, self.stage, self.train_set, epoch=0)

    def steps(self, plan: list[list[int]]) -> None:
        """What `train.train_stage` does with each batch, in its order: keep it so."""
        settings, state = self.settings, self.state
        self.model.train()
        for batch in batches(self.train_set, plan):
            with cli.finish_before_stopping():
                learning.seed_step(DEVICE, settings.seed, state.step)
                factor = learning.warmup_then_cosine(
                    state.stage_step, state.n_steps, settings.warmup
                )
                learning.set_learning_rate(self.optimizer, factor)
                assert batch.features is not None
                loss = self.loss_function(self.model, batch.features, batch)
                self.gradients.clear()
                loss.mean.backward()
                loss = Loss(*self.gradients.add_up(loss.mean, loss.total), loss.count)
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
                self.optimizer.step()
                state.finish_step(loss, batch.n_words)
            assert math.isfinite(loss.mean.item())

    def n_words(self, plan: list[list[int]]) -> int:
        """How many words the batches of a plan have to learn, ``<end>`` one of them."""
        return int(sum((self.train_set.lengths[captions] - 1).sum() for captions in plan))


def save_model(path: Path, encoder: str, image_size: int) -> ImageCaptioningModel:
    """A checkpoint with random weights: its captions end at 12 words, as long as people's.

    It has the captions of as many similar photos as Flickr8k has.
    """
    torch.manual_seed(0)
    model = ImageCaptioningModel(N_WORDS, encoder=encoder).eval()
    words = [*SPECIAL_TOKENS, *(f"w{n}" for n in range(N_WORDS - 4))]
    vocabulary = Vocabulary(words, [0] * N_WORDS, language="en")
    settings = cli.plain(train.Settings(encoder=encoder, image_size=image_size, max_words=12))
    rng = random.Random(0)
    told = [[rng.choices(range(4, N_WORDS), k=12) for _ in range(5)] for _ in range(6000)]
    made = Checkpoint(
        model,
        vocabulary,
        settings,
        epoch=0,
        scores={},
        started_at="2026-01-01_00-00-00",
        neighbours=remember(torch.randn(6000, 512), told, vocabulary.counts),
    )
    checkpoint.save(path, made)
    return model
