"""Caption pictures: `python predict.py photo.jpg`.

Takes pictures and folders, writes captions to stdout or a file, in order and as they come. Needs
a checkpoint and nothing else: no data set, no spaCy, no download.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import cli
from cli import option


@dataclass(frozen=True)
class Settings(cli.SamplingSettings):
    """Caption pictures with a trained model."""

    EXAMPLES: ClassVar = (
        "python predict.py photo.jpg --n-best 5",
        "python predict.py holiday/ --output captions.csv",
        "python predict.py holiday/ --sidecar txt",
    )

    SHORT: ClassVar = {"-0": "--null"}

    image: tuple[str, ...] = option(
        (),
        "pictures, folders (also nested), .tar shards; @list.txt, or - for standard input: a name "
        "a line",
        group="pictures",
        positional=True,
    )
    null: bool = option(False, r"or -0: names in lists end with \0, as from find -print0")
    checkpoint: tuple[Path, ...] = option(
        (Path("checkpoints/best.pt"),), "the trained model, or an ensemble", group="model"
    )
    device: str = option("auto", "where to compute", choices=cli.DEVICES)
    batch_size: int = option(64, "pictures captioned at a time", at_least=1)
    n_best: int = option(
        1,
        "captions for each picture, best first (see --length-penalty)",
        at_least=1,
        group="captions",
    )
    sentence: bool = option(False, "write captions with a capital and a full stop")
    output: Path | None = option(
        None, "write to this .csv, .jsonl, .html or .parquet file, not to the terminal"
    )
    csv_separator: str = option(
        ",", "of --output .csv; ; for spreadsheets with decimal commas", choices=(",", ";", "tab")
    )
    resume: bool = option(False, "go on with --output, if it was begun before")
    overwrite: bool = option(False, "replace the output file if it exists")
    sidecar: str = option(
        "", "write a file beside each picture: txt, caption, xmp", group="sidecars"
    )
    existing: str = option(
        "keep",
        "what to do with captions in sidecars",
        choices=("keep", "overwrite", "append", "prepend"),
    )
    prefix: str = option("", "text before each caption of a sidecar")
    suffix: str = option("", "text after it")
    sidecar_folder: Path | None = option(None, "where sidecars go, if not beside the pictures")
    quiet: bool = option(False, "no progress and notes, only results and errors", group="run")
    debug: bool = option(False, "show where an error comes from")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.image:
            raise ValueError(
                "which picture? Give path/to/picture.jpg or a folder, before flags or by --image"
            )
        if self.output and self.output.suffix not in (".csv", ".jsonl", ".html", ".parquet"):
            raise ValueError(
                f"--output must end in .csv, .jsonl, .html or .parquet, got {self.output}"
            )
        if self.resume and (self.overwrite or not self.output):
            raise ValueError("--resume goes on with an --output, and so not with --overwrite")
        if not self.sidecar and (self.sidecar_folder or self.prefix or self.suffix):
            raise ValueError("which sidecars? Give --sidecar txt, caption or xmp")


if __name__ == "__main__":  # before the slow imports
    cli.answer_at_once(Settings)

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import checkpoint
import integrity
from captioner import Caption, Captioner, about_unfamiliar
from cli import UserError
from inputs import Pictures
from outputs import Nowhere, Output, Terminal, captions_file
from pictures import Source, one_line
from sidecars import Sidecars

log = logging.getLogger(__name__)


def predict(settings: Settings, given: frozenset[str]) -> int:
    """Caption all pictures; the exit status says whether all could be read.

    Args:
        settings: of the command line.
        given: names of those that were given as flags; the others of the search are the model's.
    """
    pictures, sidecars = Pictures(settings.image, null=settings.null), None
    if settings.sidecar:
        sidecars = Sidecars(
            settings.sidecar,
            existing=settings.existing,
            prefix=settings.prefix,
            suffix=settings.suffix,
            folder=settings.sidecar_folder,
        )
        sidecars.check(pictures.look())
    asked = {name: getattr(settings, name) for name in given}
    ensemble = checkpoint.load_ensemble(settings.checkpoint, cli.device(settings.device))
    captioner = Captioner(ensemble, asked, n_best=settings.n_best, sentence=settings.sentence)
    found, total = pictures.counted()
    n_failed, n_described, unfamiliar = 0, 0, list[str]()
    with _told_at_the_end(sidecars), _output(settings, captioner, one=pictures.is_one) as output:
        if sidecars and not settings.output:
            found = sidecars.left(found)
        described: Iterable[tuple[Source, list[Caption] | UserError]] = captioner.describe_all(
            found, batch_size=settings.batch_size, is_done=output.is_done
        )
        if settings.output or sidecars or not sys.stdout.isatty():  # else they are the progress
            left = total and total - output.n_done
            described = cli.progress(described, about="pictures", unit="picture", total=left)
        for source, captions in described:
            try:
                if isinstance(captions, UserError):
                    raise captions
                n_described += 1
                if captions[0].is_unfamiliar:
                    unfamiliar.append(one_line(str(source.path)))
                output.write(source, captions)
                if sidecars:
                    sidecars.write(source, [caption.text for caption in captions])
            except UserError as error:
                n_failed += 1
                log.error(f"error: {error}", exc_info=error if settings.debug else None)
        if n_failed and not (n_described or output.n_done or (sidecars and sidecars.n_kept)):
            raise SystemExit(cli.FAILED)  # an output file that was there stays as it is
    if note := pictures.note():
        log.warning(note)
    if unfamiliar:
        log.warning(about_unfamiliar(unfamiliar, n_described))
    return cli.SOME_FAILED if n_failed else cli.DONE


@contextmanager
def _output(settings: Settings, captioner: Captioner, *, one: bool) -> Iterator[Output]:
    """Where the captions go besides sidecars."""
    if settings.output:
        made = {
            "version": cli.VERSION,
            "model": [integrity.fingerprint(path) for path in settings.checkpoint],
            **{name: getattr(settings, name) for name in ("n_best", "sentence", "csv_separator")},
            **asdict(captioner.search),
        }
        del made["banned_final_ids"]  # the model's
        with captions_file(
            settings.output,
            made,
            separator=settings.csv_separator,
            resume=settings.resume,
            overwrite=settings.overwrite,
        ) as file:
            yield file
    elif settings.sidecar:
        yield Nowhere()
    else:
        yield Terminal(one=one, n_best=settings.n_best)


@contextmanager
def _told_at_the_end(sidecars: Sidecars | None) -> Iterator[None]:
    """Say how many sidecars were written, also when the run is stopped."""
    try:
        yield
    finally:
        if sidecars:
            written, kept = sidecars.n_written, sidecars.n_kept
            log.info(f"{written:,} sidecars written, {kept:,} kept as they were")


def main(argv: list[str] | None = None) -> int:
    """Caption the pictures that the command line names; the exit status."""
    settings, given = cli.parse(Settings, argv)
    return cli.run(lambda: predict(settings, given), settings)


if __name__ == "__main__":
    raise SystemExit(main())
