import itertools
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import spacy
import torch

import loader
from captions import read_captions
from cli import UserError
from corpus import Example
from loader import Flickr30k, Vocabulary, batches, plan_batches
from model import END, PAD, START, UNK

ROOT = Path(loader.__file__).parent


# ----------------------------------------------------------------------------- vocabulary


def test_a_threshold_of_four_means_four():
    """Elsewhere `>` made five of it."""
    vocabulary = Vocabulary.build(["Cat dog ."] * 4 + ["a cat", "zebra a"] * 2, freq_threshold=4)
    assert vocabulary.words == [*loader.SPECIAL_TOKENS, "cat", "a", "dog"]
    assert vocabulary.counts == [0, 0, 0, 2, 6, 4, 4]
    assert len(vocabulary) == 7
    assert vocabulary.encode("A zebra !") == [START, 5, UNK, END]
    ids = vocabulary.encode("A zebra , a dog .")
    assert vocabulary.decode(ids) == "a a dog"  # <unk> is left out


def test_special_tokens_have_the_models_ids():
    special = [loader.SPECIAL_TOKENS[id_] for id_ in (PAD, START, END, UNK)]
    assert special == ["<pad>", "<start>", "<end>", "<unk>"]


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
    assert vocabulary.decode(vocabulary.encode(caption)) == text
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert UNK not in vocabulary.encode(caption)


def test_korean_is_written_with_blanks(monkeypatch):
    """To spaCy it has no letters, as Chinese, and its captions came out in one word."""
    pipeline = spacy.blank("zh")  # one character, one token; Korean's own needs a dictionary
    pipeline.lang = "ko"
    monkeypatch.setattr(spacy, "blank", lambda _: pipeline)
    vocabulary = Vocabulary.build(["개 공"], freq_threshold=1, language="ko")
    assert vocabulary.decode(vocabulary.encode("개 공")) == "개 공"


def test_merged_tokens_are_one_word():
    """spaCy makes "can" and "not" of cannot: two words to learn, and written apart."""
    tokenizer = loader.Tokenizer("en")
    assert tokenizer("I cannot , GONNA , t-shirt") == ["i", "cannot", "gonna", "t", "-", "shirt"]
    assert tokenizer("can not") == ["can", "not"]


def test_an_extended_vocabulary_keeps_its_ids():
    old = loader.Vocabulary.build(["a dog runs", "a dog"], freq_threshold=1)
    new = old.extended(["a zebra runs", "a zebra", "an okapi"], freq_threshold=2)
    assert new.words == [*old.words, "zebra"]
    assert new.encode("a zebra")[1:-1] == [old.id_of["a"], len(old)]


def test_an_extended_vocabularys_counts_are_of_the_new_captions(monkeypatch):
    """The old model's counts stood beside those of the new words: they described neither corpus."""
    old = loader.Vocabulary.build(["a dog runs", "a dog"], freq_threshold=1)
    monkeypatch.setattr(spacy, "blank", None)  # the tokenizer is there, and handed on
    new = old.extended(["a zebra runs", "a zebra", "an okapi"], freq_threshold=2)
    assert dict(zip(new.words, new.counts, strict=True)) == {
        **dict.fromkeys(loader.SPECIAL_TOKENS, 0), "<unk>": 2,
        "a": 2, "dog": 0, "runs": 1, "zebra": 2,
    }  # fmt: skip
    assert new.tokenizer is old.tokenizer


@pytest.mark.parametrize(
    ("language", "caption", "banned"),
    [
        ("en", "a dog in the grass", {"a", "in", "the"}),
        ("fr", "un chien dans l'herbe", {"un", "dans", "l'"}),
        ("sv", "en hund i gräset", set()),
    ],
)
def test_words_that_no_caption_ends_on(language, caption, banned):
    vocabulary = loader.Vocabulary.build([caption], freq_threshold=1, language=language)
    assert {vocabulary.words[id_] for id_ in vocabulary.banned_final_ids} == banned


def test_an_unknown_language_is_named():
    with pytest.raises(UserError, match=r"'klingon'.*--language.*en, fr or de"):
        Vocabulary.build(["x"], freq_threshold=1, language="klingon")


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
def test_cached_tokens_are_spacys_on_the_whole_caption(real, name, language):
    captions = read_captions(real(f"flickr30k/{name}")).of_image.values()
    captions = list(itertools.chain(*captions))[::20]
    assert len(captions) > 1000
    tokenizer, spacys = loader.Tokenizer(language), spacy.blank(language)
    for caption in captions:
        assert tokenizer(caption) == words_of(spacys(caption.replace("\u2019", "'")))


def test_writing_captions_waits_for_neither_spacy_nor_pandas():
    code = (
        "import sys, loader; v = loader.Vocabulary([*loader.SPECIAL_TOKENS, 'dog'], [0] * 5, "
        "language='en'); assert v.decode([4]) == 'dog'; print({'spacy', 'pandas'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.split() == [b"set()"]


def test_words_that_are_all_too_rare_are_refused():
    message = "no word of the 2 training captions occurs 9 times: give a smaller --freq-threshold."
    with pytest.raises(UserError, match=f"^{message}$"):
        Vocabulary.build(["a dog", "a cat"], freq_threshold=9)
    vocabulary = Vocabulary.build(["a dog"], freq_threshold=1)
    assert vocabulary.extended(["a cat"], freq_threshold=9).words == vocabulary.words


def test_captions_with_a_left_or_right_do_not_fit_the_mirror():
    """A girl on the left is on the right in the mirror."""
    captions = [["A dog runs ."], ["A girl .", "A girl on the LEFT ."], ["She left-handed it ."]]

    def fit(language):
        every = [text for texts in captions for text in texts]
        vocabulary = Vocabulary.build(every, freq_threshold=1, language=language)
        return [vocabulary.fits_mirror(texts) for texts in captions]

    assert fit("en") == [True, False, False]
    assert fit("sv") == [False, False, False]  # who knows


# -------------------------------------------------------------------------------- batches

CPU = torch.device("cpu")


class Letters:
    """A vocabulary of one word, so that a caption's length is its number of letters."""

    def encode(self, caption):
        return [START, *[4] * len(caption), END]

    def fits_mirror(self, captions):
        return len(captions) > 1


def dataset_of(lengths, **images):
    """For each image the lengths of its captions; its feature is its number."""
    examples = [Example("", Path(), ["x" * n for n in image]) for image in lengths]
    features = torch.arange(len(lengths)).float().unsqueeze(1)
    return Flickr30k(examples, Letters(), CPU, **(images or {"features": features}))


@pytest.fixture(scope="module")
def dataset():
    rng = random.Random(0)
    return dataset_of([[rng.randint(1, 30) for _ in range(rng.randint(1, 6))] for _ in range(150)])


@pytest.mark.parametrize("whole_images", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 16, 10_000])
def test_an_epoch_has_every_caption_once(dataset, whole_images, batch_size):
    plan, same, other = (
        plan_batches(dataset, batch_size=batch_size, seed=seed, whole_images=whole_images)
        for seed in (1, 1, 2)
    )
    met = list(itertools.chain(*plan))
    every = list(range(len(dataset.lengths)))
    assert sorted(met) == every != met
    assert plan == same != other
    assert all(plan)
    if batch_size > 6 or not whole_images:  # an image may have more captions than that
        assert max(map(len, plan)) <= batch_size
    if whole_images:
        images = dataset.caption_to_image
        assert sum(len({*images[captions]}) for captions in plan) == len(dataset)


def test_captions_of_like_length_are_batched(dataset):
    plan = plan_batches(dataset, batch_size=8, seed=1, whole_images=False)
    tokens = [batch.tokens for batch in batches(dataset, plan)]
    n_padding = sum(int((batch == PAD).sum()) for batch in tokens)
    assert n_padding < 0.1 * sum(batch.numel() for batch in tokens)
    lengths = [batch.shape[1] for batch in tokens]
    assert lengths[:20] != sorted(lengths[:20])  # but not the short before the long ones


def test_a_batch_has_each_image_once_and_padding_last():
    dataset = dataset_of([[3], [1, 2], [5], [9]])  # captions 0, 1 and 2, 3, 4
    (batch,) = batches(dataset, [[2, 4, 1, 0]])
    assert batch.host_image_index.tolist() == batch.image_index.tolist() == [0, 1, 3]
    assert batch.features.tolist() == [[0.0], [1.0], [3.0]]
    assert batch.pixels is None
    assert batch.caption_to_image.tolist() == [1, 2, 1, 0]
    for row, n_words in zip(batch.tokens.tolist(), (2, 9, 1, 3), strict=True):
        assert row == [*Letters().encode("x" * n_words), *[PAD] * (9 - n_words)]
    assert batch.n_words == 3 + 10 + 2 + 4  # an <end> for each caption
    assert sorted(batch.targets.tolist()) == [END] * 4 + [4] * 15
    is_word = batch.tokens.flatten().clone()
    is_word[batch.positions] = -1
    assert set(is_word.tolist()) == {-1, PAD, START}


def test_a_batch_holds_what_its_captions_hold_one_by_one(dataset):
    plan = plan_batches(dataset, batch_size=16, seed=1, whole_images=False)[:3]
    for captions, batch in zip(plan, batches(dataset, plan), strict=True):
        singles = list(batches(dataset, [[caption] for caption in captions]))
        assert batch.targets.tolist() == [id_ for one in singles for id_ in one.targets.tolist()]
        assert batch.n_words == sum(one.n_words for one in singles)
        described = batch.features[batch.caption_to_image]
        assert torch.equal(described, torch.cat([one.features for one in singles]))
        for row, one in zip(batch.tokens, singles, strict=True):
            assert torch.equal(row[row != PAD], one.tokens[0])


def test_the_next_batchs_pixels_are_read_while_one_is_used():
    asked = [threading.Event() for _ in range(3)]

    class Noting(list):
        def __getitem__(self, index):
            asked[index].set()
            return super().__getitem__(index)

    data = dataset_of([[3], [4], [5]], pixels=Noting([torch.zeros(3, 2, 2)] * 3))
    found = batches(data, [[0], [1], [2]])
    next(found)
    assert asked[1].wait(timeout=30)  # though nobody has asked for this batch
    found.close()
    assert not asked[2].is_set()


def test_pixels_are_those_of_the_batchs_images_in_every_batch(dataset):
    """They are read in a thread, one batch ahead."""
    lengths = [[len(text) for text in example.captions] for example in dataset.examples]
    pixels = [torch.full((3, 2, 2), i, dtype=torch.uint8) for i in range(len(lengths))]
    data = dataset_of(lengths, pixels=pixels)
    plan = plan_batches(data, batch_size=16, seed=1, whole_images=True)
    found = list(batches(data, plan))
    assert len(found) == len(plan) > 10
    for batch in found:
        assert batch.features is None
        assert batch.pixels.dtype == torch.uint8
        assert batch.pixels[:, 0, 0, 0].tolist() == batch.host_image_index.tolist()


def test_nothing_left_of_an_epoch_gives_no_batches(dataset):
    """A run that is resumed right after an epoch's last batch."""
    assert list(batches(dataset, [])) == []


def test_a_batch_that_cannot_be_read_raises_its_error():
    class Broken(list):
        def __getitem__(self, index):
            raise OSError("no such row")

    data = dataset_of([[3], [4]], pixels=Broken([0, 0]))
    with pytest.raises(OSError, match="no such row"):
        list(batches(data, [[0], [1]]))


def test_the_same_captions_with_other_features():
    pixels = [torch.zeros((3, 2, 2), dtype=torch.uint8)] * 2
    dataset = dataset_of([[2, 3], [4]], pixels=pixels)
    other = dataset.with_features(torch.tensor([[7.0], [8.0]]))
    (batch,) = batches(other, [[2]])
    assert batch.features.tolist() == [[8.0]]
    assert other.pixels is None
    assert dataset.pixels is pixels
    assert dataset.may_mirror.tolist() == other.may_mirror.tolist() == [True, False]


def test_an_epoch_of_which_nothing_is_left_has_no_batches(dataset):
    """A run stopped while it validates has taken all its steps: resumed, it fell over here."""
    assert list(batches(dataset, [])) == []
