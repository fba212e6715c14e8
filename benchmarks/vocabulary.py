"""How much does our way to the vocabulary cost beside spaCy's bare tokenizer?

    python benchmarks/vocabulary.py flickr30k_images/results.csv
    python benchmarks/vocabulary.py results_fr.csv --language fr

Reads, tokenises and counts all captions of a file, in turn with the bare tokenizer on the same
strings.
"""

from pathlib import Path

import numpy as np
from bench import Row, arguments, in_turn, tell
from bench import main as run_benchmark

from captions import read_captions
from loader import Vocabulary


def ours(path: Path, language: str) -> Vocabulary:
    captions = read_captions(path).of_image.values()
    texts = [text for texts in captions for text in texts]
    return Vocabulary.build(texts, freq_threshold=5, language=language)


def main() -> None:
    parser = arguments(__doc__, "rounds")
    parser.add_argument("captions", type=Path)
    parser.add_argument("--language", default="en")
    args = parser.parse_args()

    import spacy

    captions = read_captions(args.captions)
    texts = [text for texts in captions.of_image.values() for text in texts]
    vocabulary = ours(args.captions, args.language)
    print(f"{len(texts):,} captions of {len(captions.of_image):,} images")
    print(f"{len(vocabulary):,} words that occur 5 times or more")

    # A new one each time, for they cache words; making it is not timed.
    bare = iter([spacy.blank(args.language).tokenizer for _ in range(args.rounds + 1)])
    times = in_turn(
        {
            "bare": lambda: list(map(next(bare), texts)),
            "ours": lambda: ours(args.captions, args.language),
        },
        args.rounds,
    )
    note = f"{np.median(times['ours']):.2f} s against {np.median(times['bare']):.2f} s"
    question = "captions read, split into words and counted, against spaCy's bare tokenizer"
    tell([Row(question, times["ours"] / times["bare"], "x", 1.5, at_most=True, note=note)])


if __name__ == "__main__":
    run_benchmark(main)
