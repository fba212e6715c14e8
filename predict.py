"""Caption pictures: `python predict.py photo.jpg`.

Takes pictures and folders, writes captions to stdout or a file, in order and as they come. Needs
a checkpoint and nothing else: no data set, no spaCy, no download.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

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
        "captions for each picture, best first (see --neighbour-weight); widens the beam",
        at_least=1,
        below=100_000,
        group="captions",
    )
    sentence: bool = option(False, "write captions with a capital and a full stop")
    output: Path | None = option(
        None, "write to this .csv, .jsonl, .html or .parquet file, or in parts to this folder"
    )
    csv_separator: str = option(
        "comma",
        "of .csv; semicolon: for spreadsheets with decimal commas",
        choices=("comma", "semicolon", "tab"),
    )
    merge: Path | None = option(None, "join the parts in this folder into --output")
    resume: bool = option(False, "go on with --output, if it was begun before")
    explain: Path | None = option(
        None, "draw what each word of a single picture's caption saw into this .png, .jpg or .webp"
    )
    overwrite: bool = option(False, "replace the output file, or that of --explain, if it exists")
    sidecar: str = option(
        "",
        "write a file of this kind beside each picture: txt, caption, xmp",
        metavar="KIND",
        group="sidecars",
    )
    existing: str = option(
        "keep",
        "what becomes of a caption in it",
        choices=("keep", "overwrite", "append", "prepend"),
    )
    prefix: str = option("", "text before each caption of a sidecar", metavar="TEXT")
    suffix: str = option("", "text after it", metavar="TEXT")
    sidecar_folder: Path | None = option(None, "where sidecars go, if not beside the pictures")
    quiet: bool = option(False, "no progress and notes, only results and errors", group="run")
    debug: bool = option(False, "show where an error comes from")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merge and not (self.output and self.output.suffix):
            raise ValueError("--merge needs an --output: a .csv, .jsonl, .html or .parquet file")
        if not self.image and not self.merge:
            raise ValueError(
                "which picture? Give path/to/picture.jpg or a folder, before flags or by --image"
            )
        if self.output and self.output.suffix not in ("", ".csv", ".jsonl", ".html", ".parquet"):
            raise ValueError(
                f"--output must end in .csv, .jsonl, .html or .parquet, or be a folder, got "
                f"{self.output}"
            )
        if self.merge and self.image:
            raise ValueError("--merge joins captions that are there: give it no pictures")
        if self.overwrite and self.output and not self.output.suffix:
            raise ValueError(f"--overwrite replaces a file, not {self.output}: remove that folder")
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a file that --overwrite would replace")
        if self.explain and (self.merge or self.resume or self.sidecar):
            raise ValueError("--explain goes with a new caption: not --merge, --resume, --sidecar")
        if not self.output and (self.resume or (self.overwrite and not self.explain)):
            raise ValueError(
                "--resume and --overwrite are of --output; for sidecars see --existing"
            )
        if self.csv_separator != "comma" and not (self.output and self.output.suffix == ".csv"):
            raise ValueError("--csv-separator is for --output captions.csv")
        changed = self.sidecar_folder or self.prefix or self.suffix or self.existing != "keep"
        if changed and not self.sidecar:
            raise ValueError("which sidecars? Give --sidecar txt, caption or xmp")


if __name__ == "__main__":  # before the slow imports
    cli.answer_at_once(Settings)

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import checkpoint
import distributed
import explain
import integrity
import parts
from captioner import Captioner
from inputs import Pictures, refuse_as_models
from job import Job
from outputs import FLAGS, Nowhere, Output, Terminal, captions_file
from sidecars import Sidecars

log = logging.getLogger(__name__)


def predict(settings: Settings, given: frozenset[str]) -> int:
    """Caption all pictures; the exit status says whether all could be read.

    Args:
        settings: of the command line.
        given: names of those that were given as flags; the others of the search are the model's.
    """
    if settings.merge and settings.output:
        n_failed = parts.merge(settings.merge, settings.output, settings.csv_separator, given)
        return cli.SOME_FAILED if n_failed else cli.DONE
    parts.require_folder(settings.output)
    refuse_as_models(settings.checkpoint)
    pictures, sidecars = Pictures(settings.image, null=settings.null), None
    if settings.explain:
        explain.check(settings.explain, pictures.single, overwrite=settings.overwrite)
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
    device = distributed.own_device(cli.device(settings.device))
    ensemble = checkpoint.load_ensemble(settings.checkpoint, device)
    captioner = Captioner(ensemble, asked, n_best=settings.n_best, sentence=settings.sentence)
    job = Job(captioner, sidecars, settings.batch_size, settings.debug, settings.explain)
    try:
        if settings.output and not settings.output.suffix:
            job.describe_parts(pictures, settings.output, _made(settings, captioner))
        else:
            _describe_at_once(settings, job, pictures)
    finally:  # also of what was done before a stop
        rank, n_processes = distributed.place()
        if rank == 0 and (note := pictures.note()):
            log.log(logging.ERROR if pictures.needs_heic else logging.WARNING, note)
        for note in job.notes():
            log.warning(note)
    has_failed = job.n_failed > 0 or pictures.needs_heic
    # With several processes torchrun would end all of them for a broken picture.
    return cli.SOME_FAILED if has_failed and n_processes == 1 else cli.DONE


def _describe_at_once(settings: Settings, job: Job, pictures: Pictures) -> None:
    """Caption the pictures to the terminal, to a file, or to sidecars alone."""
    sources, total = pictures.counted()
    with _output(settings, job.captioner, one=pictures.single is not None) as output:
        if job.sidecars and not settings.output:
            sources = job.sidecars.left(sources)
        job.describe(sources, output, total and total - output.n_done)
        n_there = output.n_done + (job.sidecars.n_kept if job.sidecars else 0)
        if job.n_failed and not job.n_described and not n_there:
            raise SystemExit(cli.FAILED)  # an output file that was there stays as it is


@contextmanager
def _output(settings: Settings, captioner: Captioner, *, one: bool) -> Iterator[Output]:
    """Where the captions go besides sidecars."""
    if settings.output:
        with captions_file(
            settings.output,
            _made(settings, captioner),
            separator=settings.csv_separator,
            resume=settings.resume,
            overwrite=settings.overwrite,
        ) as file:
            yield file
    else:
        yield Nowhere() if settings.sidecar else Terminal(one=one, n_best=settings.n_best)


def _made(settings: Settings, captioner: Captioner) -> dict[str, Any]:
    """What is written depends on this: a file made with something else is not resumed."""
    made = {
        "version": cli.VERSION,
        "model": [integrity.fingerprint(path) for path in settings.checkpoint],
        **{name: cli.plain(settings)[name] for name in FLAGS},
        "temperature": captioner.search.temperature,  # before what depends on it
        **asdict(captioner.search),
        # Each batch is sampled with random numbers of its own.
        "batch_size": settings.batch_size if captioner.search.temperature else None,
    }
    del made["banned_final_ids"]  # the model's
    return made


def main(argv: list[str] | None = None) -> int:
    """Caption the pictures that the command line names; the exit status."""
    settings, given = cli.parse(Settings, argv)
    return cli.run(lambda: predict(settings, given), settings)


if __name__ == "__main__":
    raise SystemExit(main())
