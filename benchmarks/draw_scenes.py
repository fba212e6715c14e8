"""Draw the README's picture: new scenes, each with what the demo's model says of it.

python train.py --demo
python benchmarks/draw_scenes.py
"""

import argparse
import random
import sys
import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import checkpoint  # noqa: E402
import demo  # noqa: E402
from loader import transform  # noqa: E402
from model import caption  # noqa: E402

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
    seen = [
        transform(demo.paint(scene, trained.image_size), trained.image_size) for scene in scenes
    ]
    found = caption([trained.model], [seen], trained.search({}))

    sheet = Image.new("RGB", (COLUMNS * SIZE, ROWS * (SIZE + BELOW)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (scene, hypotheses) in enumerate(zip(scenes, found, strict=True)):
        x, y = i % COLUMNS * SIZE, i // COLUMNS * (SIZE + BELOW)
        sheet.paste(demo.paint(scene, SIZE), (x, y))
        text = textwrap.fill(trained.vocabulary.text(hypotheses[0].tokens), 31)
        draw.multiline_text((x + 8, y + SIZE + 6), text, fill="black", font=font)
    args.output.parent.mkdir(exist_ok=True)
    sheet.save(args.output, optimize=True)
    print(args.output)


if __name__ == "__main__":
    main()
