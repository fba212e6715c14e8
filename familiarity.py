"""How familiar a picture is: whether its features are like those of the photos trained on.

Photos of one kind vary in far fewer directions than their features have. What is left of a
picture's features outside these directions, the residual, is small for such photos and large for
drawings, text, scans and whatever else the model has never seen, though it describes them all the
same. On Flickr8k it tells them apart better than the probability of the caption:
docs/familiarity.md has the figures.

Source: the first half of Wang et al. 2022, "ViM", arXiv:2203.10807, on standardised features.
"""

# N pictures, F features of one, D directions, M validation photos.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

UNFAMILIAR = 0.05  # a picture of less familiarity is unlike the training photos
FEWEST = 50  # photos of either kind: of fewer, 5 % are not even three
MOST_DIRECTIONS = 128  # a megabyte for a ResNet-50; twice as many find one odd picture in 60 more
MOST_RESIDUALS = 1000  # of more, as many quantiles say the same
EPSILON = 1e-5  # added to variances, as ``model.FeatureNorm`` does


@dataclass(frozen=True, eq=False)
class Familiarity:
    """What the training photos' features have in common, and how well others fit in.

    Attributes:
        mean: (F,), of the training photos' features.
        deviation: (F,), their standard deviation, above 0.
        directions: (D, F), orthonormal: those that their standardised features vary most in.
        residuals: (M,) ascending, of validation photos, which no direction was made from.
    """

    mean: Tensor
    deviation: Tensor
    directions: Tensor
    residuals: Tensor

    def of_features(self, features: Tensor) -> Tensor:
        """Each picture's familiarity: the share of validation photos that are less familiar.

        Args:
            features: (N, F), by the encoder of the model that this belongs to.

        Returns:
            (N,) on the features' device, from 0 to 1: below ``UNFAMILIAR`` for one validation
            photo in twenty, and for most pictures of another kind. 0 if a feature is no number.
        """
        here = self.to(features.device)
        residuals = _residuals(features, here.mean, here.deviation, here.directions)  # (N,)
        n_familiar = torch.searchsorted(here.residuals, residuals, right=True)  # NaN comes last
        return (len(here.residuals) - n_familiar) / len(here.residuals)

    def to(self, device: torch.device | str) -> Familiarity:
        """The same on a device."""
        return Familiarity(**{name: part.to(device) for name, part in self.plain().items()})

    def plain(self) -> dict[str, Tensor]:
        """As plain data, for a checkpoint."""
        return dict(vars(self))

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Familiarity:
        """What ``plain`` gave; ``integrity.check_familiarity`` has looked at a file's."""
        return cls(**plain)


def fit(train_features: Tensor, val_features: Tensor) -> Familiarity | None:
    """Learn what is familiar, in seconds on a CPU.

    At most a quarter of the features become directions, so that enough is left outside, and at most
    one for every two training photos.

    Args:
        train_features: (N, F), of photos trained on; 2,000 are enough.
        val_features: (M, F), of photos like them that were not trained on.

    Returns:
        None if there are fewer than ``FEWEST`` of either, or an encoder that knows no differences.
    """
    n_photos, feature_size = train_features.shape
    if min(n_photos, len(val_features)) < FEWEST:
        return None
    train_features, val_features = train_features.cpu(), val_features.cpu()
    variance, mean = torch.var_mean(train_features, dim=0)
    deviation = (variance + EPSILON).sqrt()
    standardised = ((train_features - mean) / deviation).double()
    _, ascending = torch.linalg.eigh(standardised.T @ standardised)  # (F, F) columns
    n_directions = min(MOST_DIRECTIONS, feature_size // 4, n_photos // 2)
    directions = ascending[:, -n_directions:].T.float().contiguous()
    residuals = _residuals(val_features, mean, deviation, directions).sort().values
    if residuals[0] == residuals[-1]:
        return None
    if len(residuals) > MOST_RESIDUALS:
        shares = (torch.arange(MOST_RESIDUALS) + 0.5) / MOST_RESIDUALS
        residuals = residuals.quantile(shares)
    return Familiarity(mean, deviation, directions, residuals)


def _residuals(features: Tensor, mean: Tensor, deviation: Tensor, directions: Tensor) -> Tensor:
    """The length of what is left of standardised features outside the directions: (N, F) → (N,)."""
    standardised = (features.float() - mean) / deviation  # (N, F)
    inside = standardised @ directions.T @ directions  # (N, F)
    return (standardised - inside).norm(dim=1)
