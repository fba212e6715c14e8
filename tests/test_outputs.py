import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import outputs
import predict

ROOT = Path(predict.__file__).parent
N_PICTURES = 7
SUFFIXES = [".csv", ".jsonl", ".html"]


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    """Some pictures, the fourth of which cannot be read, two with odd names; the current folder."""
    monkeypatch.chdir(tmp_path)
    sources = sorted((trained.data / "flickr30k_images").glob("*.png"))
    names = [f"photos/{n}.png" for n in range(N_PICTURES)]
    names[1], names[5] = 'photos/1 "quoted", <b>.png', "photos/5 two\nlines.png"
    Path("photos").mkdir()
    for name, source in zip(names, sources, strict=False):
        Path(name).write_bytes(source.read_bytes())
    Path(names[3]).write_bytes(b"no picture")
    return Path("photos")


def run(trained, *flags):
    flags = ["--checkpoint", trained.checkpoints / "best.pt", "--batch-size", "2", *flags]
    try:
        return predict.main([str(flag) for flag in flags])
    except SystemExit as error:  # argparse's way
        return error.code


def unbroken(trained, folder, suffix, *flags):
    """The bytes of a run without a stop."""
    path = Path(f"whole{suffix}")
    assert run(trained, folder, "--output", path, *flags) == 1  # one picture cannot be read
    return path.read_bytes()


def begin(trained, folder, suffix, *flags):
    """A run that has ended, put back to before it was whole: its part and its record."""
    content = unbroken(trained, folder, suffix, *flags)
    path = Path(f"captions{suffix}")
    Path(f"captions{suffix}.part").write_bytes(content)
    Path(f".whole{suffix}.run.json").rename(f".captions{suffix}.part.run.json")
    return path, content


@pytest.mark.parametrize(
    ("suffix", "flags"),
    [
        (".csv", ()),
        (".csv", ("--n-best", 3)),
        (".jsonl", ("--temperature", 1.5, "--n-best", 2)),
        (".html", ("--n-best", 2)),
    ],
)
def test_cut_off_anywhere_and_resumed_it_is_as_if_never_stopped(trained, folder, suffix, flags):
    """A stopped run lost all captions; SIGKILL may come in the middle of a line."""
    path, content = begin(trained, folder, suffix, *flags)
    part, record = Path(f"{path}.part"), Path(f".{path}.part.run.json")
    kept = record.read_bytes()
    for cut in range(0, len(content), max(1, len(content) // 7)):
        part.write_bytes(content[:cut])
        record.write_bytes(kept)
        assert run(trained, folder, "--output", path, "--resume", *flags) == 1
        assert path.read_bytes() == content, cut
        assert not part.exists()
        assert not record.exists()
        path.unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_killed_process_leaves_what_it_did(trained, folder):
    content = unbroken(trained, folder, ".csv")
    path, part = Path("captions.csv"), Path("captions.csv.part")
    command = [sys.executable, ROOT / "predict.py", "--checkpoint", trained.checkpoints / "best.pt"]
    command += ["-0", "--image", "-", "--batch-size", "2", "--output", path]
    names = [os.fsencode(name) + b"\0" for name in sorted(folder.iterdir())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b"".join(names[:-1]))
        process.stdin.flush()  # it describes the first, and waits for the last
        while not part.exists() or part.read_bytes().count(b"\n") < 3:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert run(trained, folder, "--output", path) == 2
    assert run(trained, folder, "--output", path, "--resume") == 1
    assert path.read_bytes() == content


def test_ctrl_c_says_how_many_are_done_and_how_to_go_on(trained, folder, capsys, stop_after):
    with stop_after(2):
        assert run(trained, folder, "--output", "c.csv") == 130
    said = "stopped: 2 pictures are in c.csv.part. Go on with the same command and --resume."
    assert said in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no full disk to try")
def test_a_full_disk_keeps_what_was_written(trained, folder, capsys, monkeypatch):
    write = outputs.CaptionsFile._write

    def write_until_full(self, text):
        if self.n_pictures == 2:
            with Path("/dev/full").open("wb", buffering=0) as disk:
                disk.write(b"x")
        write(self, text)

    monkeypatch.setattr(outputs.CaptionsFile, "_write", write_until_full)
    assert run(trained, folder, "--output", "c.csv") == 2
    err = capsys.readouterr().err
    assert "the disk is full" in err
    assert "2 pictures are in c.csv.part" in err


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_whole_grows_by_new_pictures(trained, folder, capsys, suffix):
    path = Path(f"captions{suffix}")
    assert run(trained, folder, "--output", path) == 1
    before = path.read_bytes()
    assert run(trained, folder, "--output", path, "--resume") == 1
    assert path.read_bytes() == before
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes())
    assert run(trained, folder, "--output", path, "--resume") == 1
    assert "7 pictures, 1 of them new\n" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8").count("9.png") == before.decode().count("0.png")


def test_a_name_given_twice_is_described_twice(trained, folder):
    first = folder / "0.png"
    flags = (first, first, folder / "2.png", first, "--output", "c.csv")
    assert run(trained, *flags) == 0
    content = Path("c.csv").read_bytes()
    assert content.count(b"0.png") == 3
    for n_lines in range(1, 5):
        lines = content.splitlines(keepends=True)
        Path("c.csv.part").write_bytes(b"".join(lines[:n_lines]))
        Path(".c.csv.part.run.json").write_bytes(Path(".c.csv.run.json").read_bytes())
        Path("c.csv").unlink()
        assert run(trained, *flags, "--resume") == 0
        assert Path("c.csv").read_bytes() == content


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--beam-size", 2), "--beam-size 10, not 2"),
        (("--sentence",), "written without --sentence"),
        (("--temperature", 0.5), "--temperature 0.0, not 0.5"),
        (("--n-best", 2), "--n-best 1, not 2"),
        (("--csv-separator", "tab"), "--csv-separator comma, not tab"),
    ],
)
def test_a_file_made_in_another_way_is_not_resumed(trained, folder, capsys, flags, reason):
    path, content = begin(trained, folder, ".csv")
    capsys.readouterr()
    assert run(trained, folder, "--output", path, "--resume", *flags) == 2
    assert reason in capsys.readouterr().err
    assert Path("captions.csv.part").read_bytes() == content


@pytest.mark.parametrize("output", ["c.csv", "out"])
@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ((), ("--sidecar", "txt"), "without --sidecar:"),
        (("--sidecar", "txt"), ("--sidecar", "xmp"), "with --sidecar txt, not xmp:"),
        (("--sidecar", "txt"), ("--sidecar", "txt", "--prefix", "a"), "without --prefix:"),
        (("--sidecar", "txt"), ("--sidecar", "txt", "--sidecar-folder", "s"), "without --sidecar-"),
    ],
)
def test_sidecars_that_what_is_resumed_has_not_are_refused(
    trained, folder, capsys, output, before, after, reason
):
    """None was written for the pictures that were in the file already, with exit status 0."""
    resume = () if output == "out" else ("--resume",)
    assert run(trained, folder / "0.png", "--output", output, *before) == 0
    assert run(trained, folder / "0.png", "--output", output, *after, *resume) == 2
    assert f"was written {reason}" in capsys.readouterr().err


def test_a_picture_whose_sidecar_failed_is_not_done(trained, folder, capsys):
    """Its caption was in the table, so --resume never wrote the sidecar, mended or not."""
    broken = folder / "2.png.xmp"
    broken.write_text("<broken")
    for output, resume in (("c.csv", ("--resume",)), ("out", ())):
        flags = (folder / "0.png", folder / "2.png", "--output", output, "--sidecar", "xmp")
        assert run(trained, *flags) == 1
        assert "2.png.xmp is not XML" in capsys.readouterr().err
        broken.unlink()
        assert run(trained, *flags, *resume) == 0
        assert "dc:description" in broken.read_text("utf-8")
        written = Path(output if resume else "out/part-00000.jsonl").read_text("utf-8")
        assert written.count("2.png") == 1
        broken.write_text("<broken")


def test_a_stop_leaves_no_row_without_its_sidecar(trained, folder, stop_after):
    flags = (folder / "0.png", folder / "2.png", folder / "4.png", "--output", "c.csv")
    with stop_after(1):
        assert run(trained, *flags, "--sidecar", "txt") == 130
    (folder / "2.txt").unlink()  # written, and its row not
    assert run(trained, *flags, "--sidecar", "txt", "--resume") == 0
    assert {path.name for path in folder.glob("*.txt")} == {"0.txt", "2.txt", "4.txt"}


def test_samples_in_other_batches_are_not_gone_on_with(trained, folder, capsys):
    """They were two runs in one file, which no unbroken one writes; beams do not depend on it."""
    for flags, status in (((), 1), (("--temperature", 1.0), 2)):
        path, _ = begin(trained, folder, ".csv", *flags)
        capsys.readouterr()
        again = ("--output", path, "--resume", *flags, "--batch-size", 3)
        assert run(trained, folder, *again) == status
        if flags:
            assert "was written with --batch-size 2, not 3" in capsys.readouterr().err
        for file in Path().glob("*.csv*"):
            file.unlink()


def test_a_file_of_another_version_is_told_so(trained, folder, capsys):
    """What that version did not know of is missing from its record, which is not damaged."""
    path, _ = begin(trained, folder, ".csv")
    record = Path(".captions.csv.part.run.json")
    facts = {**json.loads(record.read_text()), "version": "0.5.0"}
    del facts["image_weight"]
    record.write_text(json.dumps(facts))
    capsys.readouterr()
    assert run(trained, folder, "--output", path, "--resume") == 2
    assert "captions.csv.part was written with" in (err := capsys.readouterr().err)
    assert "version" in err


def test_a_file_of_another_model_is_not_resumed(trained, folder, capsys):
    path, _ = begin(trained, folder, ".csv")
    last = trained.checkpoints / "last.pt"
    assert run(trained, folder, "--output", path, "--resume", "--checkpoint", last) == 2
    assert "another model" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".parquet"])
def test_a_file_that_is_not_ours_is_not_resumed(trained, folder, capsys, suffix):
    path = Path(f"mine{suffix}")
    path.write_text("mine")
    assert run(trained, folder, "--output", path, "--resume") == 2
    assert "cannot be resumed" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert run(trained, folder, "--output", path) == 2
    assert "exists: give --overwrite" in capsys.readouterr().err


def test_a_file_that_was_changed_is_not_resumed(trained, folder, capsys):
    """As by a spreadsheet that wrote it with semicolons."""
    assert run(trained, folder, "--output", "c.csv") == 1
    changed = Path("c.csv").read_bytes().replace(b",", b";")
    Path("c.csv").write_bytes(changed)
    assert run(trained, folder, "--output", "c.csv", "--resume") == 2
    assert "c.csv was changed since it was written" in capsys.readouterr().err
    assert Path("c.csv").read_bytes() == changed


@pytest.mark.parametrize(
    ("suffix", "old", "new"),
    [
        (".jsonl", "\n", "\n\n"),
        (".jsonl", "{", "["),
        (".csv", "\r\n", ",my note\r\n"),
        (".csv", "photos/2.png", '"photos/2.png'),
        (".html", "<article", "<ARTICLE"),
    ],
)
def test_what_was_put_in_by_hand_is_not_cut_off(trained, folder, capsys, suffix, old, new):
    """All after the first odd row was written anew: the captions that a person had corrected."""
    path = Path(f"c{suffix}")
    assert run(trained, folder, "--output", path) == 1
    content = path.read_bytes()
    begin, first, rest = content.partition(b"photos/0.png")
    changed = begin + first + rest.replace(old.encode(), new.encode(), 1)
    assert changed != content
    for odd in (changed, content + b"more\n", content + b"\n"):
        path.write_bytes(odd)
        assert run(trained, folder, "--output", path, "--resume") == 2
        assert f"c{suffix} was changed since it was written" in capsys.readouterr().err
        assert path.read_bytes() == odd
    path.write_bytes(content)
    assert run(trained, folder, "--output", path, "--resume") == 1


def test_a_caption_corrected_by_hand_stays(trained, folder):
    assert run(trained, folder, "--output", "c.jsonl") == 1
    rows = [json.loads(line) for line in Path("c.jsonl").read_text("utf-8").splitlines()]
    rows[2]["caption"] = "my own"
    Path("c.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    assert run(trained, folder, "--output", "c.jsonl", "--resume") == 1
    assert Path("c.jsonl").read_text("utf-8").count("my own") == 1


def test_two_runs_do_not_write_to_one_file(trained, folder, capsys):
    with outputs.captions_file(
        Path("c.csv"), {}, separator="comma", resume=False, overwrite=False
    ) as file:
        assert run(trained, folder, "--output", "c.csv", "--resume") == 2
        assert "another run writes to c.csv" in capsys.readouterr().err
        file._write("x")
    assert {path.name for path in Path().iterdir()} == {"photos", "c.csv", ".c.csv.run.json"}


def test_a_run_that_describes_nothing_leaves_nothing(trained, folder):
    (Path("bad") / "x.jpg").parent.mkdir()
    (Path("bad") / "x.jpg").write_bytes(b"no picture")
    assert run(trained, "bad", "--output", "c.csv") == 2
    assert run(trained, folder / "0.png", "--output", "c.csv", "--checkpoint", "no.pt") == 2
    assert {path.name for path in Path().iterdir()} == {"photos", "bad"}


def test_numbers_have_the_digits_that_mean_something(trained, folder):
    assert run(trained, folder, "--output", "c.jsonl", "--n-best", 3) == 1
    rows = [json.loads(line) for line in Path("c.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        assert list(row) == outputs.COLUMNS
        assert row["log_prob"] == round(row["log_prob"], 4)
        n_words = len(row["caption"].split()) + 1
        assert row["log_prob_per_word"] == pytest.approx(row["log_prob"] / n_words, rel=0.6)
    assert run(trained, folder, "--output", "d.jsonl", "--n-best", 3, "--neighbour-weight", 0) == 1
    rows = [json.loads(line) for line in Path("d.jsonl").read_text("utf-8").splitlines()]
    for image in {row["image"] for row in rows}:
        ranked = [row["log_prob_per_word"] for row in rows if row["image"] == image]
        assert ranked == sorted(ranked, reverse=True)


def test_csv_for_spreadsheets_with_decimal_commas(trained, folder):
    assert run(trained, folder, "--output", "c.csv", "--csv-separator", "semicolon") == 1
    text = Path("c.csv").read_bytes().decode("utf-8")
    assert text.startswith("\ufeffimage;rank;caption;")
    rows = list(csv.DictReader(text.removeprefix("\ufeff").splitlines(), delimiter=";"))
    assert re.fullmatch(r"-\d+,\d{1,4}", rows[0]["log_prob"])


def test_parquet(trained, folder):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    assert run(trained, folder, "--output", "c.jsonl", "--n-best", 2) == 1
    assert run(trained, folder, "--output", "c.parquet", "--n-best", 2) == 1
    table = pandas.read_parquet("c.parquet")
    assert list(table.columns) == outputs.COLUMNS
    rows = [json.loads(line) for line in Path("c.jsonl").read_text("utf-8").splitlines()]
    assert table["caption"].tolist() == [row["caption"] for row in rows]
    assert table["image"].tolist() == [row["image"] for row in rows]


def test_parquet_without_pyarrow_says_what_to_install(trained, folder, capsys, monkeypatch):
    find = outputs.importlib.util.find_spec
    monkeypatch.setattr(
        outputs.importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name)
    )
    assert run(trained, folder, "--output", "c.parquet") == 2
    assert "pip install pyarrow" in capsys.readouterr().err


def test_the_page_shows_names_and_captions_as_text(trained, folder):
    assert run(trained, folder, "--output", "c.html", "--n-best", 2) == 1
    page = Path("c.html").read_text("utf-8")
    assert page.count("<article") == N_PICTURES - 1
    assert "1 &quot;quoted&quot;, &lt;b&gt;.png" in page
    assert 'href="photos/1%20%22quoted%22%2C%20%3Cb%3E.png"' in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert Image.MIME["JPEG"] in page
