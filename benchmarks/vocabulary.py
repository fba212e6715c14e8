"""How much does our way to the vocabulary cost beside spaCy's bare tokenizer?

    python benchmarks/vocabulary.py flickr30k_images/results.csv
    python benchmarks/vocabulary.py results_fr.csv --language fr

Reads, tokenises and counts all captions of a file, in turn with the bare tokenizer on the same
strings, and compares the medians.
"""

import argparse
import statistics
from pathlib import Path

from bench import seconds

from loader import Vocabulary, read_captions

TARGET = 1.5


def ours(path: Path, language: str) -> Vocabulary:
    captions = read_captions(path).of_image.values()
    return Vocabulary.build((text for texts in captions for text in texts), language=language)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("captions", type=Path)
    parser.add_argument("--language", default="en")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()

    import spacy

    captions = read_captions(args.captions)
    texts = [text for texts in captions.of_image.values() for text in texts]
    vocabulary = ours(args.captions, args.language)  # a warm-up of both: imports, spaCy's tables
    n_repaired = captions.n_repaired
    print(f"{len(texts):,} captions of {len(captions.of_image):,} images, {n_repaired} repaired")
    print(f"{len(vocabulary):,} words met 5 times or more")

    peer, own = [], []
    for _ in range(args.runs):
        tokenizer = spacy.blank(args.language).tokenizer
        peer.append(seconds(lambda: [tokenizer(text) for text in texts]))  # noqa: B023
        own.append(seconds(lambda: ours(args.captions, args.language)))
    ratio = statistics.median(own) / statistics.median(peer)
    print(f"bare tokenizer      {statistics.median(peer):.2f} s")
    print(f"read, split, count  {statistics.median(own):.2f} s")
    verdict = "reached" if ratio <= TARGET else "falls short"
    print(f"ratio               {ratio:.2f} (target at most {TARGET}: {verdict})")


if __name__ == "__main__":
    main()
