"""How near is stage 1 to the bare matrix products that it consists of?

    python benchmarks/words.py --data flickr8k

The bare loop multiplies matrices of the same shapes, forward and backward, in the same precision,
and does nothing else: no activation, loss, dropout, optimizer, nor words.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from bench import DEVICE, Row, Training, arguments, corpus, in_turn, tell
from bench import main as run_benchmark

from loader import Batch, batches
from model import has_bfloat16

STEPS = 10


class Product:
    """A linear layer's three products: (M, K) x (K, N) forward, and for both gradients."""

    def __init__(self, n_in: int, n_out: int, dtype: torch.dtype) -> None:
        self.weight = torch.randn(n_out, n_in, dtype=dtype)
        self.x = torch.randn(20000, n_in, dtype=dtype)
        self.y = torch.randn(20000, n_out, dtype=dtype)

    def __call__(self, n_rows: int, times: int = 1) -> None:
        x, y = self.x[:n_rows], self.y[:n_rows]
        for _ in range(times):
            x @ self.weight.T
            y @ self.weight
            y.T @ x


def main() -> None:
    args = arguments(__doc__, "data", "rounds").parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = corpus(args.data, Path(name), n_images=6000)
        training = Training(found)
        dtype = torch.bfloat16 if has_bfloat16(DEVICE) else torch.float32
        size, gates = training.settings.hidden_size, 4 * training.settings.hidden_size
        image = Product(training.model.feature_size, size, dtype)
        inputs, recurrence = Product(size, gates, dtype), Product(size, gates, dtype)
        words = Product(size, len(training.vocabulary), dtype)

        def bare(batch: Batch) -> None:
            n_captions, length = batch.tokens.shape
            n_images = len(batch.host_image_index)
            image(n_images)
            inputs(n_images)  # the image is the first word; before it there is no state
            inputs(n_captions * (length - 1))
            recurrence(n_captions, times=length - 1)
            words(batch.n_words)

        plan = training.plan[:STEPS]
        made = list(batches(training.train_set, plan))
        n_words = training.n_words(plan)
        jobs = {
            "ours": lambda: training.steps(plan),
            "bare": lambda: [bare(batch) for batch in made],
        }
        times = in_turn(jobs, args.rounds)
    rates = {name: f"{n_words / np.median(found):,.0f}" for name, found in times.items()}
    note = f"{rates['ours']} words/s of {rates['bare']}, {dtype}"
    share = 100 * times["bare"] / times["ours"]
    tell([Row("words a second in stage 1, of the bare products'", share, "%", 70, note=note)])


if __name__ == "__main__":
    run_benchmark(main)
