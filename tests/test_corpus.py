import itertools
import json
import os
import re
from pathlib import Path

import pytest

from captions import read_captions
from cli import UserError
from columns import SPLITS
from corpus import load_corpus

ROOT = Path(__file__).parents[1]


def corpus_of(folder, names, *, captions_each=1, pictures="pictures"):
    """A data set whose pictures are empty files: nothing here opens them."""
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / pictures / name).touch()
    rows = [f"{name}#{i}\tcaption {i}\n" for name in names for i in range(captions_each)]
    (folder / "captions.token").write_text("".join(rows))
    return load_corpus(folder)


def names_of(corpus):
    return {split: {e.name for e in examples} for split, examples in corpus.splits.items()}


def test_pictures_in_nested_folders_are_found_and_missing_ones_counted(tmp_path, caplog):
    corpus_of(tmp_path, [f"{i}.jpg" for i in range(5)], pictures="flickr30k_images/deeper")
    (tmp_path / "flickr30k_images/deeper/3.jpg").unlink()
    corpus = load_corpus(tmp_path)
    assert set().union(*names_of(corpus).values()) == {"0.jpg", "1.jpg", "2.jpg", "4.jpg"}
    assert corpus.missing == ["3.jpg"]
    assert "1 images missing, as 3.jpg, left out" in corpus.describe()
    assert "warning: 1 of the 5 images" in caplog.text


# ----------------------------------------------------------------------------------- splits


def test_hash_split_is_by_image_stable_and_90_5_5(tmp_path):
    """Splitting caption rows puts nearly every test image into training too."""
    names = [f"{i}.jpg" for i in range(2000)]
    few = names_of(corpus_of(tmp_path / "few", names[::7], captions_each=5))
    many = names_of(corpus_of(tmp_path / "many", names, captions_each=2))
    assert sum(map(len, many.values())) == len(set().union(*many.values())) == 2000
    sizes = [len(many[split]) for split in SPLITS]
    assert sizes == [1814, 88, 98]  # for ever: another hash would train on test images
    assert all(few[split] <= many[split] for split in SPLITS)


def test_lists_beside_the_captions(tmp_path):
    names = [f"{i}.jpg" for i in range(6)]
    corpus_of(tmp_path, names)
    (tmp_path / "split_val.txt").write_bytes(b"0.jpg\r\n\r\n1.jpg \r\n")
    (tmp_path / "Flickr_8k.testImages.txt").write_text("2.jpg")
    corpus = load_corpus(tmp_path)  # without a list for training: all the others
    rest = {"val": {"0.jpg", "1.jpg"}, "test": {"2.jpg"}}
    assert names_of(corpus) == {"train": {"3.jpg", "4.jpg", "5.jpg"}, **rest}
    assert "the lists in" in corpus.describe()
    (tmp_path / "split_train.txt").write_text("4.jpg\n")
    assert names_of(load_corpus(tmp_path)) == {"train": {"4.jpg"}, **rest}
    (tmp_path / "captions.token").unlink()  # what the file itself says goes before the lists
    images = [{"filename": name, "split": "test", "sentences": [{"raw": "x"}]} for name in names]
    (tmp_path / "k.json").write_text(json.dumps({"images": images}))
    assert names_of(load_corpus(tmp_path))["test"] == set(names)


def test_lists_that_call_images_otherwise(tmp_path, caplog):
    """Half of a test list was trained on because of `.JPG`."""
    corpus_of(tmp_path, [f"{i}.jpg" for i in range(9)])
    (tmp_path / "my test images.txt").write_text("0.jpg\n1.JPG\n2\nimages/3.jpg\n")
    assert names_of(load_corpus(tmp_path))["test"] == {"0.jpg", "1.jpg", "2.jpg", "3.jpg"}
    assert "warning" not in caplog.text
    (tmp_path / "split_val.txt").write_text("4.jpg\nnot here.jpg\n")
    assert names_of(load_corpus(tmp_path))["val"] == {"4.jpg"}
    assert "1 of the 2 names in" in caplog.text
    assert "fit no image, as not here.jpg; images are called as 0.jpg" in caplog.text


def test_lists_that_name_nothing_are_told(tmp_path, caplog):
    (tmp_path / "split_val.txt").write_text("x\ny\n")
    (tmp_path / "test notes.txt").write_text("what was tested\n")  # no list at all
    corpus = corpus_of(tmp_path, ["0.jpg", "1.jpg"])
    assert "hash" in corpus.split_source
    assert caplog.text.count("fit no image") == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("test.csv", "image\n0.jpg\n1.jpg\n"),
        ("ImageSets/Main/test.txt", "0\n1\n"),
        ("test.txt", "0.jpg 0\n1.jpg 3\n"),
        ("test.lst", "0.jpg\t-1\t0.5\n1 1\n"),
        ("test.csv", "id,image\n7,0.jpg\n8,1.jpg\n"),
        ("test.csv", "image,label\n0.jpg,0\n1.jpg,dog\n"),
        ("test.csv", "0.jpg,0\n1.jpg,1\n"),
        ("splits.csv", "image,split\n0.jpg,test\n1.jpg,Test\n2.jpg,training\n"),
        ("data split.txt", "file\tset\n0.jpg\ttest\n1.jpg\ttest\n2.jpg\ttrain\n"),
        ("my_splits.json", '{"train": ["2.jpg"], "val": [], "test": ["0.jpg", "1.jpg"]}'),
    ],
)
def test_lists_of_other_forms_and_in_folders_below(tmp_path, name, text):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    corpus = corpus_of(tmp_path, ["0.jpg", "1.jpg", "2.jpg"])
    assert names_of(corpus) == {"train": {"2.jpg"}, "val": set(), "test": {"0.jpg", "1.jpg"}}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("test.txt", "0.jpg dog\n1.jpg cat\n", "2 of the 2 names in .* as 0.jpg dog; images are"),
        ("splits.csv", "picture id;which\n0.jpg;a\n", "no names of images in a form known here"),
        ("splits.csv", "image;which\n0.jpg;a\n", "no names of images in a form known here"),
        ("splits.json", '{"test": [{"image": "0.jpg"}]}', "no names of images in a form known"),
        ("test_log.txt", "\0\1\2\0", "is no text: .* not read"),
    ],
)
def test_lists_that_are_not_understood_are_told(tmp_path, caplog, name, text, words):
    """A hash trained on test images that the user had listed, without a word."""
    (tmp_path / name).write_text(text)
    corpus = corpus_of(tmp_path, ["0.jpg", "1.jpg"])
    assert "hash" in corpus.split_source
    assert re.search(rf"warning: .*{words}", caplog.text)
    assert name in caplog.text


def test_tables_of_a_split_that_hold_captions_are_no_lists(tmp_path, caplog):
    """What predict.py wrote of some pictures does not make these the test images."""
    (tmp_path / "test.csv").write_text("image,rank,caption,log_prob\n0.jpg,1,a dog,-1\n")
    assert "hash" in corpus_of(tmp_path, ["0.jpg", "1.jpg"]).split_source
    assert "warning" not in caplog.text


def test_an_image_in_the_lists_of_two_splits_is_refused(tmp_path):
    corpus_of(tmp_path, ["0.jpg", "1.jpg"])
    (tmp_path / "split_val.txt").write_text("0.jpg\n")
    (tmp_path / "split_test.txt").write_text("0.JPG\n")
    with pytest.raises(UserError, match=r"0\.jpg is in the list of .* and, by .*split_"):
        load_corpus(tmp_path)


def test_images_in_no_split_are_counted(tmp_path):
    names = [f"{i}.jpg" for i in range(6)]
    corpus_of(tmp_path, names)
    (tmp_path / "captions.token").unlink()
    rows = [f"{name},x,{'train' if name < '4' else 'spare'}" for name in names]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
    corpus = load_corpus(tmp_path)
    assert names_of(corpus)["train"] == {"0.jpg", "1.jpg", "2.jpg", "3.jpg"}
    assert "2 image(s) in no split, left out" in corpus.describe()
    rows = [f"{name},x,{'val' if name < '2' else ''}" for name in names]  # none for training
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
    assert names_of(load_corpus(tmp_path))["train"] == {"2.jpg", "3.jpg", "4.jpg", "5.jpg"}


def test_folders_called_train_and_val(tmp_path):
    """One list of captions, and the pictures in a folder for each split."""
    folders = {"train": "Train2014", "val": "validation", "test": "test"}
    rows = []
    for folder in folders.values():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.jpg").touch()
        rows.append(json.dumps({"file_name": f"{folder}/0.jpg", "text": "x"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    corpus = load_corpus(tmp_path)
    assert names_of(corpus) == {split: {f"{folder}/0.jpg"} for split, folder in folders.items()}
    assert corpus.split_source == "the pictures' folders"


def test_a_picture_in_a_folder_of_another_split_is_told(tmp_path, caplog):
    corpus_of(tmp_path, ["0.jpg", "1.jpg"], pictures="train")
    (tmp_path / "captions.token").unlink()
    (tmp_path / "c.csv").write_text("image,caption,split\n0.jpg,x,train\n1.jpg,x,val\n")
    assert names_of(load_corpus(tmp_path))["val"] == {"1.jpg"}
    assert "warning: 1 images of" in caplog.text
    assert "as train/1.jpg, said to be val: the captions file counts" in caplog.text


def test_of_few_images_one_is_for_validation(tmp_path):
    """A hash left none, and training on 45 photos ended in an error."""
    names = [f"{i}.jpg" for i in range(10)]
    splits = names_of(corpus_of(tmp_path, names))
    assert [len(splits[split]) for split in ("train", "val")] == [9, 1]


def test_names_that_are_no_utf_8_have_a_split_too(tmp_path):
    """Texts beside such pictures ended in a traceback."""
    for i in range(3):
        name = os.fsdecode(b"caf\xe9%d" % i)
        try:
            (tmp_path / f"{name}.jpg").write_text(name.encode("utf-8", "replace").decode())
        except OSError:
            pytest.skip("no such names here")
        (tmp_path / f"{name}.txt").write_text("a dog")
    assert len(load_corpus(tmp_path).splits["train"]) == 2


def test_flickr30k_has_its_published_split(tmp_path):
    lists = {s: ROOT / f"flickr30k_images/split_{s}.txt" for s in ("val", "test")}
    published = {split: set(path.read_text().split()) for split, path in lists.items()}
    assert {split: len(names) for split, names in published.items()} == {"val": 1014, "test": 1000}
    assert not published["val"] & published["test"]
    some = {split: set(sorted(names)[:3]) for split, names in published.items()}
    corpus = corpus_of(tmp_path, ["else.jpg", *some["val"], *some["test"]])
    assert names_of(corpus) == {"train": {"else.jpg"}, **some}


# ----------------------------------------------------------------------------------- copies


def test_copies_of_a_test_picture_are_left_out_of_training(tmp_path):
    """Under another name they made a score of what was learned by heart."""
    names = [f"{i}.jpg" for i in range(9)]
    corpus_of(tmp_path, names)
    for i in range(9):  # 0, 3 and 6 are alike
        (tmp_path / f"pictures/{i}.jpg").write_text(f"picture {i if i % 3 else 0}")
    (tmp_path / "split_test.txt").write_text("0.jpg\n1.jpg\n")
    (tmp_path / "split_val.txt").write_text("2.jpg\n")
    corpus = load_corpus(tmp_path)
    assert names_of(corpus) == {
        "train": {"4.jpg", "5.jpg", "7.jpg", "8.jpg"},
        "val": {"2.jpg"},
        "test": {"0.jpg", "1.jpg"},
    }
    assert "2 train image(s) left out: copies of images of another split" in corpus.describe()


def test_a_split_that_is_mostly_copies_is_told(tmp_path, caplog):
    names = [f"{i}.jpg" for i in range(4)]
    corpus_of(tmp_path, names)
    for name in names:
        (tmp_path / f"pictures/{name}").write_text("all alike")
    (tmp_path / "split_val.txt").write_text("0.jpg\n")
    assert len(load_corpus(tmp_path).splits["train"]) == 3
    assert "warning: 3 of the 3 train images of" in caplog.text
    assert "as " + str(tmp_path / "pictures/1.jpg") in caplog.text


def test_a_hash_keeps_copies_together(tmp_path):
    names = [f"{i}.jpg" for i in range(60)]
    corpus_of(tmp_path, names)
    for i, name in enumerate(names):
        (tmp_path / f"pictures/{name}").write_text(f"picture {i // 3}")
    corpus = load_corpus(tmp_path)
    numbers = {
        split: {int(Path(n).stem) // 3 for n in of} for split, of in names_of(corpus).items()
    }
    assert len(corpus.examples) == 60
    assert not any(numbers[a] & numbers[b] for a, b in itertools.combinations(SPLITS, 2))
    assert "40 image(s) with the same picture as another" in corpus.describe()


# --------------------------------------------------------------------------- before training


@pytest.mark.parametrize("with_column", [False, True])
def test_an_empty_split_is_refused_with_what_fills_it(tmp_path, with_column):
    corpus_of(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "captions.token").unlink()
    split = ",train" if with_column else ""
    (tmp_path / "captions.csv").write_text(
        f"image,caption{',split' if with_column else ''}\na.jpg,x{split}\nb.jpg,x{split}\n"
    )
    (tmp_path / "split_train.txt").write_text("a.jpg\nb.jpg\n")
    corpus = load_corpus(tmp_path)
    reason = (
        f"the val split of {tmp_path / 'captions.csv'} is empty (split by {corpus.split_source}): "
        "training needs images to learn from and to validate on. "
    )
    remedy = f"Name more in {tmp_path / 'split_val.txt'}, one a line."
    if with_column:
        remedy = f"Give more of them the split val in {tmp_path / 'captions.csv'}."
    with pytest.raises(UserError) as caught:
        corpus.require_for_training(few=50, max_words=20)
    assert str(caught.value) == reason + remedy


def test_long_captions_and_a_models_are_warned_of(tmp_path, caplog):
    corpus_of(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "split_val.txt").write_text("a.jpg\n")
    row = '{"image": "%s.jpg", "rank": 1, "log_prob": -1, "caption": "' + "word " * 21 + '"}\n'
    (tmp_path / "own.jsonl").write_text(row % "a" + row % "b")
    load_corpus(tmp_path, "own.jsonl").require_for_training(few=1, max_words=20)
    assert "warning: 100 % of the captions are longer than --max-words 20" in caplog.text
    assert "warning: a model wrote the captions of" in caplog.text
    caplog.clear()
    (tmp_path / "zh.csv").write_text(
        f"image,caption\na.jpg,{'狗' * 21}\nb.jpg,{'猫' * 21}\n", "utf-8"
    )
    load_corpus(tmp_path, "zh.csv").require_for_training(few=1, max_words=20)
    assert "warning: 100 % of the captions are longer" in caplog.text
    caplog.clear()
    load_corpus(tmp_path, "captions.token").require_for_training(few=1, max_words=20)
    assert "warning" not in caplog.text


def test_captions_that_look_wrong_are_shown(tmp_path):
    names = [f"{i}.jpg" for i in range(20)]
    corpus_of(tmp_path, names)
    rows = [f"{name},{'a photo' if i < 12 else f'un carrÃ© {i}'}" for i, name in enumerate(names)]
    (tmp_path / "captions.token").unlink()
    (tmp_path / "c.csv").write_text("\n".join(["image,caption", *rows[:19]]), encoding="utf-8")
    text = load_corpus(tmp_path).describe()
    assert "12 captions are the same: 'a photo'" in text
    assert "7 captions seem wrongly decoded, as 'un carrÃ© 12'" in text
    assert "1 picture(s) without a caption" in text


def test_the_message_of_missing_pictures_names_one_that_is_there(tmp_path):
    corpus_of(tmp_path, ["photo_0.jpg"])
    (tmp_path / "captions.token").write_text("d82c07cd-photo_0.jpg#0\tx\n")
    with pytest.raises(UserError, match=r"where pictures are called as pictures/photo_0\.jpg"):
        load_corpus(tmp_path)


def test_the_fingerprint_is_of_names_splits_and_captions(tmp_path):
    """Captions that were edited in between went unseen by --resume."""
    first = corpus_of(tmp_path / "a", ["a.jpg", "b.jpg"]).fingerprint
    assert corpus_of(tmp_path / "b", ["a.jpg", "b.jpg"], pictures="x").fingerprint == first
    assert corpus_of(tmp_path / "b", ["a.jpg", "b.jpg"], captions_each=2).fingerprint != first
    assert corpus_of(tmp_path / "c", ["a.jpg", "c.jpg"]).fingerprint != first


def test_the_summary_is_plain_data(tmp_path):
    corpus = corpus_of(tmp_path, ["a.jpg", "b.jpg"], captions_each=2)
    (tmp_path / "pictures/b.jpg").unlink()
    assert json.loads(json.dumps(load_corpus(tmp_path).summary())) == {
        "captions file": str(tmp_path / "captions.token"),
        "images": 1,
        "captions": 2,
        "captions an image": {"least": 2, "mean": 2.0, "most": 2},
        "words a caption": {"least": 2, "mean": 2.0, "most": 2},
        "splits": {split: len(corpus.splits[split][:1]) for split in SPLITS}
        | {"train": 1, "val": 0, "test": 0},
        "split by": "a hash of each name, 90/5/5",
        "missing": 1,
        "a missing image": "b.jpg",
        "counts": {},
        "notes": [],
    }


# --------------------------------------------------------------------------------- real data


def test_a_drawn_data_set_loads_as_flickr30k_does(drawn):
    splits = load_corpus(drawn).splits
    assert [len(splits[split]) for split in SPLITS] == [10, 1, 1]
    assert all(len(e.captions) == 5 for e in itertools.chain(*splits.values()))


def test_the_real_results_csv(real):
    captions = read_captions(real("flickr30k/results.csv"))
    assert captions.counts == {"malformed row(s) repaired": 1}
    assert captions.of_image["2199200615.jpg"][4] == "A dog runs across the grass ."
    assert {len(five) for five in captions.of_image.values()} == {5}


def test_the_real_flickr8k(real):
    corpus = load_corpus(real("flickr8k"))
    assert [len(corpus.splits[split]) for split in ("train", "val")] == [6000, 1000]
    assert "the lists in" in corpus.split_source
