import os
import resource

import pytest
import torch
from PIL import Image

import features
from loader import read_image, transform
from model import ImageCaptioningModel

SIZE = 32
CPU = torch.device("cpu")


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
def prepare(tmp_path):
    """`features.prepare` with a cache of this test's; also tells how many pictures were read."""

    def prepare(paths, model, *, image_size=SIZE, pixels=False):
        n_read = 0

        def progress(pictures, *, total):
            nonlocal n_read
            n_read = total
            return pictures

        prepared = features.prepare(
            paths,
            model,
            image_size=image_size,
            cache=tmp_path / "cache",
            device=CPU,
            pixels=pixels,
            batch_size=2,
            progress=progress,
        )
        return prepared, n_read

    return prepare


def vectors(paths, model):
    """What the cache should hold, computed without it."""
    pictures = torch.stack([transform(read_image(path), SIZE) for path in paths])
    with torch.inference_mode():
        return model.eval().encode(pictures)


def stacked(prepared):
    return torch.stack(list(prepared.rows))


def fail(*_, **__):
    raise AssertionError("nothing should be computed")


def test_rows_are_the_encoders_and_the_encoder_stays_as_it_is(prepare, paths, frozen):
    """BatchNorm's statistics drifted in encoders that were called frozen."""
    before = {name: value.clone() for name, value in frozen.encoder.state_dict().items()}
    frozen.train()
    prepared, n_read = prepare(paths, frozen)
    assert n_read == 7
    assert (prepared.kept, prepared.unreadable) == (list(range(7)), {})
    assert len(prepared.rows) == 7
    assert (prepared.rows[0].dtype, prepared.rows[0].shape) == (torch.float32, (512,))
    torch.testing.assert_close(stacked(prepared), vectors(paths, frozen))
    after = frozen.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_second_call_computes_nothing(prepare, paths, frozen, monkeypatch):
    first, _ = prepare(paths, frozen)
    monkeypatch.setattr(frozen, "encode", fail)
    monkeypatch.setattr(features, "read_pictures", fail)
    again, n_read = prepare(paths[::-1] + paths[:1], frozen)
    assert n_read == 0
    assert torch.equal(stacked(again), stacked(first)[[6, 5, 4, 3, 2, 1, 0, 0]])
    again.rows[0].zero_()  # a copy: the cache cannot be spoiled
    assert again.rows[0].any()


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_changed_picture_is_read_again(prepare, paths, frozen, change):
    first, _ = prepare(paths, frozen)
    if change == "content":
        before = paths[2].stat()
        Image.new("RGB", (500, 300), "red").save(paths[2])
        os.utime(paths[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(paths[2], ns=(0, 0))
    again, n_read = prepare(paths, frozen)
    assert n_read == 1
    assert torch.allclose(again.rows[2], first.rows[2], atol=1e-4) == (change == "time")
    torch.testing.assert_close(stacked(again), vectors(paths, frozen))


def test_other_weights_and_sizes_have_rows_of_their_own(prepare, paths, frozen):
    first, _ = prepare(paths, frozen)
    other, n_read = prepare(paths, captioner(seed=1))
    assert n_read == 7
    assert not torch.equal(other.rows[0], first.rows[0])
    same, n_read = prepare(paths, captioner(seed=0))  # the same weights in another model
    assert n_read == 0
    assert torch.equal(same.rows[0], first.rows[0])
    _, n_read = prepare(paths, frozen, image_size=48)
    assert n_read == 7


@pytest.mark.parametrize(
    "damage", ["rows cut", "rows gone", "list cut", "list gone", "list odd", "more rows"]
)
def test_damaged_shards_are_as_if_not_there(prepare, paths, frozen, tmp_path, damage):
    expected = stacked(prepare(paths, frozen)[0])
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
    again, n_read = prepare(paths, frozen)
    assert n_read == (0 if damage == "more rows" else 7)
    torch.testing.assert_close(stacked(again), expected)


def test_unreadable_pictures_are_left_out_and_reported(prepare, paths, frozen):
    paths[1].write_text("not a picture")
    paths[4].unlink()
    for n_new in (7, 2):  # the second time only these two are tried again
        prepared, n_read = prepare(paths, frozen)
        assert n_read == n_new
        assert prepared.kept == [0, 2, 3, 5, 6]
        assert list(prepared.unreadable) == [paths[1], paths[4]]
        assert "not a picture" in prepared.unreadable[paths[1]]
        assert "no such file" in prepared.unreadable[paths[4]]
        readable = [paths[i] for i in prepared.kept]
        torch.testing.assert_close(stacked(prepared), vectors(readable, frozen))
    draw(paths[1], 1)
    prepared, _ = prepare(paths, frozen)
    assert prepared.kept == [0, 1, 2, 3, 5, 6]


def test_no_picture_readable_leaves_no_rows_and_no_litter(prepare, paths, frozen, tmp_path):
    """Every run with one bad picture left two more files without rows in the cache."""
    paths[0].write_text("not a picture")
    for _ in range(3):
        prepared, _ = prepare(paths[:1], frozen)
        assert (len(prepared.rows), prepared.kept) == (0, [])
    assert [path for path in tmp_path.glob("cache/**/*") if path.is_file()] == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_keeps_what_was_computed(
    prepare, paths, frozen, monkeypatch, caplog, error
):
    """Files written only at the end lose hours of work."""
    caplog.set_level("INFO")
    encode, n_calls = frozen.encode, 0

    def interrupted(images):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            raise error
        return encode(images)

    monkeypatch.setattr(frozen, "encode", interrupted)
    with pytest.raises(error):
        prepare(paths, frozen)
    assert ("stopped: the pictures looked at" in caplog.text) == (error is KeyboardInterrupt)
    monkeypatch.undo()
    prepared, n_read = prepare(paths, frozen)
    assert n_read == 3  # of seven, two batches of two were kept
    torch.testing.assert_close(stacked(prepared), vectors(paths, frozen))


def test_a_kill_costs_at_most_the_last_seconds(prepare, paths, frozen, monkeypatch):
    """The list is written as rows come, so rows outlive a process that could not say goodbye."""
    monkeypatch.setattr(features, "LIST_EVERY", 0.0)
    seen_by_another = []
    encode, n_calls = frozen.encode, 0

    def encode_and_look(images):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            monkeypatch.setattr(frozen, "encode", encode)
            seen_by_another.append(prepare(paths, frozen)[1])  # what a second run finds
            monkeypatch.setattr(frozen, "encode", encode_and_look)
        return encode(images)

    monkeypatch.setattr(frozen, "encode", encode_and_look)
    prepared, _ = prepare(paths, frozen)
    assert seen_by_another == [3]
    torch.testing.assert_close(stacked(prepared), vectors(paths, frozen))


def test_an_encoder_that_trains_gets_pixels(prepare, paths, monkeypatch):
    model = captioner()
    monkeypatch.setattr(model, "encode", fail)
    prepared, _ = prepare(paths, model, pixels=True)
    assert prepared.rows[0].dtype == torch.uint8
    pictures = [transform(read_image(path), SIZE) for path in paths]
    assert torch.equal(stacked(prepared), torch.stack(pictures))
    with torch.no_grad():  # pixels do not depend on the weights
        model.encoder.conv1.weight.zero_()
    _, n_read = prepare(paths, model, pixels=True)
    assert n_read == 0


def test_a_cache_that_is_no_folder_costs_the_cache_only(prepare, paths, frozen, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    prepared, n_read = prepare(paths, frozen)
    assert n_read == 7
    assert "going on without it" in caplog.text
    torch.testing.assert_close(stacked(prepared), vectors(paths, frozen))


@pytest.mark.parametrize("room", [0, 5000])
def test_a_full_disk_costs_the_cache_and_nothing_else(
    prepare, paths, frozen, tmp_path, monkeypatch, caplog, room
):
    """Two of four batches find room; what they took is given back, for checkpoints to be saved."""
    monkeypatch.setattr(features, "LIST_EVERY", 0.0 if room else 10.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))  # as if there were no more
    try:
        prepared, n_read = prepare(paths, frozen)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caplog.text.count("going on without it") == 1
    assert n_read == 7
    torch.testing.assert_close(stacked(prepared), vectors(paths, frozen))
    assert [path for path in tmp_path.glob("cache/**/*") if path.is_file()] == []
    assert prepare(paths, frozen)[1] == 7
