"""Runs reference goldens through our nets and maths, and prints the error of every array.

    python -m spatialreward_jax.parity DIR
    python -m spatialreward_jax.parity DIR --json=report.json --failures

DIR holds `goldens.json` (hyper-parameters and tolerances), arrays and small checkpoints, as `tests/goldens` does. Run
it on a new accelerator before trusting it: everything is float32 with matrix products at full precision.

A row is one array: `input` (used), `compared` (largest absolute error beside what it may be) or `failed` (with the
reason). An array or file that no check knows is a failed row. The exit status is 1 if a row failed or nothing was
compared.

--json writes {"folder", "ok", "rows": [{"file", "array", "status", "max_error", "tolerance", "ok", "note"}]}.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.golden_checks import Row, check_folder


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_string("json", "", "File to write the rows to.")
    flags.DEFINE_boolean("failures", False, "Print the rows that fail, and no others.")


def main(argv: Sequence[str]) -> int:
    """Folder -> table; returns the exit status."""
    given = flags.FLAGS
    if len(argv) != 2:
        raise InputError("no folder given: python -m spatialreward_jax.parity DIR")
    rows = []
    for row in check_folder(argv[1]):
        rows.append(row)
        if not given.failures or not row.ok:
            print(line(row), flush=True)
    ok = passes(rows)
    print(summary(rows))
    if given.json:
        report = {"folder": str(argv[1]), "ok": ok, "rows": [encode(row) for row in rows]}
        pathlib.Path(given.json).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return 0 if ok else 1


def passes(rows: Sequence[Row]) -> bool:
    """Whether every row passes and at least one was compared."""
    return all(row.ok for row in rows) and any(row.status == "compared" for row in rows)


def line(row: Row) -> str:
    """One line of the table."""
    name = f"{row.file}:{row.array}" if row.array else row.file
    number = lambda x: "-" if x is None else f"{x:.2e}"
    verdict = "FAIL" if not row.ok else "input" if row.status == "input" else "ok"
    return f"{name:72} {number(row.max_error):>9} {number(row.tolerance):>9}  {verdict:5} {row.note}".rstrip()


def summary(rows: Sequence[Row]) -> str:
    """The last line."""
    failed = [row for row in rows if not row.ok]
    compared = sum(row.status == "compared" and row.ok for row in rows)
    inputs = sum(row.status == "input" for row in rows)
    return f"{compared} arrays agree, {len(failed)} rows failed, {inputs} inputs used"


def encode(row: Row) -> dict:
    """A row for JSON; an error that is no finite number becomes null."""
    values = dataclasses.asdict(row)
    if values["max_error"] is not None and not math.isfinite(values["max_error"]):
        values["max_error"] = None
    return values


if __name__ == "__main__":
    define_flags()
    cli.run(main, positional=1)
