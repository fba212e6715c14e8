"""Pictures: files to upright RGB images to uint8 tensors, and the augmentation of those."""

# N pictures, S side of a square picture.

from __future__ import annotations

import importlib.util
import io
import math
import os
import re
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cli import UserError
from draws import Share

# Tried in this order, TGA last: it has no signature. None starts a program, as PostScript does.
FORMATS = "JPEG PNG GIF WEBP AVIF BMP DIB TIFF JPEG2000 PPM ICO TGA".split()  # noqa: SIM905
HEIC_SUFFIXES = {".heic", ".heif", ".hif"}
HEIC_PACKAGE = "pillow_heif"  # `pip install pillow-heif`
PICTURE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".avif", ".ico"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm"),
    ".tga",
    *(HEIC_SUFFIXES if importlib.util.find_spec(HEIC_PACKAGE) else ()),
}
HEIC = re.compile(rb"(?s)....ftyp(hei|hev|mif1|msf1)")
OTHER_FILES = {  # how they begin → what they are
    rb"\Z": "but an empty file",
    rb"version https://git-lfs": "but a Git LFS pointer: fetch the pictures with git lfs pull",
    rb"\s*(<!--.*-->\s*)?<(!doctype html|html|head|body)": "but a web page: download it again",
    rb"\s*(<\?xml.*)?(<!.*)?<svg": "but an SVG drawing: convert it to PNG",
}
LARGEST, LONGEST = 2 * 10**9, 10**6  # bytes of memory for a picture, about; pixels of a side
Image.MAX_IMAGE_PIXELS = LARGEST // 2  # Pillow warns above it, and refuses twice as many
COPIES = {"WEBP": 4, "AVIF": 4, "HEIF": 4, "JPEG2000": 5, "TIFF": 2}  # while it is decoded
SHRUNK, STRIP = 2**24, 2**22  # pixels from which on blocks are averaged; converted at a time
_one_large = threading.Lock()
LARGEST_RATIO = 1.25  # width to height of a crop, or height to width


# ---------------------------------------------------------------------------------- reading


class Source(NamedTuple):
    """A picture to read: a file, or a member of an archive.

    Attributes:
        path: its file; of a member the archive's path and, as if it were a folder, its name there.
        place: where a file about it goes in a folder of such files, relative.
        content: of a member its bytes, or the reason why there are none; None of a file.
    """

    path: Path
    place: Path = Path()
    content: bytes | UserError | None = None


class _Refusal(Exception):
    """Why a picture is not read, as the rest of a sentence that begins with its name."""


def read_image(source: str | Path | Source | IO[bytes], *, size: int | None = None) -> Image.Image:
    """Open a picture as viewers show it: upright, RGB, over white, its first frame.

    The pixels count: side data that cannot be read (EXIF, profiles, texts) is passed over.

    Args:
        source: a path, an open binary file, or a ``Source``.
        size: what it will be resized to; if it is large, it comes at no less than twice that.

    Raises:
        UserError: no regular file, not a picture, damaged, or too large; its message is one line.
    """
    path = source.path if isinstance(source, Source) else source
    name = one_line(str(path)) if isinstance(path, str | os.PathLike) else "the picture"
    try:
        with _opened(source) as file:
            return _read(file, size)
    except UserError:  # the source's own
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: no such file.") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large: it may take over 2 GB of memory.") from error
    except _Refusal as refusal:
        raise UserError(f"{name} {refusal}.") from refusal
    except Exception as error:  # decoders raise errors of almost any kind on broken files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"{name} cannot be read: {' '.join(reason.split()).rstrip('.')}."
        ) from error


def one_line(name: str) -> str:
    r"""Escape what breaks a line or a table: ``\t``, ``\n``; double backslashes, not on Windows."""
    special = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\\]" if os.sep == "/" else r"[\x00-\x1f]"
    return re.sub(special, lambda found: found[0].encode("unicode_escape").decode(), name)


def _opened(source: str | Path | Source | IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """Open a regular file, and no other: a pipe may hang, a device never end."""
    if isinstance(source, Source):
        if isinstance(source.content, UserError):
            raise source.content
        return _opened(source.path if source.content is None else io.BytesIO(source.content))
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.exists() and not path.is_file() and not path.is_dir():
            raise _Refusal("is not a picture but a pipe, socket or device")
        return path.open("rb")
    try:
        source.seek(0)
    except (AttributeError, OSError):  # a stream
        source = io.BytesIO(source.read(LARGEST))
    return nullcontext(source)


def _read(file: IO[bytes], size: int | None) -> Image.Image:
    """Decode; if that fails, try with less of a PNG's side data, at last with its pixels alone."""
    try:
        return _decode(file, size)
    except Image.DecompressionBombError:
        raise
    except Exception:
        for side_data in ((b"tRNS", b"eXIf"), ()):
            with suppress(Exception):
                return _decode(_bare_png(file, side_data), size)
        raise


def _bare_png(file: IO[bytes], side_data: tuple[bytes, ...]) -> IO[bytes]:
    """Copy a PNG's pixels, and those chunks of the side data named that are whole."""
    file.seek(0)
    kept = [file.read(8)]
    if kept != [b"\x89PNG\r\n\x1a\n"]:
        raise ValueError("no PNG")
    while len(start := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", start)
        data, checksum = file.read(length), file.read(4)
        is_whole = zlib.crc32(name + data).to_bytes(4) == checksum
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (name in side_data and is_whole):
            kept += [start, data, checksum]
    return io.BytesIO(b"".join(kept))


def _decode(file: IO[bytes], size: int | None) -> Image.Image:
    """Decode and convert within the memory allowed, to an RGB image and its array of 7 bytes."""
    image = _identified(file)
    memory = 2 * math.prod(image.size) * getattr(image, "layers", 0)  # JPEG's, at any scale
    side = 2 * (size or max(image.size))
    image.draft(None, (side, side))
    n_pixels = math.prod(image.size)
    shrink = max(1, min(image.size) // side) if n_pixels > SHRUNK else 1
    channels = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    memory += round(n_pixels * (channels * COPIES.get(image.format or "", 1) + 7 / shrink**2))
    if max(memory, file.seek(0, io.SEEK_END)) > LARGEST or max(image.size) > LONGEST:
        raise Image.DecompressionBombError
    with _one_large if memory > LARGEST / 8 else nullcontext():
        image.load()
        rgb = _to_rgb(image, shrink)
    with suppress(Exception):  # EXIF that is not there, or damaged
        rgb.getexif()[ExifTags.Base.Orientation] = image.getexif()[ExifTags.Base.Orientation]
    ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _identified(file: IO[bytes]) -> Image.Image:
    """The image of a file, not decoded yet."""
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        head = file.read(512)
    if HEIC.match(head):
        if not importlib.util.find_spec(HEIC_PACKAGE):
            raise _Refusal("is HEIC: to read it, pip install pillow-heif")
        import pillow_heif

        pillow_heif.register_heif_opener()
        try:
            return Image.open(file, formats=["HEIF"])
        except UnidentifiedImageError:
            raise _Refusal("is not a picture but damaged HEIC") from None
    kinds = (kind for start, kind in OTHER_FILES.items() if re.match(start, head, re.S | re.I))
    raise _Refusal(f"is not a picture {next(kinds, 'in a format that can be read')}")


def _to_rgb(image: Image.Image, shrink: int) -> Image.Image:
    """Convert any mode, in strips, so that no large picture is in memory several times."""
    width, height = image.size
    levels = _black_and_white(image) if image.mode.startswith(("I", "F")) else None
    rgb = Image.new("RGB", (math.ceil(width / shrink), math.ceil(height / shrink)))
    rows = max(1, STRIP // (width * shrink)) * shrink
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        strip = _to_8_bits(strip, *levels) if levels else _over_white(strip)
        rgb.paste(strip.reduce(shrink), (0, top // shrink))
    return rgb


def _over_white(image: Image.Image) -> Image.Image:
    """Convert 8 bits a channel; Pillow would show black under what is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _black_and_white(image: Image.Image) -> tuple[float, float]:
    """The values of a deep picture that stand for black and white, hot pixels aside.

    White is that of the least bit depth, or range of floats, that holds the values, or the largest.
    """
    sample = image.resize([min(side, 1024) for side in image.size], Image.Resampling.NEAREST)
    values = np.asarray(sample)
    values = values[np.isfinite(values)]
    if not len(values):
        raise _Refusal("is not a picture that can be shown: it holds nothing but NaN or infinity")
    low = float(np.quantile(values, 0.001, method="higher"))
    high = float(np.quantile(values, 0.999, method="lower"))
    if low < min(0, -0.05 * high):
        return low, max(high, low + 1)
    whites = (1, 255, 65535) if image.mode == "F" else (255, 1023, 4095, 16383, 65535)
    white = next((white for white in whites if high <= 1.05 * white), high)  # filters overshoot
    return 0, high if 1.05 < high < white / 16 else white  # too dark for that range


def _to_8_bits(image: Image.Image, black: float, white: float) -> Image.Image:
    """Convert a deep picture; Pillow would clip it. NaN becomes black."""
    values = np.asarray(image, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # of the largest floats
        values = (values - black) / (white - black) * 255
    values = np.nan_to_num(values, nan=0, posinf=255, neginf=0).clip(0, 255)
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def read_thumbnail(source: Source | str | Path | IO[bytes], side: int) -> Image.Image:
    """Read a picture, no side of it longer than ``side``; otherwise as ``read_image``."""
    image = read_image(source, size=side)
    image.thumbnail((side, side))
    return image


def as_jpeg(image: Image.Image, quality: int) -> bytes:
    """The picture as the content of a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def read_pictures(
    sources: Iterable[Source], size: int, *, ahead: int = 64
) -> Iterator[tuple[Source, Tensor | UserError]]:
    """Read and transform pictures in threads, in order.

    Args:
        sources: taken from the iterable only as they are needed.
        size: S, of the tensors.
        ahead: pictures read before they are asked for: two batches or more, so that reading goes
            on while the model computes.

    Yields:
        Each source with its picture as ``transform`` returns it, or the reason why it cannot be
        read.
    """

    def read(source: Source) -> tuple[Source, Tensor | UserError]:
        try:
            return source, transform(read_image(source, size=size), size)
        except UserError as error:
            return source, error

    # Pillow decodes without holding Python's lock.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        pending: deque[Future[tuple[Source, Tensor | UserError]]] = deque()
        try:
            for source in sources:
                pending.append(pool.submit(read, source))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def transform(image: Image.Image, size: int) -> Tensor:
    """Resize a picture for the model, the same in training, evaluation and prediction.

    The whole picture is squashed to a square: captions mention what is at the edges too, which
    a crop would cut off.

    Returns:
        (3, size, size) uint8, RGB. The model normalises it for its encoder's weights.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if pixels.shape[1:] == (size, size):
        return pixels
    return F.interpolate(
        pixels.unsqueeze(0), size=(size, size), mode="bilinear", antialias=True
    ).squeeze(0)


# ----------------------------------------------------------------------------- augmentation


def augment(
    pixels: Tensor, may_mirror: Tensor, *, crop: float, share: Share | None = None
) -> Tensor:
    """Crop each picture at random, resize the crop, and mirror half of those that allow it.

    Runs on the device of ``pixels`` with that device's random numbers, and never waits for it.

    Args:
        pixels: (N, 3, S, S) uint8.
        may_mirror: (N,) bool, on the same device: the captions are true of the mirror image too.
        crop: least share of a picture's area that is kept, above 0 and at most 1.
        share: which rows of the pictures of all processes these are.

    Returns:
        (N, 3, S, S) uint8.

    Source: Szegedy et al. 2015, arXiv:1409.4842, section 6, with gentler aspect ratios.
    """
    n, device = share.n if share else len(pixels), pixels.device
    boxes = _random_boxes(n, crop=crop, device=device)
    heads = torch.rand(n, device=device) < 0.5
    if share:
        boxes, heads = boxes[:, share.rows], heads[share.rows]
    return _crop(pixels, boxes, may_mirror & heads)


def _random_boxes(n: int, *, crop: float, device: torch.device) -> Tensor:
    """Draw crops: area uniform, aspect ratio log-uniform, place uniform.

    The ratio is drawn from what fits into the picture at that area, so that no box has to be
    drawn again: the larger the area, the squarer the box.

    Returns:
        (4, N) float32: left, top, width and height as shares of the picture's side.
    """
    area, ratio, left, top = torch.rand(4, n, device=device)  # (N,) each, in [0, 1)
    area = 1 - (1 - crop) * area
    log_area = area.log()
    limit = (-log_area).clamp(max=math.log(LARGEST_RATIO))  # area * ratio and area / ratio <= 1
    log_ratio = (2 * ratio - 1) * limit
    width = ((log_area + log_ratio) / 2).exp()
    height = ((log_area - log_ratio) / 2).exp()
    return torch.stack([left * (1 - width), top * (1 - height), width, height])


def _crop(pixels: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Cut out one box of each picture, resize it bilinearly to the picture's size, mirror it.

    Args:
        pixels: (N, 3, S, S) uint8.
        boxes: (4, N) float32: left, top, width and height as shares of the picture's side.
        mirrored: (N,) bool.

    Returns:
        (N, 3, S, S) uint8.
    """
    n, _, size, _ = pixels.shape
    left, top, width, height = boxes.unsqueeze(2)  # (N, 1) each
    # Pixel centres from -1, the left or upper edge, to 1: what grid_sample counts in.
    centres = (2 * torch.arange(size, device=pixels.device) + 1) / size - 1  # (S,)
    x = torch.where(mirrored.unsqueeze(1), -centres, centres)  # (N, S)
    x = width * x + (2 * left + width - 1)
    y = height * centres + (2 * top + height - 1)  # (N, S)
    # Not affine_grid: it multiplies matrices, which a GPU may do in TF32 or autocast in bfloat16.
    grid = torch.stack(
        [x.unsqueeze(1).expand(n, size, size), y.unsqueeze(2).expand(n, size, size)], dim=3
    )  # (N, S, S, 2)
    crops = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return crops.round().to(torch.uint8)
