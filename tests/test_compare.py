import json
import random

import pytest

import metrics
from cli import UserError
from compare import RESAMPLES, compare, differences, read_report
from report import Evaluation, Row, write

WORDS = ["a", "dog", "cat", "man", "red", "runs", "sits", "on", "the", "grass", "big", "wet"]


def sentence(drawn):
    return " ".join(drawn.choices(WORDS, k=8))


def references(n=60):
    drawn = random.Random(1)
    return [[sentence(drawn) for _ in range(3)] for _ in range(n)]


def captions(n_right, n=60):
    """Word for word one of people's for some images, and at random for the others."""
    of = references(n)
    return [of[i][0] if i < n_right else sentence(random.Random(-i)) for i in range(n)]


def report(path, texts, images=None, of=None, **settings):
    rows = [
        Row(name, text, -1.0, {"CIDEr": 0.0, "ROUGE-L": 0.0}, list(image))
        for name, text, image in zip(
            images or map("{}.jpg".format, range(len(texts))),
            texts,
            of or references(len(texts)),
            strict=True,
        )
    ]
    settings = {"checkpoint": path.stem, "beam_size": 3, **settings}
    write(path, Evaluation(settings, {}, {}, [], rows, []))
    return path


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def two(tmp_path):
    return (
        report(tmp_path / "a.json", captions(5)),
        report(tmp_path / "b.json", captions(40), beam_size=1),
    )


def test_scores_are_those_of_evaluate_and_a_better_model_is_told(two, capsys):
    compare(*two)
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    for key, n_right in (("a", 5), ("b", 40)):
        scores = metrics.score(captions(n_right), references())
        for name in ("CIDEr", "BLEU-4", "BLEU-1", "ROUGE-L"):
            assert found[name][key] == pytest.approx(scores[name])
    for name in ("CIDEr", "BLEU-4", "BLEU-1", "ROUGE-L"):
        assert 0 < found[name]["low"] < found[name]["difference"] < found[name]["high"]
        assert not found[name]["could_be_chance"]
    assert found["images"] == 60
    assert found["resamples"] == RESAMPLES
    assert "could be chance" not in out
    assert "--beam-size 3" in out
    assert "--beam-size 1" in out
    assert "--max-words" not in out, "a setting that is the same"


def test_the_other_way_round_is_the_negative(two, capsys):
    compare(*two)
    found = last_line(capsys)
    compare(*reversed(two))
    other = last_line(capsys)
    for name in ("CIDEr", "BLEU-4"):
        assert other[name]["low"] == pytest.approx(-found[name]["high"])
        assert other[name]["high"] == pytest.approx(-found[name]["low"])


def test_a_difference_of_few_images_could_be_chance(tmp_path, capsys):
    first = report(tmp_path / "a.json", captions(5))
    second = report(tmp_path / "b.json", captions(6))
    compare(first, second)
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["CIDEr"]["could_be_chance"]
    assert "could be chance" in out


def test_an_interval_is_as_wide_as_theory_says():
    """Of a mean: 1.96 standard errors each way."""
    of = references(400)
    first, second = (metrics.measure(captions(n, 400), of) for n in (100, 200))
    found = differences(first, second)["CIDEr"]
    gaps = second.cider - first.cider
    half = 1.96 * gaps.std() / len(gaps) ** 0.5
    assert found.low == pytest.approx(gaps.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(gaps.mean() + half, abs=0.15 * half)


def test_the_pictures_that_changed_most_are_shown_with_both_captions(two, capsys):
    compare(*two)
    out = capsys.readouterr().out
    gained = out.split("where b is better")[1]
    assert "where a is better" not in out, "no picture lost"
    blocks = gained.split("\n\n")[1:6]
    of = references()
    for block in blocks:
        name, a, b = (line.strip() for line in block.splitlines())
        i = int(name.removesuffix(".jpg"))
        assert a.endswith(captions(5)[i])
        assert b.endswith(of[i][0])
    gains = [float(b.splitlines()[2].split()[1]) - float(b.splitlines()[1].split()[1])
             for b in blocks]  # fmt: skip
    assert gains == sorted(gains, reverse=True)


def test_reports_in_another_order_of_images_are_the_same(two, tmp_path, capsys):
    compare(*two)
    found = last_line(capsys)
    n = 60
    reordered = report(
        tmp_path / "c.json",
        captions(40)[::-1],
        [f"{i}.jpg" for i in reversed(range(n))],
        references()[::-1],
    )
    compare(two[0], reordered)
    assert last_line(capsys)["CIDEr"] == found["CIDEr"]


def test_other_images_are_refused(two, tmp_path):
    other = report(tmp_path / "c.json", captions(3)[:59], of=references()[:59])
    with pytest.raises(UserError, match=r"different images: 1 are in one only, as 59\.jpg"):
        compare(two[0], other)


def test_other_references_are_refused(two, tmp_path):
    changed = references()
    changed[7] = ["another caption"]
    other = report(tmp_path / "c.json", captions(3), of=changed)
    with pytest.raises(UserError, match=r"different references for 1 of their images, as 7\.jpg"):
        compare(two[0], other)


def test_the_same_file_is_refused(two, tmp_path):
    (tmp_path / "link.json").symlink_to(two[0])
    with pytest.raises(UserError, match="are the same file"):
        compare(two[0], tmp_path / "link.json")


IMAGE = {"image": "a.jpg", "caption": "a dog", "references": ["a cat"]}


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[1, 2]",
        "{}",
        '{"summary": {}, "images": []}',
        '{"summary": {}, "images": {}}',
        json.dumps({"summary": {}, "images": [IMAGE, IMAGE]}),
        json.dumps({"summary": {}, "images": [{**IMAGE, "references": []}]}),
        json.dumps({"summary": {}, "images": [{**IMAGE, "references": "a cat"}]}),
        json.dumps({"summary": {}, "images": [{**IMAGE, "caption": None}]}),
        json.dumps({"summary": 1, "images": [IMAGE]}),
        "[" * 100_000,
        "\ufeff\ud800".encode("utf-8", "surrogatepass"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"x\.json is no report"):
        read_report(path)


def test_a_report_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="no report"):
        read_report(tmp_path / "nowhere.json")
