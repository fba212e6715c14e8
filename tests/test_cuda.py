"""The project on a GPU that is none: see fake_cuda.py, which needs a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# A step, or a beam search of 64 images, must not ask more of the device than this.
LIMITS = {
    "xe": {"launches": 140, "waits": 0, "copies": 0},
    "finetune": {"launches": 380, "waits": 0, "copies": 1},
    "scst": {"launches": 1400, "waits": 6, "copies": 4},
    "xe, shared": {"launches": 160, "waits": 0, "copies": 0},
    "finetune, shared": {"launches": 400, "waits": 0, "copies": 1},
    "scst, shared": {"launches": 1200, "waits": 6, "copies": 5},
    "beam": {"launches": 1310, "waits": 8, "copies": 5},  # five a token to keep what has ended
    "float16": {"lstm": 0},  # cuDNN's LSTM under autocast, whose small gradients become 0
}


@pytest.fixture(scope="module")
def figures():
    command = [sys.executable, Path(__file__).with_name("fake_cuda.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_everything_runs_and_on_the_device(figures):
    """A tensor left on the CPU raises; work done elsewhere in silence would ask for little."""
    assert figures["doors"]["launches"] > 2000


@pytest.mark.parametrize("what", LIMITS)
def test_nothing_asks_more_of_the_device_than_before(figures, what):
    for name, limit in LIMITS[what].items():
        assert figures[what][name] <= limit, name
