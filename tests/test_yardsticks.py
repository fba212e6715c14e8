import random

import pytest

import metrics
from corpus import Corpus, Example
from splits import PUBLISHED_SPLIT
from yardsticks import one_sentence, people, published, yardsticks

COLOURS, THINGS = ("red", "blue", "green", "brown"), ("dog", "cat", "car", "ball", "boat", "tree")


def captions(drawn, n=5):
    """Of a scene; now and then one that fits none."""
    thing, colour = drawn.choice(THINGS), drawn.choice(COLOURS)
    texts = [f"a {colour} {thing} is lying in the grass", f"a {thing} that is {colour}"]
    return [drawn.choice(texts) for _ in range(n)]


def images(n, seed=0):
    drawn = random.Random(seed)
    return [captions(drawn) for _ in range(n)]


def test_the_sentence_is_the_training_caption_that_fits_best():
    training = images(200)
    odd = ["zebras dance tango"] * 5
    training[::10] = [odd] * 20
    found = one_sentence(training, images(50, seed=1))
    sentence = found.meaning.split("\u201c")[1].split("\u201d")[0]
    assert sentence in {text for image in training for text in image}  # without a full stop
    assert sentence != odd[0]
    assert found.scores == metrics.score([sentence] * 50, images(50, seed=1))
    of = [[text.split() for text in image] for image in images(40, seed=2)]
    fits = {
        text: sum(metrics.cider_d([text.split()] * 40, of))
        for text in {image[0] for image in training}
    }
    assert sentence in sorted(fits, key=lambda text: -fits[text])[:8]


def test_the_sentence_does_not_depend_on_what_is_scored():
    first, second = (one_sentence(images(100), images(60, seed)).meaning for seed in (1, 2))
    assert first == second


def test_no_training_no_sentence():
    assert one_sentence([], images(5)) is None
    assert one_sentence(images(1), images(5)) is None
    assert one_sentence(images(2), images(5)) is not None


def test_people_are_held_against_the_others_alone():
    """A caption that was left among its own references gave people a CIDEr of hundreds too many."""
    unlike = [[f"word{i}{k} and other{i}{k} things{i}{k}" for k in range(4)] for i in range(30)]
    assert people(unlike).scores["CIDEr"] == pytest.approx(0, abs=1e-9)
    alike = [[f"a thing{i} on a plate{i}"] * 4 for i in range(30)]
    assert people(alike).scores["CIDEr"] == pytest.approx(1000)
    assert people([*alike, ["one", "two"]]) is None, "one has too few captions"


def corpus(names, val=("v.jpg",), n_captions=5):
    found = Corpus(PUBLISHED_SPLIT)
    drawn = random.Random(3)
    for split, of_split in (("test", names), ("val", val)):
        found.splits[split] = [
            Example(name, PUBLISHED_SPLIT / name, captions(drawn, n_captions)) for name in of_split
        ]
    return found


FLICKR30K = (PUBLISHED_SPLIT / "split_test.txt").read_text().split()


def test_published_systems_only_where_the_split_is_really_theirs():
    assert published(corpus(FLICKR30K))[0].scores["CIDEr"] == 36.3
    assert published(corpus([f"flickr30k_images/{name}" for name in FLICKR30K]))
    assert not published(corpus([*FLICKR30K[1:], "other.jpg"]))
    assert not published(corpus(FLICKR30K[:999]))
    assert not published(corpus(FLICKR30K, n_captions=1)), "another captions file"
    assert not published(corpus([f"{i}.jpg" for i in range(1000)]))


def test_published_systems_of_flickr8k(real):
    """Its test photos are told by the validation photos they come with."""
    val = real("flickr8k/Flickr_8k.devImages.txt").read_text().split()
    assert published(corpus([f"{i}.jpg" for i in range(1000)], val))[0].scores["CIDEr"] == 47.9


def test_a_split_that_is_not_whole_has_no_published_systems():
    found = corpus(FLICKR30K)
    names = [y.name for y in yardsticks(found, "test", found.splits["test"])]
    assert names[:2] == ["people", "Show and Tell, VGG-16"], "there is no training split"
    assert [y.name for y in yardsticks(found, "test", found.splits["test"][1:])] == ["people"]
    assert [y.name for y in yardsticks(found, "val", found.splits["val"])] == ["people"]
