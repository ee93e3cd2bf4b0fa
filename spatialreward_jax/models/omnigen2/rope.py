"""Rotary positions of the joint sequence [text | references | target].

Three axes: text token i has ids (i, i, i); a token of an image has (offset, row, column), where the offset starts at
the number of real text tokens and grows by max(rows, columns) after each image. Source: OmniGen2 `repo.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spatialreward_jax.models.omnigen2.config import THETA, OmniGen2Config
from spatialreward_jax.models.omnigen2.types import Conditioning


class Parts(NamedTuple):
    """One value for each part of the joint sequence; leading axes [B, Lt], [B, R, Tr] and [B, T]."""

    text: jax.Array
    refs: jax.Array
    target: jax.Array

    def joint(self) -> jax.Array:
        """The parts in a row, [B, Lt + R * Tr + T, ...]."""
        refs = self.refs.reshape(self.refs.shape[0], -1, *self.refs.shape[3:])
        return jnp.concatenate([self.text, refs, self.target], axis=1)


def position_ids(cond: Conditioning, tokens: int) -> Parts:
    """int32 ids [..., 3] for every token, 0 in the padding; `tokens` is T of the padded target."""
    length = cond.text_mask.sum(axis=1, dtype=jnp.int32)  # B
    step = cond.ref_sizes.max(axis=-1)  # B R
    ends = length[:, None] + jnp.cumsum(step, axis=1)  # B R
    target_offset = ends[:, -1] if step.shape[1] else length
    text = jnp.broadcast_to(jnp.arange(cond.text.shape[1], dtype=jnp.int32)[:, None], (*cond.text_mask.shape, 3))
    ids = Parts(
        text,
        _image_ids(ends - step, cond.ref_sizes, cond.refs.shape[2]),
        _image_ids(target_offset, cond.target_size, tokens),
    )
    return jax.tree.map(lambda x, mask: x * mask[..., None], ids, masks(cond, tokens))


def masks(cond: Conditioning, tokens: int) -> Parts:
    """bool masks of the real tokens."""
    return Parts(cond.text_mask, cond.ref_mask, cond.target_mask(tokens))


def _image_ids(offset, size, tokens):
    """offset [...], size [..., 2] -> [..., tokens, 3]; meaningless behind the image's last token."""
    index = jnp.arange(tokens, dtype=jnp.int32)
    columns = jnp.maximum(size[..., 1:], 1)
    return jnp.stack(
        [jnp.broadcast_to(offset[..., None], (*offset.shape, tokens)), index // columns, index % columns], -1
    )


def phases(config: OmniGen2Config, ids: Parts, sides: int) -> Parts:
    """(cos, sin) of every token's angles, float32 [..., H/2, 2].

    The tables are made on the host in float64: at position 1000 a float32 angle is off by up to 6e-5. The first axis
    has room for the longest text and `sides` patches of images after it, whatever `axes_lens` says; rows and columns
    are bounded by it.
    """
    first = max(config.axes_lens[0], ids.text.shape[1] + sides)
    tables = [_table(dim, rows) for dim, rows in zip(config.axes_dim_rope, (first, *config.axes_lens[1:]))]

    def one(ids):
        return jnp.concatenate([jnp.take(t, ids[..., i], axis=0, mode="clip") for i, t in enumerate(tables)], axis=-2)

    return jax.tree.map(one, ids)


def _table(dim, rows):
    """float32 [rows, dim/2, 2]."""
    angles = np.outer(np.arange(rows, dtype=np.float64), THETA ** (-np.arange(0, dim, 2, dtype=np.float64) / dim))
    return jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32))


def rotate(x: jax.Array, phase: jax.Array) -> jax.Array:
    """Rotates adjacent channel pairs: x [B, T, N, H], phase [B, T, H/2, 2] -> x.shape, x.dtype; in float32 inside."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = phase[:, :, None, :, 0], phase[:, :, None, :, 1]
    even, odd = pairs[..., 0], pairs[..., 1]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)
