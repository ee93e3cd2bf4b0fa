"""How much a compiled program moves between HBM and chip, loops multiplied out, and its largest buffers.

An estimate from the text of the module: each instruction outside fusions reads its operands and writes its results
once. Arrays in on-chip memory cost nothing; an operand that a fusion only slices costs the slice; an update in place
costs what is new. Kernels are counted as if they read every operand once.
"""

import collections
from collections.abc import Mapping

from spatialreward_jax.planning.hlo import Instruction, Module, bytes_of, in_memory, shapes

_FREE = {
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "constant",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "iota",
    "opt-barrier",
}


def memory_traffic(module: Module) -> float:
    """Bytes read from and written to HBM by one chip in one run."""
    return sum(times * _moved(one, named, module) for one, times, named in module.running() if times)


def largest_buffers(module: Module, count: int = 8) -> list[dict]:
    """The largest arrays in HBM that instructions make: {"bytes", "shape", "source"}, each shape and source once."""
    found: dict[tuple[str, str], int] = {}
    for one, _, _ in module.running():
        if one.kind in _FREE:
            continue
        for shape in shapes(one.result):
            found[(shape.split("{")[0], one.source or one.name)] = in_memory(shape)
    top = collections.Counter(found).most_common(count)
    return [{"bytes": size, "shape": shape, "source": source} for (shape, source), size in top]


def _moved(one: Instruction, named: Mapping[str, Instruction], module: Module) -> float:
    if one.kind in _FREE or one.kind.endswith("-done"):
        return 0
    written = sum(in_memory(s) for s in shapes(one.result))
    if one.kind.endswith("-start"):
        return 2 * in_memory(shapes(one.result)[0])
    size = lambda name: sum(in_memory(s) for s in shapes(named[name].result)) if name in named else 0
    if one.kind == "dynamic-slice":
        return 2 * written
    if one.kind == "dynamic-update-slice":
        return 2 * size(one.operands[1])
    if one.kind != "fusion":
        return written + sum(map(size, one.operands))
    body = module.computations.get(next(iter(one.called("calls")), ""), [])
    read, saved = _fusion(body, written)
    return saved + sum(min(size(name), read.get(i, size(name))) for i, name in enumerate(one.operands))


def _fusion(body: list[Instruction], written: float) -> tuple[dict[int, float], float]:
    """(bytes read of the operands that are only sliced or updated in place, bytes written)."""
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for one in body:
        for name in one.operands:
            users[name].append(one)
    named = {one.name: one for one in body}
    total = lambda one: sum(bytes_of(s) for s in shapes(one.result))
    read = {}
    for one in body:
        if one.kind != "parameter" or not users[one.name]:
            continue
        index = int(one.rest.split(")")[0])
        if all(u.kind == "dynamic-slice" and u.operands[0] == one.name for u in users[one.name]):
            read[index] = sum(total(u) for u in users[one.name])
        elif all(u.kind == "dynamic-update-slice" and u.operands[0] == one.name for u in users[one.name]):
            read[index] = 0
    updates = [one for one in body if one.kind == "dynamic-update-slice" and one.operands[1] in named]
    if updates and any(one.root for one in updates):
        written = min(written, sum(total(named[one.operands[1]]) for one in updates))
    return read, written
