"""What share of a self-critical step goes into rewards?

python benchmarks/rewards.py --data flickr8k
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from bench import Row, Training, arguments, corpus, seconds, tell
from bench import main as run_benchmark

STEPS = 8


def main() -> None:
    args = arguments(__doc__, "data", "rounds").parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = corpus(args.data, Path(name), n_images=2000)
        # On features: without the encoder's time, which would hide the rewards'.
        training = Training(found, stage="scst", scst_epochs=1)
        reward, spent = training.loss_function.reward, 0.0

        def timed(*args):
            nonlocal spent
            started = time.perf_counter()
            try:
                return reward(*args)
            finally:
                spent += time.perf_counter() - started

        training.loss_function.__dict__["reward"] = timed  # in place of the cached property

        def steps() -> None:
            training.steps(training.plan[:STEPS])

        steps()  # a warm-up
        times = []
        for _ in range(args.rounds):
            spent = 0.0
            whole = seconds(steps)
            times.append((spent, whole))
    spent, whole = np.array(times).T / STEPS
    ms = f"{1000 * np.median(spent):.1f} of {1000 * np.median(whole):.0f} ms"
    note = f"{ms} a step, encoder left out"
    share = 100 * spent / whole
    tell([Row("rewards, of a self-critical step", share, "%", 15, at_most=True, note=note)])


if __name__ == "__main__":
    run_benchmark(main)
