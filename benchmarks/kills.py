"""Does a training that is killed and resumed end as the one that was not?

    python benchmarks/kills.py --kills 50

Trains a tiny model through all three stages, then again and again with a kill by SIGKILL, SIGINT or
SIGTERM: at a random moment, or right after `best.pt` or `last.pt` has been written. Each is resumed
until it ends. What counts is whether all weights and scores are the same to the last bit, and
whether files are left behind.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from bench import ROOT, Row, tell
from bench import main as run_benchmark

import checkpoint
import cli
import demo
from resnet import ResNet

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
MOMENTS = ("at random", "best.pt", "last.pt")


def start(folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    """Start a training, or resume one."""
    command = [sys.executable, ROOT / "train.py", "--checkpoints", folder / "checkpoints", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def flags_of(data: Path, folder: Path) -> list[str]:
    """Those of a run that is small and goes through all stages."""
    weights = data / "weights.pth"
    return [
        *("--data", str(data), "--runs", str(folder / "runs"), "--cache", str(folder / "cache")),
        *("--encoder", "resnet18", "--encoder-weights", str(weights), "--image-size", "32"),
        *("--embedding-size", "16", "--hidden-size", "32", "--batch-size", "25"),
        *("--epochs", "2", "--finetune-epochs", "2", "--scst-epochs", "2", "--device", "cpu"),
    ]


def begin(data: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Resume the run of a folder, or start it where nothing was saved yet."""
    is_saved = (folder / "checkpoints/last.pt").exists()
    return start(folder, *(["--resume"] if is_saved else flags_of(data, folder)))


def kill(
    process: subprocess.Popen[bytes], folder: Path, number: int, moment: str, at: float
) -> bool:
    """Send the signal; False if the run had ended by then."""
    file, deadline = folder / "checkpoints" / moment, time.perf_counter() + at
    before = file.stat().st_mtime_ns if file.exists() else None
    while process.poll() is None:
        now = file.stat().st_mtime_ns if file.exists() else None
        if time.perf_counter() > deadline if moment == "at random" else now != before:
            process.send_signal(number)
            process.wait()
            return process.returncode != cli.DONE
        time.sleep(0.0005)
    return False


def results(folder: Path) -> list[object]:
    """All that two runs should have in common."""
    found: list[object] = []
    for name in ("best.pt", "last.pt"):
        content = checkpoint.load(folder / "checkpoints" / name)
        found += [content.epoch, content.scores, *content.model.state_dict().values()]
    return found


def are_equal(one: list[object], other: list[object]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)

    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        data, unbroken = Path(name, "data"), Path(name, "unbroken")
        demo.draw(data, n_scenes=60, size=32)
        torch.manual_seed(0)
        torch.save(ResNet("resnet18").state_dict(), data / "weights.pth")
        started = time.perf_counter()
        process = begin(data, unbroken)
        _, error = process.communicate()
        assert process.returncode == cli.DONE, error.decode()
        seconds = time.perf_counter() - started
        wanted = results(unbroken)
        for n in itertools.count():
            if outcomes["kills"] >= args.kills:
                break
            folder = Path(name, str(n))
            number, moment = SIGNALS[n % 3], MOMENTS[n // 3 % 3]
            n_kills = 1 if moment == "at random" else rng.randint(1, 5)  # at its next writings
            for _ in range(n_kills):
                process = begin(data, folder)
                if not kill(process, folder, number, moment, rng.uniform(0, seconds)):
                    break
                outcomes["kills"] += 1
            else:
                process = begin(data, folder)
            _, error = process.communicate()
            if process.returncode != cli.DONE:
                print(error.decode(), file=sys.stderr)
            is_same = process.returncode == cli.DONE and are_equal(results(folder), wanted)
            left = [path for path in folder.rglob("*") if ".part" in path.suffixes]
            outcomes["the same to the last bit"] += is_same
            outcomes["files left behind"] += len(left)
            print(f"{n + 1}: {number.name} {moment}: {dict(outcomes)}", file=sys.stderr)
    note = ", ".join(f"{what} {times}" for what, times in outcomes.items())
    share = 100 * outcomes["the same to the last bit"] / args.kills
    tell(
        [
            Row(
                f"{args.kills} trainings killed and resumed end the same",
                [share],
                "%",
                100,
                note=note,
            )
        ]
    )


if __name__ == "__main__":
    run_benchmark(main)
