"""Do two processes caption a large folder in half the time, and each picture once, though killed?

    python benchmarks/parts.py --pictures 100000 --kills 3

One process, then two under `torchrun`, one thread each, caption drawn pictures with a small model
whose weights are random. Then two are started once more, and both killed by SIGKILL at random
moments and started again. What counts is the time, and whether the parts, joined, are the same
bytes.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import ROOT, Row, tell
from bench import main as run_benchmark
from folder import small_job

from cli import UserError

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(trained: Path, pictures: Path, output: Path, n_processes: int) -> subprocess.Popen[bytes]:
    """Start so many processes that write to a folder."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(n_processes)]
    command = [sys.executable, *launcher, ROOT / "predict.py", pictures, "--checkpoint", trained]
    command += ["--output", output, "--beam-size", "1", "--max-words", "6", "--quiet"]
    return subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stderr=subprocess.PIPE)


def run(trained: Path, pictures: Path, output: Path, n_processes: int) -> float:
    """Seconds until all is done."""
    started = time.perf_counter()
    process = start(trained, pictures, output, n_processes)
    _, stderr = process.communicate()
    if process.returncode:
        raise UserError(f"a run without a stop failed: {stderr.decode()[-500:]}")
    return time.perf_counter() - started


def kill_after(process: subprocess.Popen[bytes], seconds: float, output: Path) -> None:
    """Kill a launcher and all that it started: they have sessions of their own."""
    time.sleep(seconds)
    subprocess.run(["pkill", "-9", "-f", str(output)], check=True)
    process.communicate()


def merged(parts: Path, output: Path) -> bytes:
    command = [sys.executable, ROOT / "predict.py", "--merge", parts, "--output", output]
    subprocess.run([*command, "--quiet"], check=True, cwd=ROOT)
    return output.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=3)
    args = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, trained = small_job(folder, args.pictures, rng, (64, 64))
        one = run(trained, pictures, folder / "one", 1)
        two = run(trained, pictures, folder / "two", 2)
        moments = [round(rng.uniform(0.1, 0.6) * two / args.kills + 4) for _ in range(args.kills)]
        for seconds in moments:
            killed = folder / "killed"
            kill_after(start(trained, pictures, killed, 2), seconds, killed)
        run(trained, pictures, folder / "killed", 2)
        expected = merged(folder / "one", folder / "one.jsonl")
        found = [merged(folder / name, folder / f"{name}.jsonl") for name in ("two", "killed")]
        is_once = expected.count(b"\n") == args.pictures and found == [expected, expected]
        rates = f"{args.pictures / two:.0f} pictures/s, one {args.pictures / one:.0f}"
    tell(
        [
            Row(f"two processes on {args.pictures:,} pictures, against one, a thread each",
                [one / two], "x", 1.8, note=rates),
            Row(f"the same, killed {args.kills} times: each picture once, the same bytes",
                [100.0 * is_once], "%", 100,
                note=f"killed after {', '.join(map(str, moments))} s"),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    run_benchmark(main)
