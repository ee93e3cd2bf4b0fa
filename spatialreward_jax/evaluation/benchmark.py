"""A benchmark as data: where its rows come from, what one row yields, and which figures and tables are made of that."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from spatialreward_jax.evaluation.records import Broken, Case, Row, Verdict
from spatialreward_jax.evaluation.rows import count_rows, data_files


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number: the mean of `metric` over rows whose labels match `where`; with `strata` the mean of group means."""

    name: str
    metric: str
    strata: str | None = None
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
    """The means of `metrics` per value of the label `by`, over the rows that match `where`; `strata` as in `Figure`."""

    name: str
    by: str
    metrics: tuple[str, ...]
    strata: str | None = None
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a row came to.

    Attributes:
        status: "ok"; "invalid" (a judge's answer could not be read); "missing" (an answer is not there); "broken" (the
            row's images cannot be read: nobody could be asked, so the row counts nowhere).
        values: the row's metrics. A row that is invalid or missing is wrong: its right-or-wrong metrics are 0, and it
            takes no part in the others.
    """

    status: str
    values: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Everything that differs between benchmarks.

    Attributes:
        name: as on the command line.
        rows: data folder or file -> its rows, and what is broken among them.
        values: (case, verdicts in the case's order, all valid) -> the row's metrics; None when a number that it needs
            was not given.
        right_or_wrong: metrics that are 0 where there is no valid answer.
        figures: the first one is the headline.
        tables: see `Table`.
        grid: labels of the rows on which aggregation weights may be searched; None where rows compare nothing.
        settings: what else tells one evaluation of it from another; pinned with the output folder.
        alias: key of an edit -> another one under which answers to it may be given.
        count: data folder or file -> how many rows `rows` will give, cheaply.
    """

    name: str
    rows: Callable[[pathlib.Path], Iterator[Row | Broken]]
    values: Callable[[Case, Sequence[Verdict]], Mapping[str, float] | None]
    right_or_wrong: tuple[str, ...]
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    grid: Mapping[str, str] | None = None
    settings: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    alias: Callable[[str], str] = lambda key: key
    count: Callable[[pathlib.Path], int] = lambda data: sum(map(count_rows, data_files(data)))

    def outcome(self, case: Case, verdicts: Mapping[str, Verdict]) -> Outcome:
        """Verdicts by key -> what the row came to."""
        found = [verdicts.get(key) for key in case.keys]
        if any(v is not None and not v.readable for v in found):
            return Outcome("broken", {})
        wrong = dict.fromkeys(self.right_or_wrong, 0.0)
        if None in found:
            return Outcome("missing", wrong)
        if not all(v.valid for v in found):
            return Outcome("invalid", wrong)
        values = self.values(case, found)
        return Outcome("missing", wrong) if values is None else Outcome("ok", values)


def select(cases: Iterable[Case], outcomes: Iterable[Outcome], metric: str, where: Mapping[str, str]):
    """-> (cases, values float) of the rows that match `where` and have the metric."""
    pairs = [
        (case, outcome.values[metric])
        for case, outcome in zip(cases, outcomes)
        if metric in outcome.values and all(case.labels.get(k) == v for k, v in where.items())
    ]
    return [case for case, _ in pairs], [value for _, value in pairs]
