"""A job of captioning: pictures through the captioner to where their captions go, and a tally."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cli
import explain
import parts
from captioner import Caption, Captioner
from cli import UserError
from inputs import Pictures
from outputs import Output, Terminal, captions_file
from pictures import Source, one_line
from sidecars import Sidecars

log = logging.getLogger(__name__)


@dataclass
class Job:
    """What captions the pictures, and what became of them so far.

    Attributes:
        captioner: the model at work.
        sidecars: files beside the pictures, if they are wanted.
        batch_size: pictures captioned at a time.
        debug: show where an error of a picture comes from.
        strip: where what each word of a caption saw is drawn, if it is wanted.
        n_described: pictures that have captions.
        n_failed: pictures that could not be read, or whose sidecar not be written.
        unfamiliar: names of pictures unlike those of the training.
    """

    captioner: Captioner
    sidecars: Sidecars | None
    batch_size: int
    debug: bool
    strip: Path | None = None
    n_described: int = 0
    n_failed: int = 0
    unfamiliar: list[str] = field(default_factory=list)

    def describe(self, sources: Iterable[Source], output: Output, total: int | None = None) -> None:
        """Caption pictures, of which there are ``total``, as far as is known."""
        described: Iterable[tuple[Source, list[Caption] | UserError]]
        described = self.captioner.describe_all(
            sources, batch_size=self.batch_size, is_done=output.is_done
        )
        if not isinstance(output, Terminal) or not sys.stdout.isatty():  # they are the progress
            described = cli.progress(described, about="captioning", unit="picture", total=total)
        for source, captions in described:
            try:
                if isinstance(captions, UserError):
                    raise captions
                if self.strip:
                    explain.write_strip(self.strip, self.captioner, source, captions[0])
                if self.sidecars:  # before the row: a picture that has one is not looked at again
                    self.sidecars.write(source, [caption.text for caption in captions])
            except UserError as error:
                self.n_failed += 1
                log.error(f"error: {error}", exc_info=error if self.debug else None)
                continue
            output.write(source, captions)
            self.n_described += 1
            if captions[0].is_unfamiliar:
                self.unfamiliar.append(one_line(str(source.path)))

    def describe_parts(self, pictures: Pictures, folder: Path, made: Mapping[str, Any]) -> None:
        """Caption the parts that are this process's, each into a file of the folder."""
        if self.strip:
            raise UserError("--explain goes with a new caption: give no folder as --output.")
        for part in parts.of_this_process(pictures, folder, made):
            failed_before = self.n_failed
            with captions_file(
                part.path,
                {**made, **part.identity},
                separator="comma",
                resume=True,
                overwrite=False,
            ) as output:
                self.describe(part.sources, output)
                n_failed = self.n_failed - failed_before
                output.facts = {"n_failed": n_failed, "is_last": part.is_last}

    def notes(self) -> Iterable[str]:
        """What to say at the end."""
        if self.sidecars:
            written, kept = self.sidecars.n_written, self.sidecars.n_kept
            yield f"{written:,} sidecar{'s' * (written != 1)} written, {kept:,} kept as they were"
        if self.n_failed > 3 and self.n_described:  # scattered, they are not counted by eye
            n = self.n_described + self.n_failed
            yield f"{self.n_failed:,} of {n:,} pictures could not be done: see the errors above"
        if self.unfamiliar:
            yield self._about_unfamiliar()

    def _about_unfamiliar(self) -> str:
        names, unlike = self.unfamiliar, "unlike what the model was trained on"
        if self.n_described == 1:
            return f"note: {names[0]} is {unlike}: doubt its caption"
        shown = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        which = f"{len(names):,} of {self.n_described:,} pictures are {unlike}"
        return f"note: {which}, as are 5 % of ordinary ones: doubt their captions: {shown}"
