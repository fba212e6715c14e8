"""What would it take to caption a million pictures, or to train on many GPUs?

    python benchmarks/reckon.py

Measures the parts on one core of this machine, in seconds of the processor, and reckons the rest:
for GPUs from what they are assumed to do, which no run here has shown. Give your own numbers.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from bench import BATCH, Training, corpus, draw, forward_pass, save_model, tell
from bench import Row as Question
from bench import main as run_benchmark

import checkpoint
import parts
from captioner import Caption
from outputs import captions_file
from pictures import Source, read_image, read_pictures, transform
from search import caption

ROUNDS = 5
PHOTOS = 64
FLOAT = 4  # bytes
STEPS = 1450  # an epoch of Flickr30k: 29,000 photos, 145,000 captions, 100 a step
# Launches of a step, as tests/fake_cuda.py counts them for a ResNet-50, and photos that it encodes
# forward (finetune: backward too, which counts twice).
STAGES = {"xe": (8, 160, 0), "finetune": (6, 700, 60), "scst": (3, 1475, 60)}
BEAM = 1220 / 64  # launches of a beam search of 64 pictures, for one
LAUNCH = 8e-6  # seconds that the host takes for one
NETWORK = 10e9  # bytes a second between GPUs
SIZES = {"Flickr30k": 31_014, "1 million": 10**6, "100 million": 10**8}


@dataclass(frozen=True)
class Parts:
    """Milliseconds of one core for a picture, and what a step of training is made of."""

    read: float
    python: float  # of reading, what Python does, and only one thread at a time
    encode: float
    search: float
    write: float
    merge: float
    row: float  # bytes
    step: float  # of stage 1, 100 captions
    weights: int  # that learn in stage 1
    weights_finetune: int

    @property
    def picture(self) -> float:
        return self.read + self.encode + self.search + self.write


def of_the_processor(job: Callable[[], object], n: int) -> float:
    """Milliseconds that one of ``n`` things takes a core, the median of some rounds."""
    times = []
    for _ in range(ROUNDS + 1):
        started = time.process_time()
        job()
        times.append(time.process_time() - started)
    return 1000 * statistics.median(times[1:]) / n


def measured(folder: Path) -> Parts:
    torch.set_num_threads(1)
    rng = random.Random(0)
    photos = [draw(folder / f"{n}.jpg", rng) for n in range(PHOTOS)]
    model = save_model(folder / "model.pt", "resnet50", 224)
    forward = forward_pass(model)
    features = torch.rand(PHOTOS, model.feature_size)
    search = checkpoint.load(folder / "model.pt", torch.device("cpu")).search()
    n_rows = 20_000
    found = Caption("a man in a red shirt rides a bicycle down a street", -9.5, -0.8, 0.5, [])

    def write() -> None:
        made = {"part": 0, "before": "e3b0c44298fc1c14", "after": ""}
        with captions_file(folder / "parts/part-00000.jsonl", made, separator="comma",
                           resume=False, overwrite=True) as output:  # fmt: skip
            for n in range(n_rows):
                output.write(Source(Path(f"/pictures/{n:09d}.jpg")), [found])
            output.facts = {"n_failed": 0, "is_last": True}

    def merge() -> None:
        parts.merge(folder / "parts", folder / "all.jsonl", "comma", frozenset({"overwrite"}))

    def read() -> None:
        for photo in photos:
            transform(read_image(photo, size=224), 224)

    def read_tiny() -> None:
        for _ in read_pictures([Source(tiny)] * n_tiny, 32):
            pass

    n_tiny, tiny = 2000, draw(folder / "tiny.jpg", rng, (32, 32))
    training = Training(corpus(None, folder, n_images=1000))
    plan = training.plan[:10]
    n_learned = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    training.model.unfreeze_encoder(2)
    n_finetune = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    training.model.unfreeze_encoder(0)
    return Parts(
        read=of_the_processor(read, PHOTOS),
        python=of_the_processor(read_tiny, n_tiny),
        encode=of_the_processor(lambda: forward(2 * BATCH), 2 * BATCH),
        search=of_the_processor(lambda: caption([model], [features], search), PHOTOS),
        write=of_the_processor(write, n_rows),
        merge=of_the_processor(merge, n_rows),
        row=(folder / "all.jsonl").stat().st_size / n_rows,
        step=of_the_processor(lambda: training.steps(plan), len(plan)),
        weights=n_learned,
        weights_finetune=n_finetune,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", type=float, default=3000, help="photos a second that one encodes")
    parser.add_argument("--cores", type=int, default=16, help="beside each GPU")
    parser.add_argument("--gpu-hour", type=float, default=3.0, help="price, cores included")
    parser.add_argument("--core-hour", type=float, default=0.04, help="price of one without a GPU")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measured(Path(name))
    tell([
        Question(f"measured: {what}", [value], unit, None)
        for what, value, unit in (
            ("a picture of 500 x 375 is read and resized", found.read, "ms"),
            ("of that, Python's, in one thread at a time", found.python, "ms"),
            ("and encoded, ResNet-50", found.encode, "ms"),
            ("and captioned, beam 3, 64 at once", found.search, "ms"),
            ("and written", found.write, "ms"),
            ("and joined with the others", found.merge, "ms"),
            ("bytes of a caption", found.row, ""),
            ("a step of stage 1, 100 captions", found.step, "ms"),
            ("gradients added up in a step of stage 1", found.weights * FLOAT / 2**20, "MiB"),
            ("and of stage 2", found.weights_finetune * FLOAT / 2**20, "MiB"),
        )
    ])  # fmt: skip
    captioning(found, args)
    training_on(found, args.gpu)


def captioning(found: Parts, args: argparse.Namespace) -> None:
    """Hours and prices. A GPU waits for whichever is slowest: itself, its cores or Python."""
    hours = 1e6 * found.picture / 3.6e6
    limits = {
        "the GPU": 1 / (1 / args.gpu + BEAM * LAUNCH),
        f"its {args.cores} cores": args.cores * 1000 / (found.read + found.write),
        "Python": 1000 / (found.python + found.write),
    }
    rate = min(limits.values())
    gpu_hours = 1e6 / rate / 3600
    print(
        f"\nreckoned: a million captions take {hours:.0f} core-hours, "
        f"{hours * args.core_hour:.2f} at {args.core_hour} each; or {gpu_hours:.2f} GPU-hours, "
        f"{gpu_hours * args.gpu_hour:.2f} at {args.gpu_hour} each, at {rate:,.0f} pictures/s: "
        f"{', '.join(f'{value:,.0f} by {name}' for name, value in limits.items())}\n"
    )
    print("| reckoned hours | 1 core | 16 cores | 1 GPU | 8 GPUs | 64 GPUs |\n|" + "---|" * 6)
    for size, n_pictures in SIZES.items():
        of_core, of_gpu = n_pictures * found.picture / 3.6e6, n_pictures / rate / 3600
        hours_of = [of_core / n for n in (1, 16)] + [of_gpu / n for n in (1, 8, 64)]
        print(f"| {size} | " + " | ".join(f"{value:,.2g}" for value in hours_of) + " |")


def training_on(found: Parts, gpu: float) -> None:
    """Minutes of all epochs of a stage, on Flickr30k."""
    print("\n| reckoned minutes | 1 GPU | 8 GPUs | 64 GPUs |\n|" + "---|" * 4)
    for stage, (epochs, launches, photos) in STAGES.items():
        n_bytes = FLOAT * (found.weights if stage == "xe" else found.weights_finetune)
        minutes = []
        for n in (1, 8, 64):
            exchange = 2 * n_bytes * (n - 1) / n / NETWORK  # a ring
            step = max(launches * LAUNCH, photos / n / gpu) + exchange
            minutes.append(epochs * STEPS * step / 60)
        print(f"| {stage}, {epochs} epochs | " + " | ".join(f"{m:.1f}" for m in minutes) + " |")


if __name__ == "__main__":
    run_benchmark(main)
