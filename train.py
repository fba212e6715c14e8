"""Train a captioner: `python train.py`, or `python train.py --demo` without any data.

Reads the captions and pictures, computes what the frozen encoder sees once, trains the decoder
on it, and after every epoch lets the model describe the validation images freely. Keeps
`checkpoints/best.pt` (to use) and `checkpoints/last.pt` (to go on with: `--resume`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
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

    # Training
    epochs: int = option(8, "times through the training captions", at_least=1)
    batch_size: int = option(100, "captions a step", at_least=1)
    learning_rate: float = option(1e-3, "peak of the schedule", at_least=0)
    warmup: float = option(0.05, "share of the steps that warm up", at_least=0, below=1)
    weight_decay: float = option(0.01, "of weight matrices, not of word vectors", at_least=0)
    label_smoothing: float = option(0.1, "share spread over all words", at_least=0, below=1)
    clip_norm: float = option(5.0, "largest gradient norm; inf turns clipping off", at_least=0)
    patience: int = option(5, "stop after so many epochs without a better CIDEr", at_least=1)

    # Writing captions, in validation and with the trained model
    beam_size: int = option(3, "sentences kept while searching", at_least=1)
    max_words: int = option(20, "longest caption", at_least=1)
    length_penalty: float = option(0.7, "0 favours short captions, 1 long ones", at_least=0)

    # The run
    demo: bool = option(False, "draw little scenes and learn to describe them: needs no data")
    resume: bool = option(False, "go on with the run in --checkpoints")
    checkpoints: Path = option(Path("checkpoints"), "where best.pt and last.pt go")
    runs: Path = option(Path("runs/image_captioning"), "where TensorBoard's logs go")
    run_name: str = option("", "folder in --runs; left out, it is the time the run begins")
    cache: Path = option(Path("cache"), "where computed image vectors are kept")
    device: str = option("auto", "where to train", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = option(0, "same seed, same machine: same result", at_least=0)
    quiet: bool = option(False, "no progress and notes, only results and errors")
    debug: bool = option(False, "show where an error comes from")

    def __post_init__(self) -> None:
        cli.check(self)


if __name__ == "__main__":  # --help and typos answer at once, before the slow imports
    cli.parse(Settings)

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

import checkpoint
import demo
import features
import metrics
from checkpoint import Checkpoint
from loader import (
    Batch,
    Corpus,
    DataError,
    Example,
    Flickr30k,
    Vocabulary,
    collate,
    load_corpus,
    plan_batches,
    read_image,
)
from logs import PROJECTED_IMAGES, RunLog
from model import ImageCaptioningModel, targets

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
    "label_smoothing": 0.0,
    "epochs": 6,
    "batch_size": 160,
}
# What a run that is gone on with may change; all else is as it began.
CHANGEABLE = {
    *("data", "captions", "checkpoints", "runs", "cache", "device", "resume", "demo"),
    *("epochs", "patience", "beam_size", "max_words", "length_penalty", "quiet", "debug"),
}
LOG_EVERY = 50  # steps
SAVE_EVERY = 600.0  # seconds


def train(settings: Settings, given: frozenset[str]) -> None:
    """Train as the settings say; ``given`` names those that were given as flags."""
    device = cli.device(settings.device)
    if settings.demo:
        settings = replace(settings, **{k: v for k, v in DEMO.items() if k not in given})
    resumed = _load_run(settings, device) if settings.resume else None
    if resumed:
        settings = _resumed_settings(settings, given, resumed)
    if settings.demo and not (settings.data / "scenes.jsonl").is_file():
        bar = partial(cli.progress, about="drawing scenes", unit="scene")
        demo.draw(settings.data, size=settings.image_size, progress=bar)
    corpus = load_corpus(settings.data, settings.captions)
    log.info(corpus.describe())
    for split in ("train", "val"):
        if not corpus.splits[split]:
            raise DataError(
                f"the {split} split of {corpus.captions.path} is empty (split by "
                f"{corpus.split_source}): training needs images to learn from and to validate on."
            )
    for folder in (settings.checkpoints, settings.runs, settings.cache):
        folder.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(settings.seed)
    vocabulary = resumed.vocabulary if resumed else _vocabulary(settings, corpus)
    model = resumed.model if resumed else _model(settings, vocabulary)
    model.to(device)
    log.info(_describe(settings, vocabulary, model, device))
    train_set, val_set = (
        _dataset(settings, corpus.splits[split], vocabulary, model, device)
        for split in ("train", "val")
    )
    started_at = resumed.started_at if resumed else datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if not resumed:
        settings = replace(settings, run_name=settings.run_name or started_at)
        _set_aside(settings)
    run = Run(settings, model, vocabulary, train_set, val_set, started_at)
    if resumed:
        run.restore(resumed)
    run.fit()
    print(_closing_block(run))


class Run:
    """One training run: what it trains, on what, and where it stands."""

    def __init__(
        self,
        settings: Settings,
        model: ImageCaptioningModel,
        vocabulary: Vocabulary,
        train_set: Flickr30k,
        val_set: Flickr30k,
        started_at: str,
    ) -> None:
        """Ready for the first step; ``restore`` takes it to where an earlier run stopped."""
        self.settings, self.model, self.vocabulary = settings, model, vocabulary
        self.train_set, self.val_set, self.started_at = train_set, val_set, started_at
        self.device = model.words.weight.device
        self.optimizer = _optimizer(model, settings)
        n_steps = settings.epochs * len(self.plan(epoch=0))
        self.schedule = LambdaLR(self.optimizer, _warmup_then_cosine(n_steps, settings.warmup))
        self.place = Place()
        self.log: RunLog
        self.saved_at = time.monotonic()

    def fit(self) -> None:
        """Train the epochs that are left, validate after each, keep the best and the last."""
        place, settings = self.place, self.settings
        self.log = RunLog(settings.runs / settings.run_name, step=place.step)
        rows = "\n".join(f"| {name} | {value} |" for name, value in _plain(settings).items())
        self.log.text("settings", f"| setting | value |\n|---|---|\n{rows}")
        try:
            while place.epoch < settings.epochs and not self.is_stale():
                self.train_epoch()
                scores, captions = self.validate()
                with cli.uninterrupted():
                    self.finish_epoch(scores, captions)
        except (KeyboardInterrupt, SystemExit):
            self.save("last.pt", training=True)
            log.info(
                f"stopped in epoch {place.epoch + 1}, nothing is lost: go on with\n"
                f"    python train.py --resume{_flag_if_moved(settings)}"
            )
            raise
        if self.is_stale() and place.epoch < settings.epochs:
            log.info(f"stopped early: no better CIDEr in {settings.patience} epochs")
        self.log_results()
        self.log.close()

    def is_stale(self) -> bool:
        """No epoch of the last few was the best."""
        return self.place.epoch - self.place.best_epoch >= self.settings.patience

    def plan(self, epoch: int) -> list[list[tuple[int, int]]]:
        """The batches of an epoch."""
        return plan_batches(
            self.train_set,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed * 1000 + epoch,
            whole_images=self.model.train_encoder,
        )

    def train_epoch(self) -> None:
        """Take the epoch's steps, from wherever it stands."""
        place = self.place
        plan = self.plan(place.epoch)
        self.model.train()
        bar = cli.progress(plan[place.position :], about=f"epoch {place.epoch + 1}", unit="step")
        logged = Sums()  # since the last log
        gradient_norm = torch.zeros(())
        for pairs in bar:
            batch = collate(self.train_set, pairs).to(self.device)
            with cli.uninterrupted():
                gradient_norm = self.train_step(batch, logged)
            if place.step % LOG_EVERY == 0 or place.position == len(plan):
                self.log_progress(bar, logged, gradient_norm)
                logged = Sums()
            if time.monotonic() - self.saved_at > SAVE_EVERY:
                with cli.uninterrupted():
                    self.save("last.pt", training=True)
        place.sums.stop()

    def train_step(self, batch: Batch, logged: Sums) -> Tensor:
        """One step of the optimizer; nothing in it waits for the device."""
        with self.autocast():
            logits = self.model(batch.images, batch.tokens, batch.image_of)
        expected = targets(batch.tokens)
        loss, nats = word_losses(logits, expected, self.settings.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.place.step += 1
        self.place.position += 1
        for sums in (logged, self.place.sums):
            sums.add(nats, len(expected))
        return norm

    def autocast(self) -> torch.autocast:
        """Half precision where it pays: on a GPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def log_progress(self, bar: Any, logged: Sums, gradient_norm: Tensor) -> None:
        """Points on TensorBoard's curves and numbers on the bar; stops a run that has diverged."""
        loss, step = logged.mean(), self.place.step
        learning_rate = self.schedule.get_last_lr()[0]
        if not math.isfinite(loss):
            raise cli.UsageError(
                f"the loss is {loss} at step {step:,}, learning rate {learning_rate:.2g}: try a "
                f"smaller --learning-rate. The last good checkpoints are in "
                f"{self.settings.checkpoints}."
            )
        values = {
            "loss/train": loss,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm.item(),
            "words_per_second": logged.words_per_second(),
        }
        self.log.scalars(values, step)
        bar.set_postfix_str(f"loss {loss:.2f}, {logged.words_per_second():,.0f} words/s")

    def validate(self) -> tuple[dict[str, float], list[str]]:
        """Loss with teacher forcing, scores and captions without: written freely, beam search."""
        self.model.eval()
        sums = Sums()
        plan = plan_batches(
            self.val_set, batch_size=500, seed=0, whole_images=self.model.train_encoder
        )
        with torch.inference_mode():
            for pairs in plan:
                batch = collate(self.val_set, pairs).to(self.device)
                logits = self.model(batch.images, batch.tokens, batch.image_of)
                expected = targets(batch.tokens)
                sums.add(word_losses(logits, expected, 0.0)[1], len(expected))
        captions = self.describe(self.val_set.images)
        references = [example.captions for example in self.val_set.examples]
        scores = {"loss": sums.mean(), **metrics.score(captions, references)}
        return scores, captions

    def describe(self, images: Sequence[Tensor]) -> list[str]:
        """A caption for each image, as `predict.py` would write it."""
        found = self.model.caption(
            images,
            beam_size=self.settings.beam_size,
            max_words=self.settings.max_words,
            length_penalty=self.settings.length_penalty,
        )
        return [self.vocabulary.text(hypotheses[0].tokens) for hypotheses in found]

    def finish_epoch(self, scores: dict[str, float], captions: list[str]) -> None:
        """Log the epoch, and save: the last state always, the best when this is it."""
        place, sums = self.place, self.place.sums
        place.epoch, place.position, place.sums = place.epoch + 1, 0, Sums()
        distinct = 100 * len(set(captions)) / len(captions)
        best = not place.best or scores["CIDEr"] > place.best["CIDEr"]
        log.info(
            f"epoch {place.epoch}/{self.settings.epochs}  loss {sums.mean():.2f}  "
            f"val {scores['loss']:.2f} nats/word  CIDEr {scores['CIDEr']:.1f}  "
            f"BLEU-4 {scores['BLEU-4']:.1f}  distinct {distinct:.0f} %  "
            f"{sums.words_per_second():,.0f} words/s  {sums.seconds():.0f} s"
            f"{'  best' if best else ''}"
        )
        values = {f"score/{name}": value for name, value in scores.items() if name != "loss"}
        values["loss/val"] = scores["loss"]
        values["captions/distinct"] = distinct
        values["captions/words"] = sum(len(text.split()) for text in captions) / len(captions)
        self.log.scalars(values, place.step)
        shown = self.val_set.examples[:8]
        self.log.pictures(
            [read_image(example.path, size=256) for example in shown],
            captions[:8],
            [example.captions[0] for example in shown],
            place.step,
        )
        if best:
            place.best, place.best_epoch = scores, place.epoch
            self.save("best.pt")
        self.save("last.pt", training=True)

    def save(self, name: str, *, training: bool = False) -> None:
        """Write a checkpoint; with ``training`` all that it takes to go on."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all(),
            "place": self.place.state(),
        }
        checkpoint.save(
            self.settings.checkpoints / name,
            Checkpoint(
                self.model,
                self.vocabulary,
                _plain(self.settings),
                self.place.epoch,
                self.place.best,
                self.started_at,
                state if training else {},
            ),
        )
        self.saved_at = time.monotonic()

    def restore(self, resumed: Checkpoint) -> None:
        """Stand where the run stood when `last.pt` was written."""
        state = resumed.training
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"].cpu())
        if len(state["cuda_random"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda_random"]])
        self.place = Place.of(state["place"])
        log.info(f"resumed     after epoch {self.place.epoch} and {self.place.position} steps")

    def log_results(self) -> None:
        """Fill TensorBoard's projector and table of runs with the best model."""
        best = checkpoint.load(self.settings.checkpoints / "best.pt", self.device)
        self.model.load_state_dict(best.model.state_dict())
        examples = self.val_set.examples[:PROJECTED_IMAGES]
        images = torch.stack([self.val_set.images[i] for i in range(len(examples))])
        captions = self.describe(images)
        with torch.inference_mode():
            vectors = [
                self.model.image_embedding(self.model.features(part.to(self.device)))
                for part in images.split(64)
            ]
        self.log.embeddings(
            self.vocabulary,
            self.model.word_embedding.weight.detach(),
            torch.cat(vectors),
            [read_image(example.path, size=64) for example in examples],
            list(zip(captions, (e.captions[0] for e in examples), strict=True)),
        )
        self.log.text("model card", checkpoint.describe(best))
        self.log.results(_plain(self.settings), self.place.best)


class Sums:
    """Losses and words added up, so that a mean is a sum divided by a count."""

    def __init__(self, nats: float = 0.0, n_words: int = 0, seconds: float = 0.0) -> None:
        """Begin with what was there before."""
        self.nats: Tensor | float = nats
        self.n_words = n_words
        self.started_at = time.monotonic() - seconds
        self.stopped_at: float | None = None

    def add(self, nats: Tensor, n_words: int) -> None:
        """Add a batch's summed loss and its words."""
        self.nats = self.nats + nats
        self.n_words += n_words

    def mean(self) -> float:
        """Nats per word."""
        return float(self.nats) / max(1, self.n_words)

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

    epoch: int = 0  # epochs done
    position: int = 0  # steps done in the one under way
    step: int = 0  # steps done in all
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)  # its validation scores
    sums: Sums = field(default_factory=Sums)  # of the epoch under way

    def state(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        sums = (float(self.sums.nats), self.sums.n_words, self.sums.seconds())
        return {**vars(self), "sums": list(sums)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Place:
        """The place that ``state`` tells."""
        return cls(**{**state, "sums": Sums(*state["sums"])})


def word_losses(logits: Tensor, expected: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of words.

    Args:
        logits: (n_words, V).
        expected: (n_words,) ids.
        label_smoothing: share of the target spread over all words, arXiv:1512.00567 section 7.

    Returns:
        The mean loss to minimise, and the summed plain loss in nats to report, without gradient.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    plain = F.nll_loss(log_probs, expected)
    smoothed = -log_probs.mean()
    loss = (1 - label_smoothing) * plain + label_smoothing * smoothed
    return loss, plain.detach() * len(expected)


def _optimizer(model: ImageCaptioningModel, settings: Settings) -> AdamW:
    """AdamW; weight decay on matrices, not on biases, BatchNorm and word vectors."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    words = model.word_embedding.weight
    decayed = [p for p in parameters if p.dim() > 1 and p is not words]
    others = [p for p in parameters if p.dim() <= 1 or p is words]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def _warmup_then_cosine(n_steps: int, warmup: float) -> Callable[[int], float]:
    """The learning rate's factor at each step: up in a line, down to zero in half a cosine."""
    n_warmup = int(n_steps * warmup)

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / (n_warmup + 1)
        done = (step - n_warmup) / max(1, n_steps - n_warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


def _vocabulary(settings: Settings, corpus: Corpus) -> Vocabulary:
    """Counted in the captions of the training images, and in no others."""
    captions = [text for example in corpus.splits["train"] for text in example.captions]
    return Vocabulary.build(
        captions, freq_threshold=settings.freq_threshold, language=settings.language
    )


def _model(settings: Settings, vocabulary: Vocabulary) -> ImageCaptioningModel:
    """A new model, its encoder with pretrained weights and frozen, or random and trained."""
    model = ImageCaptioningModel(
        len(vocabulary),
        encoder=settings.encoder,
        embedding_size=settings.embedding_size,
        hidden_size=settings.hidden_size,
        num_layers=settings.num_layers,
        dropout=settings.dropout,
        train_encoder=settings.encoder_weights == "none",
    )
    checkpoint.load_encoder(model, settings.encoder_weights)
    return model


def _dataset(
    settings: Settings,
    examples: list[Example],
    vocabulary: Vocabulary,
    model: ImageCaptioningModel,
    device: torch.device,
) -> Flickr30k:
    """A split with its image vectors or pixels; pictures that cannot be read are left out."""
    examples, rows = features.prepare_examples(
        examples,
        model,
        image_size=settings.image_size,
        cache=settings.cache,
        device=device,
        progress=partial(cli.progress, about="looking at pictures", unit="picture"),
    )
    return Flickr30k(examples, vocabulary, rows)


def _describe(
    settings: Settings, vocabulary: Vocabulary, model: ImageCaptioningModel, device: torch.device
) -> str:
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = "trained from scratch" if model.train_encoder else "frozen"
    return (
        f"vocabulary  {len(vocabulary):,} words, met {settings.freq_threshold} times or more in "
        f"training captions ({vocabulary.language})\n"
        f"model       {settings.encoder} ({state}, weights {settings.encoder_weights}) and LSTM of "
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
    types = {name: type(value) for name, value in vars(settings).items()}
    before = {name: types[name](value) for name, value in resumed.settings.items()}
    now = {name: getattr(settings, name) for name in given}
    for name, value in now.items():
        if name not in CHANGEABLE and value != before[name]:
            raise cli.UsageError(
                f"{cli.flag(name)} is {before[name]} in the run to go on with, not {value}: leave "
                "the flag out, or start afresh without --resume."
            )
    changed = {**now, "checkpoints": settings.checkpoints, "device": settings.device}
    return Settings(**{**before, **changed})


def _set_aside(settings: Settings) -> None:
    """Move what an earlier run left where this one will write, so that nothing is lost."""
    folder = settings.checkpoints
    files = [path for path in (folder / "best.pt", folder / "last.pt") if path.exists()]
    logs = settings.runs / settings.run_name
    when = _began(files[0]) if files else _moment(logs.stat().st_mtime) if logs.exists() else ""
    if files:
        aside = _free(folder / when)
        aside.mkdir(parents=True)
        for path in files:
            path.rename(aside / path.name)
        log.info(f"kept        the earlier run's checkpoints, now in {aside}")
    if logs.exists():
        logs.rename(_free(logs.with_name(f"{logs.name}_{when}")))


def _began(path: Path) -> str:
    """When the run that wrote a checkpoint began; for a damaged one, when it was written."""
    try:
        return checkpoint.load(path, torch.device("cpu")).started_at
    except DataError:
        return _moment(path.stat().st_mtime)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d_%H-%M-%S")


def _free(path: Path) -> Path:
    """The path, or with a number if there is something by that name."""
    names = (path.with_name(f"{path.name}-{n}") for n in range(2, 1000))
    return path if not path.exists() else next(name for name in names if not name.exists())


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as a checkpoint can hold them."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(settings).items()
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
    return (
        f"\nbest        {path}, epoch {run.place.best_epoch} of {settings.epochs}\n"
        f"scores      {scores}\n"
        f"            on {len(run.val_set):,} validation images, beam {settings.beam_size}\n"
        f"try it      python predict.py {which}--image {run.val_set.examples[-1].path}\n"
        f"look        tensorboard --logdir {settings.runs}"
    )


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; the exit status."""
    settings, given = cli.parse(Settings, argv)
    return cli.run(lambda: train(settings, given), settings, errors=(DataError,))


if __name__ == "__main__":
    raise SystemExit(main())
