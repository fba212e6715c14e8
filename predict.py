"""Caption pictures: `python predict.py photo.jpg`.

Takes pictures and folders, writes captions to stdout or a file, in order and as they come. Needs
a checkpoint and nothing else: no data set, no spaCy, no download.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import cli
from cli import option


@dataclass(frozen=True)
class Settings(cli.SamplingSettings):
    """Caption pictures with a trained model."""

    EXAMPLES: ClassVar = (
        "python predict.py photo.jpg --n-best 5",
        "python predict.py --image holiday/ --output captions.csv",
    )

    image: tuple[Path, ...] = option(
        (),
        r"pictures, or folders of them (also nested); a tab in a name is printed as \t",
        group="pictures",
        positional=True,
    )
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
    output: Path | None = option(None, "write to this .csv or .jsonl file, not to the terminal")
    overwrite: bool = option(False, "replace the output file if it exists")
    quiet: bool = option(False, "no progress and notes, only results and errors", group="run")
    debug: bool = option(False, "show where an error comes from")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.image:
            raise ValueError(
                "which picture? Give path/to/picture.jpg or a folder, before flags or by --image"
            )
        if self.output and self.output.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"--output must end in .csv or .jsonl, got {self.output}")


if __name__ == "__main__":  # before the slow imports
    cli.answer_at_once(Settings)

import csv
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice

import torch
from torch import Tensor

import checkpoint
from checkpoint import Checkpoint
from cli import UserError
from files import whole_file
from inputs import find_pictures
from pictures import one_line, read_pictures
from search import Hypothesis, caption

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caption:
    """One caption of one picture; the names are the columns of the output files."""

    image: str
    rank: int  # 1 is the best
    caption: str
    log_prob: float  # nats


Write = Callable[[Caption], None]


def predict(settings: Settings, given: frozenset[str]) -> int:
    """Caption all pictures; the exit status says whether all could be read.

    Args:
        settings: of the command line.
        given: names of those that were given as flags; the others of the search are the model's.
    """
    if settings.output and settings.output.exists() and not settings.overwrite:
        raise UserError(f"{settings.output} exists: give --overwrite to replace it.")
    paths = find_pictures(settings.image)
    ensemble = checkpoint.load_ensemble(settings.checkpoint, cli.device(settings.device))
    vocabulary = ensemble[0].vocabulary
    one = len(settings.image) == 1 and not settings.image[0].is_dir()
    n_failed = 0
    with _writer(settings, one=one) as write:
        for path, found in _caption_files(settings, given, ensemble, paths):
            if isinstance(found, UserError):
                n_failed += 1
                log.error(f"error: {found}", exc_info=found if settings.debug else None)
                continue
            for rank, hypothesis in enumerate(found[: settings.n_best], start=1):
                text = vocabulary.decode(hypothesis.tokens)
                text = f"{text[:1].upper()}{text[1:]}." if settings.sentence else text
                write(Caption(str(path), rank, text, hypothesis.log_prob))
        if n_failed == len(paths):
            raise SystemExit(cli.FAILED)  # an output file that was there stays as it is
    return cli.SOME_FAILED if n_failed else cli.DONE


def _caption_files(
    settings: Settings, given: frozenset[str], ensemble: list[Checkpoint], paths: list[Path]
) -> Iterator[tuple[Path, list[Hypothesis] | UserError]]:
    """Each path with the hypotheses for it, best first, or with the reason why there are none."""
    torch.manual_seed(settings.seed)
    search = ensemble[0].search({name: getattr(settings, name) for name in given})
    search = replace(search, beam_size=max(search.beam_size, settings.n_best))
    models = [trained.model for trained in ensemble]
    encoders = [model.make_encoder() for model in models]
    pictures: Iterable[tuple[Path, Tensor | UserError]]
    pictures = read_pictures(paths, ensemble[0].image_size, ahead=2 * settings.batch_size)
    if settings.output or not sys.stdout.isatty():  # else the captions are the progress
        pictures = cli.progress(pictures, about="pictures", unit="picture", total=len(paths))
    pictures = iter(pictures)
    batch_size = min(settings.batch_size, len(paths))  # islice takes no number above 2**63
    while batch := list(islice(pictures, batch_size)):
        readable = [picture for _, picture in batch if isinstance(picture, Tensor)]
        found: Iterator[list[Hypothesis]] = iter(())
        if readable:
            pixels = torch.stack(readable).to(models[0].device)  # (N, 3, S, S)
            with torch.inference_mode():
                features = [encode(pixels) for encode in encoders]  # of each model, (N, F)
            found = iter(caption(models, features, search, batch_size=settings.batch_size))
        for path, picture in batch:
            yield path, next(found) if isinstance(picture, Tensor) else picture


@contextmanager
def _writer(settings: Settings, *, one: bool) -> Iterator[Write]:
    """A function that writes a caption where the settings want it."""
    if settings.output is None:
        columns = ["log_prob"] if settings.n_best > 1 else []
        columns = [*([] if one else ["image"]), *columns, "caption"]
        yield partial(_print_row, columns)
        return
    # A name that is no UTF-8 is escaped, so that the file as a whole can still be read.
    with (
        whole_file(settings.output) as part,
        part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        if settings.output.suffix == ".jsonl":
            yield lambda row: print(json.dumps(vars(row), ensure_ascii=False), file=file)
        else:
            table = csv.DictWriter(file, [column.name for column in fields(Caption)])
            table.writeheader()
            yield lambda row: table.writerow(vars(row))
    log.info(f"written to {settings.output}")


def _print_row(columns: list[str], row: Caption) -> None:
    values = {**vars(row), "image": one_line(row.image), "log_prob": f"{row.log_prob:.2f}"}
    print("\t".join(values[column] for column in columns), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Caption the pictures that the command line names; the exit status."""
    settings, given = cli.parse(Settings, argv)
    return cli.run(lambda: predict(settings, given), settings)


if __name__ == "__main__":
    raise SystemExit(main())
