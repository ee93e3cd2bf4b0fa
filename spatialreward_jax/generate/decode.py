"""Batched decoding under jit, for any net that reads one token per row and keeps a cache."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate.sampling import Sampler

ModelStep = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]
"""(params, token int32 [B], cache) -> (logits [B, V] of the next token, cache)."""


class Decode(NamedTuple):
    """Everything that changes while decoding. Rows are independent: each may have begun at another time."""

    passes: jax.Array
    """int32 [], passes of the net after the prompts were read."""
    logits: jax.Array
    """float32 [B, V], of each row's next token."""
    done: jax.Array
    """bool [B], True where an answer has ended and where none was begun."""
    tokens: jax.Array
    """int32 [B, max_new], the padding token after a row's end token."""
    logp: jax.Array
    """float32 [B, max_new] under the distribution that was sampled (see `Picked`), 0 after the end."""
    raw_logp: jax.Array
    """float32 [B, max_new] under the net at temperature 1 without rules, 0 after the end."""
    length: jax.Array
    """int32 [B], tokens of the answer, its end token included."""
    seen: jax.Array
    """bool [B, V], tokens of prompt and answer; [B, 0] if no rule reads it."""
    seeds: jax.Array
    """uint32 [B], one stream of draws per row."""
    cache: Any
    grammar: Any = None
    """Where the rows stand in a grammar, `constrained.Progress`; None where there is none."""


class Answer(NamedTuple):
    """B decoded answers, see `Decode`; `finished` tells an end token from running out of room."""

    tokens: jax.Array
    logp: jax.Array
    raw_logp: jax.Array
    length: jax.Array
    finished: jax.Array


def begin(
    logits: jax.Array,
    cache: Any,
    prompt: jax.Array,
    length: jax.Array,
    seeds: jax.Array,
    *,
    sampler: Sampler,
    max_new: int,
    pad: int = 0,
    active: jax.Array | None = None,
) -> Decode:
    """State after prefill, before the first new token.

    Args:
      logits: [B, V] of the first new token.
      cache: what the net made of the prompts.
      prompt: int32 [B, T], right-padded.
      length: int32 [B], real tokens of the prompts.
      seeds: int or uint32 [B]; the draws of a row follow from its seed and the number of the token alone.
      sampler: as given to `generate`.
      max_new: room for new tokens.
      pad: stands after a row's end.
      active: bool [B], False for rows that only fill up the batch; they are done from the start.
    """
    batch, vocab = logits.shape
    seen = jnp.zeros((batch, vocab if sampler.needs_seen else 0), bool)
    if sampler.needs_seen:
        real = jnp.arange(prompt.shape[1]) < length[:, None]
        seen = seen.at[jnp.arange(batch)[:, None], jnp.where(real, prompt, vocab)].set(True, mode="drop")
    return Decode(
        passes=jnp.zeros((), jnp.int32),
        logits=logits.astype(jnp.float32),
        done=jnp.zeros((batch,), bool) if active is None else ~active,
        tokens=jnp.full((batch, max_new), pad, jnp.int32),
        logp=jnp.zeros((batch, max_new), jnp.float32),
        raw_logp=jnp.zeros((batch, max_new), jnp.float32),
        length=jnp.zeros((batch,), jnp.int32),
        seen=seen,
        seeds=jnp.asarray(seeds).astype(jnp.uint32),
        cache=cache,
    )


def insert(state: Decode, new: Decode, rows: jax.Array, cache: Any) -> Decode:
    """Puts the N rows of `new` into rows [N] of `state`, whose answers are forgotten; `cache` holds them already.

    A row beyond those of `state` is dropped.
    """
    put = lambda old, new: old.at[rows].set(new, mode="drop") if old.ndim else old
    merged = jax.tree.map(put, state._replace(cache=None), new._replace(cache=None))
    return merged._replace(cache=cache)


def generate(
    model_step: ModelStep,
    params: Any,
    state: Decode,
    *,
    sampler: Sampler,
    eos: Sequence[int],
    pad: int = 0,
    enough: jax.Array | int | None = None,
) -> Decode:
    """Decodes until `enough` rows have met an end token or `max_new` tokens; jit it with `state` donated.

    A state that comes back before all rows are done can be given other rows (`insert`) and goes on where it stood.

    Args:
      model_step: the net.
      params: its parameters.
      state: from `begin`, `insert` or an earlier call.
      sampler: how tokens are chosen.
      eos: ids of end tokens.
      pad: as given to `begin`.
      enough: int32 [], by default all rows.
    """
    ends = jnp.asarray(tuple(eos), jnp.int32)

    def one(state: Decode) -> Decode:
        picked = sampler.pick(state.logits, state.seen, keys_of(state))
        token = jnp.where(state.done, pad, picked.token)
        state = write(state, token, ~state.done, picked.logp, picked.raw_logp, sampler=sampler, ends=ends)
        return read(state, functools.partial(model_step, params, token))

    return jax.lax.while_loop(lambda state: unfinished(state, enough), one, state)


def answers(state: Decode, eos: Sequence[int]) -> Answer:
    """What stands in a state."""
    last = jnp.take_along_axis(state.tokens, jnp.maximum(state.length - 1, 0)[:, None], axis=1)
    finished = (state.length > 0) & (last == jnp.asarray(tuple(eos), jnp.int32)).any(axis=-1)
    return Answer(state.tokens, state.logp, state.raw_logp, state.length, finished)


def unfinished(state: Decode, enough: jax.Array | int | None) -> jax.Array:
    """bool []: whether fewer than `enough` rows are done."""
    return state.done.sum() < (state.done.shape[0] if enough is None else enough)


def keys_of(state: Decode) -> jax.Array:
    """Key [B] of each row's next draw."""
    return jax.vmap(lambda seed, place: jax.random.fold_in(jax.random.key(seed), place))(state.seeds, state.length)


def write(
    state: Decode, token: jax.Array, on: jax.Array, logp: jax.Array, raw_logp: jax.Array, *, sampler: Sampler, ends
) -> Decode:
    """Writes down one token of each row where `on`, at the row's own end; the row is done at an end token or if full.

    All arrays are [B]; `ends` is int32 [number of end tokens].
    """
    rows, room = jnp.arange(token.shape[0]), state.tokens.shape[1]
    put = lambda to, value: to.at[rows, jnp.where(on, state.length, room)].set(value, mode="drop")
    seen = state.seen
    if sampler.needs_seen:
        seen = seen.at[rows, jnp.where(on, token, seen.shape[1])].set(True, mode="drop")
    length = state.length + on
    ended = on & ((token[:, None] == ends).any(axis=-1) | (length == room))
    return state._replace(
        done=state.done | ended,
        tokens=put(state.tokens, token),
        logp=put(state.logp, logp),
        raw_logp=put(state.raw_logp, raw_logp),
        length=length,
        seen=seen,
    )


Step = Callable[[Any], tuple[jax.Array, Any]]
"""cache -> (logits [B, V], cache)."""


def read(state: Decode, *steps: Step, which: jax.Array | int = 0) -> Decode:
    """Takes the step `which` of some, none if all rows are done."""
    going, logits, cache = ~state.done.all(), state.logits, state.cache
    for number, step in enumerate(steps):  # XLA copies the cache for a choice among three
        skip = functools.partial(lambda logits, cache: (logits, cache), logits)
        logits, cache = jax.lax.cond(going & (which == number), step, skip, cache)
    return state._replace(logits=logits.astype(jnp.float32), cache=cache, passes=state.passes + going)


def bucket(size: int, *, least: int = 64, most: int | None = None, parts: int = 2) -> int:
    """Smallest of least * (1, 1.5, 2, 3, 4, 6, 8, ...) that holds `size`, so that few shapes are compiled.

    `most` is the last bucket, whatever the ladder says. `parts`: buckets from one power of two to the next, which must
    divide `least`; 2 is the ladder above.

    Raises:
      InputError: `size` is larger than `most`.
    """
    if most is not None and size > most:
        raise InputError(f"{size} does not fit into the largest bucket of {most}: shorten the input or raise the limit")
    octave = least
    while 2 * octave <= size:
        octave *= 2
    step = octave + -(-max(size - octave, 0) * parts // octave) * octave // parts
    return step if most is None else min(step, most)


def text_of(row: np.ndarray, length: int, eos: Sequence[int]) -> list[int]:
    """Token ids of one answer without its end token."""
    ids = [int(t) for t in row[: int(length)]]
    return ids[:-1] if ids and ids[-1] in set(eos) else ids
