"""Golden values come from pycocoevalcap 1.2 (BLEU: nltk) and from its tokenizer."""

import math
import random
import shutil
from collections import Counter

import numpy as np
import pytest

import metrics
from metrics import CiderD, bleu, cider_d, rouge_l, score, tokens


def split(texts):
    return [text.split() for text in texts]


def split_all(images):
    return [split(texts) for texts in images]


def to_ids(texts, ids):
    return [[ids.setdefault(word, len(ids)) for word in words] for words in split(texts)]


def pad(sentences):
    rows = np.full((len(sentences), max(map(len, sentences), default=0)), -1)
    for row, sentence in zip(rows, sentences, strict=True):
        row[: len(sentence)] = sentence
    return rows


# --------------------------------------------------------------------------- tokens

OFFICIAL = {
    "A man's t-shirt isn't wet; he can't, cannot, won't.": (
        "a man 's t-shirt is n't wet he ca n't can not wo n't"
    ),
    "the dog, running, isn't wet.": "the dog running is n't wet",
    "A dog 's toy does n't float .": "a dog 's toy does n't float",
    "he'll they're I'm I'd we've they'd've shouldn't've": (
        "he 'll they 're i 'm i 'd we 've they 'd 've should n't 've"
    ),
    "gonna wanna gotta gimme lemme 'tis 'twas": "gon na wan na got ta gim me lem me 't is 't was",
    "the dogs' bowl, the 'big' one, \"free hugs\"": "the dogs bowl the big one free hugs",
    "O'Brien at five o'clock, yes ma'am, c'mon": "o'brien at five o'clock yes ma'am c'mon",
    "rock 'n' roll and rock'n'roll of the '50s": "rock 'n' roll and rock 'n' roll of the '50s",
    "Mr. Smith of St. Louis, U.S., at 5 p.m.": "mr. smith of st. louis u.s. at 5 p.m.",
    "No. 5 says no.": "no. 5 says no",
    "a (small) [red] {toy}": "a -lrb- small -rrb- -lsb- red -rsb- -lcb- toy -rcb-",
    "$5.00 for 1,000 & 50% of #8 at 10:30am": "$ 5.00 for 1,000 & 50 % of # 8 at 10:30 am",
    "A&M plays AT&T, not a&m": "a&m plays at&t not a & m",
    "R&amp;B &amp; soul": "r&b & soul",
    "a 3-year-old, 20-30 people, 1/2 and -5": "a 3-year-old 20-30 people 1/2 and -5",
    "boy/girl, red-and-white, x-ray-like": "boy/girl red-and-white x-ray-like",
    "dog...cat -- dog - cat air- -air red,blue; up": "dog cat dog cat air air red blue up",
    "it\u2019s \u2018a\u2019 \u201cdog\u201d \u2014 don\u2019t\u2026": "it 's a dog do n't",
    "www.example.com, wow!": "www.example.com wow",
    "un homme près de l'eau qu'il n'est": "un homme près de l'eau qu'il n'est",
    "D'un café naïf où ça cœur": "d'un café naïf où ça cœur",
    "Рыжая собака бежит.": "рыжая собака бежит",
    "हिन्दी में कुत्ता": "हिन्दी में कुत्ता",
    "20°C under_score a=b": "20 ° c under_score a = b",
    " . , ' \" ": "",
    "": "",
}


@pytest.mark.parametrize("text", OFFICIAL)
def test_tokens_are_the_official_ones(text):
    assert tokens(text) == OFFICIAL[text].split()


def test_chinese_and_japanese_are_counted_by_character():
    assert tokens("两个人在打篮球。") == list("两个人在打篮球")
    assert tokens("犬が走る、IKEA。") == [*"犬が走る", "ikea"]


def test_composed_and_decomposed_accents_are_one_word():
    assert tokens("cafe\u0301") == tokens("caf\u00e9") == ["caf\u00e9"]


def test_text_that_is_split_already_stays_as_it_is():
    text = "a man 's t-shirt is n't wet & he ca n't swim 5.00 $"
    assert tokens(text) == text.split()


# --------------------------------------------------------------------------- worked by hand

WORKED_HYPOTHESES = split(
    ["a dog runs on the beach", "a man rides a a bike", "girls play on the beach"]
)
WORKED_REFERENCES = split_all(
    [
        ["a dog runs on the grass", "the brown dog is running"],
        ["a man rides a bike", "a man on a bike"],
        ["two girls play on the beach", "girls play in the sand"],
    ]
)
# Image, reference and the cosine, length penalty included, of n = 1 to 4.
WORKED_PAIRS = [
    (0, 0, [0.694416, 0.758233, 0.750000, 0.666667]),
    (0, 1, [0.304573, 0, 0, 0]),
    (1, 0, [0.903247, 0.882090, 0.569387, 0.402617]),
    (1, 1, [0.765313, 0.441045, 0, 0]),
    (2, 0, [0.858755, 0.858755, 0.854080, 0.805235]),
    (2, 1, [0.593117, 0.282337, 0, 0]),
]


@pytest.mark.parametrize(("image", "reference", "cosines"), WORKED_PAIRS)
def test_worked_pairs(image, reference, cosines):
    """An image's score is the mean of its references': doubling one gives its own."""
    references = [list(texts) for texts in WORKED_REFERENCES]
    once = cider_d(WORKED_HYPOTHESES, references)[image]
    references[image].append(references[image][reference])
    twice = cider_d(WORKED_HYPOTHESES, references)[image]
    assert 3 * twice - 2 * once == pytest.approx(10 * sum(cosines) / 4, abs=2e-5)


def test_worked_scores():
    cider = cider_d(WORKED_HYPOTHESES, WORKED_REFERENCES)
    assert cider == pytest.approx([3.967361, 4.954625, 5.315349], abs=1e-6)
    assert sum(cider) / 3 == pytest.approx(4.745779, abs=1e-6)
    expected = [0.882353, 0.869657, 0.819340, 0.765717]
    assert bleu(WORKED_HYPOTHESES, WORKED_REFERENCES) == pytest.approx(expected, abs=1e-6)
    rouge = rouge_l(WORKED_HYPOTHESES, WORKED_REFERENCES)
    assert rouge == pytest.approx([0.833333, 0.924242, 0.894428], abs=1e-6)


def test_worked_scores_of_one_image_are_zero():
    """Of one image every n-gram is in all images: all weights are ln 1 = 0."""
    assert cider_d(WORKED_HYPOTHESES[:1], WORKED_REFERENCES[:1]) == [0.0]


# --------------------------------------------------------------------------- golden values

HYPOTHESES = [
    "a brown dog runs through a field",
    "two children are playing in the sand",
    "a man is riding a bike",
]
REFERENCES = [
    [
        "a brown dog runs across the grass",
        "a dog is running in a grassy field",
        "the brown dog runs through the grass",
        "a dog running outside",
        "a brown dog is playing in the field",
    ],
    [
        "two children play on a beach",
        "a boy and a girl play in the sand",
        "two kids are playing at the beach",
        "children build a sand castle by the sea",
        "the kids play in the sand near the water",
    ],
    [
        "a man rides a red bicycle down the street",
        "a cyclist in a helmet rides on a city street",
        "a man on a bike",
        "the man is riding his bicycle on the road",
        "a person riding a red bike down a road",
    ],
]
GOLDEN_CIDER = [2.799064474554165, 1.4106244661816594, 1.5294827728299953]
GOLDEN_BLEU = [1.0, 0.8744746321952062, 0.6488019301324731, 0.4720558972630982]
GOLDEN_ROUGE = [0.5714285714285714, 0.5714285714285714, 0.7393939393939394]


def exactly(expected):
    return pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_golden_values():
    hypotheses, references = split(HYPOTHESES), split_all(REFERENCES)
    assert cider_d(hypotheses, references) == exactly(GOLDEN_CIDER)
    assert bleu(hypotheses, references) == exactly(GOLDEN_BLEU)
    assert rouge_l(hypotheses, references) == exactly(GOLDEN_ROUGE)


def test_golden_row():
    row = score(HYPOTHESES, REFERENCES)
    assert list(row) == ["CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]
    expected = [1.9130572378552733, *GOLDEN_BLEU, 0.6274170274170273]
    assert list(row.values()) == exactly([100 * value for value in expected])
    assert {type(value) for value in row.values()} == {float}


def test_cider_depends_on_the_images_scored():
    two = cider_d(split(HYPOTHESES[:2]), split_all(REFERENCES[:2]))
    assert sum(two) / 2 == exactly(2.05650628899629)
    assert two == pytest.approx([2.74635104, 1.36666154], abs=5e-9)
    assert cider_d(split(HYPOTHESES[:1]), split_all(REFERENCES[:1])) == [0.0]


TWO = [["a dog runs on the grass"], ["two kids play at the beach"]]


def test_a_copy_of_the_only_reference_scores_highest():
    copies = [text for (text,) in TWO]
    row = score(copies, TWO)
    assert list(row.values()) == exactly([1000, 100, 100, 100, 100, 100])


def test_words_in_another_order():
    row = score(["a dog on grass runs", "kids two at play beach"], TWO)
    assert row["CIDEr"] == exactly(274.11710609764746)
    assert row["ROUGE-L"] == exactly(62.6099706744868)
    assert row["BLEU-1"] == pytest.approx(81.8730752914236, rel=1e-7)
    assert row["BLEU-2"] == pytest.approx(28.946503367219384, rel=1e-7)
    assert row["BLEU-4"] < 1e-50


def test_one_word():
    row = score(["dog", "beach"], TWO)
    assert row["CIDEr"] == exactly(79.00567927365066)
    assert row["ROUGE-L"] == exactly(25.311203319502074)


@pytest.mark.parametrize("hypotheses", [["", ""], ["...", "'"], ["red cars", "blue trees"]])
def test_nothing_shared_is_zero(hypotheses):
    assert set(score(hypotheses, TWO).values()) == {0.0}


def test_an_empty_hypothesis_is_zero_beside_a_good_one():
    hypotheses, references = split(["", "two kids play at the beach"]), split_all(TWO)
    assert cider_d(hypotheses, references) == exactly([0, 10])
    assert rouge_l(hypotheses, references) == exactly([0, 1])


def test_full_stop_and_case_change_nothing():
    written = [text.capitalize() + "." for text in HYPOTHESES]
    spaced = [[f"{text.title()} ." for text in image] for image in REFERENCES]
    assert score(written, spaced) == score(HYPOTHESES, REFERENCES)


def test_inputs_are_not_touched():
    hypotheses, references = split(HYPOTHESES), split_all(REFERENCES)
    for measure in (cider_d, bleu, rouge_l):
        measure(hypotheses, references)
    assert (hypotheses, references) == (split(HYPOTHESES), split_all(REFERENCES))


# --------------------------------------------------------------------------- CiderD


def test_a_batch_scores_any_images_in_any_order():
    ids = {}
    cider = CiderD([to_ids(texts, ids) for texts in REFERENCES])
    order = [2, 0, 1, 0, 2]
    hypotheses = to_ids([HYPOTHESES[index] for index in order], ids)
    scores = cider.scores(np.array(order), pad(hypotheses))
    assert scores.dtype == np.float64
    assert scores == exactly([GOLDEN_CIDER[index] for index in order])


def test_padding_changes_nothing():
    ids = {}
    cider = CiderD([to_ids(texts, ids) for texts in REFERENCES])
    hypotheses = pad(to_ids(HYPOTHESES, ids))
    wider = np.pad(hypotheses, ((0, 0), (0, 5)), constant_values=-7).astype(np.int32)
    assert cider.scores(np.arange(3), wider) == exactly(GOLDEN_CIDER)
    for index in range(3):
        alone = cider.scores(np.array([index]), hypotheses[index : index + 1])
        assert alone == exactly([GOLDEN_CIDER[index]])


def test_no_hypotheses_have_no_scores():
    cider = CiderD([[[1, 2]], [[3]]])
    assert cider.scores(np.zeros(0, int), np.zeros((0, 4), int)).shape == (0,)
    assert cider.scores(np.array([0, 1]), np.zeros((2, 0), int)).tolist() == [0, 0]


def test_more_images_than_are_counted_at_once():
    n_images = 2 * metrics.BLOCK + 1
    references = [[[index, n_images, n_images + 1 + index]] for index in range(n_images)]
    scores = CiderD(references).scores(np.arange(n_images), pad([words for (words,) in references]))
    # Three words hold no four in a row: three of the four cosines are 1.
    assert scores == exactly([7.5] * n_images)


def test_length_is_punished_by_its_difference_in_bigrams():
    references = [[["red", "dog"]], [["blue", "car"]]]
    repeated = ["red", "dog"] * 3  # 5 bigrams beside 1: three "red dog", two "dog red"
    cosines = 1 / 3, 1 / (3 * math.sqrt(3**2 + 2**2)) * 3
    expected = 10 * sum(cosines) / 4 * math.exp(-(4**2) / 72)
    assert cider_d([repeated, []], references) == exactly([expected, 0])


def plain_cider_d(references, image, hypothesis):
    """The formula, slowly: one hypothesis, dictionaries of tuples."""

    def count(words, n):
        return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))

    total = 0.0
    for n in range(1, 5):
        found = Counter(g for image in references for g in {g for w in image for g in count(w, n)})
        idf = Counter({g: math.log(len(references) / max(1, found[g])) for g in found})
        h = {g: c * idf.get(g, math.log(len(references))) for g, c in count(hypothesis, n).items()}
        for words in references[image]:
            r = {g: c * idf[g] for g, c in count(words, n).items()}
            norms = math.hypot(*h.values()) * math.hypot(*r.values())
            gap = max(0, len(hypothesis) - 1) - max(0, len(words) - 1)
            product = sum(min(h[g], r[g]) * r[g] for g in h.keys() & r.keys())
            total += math.exp(-(gap**2) / 72) * product / norms if norms else 0
    return 10 * total / 4 / len(references[image])


@pytest.mark.parametrize("largest", [1, 3, 40, 2**63 - 1])
@pytest.mark.parametrize("n_images", [1, 2, 9])
def test_random_sentences_score_as_by_the_plain_formula(largest, n_images):
    """Few ids repeat words within a sentence; the largest fill 64 bits on their own."""
    draw = random.Random(n_images)
    ids = [largest - index for index in range(min(largest + 1, 40))]

    def sentence():
        return draw.choices(ids, k=draw.choice([0, 1, 2, 3, 5, 9, 14]))

    for _ in range(10):
        references = [[sentence() for _ in range(draw.randint(1, 6))] for _ in range(n_images)]
        image_index = draw.choices(range(n_images), k=20)
        hypotheses = [
            draw.choice([sentence(), draw.choice(references[image])]) for image in image_index
        ]
        expected = [
            plain_cider_d(references, *pair) for pair in zip(image_index, hypotheses, strict=True)
        ]
        scores = CiderD(references).scores(np.array(image_index), pad(hypotheses))
        assert scores == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_ngrams_of_different_length_are_never_the_same():
    """The last two bits of a hash are n - 1."""
    ngrams, _ = metrics.count_ngrams(np.arange(500) % 7, np.zeros(500, int))
    lengths = np.bincount(ngrams.hashes & np.uint64(3))
    assert lengths.tolist() == [7, 7, 7, 7]
    assert ngrams.counts.sum() == 500 + 499 + 498 + 497


def test_no_two_ngrams_share_a_hash():
    n_tokens = 20
    fours = np.stack(np.meshgrid(*[np.arange(n_tokens)] * 4), axis=-1).reshape(-1, 4)
    ngrams, _ = metrics.count_ngrams(fours.ravel(), np.arange(len(fours)).repeat(4))
    assert len(np.unique(ngrams.hashes)) == sum(n_tokens**n for n in range(1, 5))


def test_a_hash_is_found_in_its_own_list_only():
    generator = np.random.default_rng(0)
    lists = [np.unique(generator.integers(0, 2**64 - 1, n, np.uint64)) for n in (0, 50, 1, 0, 9)]
    table = metrics._HashTable(np.concatenate(lists), np.array([len(each) for each in lists]))
    row = 0
    for which, hashes in enumerate(lists):
        for other in range(len(lists)):
            found = table.find(hashes, np.full(len(hashes), other))
            rows = range(row, row + len(hashes))
            assert found.tolist() == (list(rows) if other == which else [-1] * len(hashes))
        row += len(hashes)


def test_hashes_that_crowd_at_one_end_are_found():
    hashes = np.uint64(2**64 - 2) - np.arange(20, dtype=np.uint64)[::-1]
    table = metrics._HashTable(np.concatenate([hashes, hashes]), np.array([20, 20]))
    for which in (0, 1):
        assert table.find(hashes, which).tolist() == list(range(20 * which, 20 * which + 20))
        assert table.find(hashes - np.uint64(20), which).tolist() == [-1] * 20


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize("measure", [bleu, rouge_l, cider_d])
def test_errors_of_each_measure(measure):
    with pytest.raises(ValueError, match="2 hypotheses for 1 images"):
        measure([["a"], ["b"]], [[["a"]]])
    with pytest.raises(ValueError, match="image 1 has no references"):
        measure([["a"], ["b"]], [[["a"]], []])
    with pytest.raises(ValueError, match="no images"):
        measure([], [])


def test_errors_of_the_row():
    with pytest.raises(ValueError, match="1 hypotheses for 2 images"):
        score(["a dog"], [["a dog"], ["a cat"]])
    with pytest.raises(ValueError, match="image 0 has no references"):
        score(["a dog"], [[]])
    with pytest.raises(ValueError, match="no images"):
        score([], [])


def test_errors_of_cider():
    with pytest.raises(ValueError, match="no images"):
        CiderD([])
    with pytest.raises(ValueError, match="image 0 has no references"):
        CiderD([[]])


# --------------------------------------------------------------------------- the original


@pytest.mark.filterwarnings("ignore")
def test_scores_equal_the_originals():
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    hypotheses = dict(enumerate([text] for text in [*HYPOTHESES, "a dog", "a a a b a a"]))
    references = dict(enumerate([*REFERENCES, ["the dog", "a dog"], ["a b a", "b a b b a a"]]))
    ours = split(text for (text,) in hypotheses.values()), split_all(references.values())
    assert cider_d(*ours) == exactly(list(Cider().compute_score(references, hypotheses)[1]))
    assert rouge_l(*ours) == exactly(list(Rouge().compute_score(references, hypotheses)[1]))
    # nltk's BLEU is another where a hypothesis has fewer than four words: all here have more.
    del hypotheses[3], references[3]
    ours = split(text for (text,) in hypotheses.values()), split_all(references.values())
    expected = Bleu(4).compute_score(references, hypotheses, verbose=0)[0]
    assert bleu(*ours) == pytest.approx(expected, rel=1e-8)


@pytest.mark.skipif(not shutil.which("java"), reason="the official tokenizer needs Java")
@pytest.mark.filterwarnings("ignore")
def test_tokens_equal_the_originals():
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    texts = [text for text in OFFICIAL if metrics.tokens(text)]
    theirs = tokenizer.tokenize({n: [{"caption": text}] for n, text in enumerate(texts)})
    assert [theirs[n][0].split() for n in range(len(texts))] == [tokens(text) for text in texts]


# --------------------------------------------------------------------------- resampled


def test_images_that_occur_often_are_scored_as_a_corpus_that_repeats_them():
    """BLEU is no mean of sentences: the counts of a resampled corpus are added anew."""
    times = np.array([[2, 0, 1], [1, 1, 1], [0, 3, 0]])
    measured = metrics.measure(HYPOTHESES, REFERENCES)
    found = measured.resampled(times)
    ours, theirs = split(HYPOTHESES), split_all(REFERENCES)
    for row, counts in enumerate(times):
        index = np.arange(3).repeat(counts)
        expected = bleu([ours[i] for i in index], [theirs[i] for i in index])
        for n in range(1, 5):
            assert found[f"BLEU-{n}"][row] == pytest.approx(100 * expected[n - 1])
        assert found["CIDEr"][row] == pytest.approx(measured.cider[index].mean())
        assert found["ROUGE-L"][row] == pytest.approx(measured.rouge[index].mean())
    assert measured.scores() == score(HYPOTHESES, REFERENCES)


def test_bleu_is_nltks():
    from nltk.translate.bleu_score import corpus_bleu

    drawn = random.Random(0)
    words = ["a", "dog", "cat", "man", "runs", "sits", "on", "the", "grass", "in"]
    sentences = [drawn.choices(words, k=drawn.randint(1, 12)) for _ in range(400)]
    ours, theirs = sentences[:100], [sentences[100 + 3 * i : 103 + 3 * i] for i in range(100)]
    weights = [(1 / n,) * n for n in range(1, 5)]
    assert bleu(ours, theirs) == pytest.approx(corpus_bleu(theirs, ours, weights), rel=1e-12)
