import json
import re

import pytest
from PIL import Image

import report


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (640, 20), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def row(name="a.png", caption="a dog", cider=50.0):
    return report.Row(name, caption, -7.5, {"CIDEr": cider, "ROUGE-L": 40.0}, ["a dog", "a <b>"])


def test_text_cannot_become_markup(tmp_path, picture):
    page = tmp_path / "page.html"
    rows = [row("<i>.png", 'a "dog" & <script>')]
    report.write(page, rows, summary={}, settings={"checkpoint": "<u>"}, pictures=[picture])
    text = page.read_text(encoding="utf-8")
    for markup in ("<i>", "<b>", "<u>", "& <script>"):
        assert markup not in text
    assert "a &quot;dog&quot; &amp; &lt;script&gt;" in text


def test_a_picture_that_has_gone_leaves_its_card(tmp_path, picture):
    page = tmp_path / "page.html"
    pictures = [picture, tmp_path / "gone.png"]
    report.write(page, [row(), row()], summary={}, settings={}, pictures=pictures)
    assert page.read_text(encoding="utf-8").count("<article") == 2


def test_the_bars_count_every_image_once(tmp_path, picture):
    scores = [0.0, 9.99, 10.0, 123.4, 517.0]
    page = tmp_path / "page.html"
    report.write(
        page, [row(cider=s) for s in scores], summary={}, settings={}, pictures=[picture] * 5
    )
    bars = [
        line
        for line in page.read_text(encoding="utf-8").split("<title>")
        if line.startswith("CIDEr")
    ]
    assert sum(int(bar.split(": ")[1].split()[0]) for bar in bars) == 5


def test_json(tmp_path, picture):
    report.write(
        tmp_path / "r.json", [row()], summary={"CIDEr": 50.0}, settings={}, pictures=[picture]
    )
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert found["summary"] == {"CIDEr": 50.0}
    assert found["images"][0]["caption"] == "a dog"


def test_settings_are_shown_as_they_are_and_scores_with_one_decimal(tmp_path, picture):
    page = tmp_path / "page.html"
    summary, settings = {"CIDEr": 49.8123}, {"top_p": 0.97}
    report.write(page, [row()], summary=summary, settings=settings, pictures=[picture])
    text = page.read_text(encoding="utf-8")
    assert "<dd>0.97</dd>" in text
    assert "<dd>49.8</dd>" in text


def test_the_search_bar_stays_above_the_cards(tmp_path, picture):
    """Cards off the screen are painted late (content-visibility), and covered it when scrolled."""
    page = tmp_path / "page.html"
    report.write(page, [row()], summary={}, settings={}, pictures=[picture])
    rules = re.findall(r"^(\w+) \{([^}]*)\}", page.read_text(encoding="utf-8"), flags=re.M)
    form = dict(rules)["form"]
    assert "position: sticky" in form
    assert int(re.search(r"z-index: (\d+)", form)[1]) > 0
