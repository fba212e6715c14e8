import io
import math
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from torch.utils._python_dispatch import TorchDispatchMode

import pictures
from cli import UserError
from pictures import Source, augment, read_image, read_pictures, transform

# ------------------------------------------------------------------------------- pictures


def flat(mode, colour):
    return Image.new(mode, (8, 8), colour)


def deep(value, dtype):
    return Image.fromarray(np.full((8, 8), value, dtype))


INDEXED = flat("P", 3)
INDEXED.putpalette([200, 100, 0] * 8)
FRAMES = {"save_all": True, "append_images": [flat("RGB", (0, 0, 255))]}
# What is saved as what, and the colour people see.
# fmt: off
PICTURES = {
    "colour": (flat("RGB", (200, 100, 0)), "a.png", {}, (200, 100, 0)),
    "greyscale": (flat("L", 100), "a.jpg", {}, (100,) * 3),
    "black and white": (flat("1", 1), "a.png", {}, (255,) * 3),
    "CMYK JPEG": (flat("CMYK", (0, 255, 255, 0)), "a.jpg", {}, (255, 0, 0)),
    "palette": (INDEXED, "a.png", {}, (200, 100, 0)),
    "palette, transparent": (INDEXED, "a.png", {"transparency": 3}, (255,) * 3),
    "RGB, transparent": (flat("RGB", (9, 8, 7)), "a.png", {"transparency": (9, 8, 7)}, (255,) * 3),
    "RGBA, transparent": (flat("RGBA", (200, 0, 0, 0)), "a.png", {}, (255,) * 3),
    "RGBA, half": (flat("RGBA", (255, 0, 0, 128)), "a.png", {}, (255, 127, 127)),
    "LA": (flat("LA", (0, 128)), "a.png", {}, (127,) * 3),
    "16 bits": (deep(32768, np.uint16), "a.png", {}, (127,) * 3),
    "16 bits, big-endian": (deep(32768, ">u2"), "a.tif", {}, (127,) * 3),
    "32 bits": (deep(32768, np.int32), "a.tif", {}, (127,) * 3),
    "float to 1": (deep(0.5, np.float32), "a.tif", {}, (127,) * 3),
    "float to 255": (deep(100, np.float32), "a.tif", {}, (100,) * 3),
    "animated": (flat("RGB", (255, 0, 0)), "a.gif", FRAMES, (255, 0, 0)),
}
# fmt: on


@pytest.mark.parametrize(("image", "name", "options", "colour"), PICTURES.values(), ids=PICTURES)
def test_every_kind_of_picture_becomes_rgb(tmp_path, image, name, options, colour):
    """Pillow clips 16 bits to white, and shows black under what is transparent."""
    image.save(tmp_path / name, **options)
    for source in (tmp_path / name, io.BytesIO((tmp_path / name).read_bytes())):
        read = read_image(source, size=8)
        assert (read.mode, read.size) == ("RGB", (8, 8))
        np.testing.assert_allclose(np.asarray(read).reshape(-1, 3), [colour] * 64, atol=3)


@pytest.mark.parametrize("size", [None, 16])
def test_pictures_stand_upright(tmp_path, size):
    """A phone's photo lies on its side and says so in EXIF."""
    image = Image.new("RGB", (64, 32))
    image.paste((255, 0, 0), (0, 0, 32, 32))  # left; turned upright it is at the top
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    read = read_image(tmp_path / "a.jpg", size=size)
    assert read.size == (32, 64)
    assert read.getpixel((16, 8))[0] > 200
    assert read.getpixel((16, 56))[0] < 50


def test_unreadable_pictures_are_named(tmp_path, monkeypatch):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    reasons = {"cut": "truncated", "text": "not a picture", "empty": "not a picture"}
    for stem, words in {**reasons, "missing": "no such file"}.items():
        with pytest.raises(UserError, match=words) as caught:
            read_image(tmp_path / f"{stem}.jpg")
        assert str(tmp_path / f"{stem}.jpg") in str(caught.value)
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        read_image(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"whole.jpg is too large"):
        read_image(tmp_path / "whole.jpg")


def test_what_a_name_promises_and_a_file_is_not_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "HEIC_PACKAGE", "no_such_package")
    contents = {
        "an empty file": b"",
        "a web page": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "an SVG drawing": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    }
    for words, content in contents.items():
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(UserError, match=f"a.jpg is not a picture .*{words}"):
            read_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError, match=r"a.jpg is HEIC: to read it, pip install pillow-heif"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such files")
def test_only_regular_files_are_opened(tmp_path):
    """A pipe hung, so that not even SIGTERM ended the run."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.jpg"))
        for name in ("pipe.jpg", "socket.jpg", "device.jpg"):
            with pytest.raises(UserError, match=rf"{name} is not a picture but a pipe, socket or"):
                read_image(tmp_path / name)
    with pytest.raises(UserError, match=r"loop.jpg cannot be read"):
        read_image(tmp_path / "loop.jpg")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.png")
    assert read_image(tmp_path / "link.jpg").size == (4, 4)


def test_an_error_is_one_line_whatever_the_name(tmp_path):
    with pytest.raises(UserError, match=r"two\\nlines.jpg: no such file\.$"):
        read_image(tmp_path / "two\nlines.jpg")


def test_postscript_is_not_read(tmp_path):
    """Pillow would start a program for it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"not a picture in a format"):
        read_image(tmp_path / "a.jpg")


# ------------------------------------------------------------------------------ side data


def chunk(name, data, *, checksum=None):
    checksum = zlib.crc32(name + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


LONG = zlib.compress(b" " * 2_000_000)
# fmt: off
SIDE_DATA = {
    "EXIF that is none": chunk(b"eXIf", b"\0\x08\0\x02\x01\x12"),
    "a profile of 2 MB": chunk(b"iCCP", b"name\0\0" + LONG),
    "a text of 2 MB": chunk(b"zTXt", b"prompt\0\0" + LONG),
    "an international text of 2 MB": chunk(b"iTXt", b"prompt\0\1\0\0\0" + LONG),
    "a wrong checksum": chunk(b"tEXt", b"prompt\0a cat", checksum=1),
    "a wrong checksum of the transparency": chunk(b"tRNS", bytes(6), checksum=1),
    "a transparency too short": chunk(b"tRNS", b"\0"),
    "a time too short": chunk(b"pHYs", b"\0"),
    "an animation too short": chunk(b"acTL", b"\0"),
}
# fmt: on


@pytest.mark.parametrize("place", [33, -12], ids=["before the pixels", "behind"])
@pytest.mark.parametrize("side_data", SIDE_DATA.values(), ids=SIDE_DATA)
def test_side_data_of_a_png_that_cannot_be_read_is_passed_over(side_data, place):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 0)).save(file, "PNG")
    data = file.getvalue()
    read = read_image(io.BytesIO(data[:place] + side_data + data[place:]))
    assert read.getpixel((4, 4)) == (200, 100, 0)


def test_transparency_and_orientation_survive_a_text_too_long(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (8, 4), (9, 8, 7))
    image.save(tmp_path / "a.png", transparency=(9, 8, 7), exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:33] + SIDE_DATA["a text of 2 MB"] + data[33:])
    read = read_image(tmp_path / "a.png")
    assert (read.size, read.getpixel((1, 1))) == ((4, 8), (255,) * 3)


def test_broken_pixels_of_a_png_stay_an_error():
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    for data in (file.getvalue()[:2000], file.getvalue()[:500] + bytes(9) + file.getvalue()[509:]):
        with pytest.raises(UserError, match="cannot be read"):
            read_image(io.BytesIO(data))


def test_exif_with_a_damaged_entry_still_turns_the_picture(tmp_path):
    """Writing the EXIF back failed, which nobody asked for."""
    entries = struct.pack("<HHHIHH", 2, 0x0112, 3, 1, 6, 0)
    entries += struct.pack("<HHII", 0x011A, 5, 1, 38) + bytes(4)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + entries + struct.pack("<II", 2**32 - 1, 0)
    Image.new("RGB", (16, 8), "red").save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (8, 16)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as cli.run does
def test_exif_that_is_none_is_passed_over(tmp_path, exif, name):
    Image.new("RGB", (16, 8), "red").save(tmp_path / name, exif=exif)
    assert read_image(tmp_path / name).size == (16, 8)


# ----------------------------------------------------------------------------- deep pictures

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


def with_pixel(array, value):
    array = array.copy()
    array[5, 5] = value
    return array


# fmt: off
DEEP = {
    "16 bits": (RAMP * 65535).astype(np.uint16),
    "12 bits in 16": (RAMP * 4095).astype(np.uint16),
    "12 bits, a hot pixel": with_pixel((RAMP * 4095).astype(np.uint16), 65535),
    "8 bits in 16": (RAMP * 255).astype(np.uint16),
    "signed": (RAMP * 4000 - 1000).astype(np.int32),
    "32 bits": (RAMP * 2**30).astype(np.int32),
    "float to 1": RAMP.astype(np.float32),
    "float to 255": (RAMP * 255).astype(np.float32),
    "float to 4000": (RAMP * 4000).astype(np.float32),
    "float from -1": (RAMP * 2 - 1).astype(np.float32),
    "float to 1, and one of 1.01": with_pixel(RAMP.astype(np.float32), 1.01),
    "float, a NaN": with_pixel(RAMP.astype(np.float32), np.nan),
    "float, an infinity": with_pixel((RAMP * 255).astype(np.float32), np.inf),
}
# fmt: on


@pytest.mark.parametrize("array", DEEP.values(), ids=DEEP)
def test_deep_pictures_are_scaled_by_their_values(tmp_path, array):
    """One NaN, hot pixel or float above 1 turned the picture black; so did 12 bits in 16."""
    Image.fromarray(array).save(tmp_path / "a.tif")
    read = np.asarray(read_image(tmp_path / "a.tif"))[..., 0]
    difference = np.abs(read - RAMP * 255)
    difference[5, 5] = 0
    assert difference.max() <= 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0, 1, -7, 1e-30, 3e38, -3e38])
def test_a_constant_deep_picture_is_a_picture_or_a_clear_error(tmp_path, value):
    Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / "a.tif")
    if np.isfinite(value):
        assert read_image(tmp_path / "a.tif").mode == "RGB"
    else:
        with pytest.raises(UserError, match="nothing but NaN or infinity"):
            read_image(tmp_path / "a.tif")


# ------------------------------------------------------------------------------------ memory


def huge_png(width, height, *, bits=8, colour=2):
    """All black, and compressed to almost nothing."""
    deflate = zlib.compressobj()
    row = bytes(1 + width * bits * {0: 1, 2: 3, 6: 4}[colour] // 8)
    pixels = b"".join(deflate.compress(row) for _ in range(height)) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def huge_webp():
    """Nothing but a header."""
    side = (16382).to_bytes(3, "little")
    header = b"VP8X" + struct.pack("<II", 10, 0) + side + side
    return b"RIFF" + struct.pack("<I", 26) + b"WEBP" + header + b"VP8 "


@pytest.mark.skipif(sys.platform == "win32", reason="cannot tell how much memory was taken")
@pytest.mark.parametrize(
    ("make", "megabytes", "result"),
    [
        (lambda: huge_png(9000, 9000), 500, "RGB (530, 530)"),
        (lambda: huge_png(60_000, 60_000, bits=1, colour=0), 100, "is too large"),
        (lambda: huge_png(2**21, 1), 100, "is too large"),
        (huge_webp, 100, "cannot be read|is too large"),
    ],
    ids=["81 megapixels", "3600 megapixels", "thin", "WebP"],
)
def test_memory_is_bounded_before_it_is_taken(tmp_path, make, megabytes, result):
    (tmp_path / "a").write_bytes(make())
    script = (
        "import resource, sys; from pictures import *\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try: image = read_image(sys.argv[1], size=256); print(image.mode, image.size)\n"
        "except UserError as error: print(error)\n"
        "print((peak() - before) // (1000 if sys.platform == 'linux' else 1_000_000))"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "a")]
    root = Path(pictures.__file__).parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert (tmp_path / "a").stat().st_size < 1_000_000
    found, taken = done.stdout.splitlines()
    assert any(words in found for words in result.split("|")), found
    assert int(taken) < megabytes


def test_a_jpeg_of_200_megapixels_is_read_small(tmp_path):
    """A phone's; Pillow refuses it by its pixels, of which few are needed."""
    Image.new("L", (20_000, 10_000), 100).save(tmp_path / "a.jpg")
    read = read_image(tmp_path / "a.jpg", size=224)
    assert (read.size, read.getpixel((9, 9))) == ((2500, 1250), (100,) * 3)


def test_a_large_picture_in_strips_looks_the_same(tmp_path, monkeypatch):
    image = Image.fromarray(np.uint8(noise(1, 200)[0].permute(1, 2, 0).numpy())).convert("RGBA")
    image.save(tmp_path / "a.png")
    whole = read_image(tmp_path / "a.png", size=24)
    assert whole.size == (200, 200)
    monkeypatch.setattr(pictures, "STRIP", 1000)
    assert read_image(tmp_path / "a.png", size=24) == whole
    monkeypatch.setattr(pictures, "SHRUNK", 1000)
    small = read_image(tmp_path / "a.png", size=24)
    assert small.size == (50, 50)
    difference = (transform(small, 24).float() - transform(whole, 24).float()).abs()
    assert difference.mean() < 2


# --------------------------------------------------------------------------------- transform


def test_a_large_jpeg_decoded_small_looks_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((1200, 900), Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.jpg", quality=95)
    small, full = read_image(tmp_path / "a.jpg", size=48), read_image(tmp_path / "a.jpg")
    assert full.size == (1200, 900)
    assert 96 <= min(small.size) < 300
    difference = (transform(small, 48).float() - transform(full, 48).float()).abs()
    assert difference.mean() < 3


@pytest.mark.parametrize("size", [(300, 60), (60, 300), (16, 16), (5, 7)])
def test_transform_keeps_the_whole_picture(size):
    """A crop cuts off what captions speak of; the corners must still be there."""
    image = Image.new("RGB", size)
    right, bottom = size[0] - size[0] // 3, size[1] - size[1] // 3
    image.paste((255, 0, 0), (0, 0, size[0] // 3, size[1] // 3))
    image.paste((0, 255, 0), (right, 0, *size))
    image.paste((0, 0, 255), (right, bottom, *size))
    pixels = transform(image, 16)
    assert (pixels.shape, pixels.dtype) == ((3, 16, 16), torch.uint8)
    corners = [pixels[:, y, x].tolist() for y, x in ((0, 0), (0, -1), (-1, -1), (-1, 0))]
    assert corners == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]


def test_transform_does_not_alias():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::8] = 255
    assert (transform(Image.fromarray(stripes), 16).float() - 255 / 8).abs().max() < 16


def test_read_pictures_keeps_order_and_hands_back_errors(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(100)]
    for i, path in enumerate(paths):
        Image.new("RGB", (4 + i % 5, 4), (i, 0, 0)).save(path)
    paths[3].unlink()
    paths[70].write_text("not a picture")
    asked = []
    found = read_pictures((asked.append(path) or Source(path) for path in paths), 8)
    first = next(found)
    assert 1 < len(asked) < 100  # some are read ahead; all of them would fill the memory
    found = [first, *found]
    assert [source.path for source, _ in found] == paths
    errors = {i: str(picture) for i, (_, picture) in enumerate(found) if i in (3, 70)}
    assert str(paths[3]) in errors[3]
    assert str(paths[70]) in errors[70]
    red = [int(p[0].unique()) for _, p in found if not isinstance(p, UserError)]
    assert red == [i for i in range(100) if i not in errors]


def test_heic_is_upright_and_survives_damage(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    image = Image.new("RGB", (64, 32), "red")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    heif.from_pillow(image).save(tmp_path / "a.heic", exif=exif.tobytes())
    read = read_image(tmp_path / "a.heic")
    assert read.size == (32, 64)
    assert read.getpixel((5, 5))[0] > 200
    data = (tmp_path / "a.heic").read_bytes()
    for cut in (len(data) - 30, len(data) // 2, 100, 30):
        with pytest.raises(UserError):
            read_image(io.BytesIO(data[:cut]))


# ----------------------------------------------------------------------------- augmentation


def test_augmented_pictures_are_parts_of_the_picture():
    torch.manual_seed(0)
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).expand(3, 32, 32)  # brighter to the right
    shown = augment(ramp.expand(40, 3, 32, 32), torch.arange(40) < 20, crop=0.5)
    assert shown.shape == (40, 3, 32, 32)
    assert shown.dtype == torch.uint8
    rises = [bool(image[0, 16, -1] > image[0, 16, 0]) for image in shown]
    assert all(rises[20:])
    assert 2 < sum(rises[:20]) < 18
    span = [int(image.max()) - int(image.min()) for image in shown]
    assert max(span) > 200
    assert min(span) < 215
    assert len({tuple(image.flatten().tolist()) for image in shown}) > 25


def noise(n, size):
    """Smooth random pictures, in which a shift of a fraction of a pixel still shows."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 5, 5, generator=generator) * 255
    return F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 32, 32), (3, 5, 20, 24), (12, 0, 20, 25), (7, 9, 8, 8)])
def test_a_crop_is_the_box_resized_bilinearly(box, mirror):
    left, top, width, height = box
    pixels = noise(2, 32)
    boxes = torch.tensor([box, (0, 0, 32, 32)]).T / 32  # the other picture stays as it is
    cropped = pictures._crop(pixels, boxes, torch.tensor([mirror, False]))
    cut = pixels[:1, :, top : top + height, left : left + width].float()
    wanted = F.interpolate(cut, size=(32, 32), mode="bilinear", align_corners=False)
    wanted = wanted.flip(3) if mirror else wanted
    # At a box's edge grid_sample mixes in the pixels beyond it, which interpolate does not have.
    edge = math.ceil(32 / min(width, height) / 2)
    inner = slice(edge, 32 - edge)
    difference = (cropped[0].float() - wanted[0])[:, inner, inner].abs()
    assert difference.max() <= 0.51  # of rounding
    assert torch.equal(cropped[1], pixels[1])


@pytest.mark.parametrize("crop", [0.05, 0.6, 0.95])
def test_boxes_lie_in_the_picture_and_vary_as_they_should(crop):
    torch.manual_seed(0)
    left, top, width, height = pictures._random_boxes(20_000, crop=crop, device=torch.device("cpu"))
    has_room = (width < 0.99) & (height < 0.99)
    places = []
    for start, side in ((left, width), (top, height)):
        assert start.min() >= 0
        assert (start + side).max() <= 1 + 1e-6
        places.append((start / (1 - side))[has_room])
        assert abs(places[-1].mean() - 0.5) < 0.02  # as often at one end as at the other
        assert places[-1].std() > 0.28
    assert abs(torch.corrcoef(torch.stack(places))[0, 1]) < 0.05
    area, ratio = width * height, width / height
    torch.testing.assert_close(area.min(), torch.tensor(crop), rtol=0, atol=1e-3)
    torch.testing.assert_close(area.max(), torch.tensor(1.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(area.mean(), torch.tensor((1 + crop) / 2), rtol=0, atol=5e-3)
    assert ratio.max() <= 1.25 + 1e-5
    assert ratio.min() >= 0.8 - 1e-5
    assert abs(ratio.log().mean()) < 5e-3
    if crop < 0.8:
        assert ratio.max() > 1.24
        assert ratio.min() < 0.81


def test_the_whole_picture_stays_as_it_is():
    """With no room to crop, a draw of another aspect ratio would still cut something off."""
    pixels = noise(30, 24)
    torch.manual_seed(0)
    assert torch.equal(augment(pixels, torch.zeros(30, dtype=torch.bool), crop=1.0), pixels)
    mirrored = augment(pixels, torch.arange(30) < 20, crop=1.0)
    is_mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(mirrored, pixels, strict=True)]
    is_same = [torch.equal(new, old) for new, old in zip(mirrored, pixels, strict=True)]
    assert [a != b for a, b in zip(is_mirrored, is_same, strict=True)] == [True] * 30
    assert all(is_same[20:])
    assert 3 < sum(is_mirrored[:20]) < 17


def test_a_crop_at_the_pictures_edge_is_not_darkened():
    white = torch.full((50, 3, 16, 16), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    assert torch.equal(augment(white, torch.arange(50) < 25, crop=0.2), white)


def test_augmentation_is_repeatable_by_seed():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(noise(4, 16), torch.ones(4, dtype=torch.bool), crop=0.5))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


class Operations(TorchDispatchMode):
    """The names of the operations that a block of code starts."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().removeprefix("aten::").split(".")[0])
        return func(*args, **(kwargs or {}))


def test_augmentation_never_waits_and_its_work_does_not_grow_with_the_batch():
    """It cropped picture by picture, each box an `.item()` and each crop launches of its own."""
    names = []
    for n in (2, 50):
        with Operations() as operations:
            augment(noise(n, 8), torch.ones(n, dtype=torch.bool), crop=0.5)
        names.append(operations.names)
    assert names[0] == names[1]
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "index", "is_nonzero", "equal"}
    assert not waits & set(names[0])
    assert names[0].count("grid_sampler_2d") == 1
