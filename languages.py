"""What the vocabulary knows of languages: spaCy's tokenizer, and lists of words by its codes."""

from __future__ import annotations

from cli import UserError

CLITICS = {"'", "'s", "'re", "'m", "'ll", "'d", "'ve", "n't"}  # written without a blank before

UNSPACED = {"zh", "ja", "th"}  # written without blanks between words

# A picture with one of these in its captions is another one in the mirror.
SIDES = {
    "en": "left right",
    "fr": "gauche gauches droite droites droit droits",
    "de": "links rechts linke linken linker linkes linkem rechte rechten rechter rechtes rechtem",
    "es": "izquierda izquierdas izquierdo izquierdos derecha derechas derecho derechos",
}
# Articles, prepositions and the like: a caption that ends on one was cut short.
NEVER_FINAL = {
    "en": "a an the of in on at with from to for by into onto and or as near beside between over "
    "under through behind against toward towards across along among above below his their its",
    "fr": "le la les l' un une des du de d' à au aux en dans sur sous avec pour par et ou vers "
    "chez entre contre sans son sa ses leur leurs",
    "de": "der die das den dem des ein eine einen einem einer eines in im am auf an mit von vom zu "
    "zum zur bei für und oder über unter neben vor hinter zwischen durch sein seine ihr ihre",
    "es": "el la los las un una unos unas de del en a al con por para y o sobre entre hacia su sus",
}


class Tokenizer:
    """spaCy's tokenizer with a cache.

    spaCy splits at blanks first and then treats each piece alone, so the tokens of a piece can be
    cached: three times as fast on captions, and the same tokens.
    """

    def __init__(self, language: str) -> None:
        """Raises: UserError: no such language, or a package it needs is not installed."""
        import spacy

        try:
            is_pipeline = spacy.util.is_package(language)
            pipeline = spacy.load(language) if is_pipeline else spacy.blank(language)
        except (ImportError, OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(
                f"spaCy has no language {language!r}: give --language a code as en, fr or de, or "
                f"the name of an installed pipeline. ({reason})"
            ) from error
        self.language = pipeline.lang
        self._spacy = pipeline.tokenizer
        self._cache: dict[str, list[str]] = {}

    def __call__(self, caption: str) -> list[str]:
        """The words of a caption, in lower case."""
        words: list[str] = []
        for piece in caption.split():
            cached = self._cache.get(piece)
            if cached is None:
                cached = self._cache[piece] = self._words(piece)
            words += cached
        return words

    def _words(self, piece: str) -> list[str]:
        """The words of a piece of text without blanks."""
        tokens = [token.lower_ for token in self._spacy(piece.replace("\u2019", "'"))]
        words: list[str] = []
        for before, token, after in zip(["", *tokens[:-1]], tokens, [*tokens[1:], ""], strict=True):
            if self.language not in UNSPACED and before.isalpha() and token.isalpha():
                words[-1] += token  # "can" "not", "gon" "na": one word to people
            elif any(char.isalnum() for char in token):
                words.append(token)
            elif token == "-" and before[-1:].isalnum() and after[:1].isalnum():
                words.append(token)  # "t-shirt"
            elif token == "'" and before.endswith("s") and tokens[0] != "'":
                words.append(token)  # "the dogs' ball"
        return words
