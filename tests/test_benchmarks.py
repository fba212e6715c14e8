"""What the scripts in benchmarks/ share, of which no part of the product takes notice."""

import sys
from pathlib import Path

import pytest
import tiny
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])
    import bench

    return bench


@pytest.mark.parametrize("given", ["folder", "file", "nothing"])
def test_a_data_set_of_each_kind_can_be_measured(bench, trained, tmp_path, given):
    """They read a field that data sets had lost, and no benchmark of speed began."""
    folder = trained.data
    data = {"folder": folder, "file": folder / "results.csv", "nothing": None}[given]
    found = bench.corpus(data, tmp_path, n_images=30, pictures=2 if given == "nothing" else 0)
    assert len(found.splits["train"]) == 30
    assert all(len(example.captions) == 5 for example in found.splits["train"])
    assert found.fingerprint


def test_the_model_that_folders_are_described_with_knows_similar_photos(bench, tmp_path):
    bench.save_model(tmp_path / "best.pt", "resnet18", 64)
    loaded = bench.checkpoint.load(tmp_path / "best.pt", torch.device("cpu"))
    assert loaded.search().neighbour_weight > 0
    features = tiny.features_of(loaded.model, 2)
    near = loaded.neighbours.agreement(loaded.model.project(features).detach(), [[[4, 2]]] * 2)
    assert len(near) == 2
