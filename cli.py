"""What the command lines of all scripts have in common.

A script's settings are a frozen dataclass: here its fields become flags, errors become one line,
signals become exit statuses. Imports nothing heavy, so that ``--help`` answers at once, and no
other file of the project.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
import importlib.util
import io
import logging
import math
import os
import shutil
import signal
import sys
import time
import traceback
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar

if TYPE_CHECKING:
    import torch
    from _typeshed import DataclassInstance
    from tqdm import tqdm

S = TypeVar("S", bound="DataclassInstance")
T = TypeVar("T")

VERSION = "0.8.0"
DEVICES = ("auto", "cpu", "cuda", "mps")
SEEDS = 2**53  # so many: torch takes a few more
DONE, SOME_FAILED, FAILED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
PROGRESS_AFTER, PROGRESS_EVERY = 10.0, 600.0  # seconds: the first line, the longest silence

log = logging.getLogger(__name__)


class UserError(Exception):
    """Something a user can cause and mend; the message says what is wrong and what to do."""


# ------------------------------------------------------------------------------- settings


def option(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    group: str | None = None,
    resume: bool | str = False,
    from_init: bool = False,
    positional: bool = False,
) -> Any:
    """A field of a settings dataclass: one default, one help line, the values allowed.

    ``group`` is the heading in ``--help`` of this option and of those after it. ``resume`` says
    whether ``--resume`` may change it: True, False, or the name of a stage of the training, for as
    long as that has not begun. With ``from_init``, ``--init`` takes it over from the model that
    training starts from. ``positional`` is for a tuple that arguments without a flag add to.
    """
    return dataclasses.field(default=default, metadata=locals())


def flag(name: str) -> str:
    """The flag of a setting: ``batch_size`` → ``--batch-size``."""
    return "--" + name.replace("_", "-")


def check(settings: DataclassInstance) -> None:
    """Check every field against what its ``option`` allows; called by ``__post_init__``.

    Raises:
        ValueError: naming the flag, the value and what is allowed.
    """
    for field in dataclasses.fields(settings):
        value, name, allowed = getattr(settings, field.name), flag(field.name), field.metadata
        at_least, below, choices = (allowed.get(key) for key in ("at_least", "below", "choices"))
        if value is None:
            continue
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name} must be a number, got nan")
        if at_least is not None and value < at_least:
            raise ValueError(f"{name} must be at least {at_least}, got {value}")
        if below is not None and value >= below:
            raise ValueError(f"{name} must be below {below}, got {value}")
        if choices is not None and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class BeamSettings:
    """Beam search, in validation while training and with the trained model."""

    beam_size: int = option(
        10,
        "hypotheses kept while searching, 1 is greedy",
        at_least=1,
        below=100_000,
        group="search",
        resume=True,
    )
    max_words: int = option(20, "longest caption", at_least=1, below=1000, resume=True)
    length_penalty: float = option(
        1.0, "0 favours short captions, above 1 long ones", at_least=0, below=10, resume=True
    )
    no_repeat_ngram_size: int = option(
        3, "words in a row that no caption repeats; 0: any", at_least=0, resume=True
    )
    image_weight: float = option(
        1.2,
        "how much the picture counts; 1: as it did in training",
        at_least=0,
        below=100,
        resume=True,
    )
    neighbour_weight: float = option(
        8.0,
        "how much captions of similar training photos count; 0: not at all",
        at_least=0,
        below=1000,
        resume=True,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class SamplingSettings(BeamSettings):
    """How a trained model writes captions: by beam search, or sampled."""

    # Left out, these are what the model was validated with: see the second result of `parse`.
    AS_IN_TRAINING: ClassVar[frozenset[str]] = frozenset(
        field.name for field in dataclasses.fields(BeamSettings)
    )

    temperature: float = option(
        0.0,
        "above 0: sample --beam-size captions (then 1), best first; 1: as the model weighs them",
        at_least=0,
        below=1000,
        group="search",
    )
    top_p: float = option(1.0, "sample only from the likeliest words of this share")
    seed: int = option(0, "of sampled captions", at_least=0, below=SEEDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.temperature < 1e-3:  # no number could hold a logit divided by much less
            raise ValueError(f"--temperature must be 0 or at least 0.001, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p must be above 0 and at most 1, got {self.top_p}")
        if self.top_p < 1 and not self.temperature:
            raise ValueError("--top-p is for sampled captions: give --temperature too")


def plain(settings: DataclassInstance) -> dict[str, Any]:
    """Settings as a checkpoint holds them: paths as text."""
    return {n: str(v) if isinstance(v, Path) else v for n, v in vars(settings).items()}


def typed(settings_class: type[DataclassInstance], values: Mapping[str, Any]) -> dict[str, Any]:
    """What ``plain`` made, back to what the class takes.

    A setting that is missing gets its default, one that the class does not have is dropped.
    """
    types = typing.get_type_hints(settings_class)
    found = {f.name: values.get(f.name, f.default) for f in dataclasses.fields(settings_class)}
    paths = {n for n, v in found.items() if v is not None and types[n] in (Path, Path | None)}
    return {n: Path(v) if n in paths else v for n, v in found.items()}


# --------------------------------------------------------------------------- command line


def parse(settings_class: type[S], argv: Sequence[str] | None = None) -> tuple[S, frozenset[str]]:
    """Read the command line: one flag for each field of the dataclass.

    Returns:
        The settings, and the names of the fields that were given as flags.
    """
    parser = _parser(settings_class)
    short = getattr(settings_class, "SHORT", {})  # as argparse's own, -0 would make a flag of -1
    argv = [short.get(argument, argument) for argument in (sys.argv[1:] if argv is None else argv)]
    namespace, unknown = parser.parse_known_intermixed_args(argv)  # a.jpg --quiet b.jpg
    if unknown:
        parser.error(_unknown_argument(unknown[0], parser._option_string_actions))
    given = {n: tuple(v) if isinstance(v, list) else v for n, v in vars(namespace).items()}
    try:
        return settings_class(**given), frozenset(given)
    except ValueError as error:
        parser.error(str(error))


def answer_at_once(settings_class: type[DataclassInstance]) -> None:
    """Before a script's slow imports: reply to ``--help`` and typos, and let Ctrl-C end it."""
    parse(settings_class)
    if importlib.util.find_spec("torch") is None:
        print(
            "error: PyTorch is not installed for this Python: activate the virtual environment "
            "(. .venv/bin/activate), or pip install -r requirements.txt.",
            file=sys.stderr,
        )
        sys.exit(FAILED)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # else an import would end in a traceback


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} ({self.prog} --help lists all flags)", file=sys.stderr)
        sys.exit(FAILED)


def _parser(settings_class: type[DataclassInstance]) -> _Parser:
    fields = dataclasses.fields(settings_class)
    plain_arguments = "".join(f"[{f.name} ...] " for f in fields if f.metadata["positional"])
    examples = getattr(settings_class, "EXAMPLES", ())
    parser = _Parser(
        usage=f"%(prog)s {plain_arguments}[--flag value ...]",
        description=settings_class.__doc__,
        epilog="\n  ".join(["examples:", *examples]) if examples else None,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 2, 32, 79),
        add_help=False,
    )
    types, own = typing.get_type_hints(settings_class), settings_class.__annotations__
    as_in_training = getattr(settings_class, "AS_IN_TRAINING", ())
    groups: dict[str, argparse._ArgumentGroup] = {}
    heading = "options"
    for field in sorted(fields, key=lambda field: field.name not in own):  # a script's own first
        heading = field.metadata["group"] or heading
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        default = "as in training" if field.name in as_in_training else field.default
        _add_flag(groups[heading], field, types[field.name], default)
    group = parser.add_argument_group("help")
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    text, version = "show the version and exit", f"image-captioning {VERSION}"
    group.add_argument("--version", action="version", version=version, help=text)
    return parser


def _add_flag(
    group: argparse._ArgumentGroup, field: dataclasses.Field[Any], kind: Any, default: Any
) -> None:
    name, text = flag(field.name), field.metadata["help"].replace("%", "%%")
    if kind is bool:
        action = argparse.BooleanOptionalAction if default else "store_true"
        group.add_argument(name, action=action, help=text)
        return
    if isinstance(kind, UnionType):  # "int | None": None is the flag left out
        kind = typing.get_args(kind)[0]
    is_tuple = typing.get_origin(kind) is tuple
    kind = typing.get_args(kind)[0] if is_tuple else kind
    if field.metadata["positional"]:
        hidden = argparse.SUPPRESS  # the flag's line is enough
        group.add_argument(field.name, type=kind, nargs="*", action="extend", help=hidden)
    choices = field.metadata["choices"] or ()
    metavar = field.metadata["metavar"] or "|".join(choices)
    if choices and len(metavar) > 20:
        metavar, text = "NAME", f"{text}: {', '.join(choices)}"
    values = default if isinstance(default, tuple) else () if default in (None, "") else (default,)
    shown = " ".join(map(str, values)).replace("%", "%%")
    group.add_argument(
        name,
        type=kind,
        nargs="+" if is_tuple else None,
        action="extend" if is_tuple else "store",
        metavar=metavar or {int: "N", float: "X", Path: "PATH"}.get(kind, "NAME"),
        help=f"{text} (default: {shown})" if shown else text,
    )


def _unknown_argument(argument: str, flags: Iterable[str]) -> str:
    """What to say of it, with the flags it is near to: by initials, beginning or spelling."""
    word = argument.split("=")[0]
    wanted = word.lstrip("-").replace("_", "-")
    names = [name.removeprefix("--") for name in flags if name.startswith("--")]
    near = [name for name in names if "".join(p[0] for p in name.split("-")) == wanted]
    near = near or [name for name in names if len(wanted) > 2 and name.startswith(wanted)]
    near = near or difflib.get_close_matches(wanted, names, n=1, cutoff=0.8)
    is_guess = word.startswith("-") and 0 < len(near) < 4
    guess = f" Did you mean {' or '.join(f'--{name}' for name in near)}?" if is_guess else ""
    return f"unknown argument {word}.{guess}"


# -------------------------------------------------------------------------------- the run


def run(job: Callable[[], int | None], settings: Any) -> int:
    """Do the job and turn what becomes of it into an exit status.

    Args:
        job: returns its exit status, or exits with it; None is 0. What a user can cause is a
            ``UserError`` or an ``OSError``.
        settings: has ``quiet`` and ``debug``.
    """
    level = logging.ERROR if settings.quiet else logging.INFO
    logging.basicConfig(format="%(message)s", level=level, force=True)
    if isinstance(sys.stdout, io.TextIOWrapper):  # whatever the code page; file names as they are
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata: the picture counts
    interrupts = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    before = {number: signal.signal(number, handler) for number, handler in interrupts.items()}
    try:
        status = job() or DONE
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as error:  # the job's own, or SIGTERM's
        return int(error.code or DONE)
    except BrokenPipeError:  # the reader of our output has gone, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        message = _message(error, settings)
        if message is None:
            raise
        if settings.debug:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return FAILED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _message(error: Exception, settings: Any) -> str | None:
    """What to say of an error that a user can cause; None: the mistake is ours."""
    # CUDA has an error of its own in torch, the main memory and MPS only words.
    is_full = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    if isinstance(error, RuntimeError):
        is_full |= any(s in str(error) for s in ("can't allocate memory", "out of memory"))
    if is_full:
        less = "close other programs, or give a smaller --beam-size."
        if batch_size := getattr(settings, "batch_size", None):
            less = f"give a --batch-size below {batch_size:,}, or less of what else takes it "
            less += "(beam, sizes of model and images)."
        return f"there is not enough memory: {less}"
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"{place}the disk is full: make room, or name another place, and run it again."
        return f"{place}{error.strerror}. Check that the place exists and can be read and written."
    return str(error) if isinstance(error, (UserError, OSError)) else None


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    sys.exit(TERMINATED)


@contextmanager
def finish_before_stopping() -> Iterator[list[int]]:
    """Hold Ctrl-C and SIGTERM back until the block is done; gives those that are held."""
    held: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: held.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield held
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for caught in held:
            signal.raise_signal(caught)


def progress(
    items: Iterable[T], *, about: str, unit: str, total: int | None = None
) -> tqdm[T] | Progress[T]:
    """The items; their progress is shown on stderr unless ``--quiet``, as a bar on a terminal.

    ``unit`` is what an item is called, in the singular; ``total`` how many there are, if ``items``
    does not know. ``set_postfix_str`` of the result adds to what is shown.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not sys.stderr.isatty() or not log.isEnabledFor(logging.INFO):
        return Progress(items, about=about, unit=unit, total=total)
    from tqdm import tqdm

    # A bar of one length: tqdm's own has what the text behind it leaves, in the end nothing.
    n_bar = shutil.get_terminal_size().columns // 6
    numbers = "{n_fmt}/{total_fmt}, {remaining} left, {rate_fmt}{postfix}"
    return tqdm(
        items,
        desc=about,
        unit=unit,
        total=total,
        leave=False,
        smoothing=0.1,
        dynamic_ncols=True,
        bar_format=f"{{l_bar}}{{bar:{n_bar}}}| {numbers}" if total else None,
    )


class Progress(Generic[T]):
    """Items with lines in the log, used as a bar of tqdm's is.

    The first line comes after ten seconds, so that it is seen that something is done; each of the
    next when twice as much time has passed, so that a log of hours stays short.
    """

    def __init__(self, items: Iterable[T], *, about: str, unit: str, total: int | None) -> None:
        self._items, self._about, self._postfix, self._total = items, about, "", total
        self._of_all = f"{'' if total is None else f'/{total:,}'} {unit}s"

    def set_postfix_str(self, text: str) -> None:
        """Say more at the end of the line."""
        self._postfix = f", {text}"

    def __iter__(self) -> Iterator[T]:
        started_at = time.perf_counter()
        due_at = started_at + PROGRESS_AFTER
        for n, item in enumerate(self._items, start=1):
            yield item
            now = time.perf_counter()
            if now > due_at:
                log.info(self._line(n, now - started_at))
                due_at = now + min(now - started_at, PROGRESS_EVERY)

    def _line(self, n: int, seconds: float) -> str:
        rate = n / seconds
        speed = f"{rate:,.1f}/s" if rate >= 1 else f"{1 / rate:,.1f} s each"
        left = (self._total - n) / rate if self._total else 0
        when = f", {span(left)} left" if left >= 1 else ""
        return f"{self._about}  {n:,}{self._of_all}, {speed}{when}{self._postfix}"


def span(seconds: float) -> str:
    """A time as people say it: ``40 s``, ``25 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``mps`` → a device that is there.

    Raises:
        UserError: the machine has no such device.
    """
    import torch

    # Asked only where needed: to ask CUDA makes it start, which `cpu` must not.
    is_there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if name == "auto":
        name = next(candidate for candidate in is_there if is_there[candidate]())
    elif not is_there[name]():
        raise UserError(f"this machine has no {name} device: leave --device out, or give cpu.")
    return torch.device(name)
