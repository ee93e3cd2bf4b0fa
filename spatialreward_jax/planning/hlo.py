"""Reading the text of a compiled, partitioned HLO module: computations, instructions, how often each runs, sizes."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
"""Bytes per element; f8 kinds take 1, all others 4."""

_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. result: its shape; operands: names; rest: all behind the operation's name; root: of a computation."""

    name: str
    result: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def source(self) -> str:
        """The operation of the traced program that it comes from, or ""."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations in these attributes."""
        found = re.findall(rf"(?:{'|'.join(attributes)})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.rest)
        return [name.strip().lstrip("%") for many, one in found for name in (many or one).split(",")]


class Module:
    """A parsed module.

    Attributes:
      computations: instructions by computation. entry: name of the one that runs.
      runs: executions of each computation that is not part of a fusion, when the entry runs once.
    """

    def __init__(self, text: str, trips: float = 1, taken: float = 1):
        """Parses.

        Args:
          text: `compiled.as_text()`.
          trips: executions of the body of a while loop whose count the compiler does not know.
          taken: share of the executions of a two-way conditional in which its condition holds.
        """
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, current = "", None
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if head:
                current = self.computations.setdefault(head[2], [])
                self.entry = head[2] if head[1] else self.entry
            elif current is not None and (match := _LINE.match(line)):
                root, name, result, kind, rest = match.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", _arguments(rest)))
                current.append(Instruction(name, result, kind, operands, rest, bool(root)))
        self.runs = self._runs(trips, taken)

    def running(self) -> Iterator[tuple[Instruction, float, Mapping[str, Instruction]]]:
        """Every instruction outside fusions, its executions, and the instructions of its computation by name."""
        for name, times in self.runs.items():
            body = self.computations.get(name, [])
            named = {one.name: one for one in body}
            for one in body:
                yield one, times, named

    def _runs(self, trips: float, taken: float) -> dict[str, float]:
        calls = {name: list(self._calls(body, trips, taken)) for name, body in self.computations.items()}
        total: dict[str, float] = collections.defaultdict(float)

        def visit(name: str, times: float) -> None:
            total[name] += times
            for callee, factor in calls.get(name, ()):
                visit(callee, times * factor)

        visit(self.entry, 1)
        return dict(total)

    def _calls(self, body: list[Instruction], trips: float, taken: float) -> Iterator[tuple[str, float]]:
        for one in body:
            if one.kind == "while":
                known = self._trip_count(one, {x.name: x for x in body})
                for name in one.called("body", "condition"):
                    yield name, trips if known is None else known
            elif one.kind == "conditional":
                names = ("branch_computations", "false_computation", "true_computation")
                branches = [name for attribute in names for name in one.called(attribute)]
                shares = (1 - taken, taken) if len(branches) == 2 else (1,) * len(branches)
                yield from zip(branches, shares)
            elif one.kind in ("call", "async-start"):
                for name in one.called("to_apply", "calls"):
                    yield name, 1

    def _trip_count(self, loop: Instruction, named: Mapping[str, Instruction]) -> int | None:
        """Of a loop that counts from a constant up to one, by one, as scans do; None for any other."""
        condition = {one.name: one for one in self.computations[loop.called("condition")[0]]}
        root = next(one for one in condition.values() if one.root)
        if root.kind != "compare" or "direction=LT" not in root.rest:
            return None
        counter, limit = (condition[name] for name in root.operands)
        index = re.search(r"index=(\d+)", counter.rest)
        if limit.kind != "constant" or index is None:
            return None
        start = named.get(loop.operands[0])
        start = named.get(start.operands[int(index[1])]) if start is not None and start.kind == "tuple" else None
        while start is not None and start.kind in ("copy", "bitcast"):
            start = named.get(start.operands[0])
        first = _constant(start) if start is not None and start.kind == "constant" else 0
        return _constant(limit) - first


def _constant(one: Instruction) -> int:
    return int(one.rest.split(")")[0])


def _arguments(rest: str) -> str:
    """What stands before the parenthesis that closes the operands."""
    depth = 1
    for at, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return rest[:at]
    return rest


def shapes(result: str) -> list[str]:
    """The arrays of a result, `bf16[8,128]{1,0:T(8,128)S(1)}` each; a tuple has several."""
    return re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", result)


def bytes_of(shape: str) -> int:
    """Bytes of one array's shape, padding aside."""
    kind, sizes = re.match(r"(\w+)\[([\d,]*)\]", shape).groups()
    width = WIDTHS.get(kind, 1 if kind.startswith("f8") else 4)
    return width * math.prod(int(n) for n in sizes.split(",") if n)


def in_memory(shape: str) -> int:
    """Bytes of an array that lies in HBM, 0 for one in on-chip memory."""
    return 0 if re.search(r"S\([1-9]\)", shape) else bytes_of(shape)
