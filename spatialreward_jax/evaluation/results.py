"""From verdicts to a result file: figures with intervals, tables, what could not be counted, and one line per row.

`results.json` depends on the rows, the verdicts and the settings alone: no time, no path, no order of scoring.
"""

import json
import math
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from spatialreward_jax.evaluation.benchmark import Benchmark, Outcome, Table, select
from spatialreward_jax.evaluation.files import replace
from spatialreward_jax.evaluation.records import DIMENSIONS, Case, Verdict
from spatialreward_jax.evaluation.regions import region_statistics
from spatialreward_jax.evaluation.runner import Scan
from spatialreward_jax.evaluation.statistics import bootstrap, stratified_mean

FORMAT = 2
_SHOWN = 20  # problems listed by name; all are counted


def summarize(
    benchmark: Benchmark,
    scan: Scan,
    verdicts: Mapping[str, Verdict],
    *,
    identity: Any,
    resamples: int = 2000,
    seed: int = 0,
    notes: Mapping[str, Any] | None = None,
) -> dict:
    """Everything that `results.json` holds, as plain data. notes: what else is to be kept (broken answer lines)."""
    cases = scan.cases
    outcomes = [benchmark.outcome(case, verdicts) for case in cases]
    figures = {}
    for figure in benchmark.figures:
        rows, values = select(cases, outcomes, figure.metric, figure.where)
        strata = [case.labels.get(figure.strata, "") for case in rows] if figure.strata else None
        clusters = [case.cluster for case in rows]
        figures[figure.name] = bootstrap(
            values, strata=strata, clusters=clusters, resamples=resamples, seed=seed
        ).to_json()
    correct = {case.id: o.values["correct"] for case, o in zip(cases, outcomes) if "correct" in o.values}
    return {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "headline": benchmark.figures[0].name,
        "identity": identity,
        "data": {"digest": scan.digest, "rows": scan.rows, "cases": len(cases)},
        "settings": {"resamples": resamples, "seed": seed, "interval": "95% percentile bootstrap over clusters"},
        "evaluated": dict(benchmark.settings),
        "figures": figures,
        "counts": _counts(outcomes, scan),
        "answered_only": _answered_only(benchmark, cases, outcomes),
        "tables": {table.name: _table(table, cases, outcomes) for table in benchmark.tables},
        "scores": _score_statistics(cases, verdicts),
        "regions": region_statistics(cases, verdicts, correct),
        "problems": _problems(benchmark, scan, verdicts, outcomes),
        "notes": dict(notes or {}),
        "cases": [
            {"id": case.id, "status": outcome.status, "cluster": case.cluster, "labels": dict(case.labels)}
            | {name: round(value, 6) for name, value in outcome.values.items()}
            for case, outcome in zip(cases, outcomes)
        ],
    }


def write_results(folder: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes `results.json` and `report.md`, each whole or not at all."""
    replace(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    replace(folder / "report.md", report(results))


def report(results: Mapping[str, Any]) -> str:
    """The results as Markdown: figures, counts, tables, regions, problems."""
    lines = [f"# {results['benchmark']}", "", *_identity_lines(results["identity"]), ""]
    lines += ["| figure | value | 95% interval | rows |", "|---|---|---|---|"]
    for name, figure in results["figures"].items():
        lines.append(
            f"| {name} | {_show(figure['value'])} | {_show(figure['low'])} to {_show(figure['high'])} | {figure['n']} |"
        )
    counts = results["counts"]
    lines += ["", "Rows: " + ", ".join(f"{count} {name}" for name, count in counts.items()) + "."]
    if results["answered_only"]:
        shown = ", ".join(f"{name} {_show(value)}" for name, value in results["answered_only"].items())
        lines.append(f"Over the rows with valid answers alone: {shown}.")
    for name, table in results["tables"].items():
        metrics = sorted(
            {m for row in table.values() for m in row} - {"rows"}, key=list(next(iter(table.values()), {})).index
        )
        lines += ["", f"## {name}", "", f"| | rows | {' | '.join(metrics)} |", "|---" * (len(metrics) + 2) + "|"]
        lines += [
            f"| {key} | {row['rows']} | {' | '.join(_show(row[m]) for m in metrics)} |" for key, row in table.items()
        ]
    lines += ["", "## regions", "", "| | |", "|---|---|"]
    for name, value in results["regions"].items():
        if isinstance(value, dict):
            value = ", ".join(f"{k}: {_show(v['accuracy'])} ({v['rows']})" for k, v in value.items())
        lines.append(f"| {name} | {_show(value)} |")
    for name, problem in results["problems"].items():
        if problem["count"]:
            lines += ["", f"## {name}: {problem['count']}", ""] + [f"- {item}" for item in problem["first"]]
    return "\n".join(lines) + "\n"


def _counts(outcomes: Sequence[Outcome], scan: Scan) -> dict[str, int]:
    found = Counter(outcome.status for outcome in outcomes)
    counts = {status: found[status] for status in ("ok", "invalid", "missing")}
    return counts | {"broken": found["broken"] + len(scan.broken), "duplicate": len(scan.duplicates)}


def _answered_only(benchmark: Benchmark, cases, outcomes) -> dict[str, float | None]:
    """Right-or-wrong figures without the rows that had no valid answer, for comparison with tools that skip those."""
    if all(outcome.status == "ok" for outcome in outcomes):
        return {}
    kept = [(case, outcome) for case, outcome in zip(cases, outcomes) if outcome.status == "ok"]
    found = {}
    for figure in benchmark.figures:
        if figure.metric in benchmark.right_or_wrong:
            rows, values = select(*zip(*kept), figure.metric, figure.where) if kept else ([], [])
            found[figure.name] = _mean(rows, values, figure.strata)
    return found


def _table(table: Table, cases, outcomes) -> dict[str, dict[str, Any]]:
    groups = sorted({case.labels.get(table.by, "unknown") for case in cases if _matches(case, table.where)})
    rows = {}
    for group in groups:
        where = {**table.where, table.by: group}
        rows[group] = {"rows": sum(_matches(case, where) for case in cases)}
        for metric in table.metrics:
            rows[group][metric] = _mean(*select(cases, outcomes, metric, where), table.strata)
    return rows


def _matches(case: Case, where: Mapping[str, str]) -> bool:
    return all(case.labels.get(k) == v for k, v in where.items())


def _mean(rows: Sequence[Case], values: Sequence[float], strata: str | None) -> float | None:
    if not values:
        return None
    return round(stratified_mean(values, [case.labels.get(strata, "") if strata else "" for case in rows]), 6)


def _score_statistics(cases, verdicts) -> dict[str, dict[str, float | int]]:
    """Minimum, maximum, mean and deviation of the valid scores, per dimension (0..10), each edit once."""
    keys = dict.fromkeys(key for case in cases for key in case.keys)
    found = {}
    for name in DIMENSIONS:
        values = [v for key in keys if key in verdicts and (v := verdicts[key].dimension(name)) is not None]
        if values:
            mean = sum(values) / len(values)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
            numbers = {"min": min(values), "max": max(values), "mean": mean, "std": deviation}
            found[name] = {k: round(v, 6) for k, v in numbers.items()} | {"n": len(values)}
    return found


def _problems(benchmark, scan, verdicts, outcomes) -> dict[str, dict]:
    cases = scan.cases
    keys = dict.fromkeys(key for case in cases for key in case.keys)
    unreadable = [f"{key}: {verdicts[key].error}" for key in keys if key in verdicts and not verdicts[key].readable]
    invalid = [f"{k}: {v.error}" for k in keys if (v := verdicts.get(k)) is not None and v.readable and not v.valid]
    return {
        name: {"count": len(items), "first": items[:_SHOWN]}
        for name, items in {
            "broken rows": [f"{b.where}: {b.why}" for b in scan.broken],
            "unreadable images": unreadable,
            "invalid answers": invalid,
            "scores made up where an answer gives none (12.5)": [
                f"{key}: {verdicts[key].neutral} of 4" for key in keys if key in verdicts and verdicts[key].neutral
            ],
            "missing answers": [key for key in keys if key not in verdicts],
            "rows without a number that they need": [
                case.id
                for case, o in zip(cases, outcomes)
                if o.status == "missing" and all(k in verdicts for k in case.keys)
            ],
            "duplicate rows (left out)": scan.duplicates,
            "keys with two different edits (the first one counts)": scan.conflicts,
            "answers to no row": [key for key in verdicts if key not in keys],
        }.items()
    }


def _identity_lines(identity: Any) -> list[str]:
    items = identity.items() if isinstance(identity, Mapping) else [("judge", identity)]
    return [f"- {name}: {value}" for name, value in items]


def _show(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
