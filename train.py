"""Train a captioner: `python train.py`, or `python train.py --demo` without any data.

Three stages. *Words*: the encoder is frozen, what it sees is computed once, and the decoder learns
on that. *Eyes* (`--finetune-epochs`): the encoder's last stages learn too. *Taste*
(`--scst-epochs`): the model's own sentences are rewarded. After every epoch the model describes the
validation images freely. Keeps `checkpoints/best.pt` (to use) and `checkpoints/last.pt` (to go on
with: `--resume`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import cli
from cli import option


@dataclass(frozen=True)
class Settings:
    """Train a captioner on a folder of photos with captions."""

    # The data
    data: Path = option(Path("flickr30k_images"), "folder with the captions file and the photos")
    captions: str = option("", "captions file in that folder, if it holds several")
    language: str = option("en", "language of the captions, a code or a pipeline of spaCy's")
    freq_threshold: int = option(5, "words met less often are left out", at_least=1)

    # The model
    encoder: str = option(
        "resnet50",
        "the network that looks",
        choices=("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    )
    encoder_weights: str = option(
        "IMAGENET1K_V1", "pretrained weights: torchvision's name, a file, or none"
    )
    image_size: int = option(224, "side of the square the pictures are scaled to", at_least=32)
    embedding_size: int = option(512, "size of image and word vectors", at_least=1)
    hidden_size: int = option(512, "size of the LSTM's state", at_least=1)
    num_layers: int = option(1, "LSTM layers", at_least=1)
    dropout: float = option(0.5, "share of the decoder's values dropped", at_least=0, below=1)
    image_dropout: float = option(0.3, "share of the image vectors dropped", at_least=0, below=1)

    # Stage 1, words: the decoder learns
    epochs: int = option(8, "times through the training captions in stage 1", at_least=0)
    batch_size: int = option(100, "captions a step", at_least=1)
    learning_rate: float = option(1e-3, "peak of the schedule in stage 1", at_least=0)
    warmup: float = option(0.05, "share of a stage's steps that warm up", at_least=0, below=1)
    weight_decay: float = option(0.01, "of weight matrices, not of word vectors", at_least=0)
    label_smoothing: float = option(0.1, "share spread over all words", at_least=0, below=1)
    averaging: float = option(
        0.998, "what the running mean of the weights keeps at each step", at_least=0, below=1
    )
    clip_norm: float = option(5.0, "largest gradient norm; inf turns clipping off", at_least=0)
    patience: int = option(
        5,
        "end a stage after so many epochs without a better CIDEr; stage 3 after 2 at most",
        at_least=1,
    )

    # Stage 2, eyes: the encoder's last stages learn too
    finetune_epochs: int = option(0, "epochs of stage 2; 0 leaves it out", at_least=0)
    finetune_stages: int = option(2, "how many of the ResNet's last stages", at_least=1, below=5)
    finetune_learning_rate: float = option(5e-4, "the decoder's in stage 2", at_least=0)
    encoder_learning_rate: float = option(1e-4, "the encoder's in stage 2", at_least=0)
    crop: float = option(0.6, "smallest part of a picture shown in stages 2 and 3", at_least=0.05)

    # Stage 3, taste: the model's own sentences are rewarded
    scst_epochs: int = option(0, "epochs of stage 3; 0 leaves it out", at_least=0)
    scst_learning_rate: float = option(1e-4, "the decoder's in stage 3", at_least=0)
    scst_samples: int = option(5, "sentences drawn for each image", at_least=2)
    scst_words: float = option(0.2, "weight of cross-entropy beside the rewards", at_least=0)

    # Writing captions, in validation and with the trained model
    beam_size: int = option(3, "sentences kept while searching", at_least=1)
    max_words: int = option(20, "longest caption", at_least=1)
    length_penalty: float = option(1.0, "0 favours short captions, above 1 long ones", at_least=0)
    no_repeat: int = option(3, "words in a row that no caption says twice; 0: any", at_least=0)

    # The run
    init: Path | None = option(None, "start from this trained model; its words are kept")
    demo: bool = option(False, "draw little scenes and learn to describe them: needs no data")
    resume: bool = option(False, "go on with the run in --checkpoints")
    checkpoints: Path = option(Path("checkpoints"), "where best.pt and last.pt go")
    runs: Path = option(Path("runs/image_captioning"), "where TensorBoard's logs go")
    run_name: str = option("", "folder in --runs; left out, it is the time the run begins")
    cache: Path = option(Path("cache"), "where computed image vectors are kept")
    device: str = option("auto", "where to train", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = option(0, "same seed, same CPU: same result", at_least=0)
    quiet: bool = option(False, "no progress and notes, only results and errors")
    debug: bool = option(False, "show where an error comes from")

    def __post_init__(self) -> None:
        cli.check(self)
        if not self.epochs + self.finetune_epochs + self.scst_epochs:
            raise ValueError("--epochs, --finetune-epochs and --scst-epochs are all 0")
        if self.crop > 1:
            raise ValueError(f"--crop must be at most 1, got {self.crop}")


if __name__ == "__main__":  # before the slow imports
    cli.answer_at_once(Settings)

import logging
import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

import checkpoint
import demo
import features
import metrics
import selfcritical
from checkpoint import Checkpoint
from learning import Average, optimizer, warmup_then_cosine, word_losses
from loader import (
    SPECIAL_TOKENS,
    Batch,
    Corpus,
    DataError,
    Flickr30k,
    Vocabulary,
    augment,
    collate,
    load_corpus,
    plan_batches,
    read_image,
)
from logs import PROJECTED_IMAGES, RunLog
from model import ALL_STAGES, ImageCaptioningModel, caption, half_precision, targets

log = logging.getLogger(__name__)

DEMO = {  # a preset: a flag given beside --demo wins
    "data": Path("checkpoints/demo/scenes"),
    "checkpoints": Path("checkpoints/demo"),
    "run_name": "demo",
    "encoder": "resnet18",
    "encoder_weights": "none",
    "image_size": 64,
    "embedding_size": 256,
    "hidden_size": 256,
    "dropout": 0.1,
    "image_dropout": 0.0,
    "label_smoothing": 0.0,
    "averaging": 0.0,  # else an early mean wins, which says little of the scene but says it well
    "epochs": 7,
    "batch_size": 160,
}
EPOCHS = ("epochs", "finetune_epochs", "scst_epochs")  # of each stage
# What a run that is gone on with may change; all else is as it began.
CHANGEABLE = {
    *("data", "captions", "checkpoints", "runs", "cache", "device", "resume", "demo"),
    *(*EPOCHS, "patience", "quiet", "debug"),
    *("beam_size", "max_words", "length_penalty", "no_repeat"),
}
# And what it may change as long as a stage of this number has not begun.
CHANGEABLE_BEFORE = {
    1: {"finetune_stages", "finetune_learning_rate", "encoder_learning_rate", "crop"},
    2: {"scst_learning_rate", "scst_samples", "scst_words"},
}
# What `--init` brings with it.
INHERITED = (
    *("encoder", "encoder_weights", "image_size", "embedding_size", "hidden_size", "num_layers"),
    "language",
)
LOG_EVERY = 50  # steps
SAVE_EVERY = 600.0  # seconds
TASTE_PATIENCE = 2  # rewards go on rising while what they are to measure falls


def train(settings: Settings, given: frozenset[str]) -> None:
    """Train as the settings say; ``given`` names those that were given as flags."""
    device = cli.device(settings.device)
    if settings.demo:
        settings = replace(settings, **{k: v for k, v in DEMO.items() if k not in given})
    resumed = _load_run(settings, device) if settings.resume else None
    if resumed:
        settings = _resumed_settings(settings, given, resumed)
    init = checkpoint.load(settings.init, device) if settings.init and not resumed else None
    if init:
        settings = _inherited_settings(settings, given, init)
    elif not settings.epochs and not resumed:
        raise cli.UsageError("--epochs 0 leaves out stage 1: give --init with a trained model.")
    if settings.demo and not (settings.data / "scenes.jsonl").is_file():
        _draw_scenes(settings)
    corpus = _corpus(settings, resumed)
    for folder in (settings.checkpoints, settings.runs):
        folder.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(settings.seed)
    vocabulary = resumed.vocabulary if resumed else _vocabulary(settings, corpus, init)
    model = resumed.model if resumed else _model(settings, vocabulary, init)
    model.to(device)
    log.info(_describe(settings, vocabulary, model, device))
    started_at = resumed.started_at if resumed else datetime.now().strftime(checkpoint.MOMENT)
    if not resumed:
        settings = replace(settings, run_name=settings.run_name or started_at)
    run = Run(settings, model, vocabulary, corpus, started_at)
    with _hold(settings.checkpoints):
        run.fit(resumed)
    print(_closing_block(run))


@dataclass(frozen=True)
class Stage:
    """A part of the training: what learns, how fast, for how long."""

    name: str
    epochs: int
    learning_rate: float
    patience: int
    trained: int = 0  # of the encoder's stages
    crop: float = 1.0  # smallest part of a picture shown


def _stages(settings: Settings) -> list[Stage]:
    """The three stages; those without epochs are left out when it comes to them."""
    scratch = settings.encoder_weights == "none"
    return [
        Stage(
            "words",
            settings.epochs,
            settings.learning_rate,
            settings.patience,
            trained=ALL_STAGES if scratch else 0,
        ),
        Stage(
            "eyes",
            settings.finetune_epochs,
            settings.finetune_learning_rate,
            settings.patience,
            trained=settings.finetune_stages,
            crop=settings.crop,
        ),
        Stage(
            "taste",
            settings.scst_epochs,
            settings.scst_learning_rate,
            min(settings.patience, TASTE_PATIENCE),
            crop=settings.crop,
        ),
    ]


class Run:
    """One training run: what it trains, on what, and where it stands."""

    train_set: Flickr30k
    val_set: Flickr30k
    optimizer: AdamW
    schedule: LambdaLR
    average: Average
    reward: selfcritical.Reward
    log: RunLog

    def __init__(
        self,
        settings: Settings,
        model: ImageCaptioningModel,
        vocabulary: Vocabulary,
        corpus: Corpus,
        started_at: str,
    ) -> None:
        """Ready for ``fit``."""
        self.settings, self.model, self.vocabulary = settings, model, vocabulary
        self.corpus, self.started_at = corpus, started_at
        self.device = model.words.weight.device
        self.stages = _stages(settings)
        self.place = Place()
        self.saved_at = time.monotonic()

    @property
    def stage(self) -> Stage:
        """The one under way."""
        return self.stages[self.place.stage]

    def fit(self, resumed: Checkpoint | None = None) -> None:
        """Train the epochs that are left, validate after each, keep the best and the last."""
        if resumed:
            self.place = Place.of(resumed.training["place"])
            where = f"epoch {self.place.epoch + 1}, after step {self.place.position}"
            log.info(f"resumed     in {self.stage.name}, {where}")
        left = [n for n, s in enumerate(self.stages) if s.epochs and n >= self.place.stage]
        if not left:
            raise cli.UsageError(
                f"no epochs are left to train from {self.stage.name} on: give more of them."
            )
        for number in left:
            is_new = number > self.place.stage
            if is_new:
                self.enter(number)
            self.prepare()
            if number == left[0]:
                self.open_log(resumed)
            if resumed and not is_new:
                self.restore(resumed)
            self.train_stage()
        self.log_results()
        self.log.close()

    def enter(self, number: int) -> None:
        """Go on to another stage, from the best that was reached so far."""
        if self.place.best:
            best = checkpoint.load(self.settings.checkpoints / "best.pt", self.device)
            self.model.load_state_dict(best.model.state_dict())
        self.place.stage, self.place.epoch = number, 0
        self.place.position, self.place.stale = 0, 0

    def prepare(self) -> None:
        """Make the stage's images, optimizer and schedule."""
        settings, stage, model = self.settings, self.stage, self.model
        model.train_encoder(stage.trained)
        model.zero_grad()  # what no longer trains would count in the norm
        self.train_set = self.dataset("train", pixels=stage.trained > 0 or stage.crop < 1)
        self.val_set = self.dataset("val", pixels=stage.trained > 0)
        if not self.place.step and not stage.trained and not settings.init:
            model.standardise(torch.stack(list(self.train_set.images)).to(self.device))
        if stage.name == "taste":
            self.reward = selfcritical.Reward(self.train_set.captions)
        self.optimizer = optimizer(
            model,
            learning_rate=stage.learning_rate,
            encoder_learning_rate=settings.encoder_learning_rate,
            weight_decay=settings.weight_decay,
        )
        n_steps = stage.epochs * len(self.plan(epoch=0))
        self.schedule = LambdaLR(self.optimizer, warmup_then_cosine(n_steps, settings.warmup))
        self.average = Average(model, settings.averaging)

    def dataset(self, split: str, *, pixels: bool) -> Flickr30k:
        """A split with its pixels or image vectors; pictures that cannot be read are left out."""
        examples, rows = features.prepare_examples(
            self.corpus.splits[split],
            self.model,
            image_size=self.settings.image_size,
            cache=self.settings.cache,
            device=self.device,
            pixels=pixels,
            progress=partial(cli.progress, about="looking at pictures", unit="picture"),
        )
        return Flickr30k(examples, self.vocabulary, rows)

    def open_log(self, resumed: Checkpoint | None) -> None:
        """Open TensorBoard's folder; a fresh run first moves what an earlier one left."""
        settings = self.settings
        if not resumed:
            checkpoint.set_aside(settings.checkpoints, settings.runs / settings.run_name)
        self.log = RunLog(settings.runs / settings.run_name, step=self.place.step)
        rows = "\n".join(f"| {name} | {value} |" for name, value in _plain(settings).items())
        self.log.text("settings", f"| setting | value |\n|---|---|\n{rows}")
        if settings.init and not resumed:  # what every later epoch has to surpass
            self.finish_epoch(*self.validate())

    def train_stage(self) -> None:
        """Train the stage's epochs that are left."""
        place, stage = self.place, self.stage
        try:
            while place.epoch < stage.epochs and place.stale < stage.patience:
                self.train_epoch()
                with self.average.applied():
                    scores, captions = self.validate()
                    with cli.uninterrupted():
                        place.epoch, place.position = place.epoch + 1, 0
                        place.total_epochs += 1
                        self.finish_epoch(scores, captions)
                with cli.uninterrupted():
                    self.save("last.pt", training=True)
        except (KeyboardInterrupt, SystemExit):
            self.save("last.pt", training=True)
            log.info(
                f"stopped in epoch {place.epoch + 1} of {stage.name}, nothing is lost: go on with\n"
                f"    python train.py --resume{_flag_if_moved(self.settings)}"
            )
            raise
        if place.epoch < stage.epochs:
            log.info(f"{stage.name} ended early: no better CIDEr in {stage.patience} epochs")

    def plan(self, epoch: int) -> list[list[tuple[int, int]]]:
        """The batches of an epoch."""
        return plan_batches(
            self.train_set,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed * 1000 + epoch,
            whole_images=self.stage.trained > 0 or self.stage.name == "taste",
        )

    def train_epoch(self) -> None:
        """Take the epoch's steps, from wherever it stands."""
        place = self.place
        plan = self.plan(place.epoch)
        if not place.position:
            place.sums = Sums()
        self.model.train()
        about = f"{self.stage.name} {place.epoch + 1}/{self.stage.epochs}"
        bar = cli.progress(plan[place.position :], about=about, unit="step")
        logged = Sums()  # since the last log
        for pairs in bar:
            batch = collate(self.train_set, pairs)
            with cli.uninterrupted():
                gradient_norm = self.train_step(batch.to(self.device), logged)
            if place.step % LOG_EVERY == 0 or place.position == len(plan):
                self.log_progress(bar, logged, gradient_norm)
                logged = Sums()
            if time.monotonic() - self.saved_at > SAVE_EVERY:
                with cli.uninterrupted():
                    self.save("last.pt", training=True)
        place.sums.stop()

    def train_step(self, batch: Batch, logged: Sums) -> Tensor:
        """One step of the optimizer."""
        loss_of = self.reward_loss if self.stage.name == "taste" else self.words_loss
        loss = loss_of(self.look(batch))
        if self.device.type == "cpu":
            self.check_finite(loss.mean.item())
        self.optimizer.zero_grad()
        loss.mean.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.average.update()
        self.place.step += 1
        self.place.position += 1
        for sums in (logged, self.place.sums):
            sums.add(loss.total, loss.count, n_words=batch.n_words)
        return norm

    def look(self, batch: Batch) -> Batch:
        """Crop and mirror, if the stage does; an encoder that no longer learns looks here."""
        if self.stage.crop < 1:
            mirror = [self.train_set.may_mirror[i] for i in batch.image_at]
            batch = replace(batch, images=augment(batch.images, mirror, smallest=self.stage.crop))
        if not self.stage.trained:
            with torch.no_grad():
                batch = replace(batch, images=self.model.features(batch.images))
        return batch

    def words_loss(self, batch: Batch) -> Loss:
        """Cross-entropy of people's words; told is the sum of nats."""
        with half_precision(self.device):
            logits = self.model(batch.images, batch.tokens, batch.image_of)
        expected = targets(batch.tokens)
        mean, nats = word_losses(logits, expected, self.settings.label_smoothing)
        return Loss(mean, nats, len(expected))

    def reward_loss(self, batch: Batch) -> Loss:
        """Self-critical loss of the model's own sentences; told is the sum of their rewards."""
        settings = self.settings
        try:
            tokens = selfcritical.draw(
                self.model,
                batch.images,
                n_samples=settings.scst_samples,
                max_words=settings.max_words,
            )
        except RuntimeError as error:  # torch's, of probabilities that are none
            if "probability tensor" in str(error):
                self.check_finite(math.nan)
            raise
        rewards = self.reward(batch.image_at, tokens)
        mean = selfcritical.policy_loss(self.model, batch.images, tokens, rewards)
        if settings.scst_words:
            mean = mean + settings.scst_words * self.words_loss(batch).mean
        return Loss(mean, rewards.sum(), rewards.numel())

    def check_finite(self, loss: float) -> None:
        """Stop a run that has diverged, before its weights are kept."""
        if not math.isfinite(loss):
            good = f" The last good checkpoints are in {self.settings.checkpoints}."
            raise cli.UsageError(
                f"the loss is {loss} at step {self.place.step + 1:,}, learning rate "
                f"{self.schedule.get_last_lr()[0]:.2g}: try a smaller one."
                f"{good if self.place.total_epochs else ''}"
            )

    def log_progress(self, bar: Any, logged: Sums, gradient_norm: Tensor) -> None:
        """Points on TensorBoard's curves and numbers on the bar."""
        mean, name = logged.mean(), "reward" if self.stage.name == "taste" else "loss"
        self.check_finite(mean)
        values = {
            f"{name}/train": mean,
            "learning_rate": self.schedule.get_last_lr()[0],
            "gradient_norm": gradient_norm.item(),
            "words_per_second": logged.words_per_second(),
        }
        self.log.scalars(values, self.place.step)
        bar.set_postfix_str(f"{name} {mean:.2f}, {logged.words_per_second():,.0f} words/s")

    def validate(self) -> tuple[dict[str, float], list[str]]:
        """Loss with teacher forcing, scores and captions without: written freely, beam search."""
        self.model.eval()
        seen = self.val_set.seen_as(self.vectors(self.val_set.images))
        sums = Sums()
        plan = plan_batches(seen, batch_size=500, seed=0, whole_images=False)
        with torch.inference_mode():
            for pairs in plan:
                batch = collate(seen, pairs).to(self.device)
                logits = self.model(batch.images, batch.tokens, batch.image_of)
                expected = targets(batch.tokens)
                sums.add(word_losses(logits, expected, 0.0)[1], len(expected))
        loss = sums.mean()
        self.check_finite(loss)
        captions = self.describe(seen.images)
        references = [example.captions for example in seen.examples]
        scores = {"loss": loss, **metrics.score(captions, references)}
        return scores, captions

    def vectors(self, images: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the encoder, as it is now, makes of pictures; vectors stay what they are."""
        if images[0].dim() == 1:
            return images
        with torch.inference_mode():
            parts = [
                torch.stack([images[i] for i in range(start, min(start + 50, len(images)))])
                for start in range(0, len(images), 50)
            ]
            return torch.cat([self.model.encode(part.to(self.device)) for part in parts])

    def describe(self, images: Sequence[Tensor]) -> list[str]:
        """A caption for each image, as `predict.py` would write it."""
        search = checkpoint.search(_plain(self.settings), self.vocabulary)
        found = caption([self.model], [images], search)
        return [self.vocabulary.text(hypotheses[0].tokens) for hypotheses in found]

    def finish_epoch(self, scores: dict[str, float], captions: list[str]) -> None:
        """Log the epoch, and save the model if it is the best so far."""
        place, stage, sums = self.place, self.stage, self.place.sums
        distinct = 100 * len(set(captions)) / len(captions)
        best = not place.best or _rank(scores) > _rank(place.best)
        learned = (
            f"{'reward' if stage.name == 'taste' else 'loss'} {sums.mean():.2f}  "
            f"{sums.words_per_second():,.0f} words/s  {sums.seconds():.0f} s  "
        )
        log.info(
            f"{stage.name} {place.epoch}/{stage.epochs}  {learned if place.epoch else ''}"
            f"val {scores['loss']:.2f} nats/word  CIDEr {scores['CIDEr']:.1f}  "
            f"BLEU-4 {scores['BLEU-4']:.1f}  distinct {distinct:.0f} %{'  best' if best else ''}"
        )
        place.stale = 0 if best else place.stale + 1
        values = {f"score/{name}": value for name, value in scores.items() if name != "loss"}
        values["loss/val"] = scores["loss"]
        values["captions/distinct"] = distinct
        n_words = sum(len(metrics.tokens(text)) for text in captions)
        values["captions/words"] = n_words / len(captions)
        self.log.scalars(values, place.step)
        shown = self.val_set.examples[:8]
        self.log.pictures(
            [read_image(example.path, size=256) for example in shown],
            captions[:8],
            [example.captions[0] for example in shown],
            step=place.step,
        )
        if best:
            place.best = scores
            place.best_epoch = f"epoch {place.epoch} of {stage.epochs} ({stage.name})"
            self.save("best.pt")

    def save(self, name: str, *, training: bool = False) -> None:
        """Write a checkpoint; with ``training`` all that it takes to go on."""
        if training and not self.model.is_finite():  # since the last loss that was looked at
            self.check_finite(math.nan)
        checkpoint.save(
            self.settings.checkpoints / name,
            Checkpoint(
                self.model,
                self.vocabulary,
                settings=_plain(self.settings),
                epoch=self.place.total_epochs,
                scores=self.place.best,
                started_at=self.started_at,
                training=self.training_state() if training else {},
            ),
        )
        self.saved_at = time.monotonic()

    def training_state(self) -> dict[str, Any]:
        """What it takes to go on, beside the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all(),
            "place": self.place.state(),
            "corpus": self.corpus.fingerprint,
        }

    def restore(self, resumed: Checkpoint) -> None:
        """Stand where the run stood when `last.pt` was written."""
        state = resumed.training
        self.place = Place.of(state["place"])  # again: its clock runs from here
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.restore(state["average"])
        torch.set_rng_state(state["random"].cpu())
        if len(state["cuda_random"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda_random"]])

    def log_results(self) -> None:
        """Fill TensorBoard's projector and table of runs with the best model."""
        best = checkpoint.load(self.settings.checkpoints / "best.pt", self.device)
        self.model.load_state_dict(best.model.state_dict())
        seen = self.dataset("val", pixels=False)
        examples = seen.examples[:PROJECTED_IMAGES]
        images = torch.stack([seen.images[i] for i in range(len(examples))]).to(self.device)
        captions = self.describe(images)
        with torch.inference_mode():
            vectors = self.model.image_embedding(images)
        self.log.embeddings(
            self.vocabulary,
            word_vectors=self.model.word_embedding.weight.detach(),
            image_vectors=vectors,
            images=[read_image(example.path, size=64) for example in examples],
            captions=list(zip(captions, (e.captions[0] for e in examples), strict=True)),
            step=self.place.step,
        )
        self.log.text("model card", checkpoint.describe(best))
        self.log.results(_plain(self.settings), self.place.best)


@dataclass(frozen=True)
class Loss:
    """What a batch gives."""

    mean: Tensor  # to be minimised
    total: Tensor  # to be told: a sum
    count: int  # of so many words or sentences


class Sums:
    """Losses or rewards added up, so that a mean is a sum divided by a count."""

    def __init__(
        self, total: float = 0.0, count: int = 0, n_words: int = 0, seconds: float = 0.0
    ) -> None:
        """Begin with what was there before."""
        self.total: Tensor | float = total
        self.count, self.n_words = count, n_words
        self.started_at = time.monotonic() - seconds
        self.stopped_at: float | None = None

    def add(self, total: Tensor, count: int, *, n_words: int = 0) -> None:
        """Add a batch's sum, what it is of, and how many words were learned from."""
        self.total = self.total + total
        self.count += count
        self.n_words += n_words

    def mean(self) -> float:
        """Nats per word, or reward per sentence."""
        return float(self.total) / max(1, self.count)

    def stop(self) -> None:
        """Stop the clock: what follows is not training."""
        self.stopped_at = time.monotonic()

    def seconds(self) -> float:
        """From the beginning until now, or until the clock was stopped."""
        return (self.stopped_at or time.monotonic()) - self.started_at

    def words_per_second(self) -> float:
        """Captions' words learned from, a second."""
        return self.n_words / self.seconds()


@dataclass
class Place:
    """Where a run stands."""

    stage: int = 0  # the one under way
    epoch: int = 0  # epochs done in it
    position: int = 0  # steps done in the epoch under way
    stale: int = 0  # epochs of the stage since the best
    step: int = 0  # steps done in all
    total_epochs: int = 0  # epochs done in all
    best_epoch: str = ""
    best: dict[str, float] = field(default_factory=dict)  # its validation scores
    sums: Sums = field(default_factory=Sums)  # of the epoch under way

    def state(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        sums = (float(self.sums.total), self.sums.count, self.sums.n_words, self.sums.seconds())
        return {**vars(self), "sums": list(sums)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Place:
        """The place that ``state`` tells."""
        return cls(**{**state, "sums": Sums(*state["sums"])})


def _rank(scores: Mapping[str, float]) -> tuple[float, float]:
    """What makes an epoch the best; on very few images CIDEr is always 0, and the loss tells."""
    return scores["CIDEr"], -scores["loss"]


def _draw_scenes(settings: Settings) -> None:
    """Draw the demo's data, into a folder of their own; an interrupted drawing may be there."""
    others = {path.name for path in settings.data.glob("*")} - {"flickr30k_images"}
    if others:
        raise cli.UsageError(
            f"{settings.data} holds {min(others)}, which the demo did not draw: leave --data out, "
            "or name a new folder for its scenes."
        )
    bar = partial(cli.progress, about="drawing scenes", unit="scene")
    demo.draw(settings.data, size=settings.image_size, progress=bar)


def _corpus(settings: Settings, resumed: Checkpoint | None) -> Corpus:
    """The data set: fit for training, and the same as before if a run is gone on with."""
    if resumed and not settings.data.exists():
        raise DataError(
            f"{settings.data}, the data of the run to go on with, is not there: give --data."
        )
    corpus = load_corpus(settings.data, settings.captions)
    log.info(corpus.describe())
    if resumed and resumed.training["corpus"] != corpus.fingerprint:
        raise DataError(
            f"{corpus.captions.path} and its photos are not those of the run to go on with: give "
            "their place with --data, or learn from others with --init."
        )
    for split in ("train", "val"):
        if not corpus.splits[split]:
            raise DataError(
                f"the {split} split of {corpus.captions.path} is empty (split by "
                f"{corpus.split_source}): training needs images to learn from and to validate on. "
                f"{_how_to_name(corpus, split)}"
            )
    n_val = len(corpus.splits["val"])
    if n_val < metrics.FEW:
        log.warning(
            f"warning: only {n_val} images to validate on: scores mean little below {metrics.FEW}. "
            f"{_how_to_name(corpus, 'val')}"
        )
    return corpus


def _how_to_name(corpus: Corpus, split: str) -> str:
    """How a user gets more images into a split."""
    path = corpus.captions.path
    if corpus.captions.split_of:
        return f"Give more of them the split {split} in {path}."
    return f"Name more in {path.parent / f'split_{split}.txt'}, one a line."


def _hold(folder: Path) -> AcquireReturnProxy:
    """Keep a folder of checkpoints to this run: two at once would ruin them for each other.

    Returns:
        A context manager, at whose end the folder is free again.

    Raises:
        UsageError: another run holds it.
    """
    try:
        return FileLock(folder / "running.lock").acquire(blocking=False)
    except Timeout:
        raise cli.UsageError(
            f"another run writes to {folder}: wait for it, or name another folder with "
            "--checkpoints."
        ) from None


def _vocabulary(settings: Settings, corpus: Corpus, init: Checkpoint | None) -> Vocabulary:
    """Counted in the captions of the training images, and in no others."""
    captions = [text for example in corpus.splits["train"] for text in example.captions]
    if init:
        return init.vocabulary.extended(captions, freq_threshold=settings.freq_threshold)
    vocabulary = Vocabulary.build(
        captions, freq_threshold=settings.freq_threshold, language=settings.language
    )
    if len(vocabulary) == len(SPECIAL_TOKENS):
        raise DataError(
            f"no word of the {len(captions):,} training captions is met {settings.freq_threshold} "
            "times: give a smaller --freq-threshold."
        )
    return vocabulary


def _model(
    settings: Settings, vocabulary: Vocabulary, init: Checkpoint | None
) -> ImageCaptioningModel:
    """A new model, its encoder with pretrained weights or random; or the one to start from."""
    model = ImageCaptioningModel(
        len(vocabulary),
        encoder=settings.encoder,
        embedding_size=settings.embedding_size,
        hidden_size=settings.hidden_size,
        num_layers=settings.num_layers,
        dropout=settings.dropout,
        image_dropout=settings.image_dropout,
    )
    if init:
        model.start_from(init.model)
    else:
        checkpoint.load_encoder(model, settings.encoder_weights)
    return model


def _describe(
    settings: Settings, vocabulary: Vocabulary, model: ImageCaptioningModel, device: torch.device
) -> str:
    is_scratch = settings.encoder_weights == "none"
    weights = f"of {settings.init}" if settings.init else settings.encoder_weights
    encoder = 0 if is_scratch else sum(p.numel() for p in model.encoder.parameters())
    n_trained = sum(p.numel() for p in model.parameters()) - encoder
    state = "frozen"
    if is_scratch:
        state = "trained on" if settings.init else "trained from scratch"
    return (
        f"vocabulary  {len(vocabulary):,} words, met {settings.freq_threshold} times or more in "
        f"training captions ({vocabulary.language})\n"
        f"model       {settings.encoder} ({state}, weights {weights}) and LSTM of "
        f"{settings.hidden_size}: {n_trained / 1e6:.1f} million parameters train\n"
        f"device      {device}"
    )


def _load_run(settings: Settings, device: torch.device) -> Checkpoint:
    """The run to go on with."""
    path = settings.checkpoints / "last.pt"
    if not path.is_file():
        raise DataError(
            f"nothing to go on with in {settings.checkpoints}: leave --resume out, or name the "
            "run's folder with --checkpoints (give --demo for the demo's)."
        )
    resumed = checkpoint.load(path, device)
    if not resumed.training:
        raise DataError(f"{path} holds no training state to go on with: it is a copy of best.pt.")
    return resumed


def _resumed_settings(settings: Settings, given: frozenset[str], resumed: Checkpoint) -> Settings:
    """The run's own settings, changed by those flags that may change."""
    before = _typed(resumed.settings)
    now = {name: getattr(settings, name) for name in given}
    begun = resumed.training["place"]["stage"]
    ahead = (names for stage, names in CHANGEABLE_BEFORE.items() if stage > begun)
    changeable = CHANGEABLE.union(*ahead)
    for name, value in now.items():
        if name in EPOCHS[:begun] and value != before[name]:
            raise cli.UsageError(
                f"{cli.flag(name)} comes too late, that stage of the run is over: leave the flag "
                f"out, or begin a new run with --init {settings.checkpoints / 'best.pt'}."
            )
        if name not in changeable and value != before[name]:
            was = "left out" if before[name] is None else before[name]
            raise cli.UsageError(
                f"{cli.flag(name)} is {was} in the run to go on with, not {value}: leave "
                "the flag out, or start afresh without --resume."
            )
    changed = {**now, "checkpoints": settings.checkpoints, "device": settings.device}
    if "data" in now and settings.data.is_file():  # which is the captions file
        changed["captions"] = settings.captions
    return Settings(**{**before, **changed})


def _inherited_settings(settings: Settings, given: frozenset[str], init: Checkpoint) -> Settings:
    """The settings, with those of the model to start from where they must be the same."""
    theirs = {name: _typed(init.settings)[name] for name in INHERITED}
    for name, value in theirs.items():
        if name in given and getattr(settings, name) != value:
            raise cli.UsageError(
                f"{cli.flag(name)} is {value} in {settings.init}, not {getattr(settings, name)}: "
                "leave the flag out, or start without --init."
            )
    return replace(settings, **theirs)


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as a checkpoint can hold them."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(settings).items()
    }


def _typed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What ``_plain`` made, back to what Settings takes."""
    paths = {field.name for field in fields(Settings) if "Path" in str(field.type)}
    return {
        name: Path(value) if name in paths and value is not None else value
        for name, value in plain.items()
    }


def _flag_if_moved(settings: Settings) -> str:
    """What `--resume` needs beside it to find the run again."""
    default = Settings.checkpoints
    return "" if settings.checkpoints == default else f" --checkpoints {settings.checkpoints}"


def _closing_block(run: Run) -> str:
    """Where the best checkpoint is, what it scored, and what to do with it."""
    settings, best = run.settings, run.place.best
    path = settings.checkpoints / "best.pt"
    scores = "  ".join(f"{name} {value:.1f}" for name, value in best.items() if name != "loss")
    which = "" if path == Path("checkpoints/best.pt") else f"--checkpoint {path} "
    more = ""
    if not settings.finetune_epochs and not settings.scst_epochs and not settings.demo:
        resume = f"python train.py --resume{_flag_if_moved(settings)}"
        more = f"better      {resume} --finetune-epochs 6 --scst-epochs 3\n"
    return (
        f"\nbest        {path}, {run.place.best_epoch}\n"
        f"scores      {scores}\n"
        f"            on {len(run.val_set):,} validation images, beam {settings.beam_size}\n"
        f"try it      python predict.py {which}--image {run.val_set.examples[-1].path}\n"
        f"{more}look        tensorboard --logdir {settings.runs}"
    )


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; the exit status."""
    settings, given = cli.parse(Settings, argv)
    return cli.run(lambda: train(settings, given), settings, errors=(DataError,))


if __name__ == "__main__":
    raise SystemExit(main())
