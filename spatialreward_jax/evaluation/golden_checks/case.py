"""Comparing one file of reference arrays with ours: which arrays were used, compared, or met for the first time."""

import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

INPUT, COMPARED, FAILED = "input", "compared", "failed"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      file: name of the golden file.
      array: name of the array, or "" for the file as a whole.
      status: "input" (used), "compared", or "failed" (not comparable; `note` says why).
      max_error: largest absolute difference; None where there is none.
      tolerance: what it may be; None for inputs.
      ok: whether this row passes.
      note: reason of a failure, or a remark.
    """

    file: str
    array: str
    status: str
    max_error: float | None
    tolerance: float | None
    ok: bool
    note: str = ""


class Case:
    """The arrays of one file while it is being checked.

    Every array ends up in exactly one row: as an input that a check has read, compared with our result, or, if no
    check knows it, failed.

    Attributes:
      file: its name.
      rows: what has been compared so far.
    """

    def __init__(self, file: str, arrays: Mapping[str, Any], tolerance: Mapping[str, Any] | float):
        self.file, self.rows = file, []
        self._arrays = arrays
        self._tolerances = tolerance if isinstance(tolerance, Mapping) else {"*": tolerance}
        self._used: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Names of all arrays in the file."""
        return list(self._arrays)

    def numbered(self, stem: str) -> list[str]:
        """The names `<stem>0`, `<stem>1`, ... that are there, in the order of their numbers."""
        found = [n for n in self._arrays if re.fullmatch(re.escape(stem) + r"\d+", n)]
        return sorted(found, key=lambda name: int(name.removeprefix(stem)))

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def input(self, name: str) -> Any:
        """The stored input `name`, noted as used. Raises KeyError with a readable text if it is not there."""
        if name not in self._arrays:
            raise KeyError(f"the file lacks the input {name}")
        self._used.add(name)
        return self._arrays[name]

    def stored(self, name: str) -> Any:
        """A stored result that another comparison needs, without noting it as an input."""
        return self._arrays[name]

    def tolerance(self, name: str) -> Any:
        """Tolerance of an array: the first pattern but "*" that matches, else "*"."""
        patterns = [p for p in self._tolerances if p != "*" and fnmatch.fnmatchcase(name, p)]
        return self._tolerances[patterns[0] if patterns else "*"]

    def compare(self, name: str, ours: Any, mask: Any = None, tolerance: float | None = None) -> None:
        """Adds the row of one result.

        Floats may differ by tolerance * max(1, largest stored value); integers, booleans and strings not at all.

        Args:
          name: of the stored array.
          ours: our result.
          mask: bool, broadcast against it from the left: where the comparison counts. By default everywhere.
          tolerance: in place of the file's own for this array.
        """
        if name not in self._arrays:
            self.fail(name, "the file lacks this result")
            return
        theirs, ours = np.asarray(self._arrays[name]), np.asarray(ours)
        if theirs.shape != ours.shape:
            self.fail(name, f"shape {ours.shape}, want {theirs.shape}")
            return
        if mask is not None:
            theirs, ours = theirs[np.asarray(mask)], ours[np.asarray(mask)]
        if theirs.dtype.kind == "f":
            tolerance = self.tolerance(name) if tolerance is None else tolerance
            allowed = float(tolerance) * max(1.0, float(np.abs(theirs).max(initial=0.0)))
            error = float(np.abs(theirs.astype(np.float64) - ours.astype(np.float64)).max(initial=0.0))
        else:
            allowed, error = 0.0, _discrete_error(theirs, ours)
        self.add(name, error, allowed)

    def add(self, name: str, error: float, allowed: float, note: str = "") -> None:
        """Adds a row whose error was measured elsewhere; NaN fails."""
        self.rows.append(Row(self.file, name, COMPARED, error, allowed, bool(error <= allowed), note))

    def fail(self, name: str, why: str) -> None:
        """Adds a failed row."""
        self.rows.append(Row(self.file, name, FAILED, None, None, False, why))

    def finish(self) -> list[Row]:
        """All rows, with one for each input and a failed one for each array that no check has touched."""
        done = {row.array for row in self.rows}
        inputs = [Row(self.file, n, INPUT, None, None, True) for n in self._arrays if n in self._used - done]
        strangers = [n for n in self._arrays if n not in done | self._used]
        unknown = [Row(self.file, n, FAILED, None, None, False, "no check knows this array") for n in strangers]
        return inputs + self.rows + unknown


def _discrete_error(theirs, ours) -> float:
    """Largest difference of integers; for strings and booleans 0 or 1."""
    if theirs.dtype.kind in "iu" and ours.dtype.kind in "iu":
        return float(np.abs(theirs.astype(np.int64) - ours.astype(np.int64)).max(initial=0))
    return float((theirs != ours).any())
