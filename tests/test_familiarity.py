"""Whether a picture is like those trained on: the measure, its place in a file, and in a run."""

import math

import pytest
import tiny
import torch

import checkpoint
import cli
import familiarity
import run
import train
from cli import UserError
from familiarity import FEWEST, UNFAMILIAR, Familiarity, fit
from features import load_features
from loader import SPECIAL_TOKENS, Vocabulary
from resnet import BLOCKS_PER_LAYER

CPU = torch.device("cpu")
F = 64


def photos(n, seed):
    """Features that vary in 8 of their 64 directions, and hardly in the others."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(8, F, generator=torch.Generator().manual_seed(0))
    inside = torch.randn(n, 8, generator=generator) @ basis
    return 3 + inside + 0.1 * torch.randn(n, F, generator=generator)


def others(n):
    """Features as far from the mean as photos', in any direction."""
    generator = torch.Generator().manual_seed(9)
    return 3 + photos(1000, 1).std() * torch.randn(n, F, generator=generator)


@pytest.fixture(scope="module")
def familiar():
    found = fit(photos(1000, 1), photos(400, 2))
    assert found is not None
    return found


# ------------------------------------------------------------------------------ the measure


def test_pictures_of_another_kind_are_unfamiliar(familiar):
    assert (familiar.of_features(others(100)) < UNFAMILIAR).all()
    shares = familiar.of_features(photos(2000, 3))
    assert (shares < UNFAMILIAR).float().mean() == pytest.approx(UNFAMILIAR, abs=0.03)
    assert shares.mean() == pytest.approx(0.5, abs=0.05)


def test_validation_photos_have_each_share_once(familiar):
    """One has no photo that is less familiar, one has all the others but itself."""
    shares = familiar.of_features(photos(400, 2)).sort().values
    torch.testing.assert_close(shares, torch.arange(400) / 400, atol=0.003, rtol=0)
    assert (shares < UNFAMILIAR).sum() == pytest.approx(20, abs=1)


def test_the_farther_outside_the_less_familiar(familiar):
    """It also does not matter which other pictures are asked about at the same time."""
    outside = torch.linalg.svd(familiar.directions).Vh[-1] * familiar.deviation
    features = familiar.mean + outside * torch.tensor([[0.0], [1.0], [2.0], [4.0], [100.0]])
    shares = familiar.of_features(features)
    assert shares[0] == 1
    assert shares[-1] == 0
    assert (shares.diff() <= 0).all()
    singles = torch.cat([familiar.of_features(one.unsqueeze(0)) for one in features])
    torch.testing.assert_close(singles, shares, atol=0.01, rtol=0)


def test_it_is_a_share_whatever_the_features_are(familiar):
    strange = [0.0, -1e30, 1e38, math.inf, -math.inf, math.nan]
    shares = familiar.of_features(torch.tensor(strange).unsqueeze(1).expand(-1, F))
    assert ((shares >= 0) & (shares <= 1)).all()
    assert (shares[1:] == 0).all()
    assert familiar.of_features(torch.empty(0, F)).shape == (0,)
    assert familiar.of_features(photos(3, 4).bfloat16()).dtype == torch.float32


def test_what_hardly_varies_counts_as_much(familiar):
    """A feature in another unit changes nothing: they are standardised."""
    units = torch.linspace(0.1, 50, F)
    scaled = fit(photos(1000, 1) * units, photos(400, 2) * units)
    found = familiar.of_features(photos(200, 3))
    torch.testing.assert_close(scaled.of_features(photos(200, 3) * units), found, atol=0.02, rtol=0)


def test_directions_are_orthonormal_and_not_too_many():
    for n, feature_size, expected in [(60, 64, 16), (60, 512, 30), (400, 1024, 128)]:
        generator = torch.Generator().manual_seed(0)
        found = fit(
            torch.randn(n, feature_size, generator=generator),
            torch.randn(60, feature_size, generator=generator),
        )
        assert found.directions.shape == (expected, feature_size)
        torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(expected))


def test_a_thousand_residuals_stand_for_more():
    found = fit(photos(1000, 1), photos(5000, 2))
    assert len(found.residuals) == familiarity.MOST_RESIDUALS
    assert (found.residuals.diff() >= 0).all()
    shares = found.of_features(photos(5000, 2)).sort().values
    torch.testing.assert_close(shares, torch.arange(5000) / 5000, atol=0.003, rtol=0)


def test_too_little_data_says_nothing():
    assert fit(photos(FEWEST - 1, 1), photos(400, 2)) is None
    assert fit(photos(400, 1), photos(FEWEST - 1, 2)) is None
    assert fit(photos(FEWEST, 1), photos(FEWEST, 2)) is not None


def test_an_encoder_that_gives_all_pictures_the_same_says_nothing():
    """All residuals are 0: every picture would be the least familiar."""
    assert fit(torch.zeros(100, F), torch.zeros(100, F)) is None


def test_a_feature_that_no_training_photo_has_is_no_division_by_zero():
    train_features, val_features = photos(1000, 1), photos(400, 2)
    train_features[:, 3] = val_features[:, 3] = 0
    found = fit(train_features, val_features)
    assert found.of_features(val_features).mean() == pytest.approx(0.5, abs=0.01)
    val_features[:, 3] = 2
    assert (found.of_features(val_features) == 0).all()


# --------------------------------------------------------------------------- in a checkpoint


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A small `best.pt` with the familiarity of made-up features."""
    monkeypatch.setitem(BLOCKS_PER_LAYER, "tiny", (1, 1, 1, 1))
    words = [*SPECIAL_TOKENS, "a", "dog", "runs"]
    model = tiny.make(len(words), encoder="tiny")
    settings = train.Settings(encoder="tiny", embedding_size=8, hidden_size=8, image_size=32)
    generator = torch.Generator().manual_seed(0)
    found = fit(*(torch.rand(60, model.feature_size, generator=generator) for _ in range(2)))
    made = checkpoint.Checkpoint(
        model,
        Vocabulary(words, [0, 0, 0, 1, 9, 3, 2], language="en"),
        settings=cli.plain(settings),
        epoch=3,
        scores={"loss": 2.5, "CIDEr": 31.0},
        started_at="2026-01-31_18-30-00",
        familiarity=found,
    )
    checkpoint.save(tmp_path / "best.pt", made)
    return tmp_path / "best.pt"


def test_a_checkpoint_keeps_it(saved):
    loaded = checkpoint.load(saved, CPU)
    checkpoint.save(saved.with_name("copy.pt"), loaded)
    found = checkpoint.load(saved.with_name("copy.pt"), CPU).familiarity
    features = tiny.features_of(loaded.model, n=20)
    assert torch.equal(loaded.familiarity.of_features(features), found.of_features(features))
    for name, part in loaded.familiarity.plain().items():
        assert torch.equal(found.plain()[name], part)
    torch.load(saved, weights_only=True)  # plain data: raises if it is not


def test_a_checkpoint_without_it_loads(saved):
    """As an earlier version wrote it, and as `last.pt` and an interrupted run's `best.pt` are."""
    content = torch.load(saved, weights_only=True)
    del content["familiarity"]
    torch.save(content, saved)
    loaded = checkpoint.load(saved, CPU)
    assert loaded.familiarity is None
    assert loaded.epoch == 3
    checkpoint.save(saved, loaded)
    assert "familiarity" not in torch.load(saved, weights_only=True)


def test_the_model_card_tells_whether_it_knows(saved):
    loaded = checkpoint.load(saved, CPU)
    card = checkpoint.model_card(loaded)
    assert f"familiarity below {UNFAMILIAR}" in card
    assert "as if it were familiar" not in card
    assert card == saved.with_name(checkpoint.CARD).read_text(encoding="utf-8")
    loaded.familiarity = None
    assert "unfamiliar one too, as if it were familiar" in checkpoint.model_card(loaded)
    assert max(map(len, card.splitlines())) <= 100


def without(name):
    return lambda parts: parts.pop(name)


def changed(name, change):
    return lambda parts: parts.update({name: change(parts[name])})


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (without("mean"), "lacks parts"),
        (lambda parts: parts.update(x=torch.zeros(2)), "lacks parts, or has others"),
        (changed("mean", lambda t: t.tolist()), "something else where a tensor"),
        (changed("residuals", lambda _: torch.zeros(1).expand(10**12)), "unusual layout"),
        (changed("mean", lambda t: t[:-1]), "other sizes or types"),
        (changed("mean", lambda t: t.unsqueeze(0)), "other sizes or types"),
        (changed("deviation", lambda t: t.double()), "other sizes or types"),
        (changed("directions", lambda t: t[:, :9].contiguous()), "other sizes or types"),
        (changed("directions", lambda t: t[:0]), "other sizes or types"),
        (changed("directions", lambda t: t[0]), "other sizes or types"),
        (changed("residuals", lambda t: t[:0]), "other sizes or types"),
        (changed("residuals", lambda t: t[0]), "other sizes or types"),
        (changed("mean", lambda t: t * math.nan), "none that training makes"),
        (changed("deviation", torch.zeros_like), "none that training makes"),
        (changed("directions", lambda t: 2 * t), "none that training makes"),
        (changed("directions", lambda t: t[:1].repeat(3, 1)), "none that training makes"),
        (changed("directions", lambda t: t * math.inf), "none that training makes"),
        (changed("residuals", lambda t: t.flip(0)), "none that training makes"),
        (changed("residuals", lambda t: -t.flip(0)), "none that training makes"),
        (changed("residuals", lambda t: t + math.inf), "none that training makes"),
    ],
)
def test_damaged_numbers_are_refused(saved, edit, reason):
    content = torch.load(saved, weights_only=True)
    edit(content["familiarity"])
    torch.save(content, saved)
    with pytest.raises(UserError, match=reason) as caught:
        checkpoint.load(saved, CPU)
    assert "damaged" in str(caught.value)


@pytest.mark.parametrize("value", ["much", 0.5, [], {}, True])
def test_something_else_in_its_place_is_refused(saved, value):
    content = torch.load(saved, weights_only=True)
    content["familiarity"] = value
    torch.save(content, saved)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(saved, CPU)


# ---------------------------------------------------------------------------------- in a run


def best_of(folder):
    return checkpoint.load(folder / "checkpoints" / "best.pt", CPU)


def resume(folder, *flags):
    return train.main(["--resume", "--checkpoints", str(folder / "checkpoints"), *flags])


@pytest.fixture
def few(monkeypatch):
    """Three validation photos are enough."""
    monkeypatch.setattr(familiarity, "FEWEST", 3)


def test_a_small_data_set_has_none(trained):
    loaded = checkpoint.load(trained.checkpoints / "best.pt", CPU)
    assert loaded.familiarity is None
    card = (trained.checkpoints / checkpoint.CARD).read_text(encoding="utf-8")
    assert "as if it were familiar" in card


@pytest.mark.usefixtures("few")
def test_the_end_of_a_run_adds_it_to_the_best_model(trained, tmp_path, capsys):
    """And changes nothing else: weights, scores and epoch stay those of the best epoch."""
    assert train.main(trained.flags(tmp_path)) == 0
    assert "familiarity and neighbours of " in capsys.readouterr().err
    found, plain = best_of(tmp_path), checkpoint.load(trained.checkpoints / "best.pt", CPU)
    assert isinstance(found.familiarity, Familiarity)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value)
    assert (found.epoch, found.scores) == (plain.epoch, plain.scores)
    last = checkpoint.load(tmp_path / "checkpoints" / "last.pt", CPU)
    assert found.started_at == last.started_at
    assert last.familiarity is None
    assert f"below {UNFAMILIAR}" in (tmp_path / "checkpoints" / checkpoint.CARD).read_text("utf-8")
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("where", ["fit", "save"])
def test_an_interrupted_end_leaves_a_good_model_and_is_made_up_for(
    trained, tmp_path, monkeypatch, where
):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if where == "fit":
            patched.setattr(familiarity, "fit", stop)
        else:  # in the middle of the file
            write = checkpoint._write
            patched.setattr(
                checkpoint,
                "_write",
                lambda path, content: (stop if "familiarity" in content else write)(path, content),
            )
        assert train.main(trained.flags(tmp_path)) == 130
    assert best_of(tmp_path).familiarity is None
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert resume(tmp_path) == 0
    assert best_of(tmp_path).familiarity is not None


@pytest.mark.usefixtures("few")
def test_a_finished_run_that_is_resumed_keeps_it(trained, tmp_path, monkeypatch):
    """Unless it trains a better model: that gets its own."""
    assert train.main(trained.flags(tmp_path)) == 0
    before = (tmp_path / "checkpoints" / "best.pt").read_bytes()
    assert resume(tmp_path) == 0
    assert (tmp_path / "checkpoints" / "best.pt").read_bytes() == before
    monkeypatch.setattr(train, "is_better", lambda *_: True)
    assert resume(tmp_path, "--epochs", "3") == 0
    assert best_of(tmp_path).epoch == 3
    assert_is_of_its_own_encoder(tmp_path)


@pytest.mark.usefixtures("few")
def test_after_fine_tuning_it_is_of_the_new_encoder(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "is_better", lambda *_: True)
    start = ["--init", str(trained.checkpoints / "best.pt"), "--finetune-epochs", "1"]
    assert train.main([*trained.flags(tmp_path, epochs=0), *start]) == 0
    assert_is_of_its_own_encoder(tmp_path)


def assert_is_of_its_own_encoder(folder):
    best = best_of(folder)
    examples = train.load_data(best.settings, None).splits["train"]
    cache = folder / "another cache"
    _, features = load_features(examples, best.model, image_size=32, cache=cache)
    torch.testing.assert_close(best.familiarity.mean, features.mean(dim=0))


@pytest.mark.usefixtures("few")
def test_of_many_photos_some_are_taken_evenly(trained, tmp_path, monkeypatch):
    taken = []
    load = run.load_features

    def watched(examples, *arguments, **options):
        taken.append([example.name for example in examples])
        return load(examples, *arguments, **options)

    monkeypatch.setattr(run, "load_features", watched)
    monkeypatch.setattr(run, "FAMILIAR_PHOTOS", 20)
    assert train.main(trained.flags(tmp_path, neighbour_weight=0, epochs=1)) == 0
    examples = train.load_data(best_of(tmp_path).settings, None).splits["train"]
    names = [example.name for example in examples]
    taken = [names for names in taken if len(names) == 20]
    assert taken
    places = torch.tensor([names.index(name) for name in taken[-1]])
    assert set((places.diff()).tolist()) <= {len(names) // 20, -(-len(names) // 20)}
    assert best_of(tmp_path).familiarity is not None
