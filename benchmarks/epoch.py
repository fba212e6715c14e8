"""How long is an epoch beside the tutorials' loop?

    python benchmarks/epoch.py --data flickr8k

The tutorials' loop runs the CNN for every caption, five times a photo, again in every epoch, and
scores the padding too. Both ways train the same model on the same captions in batches of the same
size. Timed on parts, in turn, and scaled to the whole epoch of 6,000 photos.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench import Row, Training, arguments, corpus, in_turn, tell
from bench import main as run_benchmark
from PIL import Image
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torchvision import models, transforms

from corpus import Corpus
from features import load_features

N_IMAGES, N_CAPTIONS, BATCH = 6000, 30000, 100
STEPS, PHOTOS = 10, 64  # of ours, in a part


class Tutorial(nn.Module):
    """The model as the tutorials write it."""

    def __init__(self, n_words: int, size: int = 512) -> None:
        super().__init__()
        self.cnn = models.resnet50().requires_grad_(False)
        self.cnn.fc = nn.Linear(2048, size)
        self.embed = nn.Embedding(n_words, size)
        self.dropout = nn.Dropout(0.5)
        self.lstm = nn.LSTM(size, size)
        self.linear = nn.Linear(size, n_words)

    def forward(self, images, captions):  # (B, 3, 224, 224), (T, B)
        image = self.cnn(images).unsqueeze(0)
        words = self.dropout(self.embed(captions[:-1]))
        hidden, _ = self.lstm(torch.cat((image, words)))
        return self.linear(hidden)  # (T, B, V)


def tutorial_step(found: Corpus, training: Training):
    """A function that takes one step of the tutorials' training."""
    model = Tutorial(len(training.vocabulary)).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-4)
    loss_of = nn.CrossEntropyLoss(ignore_index=0)
    read = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    rng = random.Random(0)
    examples = found.splits["train"]
    ids = [
        [torch.tensor(training.vocabulary.encode(text)) for text in example.captions]
        for example in examples
    ]

    def step() -> None:
        chosen = [rng.randrange(len(examples)) for _ in range(BATCH)]
        photos = [read(Image.open(examples[i].path).convert("RGB")) for i in chosen]
        captions = pad_sequence([rng.choice(ids[i]) for i in chosen])
        scores = model(torch.stack(photos), captions)
        loss = loss_of(scores.reshape(-1, scores.shape[2]), captions.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    args = arguments(__doc__, "data", "rounds").parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = corpus(args.data, folder / "photos", n_images=N_IMAGES, pictures=4 * PHOTOS)
        training = Training(found)
        plan = itertools.cycle(training.plan)
        examples = itertools.cycle(found.splits["train"])

        def our_steps() -> None:
            training.steps([next(plan) for _ in range(STEPS)])

        n_done = 0

        def extract() -> None:
            nonlocal n_done
            n_done += 1
            load_features(
                [next(examples) for _ in range(PHOTOS)],
                training.model,
                image_size=224,
                cache=folder / f"cache{n_done}",
            )

        jobs = {
            "tutorial": tutorial_step(found, training),
            "ours": our_steps,
            "extraction": extract,
        }
        times = in_turn(jobs, args.rounds)
    tutorial = times["tutorial"] * N_CAPTIONS / BATCH
    cached = times["ours"] / STEPS * N_CAPTIONS / BATCH
    first = cached + times["extraction"] / PHOTOS * N_IMAGES
    note = f"{np.median(tutorial) / 60:.0f} min for an epoch of 6,000 photos, against"
    tell(
        [
            Row("an epoch, against the tutorials'", tutorial / cached, "x", 60,
                note=f"{note} {np.median(cached):.0f} s; scaled from parts"),
            Row("the first epoch, photos read and encoded", tutorial / first, "x", 6,
                note=f"{note} {np.median(first):.0f} s; scaled from parts"),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    run_benchmark(main)
