"""The house as DESIGN draws it: who imports whom, and commands in the README that work."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORTS = {  # file → the files of ours it may import
    "cli": set(),
    "metrics": set(),
    "resnet": set(),
    "familiarity": set(),
    "neighbours": {"metrics"},
    "tables": {"cli"},
    "columns": {"tables", "cli"},
    "captions": {"columns", "tables", "cli"},
    "files": {"cli"},
    "integrity": {"cli"},
    "pictures": {"cli", "draws"},
    "demo": {"cli"},
    "draws": set(),
    "distributed": {"cli"},
    "model": {"resnet", "draws"},
    "pairing": {"columns", "files", "pictures", "cli"},
    "inputs": {"files", "pictures", "cli"},
    "xmp": set(),
    "sidecars": {"xmp", "files", "pictures", "cli"},
    "sources": {"captions", "columns", "files", "pairing", "pictures", "tables", "cli"},
    "splits": {"columns", "pairing", "tables", "cli"},
    "corpus": {
        *("captions", "columns", "files", "pairing", "pictures", "sources", "splits", "metrics"),
        "cli",
    },
    "search": {"model", "cli", "draws", "neighbours"},
    "languages": {"cli"},
    "loader": {"languages", "model", "corpus", "cli", "distributed", "draws"},
    "features": {"pictures", "corpus", "loader", "model", "cli", "files", "distributed"},
    "learning": {"integrity", "loader", "model", "resnet"},
    "selfcritical": {
        *("learning", "loader", "search", "model", "metrics", "distributed", "draws"),
    },
    "pretrained": {"model", "cli"},
    "checkpoint": {
        *("integrity", "learning", "loader", "search", "model", "resnet", "cli", "files"),
        *("familiarity", "neighbours"),
    },
    "yardsticks": {"metrics", "corpus", "splits", "tables"},
    "report": {"familiarity", "pictures", "cli", "files", "tables", "yardsticks"},
    "compare": {"metrics", "cli"},
    "official": {"yardsticks"},
    "figures": {"report", "pictures", "files", "cli"},
    "logs": {"learning", "loader", "corpus", "model", "metrics", "pictures", "distributed", "cli"},
    "agreement": {
        *("logs", "checkpoint", "features", "learning", "model", "corpus", "files", "cli"),
        "distributed",
    },
    "run": {
        "agreement",
        *("logs", "checkpoint", "features", "learning", "loader", "search", "model", "corpus"),
        *("pretrained", "demo", "metrics", "cli", "familiarity", "distributed", "resnet"),
        "neighbours",
    },
    "captioner": {"checkpoint", "familiarity", "search", "pictures", "cli"},
    "explain": {"captioner", "search", "model", "resnet", "pictures", "files", "cli"},
    "outputs": {"captioner", "report", "pictures", "files", "tables", "cli"},
    "parts": {"inputs", "outputs", "pictures", "distributed", "cli"},
    "job": {"explain", "parts", "captioner", "outputs", "sidecars", "inputs", "pictures", "cli"},
    "predict": {
        *("job", "parts", "captioner", "outputs", "sidecars", "inputs", "checkpoint", "integrity"),
        *("distributed", "explain", "cli"),
    },
    "evaluate": {
        *("checkpoint", "features", "search", "report", "metrics", "corpus", "cli"),
        *("compare", "figures", "official", "yardsticks", "captioner", "explain"),
    },
    "app": {"explain", "captioner", "checkpoint", "demo", "model", "pictures", "cli"},
    "train": {
        *("run", "logs", "checkpoint", "features", "learning", "selfcritical", "loader", "demo"),
        *("pictures", "resnet", "corpus", "cli", "integrity", "distributed"),
        "agreement",
    },
}
DOORS = ("predict", "evaluate", "train", "app")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_every_module_has_its_place():
    assert {path.stem for path in ROOT.glob("*.py")} == set(IMPORTS)


@pytest.mark.parametrize("name", IMPORTS)
def test_imports_point_one_way(name):
    ours = set(imported(ROOT / f"{name}.py")) & set(IMPORTS)
    assert ours <= IMPORTS[name]


@pytest.mark.parametrize("name", IMPORTS)
def test_no_one_imports_a_door(name):
    assert set(imported(ROOT / f"{name}.py")).isdisjoint(DOORS)


def test_it_can_be_read_in_an_evening():
    n_lines = {
        name: len((ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines())
        for name in IMPORTS
    }
    assert sum(n_lines[name] for name in ("model", "loader", "train", "predict")) < 1400
    assert {name for name, n in n_lines.items() if n > 480} == {"demo"}


DIALECT = (
    r"taste|eyes|habits|hanging|seen_as|standardise\b|image_of\b|image_at\b|not_last|SteadyDropout|"
    r"scst_words|no_repeat\b|speak as one|averaging"
)


@pytest.mark.parametrize("name", IMPORTS)
def test_the_fields_words_are_used(name):
    """A reader who knows captioning should meet no word here that he has to learn."""
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    assert re.findall(DIALECT, text) == []


def commands(readme):
    blocks = re.findall(r"```sh\n([^`]*)```|((?:^    [^\n]*\n)+)", readme, flags=re.M)
    lines = [line for block in blocks for part in block for line in part.splitlines()]
    for line in lines:
        found = re.search(r"python (train|predict|evaluate)\.py(.*?)(#.*)?$", line)
        if found:
            yield found[1], shlex.split(found[2])


SCRIPTS = {"train", "predict", "evaluate"}


@pytest.mark.parametrize(
    ("page", "scripts"),
    [
        ("README.md", SCRIPTS),
        ("README.fr.md", SCRIPTS),
        ("docs/captioning.md", {"predict"}),
        ("docs/evaluation.md", {"evaluate"}),
        ("docs/explain.md", {"predict", "train"}),
    ],
)
def test_commands_of_the_readme_parse(page, scripts):
    import cli

    found = list(commands((ROOT / page).read_text(encoding="utf-8")))
    assert {name for name, _ in found} == scripts
    for name, flags in found:
        cli.parse(importlib.import_module(name).Settings, flags)


def anchor(heading):
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("readme", ["README.md", "README.fr.md"])
def test_files_that_the_readme_names_are_there(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)(.+?)\)", text):
        name, _, heading = target.partition("#")
        assert (ROOT / (name or readme)).exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)", (ROOT / (name or readme)).read_text("utf-8"), re.M)
            assert heading in map(anchor, headings), target
    for name in IMPORTS:
        assert f"{name}.py" in text, f"{name}.py is missing from the tree"


def test_both_readmes_have_the_same_commands():
    english, french = (
        set(re.findall(r"python [\w/]+\.py", (ROOT / readme).read_text("utf-8")))
        for readme in ("README.md", "README.fr.md")
    )
    assert {command for command in english if "benchmarks" not in command} <= french


def test_ignored_patterns_are_anchored():
    """`runs` would also ignore a folder or file of that name deep in the sources."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert all(line.lstrip("!").startswith("/") or line == "__pycache__/" for line in lines)
    for pattern in ("/checkpoints/", "/runs/", "/cache/", "/flickr30k_images/*"):
        assert pattern in lines
