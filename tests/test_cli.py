import contextlib
import errno
import fcntl
import io
import json
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

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
        ("--xyzzy 3", "unknown argument --xyzzy. (" ),
        ("photo.jpg", "unknown argument photo.jpg. ("),
        ("--quiet -- photo.jpg", "unknown argument "),
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


def shown(settings_class, argument, capsys):
    """What an argument such as `--help` prints."""
    with pytest.raises(SystemExit) as caught:
        cli.parse(settings_class, [argument])
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    return out


def test_help_tells_each_flag_with_its_default(capsys):
    out = " ".join(shown(Settings, "--help", capsys).split())
    assert "usage: " in out
    assert "[--flag value ...] Try the command line." in out
    assert "--data PATH where the photos are, 100 % local (default: photos)" in out
    assert "--sizes N [N ...] some sizes (default: 1 2)" in out
    assert "--dropout X share dropped (default: 0.5)" in out
    assert "--place auto|cpu where to run (default: auto)" in out
    assert "--no-shuffle" in out
    assert "--limit N at most so many --" in out
    assert "examples:" not in out


@dataclass(frozen=True)
class Grouped(cli.SamplingSettings):
    """Try the groups."""

    EXAMPLES: ClassVar[tuple[str, ...]] = ("python try.py a.jpg", "python try.py --n-best 3 b.jpg")

    image: tuple[Path, ...] = option((), "pictures", group="data", positional=True)
    encoder: str = option(
        "resnet18", "the encoder", choices=("resnet18", "resnet34", "resnet50"), group="model"
    )
    weights: str = option("none", "weights of the encoder", metavar="FILE")
    n_best: int = option(1, "captions for each picture", group="search")
    title: str = option("", "of the report", group="data")
    learning_rate_of_the_encoder: float = option(1e-4, "small", group="run")


def test_help_has_groups_a_fixed_width_and_examples(capsys, monkeypatch):
    """Groups in the script's order; one of a base class's joins one of the same name."""
    monkeypatch.setenv("COLUMNS", "200")
    out = shown(Grouped, "--help", capsys)
    assert out.startswith("usage: ")
    assert "[image ...] [--flag value ...]\n" in out
    assert max(map(len, out.splitlines())) in range(70, 80)
    monkeypatch.setenv("COLUMNS", "40")
    assert shown(Grouped, "--help", capsys) == out
    headings = [line for line in out.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["data:", "model:", "search:", "run:", "help:", "examples:"]
    _, data, model, search, run, _, examples = (part.split("\n\n")[0] for part in split(out))
    assert flags(data) == ["--image", "--title"]
    assert flags(model) == ["--encoder", "--weights"]
    beam = ["--beam-size", "--max-words", "--length-penalty", "--no-repeat-ngram-size"]
    weight_and_sampling = [
        "--image-weight",
        "--neighbour-weight",
        "--temperature",
        "--top-p",
        "--seed",
    ]
    assert flags(search) == ["--n-best", *beam, *weight_and_sampling]
    assert flags(run) == ["--learning-rate-of-the-encoder"]
    assert "--encoder NAME" in model
    names = "the encoder: resnet18, resnet34, resnet50 (default: resnet18)"
    assert names in " ".join(model.split())
    assert "--weights FILE" in model
    assert search.count("(default: as in training)") == 6
    assert "(default: 1.0)" in search
    assert examples.splitlines()[1:] == [f"  {line}" for line in Grouped.EXAMPLES]


def split(out):
    """The parts of `--help`: the first before any heading, each other one begins with its own."""
    parts = [""]
    for line in out.splitlines(keepends=True):
        if line.endswith(":\n") and line[0] != " ":
            parts.append("")
        parts[-1] += line
    return parts


def flags(part):
    return [line.split()[0] for line in part.splitlines() if line.startswith("  --")]


def test_a_script_that_trains_shows_the_numbers(capsys):
    @dataclass(frozen=True)
    class Training(cli.BeamSettings):
        """Train."""

        epochs: int = option(8, "times through")

    out = shown(Training, "--help", capsys)
    assert "as in training" not in out
    assert "1 is greedy (default: 10)" in " ".join(out.split())


def test_the_version_is_that_of_the_project(capsys):
    assert shown(Settings, "--version", capsys) == f"image-captioning {cli.VERSION}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (project["name"], project["version"]) == ("image-captioning", cli.VERSION)


@pytest.mark.parametrize("script", ["train.py", "predict.py", "evaluate.py"])
def test_the_help_of_each_script_fits_and_gives_examples(script):
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(len(line) < 80 for line in done.stdout.splitlines())
    *_, examples = split(done.stdout)
    assert examples.startswith("examples:\n")
    assert examples.count(f"python {script}") >= 2
    assert "options:" not in done.stdout  # each flag has a group with a name of its own


@pytest.mark.parametrize(
    ("argv", "images"),
    [
        ("a.jpg", "a.jpg"),
        ("a.jpg b/ --n-best 3", "a.jpg b"),
        ("--n-best 3 a.jpg", "a.jpg"),
        ("a.jpg --n-best 3 b.jpg", "a.jpg b.jpg"),
        ("--image a.jpg --n-best 3 b.jpg", "a.jpg b.jpg"),
        ("--image a.jpg b.jpg", "a.jpg b.jpg"),
        ("--image a.jpg --image b.jpg", "a.jpg b.jpg"),
        ("--n-best 3", ""),
    ],
)
def test_plain_arguments_are_values_of_a_positional_option(argv, images):
    settings, given = cli.parse(Grouped, argv.split())
    assert settings.image == tuple(map(Path, images.split()))
    assert given == ({"image"} if images else set()) | ({"n_best"} if "3" in argv else set())


def test_a_typo_beside_plain_arguments_is_named(capsys):
    with pytest.raises(SystemExit):
        cli.parse(Grouped, ["a.jpg", "--n-bets", "3", "b.jpg"])
    assert "unknown argument --n-bets. Did you mean --n-best?" in capsys.readouterr().err


FLAGS = [
    *("data", "captions", "language", "freq-threshold", "encoder", "encoder-weights"),
    *("image-size", "embedding-size", "hidden-size", "num-layers", "dropout", "epochs"),
    *("batch-size", "learning-rate", "warmup", "weight-decay", "label-smoothing", "clip-norm"),
    *("patience", "finetune-epochs", "finetune-layers", "finetune-learning-rate", "crop"),
    *("encoder-learning-rate", "scst-epochs", "scst-learning-rate", "scst-samples"),
    *("beam-size", "max-words", "length-penalty", "no-repeat-ngram-size", "image-weight"),
    "neighbour-weight",
    *("init", "demo"),
    *("resume", "checkpoints", "runs", "run-name", "cache", "device", "seed", "quiet", "debug"),
    *("output", "overwrite", "sentence", "image", "n-best", "top-p", "help", "version"),
]


@pytest.mark.parametrize(
    ("word", "guess"),
    [
        ("--lr", "--learning-rate"),
        ("--lr=1", "--learning-rate"),
        ("--bs", "--batch-size or --beam-size"),
        ("-i", "--init or --image"),
        ("--epoch", "--epochs"),
        ("--batch_size", "--batch-size"),
        ("--batchsize", "--batch-size"),
        ("--devise", "--device"),
        ("--checkpoint", "--checkpoints"),
        ("--hidden", "--hidden-size"),
        ("--no-repeat", "--no-repeat-ngram-size"),
        ("--drop-out", "--dropout"),
        ("--versoin", "--version"),
        ("--format", ""),  # was --no-repeat
        ("--verbose", ""),
        ("--ver", "--version"),
        ("--gpu", ""),
        ("--gpus", ""),
        ("--workers", ""),
        ("--optimizer", ""),
        ("--no", ""),
        ("--finetune-foo", ""),
        ("-d", ""),  # of --data, --dropout, --demo, --device and --debug
        ("image.jpg", ""),
        ("image", ""),
    ],
)
def test_only_what_is_near_is_guessed(word, guess):
    found = cli._unknown_argument(word, ["-h", *(f"--{name}" for name in FLAGS)])
    wanted = f" Did you mean {guess}?" if guess else ""
    assert found == f"unknown argument {word.removesuffix('=1')}.{wanted}"


# ------------------------------------------------------------------------- shared settings


def test_settings_of_the_search_are_checked():
    assert vars(cli.BeamSettings()) == {
        "beam_size": 10,
        "max_words": 20,
        "length_penalty": 1.0,
        "no_repeat_ngram_size": 3,
        "image_weight": 1.2,
        "neighbour_weight": 8.0,
    }
    assert set(vars(cli.BeamSettings())) == cli.SamplingSettings.AS_IN_TRAINING
    for wrong, message in (
        ({"beam_size": 0}, "--beam-size must be at least 1, got 0"),
        ({"no_repeat_ngram_size": -1}, "--no-repeat-ngram-size must be at least 0, got -1"),
        ({"neighbour_weight": float("inf")}, "--neighbour-weight must be below 1000, got inf"),
        ({"temperature": -1.0}, "--temperature must be at least 0, got -1.0"),
        ({"temperature": 1e-45}, "--temperature must be 0 or at least 0.001, got 1e-45"),
        ({"temperature": float("inf")}, "--temperature must be below 1000, got inf"),
        ({"length_penalty": 40.0}, "--length-penalty must be below 10, got 40.0"),
        ({"beam_size": 10**19}, "--beam-size must be below 100000, got 1"),
        ({"seed": 10**19}, "--seed must be below 9007199254740992, got 1"),
        ({"top_p": 0.0}, "--top-p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 0.9}, "--top-p is for sampled captions: give --temperature too"),
    ):
        with pytest.raises(ValueError, match=message):
            cli.SamplingSettings(**wrong)
    assert cli.SamplingSettings(top_p=0.9, temperature=1.0).top_p == 0.9


def test_a_field_that_is_no_option_is_not_checked():
    """As `search.Search` has one beside the flags."""

    @dataclass(frozen=True)
    class Search(cli.SamplingSettings):
        banned_final_ids: tuple[int, ...] = ()

    assert Search(banned_final_ids=(1,), beam_size=2).banned_final_ids == (1,)


@dataclass(frozen=True)
class Training:
    """What a checkpoint holds."""

    data: Path = option(Path("photos"), "folder")
    init: Path | None = option(None, "start from this model")
    hidden_size: int = option(512, "size", at_least=1)


def test_plain_settings_come_back():
    settings = Training(data=Path("a/b"), init=Path("best.pt"), hidden_size=3)
    held = cli.plain(settings)
    assert (held["data"], held["init"], held["hidden_size"]) == (str(Path("a/b")), "best.pt", 3)
    assert Training(**cli.typed(Training, held)) == settings
    assert Training(**cli.typed(Training, cli.plain(Training()))) == Training()


def test_settings_of_another_version_are_read():
    held = {"hidden_size": 32, "averaging": 0.998}
    found = cli.typed(Training, held)
    assert "averaging" not in found
    assert Training(**found) == Training(hidden_size=32)


# --------------------------------------------------------------------- before the imports


HELP = """
import json, runpy, sys
sys.argv = {argv}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    status = end.code
heavy = ["torch", "torchvision", "pandas", "spacy", "nltk", "tensorboard", "numpy", "PIL"]
heavy += ["tqdm", "filelock"]
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
        (lambda: sys.exit(), 0, ""),
        (lambda: sys.exit(cli.SOME_FAILED), 1, ""),
        (raising(cli.UserError("leave --x out.")), 2, "error: leave --x out.\n"),
        (lambda: Path("nowhere/a.txt").read_text(), 2, "error: nowhere/a.txt: No such file"),
        (lambda: Path().read_text(), 2, "error: .: Is a directory."),
        (raising(OSError("disk is odd")), 2, "error: disk is odd\n"),
        (raising(OSError(errno.ENOSPC, "No space", "a.pt")), 2, "error: a.pt: the disk is full: "),
        (lambda: torch.empty(10**15), 2, "error: there is not enough memory: give a --batch-size"),
        (raising(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")), 2,
         "error: there is not enough memory: give a --batch-size below 100, or less of what else "),
        (raising(torch.OutOfMemoryError()), 2, "error: there is not enough memory: "),
        (raising(KeyboardInterrupt()), 130, ""),
        (sending(signal.SIGINT), 130, ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("debug", [False, True])
def test_what_becomes_of_a_job_is_its_exit_status(job, status, err, debug, capsys):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert cli.run(job, Settings(debug=debug)) == status
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
        cli.run(lambda: 1 // 0, Settings())
    with pytest.raises(RuntimeError, match="shapes"):
        cli.run(raising(RuntimeError("shapes do not match")), Settings())


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_silences_notes_but_not_errors(quiet, capsys):
    def job():
        logging.getLogger("train").info("epoch 1")
        assert list(cli.progress(range(3), about="reading", unit="picture")) == [0, 1, 2]
        raise cli.UserError("it broke")

    assert cli.run(job, Settings(quiet=quiet)) == 2
    shown = capsys.readouterr()  # no terminal: no progress bar
    assert (shown.out, shown.err) == ("", ("" if quiet else "epoch 1\n") + "error: it broke\n")


@pytest.mark.parametrize(
    ("items", "total", "lines"),
    [
        (range(3), None, ["1/3 scenes, 1.0/s, 2 s left", "2/3 scenes, 1.0/s, 1 s left",
                          "3/3 scenes, 1.0/s"]),
        (iter("ab"), 1200, ["1/1,200 scenes, 1.0/s, 20 min left",
                            "2/1,200 scenes, 1.0/s, 20 min left"]),
        (iter("a"), None, ["1 scenes, 1.0/s"]),
        ([], None, []),
    ],
)  # fmt: skip
def test_where_stderr_is_no_terminal_progress_is_lines_in_the_log(
    items, total, lines, monkeypatch, capsys
):
    """Into a file nothing was written for hours."""
    monkeypatch.setattr(cli, "PROGRESS_AFTER", 0.0)
    monkeypatch.setattr(cli, "PROGRESS_EVERY", 0.0)
    monkeypatch.setattr(cli.time, "perf_counter", iter(range(100)).__next__)

    def job():
        bar = cli.progress(items, about="making", unit="scene", total=total)
        for n, _ in enumerate(bar):
            bar.set_postfix_str(f"loss {n}.5")

    assert cli.run(job, Settings()) == 0
    wanted = [f"making  {line}, loss {n}.5" for n, line in enumerate(lines)]
    assert capsys.readouterr().err.splitlines() == wanted
    assert cli.run(job, Settings(quiet=True)) == 0
    assert capsys.readouterr().err == ""


TEN_SECONDS = cli.PROGRESS_AFTER  # before the tests' conftest turns it off


def lines_of_progress(n, seconds_each, monkeypatch, caplog, **options):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(cli, "PROGRESS_AFTER", TEN_SECONDS)
    clock = iter(range(0, 10**6, seconds_each)).__next__
    monkeypatch.setattr(cli.time, "perf_counter", clock)
    for _ in cli.progress(range(n), **options):
        pass
    return caplog.messages


def test_lines_of_progress_come_after_ten_seconds_and_then_at_growing_distances(
    monkeypatch, caplog
):
    """The first came after half a minute: a log file looked as if nothing was done."""
    lines = lines_of_progress(40, 4, monkeypatch, caplog, about="xe 1/8", unit="step")
    assert lines == [
        "xe 1/8  3/40 steps, 4.0 s each, 2 min left",
        "xe 1/8  7/40 steps, 4.0 s each, 2 min left",
        "xe 1/8  15/40 steps, 4.0 s each, 2 min left",
        "xe 1/8  31/40 steps, 4.0 s each, 36 s left",
    ]


def test_lines_of_a_long_job_are_ten_minutes_apart_at_most(monkeypatch, caplog):
    lines = lines_of_progress(240, 60, monkeypatch, caplog, about="xe 1/8", unit="step")
    done = [int(line.split()[2].split("/")[0]) for line in lines]  # in minutes
    assert done == [1, 3, 7, *range(15, 240, 11)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.4, "5 s"), (99, "99 s"), (150, "2 min"), (12600, "3.5 h")]
)
def test_spans_of_time(seconds, text):
    assert cli.span(seconds) == text


def test_on_a_terminal_progress_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def job():
        bar = cli.progress(range(2), about="xe 1/8", unit="step")
        for _ in bar:
            bar.set_postfix_str("loss 2.50")

    assert cli.run(job, Settings()) == 0
    err = capsys.readouterr().err
    assert "xe 1/8:" in err
    assert "loss 2.50" in err
    assert "\n" not in err
    assert cli.run(job, Settings(quiet=True)) == 0
    assert capsys.readouterr().err == ""


DRAWN = """
import logging, time
import cli
logging.basicConfig(level=logging.INFO)
bar = cli.progress(iter(range(5)), about="finetune 1/6", unit="step", total=1450)
for _ in bar:
    time.sleep(0.11)
    bar.set_postfix_str("reward 12.48")
"""


def in_terminal(code, columns):
    """What a script writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    script = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal is one
        while part := os.read(ours, 2**16):
            written += part
    os.close(ours)
    assert script.wait() == 0
    return written.decode()


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_bar_keeps_its_length_whatever_stands_behind_it(columns):
    """At 80 columns loss and speed left it a single character."""
    states = in_terminal(DRAWN, columns).rstrip().split("\r")
    shown = [state for state in states if "|" in state]
    assert {len(state.split("|")[1]) for state in shown} == {columns // 6}
    assert max(map(len, states)) <= columns
    *_, last = shown
    assert "| 5/1450, " in last
    if columns >= 80:
        assert re.search(r", \d\d:\d\d left, .*step/s, reward 12.48$", last)


SCRIPT = """
import os, signal, sys, types
import cli
settings = types.SimpleNamespace(quiet=False, debug=False)
def job():
    try:
        {body}
    finally:
        print("cleaned up", file=sys.stderr, flush=True)
sys.exit(cli.run(job, settings))
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


def test_stdout_is_utf_8_whatever_the_code_page():
    """A caption with an accent, or the name of a file that is no UTF-8, ended in a traceback."""
    body = "print('café \\u2192', os.fsdecode(b'\\xff.jpg'))"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "cp1252:strict", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert done.stderr == b"cleaned up\n"
    assert (done.returncode, done.stdout.rstrip()) == (0, "café → ".encode() + b"\xff.jpg")


def test_a_stdout_of_another_kind_is_left_alone(capsys):
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert cli.run(lambda: print("é"), Settings()) == 0
    assert stdout.getvalue() == "é\n"
    assert cli.run(lambda: print("é"), Settings()) == 0
    assert capsys.readouterr().out == "é\n"


# ------------------------------------------------------------------ finish_before_stopping


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_waits_until_the_block_is_done(number, status):
    """A checkpoint must not be cut in half."""
    done = []

    def job():
        with cli.finish_before_stopping():
            signal.raise_signal(number)
            done.append("block")
        done.append("after")

    with pytest.raises(SystemExit) as caught:
        sys.exit(cli.run(job, Settings()))
    assert caught.value.code == status
    assert done == ["block"]


def test_an_undisturbed_block_leaves_the_handlers_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with cli.finish_before_stopping():
        pass
    with pytest.raises(cli.UserError), cli.finish_before_stopping():
        raise cli.UserError
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


def test_sigterm_held_back_is_not_forgotten_outside_of_run():
    """Python's default handler of SIGTERM is no function: it ends the process all the same."""
    done = python(
        "import cli, os, signal\n"
        "with cli.finish_before_stopping():\n"
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
        with pytest.raises(cli.UserError, match=f"no {name} device: .*--device.*cpu"):
            cli.device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cli.device("auto") == torch.device("cuda")


def test_the_cpu_is_taken_without_a_question_to_cuda(monkeypatch):
    """To ask makes CUDA start, which takes time and memory of a GPU that others use."""
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", raising(AssertionError("asked")))
    assert cli.device("cpu") == torch.device("cpu")
