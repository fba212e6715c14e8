"""Trainings in several processes, by the real torchrun, and how two of them are compared."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import checkpoint
import demo
from resnet import ResNet

ROOT = Path(checkpoint.__file__).parent
CPU = torch.device("cpu")

# In place of train.py: writes down the loss of every step, and does something at one of them.
# bfloat16, which some processors compute in, would hide every other difference.
DRIVER = """
import json, os, signal, sys
sys.path.insert(0, {root!r})
import torch
torch.cpu.get_capabilities = dict
{precision}
import run, train
check_finite = run.Run.check_finite
rank, restart = int(os.environ.get("RANK", 0)), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
def noted(self, loss, state, optimizer):
    if rank == 0:
        with open({losses!r}, "a") as file:
            file.write(json.dumps([state.stage, state.step, loss]) + "\\n")
    {what}
    return check_finite(self, loss, state, optimizer)
run.Run.check_finite = noted
sys.argv = [part.replace("$RANK", str(rank)) for part in sys.argv]
{before}
sys.exit(train.main())
"""
# The project names float32 in some places, and keeps features in it.
FLOAT64 = """
torch.set_default_dtype(torch.float64)
torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
import resnet
resnet.HAS_FUSED_CONV = False
from model import ImageCaptioningModel as Model
project = Model.project
Model.project = lambda self, features, weight=1.0: project(self, features.double(), weight)
"""


@dataclass(frozen=True)
class Done:
    folder: Path
    status: int
    stderr: str

    def losses(self, stage=None):
        """Of each step."""
        found = {}
        for name, step, loss in map(json.loads, (self.folder / "losses").read_text().splitlines()):
            if stage in (None, name):
                found.setdefault(step, loss)  # at some steps the norm is looked at too
        return np.array([found[step] for step in sorted(found)])

    def last(self):
        """What last.pt holds; as it is, since the project reads no float64."""
        path = self.folder / "checkpoints" / "last.pt"
        return torch.load(path, map_location="cpu", weights_only=True)

    def weights(self):
        last = self.last()
        return {**last["encoder"], **last["decoder"]}

    def steps(self):
        return self.last()["training"]["state"]["step"]


def draw(folder, n_scenes):
    """Scenes of 32 pixels, and a ResNet's random weights to start from."""
    demo.draw(folder, n_scenes=n_scenes, size=32)
    torch.manual_seed(0)
    torch.save(ResNet("resnet18").state_dict(), folder / "weights.pth")
    return folder


def flags_of(source, folder, **changed):
    flags = {
        **{"data": source, "captions": "results.csv", "encoder_weights": source / "weights.pth"},
        **{"checkpoints": folder / "checkpoints", "runs": folder / "runs"},
        **{"cache": f"{source}-cache", "encoder": "resnet18", "image_size": 32, "device": "cpu"},
        **{"embedding_size": 16, "hidden_size": 32, "batch_size": 20, "epochs": 1, **changed},
    }
    return [part for n, v in flags.items() for part in (f"--{n.replace('_', '-')}", str(v))]


def start(
    folder, flags, *, n, what="", before="", torchrun=(), float64=False, nodes=(), prefix=(), **env
):
    """Start a training in so many processes; ``what`` is done in each after every step.

    ``before`` is done at the beginning. "$RANK" in a flag is the process's number. ``nodes`` are
    torchrun's flags of several machines, ``prefix`` what runs a command on one of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    driver = folder / "driver.py"
    precision = FLOAT64 if float64 else ""
    losses = str(folder / "losses")
    driver.write_text(
        DRIVER.format(root=str(ROOT), losses=losses, what=what, before=before, precision=precision)
    )
    launch = []
    if n > 1 or nodes or torchrun:
        where = nodes or ["--standalone"]
        launch = ["-m", "torch.distributed.run", *where, "--nproc-per-node", str(n), *torchrun]
    command = [*prefix, sys.executable, *launch, driver, *flags]
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            cwd=folder, env={**inherited, **env})  # fmt: skip


def stop_after(step, signal_name="SIGTERM", rank=1):
    """What stops a process by itself, once."""
    return (f"os.kill(os.getpid(), signal.{signal_name}) "
            f"if (rank, restart, state.step) == ({rank}, 0, {step}) else None")  # fmt: skip


def do(folder, flags, **options):
    process = start(folder, flags, **options)
    _, stderr = process.communicate(timeout=900)
    return Done(folder, process.returncode, stderr)


def resume(folder, *flags, **options):
    return do(folder, ["--resume", "--checkpoints", str(folder / "checkpoints"), *flags], **options)


def difference(one, other):
    """The largest of a weight's elements relative to its largest element, over all weights."""
    pairs = zip(one.weights().items(), other.weights().values(), strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-9)) for (_, a), b in pairs)


def scores_differ(one, other):
    """By how much the validation scores do, relative to each."""
    ours, theirs = one.last()["scores"], other.last()["scores"]
    return max(abs(ours[name] - value) / max(abs(value), 1e-9) for name, value in theirs.items())
