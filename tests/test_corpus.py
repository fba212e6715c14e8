import itertools
import json
from pathlib import Path

import pytest

from captions import SPLITS, read_captions
from cli import UserError
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
    assert corpus.n_missing == 1
    assert "1 images missing" in corpus.describe()
    assert "warning: 1 of the" in caplog.text


@pytest.mark.parametrize("copy", ["pictures/pictures", "a/b"])
def test_a_second_copy_of_the_pictures_does_not_count(tmp_path, copy):
    """Kaggle's zip of Flickr30k holds each picture twice; the shallowest is meant."""
    (tmp_path / copy).mkdir(parents=True)
    for i in range(4):
        (tmp_path / copy / f"{i}.jpg").touch()
    corpus = corpus_of(tmp_path, [f"{i}.jpg" for i in range(4)], captions_each=2)
    examples = list(itertools.chain(*corpus.splits.values()))
    assert sorted(e.path for e in examples) == [tmp_path / f"pictures/{i}.jpg" for i in range(4)]
    assert all(len(e.captions) == 2 for e in examples)


def test_pictures_of_the_same_name_in_two_folders_are_told_apart(tmp_path):
    """Both names once got the first of the two pictures."""
    (tmp_path / "captions.csv").write_text("image,caption\ncats/1.jpg,cat\ndogs/1.jpg,dog\n")
    for place in ("photos/cats", "photos/dogs"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.jpg").touch()
    corpus = load_corpus(tmp_path)
    found = {e.captions[0]: e.path.parent.name for s in corpus.splits.values() for e in s}
    assert found == {"cat": "cats", "dog": "dogs"}
    (tmp_path / "photos/dogs/1.jpg").unlink()
    assert load_corpus(tmp_path).n_missing == 1


def test_the_shallowest_picture_is_meant_in_the_current_folder_too(tmp_path, monkeypatch):
    """There a path is the bare name, without a folder before it."""
    monkeypatch.chdir(tmp_path)
    Path("captions.csv").write_text("image,caption\na.jpg,cat\n")
    Path("thumbs").mkdir()
    for place in ("a.jpg", "thumbs/a.jpg"):
        Path(place).touch()
    splits = load_corpus(Path()).splits
    assert [e.path for examples in splits.values() for e in examples] == [Path("a.jpg")]


def test_a_picture_is_found_by_its_last_part_where_that_is_enough(tmp_path):
    (tmp_path / "captions.csv").write_text("image,caption\n/home/else/1.jpg,cat\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").touch()
    assert load_corpus(tmp_path).n_missing == 0


def test_pictures_behind_a_link_to_their_folder_are_found(tmp_path):
    """Who keeps the photos elsewhere links to them."""
    for folder in ("elsewhere", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "elsewhere/a.jpg").touch()
    (tmp_path / "data/pictures").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/captions.token").write_text("a.jpg#0\tx\n")
    assert load_corpus(tmp_path / "data").n_missing == 0


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
    (tmp_path / "split_val.txt").write_bytes(b"0.jpg\r\n\r\n1.jpg \r\nnot here.jpg\r\n")
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


def test_images_in_no_split_are_counted(tmp_path):
    names = [f"{i}.jpg" for i in range(6)]
    corpus_of(tmp_path, names)
    (tmp_path / "captions.token").unlink()
    rows = [f"{name},x,{'train' if name < '4' else 'spare'}" for name in names]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
    assert "4 train, 0 val, 0 test, 2 in no split" in load_corpus(tmp_path).describe()


def test_lists_that_name_nothing_are_logged(tmp_path, caplog):
    """Names without ".jpg" did nothing, and said nothing."""
    (tmp_path / "split_val.txt").write_text("0\n1\n")
    corpus = corpus_of(tmp_path, ["0.jpg", "1.jpg"])
    assert "hash" in corpus.split_source
    assert caplog.text.count("name none of the images, as 0.jpg") == 1


def test_flickr30k_has_its_published_split(tmp_path):
    lists = {s: ROOT / f"flickr30k_images/split_{s}.txt" for s in ("val", "test")}
    published = {split: set(path.read_text().split()) for split, path in lists.items()}
    assert {split: len(names) for split, names in published.items()} == {"val": 1014, "test": 1000}
    assert not published["val"] & published["test"]
    some = {split: set(sorted(names)[:3]) for split, names in published.items()}
    corpus = corpus_of(tmp_path, ["else.jpg", *some["val"], *some["test"]])
    assert names_of(corpus) == {"train": {"else.jpg"}, **some}


def test_a_drawn_data_set_loads_as_flickr30k_does(drawn):
    splits = load_corpus(drawn).splits
    assert [len(splits[split]) for split in SPLITS] == [10, 1, 1]
    assert all(len(e.captions) == 5 for e in itertools.chain(*splits.values()))


def test_the_real_results_csv(real):
    captions = read_captions(real("flickr30k/results.csv"))
    assert (captions.n_repaired, captions.n_skipped) == (1, 0)
    assert captions.of_image["2199200615.jpg"][4] == "A dog runs across the grass ."
    assert {len(five) for five in captions.of_image.values()} == {5}


def test_the_real_flickr8k(real):
    corpus = load_corpus(real("flickr8k"))
    assert [len(corpus.splits[split]) for split in ("train", "val")] == [6000, 1000]
    assert "the lists in" in corpus.split_source


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
        corpus.require_for_training(few=50)
    assert str(caught.value) == reason + remedy
