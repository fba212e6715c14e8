"""How long does `python predict.py --image one.jpg` take beside the least that could be done?

    python benchmarks/predict_start.py --checkpoint checkpoints/best.pt --image photo.jpg

The peer imports torch and torchvision, builds the same ResNet, loads the same weights and runs one
forward pass. Both are whole processes, in turn; medians of their wall times.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
TARGET = 1.3

PEER = """
import sys, torch, torchvision
encoder, weights = sys.argv[1:]
model = getattr(torchvision.models, encoder)()
model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
model.eval()
with torch.inference_mode():
    model(torch.zeros(1, 3, 224, 224))
"""


def seconds(command: list) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints/best.pt")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()

    content = torch.load(args.checkpoint, weights_only=True)
    weights = {name.removeprefix("encoder."): w for name, w in content["encoder"].items()}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, Path(folder, "weights.pth"))
        peer = [sys.executable, "-c", PEER, content["model"]["encoder"], f"{folder}/weights.pth"]
        ours = [sys.executable, ROOT / "predict.py"]
        ours += ["--checkpoint", args.checkpoint, "--image", args.image]
        seconds(peer), seconds(ours)  # a warm-up: the disk's cache
        times = [(seconds(peer), seconds(ours)) for _ in range(args.runs)]
    peer_median, our_median = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = our_median / peer_median
    verdict = "reached" if ratio <= TARGET else "falls short"
    print(f"minimal script  {peer_median:.2f} s")
    print(f"predict.py      {our_median:.2f} s")
    print(f"ratio           {ratio:.2f} (target at most {TARGET}: {verdict})")


if __name__ == "__main__":
    main()
