"""What a text may look like: nodes joined by bytes, with numbers that obey ranges. Knows nothing of tokenizers.

A finite automaton over bytes would be enough for quotes, brackets and free text. What an answer must fulfil beyond that
- the second corner of a box behind the first, consecutive ids, cited ids that exist - would multiply its nodes by the
million pairs of corners, so it is held in a few integer registers beside the node: a `Number` reads its range from
registers and leaves its value in one, and an edge may be open only while register 0 is large enough.
"""

import dataclasses

REGISTERS = 3
"""Integers held beside the node, 0 at the start. Register 0 is what edges are guarded by."""

NOT_FULL = -1
"""Guard of an edge that is open while register 0 is below `Grammar.full`."""

_PLAIN = [byte for byte in range(0x20, 0x80) if byte not in b'"\\<']
_ESCAPED = b'"\\/bfnrt'
_LEADS = (  # first bytes of UTF-8 characters, range of the second byte, further bytes; no surrogates, nothing overlong
    (range(0xC2, 0xE0), (0x80, 0xC0), 0),
    (range(0xE0, 0xE1), (0xA0, 0xC0), 1),
    ((*range(0xE1, 0xED), 0xEE, 0xEF), (0x80, 0xC0), 1),
    (range(0xED, 0xEE), (0x80, 0xA0), 1),
    (range(0xF0, 0xF1), (0x90, 0xC0), 2),
    (range(0xF1, 0xF4), (0x80, 0xC0), 2),
    (range(0xF4, 0xF5), (0x80, 0x90), 2),
)


@dataclasses.dataclass(frozen=True)
class Number:
    """An integer in decimal, without sign or leading zeros.

    Attributes:
        low, high: range, both ends included.
        low_from, high_from: register whose content replaces `low` or `high`, or -1.
        store: register that takes the value + 1 once the number has ended, or -1.
        scored: this is the answer's score number `scored`, or -1.
    """

    low: int
    high: int
    low_from: int = -1
    high_from: int = -1
    store: int = -1
    scored: int = -1

    @property
    def digits(self) -> int:
        """Most digits that it can have; `high` bounds the register that replaces it."""
        return len(str(self.high))


class Grammar:
    """An automaton under construction; nodes are integers.

    Attributes:
        edges: for each node, the node behind each byte.
        guards: (node, byte) -> least content of register 0 at which the edge is open, or NOT_FULL.
        sure: for each node, what register 0 is known to hold at least.
        bound: for each node inside free text, the most tokens of that text before it must close; 0 elsewhere.
        numbers: node -> (the number read there, the node behind it).
        ends: nodes where the text is complete.
        full: register 0 never exceeds it.
    """

    def __init__(self, full: int = 0):
        self.edges: list[dict[int, int]] = []
        self.guards: dict[tuple[int, int], int] = {}
        self.sure: list[int] = []
        self.bound: list[int] = []
        self.numbers: dict[int, tuple[Number, int]] = {}
        self.ends: set[int] = set()
        self.full = full

    def node(self, *, bound: int = 0, sure: int = 0) -> int:
        """A new node."""
        self.edges.append({})
        self.bound.append(bound)
        self.sure.append(sure)
        return len(self.edges) - 1

    def edge(self, start: int, byte: int, stop: int, guard: int = 0) -> None:
        """Joins two nodes. An edge that is there already is replaced."""
        self.edges[start][byte] = stop
        self.guards.pop((start, byte), None)
        if guard:
            self.guards[start, byte] = guard

    def literal(self, start: int, text: str, stop: int | None = None, *, guard: int = 0) -> int:
        """Bytes that must come one after another -> the node behind them, `stop` if given.

        Literals from one node share what they have in common. `guard` is that of the first byte; new nodes are inside
        the same text as `start` and, behind a guard, as sure as it says.
        """
        here, sure = start, max(self.sure[start], guard)
        data = text.encode()
        for place, byte in enumerate(data):
            last = place == len(data) - 1 and stop is not None
            if last or byte not in self.edges[here]:
                target = stop if last else self.node(bound=self.bound[start], sure=sure)
                self.edge(here, byte, target, guard if place == 0 else 0)
            here = self.edges[here][byte]
        return here

    def number(self, at: int, number: Number) -> int:
        """Lets a number stand at a node -> the node behind it."""
        after = self.node()
        self.numbers[at] = (number, after)
        return after

    def text(self, *, bound: int, close: int | None = None, mark: int | None = None, mark_guard: int = 0):
        """Free text inside a JSON string -> (node before its first character, node inside it).

        UTF-8 with the short escapes of JSON; `<|` opens a mark and stands nowhere else.

        Args:
            bound: most tokens before the text must close.
            close: node behind the closing quote, which needs one character before it; None: it never closes itself.
            mark: node behind `<|`; None: no marks. mark_guard: guard of entering it.
        """
        before, inside, angle, escape = (self.node(bound=bound) for _ in range(4))
        rest = [self.node(bound=bound) for _ in range(3)]  # 1, 2, 3 bytes of a character are missing
        for byte in range(0x80, 0xC0):
            for missing, node in enumerate(rest):
                self.edge(node, byte, rest[missing - 1] if missing else inside)
        seconds = []
        for leads, (first, stop), further in _LEADS:
            second = self.node(bound=bound)
            seconds.append((leads, second))
            for byte in range(first, stop):
                self.edge(second, byte, rest[further - 1] if further else inside)
        for byte in _ESCAPED:
            self.edge(escape, byte, inside)
        for node in (before, inside, angle):
            for byte in _PLAIN:
                self.edge(node, byte, inside)
            for leads, second in seconds:
                for byte in leads:
                    self.edge(node, byte, second)
            self.edge(node, ord("\\"), escape)
            self.edge(node, ord("<"), angle)
        del self.edges[angle][ord("|")]
        if mark is not None:
            self.edge(angle, ord("|"), mark, mark_guard)
        if close is not None:
            for node in (inside, angle):
                self.edge(node, ord('"'), close)
        return before, inside

    def accepts(self, text: str, start: int) -> bool:
        """Whether the whole text is one that the grammar allows from a node."""
        data, place, node, registers = text.encode(), 0, start, [0] * REGISTERS
        while True:
            if node in self.numbers:
                number, node = self.numbers[node]
                stop = place
                while stop < len(data) and data[stop : stop + 1].isdigit():
                    stop += 1
                digits = data[place:stop].decode()
                low = registers[number.low_from] if number.low_from >= 0 else number.low
                high = registers[number.high_from] if number.high_from >= 0 else number.high
                if not digits or digits != str(int(digits)) or not low <= int(digits) <= high:
                    return False
                if number.store >= 0:
                    registers[number.store] = int(digits) + 1
                place = stop
            if place == len(data):
                return node in self.ends
            guard = self.guards.get((node, data[place]), 0)
            if registers[0] < guard or (guard == NOT_FULL and registers[0] >= self.full):
                return False
            if data[place] not in self.edges[node]:
                return False
            node, place = self.edges[node][data[place]], place + 1
