"""How the next token is chosen: rules that reshape logits, then a draw.

Rules run in the order of `transformers` and vLLM: repetition penalty, temperature, top-k, top-p.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spatialreward_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
    """Divides positive logits of tokens met before by `penalty`, multiplies negative ones (arXiv 1909.05858)."""

    penalty: float

    def __post_init__(self):
        if not self.penalty > 0:
            raise InputError(f"repetition penalty {self.penalty}: use a positive number, 1 for none")

    def __call__(self, logits: jax.Array, seen: jax.Array) -> jax.Array:
        """float32 [B, V], bool [B, V] -> float32 [B, V]."""
        punished = jnp.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return jnp.where(seen, punished, logits)


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Divides logits by `value`."""

    value: float

    def __post_init__(self):
        if not self.value > 0:
            raise InputError(f"temperature {self.value}: use a positive number, or greedy decoding for 0")

    def __call__(self, logits: jax.Array, seen: jax.Array) -> jax.Array:
        """float32 [B, V] -> float32 [B, V]; `seen` is not read."""
        return logits / self.value


@dataclasses.dataclass(frozen=True)
class TopKTopP:
    """Keeps the `k` likeliest tokens (0 = all), of these the fewest that hold `p` of their probability."""

    k: int
    p: float

    def __post_init__(self):
        if self.k < 0 or not 0 < self.p <= 1:
            raise InputError(f"top_k {self.k}, top_p {self.p}: use top_k >= 0 (0 for all) and top_p in (0, 1]")

    def __call__(self, logits: jax.Array, seen: jax.Array) -> jax.Array:
        """float32 [B, V] -> the same with -inf where tokens are dropped; `seen` is not read."""
        width = min(self.k, logits.shape[-1]) or logits.shape[-1]
        top = jax.lax.top_k(logits, width)[0]  # descending; a full sort only where no k bounds it
        if self.p < 1:
            share = jax.nn.softmax(top, axis=-1)
            before = jnp.cumsum(share, axis=-1) - share
            top = jnp.where(before < self.p, top, jnp.inf)
        return jnp.where(logits >= top.min(axis=-1, keepdims=True), logits, -jnp.inf)


LEAST = -1e30
"""Logits of allowed tokens are raised to this, so that one of them is chosen whatever the net says."""

Rule = RepetitionPenalty | Temperature | TopKTopP


class Picked(NamedTuple):
    """A choice for each row."""

    token: jax.Array
    """int32 [B]."""
    logp: jax.Array
    """float32 [B], log-probability under the distribution that was sampled, after all rules; 0 for greedy."""
    raw_logp: jax.Array
    """float32 [B], log-probability under the net itself: temperature 1, no rules."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Rules in their order, then the likeliest token (`greedy`) or a draw."""

    rules: tuple[Rule, ...] = ()
    greedy: bool = True

    @property
    def needs_seen(self) -> bool:
        """Whether a rule reads which tokens already stand in prompt and answer."""
        return any(isinstance(rule, RepetitionPenalty) for rule in self.rules)

    def pick(self, logits: jax.Array, seen: jax.Array, keys: jax.Array, allowed: jax.Array | None = None) -> Picked:
        """Logits [B, V], seen bool [B, V] (any width if no rule reads it), one key per row [B].

        `allowed`: bool [B, V], tokens to choose among; the rules know no others. A row's choice depends on its own
        logits and key alone, so not on what shares its batch.
        """
        logits = logits.astype(jnp.float32)
        shaped = logits
        if allowed is not None:
            shaped = jnp.where(allowed, jnp.maximum(logits, LEAST), -jnp.inf)
        for rule in self.rules:
            shaped = rule(shaped, seen)
        if self.greedy:
            token = jnp.argmax(shaped, axis=-1)
            logp = jnp.zeros(token.shape, jnp.float32)
        else:
            token = jax.vmap(jax.random.categorical)(keys, shaped)
            logp = _chosen(shaped, token)
        return Picked(token.astype(jnp.int32), logp, _chosen(logits, token))


def make_sampler(
    *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, repetition_penalty: float = 1.0
) -> Sampler:
    """The sampler for the usual four numbers; temperature 0 is greedy, where top-k and top-p change nothing.

    Raises:
      InputError: a number is out of range.
    """
    truncate = TopKTopP(top_k, top_p)
    rules: tuple[Rule, ...] = () if repetition_penalty == 1 else (RepetitionPenalty(repetition_penalty),)
    if temperature == 0:
        return Sampler(rules, greedy=True)
    if temperature != 1:
        rules += (Temperature(temperature),)
    if top_k or top_p < 1:
        rules += (truncate,)
    return Sampler(rules, greedy=False)


def _chosen(logits, token):
    return jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
