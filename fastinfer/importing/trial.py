"""The rows an import is tried on: the sample, and rows made from what the fitted steps and trees know."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from fastinfer.errors import FastinferError, ImportRefusedError
from fastinfer.importing import rows
from fastinfer.importing.conversion import Imported
from fastinfer.importing.proof import Proof, plain
from fastinfer.importing.rows import MISSING, Special, Values

SEED = 20_240_601
FEW = 64  # values that scikit-learn is asked about one at a time


class Trial:
    """Proves an import; `worst` and `rows` say how well and on how much."""

    def __init__(self, imported: Imported, tolerance: float) -> None:
        self._imported = imported
        self._proof = Proof(imported.model, tolerance)
        self._rng = np.random.default_rng(SEED)
        self._stricter: list[str] = []

    @property
    def worst(self) -> dict[str, float]:
        return self._proof.worst

    @property
    def rows(self) -> int:
        return self._proof.rows

    @property
    def notes(self) -> tuple[str, ...]:
        ties = self._proof.ties
        notes = [f"refused, where scikit-learn answers: {what}" for what in self._stricter]
        if ties:
            notes.append(f"{ties} row{'s' * (ties > 1)} with two labels equally probable: either may be answered")
        return tuple(notes)

    def prove(self) -> None:
        """Compare on everything.

        Raises:
            ImportRefusedError: with the worst row.
        """
        frames, sample = self._imported.frames, self._imported.sample
        if sample is None:
            base = rows.invented(frames.columns, self._rng)
        else:
            self._compare(frames.values(sample), sample, "of the sample")
            picked = sample.iloc[np.sort(self._rng.permutation(len(sample))[: rows.BASE_ROWS])]
            base = frames.values(picked.reset_index(drop=True))
        base = self._answerable(base)
        self._compare(base, None, "made")
        self._special(base)
        turns = (self._imported.model.features, self._imported.model.thresholds)
        pulled = rows.pulled_back(self._imported.program, frames.columns, base, turns, self._rng)
        if pulled:
            self._compare(rows.stacked(pulled, list(base)), None, "made")
        self._at_the_matrix(base, turns)

    def _compare(self, values: Values, given: Any | None, origin: str) -> None:
        """Raw rows through program and model, and through scikit-learn."""
        frames = self._imported.frames
        given = frames.rows(values) if given is None else frames.shaped(given)
        try:
            matrix = self._imported.program.transform_dense(values)
        except FastinferError as error:
            raise ImportRefusedError(f"the feature program refuses a row {origin}: {error}") from error
        try:
            self._proof.check(self._imported.fitted, given, matrix, lambda row: plain(rows.row_of(values, row)))
        except FastinferError:
            raise
        except Exception as error:
            raise ImportRefusedError(f"scikit-learn itself fails on a row {origin}: {_first_line(error)}") from error

    def _answerable(self, base: Values) -> Values:
        """The base rows that scikit-learn answers; all of them nearly always."""
        if self._answers(base):
            return base
        count = len(next(iter(base.values())))
        each = [rows.row_of(base, i) for i in range(count)]
        kept = [row for row in each if self._answers(rows.stacked([row], list(base)))]
        if not kept:
            raise ImportRefusedError("no row that scikit-learn answers could be made; give a sample")
        return rows.stacked(kept, list(base))

    def _answers(self, values: Values) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._imported.fitted.predict(self._imported.frames.rows(values))
            except Exception:
                return False
        return True

    def _predicts(self, matrix: Any) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._imported.inner.predict(matrix)  # type: ignore[union-attr]
            except Exception:
                return False
        return True

    def _special(self, base: Values) -> None:
        """Missing, unseen and each known value: answered alike, or refused by both.

        Refused here alone is safe, and noted: a bag of models that each read some columns takes a missing value in a
        column that none reads.
        """
        tried = rows.specials(self._imported.frames.columns, base, self._rng)
        for group in ([s for s in tried if s.what == MISSING], [s for s in tried if s.what != MISSING]):
            taken = _split(group, lambda some: self._transforms(_values(some)))
            if taken and not self._answers(_values(taken)):
                answered = {id(special) for special in _split(taken, lambda some: self._answers(_values(some)))}
                culprit = next((special for special in taken if id(special) not in answered), None)
                if culprit is None:  # as pandas.NA beside unseen text, which it cannot sort
                    raise ImportRefusedError("scikit-learn refuses rows together that it takes one by one; make "
                                             "columns of text with pandas.NA columns of str")
                raise ImportRefusedError(
                    f"scikit-learn refuses {culprit.what} value in {culprit.column!r} and the feature program does not,"
                    f" on row {plain(culprit.row)}"
                )
            if taken:
                self._compare(_values(taken), None, "made")
            held = {id(special) for special in taken}
            self._note_stricter([special for special in group if id(special) not in held])

    def _note_stricter(self, refused: list[Special]) -> None:
        """Of what the program refuses, what scikit-learn answers; asked value by value only where they are few."""
        if len(refused) > FEW and not self._answers(_values(refused)):
            return
        answered = _split(refused, lambda some: self._answers(_values(some)))
        self._stricter += [f"{special.what} value in {special.column!r}" for special in answered]

    def _transforms(self, values: Values) -> bool:
        try:
            self._imported.program.transform_dense(values)
        except FastinferError:
            return False
        return True

    def _at_the_matrix(self, base: Values, turns: Any) -> None:
        """Matrix rows straight into the estimator, where one part of the pipeline is it."""
        imported = self._imported
        if imported.inner is None:
            return
        matrix = np.asarray(imported.program.transform_dense(base), np.float64)
        made = rows.matrix_rows(matrix, turns, imported.model.dtype, imported.allow != "finite", self._rng)
        if imported.model.foreign:
            far = rows.scattered(matrix, self._rng)
            made = np.concatenate([made, *([far] if self._predicts(far) else [])])
        given: Any = made
        if imported.program.spec.output.sparse:
            from scipy.sparse import csr_matrix

            given = csr_matrix(made)
        self._proof.check(imported.inner, given, made, lambda row: f"of features {plain(made[row])}")


def _values(specials: list[Special]) -> Values:
    return rows.stacked([special.row for special in specials], list(specials[0].row))


def _split(specials: list[Special], passes: Callable[[list[Special]], bool]) -> list[Special]:
    """Those that pass alone, found by halving: nearly all of them pass together."""
    if not specials or passes(specials):
        return specials
    if len(specials) == 1:
        return []
    middle = len(specials) // 2
    return _split(specials[:middle], passes) + _split(specials[middle:], passes)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
