"""What share of a self-critical step goes into rewards?

python benchmarks/rewards.py --data flickr8k
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from bench import Row, arguments, corpus, run_on, seconds, tell

from loader import collate

STEPS = 8


def main() -> None:
    args = arguments(__doc__, "data", "rounds").parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = corpus(args.data, folder, n_images=2000)
        # Vectors, crop 1: without the encoder's time, which would hide the rewards'.
        run = run_on(found, folder, stage=2, scst_epochs=1, crop=1.0)
        reward, spent = run.reward, 0.0

        def timed(*args):
            nonlocal spent
            started = time.perf_counter()
            try:
                return reward(*args)
            finally:
                spent += time.perf_counter() - started

        run.reward = timed
        plan = run.plan(0)
        run.model.train()

        def steps() -> None:
            for pairs in plan[:STEPS]:
                run.train_step(collate(run.train_set, pairs), run.place.sums)

        steps()  # a warm-up; n-grams of references are counted when they are first met
        times = []
        for _ in range(args.rounds):
            spent = 0.0
            whole = seconds(steps)
            times.append((spent, whole))
    spent, whole = np.array(times).T / STEPS
    ms = f"{1000 * np.median(spent):.0f} of {1000 * np.median(whole):.0f} ms"
    note = f"{ms} a step, encoder left out"
    share = 100 * spent / whole
    tell([Row("rewards, of a self-critical step", share, "%", 15, at_most=True, note=note)])


if __name__ == "__main__":
    main()
