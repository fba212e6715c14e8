"""Learning from trained models: what they expect of the next word, beside people's captions.

People's word is one of many that would do; a teacher says how likely each is (Hinton et al. 2015,
arXiv:1503.02531; teachers of the pupil's own size: Furlanello et al. 2018, arXiv:1805.04770).
"""

# N images, F features, V vocabulary.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import checkpoint
from cli import UserError
from learning import Stage
from loader import Batch, Vocabulary
from model import ImageCaptioningModel, autocast_bfloat16


class Teachers:
    """Trained models, of which one teaches at each step.

    Drawn anew for every step, they teach what the mean of their probabilities would: the loss is
    linear in what is taught. An ensemble at each step would cost as many times more.
    """

    def __init__(self, models: Sequence[ImageCaptioningModel]) -> None:
        """Fold the encoders; the models are put into eval mode."""
        self.models = [model.eval() for model in models]
        self.encoders = [model.make_encoder() for model in models]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """What a teacher expects of every word to learn, on the pixels that the pupil sees.

        Args:
            batch: with pixels.

        Returns:
            (n_words, V) probabilities.
        """
        assert batch.pixels is not None
        drawn = int(torch.randint(len(self.models), ()))  # on the host: the same in all processes
        features = self.encoders[drawn](batch.pixels)  # (N, F)
        with autocast_bfloat16(features.device):
            logits = self.models[drawn](
                features, batch.tokens, batch.caption_to_image, batch.positions
            )
        return logits.float().softmax(dim=-1)


def load_teachers(
    settings: Mapping[str, Any],
    vocabulary: Vocabulary,
    device: torch.device,
    stages: Sequence[Stage],
) -> Teachers | None:
    """Read the models of ``--teacher``; None without any, or if stage 2 is over.

    Args:
        settings: of the run, as plain values.
        vocabulary: of the model that learns.
        device: where they teach.
        stages: that are left to train.

    Raises:
        UserError: no stage has anything to learn from them; one is no checkpoint, has other words,
            pictures of another size, or is in the folder of the run, which replaces it.
    """
    if not settings["teacher"]:
        return None
    if not settings["finetune_epochs"]:
        raise UserError("--teacher teaches in stage 2: give --finetune-epochs, such as 6.")
    if all(stage.name != "finetune" for stage in stages):
        return None
    models, image_size = [], settings["image_size"]
    for path in map(Path, settings["teacher"]):
        if path.resolve().parent == Path(settings["checkpoints"]).resolve():
            raise UserError(
                f"--teacher {path} is where this run puts its own models: give the run another "
                "folder with --checkpoints."
            )
        teacher = checkpoint.load(path, device, flag="--teacher")
        theirs, ours = teacher.vocabulary, vocabulary
        if (theirs.words, theirs.language) != (ours.words, ours.language):
            raise UserError(
                f"--teacher {path} knows other words ({len(theirs):,}, {theirs.language}) than the "
                f"model that is to learn ({len(ours):,}, {ours.language}): give one that was "
                "trained on the same captions with the same --freq-threshold."
            )
        if teacher.image_size != image_size:
            raise UserError(
                f"--teacher {path} takes pictures of {teacher.image_size} pixels, not "
                f"{image_size}: give one that was trained with the same --image-size."
            )
        models.append(teacher.model)
    return Teachers(models)
