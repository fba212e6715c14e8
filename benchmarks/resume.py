"""Does a run of `predict.py` that is killed and resumed write what an unbroken one writes?

    python benchmarks/resume.py --pictures 3000 --kills 5

Captions drawn pictures with a small model whose weights are random, once without a stop and once
killed by SIGKILL at random moments and resumed. What counts is whether the files are the same to
the last byte, and each picture is in them once.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import ROOT, Row, tell
from bench import main as run_benchmark
from folder import small_job

from cli import DONE, UserError


def start(trained: Path, pictures: Path, output: Path, *flags: str) -> subprocess.Popen[bytes]:
    """Start a run, or resume one."""
    command = [sys.executable, ROOT / "predict.py", pictures, "--checkpoint", trained]
    command += ["--output", output, "--max-words", "8", "--quiet", *flags]
    return subprocess.Popen(command, cwd=ROOT)


def n_written(output: Path) -> int:
    """How many pictures are in the part, about."""
    part = output.with_name(f"{output.name}.part")
    return part.read_bytes().count(b"\n") - 1 if part.exists() else 0


def killed_and_resumed(trained: Path, pictures: Path, output: Path, moments: list[int]) -> None:
    """A run that is killed whenever so many pictures are written, and resumed to its end."""
    for moment in moments:
        process = start(trained, pictures, output, "--resume")
        while process.poll() is None and n_written(output) < moment:
            time.sleep(0.002)
        process.kill()
        process.wait()
    if start(trained, pictures, output, "--resume").wait() != DONE:
        raise UserError("the last run failed.")


def names_in(output: Path) -> list[str]:
    with output.open(encoding="utf-8", newline="") as file:
        if output.suffix == ".csv":
            return [row["image"] for row in csv.DictReader(file)]
        return [json.loads(line)["image"] for line in file]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--kills", type=int, default=5)
    args = parser.parse_args()
    rng = random.Random(0)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, trained = small_job(folder, args.pictures, rng)
        for suffix in (".csv", ".jsonl"):
            whole, resumed = folder / f"whole{suffix}", folder / f"resumed{suffix}"
            if start(trained, pictures, whole).wait() != DONE:
                raise UserError("a run without a stop failed.")
            moments = sorted(rng.sample(range(args.pictures), args.kills))
            killed_and_resumed(trained, pictures, resumed, moments)
            names = names_in(resumed)
            is_same = whole.read_bytes() == resumed.read_bytes()
            is_once = len(names) == len(set(names)) == args.pictures
            rows.append(
                Row(f"{suffix} of {args.pictures:,} pictures, killed {args.kills} times, the same "
                    "bytes as unbroken, each picture once", [100.0 * (is_same and is_once)], "%",
                    100, note=f"killed after about {', '.join(map(str, moments))} pictures")
            )  # fmt: skip
    tell(rows)


if __name__ == "__main__":
    run_benchmark(main)
