"""What people said of similar photos: how it is counted, kept in a model, and chosen by."""

import json
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import tiny
import torch

import checkpoint
import cli
import evaluate
import neighbours
import predict
import train
from cli import UserError
from loader import SPECIAL_TOKENS, Vocabulary
from model import END
from neighbours import Neighbours, remember
from resnet import BLOCKS_PER_LAYER
from run import Run
from search import Search, caption

CPU = torch.device("cpu")
COUNTS = [0, 0, 0, 5, 40, 20, 9, 3, 1]
EMBEDDINGS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.9, 0.1, 0]])
CAPTIONS = [
    [[4, 5, 6, END], [4, 6, 5, 6, END]],
    [[7, 8, END]],
    [[4, 4, 7, 5, 6, 8, END], [5, END], [4, 5, 6, 7, END]],
    [[6, 5, 4, END]],
]


def known():
    return remember(EMBEDDINGS, CAPTIONS, COUNTS)


def by_hand(image, words):
    """The agreement as the docstring has it, a picture and a caption at a time."""
    mean = EMBEDDINGS.mean(dim=0)
    cosines = torch.cosine_similarity(image - mean, EMBEDDINGS - mean, dim=-1)
    nearest = sorted(range(len(CAPTIONS)), key=lambda i: -cosines[i])[: neighbours.N_NEIGHBOURS]
    shares = torch.softmax(cosines[nearest] / neighbours.TEMPERATURE, dim=0).tolist()

    def vector(tokens, n):
        grams = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        rare = {g: k * sum(math.log(78 / (COUNTS[t] + 1)) for t in g) for g, k in grams.items()}
        return rare, math.sqrt(sum(value**2 for value in rare.values())) or 1

    def cosine(ours, theirs, n):
        (a, norm), (b, other) = vector(ours, n), vector(theirs, n)
        return sum(value * b.get(gram, 0) for gram, value in a.items()) / norm / other

    return sum(
        share * cosine(words, said, n) / len(CAPTIONS[photo]) / 4
        for photo, share in zip(nearest, shares, strict=True)
        for said in CAPTIONS[photo]
        for n in range(1, 5)
    )


@pytest.mark.parametrize("most", [1, 2, 20])
def test_it_is_the_mean_cosine_with_the_captions_of_near_photos(monkeypatch, most):
    monkeypatch.setattr(neighbours, "N_NEIGHBOURS", most)
    images = torch.tensor([[0.8, 0.3, 0.1], [0.1, 0.2, 0.9], [0.0, 1.0, 0.2]])
    hypotheses = [
        [[4, 5, 6, END], [8, END]],
        [[4, 4, 4, 4, END]],
        [[7, 8, END], [END], [5, 7, END]],
    ]
    found = known().agreement(images, hypotheses)
    for image, mine, values in zip(images, hypotheses, found, strict=True):
        assert values == pytest.approx([by_hand(image, one) for one in mine], abs=1e-3)


def test_what_all_say_agrees_wholly_and_what_none_says_not_at_all():
    same = remember(EMBEDDINGS, [[[4, 5, 6, 7, END]]] * 4, COUNTS)
    ((all_, none),) = same.agreement(EMBEDDINGS[:1], [[[4, 5, 6, 7, END], [8, 8, 8, 8]]])
    assert all_ == pytest.approx(1)
    assert none == 0


def test_one_photo_and_one_word_are_enough():
    one = remember(EMBEDDINGS[:1], [[[4, END]]], [0, 0, 0, 0, 1])
    assert one.agreement(EMBEDDINGS, [[[4, END]]] * 4) == [pytest.approx([0.5])] * 4


# ---------------------------------------------------------------------------------- in the search


@torch.inference_mode()
def searched(models, features, near, **changed):
    search = Search(**{"beam_size": 4, "max_words": 6, "neighbour_weight": 8.0, **changed})
    return caption(models, [features] * len(models), search, neighbours=near, batch_size=2)


def near_of(model, features, words):
    """As if people had said just these words of each image."""
    return remember(model.project(features).detach(), [[[*words, END]]] * 3, COUNTS)


def test_the_hypothesis_that_agrees_is_chosen():
    model, features = tiny.make(), tiny.features_of(tiny.make())
    plain = searched([model], features, [])
    last = [image[-1].tokens for image in plain]
    told = [[[*tokens, END]] for tokens in last]
    near = remember(model.project(features).detach(), told, COUNTS)
    found = searched([model], features, [near], neighbour_weight=900.0)
    for image, before in zip(found, plain, strict=True):
        assert image[0].tokens == before[-1].tokens
        assert len(image) == len(before)
        assert [h.score for h in image] == sorted((h.score for h in image), reverse=True)
    weighed = searched([model], features, [near], neighbour_weight=0.5)
    embeddings = model.project(features).detach()
    for image, before, embedding in zip(weighed, plain, embeddings, strict=True):
        score = {tuple(h.tokens): h.score for h in before}
        for h in image:
            ((value,),) = near.agreement(embedding.unsqueeze(0), [[[*h.tokens, END]]])
            expected = score.get(tuple(h.tokens), h.log_prob_per_word) + 0.5 * value
            assert h.score == pytest.approx(expected, abs=1e-5)


def test_they_choose_among_more_than_the_beams():
    """Twice as many that ended are kept, so one that is not among the likeliest can win."""
    model, features = tiny.make(), tiny.features_of(tiny.make())
    likeliest = searched([model], features, [], beam_size=2)
    told = [[[*image[-1].tokens, END]] for image in searched([model], features, [], beam_size=4)]
    near = remember(model.project(features).detach(), told, COUNTS)
    found = searched([model], features, [near], beam_size=2, neighbour_weight=900.0)
    assert all(len(image) == 2 for image in found)
    assert any(
        image[0].tokens not in [h.tokens for h in before]
        for image, before in zip(found, likeliest, strict=True)
    )


@pytest.mark.parametrize("asked", [{"neighbour_weight": 0.0}, {"temperature": 1.0}])
def test_with_weight_0_and_for_samples_they_change_nothing(asked):
    model, features = tiny.make(), tiny.features_of(tiny.make())
    near = near_of(model, features, [4, 5])
    torch.manual_seed(0)
    plain = searched([model], features, [], **asked)
    torch.manual_seed(0)
    assert searched([model], features, [near], **asked) == plain


def test_of_an_ensemble_those_that_know_photos_are_asked():
    """Twice the same knowledge is as once; a model without any has no part in it."""
    model, features = tiny.make(), tiny.features_of(tiny.make())
    near = near_of(model, features, [4, 5])
    alone = searched([model], features, [near])
    for known_by in ([near, near], [near, None], [None, near]):
        found = searched([model, model], features, known_by)
        for image, one in zip(found, alone, strict=True):
            assert [h.tokens for h in image] == [h.tokens for h in one]
            assert [h.score for h in image] == pytest.approx([h.score for h in one], abs=1e-5)


# --------------------------------------------------------------------------------- in a checkpoint


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setitem(BLOCKS_PER_LAYER, "tiny", (1, 1, 1, 1))
    words = [*SPECIAL_TOKENS, "a", "dog", "runs", "far", "away"]
    settings = train.Settings(encoder="tiny", embedding_size=3, hidden_size=8, image_size=32)
    made = checkpoint.Checkpoint(
        tiny.make(len(words), encoder="tiny", embedding_size=3),
        Vocabulary(words, COUNTS, language="en"),
        settings=cli.plain(settings),
        epoch=3,
        scores={"loss": 2.5, "CIDEr": 31.0},
        started_at="2026-01-31_18-30-00",
        neighbours=known(),
    )
    checkpoint.save(tmp_path / "best.pt", made)
    return tmp_path / "best.pt"


def edited(path, edit):
    content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, path)
    return path


def test_a_checkpoint_keeps_them(saved):
    found = checkpoint.load(saved, CPU).neighbours
    assert isinstance(found, Neighbours)
    for name, part in known().plain().items():
        assert torch.equal(found.plain()[name], part)


def test_the_model_card_says_that_captions_are_in_the_file(saved):
    loaded = checkpoint.load(saved, CPU)
    assert "\nThe file holds the captions of 4 photos.\n" in checkpoint.model_card(loaded)
    assert "holds" not in checkpoint.model_card(replace(loaded, neighbours=None))


def test_a_model_of_before_knows_none_and_says_so(saved):
    edited(saved, lambda c: (c.pop("neighbours"), c["settings"].pop("neighbour_weight")))
    loaded = checkpoint.load(saved, CPU)
    assert loaded.neighbours is None
    assert loaded.search().neighbour_weight == 0
    assert loaded.search({"neighbour_weight": 0.0}).neighbour_weight == 0
    with pytest.raises(UserError, match="leave --neighbour-weight out"):
        loaded.search({"neighbour_weight": 2.0})


def changed(name, change):
    return lambda parts: parts.update({name: change(parts[name])})


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda parts: parts.pop("mean"), "lack parts"),
        (changed("tokens", lambda t: t.tolist()), "something else where a tensor"),
        (changed("tokens", lambda t: t.long()), "other sizes or types"),
        (changed("mean", lambda t: t[:-1]), "other sizes or types"),
        (changed("directions", lambda t: t[:-1]), "other sizes or types"),
        (changed("rareness", lambda t: t[1:]), "other sizes or types"),
        (changed("tokens", lambda t: t[:-1]), "none that training makes"),
        (changed("tokens", lambda t: t + 5), "none that training makes"),
        (changed("tokens", lambda t: -t), "none that training makes"),
        (changed("lengths", torch.zeros_like), "none that training makes"),
        (changed("n_captions", lambda t: t + 1), "none that training makes"),
        (changed("rareness", torch.zeros_like), "none that training makes"),
        (changed("directions", lambda t: t * math.nan), "none that training makes"),
    ],
)
def test_damaged_ones_are_refused(saved, edit, reason):
    with pytest.raises(UserError, match=reason):
        checkpoint.load(edited(saved, lambda content: edit(content["neighbours"])), CPU)


@pytest.mark.parametrize("value", ["much", 0.5, [], {}, True])
def test_something_else_in_their_place_is_refused(saved, value):
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(edited(saved, lambda content: content.update(neighbours=value)), CPU)


# --------------------------------------------------------------------------------------- in a run


def test_the_end_of_a_run_scores_with_them_as_evaluate_does(trained, tmp_path, capsys):
    best = checkpoint.load(trained.checkpoints / "best.pt", CPU)
    n_photos = len(train.load_data(best.settings, None).splits["train"])
    assert len(best.neighbours.n_captions) == n_photos
    last = checkpoint.load(trained.checkpoints / "last.pt", CPU)
    assert last.neighbours is None
    flags = ["--checkpoint", str(trained.checkpoints / "best.pt"), "--cache", str(tmp_path)]
    assert evaluate.main([*flags, "--split", "val", "--quiet"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in best.scores.keys() - {"loss"}:
        assert scores[name] == pytest.approx(best.scores[name])
    assert f"CIDEr {scores['CIDEr']:.1f}" in trained.stdout


def test_that_training_photos_are_their_own_similar_photos_is_said(trained, tmp_path, capsys):
    flags = ["--checkpoint", str(trained.checkpoints / "best.pt"), "--cache", str(tmp_path)]
    for split, weight, is_said in (
        ("train", [], True),
        ("train", ["0"], False),
        ("val", [], False),
    ):
        asked = [*flags, "--split", split, *(["--neighbour-weight", *weight] if weight else [])]
        assert evaluate.main(asked) == 0
        assert ("among its own similar photos" in capsys.readouterr().err) == is_said


def test_a_run_of_before_gets_them_by_resuming_it(trained, tmp_path):
    assert train.main(trained.flags(tmp_path, neighbour_weight=0, epochs=1)) == 0
    folder = tmp_path / "checkpoints"
    for name in ("best.pt", "last.pt"):
        edited(folder / name, lambda content: content["settings"].pop("neighbour_weight"))
    where = ["--resume", "--checkpoints", str(folder)]
    assert train.main(where) == 0
    assert checkpoint.load(folder / "best.pt", CPU).neighbours is None
    assert train.main([*where, "--neighbour-weight", "8"]) == 0
    best = checkpoint.load(folder / "best.pt", CPU)
    assert best.neighbours is not None
    assert best.search().neighbour_weight == 8


def test_the_weight_of_a_resumed_run_is_remembered(trained, tmp_path):
    """A plain --resume put captions back that had been left out for good reason."""
    assert train.main(trained.flags(tmp_path, epochs=1)) == 0
    best = tmp_path / "checkpoints" / "best.pt"
    assert checkpoint.load(best, CPU).neighbours is not None
    resume = ["--resume", "--checkpoints", str(best.parent)]
    for weight, is_kept in (("0", False), (None, False), ("8", True), (None, True)):
        flags = ["--neighbour-weight", weight] if weight else []
        assert train.main([*resume, *flags]) == 0
        assert bool(checkpoint.load(best, CPU).neighbours) == is_kept
        card = (best.parent / "model_card.md").read_text(encoding="utf-8")
        assert ("holds the captions" in card) == is_kept


@pytest.mark.parametrize("they", ["make captions worse", "change nothing"])
def test_neighbours_that_do_not_help_are_left_out(trained, tmp_path, capsys, monkeypatch, they):
    """Of few photos none is near: with 190, seven CIDEr were lost."""
    write = Run.write_captions

    def written(self, features, neighbours=None):
        is_worse = neighbours and they == "make captions worse"
        return ["what"] * len(features) if is_worse else write(self, features)

    monkeypatch.setattr(Run, "write_captions", written)
    assert train.main(trained.flags(tmp_path, epochs=1)) == 0
    assert re.search(r"CIDEr .* with .* without: .* left out", capsys.readouterr().err)
    best = checkpoint.load(tmp_path / "checkpoints" / "best.pt", CPU)
    assert best.neighbours is None
    assert best.search().neighbour_weight == 0
    assert best.scores["CIDEr"] > 0
    last = checkpoint.load(tmp_path / "checkpoints" / "last.pt", CPU)
    assert last.settings["neighbour_weight"] == 8  # to try again after more epochs


def test_with_weight_0_no_captions_are_kept(trained, tmp_path, capsys):
    assert train.main(trained.flags(tmp_path, neighbour_weight=0, epochs=1)) == 0
    path = tmp_path / "checkpoints" / "best.pt"
    assert checkpoint.load(path, CPU).neighbours is None
    scene = next((trained.data / "flickr30k_images").glob("*.png"))
    capsys.readouterr()
    asked = [str(scene), "--checkpoint", str(path), "--neighbour-weight", "2"]
    assert predict.main(asked) == 2
    assert "leave --neighbour-weight out" in capsys.readouterr().err


def test_of_too_many_photos_some_are_kept(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("run.MOST_PHOTOS", 10)
    assert train.main(trained.flags(tmp_path, epochs=1)) == 0
    best = checkpoint.load(tmp_path / "checkpoints" / "best.pt", CPU)
    assert len(best.neighbours.n_captions) == 10
    assert replace(best, neighbours=None).search().neighbour_weight == 8
