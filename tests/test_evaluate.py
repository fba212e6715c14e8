import json
import re
import shutil
import subprocess
import sys
import types

import pytest
import torch

import checkpoint
import demo
import evaluate
import official
from corpus import load_corpus


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


def test_a_model_is_never_scored_against_a_models_captions(trained, tmp_path, capsys):
    """What predict.py had written beside the photos was taken for people's words: CIDEr 1000."""
    picture = load_corpus(trained.data).splits["val"][0].path
    row = {"image": picture.name, "rank": 1, "caption": "a cat", "log_prob": -1.0}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/own.jsonl").write_text(json.dumps(row))
    shutil.copy(picture, tmp_path / "data")
    flags = ["--data", tmp_path / "data", "--captions", "own.jsonl", "--split", "train"]
    assert run(trained, tmp_path, *flags) == 2
    assert "a model wrote the captions of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "no folder nowhere"),
        (["--checkpoint", "nowhere.pt"], "no checkpoint nowhere.pt"),
        (["--checkpoint", "tests"], "tests is a folder: name the model in it"),
        (["--top-p", "2"], "--top-p must be above 0"),
        (["--top-p", "0.9"], "give --temperature too"),
        (["--output", "report.pdf"], "must end in .html, .json or .csv"),
        (["--csv-separator", "tab"], "--csv-separator is for --output report.csv"),
        (["--explain", "3", "--output", "a.csv"], "--explain is for --output report.html"),
        (["--figures", __file__], "is a file: name a folder for --figures"),
        (["--compare", "a.json"], "--compare takes two reports, got 1"),
    ],
)
def test_bad_input(trained, tmp_path, capsys, flags, message):
    try:
        status = run(trained, tmp_path, *flags)
    except SystemExit as error:  # argparse's way
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_an_ensemble_of_one_model_is_that_model(trained, tmp_path, capsys):
    best = trained.checkpoints / "best.pt"
    assert run(trained, tmp_path) == 0
    alone = last_line(capsys)
    assert run(trained, tmp_path, "--checkpoint", best) == 0  # beside the one that run() gives
    together = last_line(capsys)
    assert together["checkpoint"] == f"{best} {best}"
    assert together["CIDEr"] == pytest.approx(alone["CIDEr"])


def test_a_picture_that_cannot_be_read_is_told_by_the_exit_status(trained, tmp_path, capsys):
    data = shutil.copytree(trained.data, tmp_path / "data")
    examples = load_corpus(data).splits["val"]
    examples[0].path.write_bytes(b"no picture")
    assert run(trained, tmp_path, "--data", data) == 1
    assert last_line(capsys)["images"] == len(examples) - 1


def test_models_that_can_read_different_pictures_get_the_same_ones(
    trained, tmp_path, capsys, monkeypatch
):
    """One has them in its cache, another must read them anew and finds one gone."""
    load_features, n_calls = evaluate.load_features, 0

    def all_but_the_first(examples, *args, **options):
        nonlocal n_calls
        n_calls += 1
        examples, rows = load_features(examples, *args, **options)
        return (examples[1:], rows[1:]) if n_calls == 2 else (examples, rows)

    monkeypatch.setattr(evaluate, "load_features", all_but_the_first)
    assert run(trained, tmp_path, "--checkpoint", trained.checkpoints / "best.pt") == 1
    two = json.loads(capsys.readouterr().out.splitlines()[-1])
    alone = load_corpus(trained.data).splits["val"]
    assert two["images"] == len(alone) - 1


def test_scores_come_with_the_settings_they_were_written_by(trained, tmp_path, capsys):
    assert run(trained, tmp_path, "--temperature", "0.5", "--seed", "7") == 0
    out = capsys.readouterr().out
    assert "sampled at temperature 0.5" in out
    found = json.loads(out.splitlines()[-1])
    asked = ("temperature", "seed", "top_p", "length_penalty", "no_repeat_ngram_size", "max_words")
    assert [found[name] for name in asked] == [0.5, 7, 1.0, 1.0, 3, 20]


def test_searches_as_the_model_was_validated_but_for_what_is_given(trained, tmp_path, capsys):
    content = torch.load(trained.checkpoints / "best.pt", weights_only=True)
    content["settings"].update(beam_size=2, max_words=5, no_repeat_ngram_size=0)
    torch.save(content, tmp_path / "other.pt")
    common = ["--checkpoint", str(tmp_path / "other.pt"), "--cache", str(tmp_path / "cache")]
    names = ("beam_size", "max_words", "length_penalty", "no_repeat_ngram_size")
    for flags, expected in (
        ([], [2, 5, 1.0, 0]),
        (["--max-words", "9", "--length-penalty", "0.5"], [2, 9, 0.5, 0]),
        (["--beam-size", "3", "--no-repeat-ngram-size", "3"], [3, 5, 1.0, 3]),  # our defaults
    ):
        assert evaluate.main([*common, *flags]) == 0
        found = last_line(capsys)
        assert [found[name] for name in names] == expected
        assert found["mean length, words"] <= expected[1]


def test_tells_what_exposes_a_dull_model(trained, tmp_path, capsys):
    assert run(trained, tmp_path, "--split", "train") == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    for name in ("distinct captions, %", "vocabulary used, %", "copied from training, %"):
        assert 0 <= found[name] <= 100
        assert name in out.splitlines()[-3] or name in out
    assert found["ending on an article or preposition, %"] == 0
    assert 1 <= found["mean length, words"] <= 20
    assert found["people's mean length"] > 3


def test_copied_captions_are_counted(trained, tmp_path, capsys, monkeypatch):
    corpus = load_corpus(trained.data)
    copied = corpus.splits["train"][0].captions[0]
    best = checkpoint.load(trained.checkpoints / "best.pt", torch.device("cpu"))
    ids = best.vocabulary.encode(copied)[1:-1]
    hypothesis = evaluate.Hypothesis(ids, -1.0, -1.0, -1.0)
    monkeypatch.setattr(evaluate, "caption", lambda *_, **__: [[hypothesis]] * 3)
    assert run(trained, tmp_path) == 0
    found = last_line(capsys)
    assert found["copied from training, %"] == 100
    assert found["distinct captions, %"] == pytest.approx(100 / 3)


def test_the_page_holds_pictures_captions_references_and_scores(trained, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert run(trained, tmp_path, "--output", page) == 0
    text = page.read_text(encoding="utf-8")
    examples = load_corpus(trained.data).splits["val"]
    assert text.count("<article") == text.count("What each word saw") == len(examples) < 20
    assert text.count("data:image/jpeg;base64,") == 2 * len(examples)
    assert all(caption in text for example in examples for caption in example.captions)
    assert f"{last_line(capsys)['CIDEr']:.1f}" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text), "a page that needs other files"
    assert run(trained, tmp_path, "--output", page) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(trained, tmp_path, "--output", page, "--overwrite", "--explain", 1) == 0
    assert page.read_text(encoding="utf-8").count("What each word saw") == 1


def test_the_strips_are_of_the_search_that_wrote_the_captions(trained, tmp_path, monkeypatch):
    weights, draw = [], evaluate.explain.draw

    def drawn(captioner, *args):
        weights.append(captioner.search.image_weight)
        return draw(captioner, *args)

    monkeypatch.setattr(evaluate.explain, "draw", drawn)
    flags = ["--output", tmp_path / "report.html", "--explain", 1, "--image-weight", 4]
    assert run(trained, tmp_path, *flags) == 0
    assert weights == [4]


def test_photos_that_were_trained_on_are_said_to_be_among_those_scored(trained, tmp_path, capsys):
    """Lists of the splits that were made after the training: CIDEr 625, without a word."""
    assert run(trained, tmp_path, "--split", "val") == 0
    assert "were trained on" not in capsys.readouterr().err
    shutil.copytree(trained.data, tmp_path / "data")
    corpus = load_corpus(trained.data)
    names = [example.name for example in [*corpus.splits["train"][:5], *corpus.splits["val"][:2]]]
    (tmp_path / "data" / "split_val.txt").write_text("\n".join(names))
    (tmp_path / "data" / "split_train.txt").unlink(missing_ok=True)
    assert run(trained, tmp_path, "--split", "val", "--data", tmp_path / "data") == 0
    assert "warning: 5 of the 7 photos were trained on" in capsys.readouterr().err


def test_json_has_everything_per_image(trained, tmp_path, capsys):
    assert run(trained, tmp_path, "--output", tmp_path / "report.json") == 0
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["summary"] == last_line(capsys)
    mean = sum(image["scores"]["CIDEr"] for image in found["images"]) / len(found["images"])
    assert mean == pytest.approx(found["summary"]["CIDEr"])
    assert set(found["images"][0]) == {"image", "caption", "log_prob", "scores", "references"}


def test_the_official_scorer_missing_or_broken_is_a_message(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert run(trained, tmp_path, "--coco") == 0
    assert "needs Java" in capsys.readouterr().err
    monkeypatch.setattr(official.shutil, "which", lambda _: "java")
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    assert run(trained, tmp_path, "--coco") == 0
    assert "pip install pycocoevalcap" in capsys.readouterr().err


def test_a_failing_java_process_is_a_message(trained, tmp_path, capsys, monkeypatch):
    class Broken:
        def __init__(self, *_):
            raise BrokenPipeError("java died")

    names = {
        "bleu.bleu": "Bleu",
        "cider.cider": "Cider",
        "meteor.meteor": "Meteor",
        "rouge.rouge": "Rouge",
        "tokenizer.ptbtokenizer": "PTBTokenizer",
    }
    monkeypatch.setattr(official.shutil, "which", lambda _: "java")
    for name, scorer in names.items():
        module = types.ModuleType(name)
        setattr(module, scorer, Broken)
        monkeypatch.setitem(sys.modules, f"pycocoevalcap.{name}", module)
        monkeypatch.setitem(
            sys.modules, f"pycocoevalcap.{name.split('.')[0]}", types.ModuleType(name)
        )
    monkeypatch.setitem(sys.modules, "pycocoevalcap", types.ModuleType("pycocoevalcap"))
    assert run(trained, tmp_path, "--coco") == 0
    out, err = capsys.readouterr()
    assert "--coco failed" in err
    assert "java died" in err
    assert "CIDEr" in out


def test_figures_are_drawn_and_never_written_over(trained, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "figures"
    assert run(trained, tmp_path, "--figures", folder) == 0
    assert {path.name for path in folder.iterdir()} == {
        *("curves.png", "curves.svg", "pictures.png", "pictures.svg", "scores.png", "scores.svg")
    }
    (folder / "curves.png").unlink()
    assert run(trained, tmp_path, "--figures", folder) == 2
    assert "curves.svg exists: give --overwrite" in capsys.readouterr().err
    assert not (folder / "curves.png").exists()
    assert run(trained, tmp_path, "--figures", folder, "--overwrite") == 0
    assert (folder / "curves.png").exists()


def test_a_run_that_has_gone_costs_its_curves_alone(trained, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    content = torch.load(trained.checkpoints / "best.pt", weights_only=True)
    content["settings"]["runs"] = str(tmp_path / "gone")
    torch.save(content, tmp_path / "moved.pt")
    flags = ["--cache", tmp_path / "cache", "--figures", tmp_path / "figures"]
    flags = ["--checkpoint", tmp_path / "moved.pt", *flags]
    assert evaluate.main([str(flag) for flag in flags]) == 0
    assert "no curves of" in capsys.readouterr().err
    assert (tmp_path / "figures" / "scores.svg").exists()
    assert not (tmp_path / "figures" / "curves.svg").exists()


def test_two_reports_are_compared(trained, tmp_path, capsys):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert run(trained, tmp_path, "--output", a) == 0
    ours = last_line(capsys)
    assert run(trained, tmp_path, "--output", b, "--beam-size", 1) == 0
    capsys.readouterr()
    assert evaluate.main(["--compare", str(a), str(b)]) == 0
    found = last_line(capsys)
    assert found["CIDEr"]["a"] == ours["CIDEr"]
    assert found["BLEU-4"]["a"] == ours["BLEU-4"]
    assert evaluate.main(["--compare", str(a), str(a)]) == 2
    assert "are the same file" in capsys.readouterr().err
    assert evaluate.main(["--compare", str(a), str(b), "--split", "test"]) == 2
    assert "leave --split out" in capsys.readouterr().err


def test_a_table_of_the_images(trained, tmp_path, capsys):
    flags = ["--output", tmp_path / "report.csv", "--csv-separator", "semicolon"]
    assert run(trained, tmp_path, *flags) == 0
    lines = (tmp_path / "report.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == last_line(capsys)["images"] + 1


def test_yardsticks_are_printed_and_reported(trained, tmp_path, capsys):
    assert run(trained, tmp_path, "--output", tmp_path / "report.json") == 0
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [y["name"] for y in found["yardsticks"]] == ["one sentence", "people"]
    out = capsys.readouterr().out
    assert "ours  one sentence  people" in out
    said = json.loads(out.splitlines()[-1])
    for yardstick in found["yardsticks"]:
        for name, value in yardstick["scores"].items():
            assert said[f"{name} ({yardstick['name']})"] == value


def test_a_reader_that_has_gone_does_not_cost_the_report(trained, tmp_path):
    """`evaluate.py --output report.json | head -3` left no report, with the exit status 0."""
    flags = ["--checkpoint", trained.checkpoints / "best.pt", "--cache", tmp_path / "cache"]
    command = [sys.executable, evaluate.__file__, *flags, "--output", tmp_path / "r.json"]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE) as process:
        process.stdout.close()
    assert process.returncode == 0
    assert (tmp_path / "r.json").exists()


def test_progress_of_search_and_scoring_is_told(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cli.PROGRESS_AFTER", 0)
    monkeypatch.setattr("cli.PROGRESS_EVERY", 0)
    assert run(trained, tmp_path) == 0
    err = capsys.readouterr().err
    assert "captioning  1/" in err
    assert "scoring  1/" in err
