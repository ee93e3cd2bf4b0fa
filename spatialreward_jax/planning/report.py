"""The plan as text for people."""

from collections.abc import Sequence
from typing import Any

from spatialreward_jax.planning.topology import GIB

_HEAD = (
    "program",
    "runs",
    "HBM GiB",
    "weights",
    "optim",
    "temp",
    "cache",
    "beside",
    "code MiB",
    "TFLOP",
    "moved GB",
    "sent GB",
    "step s",
    "bound by",
    "compile s",
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line per program; memory, bytes and times are of one chip and one run."""
    lines = [_HEAD, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    hbm = row["hbm_per_chip"]
    gib = lambda name: f"{hbm.get(name, 0) / GIB:.2f}"
    first = (row["program"], f"{row['runs_per_phase']:g}", f"{hbm['total'] / GIB:.2f}/{hbm['capacity'] / GIB:.1f}")
    if "refused" in row:
        return (*first, gib("weights"), "-", "-", "-", gib("beside"), *["-"] * 7)
    line = row["roofline"]
    sent = sum(kind["bytes"] for kind in row["collectives_per_chip"].values())
    return (
        *first,
        *(gib(name) for name in ("weights", "optimizer", "temporaries", "cache", "beside")),
        f"{row['code_bytes'] / 2**20:.1f}",
        f"{row['tflop']['total']:.0f}",
        f"{row['hbm_bytes_moved_per_chip'] / 1e9:.1f}",
        f"{sent / 1e9:.1f}",
        f"{line['seconds']:.2f}",
        line["bound_by"],
        f"{row['compile_seconds']:.0f}",
    )


def does_not_fit(rows: Sequence[dict[str, Any]]) -> str:
    """What is too large and why, "" when all fits."""
    lines = []
    for row in rows:
        if row["fits"]:
            continue
        hbm = row["hbm_per_chip"]
        lines.append(f"{row['program']} does not fit: {hbm['total'] / GIB:.2f} of {hbm['capacity'] / GIB:.2f} GiB:")
        lines += [f"  {b['bytes'] / GIB:7.3f} GiB  {b['shape']}  {b['source']}" for b in row["largest_buffers"]]
    return "\n".join(lines)


def weights(rows: Sequence[dict[str, Any]]) -> str:
    """Parameters and gigabytes of every net, see `planning.weights`."""
    lines = [f"{'':36}{'parameters':>14}{'GB':>10}"]
    for row in rows:
        count = f"{row['parameters']:.3f} B" if "parameters" in row else ""
        lines.append(f"{row['name']:36}{count:>14}{row['gigabytes']:#10.3g}")
    return "\n".join(lines)


def recipes(costs: Sequence[dict[str, Any]]) -> str:
    """TFLOP per image of the recipes side by side."""
    lines = ["TFLOP per image   sampling   training        sum        aim"]
    for cost in costs:
        numbers = (cost["sampling"]["tflop"], cost["training"]["tflop"], cost["tflop_per_image"], cost.get("aim", "-"))
        lines.append(f"{cost['recipe']:15}" + "".join(f"{n:>11}" if n == "-" else f"{n:11.5g}" for n in numbers))
    return "\n".join(lines)
