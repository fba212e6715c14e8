"""How fast does `predict.py` describe a folder, and how much memory does that take?

    python benchmarks/folder.py --data flickr8k

Whole processes, their start included. The time is compared with the ResNet's forward pass alone,
the memory of 10,000 pictures with that of 100; with a small model, beside which they weigh most,
the time with sidecars and with a table with that without. Weights are random: captions mean
nothing, but are about as long as real ones.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench import (
    BATCH,
    ROOT,
    Row,
    arguments,
    corpus,
    draw,
    forward_pass,
    save_model,
    seconds,
    tell,
)
from bench import main as run_benchmark

from cli import BeamSettings, UserError

N_PHOTOS = 2000
ROUNDS = 3  # half a minute or more each
PART = 320  # photos whose forward pass alone is timed, before and after
FEW, MANY = 100, 10_000


def predict(trained: Path, pictures: Path, *flags: str) -> tuple[float, float]:
    """Seconds, and peak memory in MiB, of `predict.py` on a folder."""
    command = [sys.executable, ROOT / "predict.py", "--checkpoint", trained, "--image", pictures]
    command += flags
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise UserError(
            f"predict.py failed on {pictures}: are all photos of --data there, and readable?"
        )
    return time.perf_counter() - started, used.ru_maxrss / 1024


def link(paths: list[Path], folder: Path, number: int) -> Path:
    """A folder of so many pictures, which are links to these again and again."""
    folder.mkdir()
    for n, path in zip(range(number), itertools.cycle(paths), strict=False):
        (folder / f"{n:05d}.jpg").symlink_to(path.resolve())
    return folder


def small_job(
    folder: Path, number: int, rng: random.Random, size: tuple[int, int] = (500, 375)
) -> tuple[Path, Path]:
    """A folder of so many drawn pictures, and a small model to caption them with."""
    drawn = [draw(folder / f"drawn/{n}.jpg", rng, size) for n in range(50)]
    trained = folder / "model.pt"
    save_model(trained, "resnet18", 64)
    return link(drawn, folder / "pictures", number), trained


def main() -> None:
    args = arguments(__doc__, "data").parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = corpus(args.data, folder / "drawn", n_images=N_PHOTOS, pictures=200)
        paths = [example.path for example in found.splits["train"]]
        photos = link(paths, folder / "photos", N_PHOTOS)
        trained = folder / "large.pt"
        model = save_model(trained, "resnet50", 224)
        forward = forward_pass(model)
        forward(2 * BATCH)  # a warm-up
        alone, whole = [], []
        before = seconds(lambda: forward(PART))
        for _ in range(ROUNDS):
            whole.append(predict(trained, photos)[0])
            after = seconds(lambda: forward(PART))  # the machine may have become slower or faster
            alone.append((before + after) / (2 * PART) * N_PHOTOS)
            before = after
        shares = 100 * np.array(alone) / whole
        rates = f"{N_PHOTOS / np.median(whole):.1f} photos/s of {N_PHOTOS / np.median(alone):.1f}"

        small = folder / "small.pt"
        save_model(small, "resnet18", 64)
        quick = ("--beam-size", "1", "--max-words", "4")
        _, few = predict(small, link(paths, folder / "few", FEW), *quick)
        seconds_many, many = predict(small, link(paths, folder / "many", MANY), *quick)
        table = ("--output", str(folder / "captions.csv"), "--overwrite")
        beside = ("--sidecar", "txt", "--sidecar-folder", str(folder / "sidecars"))
        beside += ("--existing", "overwrite")
        rounds = [
            [predict(small, photos, *quick, *flags)[0] for flags in ((), table, beside)]
            for _ in range(ROUNDS)
        ]
        plain, with_table, with_sidecars = np.array(rounds).T
    tell(
        [
            Row("describing a folder of 2,000 photos, of the forward pass alone",
                shares, "%", 80, note=f"beam {BeamSettings.beam_size}, similar photos, {rates}"),
            Row("memory for 10,000 pictures, against 100", [many / few], "x", 1.1, at_most=True,
                note=f"{many:.0f} MiB and {few:.0f} MiB; a small model and 4 words, "
                f"{MANY / seconds_many:.0f} pictures/s"),
            Row("time of 2,000 photos with --output captions.csv, against without",
                with_table / plain, "x", 1.05, at_most=True, note="the small model, 4 words"),
            Row("time of 2,000 photos with --sidecar txt, against without",
                with_sidecars / plain, "x", 1.1, at_most=True, note="the small model, 4 words"),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    run_benchmark(main)
