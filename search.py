"""Captions from a trained model: beam search, sampling, ensembles. Features in, token ids out."""

# N images, K beams (or samples) an image, T tokens, V vocabulary, W candidates of a beam.

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import cli
from draws import Share, drawn_like
from model import END, PAD, START, UNK, ImageCaptioningModel, State
from neighbours import Neighbours

# Ended hypotheses kept per beam, of which neighbours may choose.
ENDED_PER_BEAM = 2
# Steps between two questions to a GPU whether all captions have ended: each makes the host wait.
STEPS_BETWEEN_CHECKS = 4


@dataclass(frozen=True)
class Search(cli.SamplingSettings):
    """How captions are searched for or sampled; ``cli.SamplingSettings`` has ranges and defaults.

    Attributes:
        beam_size: K, hypotheses kept per image; 1 is greedy search. With a temperature, the number
            of captions sampled.
        max_words: the longest caption.
        length_penalty: the exponent of the length that a log-probability is divided by: 0 favours
            short captions, 1 ranks by the mean per token.
        no_repeat_ngram_size: no caption holds the same n-gram of so many words twice; 0 lets them.
        image_weight: what an image's features, less their mean over the training images, are
            multiplied by. Somewhat above 1 captions say more of what sets the image apart.
        neighbour_weight: what a hypothesis gains, in nats a word, if it agrees in all with what
            people said of similar training photos (see ``neighbours``). Sampled ones gain nothing.
        temperature: 0 searches for the best captions; above 0 they are sampled from the softmax
            of the logits divided by it.
        top_p: sample from the likeliest tokens that make up this share (arXiv:1904.09751).
        banned_final_ids: ids of words that no caption ends on, such as articles.
    """

    banned_final_ids: tuple[int, ...] = cli.option((), "ids of words that no caption ends on")


@dataclass(frozen=True)
class Hypothesis:
    """A caption the model proposes.

    Attributes:
        tokens: ids of its words, without ``<start>`` and ``<end>``.
        log_prob: log-probability of the whole caption in nats, ``<end>`` included if it ended.
        log_prob_per_word: the same divided by the number of tokens, ``<end>`` one of them.
        score: what hypotheses are ranked by: ``log_prob`` divided by length^length_penalty, with
            neighbours more.
    """

    tokens: list[int]
    log_prob: float
    log_prob_per_word: float
    score: float


@torch.inference_mode()
def caption(
    models: Sequence[ImageCaptioningModel],
    features: Sequence[Tensor],
    search: Search,
    *,
    neighbours: Sequence[Neighbours | None] = (),
    batch_size: int = 64,
    about: str = "",
) -> list[list[Hypothesis]]:
    """Caption each image with one model or an ensemble, ``batch_size`` images at once.

    An ensemble averages the probabilities of the next token. What has ended is set aside and leaves
    its beam to others, until as many as beams have ended with a better log-probability per
    length^length_penalty than the open ones have. Beams still open after ``max_words`` count as
    they are, so every image gets a caption.
    ``<pad>``, ``<start>`` and ``<unk>`` are never chosen, nor is an empty caption.

    Args:
        models: with the same vocabulary; all are put into eval mode.
        features: for each model (N, F), what its encoder makes of the images, on any device.
        search: how captions are searched for, or sampled.
        neighbours: of each model that has some, which the best hypothesis is chosen with.
        batch_size: images decoded at a time.
        about: what the progress is shown under; left out, none is shown.

    Returns:
        For each image at most ``beam_size`` hypotheses, best first.

    Source: Vinyals et al. 2015, arXiv:1411.4555, "Inference"; length normalisation: Wu et
    al. 2016, arXiv:1609.08144, section 7, without its constants.
    """
    if not neighbours or not search.neighbour_weight or search.temperature:
        neighbours = [None] * len(models)
    found: Iterable[list[Hypothesis]]
    found = _by_batches(models, features, search, neighbours, batch_size)
    if about:
        found = cli.progress(found, about=about, unit="image", total=len(features[0]))
    return list(found)


def _by_batches(
    models: Sequence[ImageCaptioningModel],
    features: Sequence[Tensor],
    search: Search,
    neighbours: Sequence[Neighbours | None],
    batch_size: int,
) -> Iterator[list[Hypothesis]]:
    decode = _sampled if search.temperature else _beam_search
    for start in range(0, len(features[0]), batch_size):
        batch = [
            theirs[start : start + batch_size].to(model.device)
            for model, theirs in zip(models, features, strict=True)
        ]
        states = [
            model.eval().init_state(theirs, search.image_weight)
            for model, theirs in zip(models, batch, strict=True)
        ]
        found = decode(models, states, search)
        known = [
            (model.project(theirs), photos)
            for model, theirs, photos in zip(models, batch, neighbours, strict=True)
            if photos
        ]
        if known:
            found = _reranked(found, known, search.neighbour_weight)
        yield from (hypotheses[: search.beam_size] for hypotheses in found)


def _reranked(
    found: list[list[Hypothesis]], known: Sequence[tuple[Tensor, Neighbours]], weight: float
) -> list[list[Hypothesis]]:
    """The hypotheses of N images in another order, by what people said of similar photos.

    ``known`` has for each model the (N, E) image embeddings and its training photos.
    """
    captions = [[[*one.tokens, END] for one in image] for image in found]
    by_model = [neighbours.agreement(image, captions) for image, neighbours in known]
    reranked = []
    for image, *agreements in zip(found, *by_model, strict=True):
        means = [sum(of_one) / len(known) for of_one in zip(*agreements, strict=True)]
        reranked.append(
            _best_first(
                [replace(h, score=h.score + weight * m) for h, m in zip(image, means, strict=True)]
            )
        )
    return reranked


# --------------------------------------------------------------------------- beam search


class Beams(NamedTuple):
    """The open hypotheses of n images, and how good those are that have ended."""

    images: Tensor  # (n,) which images these are
    tokens: Tensor  # (n, K, T) words so far, padded
    log_prob: Tensor  # (n, K) nats; minus infinity where there is no hypothesis
    ended: Tensor  # (n, K) scores of the best that have ended, falling; minus infinity: none yet
    is_done: Tensor  # (n,) bool: these are the best there are

    def select(self, rows: Tensor) -> Beams:
        """Those of these images, in this order."""
        return Beams(*(part.index_select(0, rows) for part in self))


class Ending(NamedTuple):
    """Hypotheses of n images that end at a token."""

    images: Tensor  # (n,)
    tokens: Tensor  # (n, K, T) before ``<end>``, padded
    log_prob: Tensor  # (n, K) nats, ``<end>`` included; minus infinity where none ends


def _beam_search(
    models: Sequence[ImageCaptioningModel], states: list[State], search: Search
) -> list[list[Hypothesis]]:
    """The best hypotheses of each image, ``ENDED_PER_BEAM`` for each beam, all images at once.

    An image is done, and leaves, when K hypotheses have ended that are better than its open ones.
    """
    beam_size, max_words = search.beam_size, search.max_words
    n_images, device = len(states[0].image), states[0].image.device
    images = torch.arange(n_images, device=device)
    rows = images.repeat_interleave(beam_size)  # (n*K,): a row for each beam
    states = [state.select(rows) for state in states]
    none = torch.full((n_images, beam_size), -torch.inf, device=device)
    beams = Beams(
        images,
        torch.full((n_images, beam_size, max_words), PAD, device=device),
        none.clone(),
        none,
        torch.zeros(n_images, dtype=torch.bool, device=device),
    )
    beams.log_prob[:, 0] = 0.0  # one beam to begin with: K equal ones would stay equal
    endings: list[Ending] = []  # at each position
    last = torch.full_like(rows, START)
    banned_final = _banned_final(models[0], search)

    for position in range(max_words):
        next_log_prob, states = _next_log_prob(models, last, states)
        next_log_prob = next_log_prob.view(len(beams.images), beam_size, -1)  # (n, K, V)
        _ban(next_log_prob, beams.tokens[:, :, :position], search, banned_final)
        beams, parents, ending = _extend(beams, next_log_prob, position, search.length_penalty)
        endings.append(ending)
        if _is_time_to_check(position, device):
            is_open, order = (~beams.is_done).int().sort(descending=True, stable=True)
            n_open = int(is_open.sum())
            if n_open < len(order):
                beams, parents = beams.select(order[:n_open]), parents[order[:n_open]]
            if not n_open:
                break
        states = [state.select(parents.flatten()) for state in states]
        last = beams.tokens[:, :, position].flatten()

    still_open = beams.log_prob.masked_fill(beams.is_done.unsqueeze(1), -torch.inf)
    endings.append(Ending(beams.images, beams.tokens, still_open))
    return _best_ended(endings, n_images, search)


def _extend(
    beams: Beams, next_log_prob: Tensor, position: int, length_penalty: float
) -> tuple[Beams, Tensor, Ending]:
    """Each image's best hypotheses that are one word longer, and those that end here instead.

    A hypothesis may end if ``<end>`` is among its K likeliest tokens.

    Args:
        beams: the hypotheses so far.
        next_log_prob: (n, K, V) nats, of each with a token more.
        position: of this token in the caption.
        length_penalty: the exponent of the length.

    Returns:
        The new beams, (n, K) which rows of the n*K they extend, and what has ended.
    """
    n_images, beam_size = beams.log_prob.shape
    # No hypothesis can give an image more than its K best words, so others need not be compared.
    values, tokens = next_log_prob.topk(min(beam_size + 1, next_log_prob.shape[-1]))  # (n, K, W)
    candidates, is_end = beams.log_prob.unsqueeze(-1) + values, tokens == END
    ending = candidates.masked_fill(~is_end, -torch.inf)[..., :beam_size].amax(dim=-1)  # (n, K)
    ending = ending.masked_fill(beams.is_done.unsqueeze(1), -torch.inf)

    candidates = candidates.masked_fill(is_end, -torch.inf)
    log_prob, best = candidates.flatten(1).topk(beam_size)  # (n, K), into K*W
    parents = best // tokens.shape[-1]  # (n, K)
    extended = beams.tokens.gather(1, parents.unsqueeze(-1).expand_as(beams.tokens))
    extended[:, :, position] = tokens.flatten(1).gather(1, best)

    length = (position + 1) ** length_penalty
    ended = torch.cat([beams.ended, ending / length], dim=1).topk(beam_size).values
    is_done = beams.is_done | (ended[:, -1] >= log_prob[:, 0] / length)
    first = torch.arange(0, n_images * beam_size, beam_size, device=log_prob.device)
    return (
        Beams(beams.images, extended, log_prob, ended, is_done),
        parents + first.unsqueeze(1),
        Ending(beams.images, beams.tokens, ending),
    )


def _best_ended(endings: Sequence[Ending], n_images: int, search: Search) -> list[list[Hypothesis]]:
    """Each image's best hypotheses: of those that end at each position, and last the open ones."""
    device, max_words = endings[0].tokens.device, search.max_words
    shape = (n_images, len(endings), search.beam_size)  # P endings: (N, P, K)
    tokens = torch.full((*shape, max_words), PAD, device=device)
    log_prob = torch.full(shape, -torch.inf, device=device)
    for position, ending in enumerate(endings):
        tokens[:, position].index_copy_(0, ending.images, ending.tokens)
        log_prob[:, position].index_copy_(0, ending.images, ending.log_prob)
    tokens[:, :-1].diagonal(dim1=1, dim2=3).fill_(END)
    length = torch.arange(1, len(endings) + 1, device=device).clamp(max=max_words)  # (P,)
    scores = log_prob / (length**search.length_penalty).unsqueeze(-1)
    best = scores.flatten(1).topk(ENDED_PER_BEAM * search.beam_size).indices  # (N, 2K), into P*K
    return _hypotheses(
        tokens.flatten(1, 2).gather(1, best.unsqueeze(-1).expand(-1, -1, max_words)),
        log_prob.flatten(1).gather(1, best),
        length[best // search.beam_size],
        search,
    )


# --------------------------------------------------------------------------- sampling


def _sampled(
    models: Sequence[ImageCaptioningModel], states: list[State], search: Search
) -> list[list[Hypothesis]]:
    """``beam_size`` captions sampled for each image."""
    tokens, log_prob = sample(models, states, search)
    shape = (len(states[0].image), search.beam_size)
    length = (tokens != PAD).sum(dim=1)
    return _hypotheses(tokens.view(*shape, -1), log_prob.view(shape), length.view(shape), search)


@torch.no_grad()
def sample(
    models: Sequence[ImageCaptioningModel],
    states: list[State],
    search: Search,
    share: Share | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample ``beam_size`` captions for each image, token by token.

    A model whose weights are no longer finite gives arbitrary tokens and a log-probability that is
    not finite; nothing is asserted on the device.

    Args:
        models: in the mode they are in.
        states: for each model, after the N images.
        search: ``temperature`` above 0.
        share: which rows of the N*K of all processes these are.

    Returns:
        (N*K, T) ids of words and ``<end>``, padded, an image's captions next to each other; and
        their (N*K,) log-probabilities in nats, without temperature.
    """
    n_images, device = len(states[0].image), states[0].image.device
    rows = torch.arange(n_images, device=device).repeat_interleave(search.beam_size)
    states = [state.select(rows) for state in states]
    tokens = torch.full((len(rows), search.max_words), PAD, device=device)
    last = torch.full_like(rows, START)
    log_prob = torch.zeros(len(rows), device=device)
    ended = torch.zeros_like(rows, dtype=torch.bool)
    banned_final = _banned_final(models[0], search)
    for position in range(search.max_words):
        next_log_prob, states = _next_log_prob(models, last, states)
        _ban(next_log_prob, tokens[:, :position], search, banned_final)
        next_log_prob.masked_fill_(ended.unsqueeze(-1), -torch.inf)
        next_log_prob[:, PAD].masked_fill_(ended, 0.0)  # what has ended is only padded
        probability = _nucleus((next_log_prob / search.temperature).softmax(dim=-1), search.top_p)
        # As multinomial draws, but without its assertion, after which a GPU cannot be used.
        last = (probability / drawn_like(probability, share, Tensor.exponential_)).argmax(dim=-1)
        log_prob += next_log_prob.gather(1, last.unsqueeze(1)).squeeze(1)
        ended |= last == END
        tokens[:, position] = last
        if _is_time_to_check(position, device) and bool(ended.all()):
            return tokens[:, : position + 1], log_prob
    return tokens, log_prob


def _nucleus(probability: Tensor, top_p: float) -> Tensor:
    """(B, V) with all but the likeliest tokens that make up ``top_p`` set to 0."""
    if top_p >= 1:
        return probability
    falling, tokens = probability.sort(dim=-1, descending=True)
    before = falling.cumsum(dim=-1) - falling
    return torch.zeros_like(probability).scatter(-1, tokens, falling * (before < top_p))


# --------------------------------------------------------------------------- what both need


def _is_time_to_check(position: int, device: torch.device) -> bool:
    """Whether to ask now if captions have ended: on a CPU at every token, asking costs nothing."""
    return device.type == "cpu" or position % STEPS_BETWEEN_CHECKS == STEPS_BETWEEN_CHECKS - 1


def _next_log_prob(
    models: Sequence[ImageCaptioningModel], last: Tensor, states: list[State]
) -> tuple[Tensor, list[State]]:
    """The log-probabilities of what follows: (B,) tokens → (B, V), the models' mean in nats."""
    steps = [
        model.step(last.unsqueeze(1), state) for model, state in zip(models, states, strict=True)
    ]
    return mean_log_prob([logits[:, 0] for logits, _ in steps]), [state for _, state in steps]


def mean_log_prob(logits: Sequence[Tensor]) -> Tensor:
    """Each model's logits, (..., V) → log-probabilities in nats of the mean of probabilities."""
    log_probs = [F.log_softmax(theirs.float(), dim=-1) for theirs in logits]
    if len(log_probs) == 1:
        return log_probs[0]
    return torch.stack(log_probs).logsumexp(dim=0) - math.log(len(log_probs))


def _banned_final(model: ImageCaptioningModel, search: Search) -> Tensor | None:
    """(V,) bool, which words no caption ends on: put on the device once, not at every token."""
    if not search.banned_final_ids:
        return None
    is_banned = torch.zeros(model.output.out_features, dtype=torch.bool)
    is_banned[list(search.banned_final_ids)] = True
    return is_banned.to(model.device)


def _ban(
    next_log_prob: Tensor,
    tokens: Tensor,
    search: Search,
    banned_final: Tensor | None,
) -> None:
    """Set the log-probability of what may not follow to minus infinity, in place.

    Args:
        next_log_prob: (..., V), of each hypothesis.
        tokens: (..., T), its tokens so far.
        search: what else is banned.
        banned_final: (V,) bool, which words may not be the last.
    """
    position = tokens.shape[-1]
    end_log_prob = next_log_prob[..., END].clone()
    for special in (PAD, START, UNK):
        next_log_prob[..., special] = -torch.inf
    if position == 0:  # no empty caption
        next_log_prob[..., END] = -torch.inf
    if banned_final is not None:
        if position:
            next_log_prob[..., END].masked_fill_(banned_final[tokens[..., -1]], -torch.inf)
        if position == search.max_words - 1:  # this token is the last, <end> or not
            next_log_prob.masked_fill_(banned_final, -torch.inf)
    if 0 < search.no_repeat_ngram_size <= position:
        repeating = _repeating(tokens, search.no_repeat_ngram_size)
        next_log_prob.scatter_(-1, repeating, -torch.inf)
    is_stuck = next_log_prob.amax(dim=-1).isneginf()  # all is banned: let the caption end
    next_log_prob[..., END] = torch.where(is_stuck, end_log_prob, next_log_prob[..., END])


def _repeating(tokens: Tensor, n: int) -> Tensor:
    """(..., T) tokens so far → (..., T-n+1) tokens that would complete an n-gram a second time.

    Where nothing would be repeated stands ``<pad>``, which is banned anyway.
    """
    if n == 1:
        return tokens
    ngrams = tokens.unfold(-1, n, 1)  # (..., T-n+1, n)
    tail = tokens[..., -(n - 1) :].unsqueeze(-2)  # the n-gram that the next token completes
    return torch.where((ngrams[..., :-1] == tail).all(dim=-1), ngrams[..., -1], PAD)


def _hypotheses(
    tokens: Tensor, log_prob: Tensor, length: Tensor, search: Search
) -> list[list[Hypothesis]]:
    """(N, K, T), (N, K), (N, K) → each image's hypotheses, best first; dead beams are left out."""
    score = log_prob / length**search.length_penalty
    found = []
    for image in zip(tokens.tolist(), log_prob.tolist(), score.tolist(), strict=True):
        alive = []
        for ids, nats, ranked_by in zip(*image, strict=True):
            if nats > -torch.inf:
                n_tokens = sum(id_ != PAD for id_ in ids)  # here: each copy makes the host wait
                words = [id_ for id_ in ids if id_ not in (PAD, END)]
                alive.append(Hypothesis(words, nats, nats / n_tokens, ranked_by))
        found.append(_best_first(alive))
    return found


def _best_first(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda hypothesis: hypothesis.score, reverse=True)
