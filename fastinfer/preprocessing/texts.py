"""Texts that take each branch of a step that cuts text, for golden rows and for the rows an import is tried on."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from fastinfer.preprocessing.spec import Step

MAX_TERMS: Final = 120  # of a vocabulary, tried one by one
# Case, accents, marks that combine, digits and spaces of many scripts, signs, and what Python splits and does not.
TEXTS: Final = (
    "Two Words", "ÄÖÜ straße ŒUVRE", "ΟΔΥΣΣΕΥΣ ΑΣ Σ ΣΑ'Σ", "İstanbul I ı ǅ", "ﬁne ① ½ ² Ⅻ ㎏",
    "e\u0301te\u0301 naïve A\u030a", "日本語 テキスト ﾊﾝｶｸ 한국어", "snake_case x1 2nd 007",
    "don't stop-it! a.b,c;d #tag @you 3,5%", "tab\tand\nline  two   spaces\r\n",
    "nbsp\u00a0em\u2003\u2028zero\u200bwidth\u00ad", "٣٤٥ १२ ๔", "nul\x00 sep\x1fend\x7f",
    "🙂 \U0001f469\u200d\U0001f469 \U0001d518\U0001d52b", "\u0345\u0307 \u0345marks a\u0323\u0308", "x" * 300, "   ",
    "a b c a b a", "ﷺ ﬀ ŉ ß ẞ",
)


def telling_texts(step: Step) -> list[str]:
    """Texts at which the step's result changes: known terms alone, together, repeated and in capitals; and `TEXTS`."""
    return made_of(step.parameters.get("vocabulary", ()), step.parameters.get("stop_words", ()))


def texts_for(vectorizer: Any) -> list[str]:
    """The same for a fitted vectorizer."""
    return made_of(sorted(map(str, getattr(vectorizer, "vocabulary_", ()))), sorted(vectorizer.get_stop_words() or ()))


def made_of(vocabulary: Sequence[str], stop_words: Sequence[str]) -> list[str]:
    terms = [*spread_out(stop_words, 3), *spread_out(vocabulary, MAX_TERMS)]
    together = [" ".join(terms[i : i + 9]) for i in range(0, len(terms), 9)]
    repeated = [f"{term} {other}, {term.upper()}! {term}" for term, other in pairwise(terms[-7:])]
    return [*together[:3], *repeated[:2], *TEXTS, *together[3:], *repeated[2:], *terms, " ".join(terms), "".join(terms)]


def spread_out(terms: Sequence[str], most: int) -> list[str]:
    """At most so many of them, evenly."""
    return list(terms) if len(terms) <= most else [terms[i * len(terms) // most] for i in range(most)]
