"""Random numbers of a batch that several processes share: each draws all, and takes its rows.

So crops, dropout and samples depend on the seed, the step and the row in the batch, never on the
number of processes. Drawing is cheap beside what is computed with the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Share(NamedTuple):
    """Which rows of the whole batch a process has."""

    n: int  # rows of the whole batch
    rows: Tensor  # (B,) the indices of the process's own

    def repeated(self, times: int) -> Share:
        """The same where each row has become so many, next to each other."""
        offsets = torch.arange(times, device=self.rows.device)
        return Share(self.n * times, (self.rows.unsqueeze(1) * times + offsets).flatten())


class Whole(NamedTuple):
    """The batch of all processes: its words, and which rows of it one process has."""

    n_words: int
    captions: Share
    images: Share


def drawn_like(like: Tensor, share: Share | None, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """Random float32 numbers in the shape of ``like``, (B, ...).

    Args:
        like: its shape and device count.
        share: which rows these are; None: the batch is whole.
        draw: fills a tensor, such as ``Tensor.exponential_``.
    """
    if share is None:
        return draw(torch.empty_like(like, dtype=torch.float32))
    whole = torch.empty((share.n, *like.shape[1:]), device=like.device)
    return draw(whole).index_select(0, share.rows)
