"""How near is the reading of photos to the ResNet's forward pass alone?

python benchmarks/encoder.py --data flickr8k
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from bench import BATCH, DEVICE, Row, arguments, corpus, forward_pass, in_turn, seconds, tell
from bench import main as run_benchmark
from torchvision import models

from cli import UserError
from features import load_features
from model import ImageCaptioningModel, has_bfloat16

SECONDS = 8.0  # of the forward pass alone
PLAIN = 32  # photos


def main() -> None:
    args = arguments(__doc__, "data", "rounds").parse_args()
    torch.manual_seed(0)
    model = ImageCaptioningModel(10).eval()
    plain = models.resnet50()
    plain.load_state_dict(model.encoder.state_dict(), strict=False)
    plain.eval()
    plain_pixels = torch.rand(PLAIN, 3, 224, 224)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        forward = forward_pass(model)
        forward(BATCH)
        n_photos = max(2, round(SECONDS / seconds(lambda: forward(2 * BATCH)) * 2)) * BATCH
        found = corpus(args.data, folder / "photos", n_images=n_photos, pictures=n_photos)
        examples = found.splits["train"]
        n_done = 0

        def extract() -> None:
            nonlocal n_done
            n_done += 1
            cache = folder / f"cache{n_done}"
            kept, _ = load_features(examples, model, image_size=224, cache=cache)
            if len(kept) < len(examples):  # the rate would be wrong
                n_broken = len(examples) - len(kept)
                raise UserError(f"{n_broken:,} photos of {args.data} cannot be read: give others.")

        jobs = {
            "from files": extract,
            "forward alone": lambda: forward(n_photos),
            "plain": lambda: plain(plain_pixels),
        }
        times = in_turn(jobs, args.rounds)
    precision = "bfloat16" if has_bfloat16(DEVICE) else "float32"
    n_photos_of = {"from files": len(examples), "forward alone": n_photos, "plain": PLAIN}
    rates = {name: n_photos_of[name] / found for name, found in times.items()}
    shown = {name: f"{np.median(found):.1f}" for name, found in rates.items()}
    tell(
        [
            Row("image vectors from JPEG files, of the forward pass alone",
                100 * rates["from files"] / rates["forward alone"], "%", 90,
                note=f"{shown['from files']} photos/s of {shown['forward alone']}, "
                f"{len(examples):,} photos"),
            Row("the forward pass used, against the plain one", rates["forward alone"]
                / rates["plain"], "x", None,
                note=f"{precision}, channels_last, BatchNorm, sum and ReLU in the convolutions: "
                f"{shown['forward alone']} photos/s; torchvision's in float32: "
                f"{shown['plain']}"),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    run_benchmark(main)
