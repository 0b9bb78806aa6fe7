"""Token patterns that the compiled core can follow exactly: a small part of Python's regular expressions.

A pattern is one character of a class, then a number of characters of a class (the same one, or another), with or
without a word boundary (`\\b`) before and behind: `\\b\\w\\w+\\b`, `\\w+`, `\\S+`, `[a-z]{3,}`, `\\b[^\\W\\d]\\w+\\b`,
`#\\w+`. One group may enclose it. Everything else, and every flag but `(?u)`, is refused.
"""

import re
from dataclasses import dataclass
from typing import Final

MOST: Final = 255  # characters that a counted repetition may ask for
LETTERS: Final = "wWdDsS"
CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


class PatternError(ValueError):
    """A pattern that is not followed here; the message says why."""


@dataclass(frozen=True, slots=True)
class Characters:
    """A class of characters: those of any of the letters (`\\w` is "w") or ranges, or where negated all others."""

    letters: str
    ranges: tuple[tuple[int, int], ...]
    negated: bool = False


WORD: Final = Characters("w", ())


@dataclass(frozen=True, slots=True)
class TokenPattern:
    """One character of ``first``, then ``least`` to ``most`` (None: no bound) of ``rest``, as many as there are.

    Attributes:
        opens, closes: a word boundary stands before, behind.
    """

    opens: bool
    first: Characters
    rest: Characters
    least: int
    most: int | None
    closes: bool

    @property
    def runs(self) -> bool:
        """Whether tokens are whole runs of one class, at least so long: any boundary stands at their ends anyway."""
        plain = self.rest == WORD or not (self.opens or self.closes)
        return self.first == self.rest and self.most is None and plain


def parse_pattern(pattern: str) -> TokenPattern:
    """A token pattern.

    Raises:
        PatternError: it is not of this form.
    """
    reader = _Reader(pattern)
    if pattern.startswith("(?u)"):
        reader.place = 4
    try:
        items, boundaries = reader.sequence(0)
        if not reader.done:
            raise reader.unknown()
        re.compile(pattern)
    except (IndexError, re.error):
        raise PatternError("not a regular expression") from None
    return _assembled(items, boundaries)


def _assembled(items: list[tuple[Characters, int, int | None]], boundaries: tuple[bool, bool]) -> TokenPattern:
    opens, closes = boundaries
    if not items:
        raise PatternError("it matches no character")
    first, least, most = items[0]
    rest = items[1:] if (least, most) == (1, 1) and len(items) > 1 else items
    if any(characters != rest[0][0] for characters, _, _ in rest):
        raise PatternError("more than two classes of characters follow one another")
    if rest is items:
        least, most = _sum(items)
        if least < 1:
            raise PatternError("it matches the empty string")
        least, most = least - 1, None if most is None else most - 1
        rest = [(first, 0, 0)]
    else:
        least, most = _sum(rest)
    return TokenPattern(opens, first, rest[0][0], least, most, closes)


def _sum(items: list[tuple[Characters, int, int | None]]) -> tuple[int, int | None]:
    least = sum(low for _, low, _ in items)
    highs = [high for _, _, high in items]
    most = None if None in highs else sum(high for high in highs if high is not None)
    if least > MOST or (most or 0) > MOST:
        raise PatternError(f"a repetition counts past {MOST}")
    return least, most


class _Reader:
    """Reads a pattern from the left."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.place = 0

    @property
    def done(self) -> bool:
        return self.place == len(self.pattern)

    def starts(self, text: str) -> bool:
        """Whether the text comes next; it is taken then."""
        found = self.pattern.startswith(text, self.place)
        self.place += len(text) if found else 0
        return found

    def unknown(self) -> PatternError:
        return PatternError(f"{self.pattern[self.place:]!r} is more than a class of characters, how many of them, "
                            "and word boundaries")

    def sequence(self, depth: int) -> tuple[list[tuple[Characters, int, int | None]], tuple[bool, bool]]:
        """Items, and whether boundaries open and close them."""
        opens = self.starts(r"\b")
        if self.starts("(?:") or (not self.pattern.startswith("(?", self.place) and self.starts("(")):
            if depth:
                raise self.unknown()
            items, (inner_opens, inner_closes) = self.sequence(depth + 1)
            if not self.starts(")"):
                raise self.unknown()
            return items, (opens or inner_opens, self.starts(r"\b") or inner_closes)
        items = []
        while not self.done and not self.pattern.startswith((r"\b", ")"), self.place):
            characters = self.characters()
            items.append((characters, *self.repetition()))
        return items, (opens, self.starts(r"\b"))

    def repetition(self) -> tuple[int, int | None]:
        least, most = self.count()
        if not self.done and self.pattern[self.place] in "?+*{" and (least, most) != (1, 1):
            raise self.unknown()  # lazy or possessive
        return least, most

    def count(self) -> tuple[int, int | None]:
        for sign, bounds in (("+", (1, None)), ("*", (0, None)), ("?", (0, 1))):
            if self.starts(sign):
                return bounds
        found = re.compile(r"\{(\d+)(,?)(\d*)\}").match(self.pattern, self.place)
        if found is None:
            if self.starts("{"):
                raise self.unknown()
            return 1, 1
        self.place = found.end()
        least = int(found[1])
        return least, least if not found[2] else int(found[3]) if found[3] else None

    def characters(self) -> Characters:
        if self.starts("["):
            return self.bracketed()
        letter = self.pattern[self.place]
        if letter == "\\":
            return self.escaped()
        if letter in ".^$*+?{}[]|()":
            raise self.unknown()
        self.place += 1
        return Characters("", ((ord(letter), ord(letter)),))

    def escaped(self) -> Characters:
        """After a backslash: a class by its letter, or a character."""
        letter = self.pattern[self.place + 1]
        if letter in LETTERS:
            self.place += 2
            return Characters(letter, ())
        code = CONTROLS.get(letter, letter)
        if letter.isalnum() and letter not in CONTROLS:
            raise self.unknown()
        self.place += 2
        return Characters("", ((ord(code), ord(code)),))

    def bracketed(self) -> Characters:
        """A class in brackets, the opening one taken."""
        negated = self.starts("^")
        letters, ranges, first = "", [], True
        while first or not self.starts("]"):
            first = False
            if self.done or self.pattern[self.place] == "[" or self.pattern[self.place : self.place + 2] in (
                "--", "&&", "~~", "||"
            ):
                raise self.unknown()
            one = self.member()
            letters += one.letters
            following = self.pattern[self.place : self.place + 2]
            if not one.letters and following[:1] == "-" and following not in ("-]", "-"):
                self.place += 1
                other = self.member()
                if other.letters:
                    raise self.unknown()
                ranges.append((one.ranges[0][0], other.ranges[0][0]))
            else:
                ranges.extend(one.ranges)
        return Characters("".join(sorted(set(letters))), tuple(sorted(set(ranges))), negated)

    def member(self) -> Characters:
        if self.pattern[self.place] == "\\":
            return self.escaped()
        code = ord(self.pattern[self.place])
        self.place += 1
        return Characters("", ((code, code),))
