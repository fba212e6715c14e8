"""What each word of a caption saw: scores, maps, the strip, and `predict.py --explain`."""

import math

import pytest
import tiny
import torch
from PIL import Image

import explain
import predict
from captioner import Captioner
from checkpoint import Checkpoint
from loader import SPECIAL_TOKENS, Vocabulary
from model import END, START

WORDS = ["a", "man", "'s", "t", "-", "shirt", "red", "blue"]
SIZE = 64
TOKENS = [4, 5, 6, 10, 7, 8, 9]  # a man 's red t - shirt
RED, BLUE = 10, 11
WAYS = pytest.mark.parametrize("way", [explain.occlusion, explain.grad_cam])


def captioner_of(*models, **asked):
    vocabulary = Vocabulary([*SPECIAL_TOKENS, *WORDS], [1] * 12, language="en")
    settings = {"image_size": SIZE, "beam_size": 2, "max_words": 9, "length_penalty": 1.0}
    settings.update(no_repeat_ngram_size=1, image_weight=1.2, neighbour_weight=0.0)
    made = [Checkpoint(m, vocabulary, settings, epoch=1, scores={}, started_at="") for m in models]
    return Captioner(made, asked)


def model(seed=0, **options):
    made = tiny.make(4 + len(WORDS), **options)
    torch.manual_seed(seed)
    for weight in made.parameters():  # far from uniform probabilities
        torch.nn.init.normal_(weight, std=0.3) if weight.dim() == 2 else None
    made.feature_norm.running_mean.normal_()
    return made


def picture(seed=2):
    return torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8, generator=_seeded(seed))


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------ the words


def test_words_are_those_that_people_read():
    """A tile for "t" and one for "-" would puzzle; nats of the tokens add up, as in the caption."""
    captioner = captioner_of(model())
    found = explain.words(captioner, picture(), TOKENS)
    assert [word.text for word in found] == ["a", "man's", "red", "t-shirt", ""]
    assert " ".join(word.text for word in found[:-1]) == captioner.vocabulary.decode(TOKENS)
    single = explain.words(captioner, picture(), TOKENS[:3])
    assert found[1].log_prob == pytest.approx(single[1].log_prob, abs=1e-5)


def test_captions_of_a_picture_are_weighed_together_as_alone():
    captioner = captioner_of(model(0), model(1))
    captions = [TOKENS, TOKENS[:2], TOKENS[::-1]]
    together = explain.words_of(captioner, captioner.encode(picture().unsqueeze(0)), captions)
    for tokens, found in zip(captions, together, strict=True):
        alone = explain.words(captioner, picture(), tokens)
        assert [word.text for word in found] == [word.text for word in alone]
        for word, same in zip(found, alone, strict=True):
            assert word.log_prob == pytest.approx(same.log_prob, abs=1e-5)
            assert [text for text, _ in word.rivals] == [text for text, _ in same.rivals]


@pytest.mark.parametrize("n_models", [1, 2])
def test_the_words_log_probabilities_are_the_captions(n_models):
    captioner = captioner_of(*map(model, range(n_models)), max_words=30)
    for seed in range(3):
        caption = captioner.describe(picture(seed).unsqueeze(0))[0][0]
        assert len(caption.tokens) < 30  # it has ended
        found = explain.words(captioner, picture(seed), caption.tokens)
        assert sum(word.log_prob for word in found) == pytest.approx(caption.log_prob, abs=1e-4)


def test_rivals_are_other_words_best_first():
    captioner = captioner_of(model())
    texts = set()
    for word in explain.words(captioner, picture(), TOKENS):
        nats = [value for _, value in word.rivals]
        assert len(nats) == explain.N_RIVALS
        assert nats == sorted(nats, reverse=True)
        assert math.fsum(map(math.exp, nats)) < 1
        names = {text for text, _ in word.rivals}
        assert len(names) == explain.N_RIVALS
        assert word.text not in names
        texts |= names
    assert texts.isdisjoint(SPECIAL_TOKENS)
    assert "" in texts  # the end is a rival too


# ------------------------------------------------------------------------------ the maps


@WAYS
def test_a_decoder_that_ignores_the_picture_has_empty_maps(way):
    blind = model()
    torch.nn.init.zeros_(blind.image_embedding.weight)
    found = way(captioner_of(blind), picture(), TOKENS)
    assert found.maps.shape == (5, explain.GRID, explain.GRID)
    assert found.maps.abs().max() < 1e-5
    assert found.dependence.abs().max() < 1e-5


@WAYS
def test_the_whole_picture_hidden_is_the_mean_of_the_training(way):
    """As teacher forcing in training scores the caption, which takes another way to the logits."""
    made = model()
    captioner = captioner_of(made, image_weight=1.0)
    features = torch.cat([captioner.encode(picture().unsqueeze(0))[0], torch.zeros(1, 512)])
    features[1] = made.feature_norm.running_mean
    tokens = torch.tensor([[START, *TOKENS, END]] * 2)
    positions = torch.arange(tokens.numel())[tokens.flatten() != START]
    logits = made(features, tokens, torch.arange(2), positions).log_softmax(dim=-1)
    seen, hidden = logits.gather(1, tokens.flatten()[positions, None]).view(2, -1)
    falls = seen - hidden
    expected = [falls[0], falls[1] + falls[2], falls[3], falls[4] + falls[5] + falls[6], falls[7]]
    found = way(captioner, picture(), TOKENS).dependence
    torch.testing.assert_close(found, torch.stack(expected).detach(), atol=0.02, rtol=0.02)


def test_a_part_is_hidden_with_the_rest_in_sight_and_without():
    """The first part of an 8 x 8 grid is 8 pixels wide, hidden by a square of up to 10 x 10."""
    made = model()
    captioner = captioner_of(made)
    pixels = picture()
    mean = pixels.float().mean(dim=(1, 2)).round().to(torch.uint8).view(3, 1, 1)
    blank = mean.expand(3, SIZE, SIZE)
    without, alone = pixels.clone(), blank.clone()
    without[:, :10, :10], alone[:, :10, :10] = mean, pixels[:, :10, :10]
    scores = [
        torch.tensor([word.log_prob for word in explain.words(captioner, variant, TOKENS)])
        for variant in (pixels, without, alone, blank)
    ]
    expected = (scores[0] - scores[1] + scores[2] - scores[3]) / 2
    found = explain.occlusion(captioner, pixels, TOKENS).maps[:, 0, 0]
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


@WAYS
def test_an_ensemble_of_twins_is_as_one(way):
    one, two = (way(captioner_of(*[model()] * n), picture(), TOKENS) for n in (1, 2))
    torch.testing.assert_close(one.maps, two.maps, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(one.dependence, two.dependence, atol=1e-5, rtol=1e-3)


@WAYS
def test_an_ensemble_is_not_its_first_model(way):
    one, two, both = (
        way(captioner_of(*models), picture(), TOKENS).maps
        for models in ((model(0),), (model(1),), (model(0), model(1)))
    )
    assert not torch.allclose(one, both, atol=1e-4)
    assert not torch.allclose(two, both, atol=1e-4)


@pytest.fixture(scope="module")
def corner_model():
    """Says "red" or "blue" after a patch in the upper right, whatever is elsewhere."""
    made = model()
    made.requires_grad_(False)
    generator = _seeded(3)
    pixels = torch.randint(100, 156, (48, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    is_red = torch.arange(48) % 2 == 0
    pixels[..., :20, 44:] = 0
    pixels[is_red, 0, :20, 44:] = 255
    pixels[~is_red, 2, :20, 44:] = 255
    features = made.make_encoder()(pixels)
    made.set_feature_stats(features)
    decoder = [p for n, p in made.named_parameters() if not n.startswith("encoder")]
    optimizer = torch.optim.Adam([p.requires_grad_() for p in decoder], 0.01)
    targets = torch.where(is_red, RED, BLUE)
    for _ in range(60):
        optimizer.zero_grad()
        tokens = torch.full((48, 1), START)
        logits, _ = made.step(tokens, made.init_state(features))
        torch.nn.functional.cross_entropy(logits[:, 0], targets).backward()
        optimizer.step()
    return made.requires_grad_(False), pixels[0]


@WAYS
def test_a_word_that_depends_on_a_corner_points_at_it(corner_model, way):
    made, pixels = corner_model
    found = way(captioner_of(made), pixels, [RED])
    assert found.words[0].text == "red"
    assert found.words[0].log_prob > math.log(0.9)
    y, x = divmod(int(found.maps[0].argmax()), explain.GRID)
    assert y < 3
    assert x >= explain.GRID - 3
    assert found.dependence[0] > 0.2


# ------------------------------------------------------------------------------ the strip


def made_up(*nats):
    """An explanation: a word for each of nats, with that fall in its first cell."""
    maps = torch.zeros(len(nats), explain.GRID, explain.GRID)
    maps[:, 0, 0] = torch.tensor(nats)
    found = [explain.Word("dog", -1.0, []) for _ in nats[1:]]
    return explain.Explanation([*found, explain.Word("", -0.1, [])], maps, 2 * maps[:, 0, 0])


def tile_of(sheet, i, height):
    step_x, step_y = explain.TILE + explain.MARGIN, explain.HEAD + height + explain.MARGIN
    x, y = explain.MARGIN + i % 5 * step_x, i // 5 * step_y + explain.HEAD
    return sheet.crop((x, y, x + explain.TILE, y + height))


def colourfulness(tile):
    red, green, blue = tile.resize((1, 1), Image.Resampling.BOX, box=(0, 0, 12, 9)).getpixel((0, 0))
    return red - blue if green < max(red, blue) else 0


def test_the_strip_has_the_picture_and_a_tile_a_word_on_one_scale():
    picture = Image.new("RGB", (400, 300), "green")
    sheet = explain.strip(picture, made_up(2.0, 1.0, 0.0, -2.0, 0.0))
    assert sheet.width == 5 * explain.TILE + 6 * explain.MARGIN
    tiles = [tile_of(sheet, i, 150) for i in range(6)]
    assert tiles[0].getcolors() == [(200 * 150, (0, 128, 0))]
    falls, less, nothing, rises, end = map(colourfulness, tiles[1:])
    assert falls > 1.5 * less > 30
    assert nothing == end == 0
    assert rises < -30


def test_nothing_is_painted_of_what_is_next_to_nothing():
    """Else the scale would blow noise up until it looked like a finding."""
    sheet = explain.strip(Image.new("RGB", (300, 300)), made_up(0.004, 0.001))
    assert all(abs(colourfulness(tile_of(sheet, i, 200))) < 3 for i in (1, 2))


@pytest.mark.parametrize(("size", "height"), [((4000, 10), 1), ((10, 4000), 300)])
def test_pictures_of_any_shape_have_a_strip(size, height):
    sheet = explain.strip(Image.new("RGB", size), made_up(1.0))
    assert sheet.height > explain.HEAD + height


def test_a_change_has_a_sign_and_nothing_has_none():
    assert [explain._change(fall) for fall in (2.13, -0.26, 0.04, -0.04)] == [
        "-2.1",
        "+0.3",
        "0",
        "0",
    ]


# ------------------------------------------------------------------- predict.py --explain


def run(trained, *flags):
    try:
        checkpoint = trained.checkpoints / "best.pt"
        return predict.main([*map(str, flags), "--checkpoint", str(checkpoint)])
    except SystemExit as error:  # argparse's way
        return error.code


@pytest.fixture
def photo(trained, tmp_path):
    source = min((trained.data / "flickr30k_images").glob("*.png"))
    Image.open(source).resize((80, 40)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".webp"])
def test_a_strip_is_drawn_and_the_caption_printed(trained, photo, tmp_path, capsys, suffix):
    assert run(trained, photo) == 0
    caption, _ = capsys.readouterr()
    sheet = tmp_path / f"strip{suffix}"
    assert run(trained, photo, "--explain", sheet) == 0
    assert capsys.readouterr() == (caption, f"written to {sheet}\n")
    with Image.open(sheet) as image:
        n_tiles = 2 + len(caption.split())
        n_rows = math.ceil(n_tiles / 5)
        assert image.height > n_rows * (explain.HEAD + explain.TILE // 2)
    before = sheet.read_bytes()
    assert run(trained, photo, "--explain", sheet) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert sheet.read_bytes() == before
    assert run(trained, photo, "--explain", sheet, "--overwrite", "--quiet") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["a.png", "a.png", "--explain", "s.png"], "give it a single one"),
        ([".", "--explain", "s.png"], "give it a single one"),
        (["a.png", "--explain", "s.gif"], "must end in .png, .jpg, .jpeg, .webp, got s.gif"),
        (["a.png", "--explain", "s.png", "--sidecar", "txt"], "not --merge, --resume, --sidecar"),
        (["a.png", "--explain", "s.png", "--output", "out"], "give no folder as --output"),
        (["a.png", "--explain", "a.png/s.png"], "a.png"),
        # It replaced the user's photo by the drawing.
        (["a.png", "--explain", "./a.png", "--overwrite"], "a.png is the picture itself: give"),
        (["notes.txt", "--explain", "s.png"], "notes.txt is not a picture"),
    ],
)
def test_what_cannot_be_explained_is_one_line_and_2(
    trained, photo, capsys, monkeypatch, flags, message
):
    monkeypatch.chdir(photo.parent)
    (photo.parent / "notes.txt").write_text("no picture")
    before = photo.read_bytes()
    assert run(trained, *flags) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (photo.parent / "s.png").exists()
    assert photo.read_bytes() == before
