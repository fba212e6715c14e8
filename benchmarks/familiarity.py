"""How well is a picture told that is unlike the photos a model was trained on?

    python benchmarks/familiarity.py --checkpoint checkpoints/best.pt --data flickr8k --odd folder

Compares three measures, taken on the validation photos and on a folder of odd pictures: the
residual that `familiarity.py` uses, the log-probability a word of the caption, and the distance
to the nearest training photos. A checkpoint that has no familiarity gets the one that training
would have given it. Prints which odd pictures are taken for familiar, and which validation photos
are the least familiar, for a person to look at.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from bench import DEVICE, Row, in_turn, tell
from bench import main as run_benchmark
from torch import Tensor

import checkpoint
import familiarity
from cli import UserError
from corpus import load_corpus
from familiarity import UNFAMILIAR, Familiarity, fit
from features import BATCH_SIZE, encode_all, load_features
from pictures import read_image, transform
from run import FAMILIAR_PHOTOS
from search import caption

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
ROUNDS = 5
REPEATS = 100  # of what is too short to be timed once
HALVINGS = 20  # of the validation photos


def auc(usual: Tensor, odd: Tensor) -> float:
    """How often an odd picture has the larger value than a photo, where a tie counts as half."""
    larger = (odd.unsqueeze(1) > usual).double() + 0.5 * (odd.unsqueeze(1) == usual).double()
    return larger.mean().item()


def found(usual: Tensor, odd: Tensor) -> float:
    """The share of ``odd`` above all but ``UNFAMILIAR`` of ``usual``: both larger if stranger."""
    less_familiar = (usual > odd.unsqueeze(1)).double().mean(dim=1)
    return (less_familiar < UNFAMILIAR).double().mean().item()


def nearest(features: Tensor, others: Tensor, k: int) -> Tensor:
    """Mean cosine distance to the k nearest of the others: (N, F), (M, F) → (N,)."""
    cosines = F.normalize(features, dim=1) @ F.normalize(others, dim=1).T
    return 1 - cosines.topk(k).values.mean(dim=1)


def false_alarms(residuals: Tensor) -> list[float]:
    """The share of one half of the validation photos that the other half's residuals accuse."""
    shares = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(HALVINGS):
        one, other = torch.randperm(len(residuals), generator=generator).tensor_split(2)
        shares.append(found(residuals[one], residuals[other]))
    return shares


def residuals_of(familiar: Familiarity, features: Tensor) -> Tensor:
    """(N, F) → (N,), which familiarity only ranks."""
    return familiarity._residuals(features, *list(familiar.plain().values())[:3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/best.pt"))
    parser.add_argument("--data", type=Path, required=True, help="what it was trained on")
    parser.add_argument("--odd", type=Path, required=True, help="folder of other pictures")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    args = parser.parse_args()

    trained = checkpoint.load(args.checkpoint, DEVICE)
    model, size = trained.model, trained.image_size
    splits = load_corpus(args.data).splits
    paths = sorted(path for path in args.odd.rglob("*") if path.suffix.lower() in PICTURES)
    if not (paths and splits["val"]):
        raise UserError(f"no pictures in {args.odd}, or no validation photos in {args.data}.")
    kept, features = {}, {}
    for name in ("train", "val", "test"):
        if splits[name]:
            kept[name], features[name] = load_features(
                splits[name], model, image_size=size, cache=args.cache
            )
    pixels = torch.stack([transform(read_image(path, size=size), size) for path in paths])
    features["odd"] = encode_all(list(pixels), model)
    n_photos = min(len(features["train"]), FAMILIAR_PHOTOS)
    is_used = torch.zeros(len(features["train"]), dtype=torch.bool)
    is_used[torch.arange(n_photos) * len(is_used) // n_photos] = True
    familiar = trained.familiarity or fit(features["train"][is_used], features["val"])
    if familiar is None:
        raise UserError(f"{args.data} has too few photos to tell what is familiar.")

    search = trained.search({"beam_size": 3})
    best = {
        name: [found[0] for found in caption([model], [features[name]], search)]
        for name in ("val", "odd")
    }
    n_directions = len(familiar.directions)
    strangeness = {
        f"residual outside {n_directions} directions": {
            name: residuals_of(familiar, features[name]) for name in best
        },
        "log-probability a word, beam 3": {
            name: torch.tensor([-one.log_prob_per_word for one in best[name]]) for name in best
        },
        "distance to the nearest training photo": {
            name: nearest(features[name], features["train"], 1) for name in best
        },
        "distance to the nearest 10": {
            name: nearest(features[name], features["train"], 10) for name in best
        },
    }
    print(
        f"{len(features['val']):,} validation photos, {len(paths)} odd pictures\n\n"
        "| measure | AUC | odd pictures found at 5 % false alarms |\n|---|---|---|"
    )
    results = {}
    for name, values in strangeness.items():
        results[name] = area, share = auc(**values_of(values)), found(**values_of(values))
        print(f"| {name} | {area:.3f} | {100 * share:.0f} % |")

    shares = familiar.of_features(features["odd"])
    print(f"\nfound, of {len(paths)} odd pictures, by what their names begin with:")
    kinds = sorted({path.stem.split("_")[0] for path in paths})
    for kind in kinds:
        theirs = [s for s, p in zip(shares, paths, strict=True) if p.stem.split("_")[0] == kind]
        print(f"  {kind}: {sum(s < UNFAMILIAR for s in theirs)} of {len(theirs)}")
    print("taken for familiar:")
    for share, path, one in zip(shares, paths, best["odd"], strict=True):
        if share >= UNFAMILIAR:
            print(f"  {share:.3f}  {path.name}  {trained.vocabulary.decode(one.tokens)}")
    print("validation photos of the least familiarity:")
    order = residuals_of(familiar, features["val"]).argsort(descending=True)
    for i in order[:50].tolist():
        text = trained.vocabulary.decode(best["val"][i].tokens)
        print(f"  {kept['val'][i].path.name}  {text}")

    batch = torch.cat([pixels, *[pixels] * (BATCH_SIZE // len(pixels))])[:BATCH_SIZE]
    encode = model.make_encoder()
    vectors = features["val"][:BATCH_SIZE]

    def rate() -> None:
        for _ in range(REPEATS):
            familiar.of_features(vectors)

    with torch.inference_mode():
        jobs = {
            "encode": lambda: encode(batch),
            "decode": lambda: caption([model], [vectors], search),
            "rate": rate,
        }
        times = in_turn(jobs, ROUNDS)
    cost = 100 * times["rate"] / REPEATS / (times["encode"] + times["decode"])
    microseconds = 1e6 * times["rate"].mean() / REPEATS / len(vectors)
    alarms = {"one half of val by the other": false_alarms(residuals_of(familiar, features["val"]))}
    for name, rows in (("test photos", "test"), ("training photos not used for it", "train")):
        theirs = features.get(rows)
        if rows == "train" and theirs is not None:
            theirs = theirs[~is_used]
        if theirs is not None and len(theirs):
            accused = (familiar.of_features(theirs) < UNFAMILIAR).double().mean().item()
            alarms[f"{len(theirs):,} {name}"] = [accused]
    own = next(iter(results))
    rows = [
        row
        for name, (area, share) in results.items()
        for row in (
            Row(f"AUC, {name}", [area], "", 0.9 if name == own else None),
            Row(f"odd pictures found, {name}", [100 * share], "%", 70 if name == own else None),
        )
    ]
    rows += [
        Row(f"false alarms, {name}", [100 * one for one in shares], "%", None)
        for name, shares in alarms.items()
    ]
    note = f"batches of {BATCH_SIZE}, {microseconds:.0f} microseconds a picture"
    rows.append(Row("cost, of encoding and decoding", list(cost), "%", 1, at_most=True, note=note))
    print()
    tell(rows)


def values_of(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """As arguments of ``auc`` and ``found``."""
    return {"usual": values["val"], "odd": values["odd"]}


if __name__ == "__main__":
    run_benchmark(main)
