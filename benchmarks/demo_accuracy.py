"""Are colour and shape of the main thing right in scenes the demo's model was not trained on?

    python train.py --demo
    python benchmarks/demo_accuracy.py

Draws 200 new scenes, lets `predict.py` describe the folder, and compares the first colour word and
the first shape word of each caption with what was drawn.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import ROOT, Row, tell
from bench import main as run_benchmark

import checkpoint
import demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints/demo/best.pt")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=12345, help="the demo itself draws with 0")
    args = parser.parse_args()

    checkpoint.load(args.checkpoint)  # one that predict.py cannot load is an error now
    with tempfile.TemporaryDirectory() as folder:
        demo.draw(Path(folder), n_scenes=args.scenes, seed=args.seed)
        table = Path(folder, "captions.csv")
        predict = [sys.executable, ROOT / "predict.py", "--checkpoint", args.checkpoint]
        images = Path(folder, "flickr30k_images")
        subprocess.run([*predict, "--image", images, "--output", table, "--quiet"], check=True)
        with table.open(encoding="utf-8") as file:
            caption_of = {Path(row["image"]).name: row["caption"] for row in csv.DictReader(file)}
        with Path(folder, "scenes.jsonl").open(encoding="utf-8") as file:
            scenes = [json.loads(line) for line in file]

    colours = shapes = both = 0
    for scene in scenes:
        words = caption_of[scene["image"]].split()
        colour = next((word for word in words if word in demo.COLOURS), None) == scene["colour"]
        shape = next((word for word in words if word in demo.SHAPES), None) == scene["shape"]
        colours, shapes, both = colours + colour, shapes + shape, both + (colour and shape)
        if not (colour and shape):
            print(f"{scene['colour']} {scene['shape']}: {caption_of[scene['image']]}")
    n = len(scenes)
    note = f"colour {100 * colours / n:.1f} %, shape {100 * shapes / n:.1f} %"
    question = f"colour and shape both right, in {n} new scenes"
    tell([Row(question, [100 * both / n], "%", 90, note=note)])


if __name__ == "__main__":
    run_benchmark(main)
