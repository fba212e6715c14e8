"""What each word of a caption saw, measured: the model has no attention to read it off.

A part of the picture is hidden, and the words of the caption are scored again: the fall of a word's
log-probability is how much it depended on that part. How well this points at what words name, and
what it does not tell: docs/explain.md.
"""

# D tokens of a caption and its end, T words and its end, P parts of a picture, G of them along a
# side, S side of a picture, B variants of it, F features, V vocabulary; s side of C maps.

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from captioner import Caption, Captioner
from cli import UserError
from files import whole_file
from model import END, PAD, START, UNK
from pictures import Source, read_image, transform
from resnet import FoldedResNet
from search import mean_log_prob

log = logging.getLogger(__name__)

N_RIVALS = 4  # of a word
GRID = 8  # G
WINDOW = 1.5  # parts: the width of what is hidden with a part, which lies in its middle
LEAST_UNITS = 14  # along a side of the maps whose gradients are taken: about two for a part


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
            the picture is hidden, the mean of two ways (see ``occlusion``); below 0 it rises.
        dependence: (T,) the same when the whole picture is hidden.
        is_estimate: whether the maps are estimated from gradients instead of measured.
    """

    words: list[Word]
    maps: Tensor
    dependence: Tensor
    is_estimate: bool = False


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
    return words_of(captioner, captioner.encode(pixels.unsqueeze(0)), [tokens])[0]


@torch.inference_mode()
def words_of(
    captioner: Captioner, features: Sequence[Tensor], captions: Sequence[Sequence[int]]
) -> list[list[Word]]:
    """``words`` of several captions of a picture at once, given its features, (1, F) of each model.

    In one pass: a processor spends most of its time on reading the model's weights.
    """
    longest = max(map(len, captions))
    padded = torch.tensor([[*tokens, *[PAD] * (longest - len(tokens))] for tokens in captions])
    scores = _scores(captioner, [theirs.expand(len(captions), -1) for theirs in features], padded)
    return [
        _words(captioner, rows[: len(tokens) + 1], tokens)
        for rows, tokens in zip(scores.cpu(), captions, strict=True)
    ]


def _words(captioner: Captioner, scores: Tensor, tokens: Sequence[int]) -> list[Word]:
    """The words of a caption, given the log-probabilities (D, V) of all words in each place."""
    vocabulary, targets = captioner.vocabulary, [*tokens, END]
    places = range(len(targets))
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


@torch.inference_mode()
def occlusion(captioner: Captioner, pixels: Tensor, tokens: Sequence[int]) -> Explanation:
    """Hide each part of the picture, and all of it, and score the caption again.

    A part is hidden twice: once with the rest in sight and once with the rest hidden too, since a
    word may need no part that others could stand in for. Its fall is the mean of the two. What is
    hidden becomes the picture's mean colour, in a square ``WINDOW`` times as wide as the part. For
    the whole picture stand the mean features of the training: what the model takes for a picture of
    which it knows nothing. Arguments as of ``words``.

    Source: Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2, for the first of the two.
    """
    picture = pixels.float()
    mean = picture.mean(dim=(1, 2), keepdim=True)  # (3, 1, 1)
    along = _windows(pixels.shape[-1])  # (G, S)
    parts = (along[:, None, :, None] * along[:, None]).flatten(0, 1).unsqueeze(1)  # (P, 1, S, S)
    hidden = torch.cat([parts, torch.zeros_like(parts[:1])])  # the last one hides nothing
    variants = [torch.lerp(picture, mean, hidden), torch.lerp(mean, picture, hidden)]
    features = captioner.encode(torch.cat(variants).round().to(torch.uint8))  # (2P + 2, F) each
    without, alone = _token_scores(captioner, features, tokens).chunk(2)  # (P + 1, D) each
    falls = (without[-1] - without[:-1] + alone[:-1] - alone[-1]) / 2
    return _explanation(captioner, pixels, tokens, falls.T.unflatten(1, (GRID, GRID)), without[-1])


def grad_cam(captioner: Captioner, pixels: Tensor, tokens: Sequence[int]) -> Explanation:
    """Estimate from gradients what ``occlusion`` measures, in a fraction of its time.

    The gradient of a word's log-probability by the maps of a layer, times what they would lose if a
    part of them became their mean: the fall in nats if the model were linear, which it is not.
    Arguments as of ``words``.

    Source: Grad-CAM, Selvaraju et al. 2017, arXiv:1610.02391; cell by cell as in HiResCAM, Draelos
    and Carin 2020, arXiv:2011.08891.
    """
    # The deepest layer that takes maps fine enough; layers 2, 3 and 4 take a 4th, 8th and 16th.
    fine = [layer for layer in (3, 4) if captioner.image_size >> layer >= LEAST_UNITS]
    layer = max(fine, default=2)
    maps, features = [], []
    for model in captioner.models:
        images = (pixels.to(model.device) - model.pixel_mean) / model.pixel_std  # (1, 3, S, S)
        given = FoldedResNet(model.encoder, torch.float32, layer)(images).requires_grad_()
        maps.append(given)  # (1, C, s, s)
        features.append(model.encoder.run_layers(given, first=layer))  # (1, F)
    n_tokens = len(tokens) + 1
    copies = [theirs.detach().expand(n_tokens, -1).requires_grad_() for theirs in features]
    scores = _token_scores(captioner, copies, tokens).diagonal()  # (D,)
    by_features = torch.autograd.grad(scores.sum(), copies)  # of each model, (D, F)
    falls = torch.zeros(n_tokens, GRID, GRID, device=scores.device)
    for given, theirs, gradients in zip(maps, features, by_features, strict=True):
        excess = given.detach() - given.detach().mean(dim=(2, 3), keepdim=True)
        along = _windows(given.shape[-1]).to(given.device)  # (G, s)
        for fall, gradient in zip(falls, gradients, strict=True):
            (by_maps,) = torch.autograd.grad(
                theirs, given, gradient.unsqueeze(0), retain_graph=True
            )
            fall += along @ (by_maps * excess).sum(dim=(0, 1)) @ along.T
    found = _explanation(captioner, pixels, tokens, falls, scores.detach())
    return replace(found, is_estimate=True)


def _windows(side: int) -> Tensor:
    """How much of each unit along a side is hidden with each part: (G, side), from 0 to 1."""
    edges = torch.arange(side + 1) / side * GRID
    middle = torch.arange(GRID).unsqueeze(1) + 0.5
    first, last = middle - WINDOW / 2, middle + WINDOW / 2
    hidden = torch.minimum(edges[1:], last) - torch.maximum(edges[:-1], first)
    return hidden.clamp(min=0) * side / GRID


def _scores(captioner: Captioner, features: Sequence[Tensor], tokens: Tensor) -> Tensor:
    """Log-probabilities of all words in each place.

    Args:
        captioner: a model, or an ensemble.
        features: of each model (B, F).
        tokens: (B, D - 1), or (1, D - 1) if they are the same for all.

    Returns:
        (B, D, V).
    """
    logits = []
    for model, theirs in zip(captioner.models, features, strict=True):
        inputs = F.pad(tokens, (1, 0), value=START).expand(len(theirs), -1).to(model.device)
        state = model.eval().init_state(theirs, captioner.search.image_weight)
        logits.append(model.step(inputs, state)[0])
    return mean_log_prob(logits)


def _token_scores(
    captioner: Captioner, features: Sequence[Tensor], tokens: Sequence[int]
) -> Tensor:
    """Log-probabilities of the tokens and the end, given features (B, F) of each model: (B, D)."""
    scores = _scores(captioner, features, torch.tensor([tokens]))
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
    captioner: Captioner, pixels: Tensor, tokens: Sequence[int], falls: Tensor, scores: Tensor
) -> Explanation:
    """Add up what is known of tokens, (D, G, G) and (D,), to words."""
    mean = [model.feature_norm.running_mean.unsqueeze(0) for model in captioner.models]
    with torch.inference_mode():
        falls_of_all = scores - _token_scores(captioner, mean, tokens)[0]
    spans = [slice(first, last) for _, first, last in _spans(captioner, tokens)]
    return Explanation(
        words(captioner, pixels, tokens),
        torch.stack([falls[span].sum(dim=0) for span in spans]).cpu(),
        torch.stack([falls_of_all[span].sum() for span in spans]).cpu(),
    )


# ------------------------------------------------------------------------------- the strip

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
COLUMNS = 5  # tiles in a row
TILE, TALLEST = 200, 300  # pixels: a tile's width, and the most of its height
MARGIN, HEAD, LEGEND = 16, 46, 66  # around a tile; above it, for its word and number; at the foot
LEAST_SCALE = 0.5  # nats: a finer scale would paint what nobody needs to know
FALLS, RISES = (240, 90, 0), (30, 90, 240)  # colours of a word that falls, or rises, by hiding


def check(path: Path, picture: Path | None, *, overwrite: bool) -> None:
    """Before the work begins: whether a strip of a picture can be drawn into this file.

    Raises:
        UserError: not a single picture, no format for it, or a file that is not to be replaced.
    """
    if picture is None:
        raise UserError("--explain draws the words of one picture: give it a single one.")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--explain must end in {', '.join(SUFFIXES)}, got {path}.")
    if path.exists() and picture.exists() and path.samefile(picture):
        raise UserError(f"{path} is the picture itself: give --explain another file.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: give --overwrite to replace it.")


def write_strip(path: Path, captioner: Captioner, source: Source, caption: Caption) -> None:
    """Draw what each word of a picture's caption saw into a file, which appears whole.

    Raises:
        UserError: the picture cannot be read.
    """
    sheet = draw(captioner, source, caption.tokens)
    with whole_file(path) as part:
        sheet.save(part, Image.registered_extensions()[path.suffix.lower()])
    log.info(f"written to {path}")


def draw(captioner: Captioner, source: Source | Path, tokens: Sequence[int]) -> Image.Image:
    """Read a picture, and draw the ``strip`` of the caption with these tokens.

    Raises:
        UserError: the picture cannot be read.
    """
    picture = read_image(source, size=captioner.image_size)
    pixels = transform(picture, captioner.image_size)
    return strip(picture, occlusion(captioner, pixels, tokens))


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
    sheet = Image.new("RGB", (COLUMNS * step_x + MARGIN, n_rows * step_y + LEGEND), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(19), ImageFont.load_default(14)
    for i, (text, number, tile) in enumerate(tiles):
        x, y = MARGIN + i % COLUMNS * step_x, i // COLUMNS * step_y
        draw.text((x, y + 6), text, fill="black", font=large)
        draw.text((x, y + 28), number, fill="dimgray", font=small)
        sheet.paste(tile, (x, y + HEAD))
    sheet.paste(_legend(scale, explanation.is_estimate), (MARGIN, n_rows * step_y))
    return sheet


def _legend(scale: float, is_estimate: bool) -> Image.Image:
    """The scale of colours, and what the numbers are; ``scale`` in nats."""
    how = "the mean of two changes: with the rest of the picture in sight, and with it hidden too."
    text = (
        f"+{scale:.1f} to -{scale:.1f} nats: how the word's log-probability changes when this part "
        f"of the picture is hidden,\n{'estimated from gradients.' if is_estimate else how}\n"
        "The numbers: this change for the part that the word needs most, and when all is hidden."
    )
    legend = Image.new("RGB", (COLUMNS * (TILE + MARGIN), LEGEND), "white")
    bar = _painted(Image.new("RGB", (TILE, 14), "gray"), torch.linspace(-1, 1, 9)[None])
    legend.paste(bar, (0, 8))
    font = ImageFont.load_default(14)
    ImageDraw.Draw(legend).multiline_text((TILE + MARGIN, 4), text, fill="black", font=font)
    return legend


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
