"""Keys and values of the tokens that a decoder has read."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from spatialreward_jax.kernels.attention import attention
from spatialreward_jax.mesh import BATCH, constrain
from spatialreward_jax.models.qwen_layers import Attend, DecoderConfig


@struct.dataclass
class KVCache:
    """S slots for each of B rows; rows fill at their own lengths. Rides in the carry of the scan over L layers."""

    k: jax.Array
    """[L, B, S, K, H], after norm and rotary phases."""
    v: jax.Array
    """[L, B, S, K, H]."""
    length: jax.Array
    """int32 [B], slots in use; what lies behind is never seen."""
    delta: jax.Array
    """int32 [B], rotary position of the next token minus `length`; images take fewer positions than slots."""


def empty_cache(config: DecoderConfig, batch: int, slots: int, dtype: Any) -> KVCache:
    """An unused cache of `slots` slots for each of `batch` rows."""
    shape = (config.layers, batch, slots, config.kv_heads, config.head_dim)
    zeros = jnp.zeros((batch,), jnp.int32)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), zeros, zeros)


def extend_layer(k: jax.Array, v: jax.Array, layer: jax.Array, start: jax.Array) -> Attend:
    """-> `attend` that writes T tokens of each row at slot start [B] of k, v [L, B, S, K, H], then reads up to them.

    It hands out the new (k, v). Slots behind the end of the cache are dropped.
    """

    def attend(q, new_k, new_v):
        slots = start[:, None] + jnp.arange(q.shape[1])  # B T
        rows = jnp.arange(q.shape[0])[:, None]
        wide_k = _placed(k.at[layer, rows, slots].set(new_k.astype(k.dtype), mode="drop"))
        wide_v = _placed(v.at[layer, rows, slots].set(new_v.astype(v.dtype), mode="drop"))
        mixed = attention(q, wide_k[layer].astype(q.dtype), wide_v[layer].astype(q.dtype), positions=slots)
        return mixed, (wide_k, wide_v)

    return attend


def admit_layer(
    k: jax.Array,
    v: jax.Array,
    layer: jax.Array,
    rows: jax.Array,
    start: jax.Array,
    before: tuple[jax.Array, jax.Array] | None = None,
) -> Attend:
    """-> causal `attend` of N prompts that also writes them to rows [N] of k, v [L, B, S, K, H]; it hands these out.

    `before`: keys and values [N, P, K, H] of this layer that the prompts go on behind, of which start [N] are real. A
    row beyond those of k is dropped.
    """

    def attend(q, new_k, new_v):
        slots = start[:, None] + jnp.arange(q.shape[1])  # N T
        if before is not None:
            room = ((0, 0), (0, q.shape[1]), (0, 0), (0, 0))
            each = jnp.arange(q.shape[0])[:, None]
            join = lambda old, new: jnp.pad(old.astype(new.dtype), room).at[each, slots].set(new)
            new_k, new_v = join(before[0], new_k), join(before[1], new_v)
        width = min(new_k.shape[1], k.shape[2])
        put = lambda to, new: to.at[layer, rows, :width].set(new[:, :width].astype(to.dtype), mode="drop")
        wide_k, wide_v = _placed(put(k, new_k)), _placed(put(v, new_v))
        return attention(q, new_k, new_v, positions=slots), (wide_k, wide_v)

    return attend


def _placed(x):
    return constrain(x, None, BATCH, None, "tensor")
