"""How long does `python predict.py --image one.jpg` take beside the least that could be done?

    python benchmarks/start.py
    python benchmarks/start.py --checkpoint checkpoints/best.pt --image photo.jpg

The peer imports torch and torchvision, builds the same ResNet, loads the same weights and runs one
forward pass. Both are whole processes, in turn; medians of their wall times.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench import ROOT, Row, arguments, draw, in_turn, save_model, tell
from bench import main as run_benchmark

import checkpoint
from pictures import read_image

PEER = """
import sys, torch, torchvision
encoder, weights = sys.argv[1:]
model = getattr(torchvision.models, encoder)()
model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
model.eval()
with torch.inference_mode():
    model(torch.zeros(1, 3, 224, 224))
"""


def main() -> None:
    parser = arguments(__doc__, "rounds")
    parser.add_argument("--checkpoint", type=Path, help="a trained model; else a random one")
    parser.add_argument("--image", type=Path, help="a picture; else one is drawn")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = args.checkpoint or folder / "random.pt"
        if not args.checkpoint:
            save_model(trained, "resnet50", 224)
        image = args.image or draw(folder / "drawn.jpg", random.Random(0))
        read_image(image)  # one that predict.py cannot read is an error now
        model = checkpoint.load(trained).model
        weights = folder / "weights.pth"
        torch.save(model.encoder.state_dict(), weights)
        peer = [sys.executable, "-c", PEER, model.options["encoder"], weights]
        ours = [sys.executable, ROOT / "predict.py", "--checkpoint", trained, "--image", image]
        times = in_turn(
            {
                "minimal script": lambda: subprocess.run(peer, check=True, capture_output=True),
                "predict.py": lambda: subprocess.run(ours, check=True, capture_output=True),
            },
            args.rounds,
        )
    ours, peer = times["predict.py"], times["minimal script"]
    note = f"{np.median(ours):.2f} s against {np.median(peer):.2f} s"
    question = "one picture with predict.py, against a minimal script with torchvision"
    tell([Row(question, ours / peer, "x", 0.75, at_most=True, note=note)])


if __name__ == "__main__":
    run_benchmark(main)
