"""What would make stage 3 pay? Continues a trained model in many ways, each for a few epochs.

    python benchmarks/stage3.py --data flickr8k --model checkpoints/best.pt

The training photos are encoded once, whole and as random crops: the encoder stays as it is. Each
way starts from the model and changes one thing of the first; it is scored on the validation photos
with the model's own search. A way that is in --results already with this seed is not tried again.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bench import DEVICE
from bench import main as run_benchmark
from torch import Tensor

import checkpoint
import learning
import metrics
from checkpoint import Checkpoint
from corpus import load_corpus
from features import load_features, load_pixels
from loader import Batch, Flickr30k, batches, plan_batches
from metrics import CiderD
from model import PAD, START, ImageCaptioningModel, autocast_bfloat16
from pictures import augment
from search import caption
from selfcritical import Reward, policy_gradient_loss, references_of, sample_captions

CROP = 0.4  # least area of the random crops
VALIDATIONS = 2  # an epoch


@dataclass(frozen=True)
class Way:
    """How stage 3 learns; the fields' defaults are the way that the others are compared with."""

    learning_rate: float = 1e-4
    n_images: int = 60  # a step
    n_samples: int = 5  # an image
    xe_weight: float = 0.0  # of cross-entropy beside the reward
    kl_weight: float = 0.0  # of the divergence from the model that it starts from, a word
    is_normalised: bool = False  # an image's advantages divided by their deviation
    is_in_eval_mode: bool = False  # no dropout when the samples are learned from
    risk: float = 0.0  # above 0: expected reward under the samples' probabilities to this power
    n_references: int = 5  # that reward, others at each step
    views: bool = True  # crops too, not only whole photos


WAYS = {
    "policy gradient alone": Way(),
    "cross-entropy beside (0.2)": Way(xe_weight=0.2),
    "KL divergence beside (0.1)": Way(kl_weight=0.1),
    "KL divergence beside (0.02)": Way(kl_weight=0.02),
    "learning rate 2e-5": Way(learning_rate=2e-5),
    "20 images a step": Way(n_images=20),
    "10 samples an image": Way(n_samples=10),
    "advantages by their deviation": Way(is_normalised=True),
    "without dropout": Way(is_in_eval_mode=True),
    "minimum risk": Way(risk=0.5),
    "two references in turn": Way(n_references=2),
    "whole photos only": Way(views=False),
}


@dataclass(frozen=True)
class Bench:
    """What all ways share."""

    start: Checkpoint
    train_set: Flickr30k
    views: Tensor  # (views, N, F), the whole photos first
    val_features: Tensor
    references: list[list[str]]

    def validate(self, model: ImageCaptioningModel) -> dict[str, float]:
        """The scores of the model's captions, and the share of distinct ones."""
        hypotheses = caption([model], [self.val_features], self.start.search({}))
        captions = [self.start.vocabulary.decode(h[0].tokens) for h in hypotheses]
        distinct = 100 * len(set(captions)) / len(captions)
        return {**metrics.score(captions, self.references), "distinct": distinct}

    def run(self, way: Way, n_epochs: int, seed: int) -> Iterator[tuple[float, dict[str, float]]]:
        """Epochs done and scores, with the mean reward since the last ones."""
        model, train_set = copy.deepcopy(self.start.model), self.train_set
        model.unfreeze_encoder(0)
        make_loss = _Loss(way, model, train_set)
        optimizer = learning.make_optimizer(
            model, learning_rate=way.learning_rate, encoder_learning_rate=0, weight_decay=0.01
        )
        torch.manual_seed(seed)
        plan = [
            rows
            for epoch in range(n_epochs)
            for rows in plan_batches(
                train_set, batch_size=5 * way.n_images, seed=1000 * seed + epoch, whole_images=True
            )
        ]
        rewards: list[float] = []
        every = len(plan) // (n_epochs * VALIDATIONS)
        yield 0.0, {**self.validate(model), "reward": float("nan")}
        for step, batch in enumerate(batches(train_set, plan)):
            factor = learning.warmup_then_cosine(step, len(plan), 0.05)
            learning.set_learning_rate(optimizer, factor)
            loss, reward = make_loss(self._features(batch, way), batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            rewards.append(reward)
            if (step + 1) % every == 0:
                scores = {**self.validate(model), "reward": float(np.mean(rewards))}
                yield (step + 1) / len(plan) * n_epochs, scores
                rewards = []

    def _features(self, batch: Batch, way: Way) -> Tensor:
        """(N, F), of a view of each image drawn at random."""
        if not way.views:
            return self.views[0][batch.image_index]
        which = torch.randint(len(self.views), (len(batch.image_index),))
        return self.views[which, batch.image_index]


class _Loss:
    """The loss of a batch, and its mean reward."""

    def __init__(self, way: Way, model: ImageCaptioningModel, train_set: Flickr30k) -> None:
        self.way, self.model, self.reward = way, model, Reward(train_set)
        self.before = copy.deepcopy(model).eval()
        self.xe = partial(learning.cross_entropy, label_smoothing=0.1)
        self.step, self.scorers = 0, [self.reward.cider]
        if way.n_references < 5:
            references = references_of(train_set)
            self.scorers = [
                CiderD([(2 * theirs)[k : k + way.n_references] for theirs in references])
                for k in range(5)
            ]

    def __call__(self, features: Tensor, batch: Batch) -> tuple[Tensor, float]:
        way, model = self.way, self.model
        model.train()
        tokens = sample_captions(model, features, n_samples=way.n_samples, max_words=20)
        host_tokens = tokens.numpy()
        self.reward.cider = self.scorers[self.step % len(self.scorers)]
        self.step += 1
        rewards = self.reward(batch.host_image_index, host_tokens)  # (N, K)
        weighed = rewards
        if way.is_normalised:
            weighed = rewards / (rewards.std(axis=1, keepdims=True) + 0.05)
        model.train(not way.is_in_eval_mode)
        if way.risk:
            loss = self._risk(features, tokens, rewards)
        else:
            loss = policy_gradient_loss(model, features, tokens, host_tokens, weighed)
        if way.kl_weight:
            now, _ = _log_probs(model, features, tokens)
            with torch.no_grad():
                then, _ = _log_probs(self.before, features, tokens)
            loss = loss + way.kl_weight * (now.exp() * (now - then)).sum(dim=1).mean()
        if way.xe_weight:
            loss = loss + way.xe_weight * self.xe(model, features, batch).mean
        return loss, float(rewards.mean())

    def _risk(self, features: Tensor, tokens: Tensor, rewards: np.ndarray) -> Tensor:
        """Shen et al. 2016, arXiv:1512.02433, with samples instead of an n-best list."""
        log_probs, targets = _log_probs(self.model, features, tokens)
        of_words = log_probs.gather(1, targets.unsqueeze(1)).squeeze(1)
        captions = torch.arange(len(tokens)).unsqueeze(1).expand_as(tokens)[tokens != PAD]
        of_captions = torch.zeros(len(tokens)).index_add(0, captions, of_words)  # (N*K,)
        weights = (self.way.risk * of_captions.view(*rewards.shape)).softmax(dim=1)
        return -(weights * torch.from_numpy(rewards)).sum(dim=1).mean() / 10  # a word, about


def _log_probs(
    model: ImageCaptioningModel, features: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """(n_words, V) of every word and ``<end>`` of the sampled captions, and (n_words,) which."""
    captions = F.pad(tokens, (1, 0), value=START)
    is_word = F.pad(tokens != PAD, (1, 0))
    positions = is_word.flatten().nonzero().squeeze(1)
    to_image = torch.arange(len(features)).repeat_interleave(len(tokens) // len(features))
    with autocast_bfloat16(DEVICE):
        logits = model(features, captions, to_image, positions)
    return F.log_softmax(logits.float(), dim=-1), captions.flatten()[positions]


def prepare(model: Path, data: Path, cache: Path, n_views: int) -> Bench:
    """Encode the photos."""
    start = checkpoint.load(model, DEVICE)
    splits = load_corpus(data).splits
    size = start.image_size
    (val, val_features), (examples, whole) = (
        load_features(splits[split], start.model, image_size=size, cache=cache)
        for split in ("val", "train")
    )
    train_set = Flickr30k(examples, start.vocabulary, DEVICE, features=whole)
    _, pixels = load_pixels(examples, image_size=size, cache=cache)
    encode, views = start.model.eval().make_encoder(), [whole]
    torch.manual_seed(0)
    for _ in range(n_views):
        parts = []
        for rows in torch.arange(len(examples)).split(50):
            photos = torch.stack([pixels[row] for row in rows.tolist()])
            parts.append(encode(augment(photos, train_set.may_mirror[rows], crop=CROP)))
        views.append(torch.cat(parts))
    references = [example.captions for example in val]
    return Bench(start, train_set, torch.stack(views), val_features, references)


def table(results: list[dict]) -> str:
    """The curve of each way."""
    lines = ["| | CIDEr | BLEU-4 | distinct | reward of samples |", "|---|---|---|---|---|"]
    for found in results:
        shown = [", ".join(f"{s[n]:.1f}" for s in found["scores"]) for n in ("CIDEr", "BLEU-4")]
        distinct = f"{found['scores'][-1]['distinct']:.0f} %"
        rewards = ", ".join(f"{s['reward']:.2f}" for s in found["scores"][1:])
        way = f"{found['way']}, seed {found['seed']}"
        lines.append(f"| {way} | {shown[0]} | {shown[1]} | {distinct} | {rewards} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default="flickr30k_images")
    parser.add_argument("--model", type=Path, default="checkpoints/best.pt")
    parser.add_argument("--cache", type=Path, default="cache")
    parser.add_argument("--views", type=int, default=3, help="crops of each photo")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--results", type=Path, default="runs/stage3.jsonl")
    args = parser.parse_args()

    file = args.results
    file.parent.mkdir(parents=True, exist_ok=True)
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(found["way"], found["seed"]) for found in results}
    shared = prepare(args.model, args.data, args.cache, args.views)
    for name in args.ways:
        if (name, args.seed) in done:
            continue
        scores = []
        for epochs, found in shared.run(WAYS[name], args.epochs, args.seed):
            scores.append({"epochs": epochs, **found})
            shown = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
            print(f"{name}, {epochs:.1f} epochs: {shown}", file=sys.stderr)
        results.append({"way": name, "seed": args.seed, "scores": scores})
        with file.open("a") as lines:
            lines.write(json.dumps(results[-1]) + "\n")
    print(table(results))


if __name__ == "__main__":
    run_benchmark(main)
