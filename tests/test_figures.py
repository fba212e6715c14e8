import html
import re
import sys

import pytest
from PIL import Image

import cli
import figures
from report import Evaluation, Row
from yardsticks import Yardstick

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(figures, "DPI", 50)


def evaluation(tmp_path, n=15, caption="a dog that costs $5 or $6", references=("a <b> dog",)):
    Image.new("RGB", (64, 40), "red").save(tmp_path / "a.png")
    rows = [
        Row(f"{i}.png", caption, -7.5, {"CIDEr": 10.0 * i, "ROUGE-L": 2.0 * i}, list(references))
        for i in range(n)
    ]
    scores = {"CIDEr": 70.0, "ROUGE-L": 14.0}
    yardsticks = [
        Yardstick("people", "", {"CIDEr": 90.0, "ROUGE-L": 20.0}),
        Yardstick("published", "", {"CIDEr": 1.0}, "https://example.com"),
    ]
    return Evaluation({}, scores, {}, yardsticks, rows, [tmp_path / "a.png"] * n)


def texts(svg):
    """What matplotlib writes beside the outlines of letters."""
    return re.findall(r"<!-- (.*?) -->", html.unescape(svg.read_text(encoding="utf-8")))


def test_all_figures_are_whole_and_light(trained, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MPLBACKEND", "tkagg")  # would need a display
    folder = tmp_path / "new" / "figures"
    figures.draw(folder, evaluation(tmp_path), [trained.runs / trained.run_name])
    assert sorted(folder.iterdir()) == sorted(figures.files(folder))
    assert "matplotlib.pyplot" not in sys.modules
    for path in figures.files(folder):
        if path.suffix == ".png":
            image = Image.open(path)
            assert image.width == 350
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        else:
            assert path.read_text(encoding="utf-8").rstrip().endswith("</svg>")
    assert "CIDEr, validation" in texts(folder / "curves.svg")


def test_the_curves_are_those_that_training_logged(trained):
    found = figures.read_curves(trained.runs / trained.run_name)
    for tag in ("score/CIDEr", "loss/train", "loss/val", "learning_rate"):
        logged = trained.scalars(tag)
        assert found[tag] == ([e.step for e in logged], [e.value for e in logged])


def test_no_curves_without_a_run_and_several_in_one_figure(trained, tmp_path):
    figures.draw(tmp_path / "none", evaluation(tmp_path), [])
    assert not list((tmp_path / "none").glob("curves*"))
    run = trained.runs / trained.run_name
    (tmp_path / "second").symlink_to(run)
    figures.draw(tmp_path / "two", evaluation(tmp_path), [run, tmp_path / "second"])
    found = texts(tmp_path / "two" / "curves.svg")
    assert found.count("second") == found.count("a_run") == 4, "once in each panel"


def test_pictures_from_the_best_to_the_worst_and_means_beside_scores(tmp_path):
    """Two dollar signs made a formula of what is between them."""
    figures.draw(tmp_path, evaluation(tmp_path), [])
    found = texts(tmp_path / "pictures.svg")
    shown = [int(text.split()[1]) for text in found if re.fullmatch(r"CIDEr \d+", text)]
    assert shown == sorted(shown, reverse=True)
    assert [shown[0], shown[-1], len(shown)] == [140, 0, 12]
    assert found.count("a dog that costs $5 or $6") == 12
    assert found.count("human: a <b> dog") == 12
    found = texts(tmp_path / "scores.svg")
    assert "this model: mean 70.0" in found
    assert "people: mean 90.0" in found
    assert not any("published" in text for text in found)


def test_fewer_pictures_than_places_one_gone_and_a_script_without_font(tmp_path, caplog):
    few = evaluation(tmp_path, n=2, caption="un chien d'été " * 20, references=["\ue123"])
    few.pictures[0] = tmp_path / "gone.png"
    figures.draw(tmp_path, few, [])
    found = texts(tmp_path / "pictures.svg")
    assert len([text for text in found if text.startswith("CIDEr")]) == 2
    assert "no font here has them" in caplog.text


def test_the_same_evaluation_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        figures.draw(tmp_path / name, evaluation(tmp_path), [])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_matplotlib_missing_is_said(monkeypatch):
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(cli.UserError, match="pip install matplotlib"):
        figures.require()
