"""One evaluation from rows to result files, with a judge or with answers that lie there already."""

import itertools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation import gedit
from spatialreward_jax.evaluation.answers import Answers
from spatialreward_jax.evaluation.benchmark import Benchmark
from spatialreward_jax.evaluation.compare import identity_differences
from spatialreward_jax.evaluation.editreward import EDITREWARD
from spatialreward_jax.evaluation.files import read_settings, write_settings
from spatialreward_jax.evaluation.grid_search import grid_search, write_grid
from spatialreward_jax.evaluation.mer import EDITWORLD, MER
from spatialreward_jax.evaluation.mmrb2 import MMRB2
from spatialreward_jax.evaluation.results import summarize, write_results
from spatialreward_jax.evaluation.runner import Judge, Scan, score_rows

BENCHMARKS = {bench.name: bench for bench in (MER, EDITREWARD, MMRB2, EDITWORLD)}
"""The benchmarks that need no generation; `gedit.benchmark` makes the fifth."""


def evaluate(
    benchmark: Benchmark,
    data: str | pathlib.Path,
    out: str | pathlib.Path,
    judge: Judge,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    report: Callable[[int, int, int], None] | None = None,
    **options,
) -> dict:
    """Scores what `out` does not hold yet and writes manifest.json, answers.jsonl, results.json and report.md there.

    limit: take the first rows only. report: called with (rows done, rows in all, edits scored). options: see
    `finish`. Returns the results. Raises InputError for unreadable data, and if `out` belongs to another evaluation.
    """
    data, out = pathlib.Path(data), pathlib.Path(out)
    check_search(benchmark, options.get("search", False))
    total = benchmark.count(data)
    total = min(total, limit) if limit else total
    identity = gedit.plain(judge.identity)
    _manifest(out, {"benchmark": benchmark.name, "identity": identity, "limit": limit, **benchmark.settings})
    stream = itertools.islice(benchmark.rows(data), limit)
    progress = (lambda done, edits: report(done, total, edits)) if report else None
    scan, verdicts = score_rows(stream, judge, out / "answers.jsonl", batch_size=batch_size, report=progress)
    return finish(benchmark, scan, verdicts, out, identity=identity, **options)


def evaluate_answers(
    benchmark: Benchmark,
    data: str | pathlib.Path,
    out: str | pathlib.Path,
    answers: Answers,
    *,
    identity: Any,
    limit: int | None = None,
    notes: Mapping[str, Any] | None = None,
    **options,
) -> dict:
    """Like `evaluate` for answers read by `answers.read_answers`; `identity` names their judge."""
    check_search(benchmark, options.get("search", False))
    data, out = pathlib.Path(data), pathlib.Path(out)
    _manifest(out, {"benchmark": benchmark.name, "identity": identity, "limit": limit, **benchmark.settings})
    scan, verdicts = Scan(), dict(answers.verdicts)
    for key, _ in scan.edits(itertools.islice(benchmark.rows(data), limit)):
        if key not in verdicts and (alias := benchmark.alias(key)) in verdicts:
            verdicts[key] = verdicts.pop(alias)
    notes = {
        **(notes or {}),
        "broken answer lines": [f"{b.where}: {b.why}" for b in answers.broken],
        "duplicate answers (the first one counts)": answers.duplicates,
    }
    return finish(benchmark, scan, verdicts, out, identity=identity, notes=notes, **options)


def finish(
    benchmark: Benchmark,
    scan: Scan,
    verdicts: Mapping,
    out: pathlib.Path,
    *,
    identity: Any,
    notes: Mapping[str, Any] | None = None,
    search: bool = False,
    resampling: tuple[int, int] = (2000, 0),
) -> dict:
    """Writes the result files and returns what is in them.

    search: also the grid search, with its picture. resampling: number of bootstrap resamples, and their seed.
    """
    if not scan.cases:
        why = f"; the first: {scan.broken[0].where}: {scan.broken[0].why}" if scan.broken else ""
        raise InputError(f"no usable row of {benchmark.name} ({len(scan.broken)} broken{why})")
    resamples, seed = resampling
    results = summarize(benchmark, scan, verdicts, identity=identity, resamples=resamples, seed=seed, notes=notes)
    if search:
        try:
            grid = grid_search(benchmark, scan.cases, verdicts)
        except InputError as error:  # what was scored is kept whatever can be searched in it
            results["notes"] = {**results["notes"], "no grid search": str(error)}
        else:
            write_grid(out, grid)
            results["grid_search"] = grid["best"]
    write_results(out, results)
    return results


def check_search(benchmark: Benchmark, search: bool) -> None:
    """Raises InputError for a search of weights where a benchmark's rows compare nothing."""
    if search and benchmark.grid is None:
        raise InputError(f"--grid_search: rows of {benchmark.name} compare nothing, no weights can be searched there")


def _manifest(out: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Pins what an output folder is for; a restart with other settings is refused."""
    _make(out)
    path = out / "manifest.json"
    if path.exists():
        was = read_settings(path)
        if changed := identity_differences(was, settings):
            raise InputError(f"{out} belongs to another evaluation ({'; '.join(changed)}): choose another --out")
        return
    write_settings(path, settings)


def _make(out: pathlib.Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made a folder ({error.strerror}): choose another --out") from error
