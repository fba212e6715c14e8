"""A training run: its model, its data, and its checkpoints, which it can be resumed from."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.optim import AdamW

import agreement
import checkpoint
import cli
import demo
import distributed
import familiarity
import logs
import metrics
from checkpoint import Checkpoint
from cli import UserError
from corpus import Corpus, load_corpus
from features import encode_all, load_features, load_pixels
from learning import Loss, Meter, Reading, Stage, TrainState, no_loss, word_losses
from loader import Flickr30k, Vocabulary, batches, plan_batches
from model import ImageCaptioningModel
from neighbours import MOST_PHOTOS, Neighbours, remember
from pretrained import load_encoder
from resnet import ALL_LAYERS
from search import caption

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")

log = logging.getLogger(__name__)

FEW_STEPS = 50  # of a stage: too few to learn from
FAMILIAR_PHOTOS = 2000  # training photos that say what is familiar; 5,000 say the same


@dataclass(frozen=True)
class Run:
    """What stays the same from a run's first step to its last.

    Attributes:
        settings: by name, as plain values.
        model: trained in place.
        vocabulary: the words of the model's ids.
        corpus: what it is trained and validated on.
        started_at: when it began, in ``checkpoint.TIME_FORMAT``.
        tensorboard: its curves and pictures.
    """

    settings: Mapping[str, Any]
    model: ImageCaptioningModel
    vocabulary: Vocabulary
    corpus: Corpus
    started_at: str
    tensorboard: logs.RunLog

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return Path(self.settings["checkpoints"])

    def load_split(self, split: str, *, as_pixels: bool) -> Flickr30k:
        """A split with its pixels or its features; pictures that cannot be read are left out."""
        examples, device = self.corpus.splits[split], self.model.device
        size, cache = self.settings["image_size"], Path(self.settings["cache"])
        if as_pixels:
            kept, pixels = load_pixels(examples, image_size=size, cache=cache)
            return Flickr30k(kept, self.vocabulary, device, pixels=pixels)
        kept, features = load_features(examples, self.model, image_size=size, cache=cache)
        return Flickr30k(kept, self.vocabulary, device, features=features)

    def write_captions(self, features: Tensor, neighbours: Neighbours | None = None) -> list[str]:
        """Caption images as `predict.py` would: (N, F) → N captions."""
        search = checkpoint.search_settings(self.settings, self.vocabulary)
        mine = distributed.part(features)
        hypotheses = caption(
            [self.model], [mine], search, neighbours=[neighbours], about="captioning"
        )
        return distributed.gathered([self.vocabulary.decode(h[0].tokens) for h in hypotheses])

    def validate(self, val_set: Flickr30k) -> tuple[dict[str, float], list[str]]:
        """Score the model on the validation images; of several processes each does a part.

        Returns:
            ``metrics.score`` of captions by beam search and, as ``loss``, cross-entropy with
            teacher forcing in nats per word; and the captions.
        """
        model = self.model.eval()
        if val_set.pixels is not None:
            val_set = val_set.with_features(encode_all(val_set.pixels, model))
        assert val_set.features is not None
        meter = Meter()
        plan = plan_batches(val_set, batch_size=500, seed=0, whole_images=False)
        with torch.inference_mode():
            # In float32, without autocast, as in `search.caption`.
            shown = batches(val_set, plan)
            for batch in cli.progress(shown, about="validating", unit="step", total=len(plan)):
                loss = no_loss(model, batch.n_words)
                if len(batch.positions):
                    assert batch.features is not None
                    logits = model(
                        batch.features, batch.tokens, batch.caption_to_image, batch.positions
                    )
                    mean, nats = word_losses(logits, batch.targets, label_smoothing=0.0)
                    loss = Loss(mean, nats, batch.n_words)
                meter.add(loss, batch.n_words)
        read = meter.read()
        scores = {"loss": sum(distributed.everyones(read.total)) / max(1, read.count)}
        captions = self.write_captions(val_set.features)
        if distributed.is_first():
            references = [example.captions for example in val_set.examples]
            scores |= metrics.score(captions, references)
        return distributed.same(scores), captions  # all have to agree when patience ends

    def save_best(self, state: TrainState) -> None:
        """Write the model as it is now to ``best.pt``."""
        self._save("best.pt", state, {})

    def save_last(self, state: TrainState, optimizer: AdamW) -> None:
        """Write all that it takes to resume to ``last.pt``, unless the weights are broken."""
        self.check_weights(state, optimizer)
        training = {
            "optimizer": optimizer.state_dict(),
            "state": state.plain(),
            "corpus": self.corpus.fingerprint,
            **agreement.torchrun(),
        }
        self._save("last.pt", state, training)
        self.tensorboard.flush()

    def _save(self, name: str, state: TrainState, training: dict[str, Any]) -> None:
        if not distributed.is_first():
            return
        content = Checkpoint(
            self.model,
            self.vocabulary,
            settings=dict(self.settings),
            epoch=state.total_epochs,
            scores=state.best_scores,
            started_at=self.started_at,
            training=training,
        )
        checkpoint.save(self.folder / name, content)

    def load_best(self) -> Checkpoint:
        """Read ``best.pt`` and take over its weights."""
        distributed.everyones(None)  # it is written
        best = checkpoint.load(self.folder / "best.pt", self.model.device)
        self.model.load_state_dict(best.model.state_dict())
        return best

    def finish(self, state: TrainState) -> Checkpoint:
        """Complete ``best.pt``, and fill TensorBoard's projector and table of runs with it.

        Returns:
            What is in it now, its scores those of the captions that `predict.py` would write.
        """
        best = self.load_best()
        val_set = self.load_split("val", as_pixels=False)
        assert val_set.features is not None
        weight = self.settings["neighbour_weight"]
        if not weight:
            best = replace(best, neighbours=None)
        if not best.familiarity or (weight and not best.neighbours):
            best = self._completed(best, val_set.features)
        for field in dataclasses.fields(cli.BeamSettings):  # --resume may have changed them
            best.settings[field.name] = self.settings[field.name]
        best, captions = self._judged(best, val_set)
        best = replace(best, trained_on=torch.tensor(self.corpus.photo_ids("train")))
        if distributed.is_first():
            checkpoint.save(self.folder / "best.pt", best)
        examples = val_set.examples[: logs.PROJECTED_IMAGES]
        features = val_set.features[: len(examples)]
        self.tensorboard.embeddings(
            self.vocabulary,
            self.model,
            features,
            captions[: len(examples)],
            examples,
            step=state.step,
        )
        self.tensorboard.results(checkpoint.model_card(best))
        return best

    def _completed(self, best: Checkpoint, val_features: Tensor) -> Checkpoint:
        """The checkpoint in ``best.pt`` with its familiarity and its neighbours.

        Only the best model of all stages needs them, and they take that model's features of
        training photos: nothing to compute after stage 1, minutes on a CPU after the others.
        """
        weight = self.settings["neighbour_weight"]
        examples = self.corpus.splits["train"]
        some = [examples[i] for i in _evenly(examples, MOST_PHOTOS if weight else FAMILIAR_PHOTOS)]
        size, cache = self.settings["image_size"], Path(self.settings["cache"])
        kept, features = load_features(some, self.model, image_size=size, cache=cache)
        familiar = familiarity.fit(features[_evenly(kept, FAMILIAR_PHOTOS)], val_features)
        found, about = None, ["familiarity"] if familiar else []
        if weight:
            with torch.inference_mode():
                embeddings = self.model.project(features.to(self.model.device))
            shown = cli.progress(kept, about="reading captions", unit="image")
            captions = [[self.vocabulary.encode(c)[1:] for c in e.captions] for e in shown]
            found = remember(embeddings, captions, self.vocabulary.counts).to(self.model.device)
            about.append("neighbours")
        if about:
            log.info(f"{' and '.join(about)} of {len(kept):,} training photos")
        return replace(best, familiarity=familiar, neighbours=found)

    def _judged(self, best: Checkpoint, val_set: Flickr30k) -> tuple[Checkpoint, list[str]]:
        """The checkpoint with scores, without neighbours that make captions worse; and these.

        Few photos do so: what is nearest among them is not near.
        """
        assert val_set.features is not None
        references = [example.captions for example in val_set.examples]
        captions = self.write_captions(val_set.features)
        scores = metrics.score(captions, references)
        if best.neighbours:
            theirs = self.write_captions(val_set.features, best.neighbours)
            with_them = metrics.score(theirs, references)
            helps = with_them["CIDEr"] > scores["CIDEr"]
            log.info(
                f"neighbours  CIDEr {with_them['CIDEr']:.1f} with what people said of similar "
                f"photos, {scores['CIDEr']:.1f} without: their captions are "
                f"{'now in' if helps else 'left out of'} {self.folder / 'best.pt'}"
            )
            if helps:
                scores, captions = with_them, theirs
            else:
                settings = {**best.settings, "neighbour_weight": 0.0}
                best = replace(best, neighbours=None, settings=settings)
        return replace(best, scores=best.scores | scores), captions

    def log_steps(
        self, measure: str, recent: Reading, norm: float, state: TrainState, optimizer: AdamW
    ) -> None:
        """Add a point to the curves, of the steps since the last one."""
        learning_rate = optimizer.param_groups[0]["lr"]
        self.tensorboard.steps(
            measure,
            recent,
            norm=norm,
            learning_rate=learning_rate,
            stage=state.stage,
            step=state.step,
        )

    def log_epoch(
        self,
        scores: Mapping[str, float],
        captions: list[str],
        val_set: Flickr30k,
        state: TrainState,
    ) -> None:
        """Add a point to the curves of validation, and captioned pictures."""
        self.tensorboard.epoch(
            scores, captions, val_set.examples, best=state.best_scores, step=state.step
        )

    def check_finite(self, loss: float, state: TrainState, optimizer: AdamW) -> None:
        """Stop a run that has diverged, before its weights are kept; called after a step.

        Raises:
            UserError: the loss is not finite.
        """
        if not math.isfinite(loss):
            good = f" The last good checkpoints are in {self.folder}."
            raise UserError(
                f"the loss is {loss} at step {state.step:,}, learning rate "
                f"{optimizer.param_groups[0]['lr']:.2g}: try a smaller one."
                f"{good if state.total_epochs else ''}"
            )

    def check_weights(self, state: TrainState, optimizer: AdamW) -> None:
        """As ``check_finite``, for what has happened since the last loss that was checked."""
        if not self.model.is_finite():
            self.check_finite(math.nan, state, optimizer)

    @contextmanager
    def saved_if_stopped(self, state: TrainState, optimizer: AdamW) -> Iterator[None]:
        """On Ctrl-C or SIGTERM write ``last.pt`` and say how to resume.

        Also if another process has vanished: its part of a step is missing, so nobody took that.
        """
        try:
            yield
        except (KeyboardInterrupt, SystemExit, distributed.VanishedError):
            with cli.finish_before_stopping():  # an impatient second Ctrl-C waits as well
                self.save_last(state, optimizer)
            log.info(
                f"stopped in epoch {state.epoch + 1} of {state.stage}, nothing is lost: resume "
                f"with\n    {logs.resume_command(self.settings)}"
            )
            raise


def _evenly(items: Sequence[Any], most: int) -> list[int]:
    """Indices of at most so many of the items, spread evenly over all of them."""
    n = min(len(items), most)
    return [i * len(items) // n for i in range(n)]


def resumed_settings(
    settings: S, given: Collection[str], before: Mapping[str, Any], begun: Collection[str]
) -> S:
    """The settings of a run that is resumed, changed by those flags that may change them.

    Args:
        settings: of the command line.
        given: names of the settings that were given as flags.
        before: the run's settings, as ``cli.plain`` made them.
        begun: names of the stages that have begun.

    Raises:
        UserError: a flag would change what must stay.
    """
    values = cli.typed(type(settings), before)
    for field in dataclasses.fields(settings):
        name, now, was = field.name, getattr(settings, field.name), values[field.name]
        if name not in given:
            continue
        until = field.metadata["resume"]
        if now != was and until in begun:
            raise UserError(
                f"{cli.flag(name)} comes too late, {until} has begun in the run to resume: leave "
                "the flag out, or begin a new run with --init."
            )
        if now != was and until is False:
            raise UserError(
                f"{cli.flag(name)} is {'left out' if was is None else was} in the run to resume, "
                f"not {now}: leave the flag out, or start afresh without --resume."
            )
        values[name] = now
    return _made(type(settings), values)


def inherited_settings(
    settings: S, given: Collection[str], theirs: Mapping[str, Any], source: Path
) -> S:
    """The settings, those marked ``from_init`` as in the model at ``source``, which has ``theirs``.

    Raises:
        UserError: a flag asks for another value than the model has.
    """
    values = cli.typed(type(settings), theirs)
    for field in dataclasses.fields(settings):
        name, now, value = field.name, getattr(settings, field.name), values[field.name]
        if not field.metadata["from_init"]:
            values[name] = now
        elif name in given and now != value:
            raise UserError(
                f"{cli.flag(name)} is {value} in {source}, not {now}: leave the flag out, or start "
                "without --init."
            )
    return _made(type(settings), values)


def _made(settings_class: type[S], values: Mapping[str, Any]) -> S:
    try:
        return settings_class(**values)
    except ValueError as error:  # each value was allowed where it was given, but not together
        raise UserError(f"{error}.") from error


def stages_left(stages: list[Stage], last: Checkpoint | None) -> tuple[list[Stage], TrainState]:
    """The stages to train, and how far the first of them has come."""
    if last:
        state = TrainState.of(last.training["state"])
        log.info(f"resumed     in {state.stage}, epoch {state.epoch + 1}, after step {state.batch}")
        names = [stage.name for stage in stages]
        stages = [stage for stage in stages[names.index(state.stage) :] if stage.epochs]
        if not stages:
            raise UserError(
                f"no epochs are left to train from {state.stage} on: give more of them."
            )
    else:
        stages = [stage for stage in stages if stage.epochs]
        state = TrainState(stages[0].name)
    if distributed.size > 1 and stages[0].trained_layers == ALL_LAYERS:
        raise UserError(
            f"{distributed.size} processes cannot train an encoder from scratch: its BatchNorm "
            "takes the statistics of a whole batch, of which each has a part. Train it, and what "
            "is begun from it by --init, as the demo, without torchrun."
        )
    return stages, state


def plan_schedule(state: TrainState, n_steps: int) -> None:
    """Note how many steps the stage under way has, and say what a user should know of that."""
    if state.stage_step == 0 and n_steps < FEW_STEPS:
        log.warning(
            f"warning: {state.stage} has only {n_steps} steps, in which a model hardly changes: "
            "give more epochs, or a new run a smaller --batch-size."
        )
    if state.stage_step and n_steps != state.n_steps:
        log.info(
            f"schedule    made anew for {n_steps:,} steps instead of {state.n_steps:,}: the "
            "learning rate jumps to what it is there at this step"
        )
    state.n_steps = n_steps


def load_data(settings: Mapping[str, Any], last: Checkpoint | None) -> Corpus:
    """The data set: fit for training, and the same as before if a run is resumed."""
    data = Path(settings["data"])
    if settings["demo"]:
        if distributed.size > 1:
            raise UserError("--demo is for one process: leave torchrun out.")
        demo.draw_data(data, size=settings["image_size"])
    if last and not data.exists():
        raise UserError(f"{data}, the data of the run, is not there: give --data.")
    corpus = load_corpus(data, settings["captions"], language=settings["language"])
    log.info(corpus.describe())
    corpus.require_for_training(few=metrics.FEW, max_words=settings["max_words"])
    if last and last.training["corpus"] != corpus.fingerprint:
        raise UserError(
            f"{corpus.path} and its photos are not those of the run to resume: give "
            "their place with --data, or learn from others with --init."
        )
    return corpus


def make_vocabulary(
    settings: Mapping[str, Any], corpus: Corpus, init: Checkpoint | None
) -> Vocabulary:
    """Count the words of the training captions, and of no others; ``init``'s words come first."""
    captions = [text for example in corpus.splits["train"] for text in example.captions]
    threshold = settings["freq_threshold"]
    if init:
        return init.vocabulary.extended(captions, freq_threshold=threshold)
    return Vocabulary.build(captions, freq_threshold=threshold, language=settings["language"])


def make_model(
    settings: Mapping[str, Any], vocabulary: Vocabulary, init: Checkpoint | None
) -> ImageCaptioningModel:
    """Make a model with ``init``'s weights, or with pretrained or random ones of its encoder.

    Raises:
        UserError: no such weights.
    """
    model = ImageCaptioningModel(
        len(vocabulary),
        encoder=settings["encoder"],
        embedding_size=settings["embedding_size"],
        hidden_size=settings["hidden_size"],
        num_layers=settings["num_layers"],
        dropout=settings["dropout"],
    )
    if init:
        model.copy_weights(init.model)
    else:
        load_encoder(model, settings["encoder_weights"])
    return model
