"""How much does it save to describe many images at once?

python benchmarks/beam.py
"""

from __future__ import annotations

import numpy as np
import torch
from bench import N_WORDS, Row, arguments, in_turn, tell
from bench import main as run_benchmark

from model import ImageCaptioningModel
from search import Search, caption

N_IMAGES, ALONE = 256, 64


def main() -> None:
    args = arguments(__doc__, "rounds").parse_args()
    torch.manual_seed(0)
    model = ImageCaptioningModel(N_WORDS, encoder="resnet18").eval()
    features = torch.rand(N_IMAGES, model.feature_size)
    # Random weights give no <end>: all captions are as long.
    search = Search(beam_size=3, max_words=12, no_repeat_ngram_size=0)
    times = in_turn(
        {
            "at once": lambda: caption([model], [features], search, batch_size=N_IMAGES),
            "one by one": lambda: caption([model], [features[:ALONE]], search, batch_size=1),
        },
        args.rounds,
    )
    at_once, alone = N_IMAGES / times["at once"], ALONE / times["one by one"]
    note = f"{np.median(at_once):,.0f} images/s against {np.median(alone):,.0f}, 12 words each"
    question = "beam search on 256 vectors at once, against one by one"
    tell([Row(question, at_once / alone, "x", 5, note=note)])


if __name__ == "__main__":
    run_benchmark(main)
