"""A hundred pictures with captions in a style of their own: start from a trained model, or not?

    python benchmarks/own_captions.py --init checkpoints/best.pt --encoder-weights IMAGENET1K_V1

Draws 100 scenes to learn from and 100 to be scored on, each with two terse captions ("red ball,
snow"), trains on them from the model and from nothing (with the same pretrained encoder), and
compares the best CIDEr of three seeds each.
"""

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

from bench import DEVICE, Row, tell, train_in
from bench import main as run_benchmark

import checkpoint
import demo

N_EACH = 100


def draw(folder: Path) -> None:
    """Scenes with captions in the layout of Hugging Face's imagefolder."""
    rng = random.Random(0)
    rows = []
    for number in range(2 * N_EACH):
        scene, name = demo.random_scene(rng), f"{number:03d}.png"
        demo.paint(scene, 224).save(folder / name)
        thing = f"{scene.main.colour} {scene.main.shape}"
        texts = [f"{thing}, {scene.ground}", f"{scene.ground} with {thing}"]
        split = "train" if number < N_EACH else "val"
        rows.append(json.dumps({"file_name": name, "text": texts, "split": split}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def best_cider(flags: list[str], folder: Path) -> float:
    style = ["--freq-threshold", "1", "--batch-size", "20", "--epochs", "15", "--patience", "15"]
    best = train_in(folder, [*flags, *style, "--data", f"{folder}/data"])
    return checkpoint.load(best, DEVICE).scores["CIDEr"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--init", default="checkpoints/best.pt")
    parser.add_argument("--encoder-weights", default="IMAGENET1K_V1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()

    ways = {
        "from the trained model": ["--init", args.init],
        "from nothing": ["--encoder-weights", args.encoder_weights],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        draw(folder / "data")
        scores = {
            way: [
                best_cider([*flags, "--cache", f"{folder}/cache", "--seed", str(seed)], folder)
                for seed in args.seeds
            ]
            for way, flags in ways.items()
        }
    means = {way: f"{statistics.mean(found):.1f}" for way, found in scores.items()}
    gains = [a - b for a, b in zip(*scores.values(), strict=True)]
    note = f"mean CIDEr {', '.join(f'{mean} {way}' for way, mean in means.items())}"
    tell([Row("CIDEr that the trained model brings to 100 pictures", gains, "", 0, note=note)])


if __name__ == "__main__":
    run_benchmark(main)
