import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import features
from cli import UserError
from corpus import Example
from model import ImageCaptioningModel
from pictures import read_image, transform

SIZE = 32


def captioner(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"embedding_size": 8, "hidden_size": 8}
    return ImageCaptioningModel(10, encoder="resnet18", **sizes, **options)


@pytest.fixture(scope="module")
def frozen():
    return captioner()


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "pictures").mkdir()
    paths = [tmp_path / "pictures" / f"{i}.png" for i in range(7)]
    for i, path in enumerate(paths):
        draw(path, i)
    return paths


def draw(path, seed):
    image = Image.radial_gradient("L").resize((40, 32)).convert("RGB")
    image.paste((250, 30 * seed, 0), (4 * seed, 0, 4 * seed + 10, 20))
    image.save(path)


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Features or pixels with a cache of this test's; also says how many pictures were read."""
    monkeypatch.setattr(features, "BATCH_SIZE", 2)

    def prepare(paths, model, *, image_size=SIZE, pixels=False):
        n_read = 0

        def progress(pictures, *, total, **_):
            nonlocal n_read
            n_read = total
            return pictures

        examples = [Example(path.name, path, []) for path in paths]
        with monkeypatch.context() as patch:
            patch.setattr(features, "progress", progress)
            where = {"image_size": image_size, "cache": tmp_path / "cache"}
            if pixels:
                kept, rows = features.load_pixels(examples, **where)
                found = torch.stack([rows[i] for i in range(len(rows))])
            else:
                kept, found = features.load_features(examples, model, **where)
        return [example.path for example in kept], found, n_read

    return prepare


@pytest.fixture
def encode(monkeypatch):
    """`encode(model, change)`: put a function around what encodes the model's pictures."""

    def change_encode(model, change):
        make = model.make_encoder
        monkeypatch.setattr(model, "make_encoder", lambda: change(make()))

    return change_encode


def features_of(paths, model):
    """What the cache should hold, computed without it."""
    pictures = torch.stack([transform(read_image(path), SIZE) for path in paths])
    with torch.inference_mode():
        return model.make_encoder()(pictures)


def fail(*_, **__):
    raise AssertionError("nothing should be computed")


def test_rows_are_the_encoders_and_the_encoder_stays_as_it_is(prepare, paths, frozen):
    """BatchNorm's statistics drifted in encoders that were called frozen."""
    before = {name: value.clone() for name, value in frozen.encoder.state_dict().items()}
    frozen.train()
    kept, found, n_read = prepare(paths, frozen)
    assert n_read == 7
    assert kept == paths
    assert (found.dtype, found.shape) == (torch.float32, (7, 512))
    torch.testing.assert_close(found, features_of(paths, frozen))
    after = frozen.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_second_call_computes_nothing(prepare, paths, frozen, monkeypatch):
    _, first, _ = prepare(paths, frozen)
    monkeypatch.setattr(frozen, "make_encoder", fail)
    monkeypatch.setattr(features, "read_pictures", fail)
    _, again, n_read = prepare(paths[::-1] + paths[:1], frozen)
    assert n_read == 0
    assert torch.equal(again, first[[6, 5, 4, 3, 2, 1, 0, 0]])
    again[0].zero_()  # a copy: the cache cannot be spoiled
    assert prepare(paths[-1:], frozen)[1].any()


def test_another_picture_of_the_same_size_and_time_is_read(prepare, tmp_path, frozen):
    """As an archive unpacked over another: it sets the time back, and .bmp files are all as large.

    The one before was learned from."""
    path = tmp_path / "a.bmp"
    for color in ("red", "blue"):
        Image.new("RGB", (40, 30), color).save(path)
        os.utime(path, ns=(0, 0))
        _, found, n_read = prepare([path], frozen)
        assert n_read == 1
    torch.testing.assert_close(found, features_of([path], frozen))


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_changed_picture_is_read_again(prepare, paths, frozen, change):
    _, first, _ = prepare(paths, frozen)
    if change == "content":
        before = paths[2].stat()
        Image.new("RGB", (500, 300), "red").save(paths[2])
        os.utime(paths[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(paths[2], ns=(0, 0))
    _, again, n_read = prepare(paths, frozen)
    assert n_read == 1
    assert torch.allclose(again[2], first[2], atol=1e-4) == (change == "time")
    torch.testing.assert_close(again, features_of(paths, frozen))


def test_other_weights_and_sizes_have_rows_of_their_own(prepare, paths, frozen):
    _, first, _ = prepare(paths, frozen)
    _, other, n_read = prepare(paths, captioner(seed=1))
    assert n_read == 7
    assert not torch.equal(other[0], first[0])
    _, same, n_read = prepare(paths, captioner(seed=0))  # the same weights in another model
    assert n_read == 0
    assert torch.equal(same[0], first[0])
    assert prepare(paths, frozen, image_size=48)[2] == 7


def test_bfloat16_of_another_kind_of_device_has_rows_of_its_own(
    prepare, paths, frozen, tmp_path, monkeypatch
):
    """A GPU rounds otherwise than a CPU."""
    for half, words in ((True, "-bf16-cpu-"), (False, "-f32-")):
        monkeypatch.setattr(features, "has_bfloat16", lambda _, half=half: half)
        assert prepare(paths, frozen)[2] == 7
        assert [folder for folder in (tmp_path / "cache").iterdir() if words in folder.name]


@pytest.mark.parametrize(
    "damage", ["rows cut", "rows gone", "list cut", "list gone", "list odd", "more rows"]
)
def test_damaged_shards_are_as_if_not_there(prepare, paths, frozen, tmp_path, damage):
    expected = prepare(paths, frozen)[1]
    (rows,) = tmp_path.glob("cache/*/*.bin")
    file = rows if "rows" in damage else rows.with_suffix(".json")
    if "gone" in damage:
        file.unlink()
    elif "cut" in damage:
        file.write_bytes(file.read_bytes()[:-1])
    elif "odd" in damage:
        file.write_text("[[1]]")
    else:  # written, but the process was killed before it could list them
        file.write_bytes(file.read_bytes() + b"some more")
    _, again, n_read = prepare(paths, frozen)
    assert n_read == (0 if damage == "more rows" else 7)
    torch.testing.assert_close(again, expected)


def test_unreadable_pictures_are_left_out_and_reported(prepare, paths, frozen, caplog):
    paths[1].write_text("not a picture")
    paths[4].unlink()
    for n_new in (7, 2):  # the second time only these two are tried again
        caplog.clear()
        kept, found, n_read = prepare(paths, frozen)
        assert n_read == n_new
        assert kept == [paths[i] for i in (0, 2, 3, 5, 6)]
        first, second = (r.message for r in caplog.records if "left out" in r.message)
        assert f"{paths[1]} is not a picture" in first
        assert f"{paths[4]}: no such file" in second
        torch.testing.assert_close(found, features_of(kept, frozen))
    draw(paths[1], 1)
    assert prepare(paths, frozen)[0] == [paths[i] for i in (0, 1, 2, 3, 5, 6)]


def test_no_picture_readable_leaves_no_rows_and_no_litter(prepare, paths, frozen, tmp_path):
    """Every run with one bad picture left two more files without rows in the cache."""
    paths[0].write_text("not a picture")
    for _ in range(3):
        with pytest.raises(UserError, match="none of the 1 pictures can be read"):
            prepare(paths[:1], frozen)
    assert [path for path in tmp_path.glob("cache/**/*") if path.is_file()] == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_keeps_what_was_computed(
    prepare, paths, frozen, encode, monkeypatch, caplog, error
):
    """Files written only at the end lose hours of work."""
    caplog.set_level("INFO")
    n_calls = 0

    def interrupted(plain):
        def encode(pixels):
            nonlocal n_calls
            n_calls += 1
            if n_calls == 3:
                raise error
            return plain(pixels)

        return encode

    encode(frozen, interrupted)
    with pytest.raises(error):
        prepare(paths, frozen)
    assert ("stopped: the pictures done so far" in caplog.text) == (error is KeyboardInterrupt)
    monkeypatch.undo()
    _, found, n_read = prepare(paths, frozen)
    assert n_read == 3  # of seven, two batches of two were kept
    torch.testing.assert_close(found, features_of(paths, frozen))


def test_a_kill_costs_at_most_the_last_seconds(prepare, paths, frozen, encode, monkeypatch):
    """The list is written as rows come, so rows outlive a process that could not say goodbye."""
    monkeypatch.setattr(features, "LIST_EVERY", 0.0)
    found_by_another, n_calls = [], 0

    def with_another(plain):
        def encode(pixels):
            nonlocal n_calls
            n_calls += 1
            if n_calls == 3:
                found_by_another.append(prepare(paths, captioner())[2])
            return plain(pixels)

        return encode

    encode(frozen, with_another)
    _, found, _ = prepare(paths, frozen)
    assert found_by_another == [3]
    torch.testing.assert_close(found, features_of(paths, captioner()))


def test_an_encoder_that_trains_gets_pixels(prepare, paths, monkeypatch):
    model = captioner()
    monkeypatch.setattr(model, "make_encoder", fail)
    _, found, _ = prepare(paths, model, pixels=True)
    assert found.dtype == torch.uint8
    pictures = [transform(read_image(path), SIZE) for path in paths]
    assert torch.equal(found, torch.stack(pictures))
    with torch.no_grad():  # pixels do not depend on the weights
        model.encoder.conv1.weight.zero_()
    assert prepare(paths, model, pixels=True)[2] == 0


def test_a_row_is_a_copy(paths, tmp_path):
    """The cache cannot be spoiled by what is done with a row."""
    examples = [Example(path.name, path, []) for path in paths]
    _, rows = features.load_pixels(examples, image_size=SIZE, cache=tmp_path / "cache")
    before = rows[0].clone()
    rows[0].zero_()
    assert torch.equal(rows[0], before)


def test_pixels_in_memory_are_encoded_as_they_are_from_files(paths, frozen, monkeypatch):
    monkeypatch.setattr(features, "BATCH_SIZE", 3)  # the last batch has a single picture
    pixels = [transform(read_image(path), SIZE) for path in paths]
    torch.testing.assert_close(features.encode_all(pixels, frozen), features_of(paths, frozen))


def test_features_are_those_of_the_encoders_present_weights(paths):
    """Validation while fine-tuning: folded weights that are kept would be those of before."""
    model = captioner()
    pixels = [transform(read_image(path), SIZE) for path in paths]
    features.encode_all(pixels, model)
    model.load_state_dict(captioner(seed=1).state_dict())
    expected = features_of(paths, captioner(seed=1))
    torch.testing.assert_close(features.encode_all(pixels, model), expected)


def test_a_cache_that_is_no_folder_costs_the_cache_only(prepare, paths, frozen, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    _, found, n_read = prepare(paths, frozen)
    assert n_read == 7
    assert "going on without it" in caplog.text
    torch.testing.assert_close(found, features_of(paths, frozen))


@pytest.mark.parametrize("room", [0, 5000])
def test_a_full_disk_costs_the_cache_and_nothing_else(
    prepare, paths, frozen, tmp_path, monkeypatch, caplog, room
):
    """Two of four batches find room; what they took is given back, for checkpoints to be saved."""
    monkeypatch.setattr(features, "LIST_EVERY", 0.0 if room else 10.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))  # as if there were no more
    try:
        _, found, n_read = prepare(paths, frozen)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caplog.text.count("going on without it") == 1
    assert n_read == 7
    torch.testing.assert_close(found, features_of(paths, frozen))
    assert [path for path in tmp_path.glob("cache/**/*") if path.is_file()] == []
    assert prepare(paths, frozen)[2] == 7


KILLED = """
import os, signal, sys
import features
from corpus import Example
from pathlib import Path
import time
features.BATCH_SIZE = 1
features.LIST_EVERY = float(sys.argv[1])
n_rows = 0
append = features._NewShard.append
def counted(self, pictures, rows):
    global n_rows
    append(self, pictures, rows)
    n_rows += 1
    if n_rows == 3:
        self.shards.folder.joinpath(f".{self.index.name}.{os.getpid()}.part").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if n_rows == 2 and features.LIST_EVERY == 0:
        features.LIST_EVERY = 100
features._NewShard.append = counted
examples = [Example(path.name, path, []) for path in sorted(Path(sys.argv[2]).iterdir())]
features.load_pixels(examples, image_size=32, cache=Path(sys.argv[3]))
"""


@pytest.mark.parametrize("is_listed", [False, True])
def test_what_a_killed_run_left_is_cleaned_up(prepare, paths, tmp_path, is_listed):
    """Twenty kills left 313 MB that no index named."""
    for _ in range(2):
        command = [sys.executable, "-c", KILLED, "0" if is_listed else "100"]
        command += [str(paths[0].parent), str(tmp_path / "cache")]
        done = subprocess.run(command, cwd=Path(features.__file__).parent, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    left = sum(path.stat().st_size for path in tmp_path.glob("cache/*/*.bin"))
    _, found, n_read = prepare(paths, captioner(), pixels=True)
    assert n_read == (3 if is_listed else 7)
    assert torch.equal(found, torch.stack([transform(read_image(p), SIZE) for p in paths]))
    kept = [path for path in tmp_path.glob("cache/*/*") if path.suffix == ".bin"]
    assert sum(path.stat().st_size for path in kept) == 7 * 3 * SIZE * SIZE
    assert left > 0
    assert {path.suffix for path in tmp_path.glob("cache/*/*")} == {".bin", ".json"}


def test_a_shard_that_is_being_written_is_left_alone(prepare, paths, monkeypatch):
    """Its rows have no index yet either."""
    monkeypatch.setattr(features, "LIST_EVERY", 100.0)
    append, n_read_by_another = features._NewShard.append, []

    def with_another(shard, pictures, rows):
        append(shard, pictures, rows)
        if not n_read_by_another:
            n_read_by_another.append(0)
            n_read_by_another[0] = prepare(paths[:1], captioner(), pixels=True)[2]
            assert shard.data.exists()

    monkeypatch.setattr(features._NewShard, "append", with_another)
    prepare(paths, captioner(), pixels=True)
    assert n_read_by_another == [1]
    assert prepare(paths, captioner(), pixels=True)[2] == 0
