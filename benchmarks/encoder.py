"""How near is the reading of photos to the ResNet's forward pass alone?

python benchmarks/encoder.py --data flickr8k
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from bench import DEVICE, Row, arguments, corpus, in_turn, tell
from torchvision import models

import features
from loader import read_pictures
from model import ImageCaptioningModel, half_precision, has_half_precision

PHOTOS, BATCH = 64, 32


def main() -> None:
    args = arguments(__doc__, "data", "rounds").parse_args()
    torch.manual_seed(0)
    model = ImageCaptioningModel(10).eval()
    plain = models.resnet50()
    plain.load_state_dict(model.encoder.state_dict(), strict=False)
    plain.eval()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        found = corpus(args.data, folder / "photos", n_images=PHOTOS, pictures=PHOTOS)
        paths = [example.path for example in found.splits["train"]]
        pictures = torch.stack([picture for _, picture in read_pictures(paths, 224)])
        pixels = pictures[:BATCH].float() / 255
        n_done = 0

        def extract() -> None:
            nonlocal n_done
            n_done += 1
            cache = folder / f"cache{n_done}"
            features.prepare(paths, model, image_size=224, cache=cache, device=DEVICE)

        def forward() -> None:
            channels_last = pixels.contiguous(memory_format=torch.channels_last)
            with half_precision(DEVICE):
                for _ in range(PHOTOS // BATCH):
                    model.encoder(channels_last)

        jobs = {
            "from files": extract,
            "forward alone": forward,
            "plain": lambda: [plain(pixels) for _ in range(PHOTOS // BATCH)],
        }
        times = in_turn(jobs, args.rounds)
    precision = "bfloat16" if has_half_precision(DEVICE) else "float32"
    rates = {name: f"{PHOTOS / value:.1f}" for name, value in times.items()}
    tell(
        [
            Row("image vectors from JPEG files, of the forward pass alone",
                100 * times["forward alone"] / times["from files"], "%", 90,
                note=f"{rates['from files']} photos/s of {rates['forward alone']}"),
            Row("the forward pass used, against the plain one", times["plain"]
                / times["forward alone"], "x", None,
                note=f"{precision}, channels_last, BatchNorm folded: {rates['forward alone']} "
                f"photos/s; torchvision's in float32: {rates['plain']}"),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
