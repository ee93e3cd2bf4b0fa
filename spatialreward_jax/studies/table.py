"""Tables of a study: means over seeds with 95% intervals, and what each arm differs from the first by, seed by seed."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.stats

from spatialreward_jax.studies.arms import STUDIES
from spatialreward_jax.studies.cells import Cell, read_cell, typed


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): Student's 95% interval of the mean of independent values; NaN bounds below two values."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def study_table(root: pathlib.Path, study: str, seeds: Sequence[int]) -> str:
    """Markdown. A cell that was not run shows the command that runs it, and never a number. Raises InputError."""
    arms = STUDIES[study].arms
    cells = {arm: [read_cell(root, study, arm, seed) for seed in seeds] for arm in arms}
    done = {arm: [cell for cell in row if cell] for arm, row in cells.items()}
    columns = list(dict.fromkeys(name for arm in arms.values() for name in arm.values))
    lines = [f"## {study}", "", STUDIES[study].title, ""]
    lines += [f"| arm | seeds | {' | '.join(columns)} | minutes |", "|---" * (len(columns) + 3) + "|"]
    for arm, row in done.items():
        numbers = [_shown(_column(row, column)) for column in columns]
        numbers.append(_shown([sum(cell.seconds) / 60 for cell in row]))
        lines.append(f"| {arm} | {_seeds(row)} | {' | '.join(numbers if row else ['not run'] * len(numbers))} |")
    first, *others = arms
    differences = [_difference(done[first], done[arm], columns) for arm in others]
    if any(differences):
        lines += ["", f"Difference from `{first}`, paired by seed:", ""]
        lines += [f"| arm | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
        lines += [f"| {arm} | {row} |" for arm, row in zip(others, differences) if row]
    missing = [
        typed(["study", f"--study={study}", f"--arm={arm}", f"--seeds={seed}", f"--workdir={root}"])
        for arm, row in cells.items()
        for seed, cell in zip(seeds, row)
        if cell is None
    ]
    if missing:
        lines += ["", "Not run:", "", *(f"    {command}" for command in missing)]
    return "\n".join(lines) + "\n"


def _column(row: Sequence[Cell], column: str) -> list[float]:
    return [value for cell in row if (value := cell.values.get(column)) is not None]


def _seeds(row: Sequence[Cell]) -> str:
    return ", ".join(str(cell.seed) for cell in row) or "-"


def _difference(first: Sequence[Cell], other: Sequence[Cell], columns: Sequence[str]) -> str:
    """Cells of a table row, or "" where the two arms share no seed."""
    base = {cell.seed: cell for cell in first}
    pairs = [(base[cell.seed], cell) for cell in other if cell.seed in base]
    if not pairs:
        return ""
    numbers = []
    for column in columns:
        both = [(a.values.get(column), b.values.get(column)) for a, b in pairs]
        numbers.append(_shown([b - a for a, b in both if a is not None and b is not None], sign=True))
    return " | ".join([_seeds([cell for _, cell in pairs]), *numbers])


def _shown(values: Sequence[float], *, sign: bool = False) -> str:
    """ "0.412 (0.350 to 0.474)", "4.1e-05 (...)" where three decimals would show nothing; without an interval for a
    single seed, "-" for none."""
    if not values:
        return "-"
    mean, low, high = interval(values)
    form = f"{{:{'+' if sign else ''}{'.3f' if mean == 0 or abs(mean) >= 0.01 else '.2g'}}}"
    return form.format(mean) + ("" if math.isnan(low) else f" ({form.format(low)} to {form.format(high)})")
