"""Paired test of two result files of one benchmark: is one judge better, or was it luck?"""

import collections
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.benchmark import Benchmark
from spatialreward_jax.evaluation.results import FORMAT
from spatialreward_jax.evaluation.statistics import paired


def read_results(path: str | pathlib.Path) -> dict:
    """A `results.json`, or the one in a folder. Raises InputError if it is none."""
    path = pathlib.Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no result file ({error}): give the results.json of an evaluation") from error
    needed = {"benchmark", "data", "identity", "evaluated", "cases"}
    if not isinstance(results, dict) or results.get("format") != FORMAT or not needed <= results.keys():
        raise InputError(f"{path} is no result file of format {FORMAT}: evaluate again")
    counts = collections.Counter(case["id"] for case in results["cases"])
    if twice := [ident for ident, count in counts.items() if count > 1]:
        raise InputError(f"{path} holds {twice[0]} twice: evaluate again")
    return results


def identity_differences(a: Any, b: Any) -> list[str]:
    """What differs between two identities, one line each; empty if they are equal."""
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return [] if a == b else [f"{a!r} against {b!r}"]
    return [
        f"{name}: {a.get(name)!r} against {b.get(name)!r}" for name in sorted({*a, *b}) if a.get(name) != b.get(name)
    ]


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    benchmark: Benchmark,
    *,
    allow_different_identity: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> dict:
    """Every figure of the benchmark on the rows that both files have.

    Two runs of one judge compare as they are. Judges that differ in anything (model, wording, pixel policy, parsing,
    aggregation, decoding) compare only with `allow_different_identity`; the answer then lists what differs. Raises
    InputError for results of different benchmarks or different data.
    """
    names = a["benchmark"], b["benchmark"], benchmark.name
    if len(set(names)) != 1:
        raise InputError(f"results of {names[0]} and {names[1]} do not compare: give two of {benchmark.name}")
    if a["data"]["digest"] != b["data"]["digest"]:
        raise InputError(
            f"results of different data ({a['data']['digest']}, {b['data']['digest']}): evaluate both on the same files"
        )
    differences = identity_differences(a["identity"], b["identity"])
    differences += identity_differences(a["evaluated"], b["evaluated"])
    if differences and not allow_different_identity:
        raise InputError(
            f"different judges ({'; '.join(differences)}): pass --allow_different_identity to compare them"
        )
    rows_a, rows_b = ({row["id"]: row for row in results["cases"]} for results in (a, b))
    figures = {}
    for figure in benchmark.figures:
        both = [
            ident
            for ident, row in rows_a.items()
            if figure.metric in row
            and figure.metric in rows_b.get(ident, ())
            and all(row["labels"].get(k) == v for k, v in figure.where.items())
        ]
        if not both:
            continue
        strata = [rows_a[ident]["labels"].get(figure.strata, "") for ident in both] if figure.strata else None
        test = paired(
            [rows_a[ident][figure.metric] for ident in both],
            [rows_b[ident][figure.metric] for ident in both],
            strata=strata,
            clusters=[rows_a[ident]["cluster"] for ident in both],
            resamples=resamples,
            seed=seed,
        )
        figures[figure.name] = {k: round(v, 6) if isinstance(v, float) else v for k, v in test._asdict().items()}
    if not figures:
        raise InputError("the two result files share no row with a value")
    return {
        "benchmark": benchmark.name,
        "headline": a["headline"],
        "identity_differences": differences,
        "figures": figures,
    }


def comparison_table(result: Mapping[str, Any]) -> str:
    """A comparison as Markdown; a is the first file, b the second."""
    lines = [f"# {result['benchmark']}: a against b", ""]
    lines += [f"- differs in {line}" for line in result["identity_differences"]]
    lines += [
        "",
        "| figure | a | b | a - b | 95% interval | p (bootstrap) | only a right | only b right | p (McNemar) | rows |",
    ]
    lines += ["|---" * 10 + "|"]
    for name, f in result["figures"].items():
        exact = "-" if f["p_mcnemar"] is None else f"{f['p_mcnemar']:.4f}"
        discordant = ("-", "-") if f["p_mcnemar"] is None else (f["only_a"], f["only_b"])
        lines.append(
            f"| {name} | {f['a']:.4f} | {f['b']:.4f} | {f['difference']:+.4f} | {f['low']:+.4f} to {f['high']:+.4f} "
            f"| {f['p_bootstrap']:.4f} | {discordant[0]} | {discordant[1]} | {exact} | {f['n']} |"
        )
    return "\n".join(lines) + "\n"
