"""Train a captioner: `python train.py`, or `python train.py --demo` without any data.

Three stages. Cross-entropy (``xe``): the encoder is frozen, its features are computed once, and
the decoder learns people's captions on them. Fine-tuning (``finetune``): the encoder's last layers
learn too. Self-critical training (``scst``): the model's own captions are rewarded. After every
epoch the validation images are captioned by beam search and scored. Keeps `checkpoints/best.pt`
(to use) and `checkpoints/last.pt` (to resume from: `--resume`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cli
from cli import option


# Each setting is a flag too. --resume lets only those marked ``resume`` change, until the stage
# begins that is named there, if one is. --init takes those marked ``from_init`` from its model.
# fmt: off
@dataclass(frozen=True)
class Settings(cli.BeamSettings):
    """Train a captioner on a folder of photos with captions."""

    EXAMPLES: ClassVar = (
        "python train.py --demo",
        "python train.py --data my_photos --finetune-epochs 7 --crop 0.4",
    )

    data: Path = option(
        Path("flickr30k_images"), "folder with captions and photos", group="data", resume=True)
    captions: str = option("", "captions file in --data, if it holds several", resume=True)
    language: str = option("en", "of the captions; spaCy's code or pipeline", from_init=True)
    freq_threshold: int = option(5, "words that occur less often are left out", at_least=1)

    encoder: str = option(
        "resnet50", "the network: resnet18, 34, 50, 101 or 152", group="model", from_init=True)
    encoder_weights: str = option(
        "IMAGENET1K_V1", "pretrained weights: torchvision's name, a file, or none", from_init=True)
    image_size: int = option(
        224, "side of the square that pictures are resized to", at_least=32, from_init=True)
    embedding_size: int = option(
        512, "size of image and word embeddings", at_least=1, from_init=True)
    hidden_size: int = option(512, "size of the LSTM's state", at_least=1, from_init=True)
    num_layers: int = option(1, "LSTM layers", at_least=1, from_init=True)
    dropout: float = option(0.5, "dropout in the decoder", at_least=0, below=1)

    epochs: int = option(
        8, "epochs of stage 1", at_least=0, group="cross-entropy (stage 1)", resume="finetune")
    batch_size: int = option(100, "captions a step, in all stages", at_least=1)
    learning_rate: float = option(1e-3, "peak of the schedule in stage 1", at_least=0)
    warmup: float = option(0.05, "share of a stage's steps that warm up", at_least=0, below=1)
    weight_decay: float = option(0.01, "of weight matrices, not of word embeddings", at_least=0)
    label_smoothing: float = option(0.1, "share spread over all words", at_least=0, below=1)
    clip_norm: float = option(5.0, "largest gradient norm; inf turns clipping off", at_least=0)
    patience: int = option(
        5, "epochs without a better CIDEr that end a stage; in stage 3 at most 2",
        at_least=1, resume=True)

    finetune_epochs: int = option(
        0, "epochs of stage 2", at_least=0, group="fine-tuning (stage 2)", resume="scst")
    finetune_layers: int = option(  # below resnet.ALL_LAYERS, which is a slow import
        2, "how many of the ResNet's last layers train", at_least=1, below=5, resume="finetune")
    finetune_learning_rate: float = option(
        5e-4, "peak for the decoder in stage 2", at_least=0, resume="finetune")
    encoder_learning_rate: float = option(
        1e-4, "peak for the encoder in stage 2", at_least=0, resume="finetune")
    crop: float = option(
        0.6, "least area of random crops in stages 2 and 3; 1: neither crops nor mirroring",
        at_least=0.05, resume="finetune")

    scst_epochs: int = option(
        0, "epochs of stage 3", at_least=0, group="self-critical (stage 3)", resume=True)
    scst_learning_rate: float = option(1e-4, "peak in stage 3", at_least=0, resume="scst")
    scst_samples: int = option(5, "captions sampled for each image", at_least=2, resume="scst")
    scst_xe_weight: float = option(
        0.2, "weight of cross-entropy beside the rewards", at_least=0, resume="scst")

    init: Path | None = option(None, "start from this model; its words are kept", group="run")
    demo: bool = option(False, "draw scenes and learn from them: needs no data", resume=True)
    resume: bool = option(False, "resume the run in --checkpoints", resume=True)
    checkpoints: Path = option(Path("checkpoints"), "where best.pt and last.pt go", resume=True)
    runs: Path = option(Path("runs/image_captioning"), "TensorBoard's logs", resume=True)
    run_name: str = option("", "folder in --runs; left out, the time the run begins")
    cache: Path = option(Path("cache"), "where computed features are kept", resume=True)
    device: str = option("auto", "where to train", choices=cli.DEVICES, resume=True)
    seed: int = option(0, "same seed, same CPU: same result", at_least=0, below=cli.SEEDS)
    quiet: bool = option(False, "no progress and notes, only results and errors", resume=True)
    debug: bool = option(False, "show where an error comes from", resume=True)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epochs + self.finetune_epochs + self.scst_epochs:
            raise ValueError("--epochs, --finetune-epochs and --scst-epochs are all 0")
        if self.crop > 1:
            raise ValueError(f"--crop must be at most 1, got {self.crop}")


if __name__ == "__main__":  # before the slow imports
    cli.answer_at_once(Settings)

import logging
import math
import time
from datetime import datetime
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

import agreement
import checkpoint
import demo
import distributed
import learning
import logs
from checkpoint import Checkpoint
from cli import UserError
from integrity import restore_optimizer
from learning import Loss, LossFunction, Meter, Reading, Stage, TrainState, is_better
from loader import Batch, Flickr30k, Plan, batches, plan_batches
from pictures import augment
from resnet import ALL_LAYERS, BLOCKS_PER_LAYER
from run import (
    Run,
    inherited_settings,
    load_data,
    make_model,
    make_vocabulary,
    plan_schedule,
    resumed_settings,
    stages_left,
)
from selfcritical import SelfCritical

log = logging.getLogger(__name__)

LOG_EVERY = 50  # steps, at most
SAVE_EVERY = 600.0  # seconds
SCST_PATIENCE = 2  # rewards go on rising while validation scores fall


def make_stages(s: Settings) -> list[Stage]:
    """The table of stages; those of 0 epochs are in it too."""
    is_scratch = s.encoder_weights == "none"  # then the encoder has to learn from the beginning
    # fmt: off
    return [
        Stage(
            name="xe", epochs=s.epochs, learning_rate=s.learning_rate, patience=s.patience,
            trained_layers=ALL_LAYERS if is_scratch else 0, whole_images=is_scratch,
            crop=1.0, loss="cross-entropy"),
        Stage(
            name="finetune", epochs=s.finetune_epochs, learning_rate=s.finetune_learning_rate,
            patience=s.patience, trained_layers=s.finetune_layers, whole_images=True,
            crop=s.crop, loss="cross-entropy"),
        Stage(
            name="scst", epochs=s.scst_epochs, learning_rate=s.scst_learning_rate,
            patience=min(s.patience, SCST_PATIENCE), trained_layers=0, whole_images=True,
            crop=s.crop, loss="self-critical"),
    ]
    # fmt: on


def make_loss(settings: Settings, stage: Stage, train_set: Flickr30k) -> LossFunction:
    """The loss of a stage; the self-critical one has some cross-entropy beside it."""
    xe = partial(learning.cross_entropy, label_smoothing=settings.label_smoothing)
    if stage.loss == "cross-entropy":
        return xe
    return SelfCritical(
        train_set,
        n_samples=settings.scst_samples,
        max_words=settings.max_words,
        xe=xe,
        xe_weight=settings.scst_xe_weight,
    )


def make_plan(settings: Settings, stage: Stage, train_set: Flickr30k, epoch: int) -> Plan:
    """The batches of an epoch of a stage, the same at every call."""
    return plan_batches(
        train_set,
        batch_size=settings.batch_size,
        seed=settings.seed * 1000 + epoch,
        whole_images=stage.whole_images,
    )


def train(settings: Settings, given: frozenset[str]) -> None:
    """Train as the settings say; ``given`` names those that were given as flags."""
    device = distributed.start(cli.device(settings.device))
    now = distributed.same(datetime.now().strftime(checkpoint.TIME_FORMAT))
    with agreement.failing_together():
        settings, last, init = starting_point(settings, given, device)
        started_at = last.started_at if last else now
        stages, state = stages_left(make_stages(settings), last)
        if settings.checkpoints.is_dir():  # that another run writes there shows before all else
            with agreement.held_by_first(settings.checkpoints):
                pass
        corpus = load_data(cli.plain(settings), last)
        run_name = agreement.make_folders(cli.plain(settings), started_at)
        torch.manual_seed(settings.seed)
        vocabulary = last.vocabulary if last else make_vocabulary(cli.plain(settings), corpus, init)
        model = last.model if last else make_model(cli.plain(settings), vocabulary, init)
    run_name = distributed.same(run_name)
    plain_settings = cli.plain(replace(settings, run_name=run_name))
    model.to(device)
    agreement.require(plain_settings, corpus, model, state)
    log.info(logs.model_lines(model, vocabulary, plain_settings))

    tensorboard = logs.RunLog(settings.runs / run_name, plain_settings, step=state.step)
    run = Run(plain_settings, model, vocabulary, corpus, started_at, tensorboard)
    optimizer_state = last.training["optimizer"] if last else None
    with agreement.held_by_first(settings.checkpoints):
        for stage in stages:
            if stage.name != state.stage:
                optimizer_state = None  # it is the earlier stage's
                state.enter(stage.name)
                if state.best_scores:
                    run.load_best()
            # Without pixels the features are computed once; only training pictures are cropped.
            is_frozen = stage.trained_layers == 0
            train_set = run.load_split("train", as_pixels=not is_frozen or stage.crop < 1)
            val_set = run.load_split("val", as_pixels=not is_frozen)
            if last is None and state.step == 0:
                begin_run(run, stage, state, train_set, val_set, is_init=init is not None)
            train_stage(settings, run, stage, state, train_set, val_set, optimizer_state)
        scores = run.finish(state).scores
    if distributed.is_first():
        print(logs.closing_lines(plain_settings, scores, state.best_epoch, val_set.examples))


def begin_run(
    run: Run,
    stage: Stage,
    state: TrainState,
    train_set: Flickr30k,
    val_set: Flickr30k,
    *,
    is_init: bool,
) -> None:
    """Make room for a new run, and take the scores or statistics that it starts from."""
    if distributed.is_first():
        checkpoint.set_aside(run.folder, run.tensorboard.folder)
    if is_init:  # its scores are those that every epoch has to surpass
        scores, captions = run.validate(val_set)
        record_epoch(run, stage, state, scores, captions, Reading())
        run.log_epoch(scores, captions, val_set, state)
    elif train_set.features is not None:  # an encoder that trains has those of each batch
        run.model.set_feature_stats(train_set.features)


def train_stage(
    settings: Settings,
    run: Run,
    stage: Stage,
    state: TrainState,
    train_set: Flickr30k,
    val_set: Flickr30k,
    optimizer_state: dict[str, Any] | None,
) -> None:
    """Train the epochs of a stage that are left, keeping the state up to date.

    ``optimizer_state`` is that of a run that is resumed in this stage.
    """
    model, device = run.model, run.model.device
    optimizer = prepare_stage(settings, run, stage, state, train_set, optimizer_state)
    gradients = distributed.Gradients(model.parameters())
    encode = model.make_encoder(stage.trained_layers)
    loss_function = make_loss(settings, stage, train_set)
    saved_at = time.perf_counter()

    with run.saved_if_stopped(state, optimizer):
        while state.epoch < stage.epochs and state.epochs_without_improvement < stage.patience:
            plan = make_plan(settings, stage, train_set, state.epoch)
            if state.batch == 0:
                state.meter = Meter()
            logged = state.meter.read()
            # In equal parts of the epoch: the point of a single step at its end would be noise.
            log_every = math.ceil(len(plan) / math.ceil(len(plan) / LOG_EVERY))
            model.train()
            bar = cli.progress(
                batches(train_set, plan[state.batch :]),
                about=f"{stage.name} {state.epoch + 1}/{stage.epochs}",
                unit="step",
                total=len(plan) - state.batch,
            )
            for batch in agreement.until_stopped(bar, gradients):
                with cli.finish_before_stopping():
                    learning.seed_step(device, settings.seed, state.step)
                    factor = learning.warmup_then_cosine(
                        state.stage_step, state.n_steps, settings.warmup
                    )
                    learning.set_learning_rate(optimizer, factor)

                    features = batch.features
                    if features is None:
                        features = encode(augmented(batch, train_set, stage))
                    loss = loss_function(model, features, batch)

                    gradients.clear()
                    loss.mean.backward()
                    loss = Loss(*gradients.add_up(loss.mean, loss.total), loss.count)
                    norm = clip_grad_norm_(model.parameters(), settings.clip_norm)
                    optimizer.step()
                    state.finish_step(loss, batch.n_words)

                if device.type == "cpu":  # the host would have to wait for another device
                    run.check_finite(loss.mean.item(), state, optimizer)
                if state.batch % log_every == 0 or state.batch == len(plan):
                    now = state.meter.read()
                    recent, logged = now.since(logged), now
                    # Rewards stay finite when the weights do not; the norm does not.
                    run.check_finite(recent.mean + norm.item(), state, optimizer)
                    run.log_steps(stage.measure, recent, norm.item(), state, optimizer)
                    bar.set_postfix_str(logs.step_note(stage.measure, recent))
                if time.perf_counter() - saved_at > SAVE_EVERY:
                    with cli.finish_before_stopping():
                        run.save_last(state, optimizer)
                    saved_at = time.perf_counter()

            learned = state.meter.read()
            run.check_weights(state, optimizer)
            scores, captions = run.validate(val_set)
            with cli.finish_before_stopping():
                state.finish_epoch()
                record_epoch(run, stage, state, scores, captions, learned)
                run.save_last(state, optimizer)
                run.log_epoch(scores, captions, val_set, state)
    if state.epoch < stage.epochs:
        log.info(f"{stage.name} ended early: no better CIDEr in {stage.patience} epochs")


def prepare_stage(
    settings: Settings,
    run: Run,
    stage: Stage,
    state: TrainState,
    train_set: Flickr30k,
    optimizer_state: dict[str, Any] | None,
) -> AdamW:
    """Unfreeze what trains, plan the schedule, and save the run if the stage is a later one.

    Returns:
        Its optimizer, as it was if a run is resumed in it.
    """
    run.model.unfreeze_encoder(stage.trained_layers)
    run.model.zero_grad()  # gradients of what no longer trains would count in the norm
    optimizer = learning.make_optimizer(
        run.model,
        learning_rate=stage.learning_rate,
        encoder_learning_rate=settings.encoder_learning_rate,
        weight_decay=settings.weight_decay,
    )
    # About so many: batches of whole images may be one more or fewer in another epoch.
    n_steps = stage.epochs * len(make_plan(settings, stage, train_set, epoch=0))
    plan_schedule(state, n_steps)
    if optimizer_state:
        restore_optimizer(optimizer, optimizer_state)
    if state.best_scores:  # a run that is killed before the next save resumes here, as set now
        run.save_last(state, optimizer)
    return optimizer


def augmented(batch: Batch, dataset: Flickr30k, stage: Stage) -> Tensor:
    """(N, 3, S, S) uint8, the batch's pixels with the stage's random crops and mirroring."""
    assert batch.pixels is not None
    if stage.crop == 1:
        return batch.pixels
    may_mirror, share = dataset.may_mirror[batch.image_index], batch.whole and batch.whole.images
    return augment(batch.pixels, may_mirror, crop=stage.crop, share=share)


def record_epoch(
    run: Run,
    stage: Stage,
    state: TrainState,
    scores: dict[str, float],
    captions: list[str],
    learned: Reading,
) -> None:
    """Log an epoch, and save the model if it is the best so far."""
    is_best = not state.best_scores or is_better(scores, state.best_scores)
    state.epochs_without_improvement = 0 if is_best else state.epochs_without_improvement + 1
    where = f"{stage.name} {state.epoch}/{stage.epochs}"
    log.info(logs.epoch_line(where, stage.measure, learned, scores, captions, is_best=is_best))
    if is_best:
        state.best_scores = scores
        state.best_epoch = f"epoch {state.epoch} of {stage.epochs} ({stage.name})"
        run.save_best(state)


# --------------------------------------------------------------------------- where a run starts


def starting_point(
    settings: Settings, given: frozenset[str], device: torch.device
) -> tuple[Settings, Checkpoint | None, Checkpoint | None]:
    """The settings in force, and the last.pt to resume or the model of --init."""
    if settings.demo:
        preset = {name: value for name, value in demo.SETTINGS.items() if name not in given}
        settings = replace(settings, **preset)
    if settings.resume or agreement.is_restarted(settings.checkpoints):
        last = checkpoint.load_last(settings.checkpoints, device, Settings)
        stages = [stage.name for stage in make_stages(settings)]
        begun = stages[: stages.index(last.training["state"]["stage"]) + 1]
        resumed = resumed_settings(settings, given, last.settings, begun)
        if "data" in given and settings.data.is_file():  # it names the captions file itself
            resumed = replace(resumed, captions=settings.captions)
        # Those of this command: the old run may have been on another machine.
        resumed = replace(resumed, checkpoints=settings.checkpoints, device=settings.device)
        return resumed, last, None
    if settings.init:
        init = checkpoint.load(settings.init, device, flag="--init")
        return inherited_settings(settings, given, init.settings, settings.init), None, init
    if settings.encoder not in BLOCKS_PER_LAYER:
        known = ", ".join(BLOCKS_PER_LAYER)
        raise UserError(f"--encoder must be one of {known}, got {settings.encoder!r}.")
    if not settings.epochs:
        raise UserError("--epochs 0 leaves out stage 1: give --init with a trained model.")
    return settings, None, None


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; the exit status."""
    settings, given = cli.parse(Settings, argv)
    return cli.run(lambda: train(settings, given), settings)


if __name__ == "__main__":
    raise SystemExit(main())
