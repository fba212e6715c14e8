"""The manners of the command line, the same for every script.

A script's settings are a dataclass; here its fields become flags, errors become two lines,
signals become exit statuses. Imports nothing heavy, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
import importlib.util
import logging
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, UnionType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    import torch

S = TypeVar("S")
T = TypeVar("T")

DONE, SOME_FAILED, FAILED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class UsageError(Exception):
    """The user asked for something that cannot be; the message says what to do."""


def option(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A field of a settings dataclass: one default, one help line, the values allowed."""
    metadata = {"help": help, "at_least": at_least, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How captions are searched or drawn: the same flags wherever a trained model writes them."""

    beam_size: int | None = option(
        None, "sentences kept while searching, 1 is greedy; left out, as in training", at_least=1
    )
    max_words: int | None = option(None, "longest caption; left out, as in training", at_least=1)
    length_penalty: float | None = option(
        None, "0 favours short captions, above 1 long ones; left out, as in training", at_least=0
    )
    no_repeat: int | None = option(
        None, "words in a row that no caption says twice; left out, as in training", at_least=0
    )
    temperature: float = option(0.0, "above 0: draw captions at random, 1 as believed", at_least=0)
    top_p: float = option(1.0, "draw only from the likeliest words of this share")
    seed: int = option(0, "of captions drawn at random", at_least=0)

    def __post_init__(self) -> None:
        check(self)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p must be above 0 and at most 1, got {self.top_p}")
        if self.top_p < 1 and not self.temperature:
            raise ValueError("--top-p is for captions drawn at random: give --temperature too")


def check(settings: Any) -> None:
    """Check every field against what its ``option`` allows; called by ``__post_init__``.

    Raises:
        ValueError: naming the flag, the value and what is allowed.
    """
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), flag(field.name)
        at_least, below = field.metadata["at_least"], field.metadata["below"]
        choices = field.metadata["choices"]
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


def parse(settings_class: type[S], argv: Sequence[str] | None = None) -> tuple[S, frozenset[str]]:
    """Read the command line: one flag for each field of the dataclass.

    Returns:
        The settings, and the names of the fields that were given as flags.
    """
    parser = _parser(settings_class)
    given = vars(parser.parse_args(argv))
    try:
        return settings_class(**given), frozenset(given)
    except ValueError as error:
        parser.error(str(error))


def answer_at_once(settings_class: type) -> None:
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


def run(
    job: Callable[[], int | None], settings: Any, *, errors: tuple[type[Exception], ...]
) -> int:
    """Do the job and turn what becomes of it into an exit status.

    Args:
        job: returns its exit status, or exits with it; None is 0.
        settings: has ``quiet`` and ``debug``.
        errors: what a user can cause, besides files that cannot be read or written.
    """
    logging.basicConfig(
        format="%(message)s", level=logging.ERROR if settings.quiet else logging.INFO, force=True
    )
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
        return error.code
    except BrokenPipeError:  # the reader of our output has gone, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        is_full = _is_out_of_memory(error)
        if not isinstance(error, (UsageError, OSError, *errors)) and not is_full:
            raise
        if settings.debug:
            traceback.print_exc()
        message = _out_of_memory(settings) if is_full else _message(error)
        print(f"error: {message}", file=sys.stderr)
        return FAILED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def progress(items: Iterable[T], *, about: str, unit: str, total: int | None = None) -> Iterable[T]:
    """The items, with a progress bar on stderr if that is a terminal and not ``--quiet``."""
    from tqdm import tqdm

    quiet = not logging.getLogger().isEnabledFor(logging.INFO)
    return tqdm(
        items, desc=about, unit=unit, total=total, leave=False, disable=quiet or None, smoothing=0.1
    )


def device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``mps`` → a device that is there.

    Raises:
        UsageError: the machine has no such device.
    """
    import torch

    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(candidate for candidate, is_there in there.items() if is_there)
    if not there[name]:
        raise UsageError(f"this machine has no {name} device: leave --device out, or give cpu.")
    return torch.device(name)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is done, so that it is done whole."""
    held: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: held.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line that guess what was meant."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            word = unknown.split()[0].split("=")[0]
            near = difflib.get_close_matches(word, self._option_string_actions, n=1)
            guess = f" Did you mean {near[0]}?" if near else ""
            message = f"unknown argument {word}.{guess}"
        print(f"error: {message} ({self.prog} --help lists all flags)", file=sys.stderr)
        sys.exit(FAILED)


def _parser(settings_class: type) -> _Parser:
    parser = _Parser(
        usage="%(prog)s [--flag value ...]",
        description=settings_class.__doc__,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    types = get_type_hints(settings_class)
    inherited = set(types) - set(settings_class.__annotations__)
    # --help shows a script's own flags before those it shares.
    for field in sorted(dataclasses.fields(settings_class), key=lambda f: f.name in inherited):
        kind, name, default = types[field.name], flag(field.name), field.default
        text = field.metadata["help"].replace("%", "%%")
        if kind is bool:
            action = argparse.BooleanOptionalAction if default else "store_true"
            parser.add_argument(name, action=action, help=text)
            continue
        if isinstance(kind, UnionType):  # "int | None": None is told by leaving the flag out
            kind = get_args(kind)[0]
        many = get_args(kind)[:1] if get_origin(kind) is tuple else ()
        shown = " ".join(map(str, default)) if many else "" if default is None else str(default)
        parser.add_argument(
            name,
            type=many[0] if many else kind,
            nargs="+" if many else None,
            action=_Extend if many else "store",
            metavar="|".join(field.metadata["choices"] or ()) or None,
            help=f"{text} (default: {shown})" if shown else text,
        )
    return parser


class _Extend(argparse.Action):
    """``--image a b --image c``: all of them, as a tuple."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), *values))


def flag(name: str) -> str:
    """The flag of a setting: ``batch_size`` → ``--batch-size``."""
    return "--" + name.replace("_", "-")


def _is_out_of_memory(error: Exception) -> bool:
    """A full GPU has an error of its own in torch, a full main memory only words."""
    kinds = ("MemoryError", "OutOfMemoryError")
    return type(error).__name__ in kinds or "can't allocate memory" in str(error)


def _out_of_memory(settings: Any) -> str:
    batch_size = getattr(settings, "batch_size", None)
    if not batch_size:
        return "there is not enough memory: close other programs, or give a smaller --beam-size."
    return (
        f"there is not enough memory: give a --batch-size below {batch_size:,}, or less of what "
        "else takes it (beam, sizes of model and images)."
    )


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"{place}the disk is full: make room, or name another place, and run it again."
        return f"{place}{error.strerror}. Check that the place exists and can be read and written."
    return str(error)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    sys.exit(TERMINATED)
