"""Draw the README's picture: new scenes, each with the caption of the demo's model.

python train.py --demo
python benchmarks/draw_scenes.py
"""

import argparse
import random
import textwrap
from pathlib import Path

import torch
from bench import ROOT
from bench import main as run_benchmark
from PIL import Image, ImageDraw, ImageFont

import checkpoint
import demo
from pictures import transform
from search import caption

COLUMNS, ROWS, SIZE, BELOW = 4, 2, 240, 76


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints/demo/best.pt")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/scenes.png")
    parser.add_argument("--seed", type=int, default=2026, help="the demo itself draws with 0")
    args = parser.parse_args()

    rng = random.Random(args.seed)
    scenes = [demo.random_scene(rng) for _ in range(COLUMNS * ROWS)]
    trained = checkpoint.load(args.checkpoint, torch.device("cpu"))
    size = trained.image_size
    pixels = torch.stack([transform(demo.paint(scene, size), size) for scene in scenes])
    features = trained.model.make_encoder()(pixels)
    found = caption([trained.model], [features], trained.search())

    sheet = Image.new("RGB", (COLUMNS * SIZE, ROWS * (SIZE + BELOW)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (scene, hypotheses) in enumerate(zip(scenes, found, strict=True)):
        x, y = i % COLUMNS * SIZE, i // COLUMNS * (SIZE + BELOW)
        sheet.paste(demo.paint(scene, SIZE), (x, y))
        text = textwrap.fill(trained.vocabulary.decode(hypotheses[0].tokens), 31)
        draw.multiline_text((x + 8, y + SIZE + 6), text, fill="black", font=font)
    args.output.parent.mkdir(exist_ok=True)
    sheet.save(args.output, optimize=True)
    print(args.output)


if __name__ == "__main__":
    run_benchmark(main)
