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
from spatialreward_jax.generate.decode import Answer, Decode
from spatialreward_jax.generate.sampling import Sampler
from spatialreward_jax.generate.token_tables import Tables

ModelExtend = Callable[[Any, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
"""(params, tokens int32 [B, T], at int32 [B], keep int32 [B], cache) -> (logits [B, V] behind token `at` of each row,
cache that has read `keep` tokens more)."""

SCORES = 2
"""Scored numbers of an answer."""

TENS = (1, 2)
"""First digits of a score that a second one may follow."""


class ConstrainedAnswer(NamedTuple):
    """B answers."""

    answer: Answer
    """As of `generate`; `logp` is 0 for forced tokens and `raw_logp` 0 too, since no logits are made for them."""
    passes: jax.Array
    """int32 [], passes of the net after the prefill."""
    expected: jax.Array
    """float32 [B, SCORES], see `score_expectation`; NaN where none was asked for."""


class _Loop(NamedTuple):
    decode: Decode
    place: Place
    logits: jax.Array
    passes: jax.Array
    expected: jax.Array


def generate_constrained(
    extend: ModelExtend,
    params: Any,
    logits: jax.Array,
    state: Decode,
    *,
    tables: Tables,
    nodes: jax.Array,
    sampler: Sampler,
    eos: Sequence[int],
    expected: bool = False,
    stride: int = 8,
) -> tuple[ConstrainedAnswer, Decode]:
    """Decodes until every row's text is complete, which `max_new` tokens always suffice for.

    Args:
      extend: the net.
      params: its parameters.
      logits: [B, V] of the first new token, from prefill.
      state: from `begin`; donate it.
      tables: the grammar, compiled with `eos`.
      nodes: int32 [B], node that each row starts from; `max_new` is at least its `reserve` (see `check_room`).
      sampler: how tokens are chosen among those that are allowed.
      eos: ids of end tokens.
      expected: also compute `score_expectation` at each scored number, by `len(TENS)` more passes for each.
      stride: most tokens of a row in one pass.

    Returns:
      The answers, and the last state, into which the donated one went.
    """
    batch = nodes.shape[0]
    one = functools.partial(
        _round, extend, params, tables=tables, sampler=sampler, eos=tuple(eos), expected=expected, stride=stride
    )
    loop = _Loop(
        state,
        automaton.start(nodes),
        logits.astype(jnp.float32),
        jnp.zeros((), jnp.int32),
        jnp.full((batch, SCORES), jnp.nan, jnp.float32),
    )
    loop = jax.lax.while_loop(_running, one, loop)
    state = loop.decode
    answer = Answer(state.tokens, state.logp, state.raw_logp, state.length, state.done & (state.length > 0))
    return ConstrainedAnswer(answer, loop.passes, loop.expected), state


def _running(loop: _Loop) -> jax.Array:
    state = loop.decode
    return (~state.done & (state.length < state.tokens.shape[1])).any()


def check_room(tables: Tables, nodes: Sequence[int], max_new: int) -> None:
    """Raises InputError if the shortest answer does not fit into `max_new` tokens. Host code."""
    need = max(int(tables.reserve[node]) for node in nodes)
    if need > max_new:
        raise InputError(
            f"max_new_tokens {max_new}: the shortest constrained answer takes {need} tokens with this tokenizer; "
            "raise it, or decode unconstrained"
        )


def _round(extend, params, loop: _Loop, *, tables, sampler, eos, expected, stride) -> _Loop:
    """One choice per row, the forced tokens behind it, and a pass that reads them."""
    state, place = loop.decode, loop.place
    batch = state.token.shape[0]
    ends = jnp.asarray(eos, jnp.int32)
    must = automaton.forced(tables, place)
    means, cache, passes = loop.expected, state.cache, loop.passes
    if expected:
        field = automaton.field_of(tables, place)
        scored = jnp.where((place.width == 0) & ~state.done & (must < 0), field.scored, -1)
        peek = functools.partial(_peek, extend, params, tables, place, loop.logits)
        skip = lambda cache: (jnp.zeros((batch,), jnp.float32), cache)
        mean, cache = jax.lax.cond((scored >= 0).any(), peek, skip, cache)
        passes += len(TENS) * (scored >= 0).any()
        means = jnp.where(scored[:, None] == jnp.arange(SCORES), mean[:, None], means)
    left = state.tokens.shape[1] - state.length
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.length)
    picked = sampler.pick(loop.logits, state.seen, keys, automaton.allowed(tables, place, left))
    token = jnp.where(must >= 0, must, picked.token)
    chosen = must < 0
    write = functools.partial(_write, tables, ends, sampler.needs_seen)
    logp = (jnp.where(chosen, picked.logp, 0), jnp.where(chosen, picked.raw_logp, 0))
    fed = jnp.zeros((batch, stride), jnp.int32)
    state, place, fed, count = write(state, place, fed, jnp.zeros((batch,), jnp.int32), token, ~state.done, logp)

    def more(_, carry):
        state, place, fed, count = carry
        must = automaton.forced(tables, place)
        return write(state, place, fed, count, must, (must >= 0) & ~state.done & (count > 0), (0.0, 0.0))

    state, place, fed, count = jax.lax.fori_loop(1, stride, more, (state, place, fed, count))
    reads = jnp.where(state.done, 0, count)
    at = jnp.maximum(reads - 1, 0)

    def wide(cache):
        return extend(params, fed, at, reads, cache)

    def narrow(cache):
        return extend(params, fed[:, :1], at, reads, cache)

    def read(cache):
        return jax.lax.cond((reads > 1).any(), wide, narrow, cache)

    going = ~state.done.all()
    logits, cache = jax.lax.cond(going, read, lambda cache: (loop.logits, cache), cache)
    return _Loop(state._replace(cache=cache), place, logits, passes + going, means)


def _write(tables, ends, needs_seen, state, place, fed, count, token, on, logp):
    """Writes one token of each row where `on`, at the row's own end."""
    rows, slot = jnp.arange(token.shape[0]), jnp.where(on, state.length, state.tokens.shape[1])
    put = lambda to, value: to.at[rows, slot].set(value, mode="drop")
    token = jnp.where(on, token, 0)
    seen = state.seen
    if needs_seen:
        seen = seen.at[rows, jnp.where(on, token, seen.shape[1])].set(True, mode="drop")
    new = automaton.advance(tables, place, token)
    place = jax.tree.map(lambda a, b: jnp.where(on.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, place)
    fed = fed.at[rows, jnp.where(on, count, fed.shape[1])].set(token, mode="drop")
    ended = on & (token[:, None] == ends).any(axis=-1)
    length = state.length + on
    state = state._replace(
        step=jnp.maximum(state.step, length.max()),
        token=jnp.where(on, token, state.token),
        done=state.done | ended,
        tokens=put(state.tokens, token),
        logp=put(state.logp, logp[0]),
        raw_logp=put(state.raw_logp, logp[1]),
        length=length,
        seen=seen,
    )
    return state, place, fed, count + on


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
