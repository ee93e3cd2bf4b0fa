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
    """Everything that changes while decoding."""

    step: jax.Array
    """int32 [], tokens written."""
    token: jax.Array
    """int32 [B], next input."""
    done: jax.Array
    """bool [B]."""
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
    keys: jax.Array
    """Key [B], one stream per row."""
    cache: Any


class Answer(NamedTuple):
    """B decoded answers, see `Decode`; `finished` tells an end token from running out of room."""

    tokens: jax.Array
    logp: jax.Array
    raw_logp: jax.Array
    length: jax.Array
    finished: jax.Array


def begin(
    cache: Any,
    prompt: jax.Array,
    length: jax.Array,
    seeds: jax.Array,
    *,
    sampler: Sampler,
    vocab: int,
    max_new: int,
    pad: int = 0,
    active: jax.Array | None = None,
) -> Decode:
    """State after prefill, before the first new token.

    Args:
      cache: what the net made of the prompts.
      prompt: int32 [B, T], right-padded.
      length: int32 [B], real tokens of the prompts.
      seeds: int or uint32 [B]; the draws of a row follow from its seed and the number of the token alone.
      sampler: as given to `generate`.
      vocab: V.
      max_new: room for new tokens.
      pad: stands after a row's end.
      active: bool [B], False for rows that only fill up the batch; they are done from the start.
    """
    batch = prompt.shape[0]
    seen = jnp.zeros((batch, vocab if sampler.needs_seen else 0), bool)
    if sampler.needs_seen:
        real = jnp.arange(prompt.shape[1]) < length[:, None]
        seen = seen.at[jnp.arange(batch)[:, None], jnp.where(real, prompt, vocab)].set(True, mode="drop")
    return Decode(
        step=jnp.zeros((), jnp.int32),
        token=jnp.full((batch,), pad, jnp.int32),
        done=jnp.zeros((batch,), bool) if active is None else ~active,
        tokens=jnp.full((batch, max_new), pad, jnp.int32),
        logp=jnp.zeros((batch, max_new), jnp.float32),
        raw_logp=jnp.zeros((batch, max_new), jnp.float32),
        length=jnp.zeros((batch,), jnp.int32),
        seen=seen,
        keys=jax.vmap(jax.random.key)(seeds),
        cache=cache,
    )


def generate(
    model_step: ModelStep,
    params: Any,
    logits: jax.Array,
    state: Decode,
    *,
    sampler: Sampler,
    eos: Sequence[int],
    pad: int = 0,
) -> tuple[Answer, Decode]:
    """Decodes until every row has met an end token or `max_new` tokens are written; jit it with `state` donated.

    Args:
      model_step: the net.
      params: its parameters.
      logits: [B, V] of the first new token, from prefill.
      state: from `begin`.
      sampler: how tokens are chosen.
      eos: ids of end tokens.
      pad: as given to `begin`.

    Returns:
      The answers, and the last state, into which the donated one went.
    """
    max_new = state.tokens.shape[1]
    ends = jnp.asarray(tuple(eos), jnp.int32)
    write = functools.partial(_write, sampler=sampler, ends=ends, pad=pad)

    def running(state: Decode) -> jax.Array:
        return (state.step < max_new) & ~state.done.all()

    def one(state: Decode) -> Decode:
        logits, cache = model_step(params, state.token, state.cache)
        return write(state._replace(cache=cache), logits)

    state = jax.lax.while_loop(running, one, write(state, logits))
    last = jnp.take_along_axis(state.tokens, jnp.maximum(state.length - 1, 0)[:, None], axis=1)
    finished = (state.length > 0) & (last == ends).any(axis=-1)
    return Answer(state.tokens, state.logp, state.raw_logp, state.length, finished), state


def _write(state, logits, *, sampler, ends, pad):
    """Chooses one token per row from logits [B, V] and writes it down."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.step)
    picked = sampler.pick(logits, state.seen, keys)
    token = jnp.where(state.done, pad, picked.token)
    put = lambda to, value: to.at[:, state.step].set(jnp.where(state.done, 0, value))
    seen = state.seen
    if sampler.needs_seen:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    return state._replace(
        step=state.step + 1,
        token=token,
        done=state.done | (token[:, None] == ends).any(axis=-1),
        tokens=state.tokens.at[:, state.step].set(token),
        logp=put(state.logp, picked.logp),
        raw_logp=put(state.raw_logp, picked.raw_logp),
        length=state.length + ~state.done,
        seen=seen,
    )


def bucket(size: int, *, least: int = 64, most: int | None = None) -> int:
    """Smallest of least * (1, 1.5, 2, 3, 4, 6, 8, ...) that holds `size`, so that few shapes are compiled.

    `most` is the last bucket, whatever the ladder says.

    Raises:
      InputError: `size` is larger than `most`.
    """
    if most is not None and size > most:
        raise InputError(f"{size} does not fit into the largest bucket of {most}: shorten the input or raise the limit")
    step = least
    while step < size:
        half = step + step // 2
        step = half if half >= size else 2 * step
    return step if most is None else min(step, most)


def text_of(row: np.ndarray, length: int, eos: Sequence[int]) -> list[int]:
    """Token ids of one answer without its end token."""
    ids = [int(t) for t in row[: int(length)]]
    return ids[:-1] if ids and ids[-1] in set(eos) else ids
