import csv
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import checkpoint
import familiarity
import inputs
import outputs
import pictures
import predict
from captioner import Captioner
from cli import UserError

ROOT = Path(predict.__file__).parent


@pytest.fixture
def folder(trained, tmp_path):
    """Pictures a.png, b.JPG and deep/er/c.webp, a text file and a hidden one."""
    sources = sorted((trained.data / "flickr30k_images").glob("*.png"))
    folder = tmp_path / "pictures"
    for name, source in zip(("a.png", "b.JPG", "deep/er/c.webp"), sources, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(source).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "._a.png").write_text("what a Mac leaves on other disks")
    return folder


def run(trained, *flags):
    flags = ["--checkpoint", trained.checkpoints / "best.pt", *flags]
    try:
        return predict.main([str(flag) for flag in flags])
    except SystemExit as error:  # argparse's way
        return error.code


def test_one_picture_gives_its_caption_and_nothing_else(trained, folder, capsys):
    assert run(trained, "--image", folder / "a.png") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "\t" not in out
    assert out.strip()
    assert err == ""


def test_a_folder_gives_path_and_caption_in_order(trained, folder, capsys):
    assert run(trained, "--image", folder, "--batch-size", "2") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    names = ["a.png", "b.JPG", "deep/er/c.webp"]
    assert [row[0] for row in rows] == [str(folder / name) for name in names]
    assert all(row[1] for row in rows)


def test_plain_arguments_and_those_of_the_flag_add_up(trained, folder, capsys):
    a, b, c = (folder / name for name in ("a.png", "b.JPG", "deep/er/c.webp"))
    model = ["--checkpoint", str(trained.checkpoints / "best.pt")]
    assert predict.main([str(a), "--image", str(b), *model, "--quiet", str(c)]) == 0
    caption_of = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert set(caption_of) == {str(a), str(b), str(c)}
    assert predict.main([str(a), *model]) == 0
    assert capsys.readouterr().out.strip() == caption_of[str(a)]


def test_alone_and_among_others_a_picture_gets_the_same_caption(trained, folder, capsys):
    assert run(trained, "--image", folder / "a.png", folder / "b.JPG") == 0
    together = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    run(trained, "--image", folder / "b.JPG")
    assert capsys.readouterr().out.strip() == together[1]


def test_n_best_are_ranked_with_log_probabilities(trained, folder, capsys):
    assert run(trained, "--image", folder / "a.png", "--n-best", "5", "--neighbour-weight", 0) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 5
    assert len({caption for *_, caption in rows}) == 5
    per_word = [float(row[0]) for row in rows]
    assert per_word == sorted(per_word, reverse=True)
    assert all(float(total) < mean for (_, total, _), mean in zip(rows, per_word, strict=True))


def test_sentence_has_a_capital_and_a_full_stop(trained, folder, capsys):
    run(trained, "--image", folder / "a.png")
    plain = capsys.readouterr().out.strip()
    run(trained, "--image", folder / "a.png", "--sentence")
    assert capsys.readouterr().out.strip() == f"{plain[0].upper()}{plain[1:]}."


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_output_file(trained, folder, tmp_path, capsys, suffix):
    output = tmp_path / f"captions{suffix}"
    assert run(trained, "--image", folder, "--n-best", "2", "--output", output) == 0
    assert capsys.readouterr().out == ""
    with output.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file)) if suffix == ".csv" else [json.loads(x) for x in file]
    assert len(rows) == 6
    assert list(rows[0]) == outputs.COLUMNS
    assert [int(row["rank"]) for row in rows] == [1, 2] * 3
    assert float(rows[0]["log_prob"]) < 0


def test_an_output_file_that_exists_is_not_written_over(trained, folder, tmp_path, capsys):
    output = tmp_path / "captions.csv"
    output.write_text("mine")
    assert run(trained, "--image", folder, "--output", output) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert run(trained, "--image", folder, "--output", output, "--overwrite") == 0
    assert output.read_text().startswith("image,")


def test_a_bad_picture_among_good_ones_is_named_and_the_rest_done(trained, folder, capsys):
    (folder / "b.JPG").write_bytes((folder / "b.JPG").read_bytes()[:300])
    assert run(trained, "--image", folder) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert str(folder / "b.JPG") in err
    assert len(err.splitlines()) == 1


def test_an_output_file_stays_if_no_picture_can_be_read(trained, folder, tmp_path, capsys):
    """An old table of captions was replaced by an empty one."""
    output = tmp_path / "captions.csv"
    output.write_text("old")
    flags = ("--image", folder / "notes.txt", "--output", output, "--overwrite")
    assert run(trained, *flags) == 2
    assert output.read_text() == "old"
    assert "written" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="such names cannot be made elsewhere")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_name_that_is_no_utf8_does_not_end_the_run(trained, folder, tmp_path, suffix):
    """As old zips leave them; it ended a table of parquet after all captions were computed."""
    odd = os.fsdecode(bytes(folder / "caf") + b"\xe9.png")
    (folder / "a.png").rename(odd)
    output = tmp_path / f"captions{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    assert run(trained, "--image", folder, "--output", output) == 0
    if suffix == ".parquet":
        import pandas as pd

        assert pd.read_parquet(output)["image"][1].endswith(r"caf\udce9.png")
        return
    assert "caf\\udce9.png" in output.read_text(encoding="utf-8")
    if suffix == ".jsonl":
        assert json.loads(output.read_text(encoding="utf-8").splitlines()[1])["image"] == odd
    model = ["--checkpoint", trained.checkpoints / "best.pt"]
    command = [sys.executable, ROOT / "predict.py", *model, "--image", folder]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as in most locales
    done = subprocess.run(command, capture_output=True, check=True, env=strict)
    assert os.fsencode(odd) + b"\t" in done.stdout


def test_debug_shows_where_a_pictures_error_comes_from(trained, folder, capsys):
    (folder / "b.JPG").write_bytes(b"no picture")
    assert run(trained, "--image", folder, "--debug") == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "Traceback" in err
    assert "read_image" in err


def test_pictures_may_come_and_go_while_their_folder_is_described(
    trained, folder, capsys, monkeypatch
):
    for number in range(100):
        (folder / f"d{number:03d}.png").symlink_to(folder / "a.png")
    write = outputs.Terminal.write

    def change_the_folder(*args):
        (folder / "d099.png").unlink(missing_ok=True)
        (folder / "new.png").write_bytes((folder / "a.png").read_bytes())
        write(*args)

    monkeypatch.setattr(outputs.Terminal, "write", change_the_folder)
    assert run(trained, "--image", folder, "--batch-size", "2") == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 102  # what was there at the beginning, but for one
    assert err == f"error: {folder / 'd099.png'}: no such file.\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image", "notes.txt"], "notes.txt is not a picture"),
        (["--image", "missing.jpg"], "missing.jpg: no such file"),
        (["--image", "empty"], "no pictures in empty"),
        (["--image", "a.png", "--checkpoint", "missing.pt"], "no checkpoint missing.pt"),
        (["--image", "a.png", "--checkpoint", "notes.txt"], "notes.txt is no checkpoint"),
        (["--image", "a.png", "--checkpoint", "a.png"], "a.png is no checkpoint"),
        (["--image", "a.png", "--checkpoint", "empty"], "no checkpoint empty"),
        # `--checkpoint best.pt holiday/`: "name the model in it, such as holiday/best.pt".
        (["--image", "a.png", "--checkpoint", "deep"], "deep, but a folder: --checkpoint takes"),
        (["--image", "a.png", "--checkpoint", "b.JPG"], "b.JPG is no checkpoint but a picture: -"),
        (["--image", "a.png", "--checkpoint", "model"], "name the model in it, such as model/best"),
        (["a.png"], "Give path/to/picture.jpg or a folder, before flags"),
        (["--image", "a.png", "--output", "captions.xlsx"], ".csv, .jsonl, .html or .parquet"),
        (["--image", "a.png", "--output", "notes.txt/x.csv"], "notes.txt"),
        (["--image", "a.png", "--beam-size", "0"], "--beam-size must be at least 1"),
        (["--image", "a.png", "--beam-sise", "3"], "Did you mean --beam-size?"),
        (["--image"], "expected at least one argument"),
        ([], "which picture? Give path/to/picture.jpg"),
    ],
)
def test_bad_input_is_one_line_and_2(trained, folder, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    (folder / "model").mkdir()
    (folder / "model/best.pt").touch()
    assert run(trained, *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_folder_of_all_kinds(trained, folder, capsys):
    """What can be read is read whatever its name, the rest is counted, thumbnails are left out."""
    jpeg = (folder / "b.JPG").read_bytes()
    names = ["c.jpe", "d.mpo", "e.jpg.1", "f.jpg_large", "saved", "is_jpeg.xcf"]
    for name in (*names, ".hidden/g.jpg", "@eaDir/h.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(jpeg)
    for name in ("1.jxl", "2.jxl", "3.svg", "4.cr2", "table.csv", "run.json"):
        (folder / name).write_bytes(b"II*\0 no picture")
    (folder / "round").symlink_to(folder, target_is_directory=True)
    assert run(trained, "--image", folder) == 0
    out, err = capsys.readouterr()
    read = [line.split("\t")[0].removeprefix(f"{folder}{os.sep}") for line in out.splitlines()]
    assert read == sorted(["a.png", "b.JPG", "deep/er/c.webp", *names])
    assert err == "4 files passed over: 2 .jxl, 1 .cr2, 1 .svg\n"


@pytest.fixture
def _no_heic(monkeypatch):
    """As where pillow-heif is not installed."""
    suffixes = pictures.PICTURE_SUFFIXES - pictures.HEIC_SUFFIXES
    monkeypatch.setattr(pictures, "HEIC_PACKAGE", "no_such_package")
    monkeypatch.setattr(inputs, "PICTURE_SUFFIXES", suffixes)


@pytest.mark.usefixtures("_no_heic")
def test_a_folder_of_nothing_but_heic_says_what_it_needs(trained, tmp_path, capsys):
    """Photos of a phone vanished without a word."""
    (tmp_path / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    assert run(trained, "--image", tmp_path) == 2
    err = capsys.readouterr().err
    assert "1 file passed over: 1 .heic (HEIC needs: pip install pillow-heif)" in err
    assert len(err.splitlines()) == 1
    assert run(trained, "--image", tmp_path / "IMG_0001.HEIC") == 2
    assert "is HEIC: to read it, pip install pillow-heif" in capsys.readouterr().err


def test_heic_is_read_where_it_can_be(trained, folder, capsys):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.open(folder / "a.png").convert("RGB")).save(folder / "a.HEIC")
    (folder / "b.heic").write_bytes((folder / "a.HEIC").read_bytes()[:200])
    assert run(trained, "--image", folder) == 1
    out, err = capsys.readouterr()
    assert str(folder / "a.HEIC") in out
    assert err.startswith(f"error: {folder / 'b.heic'} ")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such names")
def test_odd_names_do_not_break_the_table(trained, folder, capsys):
    for name in ("a\tb.png", "two\nlines.png", "back\\slash.png", "=1, 100%.png"):
        (folder / name).write_bytes((folder / "a.png").read_bytes())
    assert run(trained, "--image", folder) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {len(row) for row in rows} == {2}
    shown = {Path(row[0]).name for row in rows}
    assert shown >= {r"a\tb.png", r"two\nlines.png", r"back\\slash.png", "=1, 100%.png"}


def test_quiet_leaves_only_errors(trained, folder, tmp_path, capsys):
    assert run(trained, "--image", folder, "--output", tmp_path / "c.csv", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_what_a_caption_needs_is_light(trained, folder, tmp_path):
    """pandas, spaCy, nltk and TensorBoard are for training: nobody waits for them here."""
    script = (
        "import runpy, sys\n"
        "try: runpy.run_path('predict.py', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = {'pandas', 'spacy', 'nltk', 'tensorboard', 'torchvision'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    flags = ["--checkpoint", trained.checkpoints / "best.pt", "--image", folder / "a.png"]
    command = [sys.executable, "-c", script, *flags, "--output", tmp_path / "one.csv", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_error(trained, folder):
    script = f"{sys.executable} predict.py --checkpoint {trained.checkpoints / 'best.pt'} "
    script += f"--batch-size 1 --image {folder} | head -n 1"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_captions_fit_the_model_that_was_saved(trained):
    """A vocabulary rebuilt from data no longer fits the weights: here it travels with them."""
    loaded = checkpoint.load(trained.checkpoints / "best.pt", torch.device("cpu"))
    assert loaded.model.output.out_features == len(loaded.vocabulary)


def test_searches_as_the_model_was_validated_but_for_what_is_given(
    trained, folder, tmp_path, capsys
):
    content = torch.load(trained.checkpoints / "best.pt", weights_only=True)
    content["settings"]["max_words"] = 2
    torch.save(content, tmp_path / "brief.pt")
    command = [str(folder / "a.png"), "--checkpoint", str(tmp_path / "brief.pt")]
    assert predict.main(command) == 0
    assert 1 <= len(capsys.readouterr().out.split()) <= 2
    assert predict.main([*command, "--max-words", "20"]) == 0  # our default, but asked for
    longer = capsys.readouterr().out
    assert run(trained, "--image", folder / "a.png") == 0
    assert capsys.readouterr().out == longer
    assert len(longer.split()) > 2


def test_captions_drawn_at_random_are_the_seeds(trained, folder, capsys):
    def drawn(*flags):
        assert run(trained, "--image", folder / "a.png", "--temperature", 2, *flags) == 0
        return capsys.readouterr().out

    assert drawn("--seed", 1) == drawn("--seed", 1)
    assert len({drawn("--seed", seed) for seed in range(6)}) > 1
    assert len(drawn("--n-best", 5).splitlines()) == 5


def test_models_of_different_words_do_not_speak_as_one(trained, folder, tmp_path, capsys):
    content = torch.load(trained.checkpoints / "best.pt", weights_only=True)
    content["vocabulary"]["words"][-1] = "zebra"
    torch.save(content, tmp_path / "other.pt")
    assert run(trained, "--image", folder, "--checkpoint", tmp_path / "other.pt") == 2
    assert "know different words" in capsys.readouterr().err
    best = trained.checkpoints / "best.pt"
    assert run(trained, "--image", folder / "a.png", "--checkpoint", best) == 0
    together = capsys.readouterr().out
    assert run(trained, "--image", folder / "a.png") == 0
    assert capsys.readouterr().out == together


def write_tar(path, names):
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.add(name, arcname=name.name)
    return path


def test_a_shard_is_described_by_its_keys(trained, folder, tmp_path, capsys):
    shard = write_tar(tmp_path / "00000.tar", [folder / "a.png", folder / "b.JPG"])
    assert run(trained, "--image", folder / "a.png") == 0
    alone = capsys.readouterr().out.strip()
    assert run(trained, "--image", shard) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == [f"{shard}/a", f"{shard}/b"]
    assert rows[0][1] == alone
    shard.write_bytes(shard.read_bytes()[:1200])
    assert run(trained, "--image", shard, folder / "a.png") == 1
    out, err = capsys.readouterr()
    assert "cut off" in err
    assert len(out.splitlines()) == 1


def test_a_list_that_names_missing_files(trained, folder, tmp_path, capsys):
    names = tmp_path / "list.txt"
    names.write_text(f"{folder / 'a.png'}\nmissing.jpg\n")
    assert run(trained, "--image", f"@{names}") == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{folder / 'a.png'}\t")
    assert err == "error: missing.jpg: no such file.\n"


def test_empty_standard_input(trained, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert run(trained, "--image", "-") == 2
    assert capsys.readouterr().err == "error: standard input names no pictures.\n"


def test_an_address_is_refused_in_a_sentence(trained, capsys):
    assert run(trained, "--image", "https://example.org/a.jpg") == 2
    assert "https://example.org/a.jpg is an address" in capsys.readouterr().err


# ------------------------------------------------------------------------------- sidecars


def test_sidecars_are_written_beside_and_kept_the_next_time(trained, folder, capsys):
    (folder / "a.txt").write_text("mine")
    assert run(trained, "--image", folder, "--sidecar", "txt") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "2 sidecars written, 1 kept as they were" in err
    assert (folder / "a.txt").read_text() == "mine"
    assert run(trained, "--image", folder / "b.JPG") == 0
    assert (folder / "b.txt").read_text() == capsys.readouterr().out
    assert run(trained, "--image", folder, "--sidecar", "txt") == 0
    assert "0 sidecars written, 3 kept as they were" in capsys.readouterr().err


def test_sidecars_and_a_table_at_once(trained, folder, tmp_path, capsys):
    flags = ("--image", folder, "--sidecar", "xmp", "--output", tmp_path / "c.csv")
    assert run(trained, *flags, "--sidecar-folder", tmp_path / "side", "--sentence") == 0
    with (tmp_path / "c.csv").open(encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    files = [tmp_path / "side" / f"{name}.xmp" for name in ("a.png", "b.JPG", "deep/er/c.webp")]
    for path, caption in zip(files, captions, strict=True):
        assert f">{caption}<" in path.read_text("utf-8")
    assert "3 sidecars written" in capsys.readouterr().err


def test_pictures_that_share_a_sidecar_are_noticed_before_anything_is_written(
    trained, folder, capsys
):
    (folder / "a.jpg").write_bytes((folder / "b.JPG").read_bytes())
    assert run(trained, "--image", folder, "--sidecar", "txt") == 2
    err = capsys.readouterr().err
    assert "a.jpg" in err
    assert "a.png" in err
    assert not list(folder.glob("*.txt")) or {p.name for p in folder.glob("*.txt")} == {"notes.txt"}


def test_an_xmp_that_is_no_xml_is_left_alone_and_named(trained, folder, capsys):
    (folder / "a.png.xmp").write_text("<broken")
    assert run(trained, "--image", folder, "--sidecar", "xmp") == 1
    assert "a.png.xmp" in capsys.readouterr().err
    assert (folder / "a.png.xmp").read_text() == "<broken"
    assert (folder / "b.JPG.xmp").exists()


def test_a_sidecar_that_cannot_be_written_is_named_and_the_rest_done(trained, folder, capsys):
    """It ended the run, and a picture whose sidecar failed was counted twice."""
    (folder / "a.txt").mkdir()
    for more in ((), ("--existing", "overwrite"), ("--output", folder / "c.csv")):
        assert run(trained, "--image", folder, "--sidecar", "txt", *more) == 1
        assert "a.txt cannot be read or written: Is a directory" in capsys.readouterr().err
        assert (folder / "b.txt").read_text()
    for flags in (("--existing", "overwrite"), ()):
        assert run(trained, folder / "a.png", "--sidecar", "txt", *flags) == 2


def test_sidecars_for_pictures_of_a_list_on_standard_input(trained, folder, capsys, monkeypatch):
    names = f"{folder / 'a.png'}\n{folder / 'b.JPG'}\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names)))
    assert run(trained, "--image", "-", "--sidecar", "caption") == 0
    assert (folder / "a.caption").exists()
    assert "2 sidecars written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume"], "--resume and --overwrite are of --output"),
        (["--sidecar", "txt", "--overwrite"], "for sidecars see --existing"),
        (["--resume", "--overwrite", "--output", "c.csv"], "that --overwrite would replace"),
        (["--existing", "append"], "Give --sidecar"),
        (["--csv-separator", "tab"], "--csv-separator is for --output captions.csv"),
        (["--prefix", "a photo of "], "Give --sidecar"),
        (["--sidecar", "jpg"], "jpg"),
        (["--sidecar", "a/b"], "--sidecar must be a suffix"),
        (["--sidecar", "txt", "--existing", "keep_it"], "--existing must be one of"),
        (["--csv-separator", "|"], "--csv-separator must be one of comma, semicolon, tab"),
        (["--image", "@missing.txt"], "missing.txt, a list of pictures, is not there"),
    ],
)
def test_flags_that_do_not_fit_are_refused(trained, folder, capsys, flags, message):
    assert run(trained, "--image", folder / "a.png", *flags) == 2
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------- familiarity


def test_an_unfamiliar_picture_is_said_to_be_one(trained, folder, tmp_path, capsys):
    """The model called a coffee cup a small white dog, and was sure of it."""
    loaded = checkpoint.load(trained.checkpoints / "best.pt")
    features = torch.randn(200, loaded.model.feature_size) / 1000  # a picture's are larger
    loaded.familiarity = familiarity.fit(features, features)
    checkpoint.save(tmp_path / "m.pt", loaded)
    model = ["--checkpoint", tmp_path / "m.pt"]
    assert predict.main([str(flag) for flag in [folder / "a.png", *model]]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert (
        err
        == f"note: {folder / 'a.png'} is unlike what the model was trained on: doubt its caption\n"
    )
    flags = [folder, *model, "--output", tmp_path / "c.csv"]
    assert predict.main([str(flag) for flag in flags]) == 0
    assert "3 of 3 pictures are unlike" in capsys.readouterr().err
    with (tmp_path / "c.csv").open(encoding="utf-8", newline="") as file:
        assert {row["familiarity"] for row in csv.DictReader(file)} == {"0.0"}
    page = tmp_path / "page.html"
    assert predict.main([str(flag) for flag in [folder, *model, "--output", page]]) == 0
    assert page.read_text("utf-8").count("<p class=unlike>") == 3


def test_five_lines_of_python(trained, folder, capsys):
    captioner = Captioner.load(trained.checkpoints / "best.pt")
    assert run(trained, "--image", folder / "a.png") == 0
    assert captioner.caption(folder / "a.png") == capsys.readouterr().out.strip()
    with pytest.raises(UserError, match=r"missing.jpg: no such file"):
        captioner.caption("missing.jpg")
    with pytest.raises(TypeError, match="no setting of the search: beem_size"):
        Captioner.load(trained.checkpoints / "best.pt", n_best=3, beem_size=2)
