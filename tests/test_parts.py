import json
import shutil
import tarfile
from pathlib import Path

import pytest

import parts
import predict
from inputs import Pictures

N_PICTURES = 11


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    """Pictures in parts of three, one of which cannot be read; the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "FEW", 3)
    sources = sorted((trained.data / "flickr30k_images").glob("*.png"))
    Path("photos").mkdir()
    for n in range(N_PICTURES):
        shutil.copy(sources[n], f"photos/{n:02d}.png")
    Path("photos/04.png").write_bytes(b"no picture")
    return Path("photos")


def run(trained, *flags):
    model = ["--checkpoint", trained.checkpoints / "best.pt", "--batch-size", "3"]
    model = [] if "--merge" in flags else model
    try:
        return predict.main([str(flag) for flag in [*model, *flags]])
    except SystemExit as error:  # argparse's way
        return error.code


def run_of(monkeypatch, rank, n_processes, trained, *flags):
    """As one of the processes that torchrun starts."""
    with monkeypatch.context() as environment:
        environment.setenv("RANK", str(rank))
        environment.setenv("WORLD_SIZE", str(n_processes))
        environment.delenv("OMP_NUM_THREADS", raising=False)  # 1 would change the threads here
        return run(trained, *flags)


def merged(trained, suffix=".jsonl", status=1):
    path = Path(f"merged{suffix}")
    assert run(trained, "--merge", "out", "--output", path, "--overwrite") == status
    return path.read_bytes()


def at_once(trained, folder, suffix=".jsonl"):
    path = Path(f"whole{suffix}")
    assert run(trained, "--image", folder, "--output", path) == 1
    return path.read_bytes()


def make_tar(path, pictures):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for picture in pictures:
            archive.add(picture, arcname=picture.name)
    return path


@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_parts_joined_are_what_one_run_writes(trained, folder, monkeypatch, n_processes):
    for rank in range(n_processes):
        flags = ("--image", folder, "--output", "out")
        # A broken picture is no failure there: torchrun would end all processes for it.
        assert run_of(monkeypatch, rank, n_processes, trained, *flags) == (n_processes == 1)
    assert len(list(Path("out").glob("*.jsonl"))) == 4
    assert merged(trained) == at_once(trained, folder)
    assert merged(trained, ".csv") == at_once(trained, folder, ".csv")


def test_any_number_of_processes_goes_on_with_what_is_there(
    trained, folder, monkeypatch, capsys, stop_after
):
    flags = ("--image", folder, "--output", "out")
    with stop_after(4):  # in its second part
        assert run_of(monkeypatch, 0, 2, trained, *flags) == 130
    assert run(trained, "--merge", "out", "--output", "m.jsonl") == 2
    assert "the last parts of out are missing" in capsys.readouterr().err
    for rank in range(3):
        assert run_of(monkeypatch, rank, 3, trained, *flags) == 0
    assert "of which 1 of" in capsys.readouterr().err
    assert merged(trained) == at_once(trained, folder)


def test_an_archive_is_a_part_called_as_it_is(trained, folder, capsys):
    pictures = sorted(folder.iterdir())
    shards = [make_tar(Path(f"shards/{n:05d}.tar"), pictures[3 * n : 3 * n + 3]) for n in range(3)]
    with tarfile.open(shards[2]) as archive:
        second = archive.getmembers()[1].offset_data
    shards[2].write_bytes(shards[2].read_bytes()[: second + 10])
    assert run(trained, "--image", *shards, "--output", "out") == 1
    assert "cut off" in capsys.readouterr().err
    written = [path.name for path in sorted(Path("out").glob("*.jsonl"))]
    assert written == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]
    names = [json.loads(line)["image"] for line in merged(trained).splitlines()]
    keys = ["00000.tar/00", "00000.tar/01", "00000.tar/02", "00001.tar/03", "00001.tar/05"]
    assert names == [f"shards/{key}" for key in [*keys, "00002.tar/06"]]


def test_what_failed_is_tried_again_by_the_same_command(trained, folder, capsys):
    """A shard that was missing or cut off was whole for good: `3 of 3 parts were whole`."""
    pictures = sorted(folder.iterdir())
    shards = [make_tar(Path(f"shards/{n}.tar"), pictures[5 + 2 * n : 7 + 2 * n]) for n in range(3)]
    flags = ("--image", *shards, "--output", "out")
    cut_off, missing = shards[1].read_bytes(), shards[2].read_bytes()
    with tarfile.open(shards[1]) as archive:
        shards[1].write_bytes(cut_off[: archive.getmembers()[1].offset_data + 10])
    shards[2].unlink()
    assert run(trained, *flags) == 1
    first = Path("out/1.jsonl").read_bytes()
    shards[1].write_bytes(cut_off)
    shards[2].write_bytes(missing)
    capsys.readouterr()
    assert run(trained, *flags) == 0
    assert "of which 1 of 3 parts were whole" in capsys.readouterr().err
    assert Path("out/1.jsonl").read_bytes().startswith(first)
    assert merged(trained, status=0).count(b"\n") == 6
    assert run(trained, *flags) == 0
    assert "of which 3 of 3 parts were whole" in capsys.readouterr().err


def test_archives_that_would_share_a_part_are_refused(trained, folder, capsys):
    pictures = sorted(folder.iterdir())[:1]
    shards = [make_tar(Path(f"{name}/0.tar"), pictures) for name in "ab"]
    assert run(trained, "--image", *shards, "--output", "out") == 2
    assert "two archives would share out/0.jsonl" in capsys.readouterr().err


def test_what_was_made_otherwise_is_not_added_to(trained, folder, capsys):
    assert run(trained, "--image", folder, "--output", "out") == 1
    assert run(trained, "--image", folder, "--output", "out", "--beam-size", 2) == 2
    assert "was written with --beam-size 10, not 2" in capsys.readouterr().err
    (folder / "001.png").write_bytes((folder / "00.png").read_bytes())
    assert run(trained, "--image", folder, "--output", "out") == 2
    assert "was written with other pictures" in capsys.readouterr().err


def test_other_files_of_captions_there_are_no_parts(trained, folder):
    """One beside the parts ended `--merge` in a traceback."""
    assert run(trained, "--image", folder, "--output", "out") == 1
    assert run(trained, "--image", folder / "00.png", "--output", "out/other.jsonl") == 0
    (Path("out") / ".broken.jsonl.run.json").write_text("{")
    assert merged(trained) == at_once(trained, folder)


def test_parts_may_be_joined_beside_them(trained, folder, capsys):
    """The folder's next run failed: the joined file, made with no flags, was taken for a part."""
    assert run(trained, "--image", folder, "--output", "out") == 1
    assert run(trained, "--merge", "out", "--output", "out/all.csv") == 1
    other = ("--output", "out/other.jsonl", "--sentence")
    assert run(trained, "--image", folder / "00.png", *other) == 0
    capsys.readouterr()
    assert run(trained, "--image", folder, "--output", "out") == 1
    assert "3 of 4 parts were whole" in capsys.readouterr().err
    assert merged(trained) == at_once(trained, folder)


def test_a_joined_file_is_replaced_and_not_resumed(trained, folder, capsys):
    """It was said to give --resume, and with --resume it was said again."""
    assert run(trained, "--image", folder, "--output", "out") == 1
    flags = ("--merge", "out", "--output", "m.jsonl")
    assert run(trained, *flags) == 1
    capsys.readouterr()
    assert run(trained, *flags) == 2
    assert capsys.readouterr().err == ("error: m.jsonl exists: give --overwrite to replace it.\n")
    assert run(trained, *flags, "--overwrite") == 1
    assert run(trained, "--image", folder / "00.png", "--output", "m.jsonl") == 2
    assert "exists: give --overwrite" in capsys.readouterr().err


def test_parts_of_archives_make_no_page(trained, folder, capsys):
    """It showed no picture, and all its links were dead."""
    shard = make_tar(Path("0.tar"), [folder / "00.png"])
    assert run(trained, "--image", folder / "01.png", shard, "--output", "out") == 0
    assert run(trained, "--merge", "out", "--output", "m.html") == 2
    assert "a page of archives' pictures is not made by --merge" in capsys.readouterr().err
    assert not Path("m.html").exists()
    assert b"0.tar/00" in merged(trained, ".csv", status=0)


@pytest.mark.parametrize("damage", ["no part", "no last part", "another's", "shorter", "no folder"])
def test_what_does_not_fit_together_is_not_joined(trained, folder, capsys, damage):
    assert run(trained, "--image", folder, "--output", "out") == 1
    part, record = Path("out/part-00001.jsonl"), Path("out/.part-00001.jsonl.run.json")
    if damage == "no part":
        part.unlink()
    elif damage == "no last part":
        Path("out/part-00003.jsonl").unlink()
        Path("out/.part-00003.jsonl.run.json").unlink()
    elif damage == "another's":
        record.write_text(record.read_text().replace('"before": "', '"before": "x'))
    elif damage == "shorter":
        part.write_text(part.read_text().splitlines(keepends=True)[0])
    else:
        shutil.rmtree("out")
    assert run(trained, "--merge", "out", "--output", "m.jsonl") == 2
    err = capsys.readouterr().err
    expected = {
        "no part": "part 1 of out is missing or not whole",
        "no last part": "the last parts of out are missing",
        "another's": "out/part-00001.jsonl is not of the same pictures",
        "shorter": "out/part-00001.jsonl was changed since it was written",
        "no folder": "no parts in out",
    }
    assert expected[damage] in err
    assert not list(Path().glob("*m.jsonl*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--merge", "out"), "--merge needs an --output"),
        (("--merge", "out", "--output", "m"), "--merge needs an --output"),
        (("--merge", "out", "--output", "m.csv", "--image", "photos"), "give it no pictures"),
        (("--merge", "out", "--output", "m.csv", "--resume"), "are: leave --resume out."),
        (("--merge", "out", "--output", "m.csv", "--n-best", 2), "are: leave --n-best out."),
        (("--merge", "out", "--output", "m.csv", "--checkpoint", "no.pt"), "--checkpoint out."),
        (("--image", "photos", "--output", "out", "--overwrite"), "remove that folder"),
    ],
)
def test_flags_that_do_not_fit_are_refused(trained, capsys, flags, message):
    assert run(trained, *flags) == 2
    assert message in capsys.readouterr().err


def test_several_processes_need_a_folder(trained, folder, monkeypatch, capsys):
    """Each would write the same file."""
    for flags in (["--output", "a.csv"], [], ["--sidecar", "txt"]):
        assert run_of(monkeypatch, 1, 2, trained, folder, *flags) == 2
        assert "several processes share a folder: give --output" in capsys.readouterr().err


def test_first_parts_are_small(trained, folder, monkeypatch, capsys):
    """So that processes share a small folder too; who has no part is told of."""
    monkeypatch.setattr(parts, "FEW", 1)
    monkeypatch.setattr(parts, "N_SMALL", 2)
    pictures = sorted(str(path) for path in folder.rglob("*.png"))
    assert len(pictures) > 3
    sizes = [len(list(part.sources)) for part in parts.parts(Pictures(pictures), folder)]
    assert sizes == [1, 1, len(pictures) - 2]
    assert run_of(monkeypatch, 0, 9, trained, *pictures, "--output", "out") == 0
    assert "parts       3: of 9 processes the others had nothing to do" in capsys.readouterr().err
