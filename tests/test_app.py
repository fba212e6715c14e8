"""The page as a person meets it, in a real browser, and its server as programs do."""

import csv
import http.client
import io
import json
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import webbrowser
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import browser
import pytest
import torch

import app
import checkpoint
import demo
import familiarity
from captioner import Captioner
from pictures import transform

ROOT = Path(app.__file__).parent


def scene(number=0, size=96):
    return demo.paint(demo.random_scene(random.Random(number)), size)


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    """The small model, which knows what drawn scenes are like."""
    loaded = checkpoint.load(trained.checkpoints / "best.pt")
    size = loaded.image_size
    pixels = torch.stack([transform(scene(n, size), size) for n in range(120)])
    with torch.inference_mode():
        features = loaded.model.make_encoder()(pixels)
    loaded.familiarity = familiarity.fit(features[:60], features[60:])
    path = tmp_path_factory.mktemp("model") / "best.pt"
    checkpoint.save(path, loaded)
    return path


def start(*flags):
    """A process of app.py and the address that it prints."""
    command = [sys.executable, ROOT / "app.py", "--no-browser", "--device", "cpu", *flags]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def ended(process):
    """What a process wrote to stderr until it was stopped."""
    process.terminate()
    return process.communicate(timeout=30)[1]


@pytest.fixture(scope="module")
def address(model):
    process, address = start("--checkpoint", model, "--port", "0")
    assert address, process.communicate()
    yield address
    assert "Traceback" not in ended(process)


def request(address, path, body=None, *, method="POST", **headers):
    """The status and the content of an answer."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, headers)
    with connection.getresponse() as response:
        content = response.read()
        connection.close()
        if response.headers["Content-Type"] == "application/json":
            content = json.loads(content)
        return response.status, content


# ------------------------------------------------------------------------------ for programs


def test_a_picture_gets_the_captions_that_python_gets(address, model):
    status, found = request(address, "/caption?beam_size=4&n_best=2", encoded(scene(1)))
    assert status == 200
    captioner = Captioner.load(model, beam_size=4).with_search({"beam_size": 4}, n_best=2)
    pixels = transform(scene(1), captioner.image_size).unsqueeze(0)
    (captions,) = captioner.describe(pixels)
    assert [caption["text"] for caption in found["captions"]] == [c.text for c in captions]
    assert found["captions"][1]["log_prob"] == pytest.approx(captions[1].log_prob, abs=1e-4)
    assert found["familiarity"] == pytest.approx(captions[0].familiarity, abs=0.02)


def test_without_settings_it_searches_as_in_training(address, model):
    _, found = request(address, "/caption", encoded(scene(2)))
    assert found["captions"][0]["text"] == Captioner.load(model).caption(
        io.BytesIO(encoded(scene(2)))
    )
    assert len(found["captions"]) == 3


def test_sampled_captions_differ_from_one_answer_to_the_next(address):
    texts = {
        request(address, "/caption?temperature=2&n_best=1", encoded(scene()))[1]["captions"][0][
            "text"
        ]
        for _ in range(8)
    }
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("beam_size=abc", "beam_size must be a whole number from 1 to 100, got 'abc'."),
        ("beam_size=1000000000", "from 1 to 100, got '1000000000'."),
        ("beam_size=0", "from 1 to 100, got '0'."),
        ("beam_size=2.5", "a whole number from 1 to 100, got '2.5'."),
        ("temperature=nan", "temperature must be a number from 0 to 10, got 'nan'."),
        ("temperature=inf", "temperature must be a number from 0 to 10, got 'inf'."),
        ("temperature=-1", "got '-1'."),
        ("temperature=1e-45", "temperature must be 0 or at least 0.001, got 1e-45."),
        ("n_best=", "n_best must be a whole number from 1 to 20, got ''."),
        ("n_best=1&n_best=2", "got '1 and 2'."),
        ("beams=3", "no parameter 'beams': there are beam_size, temperature, n_best."),
        (f"n_best={'9' * 5000}", "from 1 to 20, got '9999"),
    ],
)
def test_parameters_out_of_range_are_refused(address, query, message):
    status, found = request(address, f"/caption?{query}", encoded(scene()))
    assert status == 400
    assert message in found["error"]


def bomb():
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (chunk, data, b"IEND")
    )


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 415, "an empty file"),
        (b"just words", 415, "is not a picture"),
        (b"<html>", 415, "a web page"),
        (encoded(scene())[:200], 415, "the file cannot be read"),
        (bomb(), 415, "too large"),
    ],
)
def test_what_is_no_picture_is_refused(address, body, status, message):
    for path in ("/caption", "/maps?tokens=5", "/preview"):
        found_status, found = request(address, path, body)
        assert found_status == status
        assert message in found["error"]


def test_an_upload_that_is_too_large_is_refused_before_it_is_read(address):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /caption HTTP/1.1\r\nHost: {host}\r\nContent-Length: {200 * 2**20}\r\n\r\n"
        connection.sendall(head.encode() + bytes(1000))  # and no more of the 200 MB
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_an_upload_of_unknown_length_is_cut_off(address):
    body = (bytes(2**20) for _ in range(65))  # http.client sends it in chunks
    status, found = request(address, "/caption", body)
    assert (status, found["error"]) == (413, "the picture is larger than 64 MB: make it smaller.")


def test_a_form_is_answered_by_what_to_send_instead(address):
    content = b"--x\r\nContent-Disposition: form-data; name=f; filename=a.png\r\n\r\n" + encoded(
        scene()
    )
    status, found = request(
        address, "/caption", content, Content_Type="multipart/form-data; boundary=x"
    )
    assert status == 415
    assert f"curl --data-binary @photo.jpg {address}/caption" in found["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/caption", 405),
        ("PUT", "/", 405),
        ("DELETE", "/samples/0.png", 405),
        ("GET", "/nothing", 404),
        ("GET", "/page/../app.py", 404),
        ("GET", "/page/%2e%2e/app.py", 404),
        ("GET", "/page/..%2fapp.py", 404),
        ("GET", "/samples/9999.png", 404),
        ("GET", "/samples/-1.png", 404),
    ],
)
def test_other_methods_and_addresses_are_refused(address, method, path, status):
    found_status, found = request(address, path, method=method)
    assert found_status == status
    assert "docs/app.md" in found["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),  # DNS rebinding
        ({"Host": "evil.example:8000"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_other_sites_get_nothing(address, headers, status):
    for path in ("/caption", "/maps?tokens=5"):
        found_status, found = request(address, path, encoded(scene()), **headers)
        assert found_status == status
        assert set(found) == {"error"}


@pytest.mark.parametrize("tokens", ["", "abc", "1,2", "-5", "10000", "5,", ",".join(["5"] * 101)])
def test_a_map_is_made_of_a_captions_words_only(address, tokens):
    status, found = request(address, f"/maps?tokens={tokens}", encoded(scene()))
    assert (status, found["error"][:6]) == (400, "tokens")


def test_maps_have_a_number_for_each_part_and_word(address):
    caption = request(address, "/caption", encoded(scene()))[1]["captions"][0]
    tokens = ",".join(map(str, caption["tokens"]))
    status, found = request(address, f"/maps?tokens={tokens}", encoded(scene()))
    assert status == 200
    assert len(found["maps"]) == len(found["dependence"]) == len(caption["words"])
    assert len(found["maps"][0]) == len(found["maps"][0][0]) > 1


def test_fifty_pictures_at_once_get_their_own_answers(address):
    pictures = [encoded(scene(n)) for n in range(50)]
    one_by_one = [request(address, "/caption", picture) for picture in pictures[:5]]
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda picture: request(address, "/caption", picture), pictures))
    assert {status for status, _ in found} == {200}
    assert found[:5] == one_by_one


def test_who_goes_away_in_the_middle_leaves_no_trace(address):
    """Of a stopped upload too; the fixture looks for a traceback at the end."""
    host, port = address.removeprefix("http://").split(":")
    picture = encoded(scene())
    head = f"POST /caption HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(picture)}\r\n\r\n"
    for sent in (picture[:50], picture):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + sent)
    assert request(address, "/caption", picture)[0] == 200


def test_a_mistake_of_ours_is_said_to_be_one(model, monkeypatch, caplog):
    worker = app.Worker([checkpoint.load(model)], {"n_best": 1})
    monkeypatch.setattr(worker, "caption", lambda *_: 1 / 0)
    turns = app.Turns()
    threading.Thread(target=turns.work, daemon=True).start()
    answer = app.make_app(worker, turns).test_client().post("/caption", data=encoded(scene()))
    assert answer.status_code == 500
    assert "not of yours: its terminal shows what happened" in answer.json["error"]
    assert "ZeroDivisionError" in caplog.text


# ------------------------------------------------------------------------------- the command


def test_without_a_checkpoint_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert app.main(["--no-browser"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no checkpoint checkpoints/best.pt" in error
    assert "train one by `python train.py` (--demo needs no data), or name another." in error
    other = Path("checkpoints/demo/best.pt")
    other.parent.mkdir(parents=True)
    other.touch()
    assert app.main(["--no-browser"]) == 2
    assert f"data), or give --checkpoint {other}." in capsys.readouterr().err


def test_without_flask_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda _: None)
    assert app.main([]) == 2
    assert "pip install -r requirements-app.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--beam-size", "1000"], "--beam-size must be at most 100 for a page, got 1000"),
        (["--n-best", "21"], "--n-best must be at most 20 for a page, got 21"),
        (["--temperature", "nan"], "--temperature must be a number, got nan"),
        (["--port", "65536"], "--port must be below 65536, got 65536"),
    ],
)
def test_flags_out_of_range_are_named(flags, message, capsys):
    with pytest.raises(SystemExit):
        app.main(flags)
    assert message in capsys.readouterr().err


def test_a_port_in_use_gives_the_next_and_says_so(model):
    with app.listen(0) as taken:
        port = taken.getsockname()[1]
        process, address = start("--checkpoint", model, model, "--port", port, "--n-best", "1")
        assert port < int(address.rpartition(":")[2]) <= port + app.PORTS_TRIED
        assert len(request(address, "/caption", encoded(scene()))[1]["captions"]) == 1
        assert len(request(address, "/model", method="GET")[1]["cards"]) == 2  # an ensemble
        assert f"port {port} is taken, so the page is on" in ended(process)
    assert process.returncode == 143


def test_ctrl_c_ends_it_in_silence(model):
    process, _ = start("--checkpoint", model, "--port", "0", "--quiet")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 130


def test_no_free_port_is_an_error(monkeypatch):
    monkeypatch.setattr(app, "PORTS_TRIED", 1)
    with app.listen(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(app.UserError, match=f"no port from {port} to {port} can be used"):
            app.listen(port)


def test_the_page_opens_in_a_browser_but_not_in_the_terminal(monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser.GenericBrowser, "open", lambda _, url: opened.append(url))
    for kind in (webbrowser.BackgroundBrowser, webbrowser.GenericBrowser):
        monkeypatch.setattr(webbrowser, "get", lambda kind=kind: kind("some browser"))
        monkeypatch.setattr(webbrowser.BackgroundBrowser, "open", webbrowser.GenericBrowser.open)
        app.show("http://127.0.0.1:8000")
    assert opened == ["http://127.0.0.1:8000"]


# -------------------------------------------------------------------------------- for people


def payload(name, content):
    return {"name": name, "mimeType": "image/png", "buffer": content}


def give(tab, *pictures):
    """Choose pictures, given as (name, content), and wait for their captions."""
    n_cards = tab.page.locator(".card").count() + len(pictures)
    tab.page.set_input_files("#files", [payload(*picture) for picture in pictures])
    described(tab, n_cards)


def described(tab, n_cards):
    """Wait until there are so many pictures, all described."""
    from playwright.sync_api import expect

    expect(tab.page.locator(".card")).to_have_count(n_cards)
    expect(tab.page.locator("[aria-busy=true]")).to_have_count(0, timeout=30_000)


@pytest.fixture
def tab(open_tab, address):
    tab = open_tab(address, permissions=["clipboard-read", "clipboard-write", "camera"])
    tab.page.locator("#samples img").last.wait_for()
    yield tab
    assert tab.hosts == {address.removeprefix("http://")}


def test_a_chosen_picture_gets_its_captions(tab, address):
    give(tab, ("ball.png", encoded(scene(3))))
    text = request(address, "/caption", encoded(scene(3)))[1]["captions"][0]["text"]
    card = tab.page.locator(".card")
    assert card.locator("h3").inner_text() == "ball.png"
    assert card.locator(".caption").inner_text() == f"{text} end"
    assert card.locator("img").get_attribute("alt") == text
    assert tab.page.locator("#status").inner_text() == f"ball.png: {text}"
    assert card.locator("tbody tr").count() == 3
    assert "More familiar than" in card.locator(".note").inner_text()


def test_pictures_are_pasted_dropped_photographed_and_drawn(tab):
    page = tab.page
    page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(40, 30);
            canvas.getContext('2d').fillRect(0, 0, 20, 30);
            const blob = await canvas.convertToBlob();
            await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
        }"""
    )
    page.keyboard.press("Control+V")
    described(tab, 1)
    page.evaluate(
        """async () => {
            const blob = await (await fetch('samples/1.png')).blob(), data = new DataTransfer();
            data.items.add(new File([blob], 'dropped.png'));
            document.dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true}));
        }"""
    )
    described(tab, 2)
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Take it").click()
    described(tab, 3)
    assert not page.evaluate("document.getElementById('video').srcObject.active")
    page.locator("#samples button").first.click()
    described(tab, 4)
    names = page.locator("h3").all_inner_texts()
    assert names == ["drawn scene 1", "camera 1", "dropped.png", "pasted picture 1"]
    assert page.locator(".caption:visible").count() == 4


def test_words_show_what_else_they_could_have_been(tab, address):
    give(tab, ("a.png", encoded(scene(4))))
    words = request(address, "/caption", encoded(scene(4)))[1]["captions"][0]["words"]
    rivals = tab.page.locator(".rivals")
    assert "arrow keys" in rivals.inner_text()
    tab.page.locator(".word").nth(1).hover()
    assert rivals.inner_text().startswith(f"“{words[1]['text']}”")
    for rival, _ in words[1]["rivals"]:
        assert rival in rivals.inner_text()
    tab.page.locator(".word").nth(1).focus()
    tab.page.keyboard.press("ArrowRight")
    assert rivals.inner_text().startswith(f"“{words[2]['text']}”")
    tab.page.keyboard.press("End")
    assert rivals.inner_text().startswith("end")
    assert tab.page.evaluate("document.activeElement.textContent") == "end"


def test_another_caption_can_be_chosen_and_copied(tab):
    give(tab, ("a.png", encoded(scene(5))))
    second = tab.page.locator("tbody button").nth(1)
    second.click()
    assert second.get_attribute("aria-pressed") == "true"
    assert tab.page.locator(".caption").inner_text() == f"{second.inner_text()} end"
    tab.page.get_by_role("button", name="Copy").click()
    tab.page.get_by_text("Copied:").wait_for()
    assert tab.page.evaluate("navigator.clipboard.readText()") == second.inner_text()


def test_the_map_is_of_the_chosen_word_and_goes_with_its_caption(tab):
    """It was of the word that falls most, though another had been chosen."""
    give(tab, ("a.png", encoded(scene(6))))
    words, button = tab.page.locator(".word"), tab.page.locator(".explain")
    for chosen in (0, 1):
        words.nth(chosen).click()
        words.nth(2).hover()  # on the way to the button
        assert words.nth(2).get_attribute("aria-pressed") == "true"
        button.click()
        tab.page.locator("canvas:visible").wait_for()
        assert words.nth(chosen).get_attribute("aria-pressed") == "true"
        assert f"“{words.nth(chosen).inner_text()}” is" in tab.page.locator(".about").inner_text()
        tab.page.locator("tbody button").nth(chosen).click()
        assert not tab.page.locator("canvas").is_visible()
        assert tab.page.locator("#status").inner_text() == "The map is off the picture."
    scale = tab.page.locator(".legend p").last
    assert scale.text_content().startswith("+")  # as in the strip of explain.py


def test_a_map_of_a_caption_that_is_gone_is_not_shown(tab):
    give(tab, ("a.png", encoded(scene(6))))
    tab.page.evaluate(
        """() => {
            document.querySelector('.explain').click();
            document.querySelectorAll('tbody button')[1].click();
        }"""
    )
    tab.page.get_by_text("Another caption was chosen meanwhile").wait_for()
    assert not tab.page.locator("canvas").is_visible()


def test_a_map_shows_what_a_word_saw_in_nats(tab, address):
    give(tab, ("a.png", encoded(scene(6))))
    tab.page.get_by_role("button", name="What each word saw").click()
    canvas = tab.page.locator("canvas")
    canvas.wait_for()
    picture = tab.page.locator(".card img").bounding_box()
    assert canvas.bounding_box() == picture
    assert picture["width"] == picture["height"] == 300  # of 96
    caption = request(address, "/caption", encoded(scene(6)))[1]["captions"][0]
    tokens = ",".join(map(str, caption["tokens"]))
    found = request(address, f"/maps?tokens={tokens}", encoded(scene(6)))[1]
    tab.page.locator(".word").nth(2).click()
    legend = tab.page.locator(".legend")
    most = max(map(max, found["maps"][2]))
    assert f"“{caption['words'][2]['text']}”" in legend.inner_text()
    assert f"{most:.2f} nats less likely with the part it needs most hidden" in legend.inner_text()
    assert "likely with the whole picture hidden" in legend.inner_text()
    assert f"{abs(found['dependence'][2]):.2f} nats" in legend.inner_text()
    canvas.hover(position={"x": 2, "y": picture["height"] - 2})
    assert f"{abs(found['maps'][2][-1][0]):.2f} nats " in legend.inner_text()
    assert "with this part hidden" in legend.inner_text()
    tab.page.get_by_role("button", name="What each word saw").click()
    assert not canvas.is_visible()


def test_a_picture_unlike_the_training_is_said_to_be_so(tab):
    """Which pictures are depends on the small model's few steps: the answer is changed to it."""

    def answer_unlike(route):
        response = route.fetch()
        unlike = {**response.json(), "familiarity": 0.01, "is_unfamiliar": True}
        route.fulfill(response=response, json=unlike)

    tab.page.route("**/caption*", answer_unlike)
    give(tab, ("odd.png", encoded(scene())))
    assert "Unlike the pictures the model was trained on" in tab.page.locator(".note").inner_text()


def test_a_wrong_file_is_named_and_the_others_are_described(tab):
    give(tab, ("words.jpg", b"just words"), ("a.png", encoded(scene())))
    notes = tab.page.locator(".note").all_inner_texts()
    assert "is not a picture" in notes[0]
    assert tab.page.locator(".caption:visible").count() == 1
    assert tab.page.locator("#status").inner_text() == "1 described, 1 not"
    assert tab.audit() == []
    assert "415" in tab.errors.pop()  # the console tells of every such answer


def test_a_format_that_the_browser_does_not_know_is_shown_all_the_same(tab):
    give(tab, ("scan.tiff", encoded(scene(size=1500), "TIFF")))
    image = tab.page.locator(".card img:visible")
    image.wait_for()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 640


def test_a_huge_file_is_refused_without_sending_it(tab, tmp_path):
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(200 * 2**20)
    tab.page.set_input_files("#files", tmp_path / "huge.jpg")
    described(tab, 1)
    assert "larger than 64 MB" in tab.page.locator(".note").inner_text()


def test_names_are_text(tab):
    names = ["<script>alert(1)</script>.png", "../../etc/passwd.png", '"a", b\n.png', "=1+1.png"]
    tab.page.evaluate(
        """async names => {
            const blob = await (await fetch('samples/1.png')).blob(), data = new DataTransfer();
            for (const name of names) data.items.add(new File([blob], name));
            document.dispatchEvent(new DragEvent('drop', {dataTransfer: data}));
        }""",
        names,
    )
    described(tab, len(names))
    assert tab.page.locator("h3").all_text_contents() == names
    assert tab.page.locator("li script").count() == 0


def saved(tab):
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Save as CSV").click()
    return Path(download.value.path()).read_text("utf-8")


def test_csv_has_the_columns_of_predict_and_all_captions(tab, address):
    give(tab, ('a, "b".png', encoded(scene(1))))
    give(tab, ("second.png", encoded(scene(2))), ("third.png", encoded(scene(3))))
    rows = list(csv.DictReader(io.StringIO(saved(tab))))
    assert [row["image"] for row in rows] == [
        name for name in ('a, "b".png', "second.png", "third.png") for _ in range(3)
    ]
    assert [row["rank"] for row in rows[:3]] == ["1", "2", "3"]
    found = request(address, "/caption", encoded(scene(1)))[1]
    best = found["captions"][0]
    numbers = {name: best[name] for name in ("log_prob", "log_prob_per_word")}
    numbers["familiarity"] = found["familiarity"]
    assert list(rows[0]) == ["image", "rank", "caption", *numbers]
    assert rows[0]["caption"] == best["text"]
    for name, value in numbers.items():
        assert float(rows[0][name]) == pytest.approx(value, abs=1e-4), name


def test_fifty_pictures_keep_their_order(tab):
    pictures = [(f"{n}.png", encoded(scene(n, 32))) for n in range(50)]
    give(tab, *pictures)
    assert tab.page.locator("h3").all_inner_texts() == [name for name, _ in pictures]
    assert tab.page.locator("#status").inner_text() == "50 described"
    alts = [image.get_attribute("alt") for image in tab.page.locator(".card img").all()]
    assert all(alts)
    rows = list(csv.DictReader(io.StringIO(saved(tab))))
    assert [row["caption"] for row in rows if row["rank"] == "1"] == alts


def test_five_hundred_pictures_can_be_stopped(tab):
    picture = encoded(scene(0, 32))
    tab.page.set_input_files("#files", [payload(f"{n}.png", picture) for n in range(500)])
    tab.page.get_by_text("of 500 described").wait_for()
    tab.page.locator(".word").first.wait_for()
    tab.page.get_by_role("button", name="Stop").click()
    described(tab, 500)
    assert tab.page.locator(".card").count() == 500
    n_stopped = tab.page.locator(".note", has_text="stopped").count()
    assert 400 < n_stopped < 500
    status = tab.page.locator("#status")
    assert status.inner_text() == f"{500 - n_stopped} described, {n_stopped} stopped"
    last = tab.page.locator(".card").last
    assert last.bounding_box()["height"] < 150
    last.get_by_role("button", name="Describe again").click()
    last.locator(".word").first.wait_for()
    assert status.inner_text().startswith("499.png: ")
    go_on = tab.page.get_by_role("button", name="Go on")
    go_on.click()
    tab.page.locator("#status", has_text=f"of {n_stopped - 1} described").wait_for()
    tab.page.get_by_role("button", name="Stop").click()
    go_on.wait_for()
    tab.page.get_by_role("button", name="Clear").click()
    assert tab.page.locator(".card").count() == 0
    give(tab, ("a.png", picture))
    assert tab.page.locator("#status").inner_text().startswith("a.png: ")


def test_settings_hold_for_the_next_picture_and_are_checked(tab):
    page = tab.page
    page.locator("#n-best").fill("5")
    page.get_by_label("Beam size").fill("1000")
    page.locator("#samples button").first.click()
    wrong = "Beam size must be from 1 to 100, in steps of 1."
    page.locator("#status", has_text=wrong).wait_for()
    assert page.locator(".note").inner_text() == f"Waiting: {wrong}"
    assert page.evaluate("document.activeElement.name") == "beam_size"
    page.get_by_role("button", name="Stop").click()
    assert page.locator("#status").inner_text() == "drawn scene 1: stopped"
    page.get_by_role("button", name="Go on").click()
    page.locator("#status", has_text=wrong).wait_for()
    page.get_by_label("Temperature").fill("1.52")  # the beam has no say any more
    assert page.get_by_label("Beam size").is_disabled()
    page.keyboard.press("Enter")
    described(tab, 1)
    assert page.locator(".said tbody tr").count() == 5
    first = page.locator(".said tbody").inner_text()
    page.get_by_role("button", name="Describe again").click()
    described(tab, 1)
    assert page.locator(".said tbody").inner_text() != first


def test_a_server_that_is_gone_is_said_to_be(tab):
    tab.page.wait_for_load_state("networkidle")  # the drawn scenes are there
    tab.page.context.set_offline(True)
    tab.page.set_input_files("#files", [payload("a.png", encoded(scene()))])
    described(tab, 1)
    assert tab.page.locator(".note").inner_text() == "no answer: is app.py still running?"
    assert "ERR_INTERNET_DISCONNECTED" in tab.errors.pop()


def test_a_page_that_is_closed_while_it_waits_is_forgotten(open_tab, address):
    tab = open_tab(address)
    tab.page.set_input_files("#files", [payload("a.png", encoded(scene()))] * 5)
    tab.page.close()
    assert request(address, "/caption", encoded(scene()))[0] == 200


def test_all_is_done_by_keyboard(tab):
    """From the first Tab on: choose, describe, words, captions, map, copy, save."""
    keyboard, focused = tab.page.keyboard, "document.activeElement"

    def tab_to(name):
        for _ in range(60):
            keyboard.press("Tab")
            found = tab.page.evaluate(
                f"({focused}.labels?.[0] ?? {focused}).textContent.trim() || "
                f"{focused}.querySelector('img')?.alt || ''"
            )
            outline = tab.page.evaluate(
                f"[{focused}, {focused}.parentElement].map(e => getComputedStyle(e).outlineStyle)"
            )
            assert "solid" in outline, f"no one sees that {found} is focused"
            if found.startswith(name):
                return
        raise AssertionError(f"{name} cannot be reached")

    picture = payload("a.png", encoded(scene()))
    tab.page.on("filechooser", lambda chooser: chooser.set_files([picture]))
    tab_to("Choose pictures")
    keyboard.press("Enter")
    described(tab, 1)
    tab.page.locator("h1").click()  # begin at the top again
    tab_to("Temperature")
    tab_to(tab.page.locator("#samples img").first.get_attribute("alt"))
    keyboard.press("Enter")
    described(tab, 2)
    assert tab.page.locator("h3").all_inner_texts() == ["drawn scene 1", "a.png"]
    tab_to("Save as CSV")
    tab_to(tab.page.locator(".word").first.inner_text())
    keyboard.press("ArrowRight")
    assert tab.page.locator(".word").nth(1).get_attribute("aria-pressed") == "true"
    tab_to(tab.page.locator("tbody button").nth(1).inner_text())
    keyboard.press("Enter")
    tab_to("Copy")
    keyboard.press("Space")
    tab.page.get_by_text("Copied:").wait_for()
    assert tab.page.evaluate(f"{focused}.className") == "copy"
    tab_to("Describe again")
    keyboard.press("Enter")
    tab.page.locator("#status", has_text="drawn scene 1: ").wait_for()
    assert tab.page.evaluate(f"{focused}.className") == "again"
    tab_to("What each word saw")
    keyboard.press("Enter")
    tab.page.locator("canvas:visible").wait_for()
    assert tab.page.evaluate(f"{focused}.className") == "explain"  # BODY, once


@pytest.mark.parametrize("viewport", [browser.DESKTOP, browser.PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(open_tab, address, viewport, dark):
    tab = open_tab(address, dark=dark, viewport=viewport, permissions=["camera"])
    tab.page.locator("#samples img").last.wait_for()
    assert tab.audit() == []
    give(tab, ("a.png", encoded(scene())), ("b.png", encoded(scene(1))))
    tab.page.locator(".word").nth(1).focus()
    tab.page.get_by_text("About the model").click()
    tab.page.get_by_role("button", name="What each word saw").first.click()
    tab.page.locator("canvas:visible").wait_for()
    assert tab.audit() == []
    assert not tab.is_wider_than_its_window()
    tab.page.get_by_role("button", name="Use the camera").click()
    tab.page.locator("dialog:visible").wait_for()
    assert tab.audit() == []


def test_the_card_of_the_model_is_shown(tab, model):
    tab.page.get_by_text("About the model").click()
    about = tab.page.locator("#model-cards").inner_text()
    card = (model.parent / checkpoint.CARD).read_text("utf-8")
    for paragraph in card.replace("**", "").split("\n\n")[1:-1]:
        assert " ".join(paragraph.split()) in about
    assert "BLEU-4\t" in about
