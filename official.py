"""Scores by coco-caption itself, in Java, where it is installed: `evaluate.py --coco`."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from collections.abc import Sequence

from yardsticks import Yardstick

log = logging.getLogger(__name__)


def official(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Yardstick | None:
    """What coco-caption gives these captions; nothing but a warning where it does not run."""
    if not shutil.which("java"):
        log.warning("warning: --coco needs Java: install it (Debian: default-jre-headless).")
        return None
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.rouge.rouge import Rouge
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError as error:
        log.warning(f"warning: --coco needs `pip install pycocoevalcap` ({error}).")
        return None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
            tokenizer = PTBTokenizer()
            theirs = tokenizer.tokenize(
                {
                    i: [{"caption": " ".join(t.split())} for t in image]
                    for i, image in enumerate(references)
                }
            )
            ours = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
            scores = dict(
                zip(
                    ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"),
                    Bleu(4).compute_score(theirs, ours)[0],
                    strict=True,
                )
            )
            for name, scorer in (("CIDEr", Cider()), ("ROUGE-L", Rouge()), ("METEOR", Meteor())):
                scores[name] = scorer.compute_score(theirs, ours)[0]
    except Exception as error:  # a Java process can fail in any way
        log.warning(f"warning: --coco failed, its scores are left out: {error!r}")
        return None
    return Yardstick(
        "official",
        "The same captions scored by coco-caption itself, with METEOR, which is not computed here.",
        {name: 100 * float(value) for name, value in scores.items()},
    )
