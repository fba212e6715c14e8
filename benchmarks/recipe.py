"""What does each choice of the recipe buy? Trains stage 1 again and again, once without each.

    python benchmarks/recipe.py --data flickr8k --encoder-weights IMAGENET1K_V1

Choices that are part of the recipe get three seeds, others that were tried one. A run that is in
--results already is not done again, so an interrupted benchmark can be resumed. The recipe's own
models are kept there; they are scored with other searches too, and together as an ensemble. Prints
the mean over the seeds and the difference from the recipe as it stands, as a Markdown table. It
shows all choices in --results, those that are no longer here too.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import DEVICE, train_in
from bench import main as run_benchmark
from torch import Tensor

import checkpoint
import metrics
import train
from corpus import load_corpus
from features import load_features
from model import PAD, ImageCaptioningModel
from search import caption

SHOWN = ("CIDEr", "BLEU-4", "BLEU-1")


def image_only_first(model: ImageCaptioningModel) -> None:
    """The paper's way: the image is the LSTM's first input, and no other's part."""
    model._embed = lambda tokens, _: model.dropout(model.word_embedding(tokens))


def image_not_first(model: ImageCaptioningModel) -> None:
    """The image is added to every word embedding, but the LSTM's first input is zero."""

    def blank(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        inputs, state = arguments  # (B, T, E); no state: the first of them is the image
        if state is not None:
            return None
        return torch.cat([inputs[:, :1] * 0, inputs[:, 1:]], dim=1), state

    model.lstm.register_forward_pre_hook(blank)


def raw_vectors(model: ImageCaptioningModel) -> None:
    """Features are not standardised."""
    model.set_feature_stats = lambda _: None


def tied_words(model: ImageCaptioningModel) -> None:
    """Word embedding and output layer share a matrix (arXiv:1608.05859), scaled as embedding."""
    model.word_embedding.weight = model.output.weight
    scale = model.options["embedding_size"] ** 0.5

    def inputs(tokens: Tensor, image: Tensor) -> Tensor:
        return model.dropout(scale * model.word_embedding(tokens)) + image.unsqueeze(1)

    model._embed = inputs


def scheduled_sampling(model: ImageCaptioningModel) -> None:
    """A quarter of the input words in training are the model's own choice there.

    Source: arXiv:1506.03099; all words of a caption at once, arXiv:1906.07651.
    """
    teach = model.forward

    def forward(features: Tensor, tokens: Tensor, to_image: Tensor, positions: Tensor) -> Tensor:
        if model.training:
            with torch.no_grad():
                own = teach(features, tokens, to_image, positions).argmax(dim=-1)
            sampled = tokens.clone()
            sampled.view(-1)[positions] = own
            is_own = (torch.rand(tokens.shape) < 0.25) & (sampled != PAD)
            tokens = torch.where(is_own, sampled, tokens)
        return teach(features, tokens, to_image, positions)

    model.forward = forward


Patch = Callable[[ImageCaptioningModel], None]
RECIPE = "the recipe"
KEPT: dict[str, tuple[list[str], Patch | None]] = {
    RECIPE: ([], None),
    "image only as the first word": ([], image_only_first),
    "image only beside the words": ([], image_not_first),
    "raw image vectors": ([], raw_vectors),
    "no label smoothing": (["--label-smoothing", "0"], None),
}
TRIED: dict[str, tuple[list[str], Patch | None]] = {
    "batches of 200": (["--batch-size", "200"], None),
    "hidden size 1024": (["--hidden-size", "1024"], None),
    "two layers": (["--num-layers", "2"], None),
    "one matrix to read and to choose words": ([], tied_words),
    "scheduled sampling": ([], scheduled_sampling),
}
WRITTEN = {  # the recipe's models with another search
    "greedy search": {"beam_size": 1},
    "beam of 3": {"beam_size": 3},
    "beam of 5": {"beam_size": 5},
    "no length penalty": {"length_penalty": 0.0},
    "length penalty 0.7": {"length_penalty": 0.7},
    "length penalty 1.3": {"length_penalty": 1.3},
    "image weight 1": {"image_weight": 1.0},
    "captions of similar photos not asked": {"neighbour_weight": 0.0},
    "repeated phrases allowed": {"no_repeat_ngram_size": 0},
}


def run(flags: list[str], patch: Patch | None, keep: Path | None) -> dict[str, float]:
    """Train and give the best epoch's validation scores, and the seconds it took.

    The best model goes to ``keep``.
    """
    build = train.make_model

    def patched(*args):
        model = build(*args)
        if patch:
            patch(model)
        return model

    with tempfile.TemporaryDirectory() as folder:
        train.make_model = patched
        started = time.perf_counter()
        try:
            best = train_in(Path(folder), flags)
        finally:
            train.make_model = build
        scores = checkpoint.load(best, DEVICE).scores
        if keep:
            shutil.copy(best, keep)
    return {**scores, "seconds": time.perf_counter() - started}


def written(paths: list[Path], search: dict, data: str) -> dict[str, float]:
    """Validation scores of a trained model, or of an ensemble, with the search changed."""
    models = checkpoint.load_ensemble(paths, DEVICE)
    first = models[0]
    examples, features = load_features(
        load_corpus(Path(data)).splits["val"],
        first.model,
        image_size=first.image_size,
        cache=Path("cache"),
    )
    found = caption(
        [m.model for m in models],
        [features] * len(models),
        first.search(search),
        neighbours=[m.neighbours for m in models],
    )
    captions = [first.vocabulary.decode(hypotheses[0].tokens) for hypotheses in found]
    return metrics.score(captions, [example.captions for example in examples])


def table(results: list[dict]) -> str:
    """Means over seeds, and the differences from the recipe with the same seeds."""
    recipe = {r["seed"]: r["CIDEr"] for r in results if r["choice"] == RECIPE}
    lines = [
        f"| | seeds | {' | '.join(SHOWN)} | CIDEr against the recipe |",
        f"|---|---|{'---|' * len(SHOWN)}---|",
    ]
    for name in dict.fromkeys(result["choice"] for result in results):
        runs = [result for result in results if result["choice"] == name]
        means = {score: statistics.mean(r[score] for r in runs) for score in SHOWN}
        spread = f" ± {statistics.stdev(r['CIDEr'] for r in runs):.1f}" if len(runs) > 1 else ""
        shown = " | ".join(f"{means[s]:.1f}{spread if s == 'CIDEr' else ''}" for s in SHOWN)
        same = [recipe[r["seed"]] for r in runs if r["seed"] in recipe] or list(recipe.values())
        difference = ""
        if same and name != RECIPE:
            difference = f"{means['CIDEr'] - statistics.mean(same):+.1f}"
        lines.append(f"| {name} | {len(runs)} | {shown} | {difference} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="flickr30k_images")
    parser.add_argument("--encoder-weights", default="IMAGENET1K_V1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--choices", nargs="+", choices=[*KEPT, *TRIED], default=[*KEPT, *TRIED])
    parser.add_argument("--results", type=Path, default=Path("runs/recipe"))
    args = parser.parse_args()

    args.results.mkdir(parents=True, exist_ok=True)
    file = args.results / "results.jsonl"
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def is_done(choice: str, seed: int | None) -> bool:
        return any((r["choice"], r["seed"]) == (choice, seed) for r in results)

    def note(choice: str, seed: int | None, scores: dict[str, float]) -> None:
        results.append({"choice": choice, "seed": seed, **scores})
        with file.open("a") as lines:
            lines.write(json.dumps(results[-1]) + "\n")
        print(f"seed {seed}  {choice}  CIDEr {scores['CIDEr']:.1f}", file=sys.stderr)

    common = ["--data", args.data, "--encoder-weights", args.encoder_weights]
    for seed in args.seeds:
        for choice in args.choices:
            if is_done(choice, seed) or (choice in TRIED and seed != args.seeds[0]):
                continue
            flags, patch = {**KEPT, **TRIED}[choice]
            keep = args.results / f"seed{seed}.pt" if choice == RECIPE else None
            note(choice, seed, run([*common, "--seed", str(seed), *flags], patch, keep))
        model = args.results / f"seed{seed}.pt"
        for choice, search in WRITTEN.items():
            if model.exists() and not is_done(choice, seed):
                note(choice, seed, written([model], search, args.data))
    models = [args.results / f"seed{seed}.pt" for seed in args.seeds]
    ensemble = f"{len(models)} seeds as an ensemble"
    trained = len(models) > 1 and all(model.exists() for model in models)
    if trained and not is_done(ensemble, None):
        note(ensemble, None, written(models, {}, args.data))
    print(table(results))


if __name__ == "__main__":
    run_benchmark(main)
