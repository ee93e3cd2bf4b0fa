"""The grammar of the judge's two answers.

One JSON object, written either without spaces (as in EditWorld's answers) or with one behind each comma and colon (the
official form, what `json.dumps` writes); the first separator decides for the rest:

    SC {"edit_region": [{"id": 0, "label": "...", "bbox_2d": [x1, y1, x2, y2]}, ...], "reasoning": "...", "score": [..]}
    PQ {"reasoning": "...", "score": [..]}

Ids count from 0, x1 < x2 and y1 < y2 lie in 0..1000, scores are whole numbers in 0..25, no label or reasoning is empty.
The SC reasoning cites regions that exist (`<|bbox_i|>`, any order, any number of times) and has `<|global|>` exactly
once, before its last part; `<|` stands nowhere else.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate.constrained import check_room
from spatialreward_jax.generate.grammar import NOT_FULL, Grammar, Number
from spatialreward_jax.generate.token_tables import Tables, compile_grammar
from spatialreward_jax.reward.types import SCORE_RANGE

VERSION = 1
"""Recorded with scores; raise it when the language changes."""

COUNT, RIGHT_OF, BELOW = 0, 1, 2  # registers: regions so far, least x2, least y2


@dataclasses.dataclass(frozen=True)
class AnswerBounds:
    """Sizes of an answer.

    Attributes:
        regions: most regions. label: most tokens of a label before it must close.
        reasoning: most tokens of a reasoning before it must close (`max_new_tokens` bounds it anyway).
    """

    regions: int = 16
    label: int = 16
    reasoning: int = 1024

    def __post_init__(self):
        if not (1 <= self.regions <= 99 and self.label >= 1 and self.reasoning >= 1):
            raise InputError(f"{self}: regions must lie in 1..99, label and reasoning be positive")


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerTables:
    """The grammar compiled for a judge. tables: on the device; starts: first node of each stream."""

    tables: Tables
    starts: dict[str, int]

    @classmethod
    def compile(
        cls, tokenizer: Any, *, vocab: int, eos: tuple[int, ...], max_new: int, place: Callable[[Tables], Tables]
    ) -> "AnswerTables":
        """Tables for a tokenizer, see `compile_grammar`, put where `place` wants them.

        Raises InputError where the shortest answer takes more than `max_new` tokens, or for an unfit tokenizer.
        """
        grammar, starts = answer_grammar()
        tables = compile_grammar(grammar, tokenizer, vocab=vocab, eos=eos)
        check_room(tables, list(starts.values()), max_new)
        return cls(place(tables), starts)

    def nodes(self, streams: Sequence[str]) -> np.ndarray:
        """int32 [B]: first node of each stream. Raises InputError for a stream without a grammar."""
        unknown = sorted(set(streams) - set(self.starts))
        if unknown:
            raise InputError(f"stream {unknown[0]!r} has no grammar: ask it unconstrained")
        return np.array([self.starts[stream] for stream in streams], np.int32)


def answer_grammar(bounds: AnswerBounds = AnswerBounds()) -> tuple[Grammar, dict[str, int]]:
    """-> (grammar, first node of each stream: "sc", "pq")."""
    grammar = Grammar(full=bounds.regions)
    starts = {"sc": grammar.node(), "pq": grammar.node()}
    end = grammar.node()
    grammar.ends.add(end)
    regions = grammar.literal(starts["sc"], '{"edit_region":')
    reasoning = grammar.literal(starts["pq"], '{"reasoning":')
    for space in ("", " "):
        closed = _regions(grammar, grammar.literal(regions, space + "["), space, bounds)
        quoted = grammar.node()
        _scores(grammar, quoted, end, space)
        grammar.literal(closed, f',{space}"reasoning":{space}"', _cited_text(grammar, quoted, bounds))
        quoted = grammar.node()
        _scores(grammar, quoted, end, space)
        plain, _ = grammar.text(bound=bounds.reasoning, close=quoted)
        grammar.literal(reasoning, space + '"', plain)
    return grammar, starts


def _regions(grammar: Grammar, opened: int, space: str, bounds: AnswerBounds) -> int:
    """The list of regions from behind its `[` -> the node behind its `]`."""
    closed, labelled, comma = grammar.node(), grammar.node(), "," + space
    grammar.literal(opened, "]", closed)
    entry = grammar.literal(opened, f'{{"id":{space}')
    last_id = bounds.regions - 1
    here = grammar.number(entry, Number(0, last_id, low_from=COUNT, high_from=COUNT, store=COUNT))
    label, _ = grammar.text(bound=bounds.label, close=labelled)
    grammar.literal(here, f'{comma}"label":{space}"', label)
    here = grammar.literal(labelled, f'{comma}"bbox_2d":{space}[')
    here = grammar.number(here, Number(0, 999, store=RIGHT_OF))
    here = grammar.number(grammar.literal(here, comma), Number(0, 999, store=BELOW))
    here = grammar.number(grammar.literal(here, comma), Number(1, 1000, low_from=RIGHT_OF))
    here = grammar.number(grammar.literal(here, comma), Number(1, 1000, low_from=BELOW))
    here = grammar.literal(here, "]}")
    grammar.literal(here, f'{comma}{{"id":{space}', entry, guard=NOT_FULL)
    grammar.literal(here, "]", closed)
    return closed


def _cited_text(grammar: Grammar, quoted: int, bounds: AnswerBounds) -> int:
    """Reasoning with marks -> the node before its first character; `quoted` is the node behind its closing quote."""
    first, last = grammar.node(bound=bounds.reasoning), grammar.node(bound=bounds.reasoning, sure=1)
    _, before_global = grammar.text(bound=bounds.reasoning, mark=first)
    overall, after_global = grammar.text(bound=bounds.reasoning, close=quoted, mark=last, mark_guard=1)
    grammar.literal(first, "global|>", overall)
    for opened, back in ((first, before_global), (last, after_global)):
        digits, closing = grammar.literal(opened, "bbox_", guard=1), grammar.node(bound=bounds.reasoning, sure=1)
        grammar.literal(closing, ">", back)
        for region in range(bounds.regions):
            here, value = digits, 0
            for digit in str(region):
                value = 10 * value + int(digit)
                here = grammar.literal(here, digit, guard=value + 1)
            grammar.literal(here, "|", closing)
    return before_global


def _scores(grammar: Grammar, quoted: int, end: int, space: str) -> None:
    """From behind the reasoning's closing quote to the end of the object."""
    here = grammar.literal(quoted, f',{space}"score":{space}[')
    here = grammar.number(here, Number(0, SCORE_RANGE, scored=0))
    here = grammar.number(grammar.literal(here, "," + space), Number(0, SCORE_RANGE, scored=1))
    grammar.literal(here, "]}", end)
