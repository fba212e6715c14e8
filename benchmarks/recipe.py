"""What does each choice of the recipe buy? Trains stage 1 again and again, once without each.

    python benchmarks/recipe.py --data flickr8k --encoder-weights IMAGENET1K_V1

A run that is in --results already is not done again, so an interrupted benchmark goes on. Prints
the mean over the seeds and the difference from the recipe as it stands, as a Markdown table.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import checkpoint
import train
from model import ImageCaptioningModel, State

SHOWN = ("CIDEr", "BLEU-4", "BLEU-1")


def image_not_at_words(model: ImageCaptioningModel) -> None:
    """The image is read first and added to the output, but not to the words."""

    def patched(self, tokens, state):
        words = self.dropout(self.word_embedding(tokens))
        hidden, (last, cell) = self.lstm(words, (state.hidden, state.cell))
        hidden = hidden + self.image_output(state.image).unsqueeze(1)
        return self.dropout(hidden), State(last, cell, state.image)

    model.read = patched.__get__(model)


def image_not_at_output(model: ImageCaptioningModel) -> None:
    """The image is read first and added to the words, but not to what the LSTM says."""
    torch.nn.init.zeros_(model.image_output.weight)
    model.image_output.requires_grad_(False)


def image_only_first(model: ImageCaptioningModel) -> None:
    """The paper's way: the image is the first word, and never seen again."""
    image_not_at_words(model)
    image_not_at_output(model)


def raw_vectors(model: ImageCaptioningModel) -> None:
    """Image vectors as the ResNet gives them."""
    model.standardise = lambda _: None


Patch = Callable[[ImageCaptioningModel], None]
CHOICES: dict[str, tuple[list[str], Patch | None]] = {
    "the recipe": ([], None),
    "image not added to the words": ([], image_not_at_words),
    "image not added to the output": ([], image_not_at_output),
    "image only as the first word": ([], image_only_first),
    "raw image vectors": ([], raw_vectors),
    "no label smoothing": (["--label-smoothing", "0"], None),
    "no averaged weights": (["--averaging", "0"], None),
    "no image dropout": (["--image-dropout", "0"], None),
    "dropout 0.3": (["--dropout", "0.3"], None),
    "no weight decay": (["--weight-decay", "0"], None),
    "weight decay 0.1": (["--weight-decay", "0.1"], None),
    "hidden size 1024": (["--hidden-size", "1024"], None),
    "two layers": (["--num-layers", "2"], None),
    "batches of 200": (["--batch-size", "200"], None),
    "16 epochs": (["--epochs", "16"], None),
    "greedy search": (["--beam-size", "1"], None),
    "no length penalty": (["--length-penalty", "0"], None),
    "repeated phrases allowed": (["--no-repeat", "0"], None),
}


def run(flags: list[str], patch: Patch | None) -> dict[str, float]:
    """Train and give the best epoch's validation scores, and the seconds it took."""
    build = train._model

    def patched(*args):
        model = build(*args)
        if patch:
            patch(model)
        return model

    with tempfile.TemporaryDirectory() as folder:
        train._model = patched
        started = time.monotonic()
        places = ["--checkpoints", f"{folder}/checkpoints", "--runs", f"{folder}/runs"]
        try:
            if train.main([*flags, *places, "--quiet"]) != 0:
                sys.exit("a run failed: see above.")
        finally:
            train._model = build
        best = checkpoint.load(Path(folder, "checkpoints/best.pt"), torch.device("cpu"))
    return {**best.scores, "seconds": time.monotonic() - started}


def table(results: list[dict]) -> str:
    """Means over seeds, and the differences from the recipe."""
    means: dict[str, dict[str, float]] = {}
    lines = [
        f"| | seeds | {' | '.join(SHOWN)} | CIDEr against the recipe |",
        f"|---|---|{'---|' * len(SHOWN)}---|",
    ]
    for name in dict.fromkeys(result["choice"] for result in results):
        runs = [result for result in results if result["choice"] == name]
        means[name] = {s: statistics.mean(r[s] for r in runs) for s in SHOWN}
        base = means.get("the recipe", means[name])["CIDEr"]
        spread = f" ± {statistics.stdev(r['CIDEr'] for r in runs):.1f}" if len(runs) > 1 else ""
        shown = " | ".join(f"{means[name][s]:.1f}{spread if s == 'CIDEr' else ''}" for s in SHOWN)
        difference = "" if name == "the recipe" else f"{means[name]['CIDEr'] - base:+.1f}"
        lines.append(f"| {name} | {len(runs)} | {shown} | {difference} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="flickr30k_images")
    parser.add_argument("--encoder-weights", default="IMAGENET1K_V1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--results", type=Path, default=Path("runs/recipe.jsonl"))
    args = parser.parse_args()

    args.results.parent.mkdir(parents=True, exist_ok=True)
    done = args.results.read_text().splitlines() if args.results.exists() else []
    results = [json.loads(line) for line in done]
    common = ["--data", args.data, "--encoder-weights", args.encoder_weights]
    for seed in args.seeds:
        for choice in args.choices:
            if any((r["choice"], r["seed"]) == (choice, seed) for r in results):
                continue
            flags, patch = CHOICES[choice]
            scores = run([*common, "--seed", str(seed), *flags], patch)
            results.append({"choice": choice, "seed": seed, **scores})
            with args.results.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
            print(f"seed {seed}  {choice}  CIDEr {scores['CIDEr']:.1f}", file=sys.stderr)
    print(table(results))


if __name__ == "__main__":
    main()
