import errno
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import cli
from cli import option

ROOT = Path(cli.__file__).parent


@dataclass(frozen=True)
class Settings:
    """Try the command line."""

    data: Path = option(Path("photos"), "where the photos are, 100 % local")
    image: tuple[Path, ...] = option((), "pictures")
    sizes: tuple[int, ...] = option((1, 2), "some sizes")
    epochs: int = option(15, "times through", at_least=1)
    batch_size: int = option(100, "captions a step", at_least=1)
    dropout: float = option(0.5, "share dropped", at_least=0, below=1)
    clip_norm: float = option(5.0, "largest norm", at_least=0)
    limit: int | None = option(None, "at most so many", at_least=1)
    place: str = option("auto", "where to run", choices=("auto", "cpu"))
    shuffle: bool = option(True, "in random order")
    quiet: bool = option(False, "only errors")
    debug: bool = option(False, "show tracebacks")

    def __post_init__(self) -> None:
        cli.check(self)


@pytest.fixture(autouse=True)
def _restored_logging():
    """`cli.run` sets the root logger up as a script needs it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, **options
    )


# ---------------------------------------------------------------------------------- flags


def test_without_flags_the_settings_are_the_defaults():
    assert cli.parse(Settings, []) == (Settings(), frozenset())


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        ("--data a/b", "data", Path("a/b")),
        ("--data=a", "data", Path("a")),
        ("--image a.jpg b.jpg", "image", (Path("a.jpg"), Path("b.jpg"))),
        ("--image a.jpg --quiet --image b.jpg", "image", (Path("a.jpg"), Path("b.jpg"))),
        ("--sizes 3", "sizes", (3,)),
        ("--batch-size 7", "batch_size", 7),
        ("--dropout 0", "dropout", 0.0),
        ("--clip-norm inf", "clip_norm", float("inf")),
        ("--limit 3", "limit", 3),
        ("--place cpu", "place", "cpu"),
        ("--no-shuffle", "shuffle", False),
        ("--shuffle", "shuffle", True),
        ("--quiet", "quiet", True),
        ("--epochs 15", "epochs", 15),  # given, though it is the default
    ],
)
def test_a_field_is_a_flag(argv, name, value):
    """`type=bool` took "False" for true."""
    settings, given = cli.parse(Settings, argv.split())
    assert getattr(settings, name) == value
    assert type(getattr(settings, name)) is type(value)
    assert name in given
    assert given <= {name, "quiet"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--epoch 3", "unknown argument --epoch. Did you mean --epochs?"),  # no abbreviations
        ("--batch_size=3", "unknown argument --batch_size. Did you mean --batch-size?"),
        ("--xyzzy", "unknown argument --xyzzy. (" ),
        ("photo.jpg", "unknown argument photo.jpg."),
        ("--quiet False", "unknown argument False."),
        ("--epochs many", "--epochs: invalid int value: 'many'"),
        ("--epochs", "--epochs: expected one argument"),
        ("--epochs 0", "--epochs must be at least 1, got 0"),
        ("--batch-size -1", "--batch-size must be at least 1, got -1"),
        ("--dropout 1", "--dropout must be below 1, got 1.0"),
        ("--dropout nan", "--dropout must be a number, got nan"),
        ("--limit 0", "--limit must be at least 1, got 0"),
        ("--place moon", "--place must be one of auto, cpu, got 'moon'"),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line_that_names_the_flag(argv, words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.parse(Settings, argv.split())
    out, err = capsys.readouterr()
    assert caught.value.code == cli.FAILED == 2
    assert err.startswith("error: ")
    assert words in err
    assert "--help lists all flags" in err
    assert (out, err.count("\n")) == ("", 1)


def test_settings_made_by_hand_are_checked_too():
    with pytest.raises(ValueError, match="--batch-size must be at least 1, got 0"):
        Settings(batch_size=0)


def test_help_tells_each_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.parse(Settings, ["--help"])
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    out = " ".join(out.split())
    assert "Try the command line." in out
    assert "where the photos are, 100 % local (default: photos)" in out
    assert "some sizes (default: 1 2)" in out
    assert "--place auto|cpu where to run (default: auto)" in out
    assert "--no-shuffle" in out
    assert "--limit LIMIT at most so many --" in out


HELP = """
import json, runpy, sys
sys.argv = {argv}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    status = end.code
heavy = ["torch", "torchvision", "pandas", "spacy", "nltk", "tensorboard", "numpy", "PIL"]
print(json.dumps([status, [name for name in heavy if name in sys.modules]]))
"""


@pytest.mark.parametrize("script", ["train.py", "predict.py", "evaluate.py"])
@pytest.mark.parametrize(("flag", "status"), [("--help", 0), ("--devise=cpu", 2)])
def test_help_and_typos_are_answered_before_the_slow_imports(script, flag, status):
    done = python(HELP.format(argv=[script, flag]))
    *shown, found = done.stdout.splitlines()
    assert json.loads(found) == [status, []]
    if status:
        assert shown == []
        assert "Did you mean --device?" in done.stderr
    else:
        assert any("--device" in line for line in shown)
        assert done.stderr == ""


# ----------------------------------------------------------------------------------- run


class Wrong(Exception):
    """Something a user can cause."""


def raising(error):
    def job():
        raise error

    return job


def sending(number):
    return lambda: signal.raise_signal(number)


@pytest.mark.parametrize(
    ("job", "status", "err"),
    [
        (lambda: None, 0, ""),
        (lambda: cli.SOME_FAILED, 1, ""),
        (raising(Wrong("no such thing: make one.")), 2, "error: no such thing: make one.\n"),
        (raising(cli.UsageError("leave --x out.")), 2, "error: leave --x out.\n"),
        (lambda: Path("nowhere/a.txt").read_text(), 2, "error: nowhere/a.txt: No such file"),
        (lambda: Path().read_text(), 2, "error: .: Is a directory."),
        (raising(OSError("disk is odd")), 2, "error: disk is odd\n"),
        (raising(OSError(errno.ENOSPC, "No space", "a.pt")), 2, "error: a.pt: the disk is full: "),
        (lambda: torch.empty(10**15), 2, "error: there is not enough memory: give a --batch-size"),
        (raising(KeyboardInterrupt()), 130, ""),
        (sending(signal.SIGINT), 130, ""),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_what_becomes_of_a_job_is_its_exit_status(job, status, err, debug, capsys):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert cli.run(job, Settings(debug=debug), errors=(Wrong,)) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    if status == 2:
        assert ("Traceback" in shown.err) == debug
        assert shown.err.splitlines()[-1].startswith(err.rstrip("\n"))
        assert debug or shown.err.count("\n") == 1
    else:
        assert shown.err == err
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


def test_our_own_mistakes_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 // 0, Settings(), errors=(Wrong,))


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_silences_notes_but_not_errors(quiet, capsys):
    def job():
        logging.getLogger("train").info("epoch 1")
        assert list(cli.progress(range(3), about="reading", unit="picture")) == [0, 1, 2]
        raise Wrong("it broke")

    assert cli.run(job, Settings(quiet=quiet), errors=(Wrong,)) == 2
    shown = capsys.readouterr()  # no terminal: no progress bar
    assert (shown.out, shown.err) == ("", ("" if quiet else "epoch 1\n") + "error: it broke\n")


SCRIPT = """
import os, signal, sys, types
import cli
settings = types.SimpleNamespace(quiet=False, debug=False)
def job():
    try:
        {body}
    finally:
        print("cleaned up", file=sys.stderr, flush=True)
sys.exit(cli.run(job, settings, errors=()))
"""


@pytest.mark.parametrize("call", [["train.py"], ["evaluate.py"], ["predict.py", "--image", "a"]])
def test_ctrl_c_during_the_slow_imports_is_no_traceback(tmp_path, call):
    (tmp_path / "torch.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"
    )
    found = subprocess.run(
        [sys.executable, *call],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("call", [["train.py"], ["evaluate.py"], ["predict.py", "--image", "a"]])
def test_without_its_packages_a_script_says_how_to_get_them(call):
    found = subprocess.run(
        [sys.executable, "-S", *call], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "activate the virtual environment" in found.stderr


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_the_process_quietly_and_cleaned_up(name, status):
    body = f"os.kill(os.getpid(), signal.{name}); print('not reached')"
    done = python(SCRIPT.format(body=body))
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "cleaned up\n")


@pytest.mark.parametrize("flush", [True, False])
def test_a_reader_that_has_gone_is_no_error(flush, monkeypatch):
    """`… | head` ended in a traceback about a broken pipe, or in status 120."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    code = SCRIPT.format(body=f"print('a line', flush={flush})")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"cleaned up\n")


# ------------------------------------------------------------------------- uninterrupted


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_waits_until_the_block_is_done(number, status):
    """A checkpoint must not be cut in half."""
    done = []

    def job():
        with cli.uninterrupted():
            signal.raise_signal(number)
            done.append("block")
        done.append("after")

    with pytest.raises(SystemExit) as caught:
        sys.exit(cli.run(job, Settings(), errors=()))
    assert caught.value.code == status
    assert done == ["block"]


def test_an_undisturbed_block_leaves_the_handlers_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with cli.uninterrupted():
        pass
    with pytest.raises(Wrong), cli.uninterrupted():
        raise Wrong
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


def test_sigterm_held_back_is_not_forgotten_outside_of_run():
    """Python's default handler of SIGTERM is no function: it ends the process all the same."""
    done = python(
        "import cli, os, signal\n"
        "with cli.uninterrupted():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('block', flush=True)\n"
        "print('after', flush=True)"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "block\n")


# -------------------------------------------------------------------------------- device


def test_a_device_that_is_not_there_is_named(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert cli.device("auto") == cli.device("cpu") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(cli.UsageError, match=f"no {name} device: .*--device.*cpu"):
            cli.device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cli.device("auto") == torch.device("cuda")
