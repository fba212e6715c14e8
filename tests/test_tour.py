"""The notebook runs as it stands, made small, and was committed with the outputs of a whole run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/tour.ipynb"
SMALL = {"N_SCENES": 60, "EPOCHS": 1}
JUPYTER = """
import sys
from pathlib import Path
from types import SimpleNamespace
def display(data):
    folder = Path({folder!r})
    (folder / f"{{len(list(folder.iterdir()))}}.jpg").write_bytes(data)
sys.modules["IPython.display"] = SimpleNamespace(Image=lambda data: data)
"""  # what the cells use of it: pictures that are shown become files


@pytest.fixture(scope="module")
def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [{**c, "source": "".join(c["source"])} for c in cells if c["cell_type"] == "code"]


@pytest.fixture(scope="module")
def small_run(code_cells, tmp_path_factory):
    """What a small run prints, and the pictures that it shows."""
    code = "\n\n".join(cell["source"] for cell in code_cells)
    for name, value in SMALL.items():
        code, n_found = re.subn(rf"^{name} = \d+", f"{name} = {value}", code, flags=re.M)
        assert n_found == 1
    folder, shown = tmp_path_factory.mktemp("tour"), tmp_path_factory.mktemp("shown")
    there = set(NOTEBOOK.parent.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", JUPYTER.format(folder=str(shown)) + code],
        cwd=NOTEBOOK.parent,
        env={**os.environ, "TMPDIR": str(folder), "TEMP": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning of a library's either
    assert set(NOTEBOOK.parent.iterdir()) == there  # all is written to the temporary folder
    pictures = []
    for number in range(len(list(shown.iterdir()))):
        with Image.open(shown / f"{number}.jpg") as picture:
            pictures.append(picture.convert("RGB"))
    return done.stdout, pictures


def test_a_small_run_writes_captions_and_scores(small_run):
    stdout, _ = small_run
    assert "300 captions of 60 images" in stdout
    assert re.search(r"^pixels +\(4, 3, 64, 64\)", stdout, flags=re.M)
    assert re.search(r"^xe 1/1  loss \d", stdout, flags=re.M)
    captions = re.findall(r"^ *-\d+\.\d+ a word, +-\d+\.\d+ in all  (.+)", stdout, flags=re.M)
    assert len(captions) == 6
    assert len(set(captions)) > 1
    words = re.findall(r"^(\S+) +\d+%   or: ", stdout, flags=re.M)
    assert words[-1] == "(end)"
    assert captions[0].split() == words[:-1]
    assert re.search(r"^CIDEr( +\d+\.\d){3}$", stdout, flags=re.M)
    assert re.search(r"^colour and shape are right in \d of 3 test scenes", stdout, flags=re.M)


def test_a_small_run_shows_pictures_a_map_and_curves(small_run):
    _, pictures = small_run
    assert [picture.width for picture in pictures] == [800, 800, 1096, 900]
    for picture in pictures:
        assert np.asarray(picture).std() > 10, "it is empty"


def test_it_was_committed_after_a_whole_run(code_cells):
    """Whoever changes a cell runs all again: see CONTRIBUTING.md."""
    assert [cell["execution_count"] for cell in code_cells] == [*range(1, len(code_cells) + 1)]
    [training] = [str(c["outputs"]) for c in code_cells if "train.main" in c["source"]]
    assert all(f"xe {epoch}/7  loss" in training for epoch in range(1, 8))
    for cell in code_cells:
        kinds = {output["output_type"] for output in cell["outputs"]}
        assert kinds <= {"stream", "display_data"}
        assert {o["name"] for o in cell["outputs"] if "name" in o} <= {"stdout"}
        is_asked = re.search(r"^ *(print|show|train\.main)\(", cell["source"], flags=re.M)
        assert bool(kinds) == bool(is_asked), cell["source"]


def test_it_is_small_and_names_no_place_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 600_000
    words = re.sub(r'"image/jpeg": ".*?"', "", text)
    assert re.findall(r"(?:/(?:work|tmp|root|home|Users)\b|\b[A-Z]:\\\\).*", words) == []


def test_files_that_it_names_are_there():
    for target in re.findall(r"\]\((?!http)(.+?)\)", NOTEBOOK.read_text(encoding="utf-8")):
        assert (NOTEBOOK.parent / target).exists(), target
