import csv
import html
import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captions import read_captions
from cli import UserError
from columns import UNSPACED, split_of_folders, split_of_name
from tables import UnknownFormat

ROOT = Path(__file__).parents[1]

# ---------------------------------------------------------------------------------- formats

WANTED = {"a.jpg": ["A dog runs .", "One, two ."], "b.jpg": ["NA", "null ."]}
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


def rows_of(separator, header):
    rows = [f'"{c}"' if separator in c else c for _, c in [*ROWS, ("", "")]]
    names = [*(name for name, _ in ROWS), "c.jpg"]
    return "\n".join([header, *map(separator.join, zip(names, rows, strict=True))]) + "\n"


# Each format with the same captions and one that is empty.
FORMATS = {
    "results.csv": "image_name| comment_number| comment\na.jpg| 0| A dog runs .\n"
    "a.jpg| 1|  One,  two .\nb.jpg| 0| NA\nb.jpg| 1| null .\nc.jpg| 0|  \n",
    "results.csv without header": "a.jpg| 0| A dog runs .\na.jpg| 1| One, two .\n"
    "b.jpg| 0| NA\nb.jpg| 1| null .\nb.jpg| 2| \n",
    "bars without numbers": rows_of("|", "image_name|comment"),
    "token": "a.jpg#0\tA dog runs .\na.jpg#1\tOne, two .\nb.jpg#0\tNA\nb.jpg#1\tnull .\n"
    "c.jpg#0\t\n",
    "token with blanks": "a.jpg#0 A dog runs .\na.jpg#1 One, two .\nb.jpg#0 NA\nb.jpg#1 null .\n"
    "c.jpg#0  \n",
    "captions.txt": 'image,caption\na.jpg,A dog runs .\na.jpg,"One, two ."\nb.jpg,NA\n'
    "b.jpg,null .\nc.jpg,\n",
    "metadata.csv": '"file_name","text"\n"a.jpg","A dog runs ."\n"a.jpg","One, two ."\n'
    '"b.jpg","NA"\n"b.jpg","null ."\n"c.jpg",""\n',
    "tabs": rows_of("\t", "Image Name\tCaptions"),
    "semicolons": rows_of(";", "filepath;title"),
    "sep": "sep=;\n" + rows_of(";", "img;prompt"),
    "single quotes": "image,caption\n'a.jpg','A dog runs .'\n'a.jpg','One, two .'\n"
    "'b.jpg','NA'\n'b.jpg','null .'\n'c.jpg',''\n",
    "blanks after commas": 'path, caption\na.jpg, A dog runs .\na.jpg, "One, two ."\n'
    "b.jpg, NA\nb.jpg, null .\nc.jpg, \n",
    "two columns": 'image,caption,caption\na.jpg,A dog runs .,"One, two ."\nb.jpg,NA,null .\n'
    "c.jpg,,\n",
    "numbered columns": 'image,caption_1,caption_2\na.jpg,A dog runs .,"One, two ."\n'
    "b.jpg,NA,null .\nc.jpg,,\n",
    "languages": "image,caption_en,caption_fr\na.jpg,A dog runs .,Un chien\n"
    'a.jpg,"One, two .",Un\nb.jpg,NA,NA\nb.jpg,null .,null\nc.jpg,,\n',
    "without header": 'a.jpg;A dog runs .\na.jpg;"One, two ."\nb.jpg;NA\nb.jpg;null .\nc.jpg;\n',
    "metadata.jsonl": '{"file_name": "a.jpg", "text": ["A dog runs .", "One, two ."]}\n'
    '{"file_name": "b.jpg", "text": "NA"}\n\n{"text": ["null .", ""], "file_name": "b.jpg"}\n'
    '{"file_name": "c.jpg"}\n',
    "jsonl of languages": '{"image": "a.jpg", "text": {"fr": "x", "en": ["A dog runs .", '
    '"One, two ."]}}\n{"image": "b.jpg", "text": {"en_US": "NA", "fr": "x"}}\n'
    '{"image": "b.jpg", "text": {"en": "null ."}}\n{"image": "c.jpg", "text": {"en": null}}\n',
    "list": json.dumps([{"image": n, "caption": c} for n, c in [*WANTED.items(), ("c.jpg", "")]]),
    "list below a key": json.dumps(
        {"info": 5, "data": [{"img": n, "text": c} for n, c in [*WANTED.items(), ("c", None)]]}
    ),
    "list of objects": json.dumps(
        [{"image": n, "captions": [{"raw": c} for c in cs]} for n, cs in WANTED.items()]
        + [{"image": "c.jpg", "captions": [None]}]
    ),
    "names to captions": json.dumps({**WANTED, "c.jpg": [""]}),
    "karpathy": karpathy([*WANTED.items(), ("c.jpg", [""])]),
    "cells with blanks": 'image; caption\na.jpg; A dog runs .\na.jpg; "One, two ."\nb.jpg; NA\n'
    "b.jpg; null .\nc.jpg; \n",
    "names to objects": json.dumps(
        {n: [{"id": 1, "caption": c} for c in cs] for n, cs in WANTED.items()} | {"c.jpg": [None]}
    ),
    "coco": coco([*ROWS, ("c.jpg", "")]),
    "coco, indented": coco([("c.jpg", " "), *ROWS], indent=1),
}


@pytest.mark.parametrize("way", ["plain", "BOM", "CRLF", "CR", "UTF-16", "UTF-16 without mark"])
@pytest.mark.parametrize("text", FORMATS.values(), ids=FORMATS)
def test_each_format_is_recognised_by_content(tmp_path, text, way):
    """Captions "NA" and "null" are words: pandas took them for missing values."""
    text = text.replace("\n", {"CRLF": "\r\n", "CR": "\r"}.get(way, "\n"))
    encoding = {"BOM": "utf-8-sig", "UTF-16": "utf-16", "UTF-16 without mark": "utf-16-be"}
    path = tmp_path / "something.txt"
    path.write_bytes(text.encode(encoding.get(way, "utf-8")))
    captions = read_captions(path)
    assert captions.of_image == WANTED
    assert captions.counts == {"row(s) without a caption": 1}
    assert not captions.is_predicted


def test_parquet_is_read_as_other_tables_are(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    table = pd.DataFrame(
        {
            "image": [{"bytes": b"", "path": name} for name in [*WANTED, "c.jpg"]],
            "caption": [*WANTED.values(), [None]],
        }
    )
    table.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    assert read_captions(tmp_path / "train-00000-of-00001.parquet").of_image == WANTED
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"bad\.parquet cannot be read as parquet"):
        read_captions(tmp_path / "bad.parquet")


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
    assert captions.counts == {"malformed row(s) repaired": 1, "malformed row(s)": 1}


def test_bars_with_columns_of_ones_own(tmp_path):
    """The caption was "A dog|test", and the split was lost."""
    path = tmp_path / "results.csv"
    path.write_text("image|comment_number|comment|split\n0.jpg|0|A dog|test\n0.jpg|1|A|test\n")
    captions = read_captions(path)
    assert captions.of_image == {"0.jpg": ["A dog", "A"]}
    assert captions.split_of == {"0.jpg": "test"}


def test_coco_joins_ids_as_text_and_counts_orphans(tmp_path):
    """An annotation whose image was deleted from the file ended the reading."""
    content = {
        "images": [{"id": "1", "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "caption": "x"}, {"image_id": 2, "caption": "y"}],
    }
    path = tmp_path / "captions_train.json"
    path.write_text(json.dumps(content))
    captions = read_captions(path)
    assert captions.of_image == {"a.jpg": ["x"]}
    assert captions.counts == {"annotation(s) of an image that is not listed": 1}


def test_one_caption_in_several_columns_is_taken_and_the_rest_is_told(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("file_name,text,caption\na.jpg,OCR,a dog\n")
    captions = read_captions(path)
    assert captions.of_image == {"a.jpg": ["a dog"]}
    assert captions.notes == ["captions are caption, while text is left out"]
    path.write_text('{"file_name": "a.jpg", "text": "OCR", "caption": "a dog"}\n')
    assert read_captions(path).of_image == {"a.jpg": ["a dog"]}


def test_the_words_of_a_caption_are_joined(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"image": "a", "caption": ["a", "red", "ball"]}]))
    assert read_captions(path).of_image == {"a": ["a red ball"]}
    path.write_text(json.dumps([{"image": "a", "caption": ["一只狗在跑", "两只猫"]}]))
    assert read_captions(path, "zh").of_image == {"a": ["一只狗在跑", "两只猫"]}  # no blanks in it


def test_folder_and_name_in_two_columns(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("filepath,filename,caption\ncats/1.jpg,1.jpg,a cat\ndogs,1.jpg,a dog\n")
    assert read_captions(path).of_image == {"cats/1.jpg": ["a cat"], "dogs/1.jpg": ["a dog"]}


def test_blanks_before_all_captions_of_a_column(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("image,caption_1,caption_2\na.jpg,A dog, A cat\nb.jpg,C,\n")
    assert read_captions(path).of_image == {"a.jpg": ["A dog", "A cat"], "b.jpg": ["C"]}


def test_columns_whose_numbers_are_taken(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("image,caption,caption,caption_2\na.jpg,one x,two x,three x\n")
    assert read_captions(path).of_image == {"a.jpg": ["one x", "two x", "three x"]}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_what_a_model_wrote_is_known_and_can_be_read(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    path.write_text(
        "image,rank,caption,log_prob\na.jpg,1,x,-3.0\n"
        if kind == "csv"
        else '{"image": "a.jpg", "rank": 1, "caption": "x", "log_prob": -4.9}\n'
    )
    captions = read_captions(path)
    assert captions.is_predicted
    assert captions.of_image == {"a.jpg": ["x"]}
    path.write_text(json.dumps([{"image_id": 5, "caption": "x"}]))  # coco-caption's results
    assert read_captions(path).is_predicted


def test_a_list_that_was_written_into_a_cell_is_a_list(tmp_path):
    """As pandas writes lists and arrays: five captions became one, with brackets and quotes."""
    path = tmp_path / "x.csv"
    cells = ["\"['a dog', 'a cat']\"", '"[""a dog"", ""a cat""]"', "\"['a dog'\n 'a cat']\""]
    cells.append("\"['a dog' 'a cat']\"")
    for cell in cells:
        path.write_text(f"image,captions\na.jpg,{cell}\n")
        assert read_captions(path).of_image == {"a.jpg": ["a dog", "a cat"]}


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ("['a', 'red', 'dog']", ["a red dog"]),
        ("[{'raw': 'A red dog', 'sentid': 3}, {'raw': 'A dog'}]", ["A red dog", "A dog"]),
        ("{'en': 'A red dog', 'fr': 'Un chien'}", ["A red dog"]),
        ("['A dog', 'B cat', nan]", ["A dog", "B cat"]),
        ("['A nan, and a dog', None]", ["A nan, and a dog"]),
        ('["A dog", null]', ["A dog"]),
        ("[nan]", []),
        ("[]", []),
        ("[sic] a dog ['s]", ["[sic] a dog ['s]"]),
    ],
)
def test_what_programs_write_into_a_cell_is_read(tmp_path, cell, captions):
    """It was learned as text, with brackets and quotes."""
    path = tmp_path / "x.csv"
    text = io.StringIO()
    csv.writer(text).writerows([("image", "captions"), ("a.jpg", cell), ("b.jpg", "A bird")])
    path.write_text(text.getvalue())
    assert read_captions(path).of_image.get("a.jpg", []) == captions


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("['a dog', 'a c", "line 3: ['a dog', 'a c begins as a list or object and is none"),
        ("{'raw': A dog}", "line 3: {'raw': A dog} begins as a list or object"),
        ("['a dog', 5]", "line 3: captions is 5, not a caption"),
    ],
)
def test_what_cannot_be_read_in_a_cell_is_refused(tmp_path, cell, words):
    path = tmp_path / "x.csv"
    path.write_text(f'image,captions\nb.jpg,A bird\na.jpg,"{cell}"\n')
    with pytest.raises(UserError, match=re.escape(words)):
        read_captions(path)


def test_rows_of_other_languages_are_left_out(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("Bild,Légende,Lang\na.jpg,a dog,en-US\na.jpg,un chien,fr-FR\nb.jpg,x y,\n")
    captions = read_captions(path)
    assert captions.of_image == {"a.jpg": ["a dog"], "b.jpg": ["x y"]}
    assert captions.counts == {"row(s) in other languages than en": 1}
    assert read_captions(path, "fr").of_image == {"a.jpg": ["un chien"], "b.jpg": ["x y"]}


@pytest.mark.parametrize(
    "text",
    [
        "image,caption,language\na.jpg,a dog,English\na.jpg,un chien,French\n",
        "image,caption,caption_en\na.jpg,chien,a dog\n",
        '{"image": "a.jpg", "captions": [{"text": "un chien", "language": "fr"}, '
        '{"text": "a dog", "language": "en-GB"}]}',
        '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": '
        '"un chien", "lang": "fr"}, {"image_id": 1, "caption": "a dog", "lang": "en"}]}',
    ],
)
def test_one_language_is_taken(tmp_path, text):
    """Captions in two languages were learned together."""
    path = tmp_path / "x.csv"
    path.write_text(text)
    assert read_captions(path).of_image == {"a.jpg": ["a dog"]}
    if "chien,a dog" not in text:
        assert read_captions(path, "fr").of_image == {"a.jpg": ["un chien"]}


def test_languages_that_are_not_known_are_told(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("image,caption,language\na.jpg,a dog,English (UK)\na.jpg,un chien,other\n")
    captions = read_captions(path)
    assert captions.of_image == {"a.jpg": ["a dog", "un chien"]}
    assert captions.warnings == [
        f"{path} has english (uk), other for languages: all are taken. Write codes as en to take "
        "one."
    ]


def test_a_key_that_stands_twice_has_both_values(tmp_path):
    """Of two captions the last was kept, without a word."""
    path = tmp_path / "x.json"
    path.write_text('{"a.jpg": "A", "a.jpg": ["B", "c d"], "b.jpg": "x y", "b.jpg": "x y"}')
    assert read_captions(path).of_image == {"a.jpg": ["A", "B", "c d"], "b.jpg": ["x y"]}
    path.write_text('{"image": "a.jpg", "caption": "A", "caption": "B", "caption": "A"}')
    assert read_captions(path).of_image == {"a.jpg": ["A", "B", "A"]}
    path.write_text('{"image": "a.jpg", "image": "b.jpg", "caption": "A"}')
    with pytest.raises(UserError, match=r"line 1: image is \[\['a.jpg'\], \['b.jpg'\]\], not an"):
        read_captions(path)


def test_columns_that_are_not_read_and_cells_without_text_are_told(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("image,caption,source\na.jpg,a dog,me\nb.jpg,#REF!,me\nc.jpg,???,me\n")
    captions = read_captions(path)
    assert captions.of_image == {"a.jpg": ["a dog"]}
    assert captions.counts == {"row(s) without a caption": 2}
    assert captions.notes == ["columns that are not read: source"]


def test_pictures_within_parquet_are_told(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    table = pd.DataFrame({"image": [{"bytes": b"x", "path": "a.jpg"}], "caption": ["a dog"]})
    table.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="holds the pictures themselves"):
        read_captions(tmp_path / "x.parquet")


def test_entities_and_surrogates_become_text(tmp_path):
    """Flickr30k has "&amp ;"; a lone surrogate could not be written to any file."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"image": "a\\ud800", "text": "red &amp ; a\\ud83d A&amp;M &lt;3"}\n')
    assert read_captions(path).of_image == {"a?": ["red & a? A&M <3"]}


# ----------------------------------------------------------------------------------- splits

SAID = {
    **{"a.jpg": "train", "b.jpg": "validation", "c.jpg": "test", "d.jpg": "restval"},
    **{"e.jpg": "Valid", "f.jpg": " training"},
}


@pytest.mark.parametrize("key", ["split", "partition", "Subset", "whatever"])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_splits_in_the_file(tmp_path, kind, key):
    """A column of any name that holds nothing but names of splits is one."""
    rows = [{"file_name": name, "text": "x", key: split} for name, split in SAID.items()]
    path = tmp_path / f"captions.{kind}"
    path.write_text(
        json.dumps({"images": rows})
        if kind == "json"
        else "".join(json.dumps(row) + "\n" for row in rows)
        if kind == "jsonl"
        else "\n".join([f"file_name,text,{key}", *(",".join(row.values()) for row in rows)])
    )
    wanted = {"a.jpg": "train", "b.jpg": "val", "c.jpg": "test", "d.jpg": "train"}
    assert read_captions(path).split_of == {**wanted, "e.jpg": "val", "f.jpg": "train"}


def test_splits_as_keys(tmp_path):
    """The first of them was read, and the others passed over without a word."""
    rows = {
        s: [{"image": f"{s}.jpg", "caption": f"a {s}"}] for s in ("train", "validation", "test")
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"info": {}, **rows}))
    captions = read_captions(path)
    assert captions.of_image == {f"{s}.jpg": [f"a {s}"] for s in rows}
    assert captions.split_of == {"train.jpg": "train", "validation.jpg": "val", "test.jpg": "test"}
    images = [{"id": 1, "file_name": "a.jpg", "split": "test"}]
    notes = [{"image_id": 1, "caption": "x"}]
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    assert read_captions(path).split_of == {"a.jpg": "test"}


@pytest.mark.parametrize(
    "content",
    [
        {"a.jpg": {"caption": "x", "split": "test"}, "b.jpg": {"caption": "y"}},
        {"a.jpg": [{"raw": "x", "split": "test"}], "b.jpg": ["y"]},
        [
            {"image": "a.jpg", "caption": {"text": "x", "Split": "test set"}},
            {"image": "b.jpg", "caption": {"text": "y", "Split": ""}},
        ],
        {
            "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
            "annotations": [
                {"image_id": 1, "caption": "x", "split": "test"},
                {"image_id": 2, "caption": "y"},
            ],
        },
        {
            "images": [{"id": 1, "file_name": "a.jpg", "subset": "test"}],
            "annotations": [{"image_id": 1, "caption": "x"}],
        },
    ],
)
def test_splits_beside_the_caption(tmp_path, content):
    """They were dropped without a word, and a hash trained on the test images."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    assert read_captions(path).split_of == {"a.jpg": "test"}


def test_splits_that_are_not_understood_are_told(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("image,caption,split\na.jpg,x,training set\nb.jpg,y,holdout\nc.jpg,z,eval\n")
    captions = read_captions(path)
    assert captions.split_of == {"a.jpg": "train"}
    assert captions.warnings == [
        f"{path} has holdout, eval for a split, which is none known here: write train, val or test."
    ]
    path.write_text("image,caption,split\na.jpg,x,holdout\n")  # of none it is known
    assert read_captions(path).warnings
    rows = [{"image": "a.jpg", "caption": "x"}]
    path.write_text(json.dumps({"train": rows, "val": ["b.jpg"], "test": [], "info": {"a": 1}}))
    assert read_captions(path).warnings == [
        f"{path} has val in another form than train, not read: give objects with an image and a "
        "caption there too."
    ]


def test_a_column_of_valid_rows_is_no_split(tmp_path):
    """All images became validation images."""
    path = tmp_path / "x.csv"
    path.write_text("image,caption,status\na.jpg,x,valid\nb.jpg,y,\n")
    captions = read_captions(path)
    assert not captions.split_of
    assert captions.notes == ["columns that are not read: status"]


def test_a_split_that_rows_disagree_on_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("image,caption,split\na.jpg,x,train\na.jpg,y,val\n")
    with pytest.raises(UserError, match=r"x.csv puts a.jpg into two splits, train and val"):
        read_captions(path)


def test_names_that_speak_of_a_split():
    names = ["captions_train2017", "Flickr_8k.devImages", "restval", "train_val", "strain", "x"]
    assert [split_of_name(n) for n in names] == ["train", "val", "train", None, None, None]
    assert split_of_folders("data/train2014/images/test.jpg") == "train"


# ------------------------------------------------------------------------------------ errors

LATIN = "un garçon".encode("latin-1")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"name;caption\na.jpg;x\n", "read with semicolons between columns, has name, caption"),
        (b"image,label\na.jpg,x\n", "has image, label"),
        (b"\xff\xd8\xff\xe0 a \0 picture", "no text"),
        (b'{"weights": [1, 2]}', "its keys are weights"),
        (b'{"images": {"a.jpg": "x"}}', "its keys are images"),
        (b'{"images": [{"id": 1}], "annotations": [5]}', "its keys are images, annotations"),
        (b'{"images": [{"id": 1, "file_name": "a.jpg"}]}', "its keys are images"),
        (b'{"images": [{"file', "no valid JSON"),
        (b'{"images": [{"sentences": [{"raw": "x"}]}]}', "its keys are images"),
        (b'{"file_name": "a.jpg", "text": "x"}\n{"file_na\n', "line 2 is no valid JSON"),
        (b'{"file_na\n{"file_name": "a.jpg", "text": "x"}\n{"b": 1}\n', "line 1 is no valid JSON"),
        (
            b'{"file_name": "a.jpg", "text": "x"}\n\n[1]\n',
            "line 3 is no valid JSON: it is no object",
        ),
        (b'{"file_name": "a.jpg", "label": 3}\n', "file_name, label"),
        (b'{"file_name": "a.jpg", "text": 3}\n', "line 1: text is 3, not a caption"),
        (
            b'{"file_name": "a.jpg", "text": "x"}\n{"file_name": [1], "text": "x"}',
            "line 2: file_na",
        ),
        (b'[{"image": "a", "text": "x"}, {"image": "b", "text": true}]', "item 2: text is True"),
        (
            b'{"image": "a", "text": {"de": "x", "fr": "y"}}',
            "1 text(s) in de, fr, not in en (see --language)",
        ),
        (b"image,caption_de,caption_fr\na,x,y\n", "caption_de, caption_fr and no captions in en"),
        (b"image,caption\na.jpg,12\nb.jpg,3\n", "has numbers for captions, as 12"),
        (b"image,caption\n", "no captions"),
        (b"image,caption\na.jpg,\n", "1 row(s) without a caption"),
        (b"image,caption\na.jpg,one\nb.jpg,one, two\n", "line 3: it has 3 fields, the header 2"),
        (b"image,caption,by\na.jpg,one,me\nb.jpg,one, two\n", "line 3: a separator seems to cut"),
        (b"image,caption,by\na.jpg,one\nb.jpg,one, two\n", "line 3: a separator seems to cut"),
        (
            b"image,caption_1,caption_2\na.jpg,A dog,A cat\nb.jpg,A dog, brown and black\n",
            "line 3: a separator seems to cut the caption before 'brown and black'",
        ),
        (b'caption,image\n"A\nb"\n', "no column or key for an image"),
        (b'[{"image": "a", "caption": NaN}]', "1 row(s) without a caption"),
        (b"Room #3 is cold\n", "in no format known"),
        (b'image,caption\na.jpg,one\nb.jpg,"two\nc.jpg,three\n', "line 3: a quote opens there"),
        (
            b'image,caption\na.jpg,one\nb.jpg,"two\nc.jpg,three\nd.jpg,"four\ne.jpg,"five"\n',
            "line 3: a quote opens there",
        ),
        (
            b'image,caption\na.jpg,"one\nb.jpg,two\nc.jpg,""three"\nd.jpg,four\n',
            "line 2: a quote opens there that swallows",
        ),
        ("a.jpg#0\tun garçon\n".encode() * 3 + b"b.jpg#0\t" + LATIN, "not UTF-8 text in line 4"),
        (b"[" * 100_000, "nested too deep"),
        (b'[{"image": "a", "text": ' + b'[{"raw":' * 240 + b"1" + b"}]" * 240 + b"}]", "too deep"),
    ],
)
def test_an_unreadable_captions_file_is_named_with_the_reason(tmp_path, content, words):
    path = tmp_path / "my captions.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        read_captions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a.jpg| 0| {}", "a.jpg#0\t{}", "image,caption\na.jpg,{}"])
def test_windows_1252_is_read_and_told(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_bytes(text.format("un garçon à côté").encode("cp1252"))
    captions = read_captions(path)
    assert captions.of_image == {"a.jpg": ["un garçon à côté"]}
    assert captions.notes == ["x.csv is no UTF-8: read as Windows-1252"]


def test_tabs_with_quotes_that_are_mere_characters(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text('image\tcaption\na.jpg\t"Hi" , he said\nb.jpg\tsix inches: 6"\n')
    assert read_captions(path).of_image == {
        "a.jpg": ['"Hi" , he said'],
        "b.jpg": ['six inches: 6"'],
    }


@pytest.mark.parametrize(
    "text",
    [
        "x,y" * 200_000 + "\n1",
        "a.jpg| 0|" + " " * 2_000 + "\n" + "|" * 2_000 + "\n" + " " * 2_000,
        "a.jpg#" + "1" * 100_000,
        "image,caption\n" + '"' * 99_999,
    ],
    ids=["columns", "blanks", "digits", "quotes"],
)
def test_odd_files_take_no_time(tmp_path, text):
    """A row of 2,000 blanks took a cubic time."""
    path = tmp_path / "x.csv"
    path.write_text(text)
    code = "import sys, captions; captions.read_captions(captions.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, timeout=20, text=True
    )
    assert re.search(r"^(cli\.UserError|tables\.UnknownFormat):", done.stderr, re.MULTILINE)


def test_reading_captions_loads_nothing_large(tmp_path):
    (tmp_path / "captions.token").write_text("a.jpg#0\tx\n")
    code = (
        "import sys, captions; captions.read_captions(captions.Path(sys.argv[1])); "
        "print({'spacy', 'pandas', 'torch', 'PIL'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, tmp_path / "captions.token"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.split() == [b"set()"]


# --------------------------------------------------------------------- whatever people write

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="&"), min_size=1, max_size=40)
NAMES = st.from_regex(r"[\w][\w .()-]{0,20}\.(jpg|png|JPEG)", fullmatch=True)


@settings(max_examples=int(os.environ.get("FUZZ", 60)), deadline=None)
@given(
    rows=st.lists(st.tuples(NAMES, TEXTS), min_size=2, max_size=8),
    kind=st.sampled_from(
        ["csv", "tsv", "semicolons", "jsonl", "list", "karpathy", "coco", "names"]
    ),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_is_written_is_read_back_or_refused(tmp_path_factory, rows, kind, encoding):
    """With any names and texts, quoted as the csv module quotes."""
    wanted: dict[str, list[str]] = {}
    for name, text in rows:
        if any(map(str.isalnum, text)):
            wanted.setdefault(name.strip(), []).append(" ".join(text.split()))
    if kind in ("csv", "tsv", "semicolons"):
        file = io.StringIO()
        separator = {"csv": ",", "tsv": "\t", "semicolons": ";"}[kind]
        csv.writer(file, delimiter=separator).writerows([("image", "caption"), *rows])
        text = file.getvalue()
    else:
        objects = [{"image": name, "caption": text} for name, text in rows]
        text = {
            "jsonl": "\n".join(map(json.dumps, objects)),
            "list": json.dumps(objects),
            "karpathy": karpathy([(name, [text]) for name, text in rows]),
            "coco": coco(rows),
            "names": json.dumps(
                {n: [t for m, t in rows if m.strip() == n.strip()] for n, _ in rows}
            ),
        }[kind]
    path = tmp_path_factory.mktemp("written") / "captions.txt"
    path.write_text(text, encoding=encoding, newline="")
    try:
        captions = read_captions(path)
    except UserError:
        return
    if kind == "names":  # single words are one caption
        for name in wanted:
            given_texts = [text for other, text in rows if other.strip() == name]
            is_word = [len(t.split()) == 1 and not UNSPACED.search(t) for t in given_texts]
            if len(is_word) > 1 and all(is_word):
                wanted[name] = [" ".join(" ".join(given_texts).split())]
    assert captions.of_image == wanted


def plain_reader(kind, text):
    """Images and captions as a few plain lines read them, one row after the other."""
    found: dict[str, list[str]] = {}
    rows = []
    if kind == "captions.txt":
        rows = [row[:2] for row in csv.reader(io.StringIO(text)) if row][1:]
    elif kind == "token":
        lines = text.split("\n")  # a tab may have become a blank
        lines = [ln if "\t" in ln else re.sub(r"(#\d+) ", r"\1\t", ln, count=1) for ln in lines]
        rows = [line.split("\t", 1) for line in lines if "\t" in line]
        rows = [(key.rsplit("#", 1)[0], caption) for key, caption in rows if "#" in key]
    elif kind == "results.csv":
        for line in text.split("\n")[1:]:
            image, *rest = line.split("|", 2)
            if len(rest) == 2 and rest[0].strip().isdigit():
                rows.append((image, rest[1]))
            elif rest and (words := "|".join(rest).split(None, 1))[:1] and words[0].isdigit():
                rows.append((image, words[1] if len(words) > 1 else ""))
    elif kind == "metadata.jsonl":
        for line in text.split("\n"):
            row = json.loads(line) if line.strip() else {}
            texts = row.get("text")
            for caption in texts if isinstance(texts, list) else [texts]:
                rows.append((row.get("file_name") or "", caption or ""))
    for image, caption in ((row[0], row[1]) for row in rows if len(row) > 1):
        caption = " ".join(html.unescape(caption).split())
        if image.strip() and any(map(str.isalnum, caption)):
            found.setdefault(image.strip(), []).append(caption)
    return found


def mutated(rng, data):
    """Bytes changed, cut, doubled and inserted."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, other = (rng.randrange(len(data) or 1) for _ in range(2))
        change = rng.randrange(5)
        if change == 0 and data:
            data[at] = rng.choice(b'",|\t\n\r\\{}[]:#;\0\xff 0a')
        elif change == 1:
            del data[min(at, other) : max(at, other)]
        elif change == 2:
            data[at:at] = data[min(at, other) : max(at, other)]
        elif change == 3:
            inserts = [b"null", b"1e999", b"\xed\xa0\x80", b'"', b"\n", b"{}", b"-1", b"[[[["]
            data[at:at] = rng.choice(inserts)
    return bytes(data)


def test_damaged_captions_files_are_read_or_refused(tmp_path):
    """Nothing but the project's own errors; what is read is what a plain reader finds."""
    rng = random.Random(0)
    path = tmp_path / "captions.txt"
    n_compared = 0
    for _ in range(int(os.environ.get("FUZZ", 400))):
        kind = rng.choice(list(FORMATS))
        data = mutated(rng, FORMATS[kind].encode())
        path.write_bytes(data)
        try:
            captions = read_captions(path)
        except UserError:
            continue
        assert all(captions.of_image.values())
        json.dumps(captions.of_image, ensure_ascii=False).encode()
        # Compared where the layout is what it was: the first line, line ends and encoding.
        text = data.decode("utf-8", "replace")
        is_same = text.split("\n")[0] == FORMATS[kind].split("\n")[0]
        if kind in ("captions.txt", "token", "results.csv", "metadata.jsonl") and is_same:
            if not set("\ufffd\r\0").isdisjoint(text) or "&" in text:
                continue
            n_compared += 1
            assert captions.of_image == plain_reader(kind, text), text
    assert n_compared


def test_a_file_that_is_no_captions_is_told_apart_from_one_that_is_damaged(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    with pytest.raises(UnknownFormat):
        read_captions(path)
    path.write_text('{"a": 1')
    with pytest.raises(UserError, match="no valid JSON") as caught:
        read_captions(path)
    assert not isinstance(caught.value, UnknownFormat)
