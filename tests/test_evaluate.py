import json

import pytest
import torch

import checkpoint
import demo
import evaluate
from loader import load_corpus


def run(trained, tmp_path, *flags):
    common = ["--checkpoint", trained.checkpoints / "best.pt", "--cache", tmp_path / "cache"]
    return evaluate.main([str(flag) for flag in (*common, *flags)])


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_gives_the_very_scores_that_training_logged(trained, tmp_path, capsys):
    assert run(trained, tmp_path, "--split", "val") == 0
    found = last_line(capsys)
    best = checkpoint.load(trained.checkpoints / "best.pt", torch.device("cpu")).scores
    for name in ("CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"):
        assert found[name] == best[name]
    assert found["images"] == len(load_corpus(trained.data).splits["val"])


def test_a_folder_with_only_a_test_split(trained, tmp_path, capsys):
    folder = tmp_path / "others"
    demo.draw(folder, n_scenes=3, size=32, seed=5)
    for path in folder.glob("split_*.txt"):
        path.unlink()
    names = sorted(path.name for path in (folder / "flickr30k_images").iterdir())
    (folder / "split_test.txt").write_text("\n".join(names))
    assert run(trained, tmp_path, "--data", folder, "--split", "test", "--beam-size", 1) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["images"] == 3
    assert "fewer than 50 images" in err
    assert run(trained, tmp_path, "--data", folder, "--split", "val") == 2
    assert "give --split test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "no folder nowhere"),
        (["--checkpoint", "nowhere.pt"], "no checkpoint nowhere.pt"),
    ],
)
def test_bad_input(trained, tmp_path, capsys, flags, message):
    assert run(trained, tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
