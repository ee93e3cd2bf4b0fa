"""What a compiled program sends between chips: collectives by kind, size and how often they run."""

import dataclasses
import math
import re

from spatialreward_jax.planning.hlo import Instruction, Module, bytes_of, shapes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction. kind: see `KINDS`; bytes: that one chip sends in one run; group: chips that take part;
    runs: executions; source: the operation it comes from."""

    kind: str
    bytes: float
    group: int
    runs: float
    source: str


def collectives(module: Module) -> list[Collective]:
    """The collectives of a module, most bytes first."""
    found = [c for one, runs, _ in module.running() if runs and (c := _read(one, runs))]
    return sorted(found, key=lambda c: -c.bytes * c.runs)


def summary(found: list[Collective]) -> dict[str, dict[str, float]]:
    """Per kind: instructions, executions, and bytes that one chip sends in all of them."""
    table: dict[str, dict[str, float]] = {}
    for c in found:
        row = table.setdefault(c.kind, {"instructions": 0, "runs": 0, "bytes": 0})
        for key, value in (("instructions", 1), ("runs", c.runs), ("bytes", c.bytes * c.runs)):
            row[key] += value
    return table


def _read(one: Instruction, runs: float) -> Collective | None:
    kind = one.kind.removesuffix("-start")
    if kind not in KINDS:
        return None
    sizes = [bytes_of(shape) for shape in shapes(one.result)]
    if one.kind != kind and kind == "all-gather" and len(sizes) > 1:  # (operands, results)
        sizes = sizes[len(sizes) // 2 :]
    elif one.kind != kind and kind == "collective-permute":
        sizes = sizes[:1]
    group = _group(one.rest)
    return Collective(kind, _sent(kind, sum(sizes), group), group, runs, one.source)


def _sent(kind: str, result: float, group: int) -> float:
    """Bytes that a chip sends on a ring, from the size of its result."""
    share = (group - 1) / group
    if kind == "reduce-scatter":
        return result * group * share
    return result * {"all-reduce": 2 * share, "collective-permute": 1}.get(kind, share)


def _group(rest: str) -> int:
    """Chips in a replica group: `{{0,1},{2,3}}`, `[2,4]<=[8]`, or `mesh['a'=4,'b'=2] {'a'}`; 2 for pairs."""
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        return math.prod(int(sizes.get(name, 1)) for name in re.findall(r"'([^']+)'", match[2]))
    return 2
