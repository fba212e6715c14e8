"""What the model looks at, computed once and kept on disk.

With a frozen encoder that is each picture's vector; with an encoder that trains, its pixels at the
model's size. Rows are memory-mapped, found again only for the very same file, network and size,
and safe to delete between runs.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loader import DataError, Example, read_pictures, whole_file
from model import ImageCaptioningModel, has_half_precision

log = logging.getLogger(__name__)

# Part of every key: raised whenever ``loader.transform`` or ``model.encode`` changes its numbers.
VERSION = 4
LIST_EVERY = 10.0  # seconds; what an interruption can cost


@dataclass(frozen=True)
class Rows(Sequence[Tensor]):
    """Rows of memory-mapped shards; each is read when it is asked for."""

    places: list[tuple[np.ndarray, int]]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        shard, row = self.places[index]
        return torch.from_numpy(np.array(shard[row]))


@dataclass(frozen=True)
class Prepared:
    """Images ready to be trained on.

    Attributes:
        rows: one for each picture that could be read, in the order of the paths.
        kept: the indices of these pictures among the paths given.
        unreadable: path → why not, for the others.
    """

    rows: Rows
    kept: list[int]
    unreadable: dict[Path, str]


def prepare(
    paths: Sequence[Path],
    model: ImageCaptioningModel,
    *,
    image_size: int,
    cache: Path,
    device: torch.device,
    pixels: bool = False,
    batch_size: int = 32,
    progress: Callable[..., Iterable[Any]] = lambda pictures, **_: pictures,
) -> Prepared:
    """Get each picture's row from the cache, and compute and keep those that are not there.

    Args:
        paths: pictures.
        model: its encoder gives the vectors.
        image_size: S, the side the pictures are squashed to.
        cache: a folder, made if need be.
        device: where the encoder runs.
        pixels: rows are the pictures' pixels: what an encoder that trains has to see.
        batch_size: pictures encoded at a time.
        progress: wraps the pictures still to be read, given their number as ``total``.

    Returns:
        Rows of (F,) float32 or (3, S, S) uint8.
    """
    if pixels:
        name, shape, dtype = f"pixels-{image_size}-v{VERSION}", (3, image_size, image_size), "uint8"
    else:
        parts = (
            model.options["encoder"],
            _fingerprint(model.encoder),
            str(image_size),
            "bf16" if has_half_precision(device) else "f32",
            f"v{VERSION}",
        )
        name, shape, dtype = "-".join(parts), (model.feature_size,), "float32"
    shards = _Shards(cache / name, shape, np.dtype(dtype))
    identities = [_identity(path) for path in paths]
    missing = {
        path: identity
        for path, identity in zip(paths, identities, strict=True)
        if identity not in shards.places
    }
    unreadable: dict[Path, str] = {}
    if missing:
        model.eval()
        log.info(f"pictures    {len(missing):,} to look at, once: they are kept in {cache}")
        with _told_if_stopped(cache), closing(_NewShard(shards)) as shard:
            pictures = iter(progress(read_pictures(missing, image_size), total=len(missing)))
            while batch := dict(islice(pictures, batch_size)):
                unreadable |= {
                    p: str(why) for p, why in batch.items() if isinstance(why, DataError)
                }
                readable = [path for path in batch if path not in unreadable]
                if not readable:
                    continue
                images = torch.stack([batch[path] for path in readable])
                if not pixels:
                    with torch.inference_mode():
                        images = model.encode(images.to(device)).cpu()
                shard.append([missing[path] for path in readable], images.numpy())
    kept = [i for i, path in enumerate(paths) if path not in unreadable]
    rows = Rows([shards.places[identities[i]] for i in kept])
    return Prepared(rows, kept, unreadable)


@contextmanager
def _told_if_stopped(cache: Path) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        log.info(f"stopped: the pictures looked at so far are kept in {cache}, for the next time.")
        raise


def prepare_examples(
    examples: Sequence[Example], model: ImageCaptioningModel, **options: Any
) -> tuple[list[Example], Rows]:
    """``prepare`` for a split: the examples whose pictures can be read, and their rows.

    Those left out are named in warnings.

    Raises:
        DataError: no picture can be read.
    """
    prepared = prepare([example.path for example in examples], model, **options)
    for reason in prepared.unreadable.values():
        log.warning(f"warning: left out: {reason}")
    if not prepared.kept:
        raise DataError(f"none of the {len(examples):,} pictures can be read.")
    return [examples[i] for i in prepared.kept], prepared.rows


class _Shards:
    """The files of one kind of rows.

    A run that computes rows writes a shard of its own, ``X.bin`` with the rows and ``X.json`` with
    the pictures they belong to, so runs at the same time do not disturb each other. The list is
    written after the rows it names: rows beyond it are remains of an interruption.

    Attributes:
        places: picture → the rows it is among, and which of them.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.folder, self.shape, self.dtype = folder, shape, dtype
        self.places: dict[str, tuple[np.ndarray, int]] = {}
        for index in sorted(folder.glob("*.json")):
            try:
                pictures = json.loads(index.read_text(encoding="utf-8"))
                self.add(pictures, self.map(index.with_suffix(".bin"), len(pictures)))
            except (OSError, TypeError, ValueError):
                continue  # truncated, or gone since: as if it were not there

    def add(self, pictures: Sequence[str], rows: np.ndarray) -> None:
        """Know whose rows these are."""
        self.places |= {picture: (rows, row) for row, picture in enumerate(pictures)}

    def map(self, data: Path, n_rows: int) -> np.ndarray:
        """The rows of a file, read when they are asked for; a ValueError if they are not there."""
        return np.memmap(data, dtype=self.dtype, mode="r", shape=(n_rows, *self.shape))


class _NewShard:
    """A shard that is being written; what it is given is among ``shards.places`` at once.

    If the disk has no room, rows stay in memory for this run, and what was written makes room
    again: checkpoints need it.
    """

    def __init__(self, shards: _Shards) -> None:
        self.shards = shards
        stem = shards.folder / f"{time.time_ns():x}-{os.getpid()}"
        self.data, self.index = stem.with_suffix(".bin"), stem.with_suffix(".json")
        self.pictures: list[str] = []  # whose rows are in the file
        self.listed_at = time.monotonic()
        self.file: io.FileIO | None = None  # None: there is no room
        try:
            shards.folder.mkdir(parents=True, exist_ok=True)
            self.file = self.data.open("wb", buffering=0)
        except OSError as error:
            self._give_up(error)

    def append(self, pictures: list[str], rows: np.ndarray) -> None:
        """Take in these pictures' rows."""
        rows = np.ascontiguousarray(rows, self.shards.dtype)
        self.shards.add(pictures, rows)
        if not self.file:
            return
        try:
            if self.file.write(rows) < rows.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.pictures += pictures
            if time.monotonic() - self.listed_at > LIST_EVERY:
                self._list()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Keep what there is; after an error or an interruption too."""
        try:
            if self.pictures:
                self._list()
        except OSError as error:
            self._give_up(error)
        if self.file:
            self.file.close()
            if not self.pictures:
                self.data.unlink(missing_ok=True)

    def _list(self) -> None:
        """Write down whose rows are in the file: from now on they are read from there."""
        os.fsync(self.file.fileno())
        with whole_file(self.index) as part:
            part.write_text(json.dumps(self.pictures), encoding="utf-8")
        self.shards.add(self.pictures, self.shards.map(self.data, len(self.pictures)))
        self.listed_at = time.monotonic()

    def _give_up(self, error: OSError) -> None:
        log.warning(
            f"warning: the cache {self.shards.folder} cannot be written ({error.strerror}): going "
            "on without it. The next run will have to look at these pictures again."
        )
        if self.pictures:
            rows = self.shards.map(self.data, len(self.pictures))
            self.shards.add(self.pictures, np.array(rows))
        if self.file:
            self.file.close()
        self.file, self.pictures = None, []
        for path in (self.index, self.data):
            with suppress(OSError):
                path.unlink()


def _identity(path: Path) -> str:
    """What tells a picture from its earlier versions: where it is, its size and its time."""
    try:
        status = path.stat()
    except OSError:
        return f"{path}|missing"
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"


def _fingerprint(module: torch.nn.Module) -> str:
    """A short hash of a module's weights."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
