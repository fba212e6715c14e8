"""Several processes as one: ``torchrun --nproc-per-node N train.py``.

All take their parts of each batch. Gradients of sums, divided by the words of the whole batch, are
added: N train what one trains. (A mean of means would weigh words unequally.) The first writes.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import cli

T = TypeVar("T")
S = TypeVar("S", Tensor, np.ndarray, list[Any], range)
TIMEOUT = float(os.environ.get("DISTRIBUTED_TIMEOUT", 1800))  # seconds; encoding takes long
rank, size = 0, 1  # of this process, of the group
restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


class VanishedError(cli.UserError):
    """Another process has ended, or does not answer."""


def place() -> tuple[int, int]:
    """Which process this is, from 0, and of how many, as torchrun says: 0 and 1 without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def own_device(device: torch.device) -> torch.device:
    """This process's GPU, or the CPU with its share of the cores, if torchrun started several."""
    if place()[1] == 1:
        return device
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda":
        if (n_gpus := torch.cuda.device_count()) < n_local:
            raise cli.UserError(f"{n_gpus} GPU(s) here: give torchrun --nproc-per-node {n_gpus}.")
        torch.cuda.set_device(device := torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))))
    elif device.type != "cpu":
        raise cli.UserError(f"several processes cannot share {device}: give --device cpu.")
    # torchrun sets 1 where nothing is set. Another number is sure to be the user's, and stays.
    if os.environ.get("OMP_NUM_THREADS") == "1" and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // n_local))
    return device


def start(device: torch.device) -> torch.device:
    """Join the other processes if torchrun started several; returns this one's own device."""
    global rank, size, restarts
    if place()[1] == 1:
        return device
    device = own_device(device)
    backend, timeout = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=TIMEOUT)
    # A restart on one machine meets the old keys in torchrun's store (pytorch/pytorch#135712).
    attempt = str(restarts) if os.environ["GROUP_WORLD_SIZE"] == "1" else ""
    with _explained():
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        store = dist.PrefixStore(attempt, store)
        dist.init_process_group(backend, None, timeout, size, rank, store)
        atexit.register(dist.destroy_process_group)  # else its threads abort the process
        restarts = max(everyones(restarts))  # each machine counts its own
    if rank:
        logging.getLogger().setLevel(logging.ERROR)
    return device


@contextmanager
def _explained(caught: Sequence[int] = ()) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch.distributed raises
        if caught:  # told to stop, as the other was
            raise SystemExit(128 + caught[0]) from error
        raise VanishedError(
            f"process {rank} on {socket.gethostname()} lost another, which ended or did not answer "
            f"for {TIMEOUT:,.0f} seconds: look for what it said, then give --resume."
        ) from error


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank == 0


def part(items: S) -> S:
    """This process's part of what all have; perhaps nothing."""
    return items[rank::size]


def everyones(value: T) -> list[T]:
    """The value of each process, in all of them; as each waits for the others, a barrier."""
    values: list[Any] = [value] * size
    if size > 1:
        with _explained():
            dist.all_gather_object(values, value)
    return values


def same(value: T) -> T:
    """The first process's value."""
    return everyones(value if is_first() else None)[0]  # type: ignore[return-value]


def gathered(mine: Sequence[T]) -> list[T]:
    """What all have made of their ``part``, in the order of the whole."""
    shares = everyones(list(mine))
    return [shares[i % size][i // size] for i in range(sum(map(len, shares)))]


class Gradients:
    """The gradients of a step, views of one flat buffer that is added over the processes."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.weights = [weight for weight in weights if weight.requires_grad]
        self.caught: list[int] = []  # signals
        if size > 1:
            sizes = [weight.numel() for weight in self.weights]
            self.flat = self.weights[0].new_zeros(sum(sizes) + 3)
            *parts, self.extra = self.flat.split([*sizes, 3])  # two losses, how many got a signal
            for weight, grad in zip(self.weights, parts, strict=True):
                weight.grad = grad.as_strided(weight.shape, weight.stride())  # as AdamW needs them

    def clear(self) -> None:
        """Begin a step."""
        if size > 1:
            self.flat.zero_()
        else:
            for weight in self.weights:
                weight.grad = None

    def add_up(self, mean: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradients of all processes, and these losses, which are returned."""
        if size > 1:
            self.extra[0], self.extra[1], self.extra[2] = mean.detach(), total, len(self.caught)
            with _explained(self.caught):
                dist.all_reduce(self.flat)
            mean, total, _ = self.extra.clone()
        return mean, total
