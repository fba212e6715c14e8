import io
import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
from PIL import Image

import loader
import model
from loader import DataError, Vocabulary, read_captions, read_image, transform

ROOT = Path(loader.__file__).parent

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
    assert loader.find_captions(tmp_path) == path


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
    splits = loader.load_corpus(tmp_path).splits
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
    corpus = loader.load_corpus(tmp_path)
    found = {split: [e.name for e in examples] for split, examples in corpus.splits.items()}
    assert found == {**names, "test": []}


def test_cocos_other_annotations_are_no_captions(tmp_path):
    """They lie beside the captions in COCO's zip, and hold images and annotations as well."""
    names = ["captions_train2017.json", "captions_val2017.json", "instances_val2017.json"]
    for name in names:
        text = coco([(f"{name}.jpg", "x")])
        (tmp_path / name).write_text(text.replace("caption", "bbox") if "inst" in name else text)
    assert loader.find_captions(tmp_path).name == names[0]


def test_a_file_of_another_kind_does_not_end_the_search(tmp_path, caplog):
    (tmp_path / "log.json").write_text('{"half": ')
    with pytest.raises(DataError, match="no valid JSON"):
        loader.find_captions(tmp_path)
    (tmp_path / "mine.csv").write_text("image,caption\na.jpg,x\n")
    assert loader.find_captions(tmp_path).name == "mine.csv"
    assert "log.json is no valid JSON" in caplog.text  # it may have been meant


def test_several_files_that_are_not_cocos_have_to_be_chosen_from(tmp_path):
    """The second was left out without a word."""
    for name in ("captions_en.csv", "captions_fr.csv"):
        (tmp_path / name).write_text("image,caption\na.jpg,x\n")
    with pytest.raises(DataError, match="Choose one with --captions"):
        loader.find_captions(tmp_path)


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
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        read_captions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_looking_for_captions_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*here: .*--data.*--demo"):
        loader.find_captions(tmp_path / "here")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"no captions file in .*--data.*--demo"):
        loader.find_captions(tmp_path)
    (tmp_path / "captions.txt").write_text("file,text\na.jpg,x\n")
    with pytest.raises(DataError, match=r"captions.txt is there, but in none of the formats"):
        loader.find_captions(tmp_path)
    (tmp_path / "captions.txt").unlink()
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("image,caption\na.jpg,x\n")
    with pytest.raises(DataError, match=r"one.csv, two.csv. Choose one with --captions"):
        loader.find_captions(tmp_path)
    with pytest.raises(DataError, match=r"no captions file .*three.csv: .*--captions"):
        loader.load_corpus(tmp_path, "three.csv")
    with pytest.raises(DataError, match=r"none of the 1 images of .*two.csv .*a.jpg.*--data"):
        loader.load_corpus(tmp_path, "two.csv")
    (tmp_path / "a.jpg").touch()
    assert loader.load_corpus(tmp_path, "two.csv").captions.path.name == "two.csv"
    assert loader.load_corpus(tmp_path / "one.csv").captions.path.name == "one.csv"
    with pytest.raises(DataError, match=r"one.csv: leave --captions out"):
        loader.load_corpus(tmp_path / "one.csv", "two.csv")
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,x\n")
    assert loader.find_captions(tmp_path).name == "captions.txt"  # well known: no need to choose


def test_captions_in_the_folder_go_before_those_below(tmp_path):
    for place in (tmp_path, tmp_path / "below"):
        place.mkdir(exist_ok=True)
        (place / "results.csv").write_text("a.jpg| 0| x\n")
    assert loader.find_captions(tmp_path) == tmp_path / "results.csv"


# --------------------------------------------------------------------- images and splits


def corpus_of(folder, names, *, captions_each=1, pictures="pictures"):
    """A data set whose pictures are empty files: nothing here opens them."""
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / pictures / name).touch()
    rows = [f"{name}#{i}\tcaption {i}\n" for name in names for i in range(captions_each)]
    (folder / "captions.token").write_text("".join(rows))
    return loader.load_corpus(folder)


def names_of(corpus):
    return {split: {e.name for e in examples} for split, examples in corpus.splits.items()}


def test_pictures_in_nested_folders_are_found_and_missing_ones_counted(tmp_path, caplog):
    corpus_of(tmp_path, [f"{i}.jpg" for i in range(5)], pictures="flickr30k_images/deeper")
    (tmp_path / "flickr30k_images/deeper/3.jpg").unlink()
    corpus = loader.load_corpus(tmp_path)
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
    corpus = loader.load_corpus(tmp_path)
    found = {e.captions[0]: e.path.parent.name for s in corpus.splits.values() for e in s}
    assert found == {"cat": "cats", "dog": "dogs"}
    (tmp_path / "photos/dogs/1.jpg").unlink()
    assert loader.load_corpus(tmp_path).n_missing == 1


def test_the_shallowest_picture_is_meant_in_the_current_folder_too(tmp_path, monkeypatch):
    """There a path is the bare name, without a folder before it."""
    monkeypatch.chdir(tmp_path)
    Path("captions.csv").write_text("image,caption\na.jpg,cat\n")
    Path("thumbs").mkdir()
    for place in ("a.jpg", "thumbs/a.jpg"):
        Path(place).touch()
    splits = loader.load_corpus(Path()).splits
    assert [e.path for examples in splits.values() for e in examples] == [Path("a.jpg")]


def test_a_picture_is_found_by_its_last_part_where_that_is_enough(tmp_path):
    (tmp_path / "captions.csv").write_text("image,caption\n/home/else/1.jpg,cat\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").touch()
    assert loader.load_corpus(tmp_path).n_missing == 0


def test_pictures_behind_a_link_to_their_folder_are_found(tmp_path):
    """Who keeps the photos elsewhere links to them."""
    for folder in ("elsewhere", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "elsewhere/a.jpg").touch()
    (tmp_path / "data/pictures").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/captions.token").write_text("a.jpg#0\tx\n")
    assert loader.load_corpus(tmp_path / "data").n_missing == 0


def test_hash_split_is_by_image_stable_and_90_5_5(tmp_path):
    """Splitting caption rows puts nearly every test image into training too."""
    names = [f"{i}.jpg" for i in range(2000)]
    few = names_of(corpus_of(tmp_path / "few", names[::7], captions_each=5))
    many = names_of(corpus_of(tmp_path / "many", names, captions_each=2))
    assert sum(map(len, many.values())) == len(set().union(*many.values())) == 2000
    sizes = [len(many[split]) for split in loader.SPLITS]
    assert sizes == [1814, 88, 98]  # for ever: another hash would train on test images
    assert all(few[split] <= many[split] for split in loader.SPLITS)


def test_lists_beside_the_captions(tmp_path):
    names = [f"{i}.jpg" for i in range(6)]
    corpus_of(tmp_path, names)
    (tmp_path / "split_val.txt").write_bytes(b"0.jpg\r\n\r\n1.jpg \r\nnot here.jpg\r\n")
    (tmp_path / "Flickr_8k.testImages.txt").write_text("2.jpg")
    corpus = loader.load_corpus(tmp_path)  # without a list for training: all the others
    rest = {"val": {"0.jpg", "1.jpg"}, "test": {"2.jpg"}}
    assert names_of(corpus) == {"train": {"3.jpg", "4.jpg", "5.jpg"}, **rest}
    assert "the lists in" in corpus.describe()
    (tmp_path / "split_train.txt").write_text("4.jpg\n")
    assert names_of(loader.load_corpus(tmp_path)) == {"train": {"4.jpg"}, **rest}
    (tmp_path / "captions.token").unlink()  # what the file itself says goes before the lists
    (tmp_path / "k.json").write_text(karpathy([(name, ["x"]) for name in names], split="test"))
    assert names_of(loader.load_corpus(tmp_path))["test"] == set(names)


def test_images_in_no_split_are_counted(tmp_path):
    names = [f"{i}.jpg" for i in range(6)]
    corpus_of(tmp_path, names)
    (tmp_path / "captions.token").unlink()
    rows = [f"{name},x,{'train' if name < '4' else 'spare'}" for name in names]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
    assert "4 train, 0 val, 0 test, 2 in no split" in loader.load_corpus(tmp_path).describe()


def test_lists_that_name_nothing_are_told(tmp_path, caplog):
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
    splits = loader.load_corpus(drawn).splits
    assert [len(splits[split]) for split in loader.SPLITS] == [10, 1, 1]
    assert all(len(e.captions) == 5 for e in itertools.chain(*splits.values()))


# ----------------------------------------------------------------------------- vocabulary


def test_special_ids_are_the_models():
    ids = {"<pad>": model.PAD, "<start>": model.START, "<end>": model.END, "<unk>": model.UNK}
    assert {word: id_ for id_, word in enumerate(loader.SPECIAL_TOKENS)} == ids
    assert list(ids.values()) == [loader.PAD, loader.START, loader.END, loader.UNK]


def test_a_threshold_of_four_means_four():
    """Elsewhere `>` made five of it."""
    vocabulary = Vocabulary.build(["Cat dog ."] * 4 + ["a cat", "zebra a"] * 2, freq_threshold=4)
    assert vocabulary.words == [*loader.SPECIAL_TOKENS, "cat", "a", "dog"]
    assert vocabulary.counts == [0, 0, 0, 2, 6, 4, 4]
    assert len(vocabulary) == 7
    assert vocabulary.encode("A zebra !") == [loader.START, 5, loader.UNK, loader.END]
    assert vocabulary.text(vocabulary.encode("A zebra , a dog .")) == "a a dog"  # no <unk> written


@pytest.mark.parametrize(
    ("language", "caption", "text"),
    [
        ("en", "A man's T-shirt isn't wet .", "a man's t-shirt isn't wet"),
        ("en", "A man\u2019s T-shirt isn\u2019t wet .", "a man's t-shirt isn't wet"),
        ("en", "the dogs' ball", "the dogs' ball"),
        ("en", 'a man - tall - , and a dog -- it \'s "wet"', "a man tall and a dog it's wet"),
        ("en", "they'll've two 10-year-old boys", "they'll've two 10-year-old boys"),
        ("en", "he cannot stop , she 's gonna run", "he cannot stop she's gonna run"),
        ("en", "the 'dogs' ( big/small ) 3.5 m", "the dogs big small 3.5 m"),
        ("en", "a boy says get 'em", "a boy says get 'em"),
        ("fr", "L'homme n'est pas là.", "l'homme n'est pas là"),
        ("fr", "L\u2019homme qu\u2019on voit aujourd\u2019hui", "l'homme qu'on voit aujourd'hui"),
        ("fr", "Y a-t-il un grand-père en T-shirt ?", "y a-t-il un grand-père en t-shirt"),
        ("de", "Der Straßenmusiker spielt .", "der straßenmusiker spielt"),
        ("zh", "一个男人在 街上走。", "一个男人在街上走"),
    ],
)
def test_captions_are_written_out_again_as_people_write_them(language, caption, text):
    vocabulary = Vocabulary.build([caption], freq_threshold=1, language=language)
    assert vocabulary.text(vocabulary.encode(caption)) == text
    assert vocabulary.text(vocabulary.encode(text)) == text
    assert loader.UNK not in vocabulary.encode(caption)


def test_korean_is_written_with_blanks(monkeypatch):
    """To spaCy it has no letters, as Chinese, and its captions came out in one word."""
    pipeline = spacy.blank("zh")  # one character, one token; Korean's own needs a dictionary
    pipeline.lang = "ko"
    monkeypatch.setattr(spacy, "blank", lambda _: pipeline)
    vocabulary = Vocabulary.build(["개 공"], freq_threshold=1, language="ko")
    assert vocabulary.text(vocabulary.encode("개 공")) == "개 공"


def test_merged_tokens_are_one_word():
    """spaCy makes "can" and "not" of cannot: two words to learn, and written apart."""
    tokenizer = loader.Tokenizer("en")
    assert tokenizer("I cannot , GONNA , t-shirt") == ["i", "cannot", "gonna", "t", "-", "shirt"]
    assert tokenizer("can not") == ["can", "not"]


def test_an_extended_vocabulary_keeps_its_ids():
    old = loader.Vocabulary.build(["a dog runs", "a dog"], freq_threshold=1)
    new = old.extended(["a zebra runs", "a zebra", "an okapi"], freq_threshold=2)
    assert new.words == [*old.words, "zebra"]
    assert new.counts[-1] == 2
    assert new.encode("a zebra")[1:-1] == [old.id_of["a"], len(old)]


@pytest.mark.parametrize(
    ("language", "caption", "hanging"),
    [
        ("en", "a dog in the grass", {"a", "in", "the"}),
        ("fr", "un chien dans l'herbe", {"un", "dans", "l'"}),
        ("sv", "en hund i gräset", set()),
    ],
)
def test_words_no_sentence_ends_on(language, caption, hanging):
    vocabulary = loader.Vocabulary.build([caption], freq_threshold=1, language=language)
    assert {vocabulary.words[id_] for id_ in vocabulary.hanging} == hanging


def test_an_unknown_language_is_named():
    with pytest.raises(DataError, match=r"'klingon'.*--language.*en, fr or de"):
        Vocabulary.build(["x"], language="klingon")


def test_words_are_ordered_whatever_the_captions_order():
    captions = ["b a c c", "d c b a", "e"]
    for order in (captions, captions[::-1]):
        words = Vocabulary.build(order, freq_threshold=1).words[4:]
        assert words == ["c", "a", "b", "d", "e"]


def words_of(doc):
    """What ``Tokenizer`` promises, from spaCy's tokens of the whole caption."""
    words, before, first = [], "", ""  # the token this one is glued to, the first of its piece
    for token in doc:
        text = token.lower_
        first = first if before else text
        follower = token.nbor().lower_ if not token.whitespace_ and token.i + 1 < len(doc) else ""
        hyphen = text == "-" and before[-1:].isalnum() and follower[:1].isalnum()
        apostrophe = text == "'" and before.endswith("s") and first != "'"
        if before.isalpha() and text.isalpha():
            words[-1] += text
        elif any(map(str.isalnum, text)) or hyphen or apostrophe:
            words.append(text)
        before = "" if token.whitespace_ else text
    return words


@pytest.mark.parametrize(("name", "language"), [("results.csv", "en"), ("results_fr.csv", "fr")])
def test_remembered_tokens_are_spacys_on_the_whole_caption(real, name, language):
    captions = read_captions(real(f"flickr30k/{name}")).of_image.values()
    captions = list(itertools.chain(*captions))[::20]
    assert len(captions) > 1000
    tokenizer, spacys = loader.Tokenizer(language), spacy.blank(language)
    for caption in captions:
        assert tokenizer(caption) == words_of(spacys(caption.replace("\u2019", "'")))


def test_the_real_results_csv(real):
    captions = read_captions(real("flickr30k/results.csv"))
    assert (captions.n_repaired, captions.n_skipped) == (1, 0)
    assert captions.of_image["2199200615.jpg"][4] == "A dog runs across the grass ."
    assert {len(five) for five in captions.of_image.values()} == {5}


def test_the_real_flickr8k(real):
    corpus = loader.load_corpus(real("flickr8k"))
    assert [len(corpus.splits[split]) for split in ("train", "val")] == [6000, 1000]
    assert "the lists in" in corpus.split_source


def test_writing_captions_waits_for_neither_spacy_nor_pandas():
    code = (
        "import sys, loader; v = loader.Vocabulary([*loader.SPECIAL_TOKENS, 'dog'], [0] * 5, "
        "language='en'); assert v.text([4]) == 'dog'; print({'spacy', 'pandas'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.split() == [b"set()"]


# ------------------------------------------------------------------------------- pictures


def flat(mode, colour):
    return Image.new(mode, (8, 8), colour)


def deep(value, dtype):
    return Image.fromarray(np.full((8, 8), value, dtype))


INDEXED = flat("P", 3)
INDEXED.putpalette([200, 100, 0] * 8)
FRAMES = {"save_all": True, "append_images": [flat("RGB", (0, 0, 255))]}
# What is saved as what, and the colour people see.
# fmt: off
PICTURES = {
    "colour": (flat("RGB", (200, 100, 0)), "a.png", {}, (200, 100, 0)),
    "greyscale": (flat("L", 100), "a.jpg", {}, (100,) * 3),
    "black and white": (flat("1", 1), "a.png", {}, (255,) * 3),
    "CMYK JPEG": (flat("CMYK", (0, 255, 255, 0)), "a.jpg", {}, (255, 0, 0)),
    "palette": (INDEXED, "a.png", {}, (200, 100, 0)),
    "palette, transparent": (INDEXED, "a.png", {"transparency": 3}, (255,) * 3),
    "RGB, transparent": (flat("RGB", (9, 8, 7)), "a.png", {"transparency": (9, 8, 7)}, (255,) * 3),
    "RGBA, transparent": (flat("RGBA", (200, 0, 0, 0)), "a.png", {}, (255,) * 3),
    "RGBA, half": (flat("RGBA", (255, 0, 0, 128)), "a.png", {}, (255, 127, 127)),
    "LA": (flat("LA", (0, 128)), "a.png", {}, (127,) * 3),
    "16 bits": (deep(32768, np.uint16), "a.png", {}, (127,) * 3),
    "16 bits, big-endian": (deep(32768, ">u2"), "a.tif", {}, (127,) * 3),
    "32 bits": (deep(32768, np.int32), "a.tif", {}, (127,) * 3),
    "float to 1": (deep(0.5, np.float32), "a.tif", {}, (127,) * 3),
    "float to 255": (deep(100, np.float32), "a.tif", {}, (100,) * 3),
    "animated": (flat("RGB", (255, 0, 0)), "a.gif", FRAMES, (255, 0, 0)),
}
# fmt: on


@pytest.mark.parametrize(("image", "name", "options", "colour"), PICTURES.values(), ids=PICTURES)
def test_every_kind_of_picture_becomes_rgb(tmp_path, image, name, options, colour):
    """Pillow clips 16 bits to white, and shows black under what is transparent."""
    image.save(tmp_path / name, **options)
    for source in (tmp_path / name, io.BytesIO((tmp_path / name).read_bytes())):
        read = read_image(source, size=8)
        assert (read.mode, read.size) == ("RGB", (8, 8))
        np.testing.assert_allclose(np.asarray(read).reshape(-1, 3), [colour] * 64, atol=3)


@pytest.mark.parametrize("size", [None, 16])
def test_pictures_stand_upright(tmp_path, size):
    """A phone's photo lies on its side and says so in EXIF."""
    image = Image.new("RGB", (64, 32))
    image.paste((255, 0, 0), (0, 0, 32, 32))  # left; turned upright it is at the top
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    read = read_image(tmp_path / "a.jpg", size=size)
    assert read.size == (32, 64)
    assert read.getpixel((16, 8))[0] > 200
    assert read.getpixel((16, 56))[0] < 50


def test_unreadable_pictures_are_named(tmp_path, monkeypatch):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    reasons = {"cut": "truncated", "text": "not a picture", "empty": "not a picture"}
    for stem, words in {**reasons, "missing": "no such file"}.items():
        with pytest.raises(DataError, match=words) as caught:
            read_image(tmp_path / f"{stem}.jpg")
        assert str(tmp_path / f"{stem}.jpg") in str(caught.value)
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        read_image(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"whole.jpg is too large"):
        read_image(tmp_path / "whole.jpg")


def test_a_large_jpeg_decoded_small_looks_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((1200, 900), Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.jpg", quality=95)
    small, full = read_image(tmp_path / "a.jpg", size=48), read_image(tmp_path / "a.jpg")
    assert full.size == (1200, 900)
    assert 96 <= min(small.size) < 300
    difference = (transform(small, 48).float() - transform(full, 48).float()).abs()
    assert difference.mean() < 3


@pytest.mark.parametrize("size", [(300, 60), (60, 300), (16, 16), (5, 7)])
def test_transform_keeps_the_whole_picture(size):
    """A crop cuts off what captions speak of; the corners must still be there."""
    image = Image.new("RGB", size)
    right, bottom = size[0] - size[0] // 3, size[1] - size[1] // 3
    image.paste((255, 0, 0), (0, 0, size[0] // 3, size[1] // 3))
    image.paste((0, 255, 0), (right, 0, *size))
    image.paste((0, 0, 255), (right, bottom, *size))
    pixels = transform(image, 16)
    assert (pixels.shape, pixels.dtype) == ((3, 16, 16), torch.uint8)
    corners = [pixels[:, y, x].tolist() for y, x in ((0, 0), (0, -1), (-1, -1), (-1, 0))]
    assert corners == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]


def test_transform_does_not_alias():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::8] = 255
    assert (transform(Image.fromarray(stripes), 16).float() - 255 / 8).abs().max() < 16


def test_read_pictures_keeps_order_and_hands_back_errors(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(100)]
    for i, path in enumerate(paths):
        Image.new("RGB", (4 + i % 5, 4), (i, 0, 0)).save(path)
    paths[3].unlink()
    paths[70].write_text("not a picture")
    asked = []
    found = loader.read_pictures((asked.append(path) or path for path in paths), 8)
    first = next(found)
    assert 1 < len(asked) < 100  # some are read ahead; all of them would fill the memory
    found = [first, *found]
    assert [path for path, _ in found] == paths
    errors = {i: str(picture) for i, (_, picture) in enumerate(found) if i in (3, 70)}
    assert str(paths[3]) in errors[3]
    assert str(paths[70]) in errors[70]
    red = [int(p[0].unique()) for _, p in found if not isinstance(p, DataError)]
    assert red == [i for i in range(100) if i not in errors]


# -------------------------------------------------------------------------------- batches


class Letters:
    """A vocabulary of one word, so that a caption's length is its number of letters."""

    language = "xx"

    def encode(self, caption):
        return [loader.START, *[4] * len(caption), loader.END]


def dataset_of(lengths):
    """For each image the lengths of its captions; its vector is its number."""
    examples = [loader.Example("", Path(), ["x" * n for n in image]) for image in lengths]
    vectors = [torch.tensor([float(i)]) for i in range(len(lengths))]
    return loader.Flickr30k(examples, Letters(), vectors)


@pytest.fixture(scope="module")
def dataset():
    rng = random.Random(0)
    return dataset_of([[rng.randint(1, 30) for _ in range(rng.randint(1, 6))] for _ in range(150)])


@pytest.mark.parametrize("whole_images", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 16, 10_000])
def test_an_epoch_meets_every_caption_once(dataset, whole_images, batch_size):
    plan, same, other = (
        loader.plan_batches(dataset, batch_size=batch_size, seed=seed, whole_images=whole_images)
        for seed in (1, 1, 2)
    )
    every = [(image, c) for image in range(150) for c in range(len(dataset.captions[image]))]
    met = list(itertools.chain(*plan))
    assert sorted(met) == every != met
    assert plan == same != other
    assert all(plan)
    if batch_size > 6 or not whole_images:  # an image may have more captions than that
        assert max(map(len, plan)) <= batch_size
    if whole_images:
        assert sum(len({image for image, _ in pairs}) for pairs in plan) == len(dataset)


def test_captions_of_like_length_meet(dataset):
    plan = loader.plan_batches(dataset, batch_size=8, seed=1, whole_images=False)
    tokens = [loader.collate(dataset, pairs).tokens for pairs in plan]
    n_padding = sum(int((batch == loader.PAD).sum()) for batch in tokens)
    assert n_padding < 0.1 * sum(batch.numel() for batch in tokens)
    lengths = [batch.shape[1] for batch in tokens]
    assert lengths[:20] != sorted(lengths[:20])  # but not the short before the long ones


def test_collate_puts_each_image_in_once_and_padding_last():
    dataset = dataset_of([[3], [1, 2], [5], [9]])
    batch = loader.collate(dataset, [(1, 1), (3, 0), (1, 0), (0, 0)])
    assert batch.images.tolist() == [[1.0], [3.0], [0.0]]
    assert batch.image_of.tolist() == [0, 1, 0, 2]
    for row, n_words in zip(batch.tokens.tolist(), (2, 9, 1, 3), strict=True):
        assert row == [*Letters().encode("x" * n_words), *[loader.PAD] * (9 - n_words)]


# ---------------------------------------------------------------------------- whole_file


def test_a_batch_knows_its_images_and_words():
    dataset = dataset_of([[2, 3], [4], [5]])
    batch = loader.collate(dataset, [(2, 0), (0, 1), (2, 0)])
    assert batch.image_at == [2, 0]
    assert batch.n_words == 5 + 3 + 5 + 3  # and an <end> for each caption


def test_the_same_captions_with_other_images():
    dataset = dataset_of([[2, 3], [4]])
    other = dataset.seen_as(torch.tensor([[7.0], [8.0]]))
    assert other[1][0].item() == 8.0
    assert dataset[1][0].item() == 1.0
    assert other[1][1] is dataset[1][1]


def test_pictures_with_a_left_or_right_are_not_mirrored():
    """A girl on the left is on the right in the mirror."""
    captions = [["A dog runs ."], ["A girl .", "A girl on the LEFT ."], ["She left-handed it ."]]
    examples = [loader.Example("", Path(), texts) for texts in captions]
    images = torch.zeros(3, 4)

    def may_mirror(language):
        every = [text for texts in captions for text in texts]
        words = loader.Vocabulary.build(every, freq_threshold=1, language=language)
        return loader.Flickr30k(examples, words, images).may_mirror

    assert may_mirror("en") == [True, False, False]
    assert may_mirror("sv") == [False, False, False]  # who knows


def test_augmented_pictures_are_parts_of_the_picture():
    torch.manual_seed(0)
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).expand(3, 32, 32)  # brighter to the right
    shown = loader.augment(ramp.expand(40, 3, 32, 32), [True] * 20 + [False] * 20, smallest=0.5)
    assert shown.shape == (40, 3, 32, 32)
    assert shown.dtype == torch.uint8
    rises = [bool(image[0, 16, -1] > image[0, 16, 0]) for image in shown]
    assert all(rises[20:])
    assert 2 < sum(rises[:20]) < 18
    span = [int(image.max()) - int(image.min()) for image in shown]
    assert max(span) > 200
    assert min(span) < 215
    assert len({tuple(image.flatten().tolist()) for image in shown}) > 25


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    with loader.whole_file(path) as part:
        part.write_text("old")
        assert not path.exists()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), loader.whole_file(path) as part:  # noqa: PT012
            part.write_text("half of the new")
            raise error
        assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("a.txt", "old")]
    with loader.whole_file(path) as part:
        part.write_text("new")
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("a.txt", "new")]


def test_a_file_is_flushed_through_a_handle_that_may_write(tmp_path, monkeypatch):
    """Windows flushes no other: no checkpoint could be saved there."""
    fcntl = pytest.importorskip("fcntl")
    modes = []
    monkeypatch.setattr(loader.os, "fsync", lambda fd: modes.append(fcntl.fcntl(fd, fcntl.F_GETFL)))
    with loader.whole_file(tmp_path / "a.txt") as part:
        part.write_text("x")
    assert [mode & os.O_ACCMODE for mode in modes] == [os.O_RDWR]
