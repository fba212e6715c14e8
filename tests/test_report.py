import csv
import json
import re

import browser
import pytest
from PIL import Image

import report
from pictures import Source
from report import Evaluation, Row, write
from yardsticks import Yardstick


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (640, 20), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def row(name="a.png", caption="a dog", cider=50.0, references=("a dog", "a <b>")):
    return Row(name, caption, -7.5, {"CIDEr": cider, "ROUGE-L": 40.0}, list(references))


def evaluation(rows, pictures, **changed):
    scores = {"CIDEr": 49.8123, "BLEU-1": 61.25, "ROUGE-L": 40.0}
    parts = {"settings": {}, "scores": scores, "statistics": {}, "yardsticks": [], **changed}
    return Evaluation(rows=rows, pictures=pictures, **parts)


def page(tmp_path, rows, pictures, **changed):
    write(tmp_path / "page.html", evaluation(rows, pictures, **changed))
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_text_cannot_become_markup(tmp_path, picture):
    rows = [row("<i>.png", 'a "dog" & <script>')]
    yardstick = Yardstick("<s>", "<u>", {}, 'https://x/"<a>')
    text = page(tmp_path, rows, [picture], settings={"<hr>": "<em>"}, yardsticks=[yardstick])
    for markup in ("<i>.png", "<b>", "<u>", "<s>", "<hr>", "<em>", "<a>", "& <script>"):
        assert markup not in text
    assert "a &quot;dog&quot; &amp; &lt;script&gt;" in text


def test_a_picture_that_has_gone_leaves_its_card(tmp_path, picture):
    text = page(tmp_path, [row(), row()], [picture, tmp_path / "gone.png"])
    assert text.count("<article") == 2


def test_the_bars_count_every_image_once(tmp_path, picture):
    scores = [0.0, 9.99, 10.0, 123.4, 517.0]
    text = page(tmp_path, [row(cider=s) for s in scores], [picture] * 5)
    counts = re.findall(r'title="CIDEr \d+ to \d+: (\d+) image', text)
    assert len(counts) == report.N_BARS
    assert sum(map(int, counts)) == 5


@pytest.mark.parametrize(("n", "expected"), [(1, "0 1"), (7, "0 2 4 6 8"), (90, "0 50 100")])
def test_the_axis_of_the_histogram_has_round_numbers(tmp_path, picture, n, expected):
    text = page(tmp_path, [row()] * n, [picture] * n)
    axis = text.split("<div class=y>")[1].split("</div>")[0]
    assert re.findall(r">(\d+)<", axis) == expected.split()


def test_json(tmp_path, picture):
    yardstick = Yardstick("people", "a sentence", {"CIDEr": 70.0})
    found = evaluation([row()], [picture], statistics={"words": 9.0}, yardsticks=[yardstick])
    write(tmp_path / "r.json", found)
    content = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert content["summary"] == {**found.scores, "CIDEr (people)": 70.0, "words": 9.0}
    assert content["images"][0]["caption"] == "a dog"
    assert content["yardsticks"][0]["scores"] == {"CIDEr": 70.0}


def test_csv_has_a_line_for_each_image(tmp_path, picture):
    rows = [row(caption='a "dog", wet', references=["one", "two"]), row(references=["three"])]
    write(tmp_path / "r.csv", evaluation(rows, [picture] * 2))
    with (tmp_path / "r.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert first["caption"] == 'a "dog", wet'
    assert (first["CIDEr"], first["log_prob"]) == ("50.0", "-7.5")
    assert [second["reference_1"], second["reference_2"]] == ["three", ""]


@pytest.mark.parametrize("suffix", [".html", ".json", ".csv"])
def test_a_name_that_is_no_utf8_is_escaped(tmp_path, picture, suffix):
    write(tmp_path / f"r{suffix}", evaluation([row("\udcff.png")], [picture]))
    assert "\\udcff.png" in (tmp_path / f"r{suffix}").read_text(encoding="utf-8")


def test_csv_for_spreadsheets_with_decimal_commas(tmp_path, picture):
    write(tmp_path / "r.csv", evaluation([row()], [picture]), separator="semicolon")
    text = (tmp_path / "r.csv").read_text(encoding="utf-8")
    assert text.startswith("\ufeffimage;caption")
    assert "a.png;a dog;-7,5;50,0;40,0;a dog" in text


def test_settings_are_shown_as_they_are_and_figures_with_one_decimal(tmp_path, picture):
    changed = {"settings": {"top_p": 0.97}, "statistics": {"mean length": 9.8765}}
    text = page(tmp_path, [row()], [picture], **changed)
    assert "<dd>0.97</dd>" in text
    assert "<dd>9.9</dd>" in text


def test_yardsticks_stand_beside_the_scores_in_words(tmp_path, picture):
    yardsticks = [
        Yardstick("people", "What a person wrote.", {"CIDEr": 70.0, "BLEU-1": 60.0}),
        Yardstick("attention", "Another model.", {"CIDEr": 48.8}, "https://example.com/a?b&c"),
    ]
    text = page(tmp_path, [row()], [picture], yardsticks=yardsticks)
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    cells = [re.sub("<[^>]+>", "|", line).strip("|").split("||") for line in rows]
    assert cells[0] == ["this model", "people", "attention"]
    assert cells[1] == ["CIDEr", "49.8", "70.0", "48.8"]
    assert "<th scope=row>ROUGE-L</th><td>40.0</td><td></td><td></td>" in text
    assert "What a person wrote.</dd>" in text
    assert 'Another model. <a href="https://example.com/a?b&amp;c">' in text


# --------------------------------------------------------------------------- in a browser


@pytest.fixture
def report_page(tmp_path, picture):
    """Thirty images: a dog each but for a cat, with CIDEr 0 to 290."""
    rows = [
        row(f"{i}.png", "a wet cat" if i == 7 else f"a dog {i}", 10.0 * i, ["a thing"])
        for i in range(30)
    ]
    beside = [
        Yardstick("people", "What a person wrote.", {"CIDEr": 70.0}),
        *(Yardstick(f"system {n}", "Another model.", {"CIDEr": 48.8}, "https://example.com")
          for n in range(4)),
    ]  # fmt: skip
    settings = {"checkpoint": "a_name_that_is_as_long_as_those_of_many_folders_are/best.pt"}
    page(tmp_path, rows, [picture] * 30, yardsticks=beside, settings=settings)
    return (tmp_path / "page.html").as_uri()


def shown(tab):
    """The captions of the cards on the page, in their order."""
    return tab.page.locator("article:visible h2").all_text_contents()


def test_the_search_bar_stays_above_the_cards(report_page, open_tab):
    """Cards off the screen are painted late (content-visibility), and covered it when scrolled."""
    for viewport in (browser.DESKTOP, browser.PHONE):
        tab = open_tab(report_page, viewport=viewport)
        tab.page.mouse.wheel(0, 3000)
        tab.page.wait_for_function("scrollY > 1000")
        on_top = tab.page.evaluate(
            """() => {
              const box = document.querySelector('form').getBoundingClientRect();
              const at = (x, y) => document.elementFromPoint(x, y).closest('form');
              return box.top == 0 && [5, box.height - 5].every(y =>
                [box.left + 5, box.left + box.width / 2, box.right - 5].every(x => at(x, y)));
            }"""
        )
        assert on_top


def test_words_are_searched_and_an_empty_search_says_so(report_page, open_tab):
    tab = open_tab(report_page)
    none = tab.page.get_by_text("No image fits this search.")
    assert len(shown(tab)) == 30
    assert none.is_hidden()
    tab.page.get_by_label("Search").fill("CAT wet")
    assert shown(tab) == ["a wet cat"]
    assert tab.page.locator("output").inner_text() == "1 of 30 images"
    tab.page.get_by_label("Search").fill("zebra")
    assert shown(tab) == []
    assert none.is_visible()
    tab.page.get_by_role("button", name="Show all").click()
    tab.page.wait_for_function("document.querySelector('output').value == '30 of 30 images'")
    assert none.is_hidden()


def test_cards_are_sorted(report_page, open_tab):
    tab = open_tab(report_page)
    assert shown(tab)[0] == "a dog 29"
    tab.page.get_by_label("Sort").select_option("worst CIDEr first")
    assert shown(tab)[0] == "a dog 0"


def test_bars_work_by_keyboard(report_page, open_tab):
    tab = open_tab(report_page)
    bars = tab.page.get_by_role("group", name="Images by CIDEr").get_by_role("button")
    bars.nth(0).focus()
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    assert bars.nth(1).get_attribute("aria-pressed") == "true"
    assert shown(tab) == ["a dog 3", "a dog 2"], "CIDEr 20 to 40"
    tab.page.keyboard.press("Space")
    assert len(shown(tab)) == 30


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("viewport", [browser.DESKTOP, browser.PHONE])
def test_the_report_suits_everyone_and_asks_nobody(report_page, open_tab, dark, viewport):
    tab = open_tab(report_page, dark=dark, viewport=viewport)
    tab.page.locator("summary").first.click()
    tab.page.locator("summary").last.click()
    assert tab.audit() == []
    assert not tab.is_wider_than_its_window()
    tab.page.get_by_label("Search").fill("zebra")
    assert tab.audit() == []
    assert tab.hosts == set()


@pytest.fixture
def captions_page(tmp_path, picture):
    def card(familiarity):
        best = {"image": "a.png", "caption": f"a dog {familiarity}", "familiarity": familiarity}
        other = {"image": "a.png", "caption": "a cat"}
        captions = [{**best, "log_prob_per_word": -1.0}, other]
        return report.captions_card(Source(picture), captions, tmp_path)

    def make(familiarities):
        cards = "".join(map(card, familiarities))
        page = tmp_path / "captions.html"
        page.write_text(report.captions_head() + cards + report.foot(), encoding="utf-8")
        return page.as_uri()

    return make


def test_a_page_of_captions_suits_everyone(captions_page, open_tab):
    for dark in (False, True):
        tab = open_tab(captions_page([0.5, 0.01]), dark=dark, viewport=browser.PHONE)
        assert tab.audit() == []
        assert not tab.is_wider_than_its_window()
        assert tab.hosts == set()
        tab.page.get_by_label("Sort").select_option("least familiar first")
        assert shown(tab) == ["a dog 0.01", "a dog 0.5"]
        tab.page.get_by_label("Search").fill("zebra")
        assert tab.page.get_by_text("No image fits this search.").is_visible()


def test_a_model_that_knows_no_familiarity_offers_no_order_by_it(captions_page, open_tab):
    tab = open_tab(captions_page([None, None]))
    orders = tab.page.get_by_label("Sort").locator("option").all_inner_texts()
    assert orders == ["as found", "surest first", "least sure first"]


def test_what_each_word_saw_stands_in_the_card_of_its_image(tmp_path, picture):
    strips = {"b.png": Image.new("RGB", (1000, 300))}
    text = page(tmp_path, [row("a.png"), row("b.png")], [picture] * 2, strips=strips)
    first, second = text.split("<article")[1:]
    assert "<details" not in first
    assert 'alt="a map for each word" src="data:image/jpeg;base64,' in second
