"""What TensorBoard shows of a run: curves, captioned pictures, the embeddings, the settings."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from loader import SPECIAL_TOKENS, Vocabulary

# The projector keeps its tensors as text: more rows make it slow to open.
PROJECTED_WORDS = 2000
PROJECTED_IMAGES = 500
THUMBNAIL = 48

LAYOUT = {
    "1. Is it learning?": {
        "CIDEr, validation": ["Multiline", ["score/CIDEr"]],
        "BLEU-1 to 4, validation": ["Multiline", [f"score/BLEU-{n}" for n in range(1, 5)]],
    },
    "2. Is it overfitting? (val rises while train falls)": {
        "loss, nats per word": ["Multiline", ["loss/train", "loss/val"]],
        "learning rate": ["Multiline", ["learning_rate"]],
    },
    "3. What does it say? (the pictures are under IMAGES)": {
        "distinct captions, %": ["Multiline", ["captions/distinct"]],
        "mean length, words": ["Multiline", ["captions/words"]],
    },
}


class RunLog:
    """One run's folder of TensorBoard events; the horizontal axis is the training step."""

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        """Open the folder; what an interrupted run logged after ``step`` is hidden."""
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        if not step:
            self.writer.add_custom_scalars(LAYOUT)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Points on the curves of these names."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def text(self, name: str, markdown: str) -> None:
        """A page of text."""
        self.writer.add_text(name, markdown)

    def pictures(
        self, images: Sequence[Image.Image], ours: Sequence[str], human: Sequence[str], *, step: int
    ) -> None:
        """Pictures with our caption and a human one written below each."""
        for number, card in enumerate(zip(images, ours, human, strict=True), start=1):
            self.writer.add_image(f"captions/{number}", _card(*card), step)

    def embeddings(
        self,
        vocabulary: Vocabulary,
        *,
        word_vectors: Tensor,
        image_vectors: Tensor,
        images: Sequence[Image.Image],
        captions: Sequence[tuple[str, str]],
        step: int,
    ) -> None:
        """Fill the projector: the most frequent words, and images with their captions.

        Args:
            vocabulary: labels and frequencies of the words.
            word_vectors: (V, E).
            image_vectors: (N, E).
            images: N pictures.
            captions: for each image ours and a human one.
            step: of the training, which they are shown with.
        """
        first = len(SPECIAL_TOKENS)
        rows = slice(first, first + PROJECTED_WORDS)
        self.writer.add_embedding(
            word_vectors[rows],
            metadata=[
                (_label(word), str(count))
                for word, count in zip(vocabulary.words[rows], vocabulary.counts[rows], strict=True)
            ],
            metadata_header=["word", "frequency"],
            tag="words",
            global_step=step,
        )
        thumbnails = [image.resize((THUMBNAIL, THUMBNAIL)) for image in images]
        self.writer.add_embedding(
            image_vectors,
            metadata=[(_label(ours), _label(human)) for ours, human in captions],
            metadata_header=["caption", "human"],
            label_img=torch.stack([_tensor(image) for image in thumbnails]).float() / 255,
            tag="images",
            global_step=step,
        )

    def results(self, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """The row of this run in the table of runs (HParams)."""
        plain = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in settings.items()
        }
        finals = {f"final/{name}": value for name, value in scores.items()}
        self.writer.add_hparams(plain, finals, run_name=".")

    def close(self) -> None:
        """Write what is still in memory."""
        self.writer.close()


def _card(image: Image.Image, ours: str, human: str, *, size: int = 256) -> Tensor:
    """A picture over two captions: (3, 1.5 size, size) uint8."""
    card = Image.new("RGB", (size, size + size // 2), "white")
    card.paste(image.resize((size, size)), (0, 0))
    draw = ImageDraw.Draw(card)
    font = ImageFont.load_default(15)
    lines = textwrap.wrap(ours, 33)[:3]
    draw.multiline_text((6, size + 5), "\n".join(lines), fill="black", font=font)
    below = size + 12 + 19 * len(lines)
    lines = textwrap.wrap(f"human: {human}", 33)[:3]
    draw.multiline_text((6, below), "\n".join(lines), fill="gray", font=font)
    return _tensor(card)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _label(text: str) -> str:
    """Tabs and line ends would shift the projector's rows; an empty label would drop one."""
    return " ".join(text.split()) or "-"
