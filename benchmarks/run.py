"""Run the benchmarks of speed and write RESULTS.md: 7 to 15 minutes on two cores.

    python benchmarks/run.py
    python benchmarks/run.py --data flickr8k --captions flickr30k_images/results.csv

Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch
from bench import ROOT, Row, corpus, table
from bench import main as run_benchmark

import cli

HERE = Path(__file__).parent
WITH_DATA = ("epoch", "words", "encoder", "folder", "rewards")
WITH_CAPTIONS = ("scaling",)
WITH_NOTHING = ("beam", "start")


def machine() -> str:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    able = getattr(torch.cpu, "get_capabilities", dict)()
    special = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if able.get(name)]
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, "
        f"{', '.join(special) or 'no special instructions'}; {platform.system()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def rows_of(name: str, flags: list[str]) -> list[Row]:
    """Run a benchmark in a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, HERE / f"{name}.py", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode == cli.FAILED:
        sys.exit(cli.FAILED)  # it has said why
    if done.returncode:
        sys.exit(f"benchmarks/{name}.py failed: see above.")
    print(f"{name:<10}{time.perf_counter() - started:.0f} s", file=sys.stderr)
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with captions and photos; else drawn")
    parser.add_argument("--captions", type=Path, help="Flickr30k's captions; else made up")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md")
    args = parser.parse_args()

    for given in (args.data, args.captions):  # here, not after minutes
        if given:
            corpus(given, HERE, n_images=1)
    started = time.perf_counter()
    flags = {name: ["--data", str(args.data.resolve())] for name in WITH_DATA if args.data}
    flags |= {
        n: ["--captions", str(args.captions.resolve())] for n in WITH_CAPTIONS if args.captions
    }
    names = (*WITH_DATA, *WITH_CAPTIONS, *WITH_NOTHING)
    rows = [row for name in names for row in rows_of(name, flags.get(name, []))]
    minutes = (time.perf_counter() - started) / 60
    data = f"photos of {args.data.name}" if args.data else "drawn pictures and made-up captions"
    how = f"`python benchmarks/run.py` on {date.today()}, {minutes:.0f} minutes, {data}"
    args.output.write_text(
        f"# Speed\n\n{how}.\n\n"
        f"{machine()}.\n\nRatios of jobs that were timed in turn in one run; each figure comes "
        f"from the script in this folder that asks its question.\n\n{table(rows)}\n",
        encoding="utf-8",
    )
    print(table(rows))


if __name__ == "__main__":
    run_benchmark(main)
