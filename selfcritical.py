"""Stage 3, taste: sentences drawn from the model itself are rewarded by CIDEr-D.

Cross-entropy teaches to repeat people's next word; the score asks for a good sentence. Here the
model draws several sentences for an image and makes those likelier that score above their fellows
(Rennie et al. 2017, arXiv:1612.00563; the others' mean as baseline: Luo 2020, arXiv:2003.09971).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics import CiderD
from model import PAD, START, ImageCaptioningModel, Search, half_precision, sample


class Reward:
    """CIDEr-D of sentences for training images, ``<end>`` counted as a word.

    Without ``<end>`` a sentence that stops in the middle of a phrase would lose nothing, and a
    third of them come to end on "a" or "of".
    """

    def __init__(self, captions: Sequence[Sequence[Tensor]]) -> None:
        """Weigh the words of each image's captions, ids with ``<start>`` and ``<end>``."""
        self.cider = CiderD([[tuple(ids[1:].tolist()) for ids in image] for image in captions])

    def __call__(self, image_at: Sequence[int], tokens: Tensor) -> Tensor:
        """CIDEr-D, in which a human caption gets about 0.7.

        Args:
            image_at: (N,) which images.
            tokens: (N*K, T) sentences, as ``model.sample`` draws them.

        Returns:
            (N, K) float32, on the device of the tokens.
        """
        n_samples = len(tokens) // len(image_at)
        sentences = [[word for word in row if word != PAD] for row in tokens.tolist()]
        scores = [
            self.cider.score(image_at[row // n_samples], sentence)
            for row, sentence in enumerate(sentences)
        ]
        return torch.tensor(scores, device=tokens.device).view(len(image_at), n_samples)


def draw(model: ImageCaptioningModel, images: Tensor, *, n_samples: int, max_words: int) -> Tensor:
    """(N, F) image vectors → (N*K, T) sentences as likely as the model believes, in eval mode."""
    model.eval()
    search = Search(beam_size=n_samples, max_words=max_words, temperature=1.0)
    with torch.no_grad(), half_precision(images.device):
        tokens, _ = sample([model], [model.start(images)], search)
    model.train()
    return tokens


def policy_loss(
    model: ImageCaptioningModel, images: Tensor, tokens: Tensor, rewards: Tensor
) -> Tensor:
    """What to minimise so that sentences above their fellows become likelier.

    Args:
        model: in train mode.
        images: (N, F) image vectors.
        tokens: (N*K, T) sentences drawn for them.
        rewards: (N, K).

    Returns:
        The mean over words of -advantage times log-probability. The advantage of a sentence is
        its reward less the mean of the other K-1 of the image.
    """
    n_samples = rewards.shape[1]
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (n_samples - 1)
    advantage = (rewards - others).view(-1, 1)  # (N*K, 1)
    sentences = F.pad(tokens, (1, 0), value=START)  # (N*K, 1+T)
    image_of = torch.arange(len(images), device=images.device).repeat_interleave(n_samples)
    with half_precision(images.device):
        logits = model(images, sentences, image_of)  # (n_words, V)
    spoken = tokens != PAD
    log_prob = F.log_softmax(logits.float(), dim=-1).gather(1, tokens[spoken].unsqueeze(1))
    return -(advantage.expand_as(tokens)[spoken] * log_prob.squeeze(1)).mean()
