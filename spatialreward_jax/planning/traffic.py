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

_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
"""Operations that write into their first operand, and which operand is what they write."""


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
    if one.kind in _IN_PLACE:
        return 2 * size(one.operands[_IN_PLACE[one.kind]])
    if one.kind != "fusion":
        return written + sum(map(size, one.operands))
    body = _body(one, module)
    read = sum(min(size(name), _read(body, _parameter(body, i), module)) for i, name in enumerate(one.operands))
    root = next((inner for inner in body if inner.root), None)
    return read + (min(written, _written(body, root, module)) if root else written)


def _body(fusion: Instruction, module: Module) -> list[Instruction]:
    return module.computations.get(next(iter(fusion.called("calls")), ""), [])


def _parameter(body: list[Instruction], index: int) -> str:
    return next((x.name for x in body if x.kind == "parameter" and x.rest.startswith(f"{index})")), "")


def _read(body: list[Instruction], name: str, module: Module) -> float:
    """Bytes that a fusion reads of one of its arrays; inf where it reads all."""
    total = 0.0
    for one in body:
        for index, operand in enumerate(one.operands):
            if operand != name:
                continue
            if index == 0 and one.kind == "dynamic-slice":
                total += sum(map(bytes_of, shapes(one.result)))
            elif one.kind == "bitcast":
                total += _read(body, one.name, module)
            elif one.kind == "fusion":
                inner = _body(one, module)
                total += _read(inner, _parameter(inner, index), module)
            elif index or one.kind not in _IN_PLACE:
                return float("inf")
    return total


def _written(body: list[Instruction], root: Instruction, module: Module) -> float:
    """Bytes that the root of a fusion writes: of an update in place only what is new."""
    named = {one.name: one for one in body}
    if root.kind in _IN_PLACE:
        new = named.get(root.operands[_IN_PLACE[root.kind]])
        return sum(map(bytes_of, shapes(new.result))) if new else float("inf")
    if root.kind == "bitcast" and root.operands[0] in named:
        return _written(body, named[root.operands[0]], module)
    if root.kind == "tuple":
        return sum(_written(body, named[name], module) for name in root.operands)
    if root.kind == "fusion" and (inner := _body(root, module)):
        return _written(inner, next(one for one in inner if one.root), module)
    return sum(in_memory(s) for s in shapes(root.result))
