"""Where a run starts from: its own settings before, or those of a model."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import cli
from cli import UserError, option
from run import inherited_settings, resumed_settings


@dataclass(frozen=True)
class Training(cli.BeamSettings):
    """Try to resume."""

    data: Path = option(Path("photos"), "folder", resume=True)
    init: Path | None = option(None, "start from this model")
    hidden_size: int = option(512, "size", at_least=1, from_init=True)
    language: str = option("en", "language", from_init=True)
    crop: float = option(0.6, "smallest part", resume="finetune")
    scst_samples: int = option(5, "samples", at_least=2, resume="scst")
    epochs: int = option(8, "times through", at_least=0, resume=True)
    scst_epochs: int = option(0, "times through", at_least=0, resume=True)
    resume: bool = option(False, "resume", resume=True)

    def __post_init__(self):
        super().__post_init__()
        if not self.epochs + self.scst_epochs:
            raise ValueError("--epochs and --scst-epochs are both 0")


def resumed(argv, begun=("xe",), **before):
    settings, given = cli.parse(Training, ["--resume", *argv.split()])
    return resumed_settings(settings, given, cli.plain(replace(Training(), **before)), begun)


def test_a_resumed_run_has_its_own_settings_but_for_flags_that_may_change():
    before = {"hidden_size": 32, "beam_size": 7, "data": Path("theirs"), "epochs": 2}
    own = replace(Training(), **before, resume=True)
    assert resumed("", **before) == own
    assert resumed("--hidden-size 32", **before) == own
    changed = resumed("--beam-size 1 --data ours --epochs 3", **before)
    assert changed == replace(own, beam_size=1, data=Path("ours"), epochs=3)


@pytest.mark.parametrize(
    ("argv", "before", "was"),
    [
        ("--hidden-size 9", {"hidden_size": 32}, "--hidden-size is 32 in the run to resume, not 9"),
        ("--hidden-size 512", {"hidden_size": 32}, "--hidden-size is 32 "),  # though the default
        ("--init best.pt", {}, "--init is left out in the run to resume, not best.pt"),
        ("--language fr", {}, "--language is en in the run to resume, not fr"),
    ],
)  # fmt: skip
def test_what_a_resumed_run_must_keep_is_refused(argv, before, was):
    way_out = ": leave the flag out, or start afresh without --resume."
    with pytest.raises(UserError, match=was) as caught:
        resumed(argv, **before)
    assert str(caught.value).endswith(way_out)


def test_a_stage_may_change_until_it_has_begun():
    assert resumed("--crop 0.9 --scst-samples 3", ("xe",)).crop == 0.9
    assert resumed("--scst-samples 3", ("xe", "finetune")).scst_samples == 3
    assert resumed("--crop 0.6", ("xe", "finetune")).crop == 0.6
    with pytest.raises(UserError, match="--crop comes too late, finetune has begun"):
        resumed("--crop 0.9", ("xe", "finetune"))
    with pytest.raises(UserError, match="--scst-samples comes too late, scst has"):
        resumed("--scst-samples 3", ("xe", "finetune", "scst"))


def test_resumed_settings_that_do_not_go_together_are_a_users_error():
    with pytest.raises(UserError, match="--epochs and --scst-epochs are both 0"):
        resumed("--scst-epochs 0", epochs=0, scst_epochs=2)


def test_init_brings_its_settings():
    settings, given = cli.parse(Training, ["--init=best.pt", "--epochs=3", "--language=fr"])
    theirs = cli.plain(Training(hidden_size=32, language="fr", epochs=9, beam_size=9))
    found = inherited_settings(settings, given, theirs, Path("best.pt"))
    assert found == replace(settings, hidden_size=32)
    with pytest.raises(UserError) as caught:
        inherited_settings(settings, given, {**theirs, "language": "sv"}, Path("best.pt"))
    assert str(caught.value) == (
        "--language is sv in best.pt, not fr: leave the flag out, or start without --init."
    )
