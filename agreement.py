"""What the processes of a training have to agree on before it begins, or end together.

See `distributed` for how they train; with one process nothing here does anything.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from socket import gethostname
from typing import Any, TypeVar

import torch

import checkpoint
import cli
import distributed
import logs
from cli import UserError
from corpus import Corpus
from distributed import Gradients
from features import fingerprint
from files import hold
from learning import TrainState
from model import ImageCaptioningModel

T = TypeVar("T")

STEPS_BETWEEN_CHECKS = 8  # for a stop, on a GPU: each makes the host wait

# Settings in which the processes of one run may differ.
OF_A_MACHINE = ("data", "cache", "device", "quiet", "debug")


@contextmanager
def failing_together() -> Iterator[None]:
    """Let an error of one process in the block end all, told once; none may wait for others in it.

    Raises:
        UserError: what went wrong in this process, if it is the first where something did.
    """
    error: Exception | None = None
    try:
        yield
    except (UserError, OSError) as raised:
        error = raised
    has_failed = distributed.everyones(error is not None)
    if error and not any(has_failed[: distributed.rank]):
        if distributed.is_first() or isinstance(error, OSError):
            raise error
        raise UserError(f"process {distributed.rank} on {gethostname()}: {error}") from error
    if any(has_failed):
        raise SystemExit(cli.FAILED)


def require(
    settings: Mapping[str, Any], corpus: Corpus, model: ImageCaptioningModel, state: TrainState
) -> None:
    """End all processes unless they are about to do the same thing.

    Raises:
        UserError: in the first, if settings, data, weights or the project's files differ.
    """
    if distributed.size == 1:
        return
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    facts = {cli.flag(name): value for name, value in settings.items() if name not in OF_A_MACHINE}
    facts |= {"data": corpus.fingerprint[:12], "weights": fingerprint(model), "step": state.step}
    facts |= {"project": code.hexdigest()[:12], "torch": torch.__version__}
    first, *others = distributed.everyones((gethostname(), facts))
    for rank, (host, other) in enumerate(others, start=1):
        for what, value in other.items():
            if value == first[1][what]:
                continue
            if not distributed.is_first():
                raise SystemExit(cli.FAILED)
            raise UserError(
                f"the processes differ in {what}: {value} in number {rank} on {host}, "
                f"{first[1][what]} in the first on {first[0]}. Start all with the same command, "
                "data and version."
            )


def until_stopped(batches: Iterable[T], gradients: Gradients) -> Iterator[T]:
    """The batches; a signal to any process ends all of them after the same step."""
    if distributed.size == 1:
        yield from batches
        return
    every = 1 if gradients.flat.device.type == "cpu" else STEPS_BETWEEN_CHECKS
    with cli.finish_before_stopping() as gradients.caught:
        try:
            for step, batch in enumerate(batches, start=1):
                yield batch
                if step % every == 0 and gradients.extra[2] > 0:
                    gradients.caught[:] = gradients.caught or [signal.SIGTERM]
                    return
        except GeneratorExit:  # the step ended in an error, which goes first
            gradients.caught.clear()
            raise


def held_by_first(folder: Path) -> AbstractContextManager[object]:
    """Keep the folder to this run, of whose processes only the first writes there."""
    return hold(folder) if distributed.is_first() else nullcontext()


def make_folders(settings: Mapping[str, Any], started_at: str) -> str:
    """Make the folders of checkpoints and logs; the name of the run's own, known to the first."""
    runs = Path(settings["runs"])
    for folder in (Path(settings["checkpoints"]), runs):
        folder.mkdir(parents=True, exist_ok=True)
    if settings["run_name"] or not distributed.is_first():
        return str(settings["run_name"])
    return logs.make_folder(runs, started_at)


def is_restarted(folder: Path) -> bool:
    """Whether torchrun has restarted this command (--max-restarts) after it had saved a run here.

    The number of restarts alone does not tell: a process may have been killed before its run had
    saved anything, and what is here is an earlier run's.
    """
    path = folder / "last.pt"
    if not distributed.restarts or not path.is_file():
        return False
    return checkpoint.load(path).training.get("torchrun") == torchrun().get("torchrun")


def torchrun() -> dict[str, str]:
    """What tells one call of torchrun from another, its restarts included; empty without it."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return {"torchrun": run_id} if run_id else {}
