"""Do several processes train what one trains? By how much do losses and weights differ?

    python benchmarks/processes.py

Fifty steps and more of each stage, begun from the same weights, on drawn scenes, in float32 and in
float64. Beside two and three processes stands one with another number of threads, which adds up in
another order too: what differs there is rounding, and how it grows.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from bench import ROOT, Row, tell
from bench import main as run_benchmark

sys.path.insert(0, str(ROOT / "tests"))

from torchrun import Done, difference, do, draw, flags_of, scores_differ

from cli import UserError

SCENES = 230  # 50 steps of four images and more
STAGES = ("xe", "finetune", "scst")
LIMIT = 1e-5


def train(folder: Path, scenes: Path, stage: str, init: Path | None, **how: object) -> Done:
    """An epoch of a stage."""
    epochs = {f"{name}_epochs": int(name == stage) for name in STAGES[1:]}
    changed = {"epochs": int(stage == "xe"), **epochs, **({"init": init} if init else {})}
    done = do(folder, flags_of(scenes, folder, **changed), **how)
    if done.status:
        raise UserError(f"{stage} failed: {done.stderr[-500:]}")
    return done


def row(stage: str, what: str, one: Done, other: Done, target: float | None) -> Row:
    """How far two trainings are apart."""
    ours, theirs = one.losses(), other.losses()
    losses = float(np.abs(ours / theirs - 1).max())
    weights = difference(one, other)
    scores = scores_differ(one, other)
    note = f"losses {losses:.1e}, weights {weights:.1e}, validation scores {scores:.1e}"
    question = f"{stage}, {len(ours)} steps, {what}: largest relative difference"
    return Row(question, [max(losses, weights)], "", target, at_most=True, note=note)


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        scenes = draw(Path(name) / "scenes", SCENES)
        for float64 in (False, True):
            precision, init = "float64" if float64 else "float32", None
            for stage in STAGES:
                folder = Path(name) / precision / stage
                how = {"float64": float64, "OMP_NUM_THREADS": "1"}
                one = train(folder / "1", scenes, stage, init, n=1, **how)
                for n in (2, 3):
                    other = train(folder / str(n), scenes, stage, init, n=n, **how)
                    rows.append(row(stage, f"{precision}, {n} processes", one, other, LIMIT))
                threads = {**how, "OMP_NUM_THREADS": "2"}
                other = train(folder / "threads", scenes, stage, init, n=1, **threads)
                rows.append(row(stage, f"{precision}, 2 threads against 1", one, other, None))
                init = init or one.folder / "checkpoints" / "best.pt"
    tell(rows)


if __name__ == "__main__":
    run_benchmark(main)
