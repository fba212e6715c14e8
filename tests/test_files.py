import os
import subprocess
import sys
from pathlib import Path

import pytest

import files
from cli import UserError
from files import hold, whole_file

ROOT = Path(files.__file__).parent


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as part:
        part.write_text("old")
        assert not path.exists()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), whole_file(path) as part:  # noqa: PT012
            part.write_text("half of the new")
            raise error
        assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("a.txt", "old")]
    with whole_file(path) as part:
        part.write_text("new")
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("a.txt", "new")]


def test_a_file_is_flushed_through_a_handle_that_may_write(tmp_path, monkeypatch):
    """Windows flushes no other: no checkpoint could be saved there."""
    fcntl = pytest.importorskip("fcntl")
    modes = []
    monkeypatch.setattr(files.os, "fsync", lambda fd: modes.append(fcntl.fcntl(fd, fcntl.F_GETFL)))
    with whole_file(tmp_path / "a.txt") as part:
        part.write_text("x")
    assert [mode & os.O_ACCMODE for mode in modes] == [os.O_RDWR]


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path):
    with hold(tmp_path):
        with pytest.raises(UserError, match=r"another run writes to .*--checkpoints"):
            hold(tmp_path)
        code = "import files, sys; files.hold(files.Path(sys.argv[1]))"
        command = [sys.executable, "-c", code, tmp_path]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert "UserError: another run writes to" in done.stderr
    with hold(tmp_path):
        pass


def test_half_written_files_of_killed_runs_are_removed_when_a_folder_is_held(tmp_path):
    """Twenty kills left twenty of them, a hundred megabytes each; a living process's stays."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        done = subprocess.Popen([sys.executable, "-c", ""])
        done.wait()
        names = {
            "dead": f".best.pt.{done.pid}.part",
            "own": f".last.pt.{os.getpid()}.part",  # of another container's process
            "living": f".best.pt.{living.pid}.part",
            "other": ".notes.part",
        }
        for name in names.values():
            (tmp_path / name).touch()
        with hold(tmp_path):
            left = {path.name for path in tmp_path.glob(".*")}
        living.communicate(b"\n")
    assert left == {names["living"], names["other"]}


def test_a_folder_that_another_run_holds_is_not_cleaned(tmp_path):
    with hold(tmp_path):
        (tmp_path / f".best.pt.{os.getpid()}.part").touch()
        with pytest.raises(UserError):
            hold(tmp_path)
        assert list(tmp_path.glob(".*"))
