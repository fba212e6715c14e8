"""Damaged pictures of all formats: either a picture comes back or an error of one line.

`FUZZ=20000 python -m pytest tests/test_pictures_fuzz.py` tries more of them.
"""

import io
import os
import random
import warnings

import numpy as np
from PIL import Image

from cli import UserError
from pictures import read_image

N = int(os.environ.get("FUZZ", "300"))


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def seeds():
    """A small picture in every format and mode that Pillow writes and we read."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 17, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = pixels[..., 0].astype(np.uint16) * 257
    images = [rgba.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")]
    images += [Image.fromarray(array) for array in (deep, deep.astype("i4"), deep.astype("f4"))]
    kinds = [(kind, {}) for kind in ("PNG", "GIF", "BMP", "DIB", "PPM", "ICO", "TGA", "JPEG2000")]
    kinds += [(kind, {"exif": exif}) for kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF")]
    kinds += [("TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg", "packbits")]
    kinds += [("JPEG", {"progressive": True}), ("WEBP", {"lossless": True}), ("TGA", {"rle": True})]
    kinds += [(kind, {"save_all": True, "append_images": [images[4]]}) for kind in ("MPO", "PNG")]
    for kind, options in kinds:
        for image in images:
            try:
                yield saved(image, kind, **options)
            except (OSError, ValueError):  # a mode that the format does not have
                continue


def damaged(data, random):
    """Some bytes changed, in the header more often than behind; some cut off, put in or doubled."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        end = random.choice((min(len(data), 64), len(data)))
        place = random.randrange(max(1, end))
        how = random.randrange(5)
        if how < 2:
            data[place : place + 1] = bytes([random.randrange(256)])
        elif how == 2:
            data[place : place + 4] = random.choice((b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff"))
        elif how == 3:
            data[place:place] = data[place : place + random.randrange(9)]
        elif random.random() < 0.3:
            del data[place:]
        else:
            del data[place : place + random.randrange(1, 9)]
    return bytes(data)


def test_a_damaged_picture_is_a_picture_or_an_error():
    originals = list(seeds())
    draw = random.Random(0)
    messages = []
    for number in range(N):
        data = damaged(originals[number % len(originals)], draw)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # as cli.run does
            try:
                image = read_image(io.BytesIO(data), size=draw.choice((None, 4)))
            except UserError as error:
                messages.append(str(error))
            else:
                assert image.mode == "RGB"
                assert min(image.size) > 0
    assert 0.1 * N < len(messages) < 0.9 * N
    assert all(len(message.splitlines()) == 1 for message in messages)
