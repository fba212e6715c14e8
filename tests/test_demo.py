import json
import random
import re

import numpy as np
import pytest
from PIL import Image

import demo

N_SCENES = 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    demo.draw(folder, n_scenes=N_SCENES, size=32, seed=1)
    return folder


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(folder):
    lines = (folder / "results.csv").read_text(encoding="utf-8").splitlines()
    return [line.split("| ") for line in lines[1:]]


def many_scenes(n=400, seed=3):
    rng = random.Random(seed)
    return [demo.random_scene(rng) for _ in range(n)], rng


def first_of(words, text):
    return next(word for word in text.lower().split() if word in words)


def test_same_seed_same_bytes_other_seed_other_bytes(folder, tmp_path):
    demo.draw(tmp_path / "same", n_scenes=N_SCENES, size=32, seed=1)
    demo.draw(tmp_path / "other", n_scenes=N_SCENES, size=32, seed=2)
    assert files(tmp_path / "same") == files(folder)
    assert all(files(tmp_path / "other")[path] != data for path, data in files(folder).items())


def test_drawing_again_in_the_same_folder_replaces_everything(folder, tmp_path):
    demo.draw(tmp_path, n_scenes=N_SCENES, size=32, seed=2)
    demo.draw(tmp_path, n_scenes=N_SCENES, size=32, seed=1)
    assert files(tmp_path) == files(folder)


def test_layout_is_kaggles(folder):
    names = [f"scene_{i:05d}.png" for i in range(N_SCENES)]
    assert sorted(p.name for p in folder.iterdir()) == [
        "flickr30k_images",
        "results.csv",
        "scenes.jsonl",
        "split_test.txt",
        "split_val.txt",
    ]
    assert sorted(p.name for p in (folder / "flickr30k_images").iterdir()) == names
    data = (folder / "results.csv").read_bytes()
    assert data.startswith(b"image_name| comment_number| comment\n")
    assert b"\r" not in data
    assert [row[:2] for row in rows(folder)] == [[name, str(j)] for name in names for j in range(5)]
    for _, _, text in rows(folder):
        assert re.fullmatch(r"[A-Z][a-z]*( [a-z]+| ,)+ \.", text), text


def test_pictures_are_rgb_of_the_size_asked_for(folder):
    for path in (folder / "flickr30k_images").iterdir():
        with Image.open(path) as image:
            assert (image.mode, image.size, image.format) == ("RGB", (32, 32), "PNG")


def test_no_two_pictures_are_alike(folder):
    pictures = [p.read_bytes() for p in (folder / "flickr30k_images").iterdir()]
    assert len(set(pictures)) == N_SCENES


@pytest.mark.parametrize(("n_scenes", "held_out"), [(3, 1), (24, 1), (36, 2)])
def test_splits_are_disjoint_and_name_real_images(tmp_path, n_scenes, held_out):
    demo.draw(tmp_path, n_scenes=n_scenes, size=16)
    names = {p.name for p in (tmp_path / "flickr30k_images").iterdir()}
    val = (tmp_path / "split_val.txt").read_text(encoding="utf-8").splitlines()
    test = (tmp_path / "split_test.txt").read_text(encoding="utf-8").splitlines()
    assert len(val) == len(test) == held_out
    assert len({*val, *test}) == 2 * held_out
    assert {*val, *test} < names


def test_facts_agree_with_the_captions(folder):
    facts = [json.loads(s) for s in (folder / "scenes.jsonl").read_text("utf-8").splitlines()]
    assert [fact["image"] for fact in facts] == [f"scene_{i:05d}.png" for i in range(N_SCENES)]
    of = {fact["image"]: fact for fact in facts}
    for name, _, text in rows(folder):
        fact = of[name]
        assert first_of(demo.COLOURS, text) == fact["colour"]
        assert first_of(demo.SHAPES, text) == fact["shape"]
        assert fact["ground"] in demo.GROUNDS
        assert (fact["second"] is None) == (fact["relation"] is None)


def test_every_caption_names_the_main_thing_first_and_then_at_most_the_second():
    scenes, rng = many_scenes()
    for scene in scenes:
        texts = demo.captions(scene, rng)
        assert len(set(texts)) == len(texts) == 5
        things = [(t.colour, t.shape) for t in (scene.main, scene.second) if t]
        named = 0
        for text in texts:
            pairs = re.findall(rf"({'|'.join(demo.COLOURS)}) ({'|'.join(demo.SHAPES)})", text)
            words = [w for w in text.split() if w in demo.COLOURS or w in demo.SHAPES]
            assert words == [word for pair in pairs for word in pair]
            assert pairs == things[: len(pairs)]
            assert 5 <= len(re.findall(r"\w+", text)) <= 14
            assert not re.search(r"\ban (?![aeiou])|\ba (?=[aeiou])", text.lower())
            named += len(pairs) == 2
        assert named >= 3 or scene.second is None


def test_no_word_is_rare_and_no_colour_is():
    scenes, rng = many_scenes()
    words = [w for s in scenes for text in demo.captions(s, rng) for w in text.lower().split()]
    assert min(words.count(word) for word in set(words)) >= 10
    assert {*demo.COLOURS, *demo.SHAPES} < set(words)


def test_relations_are_what_one_sees():
    scenes, _ = many_scenes()
    assert {s.relation for s in scenes} == {*demo.RELATIONS, None}
    for scene in scenes:
        main, second = scene.main, scene.second
        assert main.radius <= main.x <= 1 - main.radius
        assert 0 <= main.y - main.radius < main.y + main.radius <= main.floor + 1e-9 < 1
        if second is None:
            continue
        assert second.radius < 0.6 * main.radius
        assert second.colour != main.colour
        assert second.shape != main.shape
        assert {
            "left": second.x - main.x > main.radius + second.radius,
            "right": main.x - second.x > main.radius + second.radius,
            "above": second.y - main.y > main.radius + second.radius,
            "below": main.y - second.y > main.radius + second.radius,
            "front": main.floor > second.floor + 0.2,
            "behind": second.floor > main.floor + 0.1,
        }[scene.relation]


@pytest.mark.parametrize("ground", demo.GROUNDS)
@pytest.mark.parametrize("shape", demo.SHAPES)
def test_the_main_thing_shows_its_colour_on_every_ground(shape, ground):
    palette = np.array([demo._rgb(c) for c in demo.COLOURS.values()]) * 255
    for i, colour in enumerate(demo.COLOURS):
        thing = demo.Thing(colour, shape, 0.5, 0.6, 0.22, 0.1, 0.82)
        pixels = np.asarray(demo.paint(demo.Scene(thing, None, None, ground, 7), 64), float)
        window = pixels[24:53, 18:46].reshape(-1, 3)
        distance = np.linalg.norm(window[:, None] - palette, axis=2)
        near = distance.argmin(axis=1)[distance.min(axis=1) < 45]
        counts = np.bincount(near, minlength=len(palette))
        assert counts.argmax() == i, (colour, counts)
        assert counts[i] > 0.1 * len(window), (colour, counts)


def test_a_scene_looks_the_same_at_any_size():
    for scene in many_scenes(12)[0]:
        small = np.asarray(demo.paint(scene, 64), float)
        large = np.asarray(demo.paint(scene, 256).resize((64, 64), Image.Resampling.BOX), float)
        assert np.abs(small - large).mean() < 8


def test_scenes_appear_last_and_never_beside_half_a_folder(tmp_path, monkeypatch):
    def interrupted(numbers, **_):
        yield from list(numbers)[:2]
        raise KeyboardInterrupt

    demo.draw(tmp_path, n_scenes=3, size=16)
    assert (tmp_path / "scenes.jsonl").exists()
    monkeypatch.setattr(demo, "progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.draw(tmp_path, n_scenes=3, size=16)
    assert not (tmp_path / "scenes.jsonl").exists()


def test_progress_counts_every_scene(tmp_path, monkeypatch):
    drawn = []

    def counted(numbers, **_):
        for number in numbers:
            drawn.append(number)
            yield number

    monkeypatch.setattr(demo, "progress", counted)
    demo.draw(tmp_path, n_scenes=4, size=16)
    assert drawn == [0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [{"n_scenes": 2}, {"size": 8}])
def test_too_little_is_an_error_that_says_so(tmp_path, wrong):
    with pytest.raises(ValueError, match="expected at least 3 scenes of at least 16 pixels, got"):
        demo.draw(tmp_path, **wrong)
