"""Self-critical training (stage 3): captions sampled from the model are rewarded by CIDEr-D.

Cross-entropy teaches the next word of people's captions; CIDEr-D judges whole captions. Here the
model samples several captions for an image and makes those likelier that score above the others
(Rennie et al. 2017, arXiv:1612.00563; the others' mean as baseline: Luo 2020, arXiv:2003.09971).
"""

# N images, K samples an image, T tokens of a sample, F features.

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import distributed
from draws import Share, drawn_like
from learning import Loss, LossFunction, no_loss
from loader import Batch, Flickr30k
from metrics import CiderD
from model import PAD, START, ImageCaptioningModel, autocast_bfloat16
from search import Search, sample


@dataclass(frozen=True)
class SelfCritical:
    """The loss of stage 3: call it as ``learning.cross_entropy``.

    Attributes:
        dataset: whose captions are the references; the batches are of it.
        n_samples: K, at least 2.
        max_words: the longest sample.
        xe: cross-entropy, kept beside the policy gradient.
        xe_weight: its weight.
    """

    dataset: Flickr30k
    n_samples: int
    max_words: int
    xe: LossFunction
    xe_weight: float

    @cached_property
    def reward(self) -> Reward:
        """Made when first needed: it counts the n-grams of all references."""
        return Reward(self.dataset)

    def __call__(self, model: ImageCaptioningModel, features: Tensor, batch: Batch) -> Loss:
        """Sample captions, score them, and weigh their log-probability by their advantage.

        Args:
            model: in train mode.
            features: (N, F), of the batch's images.
            batch: its captions, for the cross-entropy.

        Returns:
            The mean to minimise; logged is the sum of the rewards of N*K captions.
        """
        share = batch.whole and batch.whole.images.repeated(self.n_samples)
        n_rows = share.n if share else len(features) * self.n_samples
        if not len(features):  # this process's part of the batch
            distributed.everyones((0, 0))
            return no_loss(model, n_rows)
        tokens = sample_captions(
            model, features, n_samples=self.n_samples, max_words=self.max_words, share=share
        )
        host_tokens = tokens.cpu().numpy()  # one wait; `sample` has a few more
        n_words = _count_words(model, host_tokens, share) if share else None
        rewards = self.reward(batch.host_image_index, host_tokens)  # (N, K)
        mean = policy_gradient_loss(
            model, features, tokens, host_tokens, rewards, share=share, n_words=n_words
        )
        if self.xe_weight:
            mean = mean + self.xe_weight * self.xe(model, features, batch).mean
        return Loss(mean, torch.tensor(rewards.sum()), n_rows)


class Reward:
    """CIDEr-D of sampled captions, ``<end>`` counted as a word.

    Without ``<end>`` a caption that stops in the middle of a phrase would lose nothing, and a
    third of them come to end on "a" or "of".
    """

    def __init__(self, dataset: Flickr30k) -> None:
        """Prepare each image's captions as references."""
        self.cider = CiderD(references_of(dataset))

    def __call__(self, image_index: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """CIDEr-D, in which a human caption gets about 0.7.

        Args:
            image_index: (N,) indices of images in the data set.
            tokens: (N*K, T) ids, as ``sample_captions`` gives them.

        Returns:
            (N, K) float32.
        """
        n_samples = len(tokens) // len(image_index)
        hypotheses = np.where(tokens == PAD, -1, tokens)  # what `CiderD` pads with
        scores = self.cider.scores(np.repeat(image_index, n_samples), hypotheses)
        return scores.astype(np.float32).reshape(len(image_index), n_samples)


def references_of(dataset: Flickr30k) -> list[list[list[int]]]:
    """For each image its captions as ids, without ``<start>``."""
    tokens = dataset.tokens.cpu().tolist()
    references: list[list[list[int]]] = [[] for _ in range(len(dataset))]
    captions = zip(dataset.caption_to_image.tolist(), tokens, dataset.lengths, strict=True)
    for image, ids, length in captions:
        references[image].append(ids[1:length])
    return references


def sample_captions(
    model: ImageCaptioningModel,
    features: Tensor,
    *,
    n_samples: int,
    max_words: int,
    share: Share | None = None,
) -> Tensor:
    """Sample captions in eval mode: (N, F) features → (N*K, T) ids; the model trains on after."""
    # Rewarded is what the model says as it is used, without dropout. The gradient of these
    # captions' log-probability is then taken in train mode: dropout regularises this stage too.
    model.eval()
    sampling = Search(  # with a temperature, ``beam_size`` samples are drawn for an image
        beam_size=n_samples, max_words=max_words, temperature=1.0, no_repeat_ngram_size=0
    )
    with torch.no_grad(), autocast_bfloat16(features.device):
        tokens, _ = sample([model], [model.init_state(features)], sampling, share)
    model.train()
    return tokens


def _count_words(model: ImageCaptioningModel, host_tokens: np.ndarray, share: Share) -> int:
    """How many words the samples of all processes have.

    Also draws, and drops, what one process with all samples would have drawn until its longest had
    ended: the random numbers after that are dropout's, and must not depend on the part.
    """
    n_steps = host_tokens.shape[1]
    counts = distributed.everyones((int((host_tokens != PAD).sum()), n_steps))
    like = torch.empty(1, model.output.out_features, device=model.device)
    for _ in range(max(longest for _, longest in counts) - n_steps):
        drawn_like(like, share, Tensor.exponential_)
    return sum(n_words for n_words, _ in counts)


def policy_gradient_loss(
    model: ImageCaptioningModel,
    features: Tensor,
    tokens: Tensor,
    host_tokens: np.ndarray,
    rewards: np.ndarray,
    *,
    share: Share | None = None,
    n_words: int | None = None,
) -> Tensor:
    """The loss whose gradient makes captions likelier that score above the others of their image.

    Args:
        model: in train mode.
        features: (N, F).
        tokens: (N*K, T) sampled captions.
        host_tokens: the same on the host.
        rewards: (N, K).
        share: which rows of the samples of all processes these are.
        n_words: of the samples of all processes; None: these are all.

    Returns:
        The mean over words of -advantage times log-probability. The advantage of a caption is its
        reward less the mean of the other K-1 of the image.
    """
    n_images, n_samples = rewards.shape
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / (n_samples - 1)
    advantage = (rewards - others).reshape(-1, 1)  # (N*K, 1)
    is_word = np.pad(host_tokens != PAD, ((0, 0), (1, 0)))  # (N*K, 1+T), without <start>
    weight = np.broadcast_to(advantage, host_tokens.shape)[host_tokens != PAD]  # (n_words,)

    positions = torch.from_numpy(np.flatnonzero(is_word)).to(tokens.device)
    captions = F.pad(tokens, (1, 0), value=START)  # (N*K, 1+T)
    caption_to_image = torch.arange(n_images, device=tokens.device).repeat_interleave(n_samples)
    with autocast_bfloat16(tokens.device):
        logits = model(features, captions, caption_to_image, positions, share)  # (n_words, V)
    targets = captions.flatten().index_select(0, positions)
    log_prob = F.log_softmax(logits.float(), dim=-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    losses = -(torch.from_numpy(weight).to(tokens.device) * log_prob)
    return losses.sum() / n_words if n_words else losses.mean()
