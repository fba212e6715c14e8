import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from captions import find_captions, read_captions
from cli import UserError
from corpus import load_corpus

ROOT = Path(__file__).parents[1]

# ------------------------------------------------------------------------- captions files

WANTED = {"a.jpg": ["A dog runs .", "One, two ."], "b.jpg": ["NA", "null"]}
ROWS = [(name, caption) for name, captions in WANTED.items() for caption in captions]


def karpathy(rows, **more):
    images = [
        {"filename": name, "sentences": [{"raw": c, "tokens": c.split()} for c in captions], **more}
        for name, captions in rows
    ]
    return json.dumps({"dataset": "x", "images": images})


def coco(rows, **options):
    names = sorted({name for name, _ in rows})
    images = [{"id": 7 + i, "file_name": name} for i, name in enumerate(names)]
    annotations = [{"image_id": 7 + names.index(n), "id": 1, "caption": c} for n, c in rows]
    return json.dumps({"info": {}, "images": images, "annotations": annotations}, **options)


# Each format with the same captions and one that is empty.
FORMATS = {
    "results.csv": "image_name| comment_number| comment\na.jpg| 0| A dog runs .\n"
    "a.jpg| 1|  One,  two .\nb.jpg| 0| NA\nb.jpg| 1| null\nc.jpg| 0|  \n",
    "results.csv without header": "a.jpg| 0| A dog runs .\na.jpg| 1| One, two .\n"
    "b.jpg| 0| NA\nb.jpg| 1| null\nb.jpg| 2| \n",
    "token": "a.jpg#0\tA dog runs .\na.jpg#1\tOne, two .\nb.jpg#0\tNA\nb.jpg#1\tnull\nc.jpg#0\t\n",
    "captions.txt": 'image,caption\na.jpg,A dog runs .\na.jpg,"One, two ."\nb.jpg,NA\n'
    "b.jpg,null\nc.jpg,\n",
    "metadata.csv": '"file_name","text"\n"a.jpg","A dog runs ."\n"a.jpg","One, two ."\n'
    '"b.jpg","NA"\n"b.jpg","null"\n"c.jpg",""\n',
    "metadata.jsonl": '{"file_name": "a.jpg", "text": ["A dog runs .", "One, two ."]}\n'
    '{"file_name": "b.jpg", "text": "NA"}\n\n{"text": ["null", ""], "file_name": "b.jpg"}\n',
    "karpathy": karpathy([*WANTED.items(), ("c.jpg", [""])]),
    "coco": coco([*ROWS, ("c.jpg", "")]),
    "coco, indented": coco([("c.jpg", " "), *ROWS], indent=1),
}


@pytest.mark.parametrize("way", ["plain", "BOM", "CRLF", "BOM and CRLF"])
@pytest.mark.parametrize("text", FORMATS.values(), ids=FORMATS)
def test_each_format_is_recognised_by_content(tmp_path, text, way):
    """Captions "NA" and "null" are words: pandas took them for missing values."""
    text = ("\ufeff" if "BOM" in way else "") + text
    path = tmp_path / "something.txt"
    path.write_bytes((text.replace("\n", "\r\n") if "CRLF" in way else text).encode())
    captions = read_captions(path)
    assert captions.of_image == WANTED
    assert (captions.n_skipped, captions.n_repaired) == (1, 0)
    assert find_captions(tmp_path) == path


def test_a_row_without_its_second_bar_is_repaired(tmp_path):
    """Kaggle's row 19999 lacks a separator: the caption was lost, or became the word "nan"."""
    path = tmp_path / "results.csv"
    path.write_text(
        "image_name| comment_number| comment\n21.jpg| 3| A dog .\n"
        "21.jpg| 4   A dog runs across the grass .\n22.jpg| 0| 2 dogs | one cat .\nrubbish\n"
    )
    captions = read_captions(path)
    assert captions.of_image["21.jpg"] == ["A dog .", "A dog runs across the grass ."]
    assert captions.of_image["22.jpg"] == ["2 dogs | one cat ."]
    assert (captions.n_repaired, captions.n_skipped) == (1, 1)


SAID = {
    **{"a.jpg": "train", "b.jpg": "validation", "c.jpg": "test", "d.jpg": "restval"},
    **{"e.jpg": "Valid", "f.jpg": " training"},
}
SPLITS_SAID = {
    "json": json.dumps({"images": [json.loads(karpathy([(name, ["x"])], split=split))["images"][0]
                                   for name, split in SAID.items()]}),
    "jsonl": "".join(json.dumps({"file_name": name, "text": "x", "split": split}) + "\n"
                     for name, split in SAID.items()),
    "csv": "file_name,text,split\n" + "".join(f"{n},x,{split}\n" for n, split in SAID.items()),
}  # fmt: skip


@pytest.mark.parametrize("suffix", SPLITS_SAID)
def test_splits_in_the_file(tmp_path, suffix):
    path = tmp_path / f"captions.{suffix}"
    path.write_text(SPLITS_SAID[suffix])
    captions = read_captions(path)
    wanted = {"a.jpg": "train", "b.jpg": "val", "c.jpg": "test", "d.jpg": "train"}
    assert captions.split_of == {**wanted, "e.jpg": "val", "f.jpg": "train"}


def test_karpathys_coco_names_pictures_by_folder(tmp_path):
    """The same file name in two folders is two pictures."""
    for folder in ("train2014", "val2014"):
        (tmp_path / "coco" / folder).mkdir(parents=True)
        (tmp_path / "coco" / folder / "1.jpg").touch()
    images = [
        json.loads(karpathy([("1.jpg", [split])], filepath=f"{split}2014", split=split))["images"]
        for split in ("train", "val")
    ]
    text = json.dumps({"images": [*images[0], *images[1]]})
    (tmp_path / "coco" / "dataset_coco.json").write_text(text)
    splits = load_corpus(tmp_path).splits
    found = [(e.path.parent.name, e.captions) for e in splits["train"] + splits["val"]]
    assert found == [("train2014", ["train"]), ("val2014", ["val"])]


def test_coco_train_and_val_are_read_together(tmp_path):
    (tmp_path / "annotations").mkdir()
    names = {split: [f"{split}{i}.jpg" for i in range(3)] for split in ("train", "val")}
    for split in names:
        path = tmp_path / "annotations" / f"captions_{split}2017.json"
        path.write_text(coco([(name, "x") for name in names[split]]))
        (tmp_path / f"{split}2017").mkdir()
        for name in names[split]:
            (tmp_path / f"{split}2017" / name).touch()
    corpus = load_corpus(tmp_path)
    found = {split: [e.name for e in examples] for split, examples in corpus.splits.items()}
    assert found == {**names, "test": []}


def test_cocos_other_annotations_are_no_captions(tmp_path):
    """They lie beside the captions in COCO's zip, and hold images and annotations as well."""
    names = ["captions_train2017.json", "captions_val2017.json", "instances_val2017.json"]
    for name in names:
        text = coco([(f"{name}.jpg", "x")])
        (tmp_path / name).write_text(text.replace("caption", "bbox") if "inst" in name else text)
    assert find_captions(tmp_path).name == names[0]


def test_a_file_of_another_kind_does_not_end_the_search(tmp_path, caplog):
    (tmp_path / "log.json").write_text('{"half": ')
    with pytest.raises(UserError, match="no valid JSON"):
        find_captions(tmp_path)
    (tmp_path / "mine.csv").write_text("image,caption\na.jpg,x\n")
    assert find_captions(tmp_path).name == "mine.csv"
    assert "log.json is no valid JSON" in caplog.text  # it may have been meant


def test_several_files_that_are_not_cocos_have_to_be_chosen_from(tmp_path):
    """The second was left out without a word."""
    for name in ("captions_en.csv", "captions_fr.csv"):
        (tmp_path / name).write_text("image,caption\na.jpg,x\n")
    with pytest.raises(UserError, match="Choose one with --captions"):
        find_captions(tmp_path)


LATIN = "un garçon".encode("latin-1")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no format known here"),
        (b"name;caption\na.jpg;x\n", "no format known here"),
        (b"\xff\xd8\xff\xe0 a picture", "no format known here"),
        (b'{"weights": [1, 2]}', "no format known here"),
        (b'{"images": {"a.jpg": "x"}}', "no format known here"),
        (b'{"images": 5}', "no format known here"),
        (b'{"images": [{"id": 1}], "annotations": [5]}', "no format known here"),
        (b'{"images": [{"file', "JSON"),
        (b'{"images": [{"sentences": [{"raw": "x"}]}]}', "filename"),
        (b'{"file_name": "a.jpg", "text": "x"}\n{"file_na\n', "damaged"),
        (b'{"file_name": "a.jpg", "label": 3}\n', "text"),
        (b"image,caption\n", "no captions"),
        (b"image,caption\na.jpg,one, two\n", "in quotes"),
        (b"image,caption\na.jpg,one\nb.jpg,one, two\n", "in quotes"),
        (b'image,caption\na.jpg,"one\nb.jpg,two\n', "in quotes"),
        (b"a.jpg| 0| " + LATIN, "not UTF-8"),
        (b"a.jpg#0\t" + LATIN, "not UTF-8"),
        (b"image,caption\na.jpg," + LATIN, "not UTF-8"),
        (b'{"file_name": "a.jpg", "text": "' + LATIN + b'"}', "not UTF-8"),
        (b'{"images": [{"filename": "a.jpg", "sentences": [{"raw": "' + LATIN, "not UTF-8"),
    ],
)
def test_an_unreadable_captions_file_is_named_with_the_reason(tmp_path, content, words):
    path = tmp_path / "my captions.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        read_captions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_looking_for_captions_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*here: .*--data.*--demo"):
        find_captions(tmp_path / "here")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"no captions file in .*--data.*--demo"):
        find_captions(tmp_path)
    (tmp_path / "captions.txt").write_text("file,text\na.jpg,x\n")
    with pytest.raises(UserError, match=r"captions.txt is there, but in none of the formats"):
        find_captions(tmp_path)
    (tmp_path / "captions.txt").unlink()
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("image,caption\na.jpg,x\n")
    with pytest.raises(UserError, match=r"one.csv, two.csv. Choose one with --captions"):
        find_captions(tmp_path)
    with pytest.raises(UserError, match=r"no captions file .*three.csv: .*--captions"):
        load_corpus(tmp_path, "three.csv")
    with pytest.raises(UserError, match=r"none of the 1 images of .*two.csv .*a.jpg.*--data"):
        load_corpus(tmp_path, "two.csv")
    (tmp_path / "a.jpg").touch()
    assert load_corpus(tmp_path, "two.csv").captions.path.name == "two.csv"
    assert load_corpus(tmp_path / "one.csv").captions.path.name == "one.csv"
    with pytest.raises(UserError, match=r"one.csv: leave --captions out"):
        load_corpus(tmp_path / "one.csv", "two.csv")
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,x\n")
    assert find_captions(tmp_path).name == "captions.txt"  # well known: no need to choose


def test_captions_in_the_folder_go_before_those_below(tmp_path):
    for place in (tmp_path, tmp_path / "below"):
        place.mkdir(exist_ok=True)
        (place / "results.csv").write_text("a.jpg| 0| x\n")
    assert find_captions(tmp_path) == tmp_path / "results.csv"


def test_reading_captions_needs_pandas_for_csv_only(tmp_path):
    (tmp_path / "captions.token").write_text("a.jpg#0\tx\n")
    code = (
        "import sys, captions; captions.read_captions(captions.Path(sys.argv[1])); "
        "print({'spacy', 'pandas', 'torch', 'PIL'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, tmp_path / "captions.token"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.split() == [b"set()"]
