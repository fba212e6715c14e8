"""Encoder features and resized pixels of pictures, computed once and kept on disk.

A frozen encoder needs each picture's features only; one that trains needs its pixels at the
model's size. Rows are memory-mapped, found again only for the very same file, network and size,
and safe to delete between runs.
"""

# N pictures, S side of a picture, F features of one.

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import distributed
from cli import UserError, progress
from corpus import Example
from files import lock, whole_file
from loader import Pixels
from model import Encode, ImageCaptioningModel, has_bfloat16
from pictures import Source, read_pictures

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy, FileLock

log = logging.getLogger(__name__)

# Part of every key: raised whenever ``pictures.transform`` or ``model.make_encoder`` changes its
# numbers.
CACHE_VERSION = 7
LIST_EVERY = 10.0  # seconds; what an interruption can cost
BATCH_SIZE = 32  # pictures encoded at a time


@dataclass(frozen=True)
class Rows:
    """Rows of memory-mapped shards; each is read when it is asked for."""

    places: list[tuple[np.ndarray, int]]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        shard, row = self.places[index]
        return torch.from_numpy(np.array(shard[row]))


def load_pixels(
    examples: Sequence[Example], *, image_size: int, cache: Path
) -> tuple[list[Example], Rows]:
    """The pictures of examples, resized: read from the cache, or from their files and cached.

    Args:
        examples: images of a data set.
        image_size: S, the side that pictures are squashed to.
        cache: a folder, made if need be.

    Returns:
        The examples whose pictures can be read (the others are named in warnings), and for each
        (3, S, S) uint8.

    Raises:
        UserError: no picture can be read.
    """
    shape = (3, image_size, image_size)
    shards = _Shards(cache / f"pixels-{image_size}-v{CACHE_VERSION}", shape, np.dtype(np.uint8))
    return _load(examples, shards, lambda: lambda pixels: pixels, image_size)


def load_features(
    examples: Sequence[Example], model: ImageCaptioningModel, *, image_size: int, cache: Path
) -> tuple[list[Example], Tensor]:
    """The features of examples by the model's encoder: from the cache, or computed and cached.

    As ``load_pixels``, but gives (N, F) float32 on the CPU.
    """
    device, precision = model.device, "f32"
    if has_bfloat16(device):
        precision = f"bf16-{device.type}"  # rounded otherwise on another kind of device
    name = f"{model.options['encoder']}-{fingerprint(model.encoder)}-{image_size}"
    folder = cache / f"{name}-{precision}-v{CACHE_VERSION}"
    shards = _Shards(folder, (model.feature_size,), np.dtype(np.float32))

    def make_compute() -> Encode:
        encode = model.make_encoder()
        return lambda pixels: encode(pixels.to(device)).cpu()

    kept, rows = _load(examples, shards, make_compute, image_size)
    return kept, torch.stack([rows[i] for i in range(len(rows))])


def encode_all(pixels: Pixels, model: ImageCaptioningModel) -> Tensor:
    """The features of N pictures by the encoder as it is now: (N, F) on the model's device.

    Of several processes each encodes a part.
    """
    encode = model.make_encoder()
    mine = distributed.part(range(len(pixels)))
    pictures = (pixels[i] for i in mine)
    shown = iter(progress(pictures, about="encoding", unit="picture", total=len(mine)))
    parts = []
    with torch.inference_mode():
        while batch := list(islice(shown, BATCH_SIZE)):
            parts.append(encode(torch.stack(batch).to(model.device)))
        if distributed.size == 1:
            return torch.cat(parts)
        rows = distributed.gathered([row for part in parts for row in part.cpu().numpy()])
        return torch.from_numpy(np.stack(rows)).to(model.device)


def _load(
    examples: Sequence[Example],
    shards: _Shards,
    make_compute: Callable[[], Callable[[Tensor], Tensor]],
    image_size: int,
) -> tuple[list[Example], Rows]:
    """Take rows from the shards; compute and append those that are missing.

    Args:
        examples: whose rows.
        shards: where they are kept.
        make_compute: makes the function from (N, 3, S, S) uint8 pixels to N rows; called only if
            a row is missing.
        image_size: S.
    """
    identity_of = {example.path: _identity(example.path) for example in examples}

    def complete(paths: Sequence[Path]) -> None:
        missing = {p: identity_of[p] for p in paths if identity_of[p] not in shards.places}
        if missing:
            _compute(missing, shards, make_compute(), image_size)

    paths = list(identity_of)
    if distributed.size > 1:  # each computes its part into a shard of its own, and reads all
        complete(distributed.part(paths))
        distributed.everyones(None)
        shards.read()
    complete(paths)
    kept = [i for i, e in enumerate(examples) if identity_of[e.path] in shards.places]
    kept = distributed.same(kept)  # a picture may be unreadable in one place only
    if not kept:
        raise UserError(f"none of the {len(examples):,} pictures can be read.")
    rows = Rows([shards.places[identity_of[examples[i].path]] for i in kept])
    return [examples[i] for i in kept], rows


def _compute(
    missing: dict[Path, str],
    shards: _Shards,
    compute: Callable[[Tensor], Tensor],
    image_size: int,
) -> None:
    """Compute the rows of these pictures and append them to a new shard."""
    cache = shards.folder.parent
    to_do = "to read" if len(shards.shape) == 3 else "to read and encode"
    log.info(f"pictures    {len(missing):,} {to_do}, once: they are kept in {cache}")
    with _explained_if_stopped(cache), closing(_NewShard(shards)) as shard, torch.inference_mode():
        pictures = read_pictures(map(Source, missing), image_size)
        shown = iter(
            progress(pictures, about="reading pictures", unit="picture", total=len(missing))
        )
        while batch := list(islice(shown, BATCH_SIZE)):
            readable = {s.path: picture for s, picture in batch if isinstance(picture, Tensor)}
            for _, picture in batch:
                if not isinstance(picture, Tensor):
                    log.warning(f"warning: left out: {picture}")
            if readable:
                rows = compute(torch.stack(list(readable.values())))
                shard.append([missing[path] for path in readable], rows.numpy())


@contextmanager
def _explained_if_stopped(cache: Path) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        log.info(f"stopped: the pictures done so far are kept in {cache}, for the next time.")
        raise


class _Shards:
    """A folder of shards that hold rows of one kind, such as the features of one network.

    A shard is a pair of files: the rows in ``X.bin``, one after another, and in ``X.json`` the
    identities of the pictures that they belong to, in the same order. Each run that computes rows
    writes a shard of its own, so that runs at the same time do not disturb each other. It writes
    the rows first and their identities later: rows that are not listed do not count.

    Attributes:
        places: a picture's identity → the memory-mapped rows it is among, and which of them.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Read which rows are there.

        Args:
            folder: of the shards; need not exist.
            shape: of a row.
            dtype: of a row's numbers.
        """
        self.folder, self.shape, self.dtype = folder, shape, dtype
        self.places: dict[str, tuple[np.ndarray, int]] = {}
        self._clean()
        self.read()

    def read(self) -> None:
        """Know the rows that are listed by now."""
        for index in sorted(self.folder.glob("*.json")):
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

    def _clean(self) -> None:
        """Free the disk of rows that no index lists, left by runs that were killed.

        A run holds the lock of the shard that it writes: what can be locked here has no writer.
        """
        unlisted = {
            p.stem for p in self.folder.glob("*.bin") if not p.with_suffix(".json").exists()
        }
        for stem in unlisted | {path.stem for path in self.folder.glob("*.lock")}:
            shard = self.folder / stem
            try:
                held = lock(shard.with_suffix(".lock"))
            except OSError:  # it is being written, or this folder is not ours to write to
                continue
            with held, suppress(OSError, TypeError, ValueError):
                self._clean_shard(shard)
            with suppress(OSError):
                shard.with_suffix(".lock").unlink()

    def _clean_shard(self, shard: Path) -> None:
        """Cut the rows of a shard without a writer off where its index ends."""
        for part in self.folder.glob(f".{shard.name}.json.*.part"):
            part.unlink()
        data, index = shard.with_suffix(".bin"), shard.with_suffix(".json")
        if not index.exists():
            data.unlink(missing_ok=True)
            return
        n_rows = len(json.loads(index.read_text(encoding="utf-8")))
        n_bytes = n_rows * math.prod(self.shape) * self.dtype.itemsize
        if data.stat().st_size > n_bytes:
            os.truncate(data, n_bytes)


class _NewShard:
    """The shard that this run writes; rows it is given are among ``shards.places`` at once.

    If the disk has no room, they stay in memory for this run, and what was written is removed:
    checkpoints need the room.
    """

    def __init__(self, shards: _Shards) -> None:
        """Make its file of rows; it has no index before there are rows to list.

        Args:
            shards: which it joins.
        """
        self.shards = shards
        stem = shards.folder / f"{time.time_ns():x}-{os.getpid()}"
        self.data, self.index = stem.with_suffix(".bin"), stem.with_suffix(".json")
        self.pictures: list[str] = []  # whose rows are in the file
        self.listed_at = time.perf_counter()
        self.lock: AcquireReturnProxy[FileLock] | None = None
        self.file: io.FileIO | None = None  # None: there is no room
        try:
            shards.folder.mkdir(parents=True, exist_ok=True)
            self.lock = lock(stem.with_suffix(".lock"))
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
            if self.file.write(rows.data) < rows.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.pictures += pictures
            if time.perf_counter() - self.listed_at > LIST_EVERY:
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
        self._unlock()

    def _list(self) -> None:
        """Write down whose rows are in the file: from now on they are read from there."""
        assert self.file is not None
        os.fsync(self.file.fileno())
        with whole_file(self.index) as part:
            part.write_text(json.dumps(self.pictures), encoding="utf-8")
        self.shards.add(self.pictures, self.shards.map(self.data, len(self.pictures)))
        self.listed_at = time.perf_counter()

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
        self._unlock()

    def _unlock(self) -> None:
        if self.lock:
            self.lock.lock.release()
            self.data.with_suffix(".lock").unlink(missing_ok=True)
            self.lock = None


def _identity(path: Path) -> str:
    """Identify a version of a picture file: its place, size and times of change.

    What unpacks archives sets the one time back, and pictures without compression have one size.
    """
    try:
        status = path.stat()
    except OSError:
        return f"{path}|missing"
    times = f"{status.st_mtime_ns}|{status.st_ctime_ns}"
    return f"{path.resolve()}|{status.st_size}|{times}"


def fingerprint(module: torch.nn.Module) -> str:
    """A short hash of a module's weights."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
