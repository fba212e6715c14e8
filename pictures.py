"""Pictures: files to upright RGB images to uint8 tensors, and the augmentation of those."""

# N pictures, S side of a square picture.

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cli import UserError

PICTURE_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".jfif", ".tga"),
}
LARGEST_RATIO = 1.25  # width to height of a crop, or height to width


# ---------------------------------------------------------------------------------- reading


def read_image(source: Path | Any, *, size: int | None = None) -> Image.Image:
    """Open a picture as viewers show it: upright, RGB, over white, its first frame.

    Args:
        source: a path or an open binary file.
        size: the size it will be resized to; a large JPEG is then decoded at a smaller scale, at
            least twice that size, which is several times as fast.

    Raises:
        UserError: not a picture, damaged, or too large.
    """
    name = source if isinstance(source, str | Path) else "the picture"
    try:
        with Image.open(source) as image:
            if size is not None:
                image.draft(None, (2 * size, 2 * size))
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise UserError(f"{name}: no such file.") from None
    except UnidentifiedImageError:
        raise UserError(f"{name} is not a picture in a format that can be read.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name} is too large to be read safely (over 179 megapixels).") from None
    except Exception as error:  # decoders raise errors of almost any kind on broken files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{name} cannot be read: {reason}.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode: 16 bits scaled down (Pillow would clip them), transparency over white."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float32)
        white = 65535 if image.mode.startswith("I") else 1 if values.max() <= 1 else 255
        return Image.fromarray((values / white * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def read_pictures(
    paths: Iterable[Path], size: int, *, ahead: int = 64
) -> Iterator[tuple[Path, Tensor | UserError]]:
    """Read and transform pictures in threads, in order.

    Args:
        paths: the files, taken from the iterable only as they are needed.
        size: S, of the tensors.
        ahead: pictures read before they are asked for: two batches or more, so that reading goes
            on while the model computes.

    Yields:
        Each path with its picture as ``transform`` returns it, or the reason why it cannot be
        read.
    """

    def read(path: Path) -> tuple[Path, Tensor | UserError]:
        try:
            return path, transform(read_image(path, size=size), size)
        except UserError as error:
            return path, error

    # Pillow decodes without holding Python's lock.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        pending: deque[Future[tuple[Path, Tensor | UserError]]] = deque()
        try:
            for path in paths:
                pending.append(pool.submit(read, path))
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


def augment(pixels: Tensor, may_mirror: Tensor, *, smallest: float) -> Tensor:
    """Crop each picture at random, resize the crop, and mirror half of those that allow it.

    Runs on the device of ``pixels`` with that device's random numbers, and never waits for it.

    Args:
        pixels: (N, 3, S, S) uint8.
        may_mirror: (N,) bool, on the same device: the captions are true of the mirror image too.
        smallest: least share of a picture's area that is kept, above 0 and at most 1.

    Returns:
        (N, 3, S, S) uint8.

    Source: Szegedy et al. 2015, arXiv:1409.4842, section 6, with gentler aspect ratios.
    """
    boxes = _random_boxes(len(pixels), smallest=smallest, device=pixels.device)
    mirrored = may_mirror & (torch.rand(len(pixels), device=pixels.device) < 0.5)
    return _crop(pixels, boxes, mirrored)


def _random_boxes(n: int, *, smallest: float, device: torch.device) -> Tensor:
    """Draw crops: area uniform, aspect ratio log-uniform, place uniform.

    The ratio is drawn from what fits into the picture at that area, so that no box has to be
    drawn again: the larger the area, the squarer the box.

    Returns:
        (4, N) float32: left, top, width and height as shares of the picture's side.
    """
    area, ratio, left, top = torch.rand(4, n, device=device)  # (N,) each, in [0, 1)
    area = 1 - (1 - smallest) * area
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
