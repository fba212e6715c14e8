"""Do captions change when the encoder takes its fast way?

    python benchmarks/precision.py --data flickr8k --checkpoint checkpoints/best.pt

Captions the validation photos from the features of torchvision's ResNet in float32, the plain way,
and from those of ours, in the precision this processor is fast in. Where that is not bfloat16, its
rounding is imitated as well: products in float32 of values rounded before and after.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from bench import BATCH, DEVICE, Row, tell
from bench import main as run_benchmark
from torch import Tensor, nn
from torchvision import models

import checkpoint
import metrics
import resnet
from cli import UserError
from corpus import load_corpus
from model import PIXEL_MEAN, PIXEL_STD, Encode, ImageCaptioningModel, has_bfloat16
from pictures import Source, read_pictures
from search import caption


def plain(model: ImageCaptioningModel) -> Encode:
    """Torchvision's network, float32, BatchNorm by itself, in the layout it comes in."""
    network = getattr(models, model.options["encoder"])()
    network.fc = nn.Identity()
    network.load_state_dict(model.encoder.state_dict())
    network.eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return lambda images: network((images.float() / 255 - mean) / std)


def imitated(model: ImageCaptioningModel) -> Encode:
    """Our network, every activation rounded to bfloat16."""

    def rounded(values: Tensor) -> Tensor:
        return values.bfloat16().float()

    def convolve(
        self: resnet._Folded, maps: Tensor, plus: Tensor | None = None, *, relu: bool = True
    ) -> Tensor:
        weight, bias = rounded(self.weight), rounded(self.bias)
        maps = nn.functional.conv2d(rounded(maps), weight, bias, self.stride, self.padding)
        if plus is not None:
            maps = maps + plus
        return rounded(maps.relu() if relu else maps)

    def encode(pixels: Tensor) -> Tensor:
        ours, resnet._Folded.__call__ = resnet._Folded.__call__, convolve
        try:
            return rounded(model.make_encoder()(pixels))
        finally:
            resnet._Folded.__call__ = ours

    return encode


def read(paths: list[Path], size: int) -> Tensor:
    """(N, 3, S, S) uint8; a picture that cannot be read is an error."""
    pixels = []
    for _, picture in read_pictures(map(Source, paths), size):
        if isinstance(picture, UserError):
            raise picture
        pixels.append(picture)
    return torch.stack(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with captions and photos")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/best.pt"))
    args = parser.parse_args()

    trained = checkpoint.load(args.checkpoint, DEVICE)
    model = trained.model.eval()
    examples = load_corpus(args.data).splits["val"]
    if not examples:
        raise UserError(f"the val split of {args.data} is empty: give other --data.")
    references = [example.captions for example in examples]
    pixels = read([example.path for example in examples], trained.image_size)

    def captions(encode: Encode) -> list[str]:
        with torch.inference_mode():
            features = torch.cat([encode(part) for part in pixels.split(BATCH)])
        found = caption([model], [features], trained.search())
        return [trained.vocabulary.decode(hypotheses[0].tokens) for hypotheses in found]

    ways = {"as used": model.make_encoder()}
    if not has_bfloat16(DEVICE):
        ways["bfloat16, imitated"] = imitated(model)
    reference = captions(plain(model))
    cider = metrics.score(reference, references)["CIDEr"]
    rows = []
    for name, encode in ways.items():
        found = captions(encode)
        same = sum(a == b for a, b in zip(found, reference, strict=True)) / len(found)
        apart = abs(metrics.score(found, references)["CIDEr"] - cider)
        note = f"{len(found):,} validation photos, CIDEr {cider:.1f} the plain way"
        rows += [
            Row(f"the same caption as in plain float32, {name}", [100 * same], "%", 99, note=note),
            Row(f"CIDEr apart from it, {name}", [apart], "", 0.5, at_most=True),
        ]
    tell(rows)


if __name__ == "__main__":
    run_benchmark(main)
