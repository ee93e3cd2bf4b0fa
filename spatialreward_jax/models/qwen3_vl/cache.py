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


def fill_layer(k: jax.Array, v: jax.Array, layer: jax.Array, positions: jax.Array) -> Attend:
    """-> causal `attend` of a prompt that also writes its T tokens to the first slots of k, v [L, B, S, K, H]."""

    def attend(q, new_k, new_v):
        at = (layer, 0, 0, 0, 0)
        wide_k = _placed(jax.lax.dynamic_update_slice(k, new_k[None].astype(k.dtype), at))
        wide_v = _placed(jax.lax.dynamic_update_slice(v, new_v[None].astype(v.dtype), at))
        return attention(q, new_k, new_v, positions=positions), (wide_k, wide_v)

    return attend


def _placed(x):
    return constrain(x, None, BATCH, None, "tensor")
