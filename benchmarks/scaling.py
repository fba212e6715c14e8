"""Does an epoch's time grow faster than its words?

    python benchmarks/scaling.py --captions flickr30k_images/results.csv

Stage 1 on made-up features for 6,000 images and for 31,014, as many as Flickr30k has, with the same
vocabulary. Batches are planned in full; forty are trained on, and their time scaled by their words.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from bench import Row, Training, arguments, corpus, seconds, tell
from bench import main as run_benchmark

FEW, MANY = 6000, 31014
STEPS = 40


def epoch(training: Training) -> float:
    """Seconds of a whole epoch: of some steps, scaled by their words."""
    planning = seconds(training.make_plan)
    part = training.plan[:: max(1, len(training.plan) // STEPS)]
    share = training.n_words(part) / training.n_words(training.plan)
    return planning + seconds(lambda: training.steps(part)) / share


def main() -> None:
    args = arguments(__doc__, "captions", "rounds").parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many = Training(corpus(args.captions, folder, n_images=MANY))
        few_images = corpus(args.captions, folder, n_images=FEW)
        few = Training(few_images, vocabulary=many.vocabulary)
        epoch(few)  # a warm-up
        times = [(epoch(few), epoch(many)) for _ in range(args.rounds)]
    short, long = np.array(times).T
    words = many.n_words(many.plan) / few.n_words(few.plan)
    growth, seconds_long = np.median(long / short), np.median(long)
    note = f"{words:.2f} times the words in {growth:.2f} times the time, {seconds_long:.0f} s"
    row = Row("an epoch's growth from 6,000 images to 31,014, against its words'",
              long / short / words, "x", 1.0, at_most=True, note=note)  # fmt: skip
    tell([row])


if __name__ == "__main__":
    run_benchmark(main)
