"""What each word of a caption saw, measured: the model has no attention to read it off.

A part of the picture is hidden from the encoder, and the words of the caption are scored again: the
fall of a word's log-probability is how much it depended on that part. Hidden is not the picture
itself but what an early layer made of it, which is computed once.
"""

# D tokens of a caption with the end, T words of it with the end, P parts of a picture, G of them
# along a side, S side of a picture, N pictures or variants of one, F features.

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from captioner import Caption, Captioner
from files import whole_file
from model import END, START, UNK, ImageCaptioningModel
from pictures import Source, read_image, transform
from resnet import FoldedResNet
from search import mean_log_prob

log = logging.getLogger(__name__)

N_RIVALS = 4  # of a word
GRID = 8  # G, along a side
LAYER = 1  # of the encoder, before which parts are hidden: after the stem alone


class Word(NamedTuple):
    """A word of a caption as people write it, or the caption's end.

    Attributes:
        text: empty for the end.
        log_prob: in nats, given the picture and the words before; the sum of the tokens' if there
            are several ("t-shirt", "man's").
        rivals: the likeliest other tokens in its place, best first, with their log-probabilities;
            an empty one is the end.
    """

    text: str
    log_prob: float
    rivals: list[tuple[str, float]]


@dataclass(frozen=True)
class Explanation:
    """What the words of a caption depend on.

    Attributes:
        words: T, the caption's end the last.
        maps: (T, G, G) float32: by how many nats a word's log-probability falls when this part of
            the picture is hidden; below 0 it rises.
        dependence: (T,) the same when the whole picture is hidden.
    """

    words: list[Word]
    maps: Tensor
    dependence: Tensor


@torch.inference_mode()
def words(captioner: Captioner, pixels: Tensor, tokens: Sequence[int]) -> list[Word]:
    """Score the words of a caption, each after those before it.

    Args:
        captioner: a model, or an ensemble, whose probabilities are averaged as in the search.
        pixels: (3, S, S) uint8, as ``pictures.transform`` makes them.
        tokens: ids of the words, as ``Caption.tokens``.

    Returns:
        The T words. The sum of their log-probabilities is the caption's, but for a caption that
        ``max_words`` cut short: it did not come to its end, which is scored here.
    """
    vocabulary, targets = captioner.vocabulary, [*tokens, END]
    places = range(len(targets))
    scores = _scores(captioner, captioner.encode(pixels.unsqueeze(0)), tokens)[0]  # (D, V)
    chosen = scores[places, targets].tolist()
    scores[:, :END] = scores[:, UNK] = -torch.inf  # <pad>, <start> and <unk> are never written
    scores[places, targets] = -torch.inf
    best = scores.topk(min(N_RIVALS, len(vocabulary) - UNK - 1))
    texts = [[vocabulary.decode([id_]) for id_ in ids] for ids in best.indices.tolist()]
    rivals = [list(zip(*row, strict=True)) for row in zip(texts, best.values.tolist(), strict=True)]
    return [
        Word(text, sum(chosen[first:last]), rivals[first])
        for text, first, last in _spans(captioner, tokens)
    ]


@torch.no_grad()
def occlusion(captioner: Captioner, pixels: Tensor, tokens: Sequence[int]) -> Explanation:
    """Hide each part of the picture in turn, then all of it, and score the caption again.

    What is hidden is replaced by the mean of the picture, in the maps that the encoder's stem makes
    of it; the whole picture by the mean features of the training. All models of an ensemble have
    the same part hidden. Arguments as of ``words``.

    Source: Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2, there with grey squares.
    """
    features = [_hidden_features(model, pixels) for model in captioner.models]  # (P + 2, F) each
    scores = _token_scores(captioner, features, tokens)  # (P + 2, D)
    falls = (scores[-1] - scores[:-1]).T  # (D, P + 1)
    maps, whole = falls[:, :-1].unflatten(1, (GRID, GRID)), falls[:, -1]
    return _explanation(captioner, pixels, tokens, maps, whole)


@torch.enable_grad()
def grad_cam(captioner: Captioner, pixels: Tensor, tokens: Sequence[int]) -> Explanation:
    """Estimate from gradients what ``occlusion`` measures, in a fraction of its time.

    The gradient of a word's log-probability by the maps, times what would be taken away from them,
    is the fall if the model were linear: nats, too, but an estimate. Arguments as of ``words``.

    Source: Grad-CAM, Selvaraju et al. 2017, arXiv:1610.02391; cell by cell, without the mean of the
    gradients, as HiResCAM, Draelos and Carin 2020, arXiv:2011.08891.
    """
    n_tokens = len(tokens) + 1
    given = [_maps(model, pixels) for model in captioner.models]  # (1, C, s, s) each
    copies = [maps.expand(n_tokens, -1, -1, -1).clone().requires_grad_() for maps in given]
    features = [
        model.encoder.run_layers(maps, first=LAYER)
        for model, maps in zip(captioner.models, copies, strict=True)
    ]
    scores = _token_scores(captioner, features, tokens)  # (D, D): row d is for token d
    gradients = torch.autograd.grad(scores.diagonal().sum(), copies)
    maps = torch.zeros(n_tokens, GRID, GRID, device=scores.device)
    for gradient, theirs in zip(gradients, given, strict=True):
        lost = (gradient * (theirs - _fill(theirs))).sum(dim=1)  # (D, s, s)
        windows = _windows(lost.shape[-1]).to(lost)  # (P, 1, s, s)
        maps += torch.einsum("dyx,pyx->dp", lost, windows.squeeze(1)).unflatten(1, maps.shape[1:])
    mean = [model.feature_norm.running_mean.unsqueeze(0) for model in captioner.models]
    with torch.no_grad():
        whole = scores.diagonal() - _token_scores(captioner, mean, tokens)[0]
    return _explanation(captioner, pixels, tokens, maps, whole)


def _maps(model: ImageCaptioningModel, pixels: Tensor) -> Tensor:
    """What the encoder's first layers make of a picture, (1, C, s, s) float32."""
    images = model.normalise(pixels.unsqueeze(0).to(model.device))
    return FoldedResNet(model.encoder, torch.float32, LAYER)(images)


def _fill(maps: Tensor) -> Tensor:
    """What stands in the place of a part that is hidden: (1, C, s, s) → (1, C, 1, 1)."""
    return maps.mean(dim=(2, 3), keepdim=True)


def _hidden_features(model: ImageCaptioningModel, pixels: Tensor) -> Tensor:
    """The features with each of the P parts hidden, the whole picture, and nothing: (P + 2, F)."""
    maps = _maps(model, pixels)
    windows = _windows(maps.shape[-1]).to(maps.device)  # (P, 1, s, s)
    variants = torch.cat([torch.where(windows, _fill(maps), maps), maps])
    features = model.encoder.run_layers(variants, first=LAYER)
    return torch.cat([features[:-1], model.feature_norm.running_mean[None], features[-1:]])


def _windows(side: int) -> Tensor:
    """Which units of a map of this side are hidden with each part: (P, 1, side, side) bool.

    A window is twice as wide as its part, around it.
    """
    unit, part = torch.arange(side) + 0.5, (torch.arange(GRID) + 0.5).unsqueeze(1)
    along = (unit / side * GRID - part).abs() <= 1  # (G, side)
    return (along[:, None, :, None] & along[None, :, None, :]).flatten(0, 1).unsqueeze(1)


def _scores(captioner: Captioner, features: Sequence[Tensor], tokens: Sequence[int]) -> Tensor:
    """Log-probabilities of all words in each place: features of each model (B, F) → (B, D, V)."""
    logits = []
    for model, theirs in zip(captioner.models, features, strict=True):
        inputs = torch.tensor([START, *tokens], device=model.device).expand(len(theirs), -1)
        logits.append(model.eval().step(inputs, model.init_state(theirs))[0])
    return mean_log_prob(logits)


def _token_scores(
    captioner: Captioner, features: Sequence[Tensor], tokens: Sequence[int]
) -> Tensor:
    """Log-probabilities of the tokens and the end, given features (B, F) of each model: (B, D)."""
    scores = _scores(captioner, features, tokens)
    targets = torch.tensor([*tokens, END], device=scores.device).expand(len(scores), -1)
    return scores.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _spans(captioner: Captioner, tokens: Sequence[int]) -> list[tuple[str, int, int]]:
    """The T words, each with its place among the tokens: from, and up to."""
    spans, first = [], 0
    for text, ids in [*captioner.vocabulary.group(tokens), ("", [END])]:
        spans.append((text, first, first + len(ids)))
        first += len(ids)
    return spans


def _explanation(
    captioner: Captioner, pixels: Tensor, tokens: Sequence[int], maps: Tensor, dependence: Tensor
) -> Explanation:
    """Add up tokens, (D, G, G) and (D,), to words."""
    spans = [slice(first, last) for _, first, last in _spans(captioner, tokens)]
    return Explanation(
        words(captioner, pixels, tokens),
        torch.stack([maps[span].sum(dim=0) for span in spans]).cpu(),
        torch.stack([dependence[span].sum() for span in spans]).cpu(),
    )


# ------------------------------------------------------------------------------- the strip

COLUMNS = 5  # tiles in a row
TILE, TALLEST = 200, 300  # pixels: a tile's width, and the most of its height
MARGIN, HEAD, LINE = 16, 46, 20  # around a tile, above it for its word and number, of the legend
LEAST_SCALE = 0.5  # nats: a finer scale would paint what nobody needs to know
FALLS, RISES = (240, 90, 0), (30, 90, 240)  # colours of a word that falls, or rises, by hiding


def write_strip(path: Path, captioner: Captioner, source: Source, caption: Caption) -> None:
    """Draw the ``strip`` of a picture's caption into a file, which appears whole.

    Raises:
        UserError: the picture cannot be read.
    """
    picture = read_image(source)
    pixels = transform(read_image(source, size=captioner.image_size), captioner.image_size)
    sheet = strip(picture, occlusion(captioner, pixels, caption.tokens))
    with whole_file(path) as part:
        sheet.save(part, Image.registered_extensions()[path.suffix.lower()])
    log.info(f"written to {path}")


def strip(picture: Image.Image, explanation: Explanation) -> Image.Image:
    """Draw a tile for each word, five in a row: the word, its number, its map over the picture.

    All maps have one scale, so that a word that needs nothing of the picture shows nothing. The
    first tile is the picture.

    Args:
        picture: RGB, of any shape; the model sees the whole of it, squashed to a square.
        explanation: of its caption.

    Returns:
        The sheet, the legend at its foot.
    """
    height = max(1, min(TALLEST, round(TILE * picture.height / picture.width)))
    photo = picture.resize((TILE, height), Image.Resampling.LANCZOS, reducing_gap=2)
    scale = max(explanation.maps.abs().max().item(), LEAST_SCALE)
    tiles = [("", "", photo)]
    for word, nats, hidden in zip(
        explanation.words, explanation.maps.cpu(), explanation.dependence.tolist(), strict=True
    ):
        number = f"{_change(nats.max().item())}, all {_change(hidden)}"
        tiles.append((word.text or "(end)", number, _painted(photo, nats / scale)))

    n_rows = math.ceil(len(tiles) / COLUMNS)
    step_x, step_y = TILE + MARGIN, HEAD + height + MARGIN
    legend = _legend(scale)
    size = (COLUMNS * step_x + MARGIN, n_rows * step_y + MARGIN + LINE * len(legend))
    sheet = Image.new("RGB", size, "white")
    draw, large, small = (
        ImageDraw.Draw(sheet),
        ImageFont.load_default(19),
        ImageFont.load_default(14),
    )
    for i, (text, number, tile) in enumerate(tiles):
        x, y = MARGIN + i % COLUMNS * step_x, i // COLUMNS * step_y
        draw.text((x, y + 6), text, fill="black", font=large)
        draw.text((x, y + 28), number, fill="dimgray", font=small)
        sheet.paste(tile, (x, y + HEAD))
    for i, line in enumerate(legend):
        draw.text((MARGIN, n_rows * step_y + 10 + LINE * i), line, fill="black", font=small)
    return sheet


def _legend(scale: float) -> list[str]:
    return [
        f"Orange: with this part of the picture hidden, the word's log-probability falls, by "
        f"{scale:.1f} nats where it is strongest;",
        "blue: it rises. The number: its change with the part hidden that it needs most; all: with "
        "the whole picture hidden.",
    ]


def _change(fall: float) -> str:
    """A fall of a log-probability as its change in nats, with its sign."""
    text = f"{-fall:+.1f}"
    return "0" if text[1:] == "0.0" else text


def _painted(photo: Image.Image, share: Tensor) -> Image.Image:
    """The photo in grey, a map laid over it: ``share`` (G, G) of the full colour, -1 to 1."""
    grey = np.asarray(photo.convert("L"), np.float32)[..., None]  # (H, W, 1)
    # Linear between the cells' centres: other filters would ring.
    smooth = Image.fromarray(share.numpy()).resize(photo.size, Image.Resampling.BILINEAR)
    strength = np.asarray(smooth)[..., None]
    colour = np.where(strength > 0, FALLS, RISES) * (0.4 + 0.6 * grey / 255)
    pale = 90 + 0.6 * grey
    painted = pale + (colour - pale) * np.abs(strength)
    return Image.fromarray(painted.clip(0, 255).astype(np.uint8))
