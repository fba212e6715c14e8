import json
import re

import pytest

import report
from cli import UserError
from corpus import load_corpus


def write(folder, **files):
    """Write captions files, and a picture of its own content for each image of theirs."""
    for name, text in files.items():
        name = name.replace("__", "/").replace("_csv", ".csv").replace("_jsonl", ".jsonl")
        path = folder / name.replace("_json", ".json").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(path))


def coco(names, **more):
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    notes = [{"image_id": i, "caption": f"a {name}", **more} for i, name in enumerate(names)]
    return json.dumps({"images": images, "annotations": notes})


def found(corpus):
    """Split → the pictures' paths below the data, and their captions."""
    folder = corpus.path if corpus.path.is_dir() else corpus.path.parent
    return {
        split: [(e.path.relative_to(folder).as_posix(), e.captions) for e in examples]
        for split, examples in corpus.splits.items()
    }


def test_a_folder_for_each_split_is_read_as_a_whole(tmp_path):
    """Hugging Face's layout: the test folder alone was read, and trained on."""
    for folder in ("train", "validation", "test"):
        text = json.dumps({"file_name": "0.jpg", "text": f"from {folder}"})
        write(tmp_path, **{f"{folder}__metadata_jsonl": text})
        picture(tmp_path / folder / "0.jpg")
    assert found(load_corpus(tmp_path)) == {
        "train": [("train/0.jpg", ["from train"])],
        "val": [("validation/0.jpg", ["from validation"])],
        "test": [("test/0.jpg", ["from test"])],
    }


def test_files_of_the_same_name_beside_their_pictures_are_read_together(tmp_path):
    for folder in ("cats", "dogs"):
        write(tmp_path, **{f"{folder}__captions_csv": f"image,caption\n0.jpg,{folder}\n"})
        picture(tmp_path / folder / "0.jpg")
    captions = [(e.path.parent.name, e.captions) for e in load_corpus(tmp_path).examples]
    assert sorted(captions) == [("cats", ["cats"]), ("dogs", ["dogs"])]


def test_a_file_of_a_split_that_cannot_be_read_is_told(tmp_path, caplog):
    """val.csv was passed over without a word, and a hash made of train.csv the splits."""
    write(tmp_path, train_csv="image,caption\na.jpg,x\n", val_csv="img_fn,cap\nb.jpg,y\n")
    write(tmp_path, test_json='{"a": 1}')
    picture(tmp_path / "a.jpg")
    assert load_corpus(tmp_path).path.name == "train.csv"
    assert caplog.text.count("warning: ") == 1
    assert "val.csv is in no format known here. Its first line" in caplog.text
    write(tmp_path, val_csv="image\na.jpg\n")
    assert found(load_corpus(tmp_path))["val"] == [("a.jpg", ["x"])]
    assert caplog.text.count("warning: ") == 1


def test_files_of_a_family_may_lack_pictures(tmp_path):
    """Where the first was missing, the other captions of its file were left out."""
    for folder in ("cats", "dogs"):
        rows = "".join(f"{i}.jpg,{folder} {i}\n" for i in range(3))
        write(tmp_path, **{f"{folder}__captions_csv": f"image,caption\n{rows}"})
        for i in range(folder == "dogs", 3):
            picture(tmp_path / folder / f"{i}.jpg")
    corpus = load_corpus(tmp_path)
    assert len(corpus.examples) == 5
    assert corpus.missing == ["0.jpg"]


def test_coco_files_that_name_pictures_alike(tmp_path):
    """Validation was shown the training pictures, which are called the same."""
    for split in ("train", "val"):
        write(tmp_path, **{f"annotations__captions_{split}2017_json": coco(["0.jpg"])})
        picture(tmp_path / f"{split}2017" / "0.jpg")
    write(tmp_path, annotations__instances_val2017_json=coco(["0.jpg"]))
    corpus = load_corpus(tmp_path)
    assert [found(corpus)[split][0][0] for split in ("train", "val")] == [
        "train2017/0.jpg",
        "val2017/0.jpg",
    ]
    assert corpus.split_source == "the captions files"


def test_a_file_of_all_and_files_of_parts_give_no_caption_twice(tmp_path):
    for part, names in {"all": "abc", "train": "ab", "val": "c"}.items():
        write(tmp_path, **{f"captions_{part}_json": coco([f"{name}.jpg" for name in names])})
    for name in "abc":
        picture(tmp_path / f"{name}.jpg")
    corpus = load_corpus(tmp_path)
    assert {s: [c for _, c in images] for s, images in found(corpus).items()} == {
        "train": [["a a.jpg"], ["a b.jpg"]],
        "val": [["a c.jpg"]],
        "test": [],
    }
    assert corpus.counts["caption(s) in a second file, taken once"] == 3


@pytest.mark.parametrize(
    "other",
    [
        {"captions_test_json": json.dumps({"images": [{"id": 1, "file_name": "t.jpg"}]})},
        {"captions_val_results_json": json.dumps([{"image_id": 0, "caption": "x"}])},
        {"results_csv": "image,rank,caption,log_prob\na.jpg,1,x,-1\n"},
        {"instances_val2017_json": coco(["a.jpg"]).replace("caption", "bbox")},
        {"notes_txt": "hello"},
        {".ipynb_checkpoints__captions-checkpoint_csv": "image,caption\na.jpg,x\n"},
        {"config_json": '{"a": 1}'},
    ],
)
def test_what_is_no_captions_of_people_is_passed_over(tmp_path, other):
    write(tmp_path, captions_train_json=coco(["a.jpg"]), **other)
    picture(tmp_path / "a.jpg")
    corpus = load_corpus(tmp_path)
    assert corpus.path == tmp_path / "captions_train.json"
    assert [e.captions for e in corpus.examples] == [["a a.jpg"]]


def test_a_models_captions_are_used_only_when_named(tmp_path):
    """Beside people's they were the references: the model was scored against itself."""
    write(tmp_path, own_jsonl='{"image": "a.jpg", "rank": 1, "caption": "x", "log_prob": -4.9}\n')
    picture(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"no captions but a model's, in own.jsonl.*--captions"):
        load_corpus(tmp_path)
    assert load_corpus(tmp_path, "own.jsonl").is_predicted
    write(tmp_path, people_csv="image,caption\na.jpg,a cat\n")
    corpus = load_corpus(tmp_path)
    assert not corpus.is_predicted
    assert "own.jsonl passed over: a model's captions" in corpus.describe()


@pytest.mark.parametrize("name", ["report.csv", "report.json"])
def test_a_report_is_no_captions_of_people(tmp_path, name):
    """evaluate.py took its own report, in the data's folder, for the references: BLEU 100."""
    rows = [report.Row("a.jpg", "a model's", -4.9, {"BLEU-1": 20.0}, ["a cat", "it sits"])]
    report.write(tmp_path / name, report.Evaluation({}, {}, {}, [], rows, []))
    picture(tmp_path / "a.jpg")
    write(tmp_path, annotations__captions_csv="image,caption\na.jpg,a cat\n")
    corpus = load_corpus(tmp_path)
    assert [e.captions for e in corpus.examples] == [["a cat"]]
    assert f"{name} passed over: a model's captions" in corpus.describe()
    (tmp_path / "annotations/captions.csv").unlink()
    write(tmp_path, a_txt="it sits\n")  # nor does it go before texts beside the pictures
    assert [e.captions for e in load_corpus(tmp_path).examples] == [["it sits"]]


def test_of_several_files_the_one_with_splits_is_taken_and_the_other_is_told(tmp_path):
    rows = [{"filename": "a.jpg", "split": "test", "sentences": [{"raw": "x"}]}]
    write(tmp_path, captions_txt="image,caption\na.jpg,y\n", k_json=json.dumps({"images": rows}))
    picture(tmp_path / "a.jpg")
    corpus = load_corpus(tmp_path)
    assert found(corpus)["test"] == [("a.jpg", ["x"])]
    assert "captions.txt passed over for k.json: choose with --captions" in corpus.describe()


def test_several_files_that_are_equally_likely_have_to_be_chosen_from(tmp_path):
    """The second was left out without a word."""
    for name in ("captions_en_csv", "captions_fr_csv"):
        write(tmp_path, **{name: "image,caption\na.jpg,x\n"})
    picture(tmp_path / "a.jpg")
    words = "captions_en.csv, captions_fr.csv. Choose one with --captions"
    with pytest.raises(UserError, match=re.escape(words)):
        load_corpus(tmp_path)
    assert load_corpus(tmp_path, "captions_fr.csv").path.name == "captions_fr.csv"
    assert load_corpus(tmp_path / "captions_fr.csv").path.name == "captions_fr.csv"
    write(tmp_path, captions_txt="image,caption\na.jpg,x\n")
    assert load_corpus(tmp_path).path.name == "captions.txt"  # well known: no need to choose


def test_captions_in_the_folder_go_before_those_below_and_those_with_pictures_before_all(tmp_path):
    write(tmp_path, results_csv="a.jpg| 0| x\n", below__results_csv="b.jpg| 0| x\n")
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.jpg")
    assert load_corpus(tmp_path).path == tmp_path / "results.csv"
    (tmp_path / "a.jpg").unlink()
    assert load_corpus(tmp_path).path == tmp_path / "below/results.csv"


def test_texts_beside_the_pictures(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / split / "a.jpg")
        write(tmp_path, **{f"{split}__a_txt": f"a cat in {split}\n\nit sits\n"})
    assert found(load_corpus(tmp_path))["train"] == [("train/a.jpg", ["a cat in train", "it sits"])]
    (tmp_path / "val/a.txt").rename(tmp_path / "val/a.caption")
    corpus = load_corpus(tmp_path)
    assert found(corpus)["val"] == [("val/a.jpg", ["a cat in val", "it sits"])]
    assert "captions are the texts beside the pictures" in corpus.describe()
    write(tmp_path, train__a_json='{"caption": "a cat in train", "width": 5}')  # img2dataset's
    write(tmp_path, train__a_txt="a cat in train\nit &amp; sits\nit & sits\n")
    captions = ["a cat in train", "it & sits"]
    assert found(load_corpus(tmp_path))["train"] == [("train/a.jpg", captions)]
    write(tmp_path, captions_csv="image,caption\ntrain/a.jpg,x\nval/a.jpg,y\n")
    assert "2 text(s) beside a picture passed over" in load_corpus(tmp_path).describe()


@pytest.mark.parametrize("name", ["captions_txt", "captions_json"])
def test_a_captions_file_beside_a_plot_of_its_name(tmp_path, name):
    """The table was taken for the captions of that plot."""
    rows = {"a.jpg": "a cat", "b.jpg": "a dog"}
    table = "\n".join(["image,caption", *map(",".join, rows.items())])
    write(tmp_path, **{name: json.dumps(rows) if "json" in name else table})
    for path in ("captions.png", "Images/a.jpg", "Images/b.jpg"):
        picture(tmp_path / path)
    assert sorted(e.captions for e in load_corpus(tmp_path).examples) == [["a cat"], ["a dog"]]


def test_few_texts_beside_the_pictures_are_still_taken(tmp_path):
    write(tmp_path, a_txt="a cat, and a dog\n")
    for name in "abc":
        picture(tmp_path / f"{name}.jpg")
    corpus = load_corpus(tmp_path)
    assert [(e.name, e.captions) for e in corpus.examples] == [("a.jpg", ["a cat, and a dog"])]


def test_texts_beside_pictures_go_before_a_file_of_none_of_them(tmp_path):
    """What img2dataset writes: its table names URLs, and nothing was found."""
    write(tmp_path, **{"00000_csv": "url,caption,key\nhttp://x/a.jpg?w=1,x,000000\n"})
    write(tmp_path, **{"00000__000000_txt": "a cat\n"})
    picture(tmp_path / "00000/000000.jpg")
    corpus = load_corpus(tmp_path)
    assert [e.captions for e in corpus.examples] == [["a cat"]]
    assert "00000.csv passed over: none of its images is here" in corpus.describe()


def test_numbers_beside_the_pictures_are_no_captions(tmp_path):
    """The boxes of an object detector were learned as words."""
    picture(tmp_path / "a.jpg")
    write(tmp_path, a_txt="2 0.508 0.41 0.2 0.3\n1 0.5 0.5 0.1 1e-3\n")
    with pytest.raises(UserError, match=r"1 text\(s\) of numbers beside a picture"):
        load_corpus(tmp_path)


def test_the_file_at_fault_is_named(tmp_path, caplog):
    write(tmp_path, log_json='{"half": ')
    picture(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"log\.json is no valid JSON"):
        load_corpus(tmp_path)
    write(tmp_path, mine_csv="image,caption\na.jpg,x\n")
    assert load_corpus(tmp_path).path.name == "mine.csv"
    assert "log.json is no valid JSON" in caplog.text  # it may have been meant


def test_looking_for_captions_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*here: .*--data.*--demo"):
        load_corpus(tmp_path / "here")
    write(tmp_path, split_test_txt="a.jpg\n")  # as in flickr30k_images before the data is there
    words = r"no captions file in .*Expected: results.csv .*--data.*--demo"
    with pytest.raises(UserError, match=words):
        load_corpus(tmp_path)
    (tmp_path / "split_test.txt").unlink()
    write(tmp_path, captions_txt="file,words\na.jpg,x\n")
    with pytest.raises(UserError, match=r"no captions file .*captions.txt is in no format known"):
        load_corpus(tmp_path)
    (tmp_path / "captions.txt").rename(tmp_path / "captions.xlsx")
    with pytest.raises(UserError, match=r"captions.xlsx is a spreadsheet: save it as CSV"):
        load_corpus(tmp_path)
    with pytest.raises(UserError, match=r"no captions file .*three.csv: .*--captions"):
        load_corpus(tmp_path, "three.csv")
    write(tmp_path, captions_txt="image,caption\na.jpg,x\n")
    with pytest.raises(UserError, match=r"none of the 1 images of .*captions.txt .*a.jpg.*--data"):
        load_corpus(tmp_path)
    with pytest.raises(UserError, match=r"captions.txt: leave --captions out"):
        load_corpus(tmp_path / "captions.txt", "two.csv")
