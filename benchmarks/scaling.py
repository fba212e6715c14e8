"""Does an epoch's time grow faster than its words?

    python benchmarks/scaling.py --captions flickr30k_images/results.csv

Stage 1 on made-up vectors for 6,000 images and for 31,014, as many as Flickr30k has, with the same
vocabulary. Batches are planned in full; forty are trained on, and their time scaled by their words.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from bench import Row, arguments, corpus, run_on, seconds, tell

import train
from loader import collate

FEW, MANY = 6000, 31014
STEPS = 40


def epoch(run: train.Run) -> float:
    """Seconds of a whole epoch: of some steps, scaled by their words."""
    plan: list = []
    planning = seconds(lambda: plan.extend(run.plan(0)))
    n_done = 0

    def steps() -> None:
        nonlocal n_done
        run.model.train()
        for pairs in plan[:: len(plan) // STEPS]:
            batch = collate(run.train_set, pairs)
            run.train_step(batch, run.place.sums)
            n_done += batch.n_words

    return planning + seconds(steps) / n_done * n_words(run)


def n_words(run: train.Run) -> int:
    return sum(len(ids) - 1 for image in run.train_set.captions for ids in image)


def main() -> None:
    args = arguments(__doc__, "captions", "rounds").parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many = run_on(corpus(args.captions, folder, n_images=MANY), folder)
        few_images = corpus(args.captions, folder, n_images=FEW)
        few = run_on(few_images, folder, vocabulary=many.vocabulary)
        epoch(few)  # a warm-up
        times = [(epoch(few), epoch(many)) for _ in range(args.rounds)]
    short, long = np.array(times).T
    words = n_words(many) / n_words(few)
    growth, seconds_long = np.median(long / short), np.median(long)
    note = f"{words:.2f} times the words in {growth:.2f} times the time, {seconds_long:.0f} s"
    row = Row("an epoch's growth from 6,000 images to 31,014, against its words'",
              long / short / words, "x", 1.0, at_most=True, note=note)  # fmt: skip
    tell([row])


if __name__ == "__main__":
    main()
