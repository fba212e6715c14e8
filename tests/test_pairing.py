import json
import os
import unicodedata
from pathlib import Path

import pytest

from cli import UserError
from corpus import load_corpus
from files import files_below
from pairing import copies


def data(folder, names, pictures):
    """A captions file that names these images, and pictures, each of a content of its own."""
    folder.mkdir(exist_ok=True)
    rows = [f'"{name}",caption of {name}' for name in names]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]), encoding="utf-8")
    for name in pictures:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def pairs(folder):
    """The images' names → their pictures' paths below the folder."""
    return {e.name: e.path.relative_to(folder).as_posix() for e in load_corpus(folder).examples}


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("images\\a.jpg", "images/a.jpg"),
        ("a.jpg", "A.JPG"),
        ("a.jpeg", "a.jpg"),
        ("a", "a.jpg"),
        ("photo.1", "photo.1.jpg"),
        ("my%20cat.jpg", "my cat.jpg"),
        (unicodedata.normalize("NFD", "é.jpg"), unicodedata.normalize("NFC", "é.jpg")),
        ("https://pictures.example/x/a.jpg?w=640", "photos/a.jpg"),
        ("C:\\Users\\me\\Images\\a.jpg", "photos/a.jpg"),
        ("/home/else/a.jpg", "photos/a.jpg"),
        ("images/a.jpg", "photos/a.jpg"),
        ("flickr/images/a.jpg", "a.jpg"),
        ("Images/cats/a.JPG", "photos/Cats/a.jpg"),
    ],
)
def test_a_picture_named_otherwise_is_found_and_told(tmp_path, name, picture):
    corpus = load_corpus(data(tmp_path, [name], [picture]))
    assert [e.path for e in corpus.examples] == [tmp_path / picture]
    assert corpus.describe().count("1 image(s) found though named otherwise") == 1


@pytest.mark.parametrize(
    ("names", "pictures"),
    [
        (["cats/0.jpg"], ["dogs/0.jpg"]),
        (["cats/0.jpg"], ["0.jpg/cats"]),
        (["train/0.jpg"], ["val/0.jpg"]),
        (["cats/0.jpg", "dogs/0.jpg"], ["photos/0.jpg"]),
        (["http://x.org/cat/0.jpg", "http://x.org/dog/0.jpg"], ["0.jpg"]),
        (["http://[x/1.jpg", "x" * 300 + "/1.jpg"], ["1.jpg/x"]),
        (["a.jpg"], ["a.png"]),
        (["a"], ["a.npy"]),
        (["../secret.png"], ["secret.png/x"]),
    ],
)
def test_a_picture_that_may_be_another_is_not_taken(tmp_path, names, pictures):
    """The cats' captions went with the dogs' pictures."""
    (tmp_path / "secret.png").write_text("secret")
    with pytest.raises(UserError, match="none of the"):
        load_corpus(data(tmp_path / "data", names, pictures))


def test_names_that_lead_out_of_the_folder_are_not_followed(tmp_path):
    (tmp_path / "secret.png").write_text("secret")
    names = ["../secret.png", str(tmp_path / "secret.png"), "a.png", "x/../../secret.png"]
    folder = data(tmp_path / "data", names, ["a.png"])
    assert pairs(folder) == {"a.png": "a.png"}
    (tmp_path / "lists").mkdir()  # but a captions file elsewhere may name what lies beside it
    (tmp_path / "lists/b.png").write_text("b")
    (tmp_path / "lists/captions.csv").write_text("image,caption\nb.png,x\na.png,y\n")
    corpus = load_corpus(folder, "../lists/captions.csv")
    assert [e.path.name for e in corpus.examples] == ["b.png", "a.png"]


def test_absolute_names_of_this_machine(tmp_path):
    folder = data(tmp_path / "data", [str(tmp_path / "data/x/a.png")], ["x/a.png", "y/a.png"])
    assert list(pairs(folder).values()) == ["x/a.png"]


def test_absolute_names_of_another_machine_keep_their_folders(tmp_path):
    names = ["/home/else/cats/0.jpg", "/home/else/dogs/0.jpg"]
    folder = data(tmp_path, names, ["photos/dogs/0.jpg", "photos/cats/0.jpg"])
    assert pairs(folder) == {name: f"photos/{name.removeprefix('/home/else/')}" for name in names}


def test_pictures_of_the_same_name_in_two_folders_are_told_apart(tmp_path):
    """Both names once got the first of the two pictures."""
    pictures = ["photos/cats/1.jpg", "photos/dogs/1.jpg"]
    folder = data(tmp_path, ["cats/1.jpg", "dogs/1.jpg"], pictures)
    assert sorted(pairs(folder).values()) == pictures
    (folder / pictures[1]).unlink()
    assert load_corpus(folder).missing == ["dogs/1.jpg"]


def test_of_different_pictures_that_fit_the_user_has_to_choose(tmp_path):
    """The first of the alphabet was taken."""
    folder = data(tmp_path, ["1.jpg"], ["cats/1.jpg", "dogs/1.jpg"])
    with pytest.raises(UserError, match=r"1\.jpg may be cats/1\.jpg or dogs/1\.jpg"):
        load_corpus(folder)
    (folder / "dogs/1.jpg").write_text("cats/1.jpg")  # copies of each other
    assert pairs(folder) == {"1.jpg": "cats/1.jpg"}


def captions_of(folder, *rows, name="captions.csv"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(["image,caption", *rows]), encoding="utf-8")


def said(folder):
    """The pictures' paths below the folder → their captions."""
    return {e.path.relative_to(folder).as_posix(): e.captions for e in load_corpus(folder).examples}


def test_a_missing_picture_is_not_its_namesake_in_another_folder(tmp_path):
    """Where b/5.jpg was deleted its caption went to a/5.jpg, without a word."""
    data(tmp_path, [], [f"{folder}/{i}.jpg" for folder in "ab" for i in range(8)])
    (tmp_path / "captions.csv").unlink()
    captions_of(tmp_path / "b", *(f"{i}.jpg,b{i}" for i in range(8)))
    wanted = {f"b/{i}.jpg": [f"b{i}"] for i in range(8)}
    (tmp_path / "b/5.jpg").unlink()
    del wanted["b/5.jpg"]
    assert said(tmp_path) == wanted  # though nobody names a/5.jpg
    captions_of(tmp_path / "a", *(f"{i}.jpg,a{i}" for i in range(8)))
    assert said(tmp_path) == wanted | {f"a/{i}.jpg": [f"a{i}"] for i in range(8)}


@pytest.mark.parametrize("layout", ["annotations/captions_{}2017.csv", "{}/metadata.csv"])
def test_a_missing_picture_of_a_split_is_not_its_namesake_in_another(tmp_path, layout):
    """The validation caption went to the training picture, or the whole was refused."""
    is_coco = layout.startswith("annotations")
    train, val = ("train2017", "val2017") if is_coco else ("train", "val")
    data(tmp_path, [], [f"{train}/1.jpg", f"{train}/5.jpg", f"{val}/1.jpg"])
    (tmp_path / "captions.csv").unlink()
    for split in ("train", "val"):
        captions_of(tmp_path, f"1.jpg,{split} 1", f"5.jpg,{split} 5", name=layout.format(split))
    assert said(tmp_path) == {
        f"{train}/1.jpg": ["train 1"],
        f"{train}/5.jpg": ["train 5"],
        f"{val}/1.jpg": ["val 1"],
    }
    assert load_corpus(tmp_path).missing == ["5.jpg"]
    (tmp_path / val / "1.jpg").unlink()
    if is_coco:  # a split of one's own of the training pictures
        (tmp_path / "train2017/1.jpg").rename(tmp_path / "train2017/2.jpg")
        captions_of(tmp_path, "5.jpg,x", name=layout.format("train"))
        captions_of(tmp_path, "2.jpg,y", name=layout.format("val"))
        assert said(tmp_path) == {"train2017/5.jpg": ["x"], "train2017/2.jpg": ["y"]}
    else:
        assert load_corpus(tmp_path).missing == ["1.jpg", "5.jpg"]


@pytest.mark.parametrize("name", ["val2014/1.jpg", "COCO_val2014_1.jpg"])
def test_a_split_may_have_pictures_whose_name_speaks_of_another(tmp_path, name):
    """Karpathy's training images of COCO lie in val2014 too."""
    picture = f"images/val2014/{name.rpartition('/')[-1]}"
    data(tmp_path, [], ["images/train2014/0.jpg", picture])
    (tmp_path / "captions.csv").unlink()
    captions_of(tmp_path, "0.jpg,x", f"{name},y", name="coco_train.csv")
    captions_of(tmp_path, f"{name},z", name="coco_val.csv")
    with pytest.raises(UserError, match=r"1\.jpg is in two splits, train by .* val by"):
        load_corpus(tmp_path)  # so both have found it
    captions_of(tmp_path, "0.jpg,x", name="coco_val.csv")
    captions_of(tmp_path, f"{name},y", name="coco_train.csv")
    assert said(tmp_path) == {picture: ["y"], "images/train2014/0.jpg": ["x"]}


def test_a_deeper_picture_of_the_same_name_is_told(tmp_path, caplog):
    """That the two differ went without a word."""
    folder = data(tmp_path, ["0.jpg", "1.jpg"], [])
    data(tmp_path / "x", [], ["0.jpg", "1.jpg", "small/0.jpg"])
    (tmp_path / "x/captions.csv").unlink()
    assert pairs(folder) == {"0.jpg": "x/0.jpg", "1.jpg": "x/1.jpg"}
    assert "warning" not in caplog.text
    for i in range(2):
        (tmp_path / "y/z").mkdir(exist_ok=True, parents=True)
        (tmp_path / f"y/z/{i}.jpg").write_text("else")
    assert pairs(folder) == {"0.jpg": "x/0.jpg", "1.jpg": "x/1.jpg"}
    told = "warning: 0.jpg is taken for x/0.jpg, and y/z/0.jpg is another picture: write the fold"
    assert caplog.text.count(told) == caplog.text.count("warning") == 1


@pytest.mark.parametrize("start", ["/home/x/cats/", "C:\\Users\\me\\cats\\", "/images/x/cats/"])
def test_absolute_names_of_one_folder_keep_it(tmp_path, start):
    """It was dropped as what all of them share, and cats' captions went with the dogs."""
    names = [f"{start}{i}.jpg" for i in range(3)]
    folder = data(tmp_path, names, [f"dogs/{i}.jpg" for i in range(3)])
    with pytest.raises(UserError, match="none of the 3 images"):
        load_corpus(folder)
    data(tmp_path, names, [f"photos/cats/{i}.jpg" for i in range(3)])
    assert set(pairs(folder).values()) == {f"photos/cats/{i}.jpg" for i in range(3)}


@pytest.mark.parametrize(
    ("names", "picture", "found"),
    [
        (["0.jpg", "cats/0.jpg"], "0.jpg", ["0.jpg"]),
        (["0.jpg", "0.jpeg"], "0.jpg", ["0.jpg"]),
        (["/home/x/0.jpg", "0.jpg"], "0.jpg", ["0.jpg"]),
        (["img_0.jpg", "IMG_0.jpeg", "a.jpg"], "IMG_0.JPG", []),
        ([f"https://h/photo.jpg?id={i}" for i in range(4)] + ["a.jpg"], "photo.jpg", []),
    ],
)
def test_a_picture_has_one_owner(tmp_path, names, picture, found):
    """Captions of different images were put together under one picture."""
    corpus = load_corpus(data(tmp_path, [*names, "a.jpg"], [picture, "a.jpg"]))
    assert [e.name for e in corpus.examples if e.name != "a.jpg"] == found
    assert set(corpus.missing) == {*names} - {*found, "a.jpg"}


def test_one_picture_under_two_spellings_is_one_image(tmp_path):
    corpus = load_corpus(data(tmp_path, ["a.jpg", "./images/a.jpg", "A.jpg"], ["images/a.jpg"]))
    captions = ["caption of a.jpg", "caption of ./images/a.jpg", "caption of A.jpg"]
    assert [e.captions for e in corpus.examples] == [captions]
    assert corpus.counts["image(s) under a second name, taken as one"] == 2


@pytest.mark.parametrize("copy", ["pictures/pictures", "a/b"])
def test_a_second_copy_of_the_pictures_does_not_count(tmp_path, copy):
    """Kaggle's zip of Flickr30k holds each picture twice; the shallowest is meant."""
    names = [f"{i}.jpg" for i in range(4)]
    places = ("pictures", copy)
    folder = data(tmp_path, names, [f"{place}/{name}" for place in places for name in names])
    assert sorted(pairs(folder).values()) == [f"pictures/{name}" for name in names]


def test_the_shallowest_picture_is_meant_in_the_current_folder_too(tmp_path, monkeypatch):
    """There a path is the bare name, without a folder before it."""
    data(tmp_path, ["a.jpg"], ["thumbs/a.jpg", "a.jpg"])
    monkeypatch.chdir(tmp_path)
    assert [e.path for e in load_corpus(Path()).examples] == [Path("a.jpg")]


def test_links_are_followed_but_not_for_ever(tmp_path):
    """Who keeps the photos elsewhere links to them."""
    folder = data(tmp_path / "data", ["a.jpg"], [])
    data(tmp_path / "elsewhere", [], ["a.jpg"])
    (folder / "pictures").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    os.mkfifo(folder / "pipe.txt")
    assert pairs(folder) == {"a.jpg": "pictures/a.jpg"}


@pytest.mark.parametrize("link", ["current", "zzz"])
@pytest.mark.parametrize("of", ["v2", "data/v2"])
def test_a_folder_and_a_link_to_it_are_one(tmp_path, link, of):
    """Only the first of the alphabet counted, and names with the other's were not found."""
    folder = data(tmp_path, [f"{of}/a.jpg", f"{link}/b.jpg"], [f"{of}/a.jpg", f"{of}/b.jpg"])
    (folder / link).symlink_to(folder / of)
    assert set(pairs(folder).values()) == {f"{of}/a.jpg", f"{of}/b.jpg"}


def test_hidden_folders_are_passed_over(tmp_path):
    data(tmp_path, [], ["a.jpg", ".git/a.jpg", "@eaDir/a.jpg", "b/.hidden.jpg", "__MACOSX/a.jpg"])
    assert [p.name for p in files_below(tmp_path)] == ["a.jpg", "captions.csv"]


def test_copies_are_files_of_the_same_content(tmp_path):
    contents = {"a": b"x" * 5000, "b": b"x" * 5000, "c": b"x" * 4999 + b"y", "d": b"", "e": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in [*contents, "not there"]]
    assert copies(paths) == [paths[:2]]


def test_odd_names_do_not_end_the_search(tmp_path):
    names = [
        "x" * 300 + ".jpg",
        "a\0b.jpg",
        ".",
        "/",
        "..",
        "a.jpg",
        "//",
        "C:",
        "C:/",
        "%00.jpg",
        5,
    ]
    names += ["a\0/b.jpg", "/a\0/b.jpg", "x" * 300 + "/b.jpg", "../a/b.jpg"]
    folder = data(tmp_path, [], ["a.jpg"])
    rows = [json.dumps({"image": name, "caption": "x"}) for name in [*names, "\ud800.jpg"]]
    (folder / "captions.csv").write_text("\n".join(rows))
    assert pairs(folder) == {"a.jpg": "a.jpg"}
