import contextlib
import io
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one worker a core; before torch is imported

import browser
import pytest

import cli
import demo

N_SCENES = 12


@pytest.fixture(autouse=True)
def _no_lines_of_progress(monkeypatch):
    """However slow the machine is; tests of these lines set a time of their own."""
    monkeypatch.setattr(cli, "PROGRESS_AFTER", math.inf)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A small data set in Flickr30k's layout; tests look at it, and change copies."""
    folder = tmp_path_factory.mktemp("drawn")
    demo.draw(folder, n_scenes=N_SCENES, size=32)
    return folder


@pytest.fixture
def stop_after(monkeypatch):
    """`stop_after(n)`: a context in which Ctrl-C comes once n pictures are in a captions file."""
    import outputs

    write = outputs.CaptionsFile.write

    @contextlib.contextmanager
    def stopping(n):
        n_written = 0

        def stop(self, *args):
            nonlocal n_written
            n_written += 1
            if n_written > n:
                raise KeyboardInterrupt
            write(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(outputs.CaptionsFile, "write", stop)
            yield

    return stopping


@pytest.fixture(scope="session")
def real():
    """`real(name)`: a file or folder of the real data below $CAPTION_DATA; skips without it."""

    def find(name):
        path = Path(os.environ.get("CAPTION_DATA") or "no such folder", name)
        if not path.exists():
            pytest.skip(f"no {name} in the folder $CAPTION_DATA")
        return path

    return find


@dataclass(frozen=True)
class Trained:
    """A small run of train.py that is done, for tests to look at."""

    data: Path
    checkpoints: Path
    runs: Path
    run_name: str
    stdout: str

    def flags(self, folder, **changed):
        """Flags of the same run in another folder, with some changed."""
        flags = {
            "data": self.data,
            "captions": "results.csv",
            "checkpoints": folder / "checkpoints",
            "runs": folder / "runs",
            "cache": folder / "cache",
            "encoder": "resnet18",
            "encoder_weights": "none",
            "image_size": 32,
            "embedding_size": 16,
            "hidden_size": 32,
            "epochs": 2,
            "batch_size": 50,
            "device": "cpu",
            **changed,
        }
        return [part for n, v in flags.items() for part in (f"--{n.replace('_', '-')}", str(v))]

    def tags(self):
        return self._events().Tags()

    def scalars(self, tag):
        return self._events().Scalars(tag)

    def _events(self):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(self.runs / self.run_name)).Reload()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Trains for two epochs of five steps on scenes of 32 pixels: a few seconds."""
    import train

    folder = tmp_path_factory.mktemp("trained")
    demo.draw(folder / "data", n_scenes=60, size=32)
    run = Trained(folder / "data", folder / "checkpoints", folder / "runs", "a_run", "")
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert train.main([*run.flags(folder), "--run-name", run.run_name]) == 0
    return replace(run, stdout=stdout.getvalue())


@pytest.fixture(scope="session")
def chromium():
    """A browser for the whole run of the tests: it takes seconds to start. CI must have one."""
    if not browser.executable() and not os.environ.get("CI"):
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    playwright, started = browser.start()
    yield started
    started.close()
    playwright.stop()


@pytest.fixture
def open_tab(chromium):
    """`open_tab(url, dark=False, viewport=browser.PHONE)`: a `browser.Tab` that shows it.

    At its end the test fails if an error is left on one of them.
    """
    contexts, tabs = [], []

    def open_(url, *, dark=False, viewport=browser.DESKTOP, **options):
        scheme = "dark" if dark else "light"
        contexts.append(
            chromium.new_context(viewport=viewport, color_scheme=scheme, locale="en", **options)
        )
        tab = browser.Tab(contexts[-1].new_page())
        tabs.append(tab)
        tab.page.set_default_timeout(20_000)
        tab.page.goto(str(url))
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert [error for tab in tabs for error in tab.errors] == []
