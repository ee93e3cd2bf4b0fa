"""Batched decoding under a grammar, in one program: masked choices, forced stretches without a pass for each token.

A pass of the net reads, for each row, the token that was chosen last and the forced ones behind it, up to `stride`; the
next choice is made from the logits behind the last of them. Rows stand at different places, so each has its own count.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import automaton
from spatialreward_jax.generate.automaton import Place
from spatialreward_jax.generate.decode import Decode, keys_of, read, unfinished, write
from spatialreward_jax.generate.sampling import Sampler
from spatialreward_jax.generate.token_tables import Tables

ModelExtend = Callable[[Any, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
"""(params, tokens int32 [B, T], at int32 [B], keep int32 [B], cache) -> (logits [B, V] behind token `at` of each row,
cache that has read `keep` tokens more)."""

SCORES = 2
"""Scored numbers of an answer."""

TENS = (1, 2)
"""First digits of a score that a second one may follow."""


class Progress(NamedTuple):
    """What decoding under a grammar adds to the state of B rows."""

    place: Place
    expected: jax.Array
    """float32 [B, SCORES], see `score_expectation`; NaN where none was asked for."""


def under_grammar(state: Decode, nodes: jax.Array) -> Decode:
    """A state from `begin` whose rows start from nodes int32 [B]; `max_new` is at least their `reserve` (`check_room`).

    In its answers `logp` is 0 for forced tokens and `raw_logp` 0 too, since no logits are made for them.
    """
    unknown = jnp.full((nodes.shape[0], SCORES), jnp.nan, jnp.float32)
    return state._replace(grammar=Progress(automaton.start(nodes), unknown))


def generate_constrained(
    extend: ModelExtend,
    params: Any,
    state: Decode,
    *,
    tables: Tables,
    sampler: Sampler,
    eos: Sequence[int],
    expected: bool = False,
    stride: int = 8,
    enough: jax.Array | int | None = None,
) -> Decode:
    """As `generate`, under a grammar: every row ends with a complete text, which `max_new` tokens always suffice for.

    Args:
      extend: the net.
      params: its parameters.
      state: from `under_grammar`, `insert` or an earlier call; donate it.
      tables: the grammar, compiled with `eos`.
      sampler: how tokens are chosen among those that are allowed.
      eos: ids of end tokens.
      expected: also compute `score_expectation` at each scored number, by `len(TENS)` more passes for each.
      stride: most tokens of a row in one pass.
      enough: int32 [], rows that are done when it returns; by default all.
    """
    one = functools.partial(
        _round, extend, params, tables=tables, sampler=sampler, eos=tuple(eos), expected=expected, stride=stride
    )
    return jax.lax.while_loop(lambda state: unfinished(state, enough), one, state)


def check_room(tables: Tables, nodes: Sequence[int], max_new: int) -> None:
    """Raises InputError if the shortest answer does not fit into `max_new` tokens. Host code."""
    need = max(int(tables.reserve[node]) for node in nodes)
    if need > max_new:
        raise InputError(
            f"max_new_tokens {max_new}: the shortest constrained answer takes {need} tokens with this tokenizer; "
            "raise it, or decode unconstrained"
        )


def _round(extend, params, state: Decode, *, tables, sampler, eos, expected, stride) -> Decode:
    """One choice per row, the forced tokens behind it, and a pass that reads them."""
    if expected:
        state = _expect(extend, params, tables, state)
    place, ends = state.grammar.place, jnp.asarray(eos, jnp.int32)
    batch, must = state.done.shape[0], automaton.forced(tables, state.grammar.place)
    left = state.tokens.shape[1] - state.length
    picked = sampler.pick(state.logits, state.seen, keys_of(state), automaton.allowed(tables, place, left))
    chosen = must < 0
    token = jnp.where(chosen, picked.token, must)
    put = functools.partial(_write, tables, ends, sampler)
    logp = (jnp.where(chosen, picked.logp, 0), jnp.where(chosen, picked.raw_logp, 0))
    none = jnp.zeros((batch,), jnp.int32)
    state, fed, count = put(state, jnp.zeros((batch, stride), jnp.int32), none, token, ~state.done, logp)

    def more(_, carry):
        state, fed, count = carry
        must = automaton.forced(tables, state.grammar.place)
        return put(state, fed, count, must, (must >= 0) & ~state.done & (count > 0), (0.0, 0.0))

    state, fed, count = jax.lax.fori_loop(1, stride, more, (state, fed, count))
    reads = jnp.where(state.done, 0, count)
    at = jnp.maximum(reads - 1, 0)

    step = lambda width: lambda cache: extend(params, fed[:, :width], at, reads, cache)
    widths = sorted({1, stride})
    wide = (reads > 1).any().astype(jnp.int32) if stride > 1 else 0
    return read(state, *map(step, widths), which=wide)


def _write(tables, ends, sampler, state, fed, count, token, on, logp):
    """Writes one token of each row where `on`, moves the row on in the grammar and puts the token up for reading."""
    rows, token = jnp.arange(token.shape[0]), jnp.where(on, token, 0)
    new = automaton.advance(tables, state.grammar.place, token)
    kept = lambda a, b: jnp.where(on.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    place = jax.tree.map(kept, new, state.grammar.place)
    state = write(state, token, on, *logp, sampler=sampler, ends=ends)
    fed = fed.at[rows, jnp.where(on, count, fed.shape[1])].set(token, mode="drop")
    return state._replace(grammar=state.grammar._replace(place=place)), fed, count + on


def _expect(extend, params, tables, state: Decode) -> Decode:
    """Notes the expectation of the scores that begin at some rows."""
    place, means = state.grammar
    field = automaton.field_of(tables, place)
    choice = automaton.forced(tables, place) < 0
    scored = jnp.where((place.width == 0) & ~state.done & choice, field.scored, -1)
    some = (scored >= 0).any()
    peek = functools.partial(_peek, extend, params, tables, place, state.logits)
    skip = lambda cache: (jnp.zeros(scored.shape, jnp.float32), cache)
    mean, cache = jax.lax.cond(some, peek, skip, state.cache)
    means = jnp.where(scored[:, None] == jnp.arange(SCORES), mean[:, None], means)
    return state._replace(
        passes=state.passes + len(TENS) * some, cache=cache, grammar=state.grammar._replace(expected=means)
    )


def score_expectation(first: jax.Array, second: jax.Array, tables: Tables) -> jax.Array:
    """Mean of a number in 0..29 -> float32 [B].

    The distribution is that of the net at temperature 1 among what the grammar allows, over all ways to write a number:
    one token, or one digit of `TENS` and then a second digit. It is exact for every tokenizer.

    Args:
      first: float32 [B, D], probability of each digit token at the number's start.
      second: float32 [len(TENS), B, D], probability of each digit token behind each of `TENS`; what is missing to 1 is
        the end of the number.
      tables: of the grammar.
    """
    value, width = tables.value[tables.digits], tables.width[tables.digits]
    mean = (first * value).sum(axis=1)
    for digit, then in zip(TENS, second, strict=True):
        share = jnp.where((width == 1) & (value == digit), first, 0).sum(axis=1)
        mean += share * (then * (10 * digit + value - digit)).sum(axis=1)
    return mean


def _peek(extend, params, tables, place, logits, cache):
    """Expectation of the score that begins at each row; reads each of `TENS` and forgets it."""
    value, width = tables.value[tables.digits], tables.width[tables.digits]
    roomy = jnp.full((logits.shape[0],), jnp.iinfo(jnp.int32).max, jnp.int32)

    def shares(logits, place):
        mask = automaton.allowed(tables, place, roomy)
        probability = jax.nn.softmax(jnp.where(mask, logits.astype(jnp.float32), -jnp.inf), axis=-1)
        return jnp.where(width > 0, probability[:, tables.digits], 0)

    first, nothing = shares(logits, place), jnp.zeros((logits.shape[0],), jnp.int32)

    def read(cache, digit):
        token = jnp.broadcast_to(tables.digits[jnp.argmax((width == 1) & (value == digit))], nothing.shape)
        behind, cache = extend(params, token[:, None], nothing, nothing, cache)
        return cache, shares(behind, automaton.advance(tables, place, token))

    cache, second = jax.lax.scan(read, cache, jnp.array(TENS))
    return score_expectation(first, second, tables), cache
