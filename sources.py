"""Which captions files of a folder are meant: one, several that belong together, or sidecars.

Captions that a model wrote are never taken for people's unless their file is named.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from captions import SUFFIXES, read_captions, read_sidecar
from cli import UserError
from columns import SPLIT_NAMES, WORDS, Captions, image_keys, split_of_name
from files import below, is_file
from pairing import Pictures
from pictures import PICTURE_SUFFIXES
from tables import IMAGE_SUFFIX, UnknownFormat, listed, plain_names, text_lines

log = logging.getLogger(__name__)

# Where several files of a folder hold captions, the first of these is taken.
WELL_KNOWN = (
    *("results.csv", "results_20130124.token", "Flickr8k.token.txt", "captions.txt"),
    *("captions.csv", "metadata.jsonl", "metadata.csv"),
)
DEEPEST = 2  # folders below the data's in which captions files are looked for
SIDECARS = (".txt", ".caption", ".json")  # of a text that lies beside its picture
# What else lies in COCO's zip, and takes long to read.
OTHER_ANNOTATIONS = ("instances_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")


def choose_captions(
    folder: Path, files: Sequence[Path], pictures: Pictures, language: str, notes: list[str]
) -> list[Captions]:
    """Read the captions file of a folder, or those that belong together.

    Raises:
        UserError: there is none, or no way to choose between several.
    """
    sidecars, others = _candidates(folder, files)
    families: dict[str, list[Captions]] = {}
    predicted: list[str] = []
    broken: list[UserError] = []
    unknown: list[UserError] = []
    unread: dict[Path, UserError] = {}  # by their names about a split
    for path in [path for path in sidecars if path in others]:
        with suppress(UserError):
            if len(read_captions(path, language).of_image) > 1:  # captions.txt beside a plot
                del sidecars[path]
    for path in others:
        if path in sidecars:
            continue
        try:
            captions = read_captions(path, language)
        except UnknownFormat as error:
            if not split_of_name(path.stem):
                unknown.append(error)
            else:
                unread[path] = error
        except UserError as error:  # perhaps not meant as captions
            broken.append(error)
        else:
            if captions.is_predicted:
                predicted.append(str(path.relative_to(folder)))
            else:
                key = _family(path, folder, captions.of_image)
                families.setdefault(key, []).append(captions)
    if predicted:
        notes.append(f"{listed(predicted)} passed over: a model's captions")
    if sidecars and not any(_has_pictures(family, pictures) for family in families.values()):
        for family in families.values():  # img2dataset's parquet
            names = listed(str(captions.path.relative_to(folder)) for captions in family)
            notes.append(f"{names} passed over: none of its images is here")
        families = {}
    if families:
        for warning in broken:
            log.warning(f"warning: {warning}")
        n_texts = sum(path.suffix.lower() != ".json" for path in sidecars)
        if n_texts:
            notes.append(f"{n_texts:,} text(s) beside a picture passed over")
        chosen = _choose_family(folder, list(families.values()), pictures, notes)
        kin = _family(chosen[0].path, folder, ())
        for path, why in unread.items():
            if _family(path, folder, ()) == kin and not _is_list(path):
                log.warning(f"warning: {why}")
        return chosen
    if sidecars:
        return [_read_sidecars(folder, sidecars, language)]
    if predicted:
        raise UserError(
            f"{folder} holds no captions but a model's, in {listed(predicted)}: give people's, or "
            "name that file with --captions to use it all the same."
        )
    if broken:
        raise broken[0]
    sheets = [path for path in files if path.suffix.lower() in (".xlsx", ".xls", ".ods")]
    reason = "Expected: results.csv (Flickr30k), captions.txt or another format of docs/data.md."
    if sheets:
        reason = f"{sheets[0]} is a spreadsheet: save it as CSV."
    if unknown:
        reason = str(unknown[0])
    raise UserError(
        f"no captions file in {folder}. {reason} Put one there, name another folder with --data, "
        "or try --demo, which needs no data."
    )


def _candidates(folder: Path, files: Sequence[Path]) -> tuple[dict[Path, Path], list[Path]]:
    """The texts that lie beside a picture of the same name, and the files to look into.

    Where most pictures have no text beside them, the few may be files for all: both, then.
    """
    suffixes = {*SUFFIXES, *SIDECARS}
    texts = [path for path in files if path.suffix.lower() in suffixes]
    pictures = {}
    for path in files if texts else ():
        stem, suffix = os.path.splitext(path)  # noqa: PTH122 - Path takes ten times as long
        if suffix.lower() in PICTURE_SUFFIXES:
            pictures[stem] = path
    sidecars: dict[Path, Path] = {}
    others = []
    for path in texts:
        picture = pictures.get(os.fspath(path.with_suffix("")))
        if picture and path.suffix.lower() in SIDECARS:
            sidecars[path] = picture
        if (
            path.suffix.lower() in SUFFIXES
            and below(path, folder).count("/") <= DEEPEST
            and not path.name.startswith(OTHER_ANNOTATIONS)
        ):
            others.append(path)
    if 2 * len(set(sidecars.values())) >= len(pictures):
        others = [path for path in others if path not in sidecars]
    return sidecars, others


def _family(path: Path, folder: Path, names: Iterable[str]) -> str:
    """What files that belong together share: their names but for the split, shard or folder.

    ``train/metadata.jsonl`` and ``test/metadata.jsonl`` do, ``captions_train.json`` and
    ``captions_val.json``, ``train-00000-of-00002.parquet`` and its next, and files of the same name
    each of which lies with its own pictures.
    """

    def without_split(match: re.Match[str]) -> str:
        return "*" if match[0].lower() in {*SPLIT_NAMES, "all", "full"} else match[0]

    *folders, name = (WORDS.sub(without_split, part) for part in path.relative_to(folder).parts)
    if any(is_file(path.parent / name) for name in itertools.islice(names, 100)):
        folders = ["*"] * len(folders)
    return "/".join([*folders, re.sub(r"-\d+-of-\d+", "", name)])


def _is_list(path: Path) -> bool:
    """Whether a file seems to name images alone, by its first line."""
    try:
        first = next(iter(text_lines(path)), "")
    except UserError:
        return False
    columns = re.split(r"[,;\t|]", first)
    return bool(image_keys(plain_names(columns))) or bool(IMAGE_SUFFIX.search(columns[0].strip()))


def _choose_family(
    folder: Path, families: list[list[Captions]], pictures: Pictures, notes: list[str]
) -> list[Captions]:
    """The family that is meant: of the folder itself, with splits, of a well known name."""
    if len(families) > 1:
        families = [family for family in families if _has_pictures(family, pictures)] or families

    def rank(family: list[Captions]) -> tuple[int, bool, int]:
        path = family[0].path
        has_splits = any(captions.split_of for captions in family) or len(family) > 1
        known = [*WELL_KNOWN, path.name].index(path.name)
        return len(path.relative_to(folder).parts), not has_splits, known

    first, *others = sorted(families, key=rank)
    if others and rank(first) == rank(others[0]):
        names = listed(str(family[0].path.relative_to(folder)) for family in (first, *others))
        raise UserError(
            f"several captions files in {folder}: {names}. Choose one with --captions NAME."
        )
    if others:
        chosen = first[0].path.relative_to(folder)
        names = listed(str(c.path.relative_to(folder)) for family in others for c in family)
        notes.append(f"{names} passed over for {chosen}: choose with --captions")
    return first


def _has_pictures(family: list[Captions], pictures: Pictures) -> bool:
    for captions in family:
        try:
            found, _ = pictures.find(captions.of_image, captions.path.parent, None)
        except UserError:  # more than enough
            return True
        if found:
            return True
    return False


def _read_sidecars(folder: Path, sidecars: dict[Path, Path], language: str) -> Captions:
    """Read what lies beside the pictures."""
    captions = Captions(folder, language.split("_")[0])
    for path, picture in sidecars.items():
        read_sidecar(path, picture.relative_to(folder).as_posix(), captions)
    if not captions.of_image:
        reason = listed(f"{n:,} {what}" for what, n in captions.counts.items())
        raise UserError(f"no captions in {folder}: its texts beside pictures have {reason}.")
    captions.notes.append("captions are the texts beside the pictures")
    return captions
