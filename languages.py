"""What the vocabulary knows of languages, by spaCy's codes; others do without."""

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
