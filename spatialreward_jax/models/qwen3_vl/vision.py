"""Vision tower of Qwen3-VL: one row of patches per image, so that several prompts can share an image's features."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialreward_jax.kernels.attention import KEPT, attention
from spatialreward_jax.mesh import BATCH, constrain
from spatialreward_jax.models.layers import Embedding, LayerNorm, Linear, scan_blocks, stack_blocks
from spatialreward_jax.models.qwen3_vl.config import VisionConfig
from spatialreward_jax.models.qwen3_vl.positions import VisionGrid
from spatialreward_jax.models.qwen_layers import inverse_frequencies, rotate

NORM_EPS = 1e-6
ROPE_THETA = 10000.0

block_gelu = functools.partial(jax.nn.gelu, approximate=True)
"""The blocks' GELU, by tanh."""
merger_gelu = functools.partial(jax.nn.gelu, approximate=False)
"""The mergers' GELU, by erf: the reference differs here from its own blocks."""


def initial_positions(c: VisionConfig) -> np.ndarray:
    """Position table float32 [side^2, C] to train from scratch with: sines and cosines of row and column.

    Half of the channels tell the row, half the column, at periods from 4 sides down to 2 rows.
    """
    count = c.dim // 4
    turns = 0.25 * (2 * c.side) ** (np.arange(count) / max(count - 1, 1))  # per side
    angles = 2 * np.pi * (np.arange(c.side)[:, None] / c.side) * turns  # side count
    one = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)  # side C/2
    rows, columns = np.repeat(one, c.side, axis=0), np.tile(one, (c.side, 1))
    return np.concatenate([rows, columns], axis=-1).astype(np.float32)


class VisionFeatures(NamedTuple):
    """Features of I images with P patches each, D = width of the text decoder; rows behind an image's end are noise."""

    main: jax.Array
    """[I, P / 4, D], what stands at the image tokens."""
    deep: jax.Array
    """[K, I, P / 4, D], what is added there to the outputs of the first K decoder layers (DeepStack)."""


class VisionBlock(nnx.Module):
    """Pre-norm block. x [I, P, C], angles [I, P, H / 2], segments int32 [I, P] -> [I, P, C]."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs):
        self.attn_norm = LayerNorm(c.dim, NORM_EPS)
        self.qkv = Linear(c.dim, (3, c.heads, c.dim // c.heads), bias=True, rngs=rngs)  # C 3 N H
        self.proj = Linear((c.heads, c.dim // c.heads), c.dim, bias=True, rngs=rngs)  # N H C
        self.mlp_norm = LayerNorm(c.dim, NORM_EPS)
        self.up = Linear(c.dim, c.mlp, bias=True, rngs=rngs)
        self.down = Linear(c.mlp, c.dim, bias=True, rngs=rngs)

    def __call__(self, x: jax.Array, angles: jax.Array, segments: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(self.qkv(self.attn_norm(x)), 2, 0)  # I P N H each
        mixed = attention(rotate(q, angles), rotate(k, angles), v, segments=(segments, segments))
        x = x + self.proj(mixed)
        return x + self.down(block_gelu(self.up(self.mlp_norm(x))))


class Merger(nnx.Module):
    """Squares of merge x merge patches to tokens of the decoder: [..., P, C] -> [..., P / merge^2, D].

    The main merger normalises the patches, the DeepStack mergers the merged squares.
    """

    def __init__(self, c: VisionConfig, *, norm_merged: bool, rngs: nnx.Rngs):
        self.merged = c.dim * c.merge**2
        self.norm_merged = norm_merged
        self.norm = LayerNorm(self.merged if norm_merged else c.dim, NORM_EPS)
        self.up = Linear(self.merged, self.merged, bias=True, rngs=rngs)
        self.down = Linear(self.merged, c.out_dim, bias=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        squares = (*x.shape[:-2], -1, self.merged)
        x = self.norm(x.reshape(squares)) if self.norm_merged else self.norm(x).reshape(squares)
        return self.down(merger_gelu(self.up(x)))


class VisionTower(nnx.Module):
    """Patches of images to features of the text decoder (`transformers modeling_qwen3_vl.py`)."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs):
        self.config = c
        self.patch = Linear(c.patch_size, c.dim, bias=True, rngs=rngs)
        self.positions = Embedding(c.side**2, c.dim, rngs=rngs)
        self.blocks = stack_blocks(lambda rngs: VisionBlock(c, rngs=rngs), c.layers, rngs)
        self.merger = Merger(c, norm_merged=False, rngs=rngs)
        make_merger = lambda rngs: Merger(c, norm_merged=True, rngs=rngs)
        self.deep_mergers = stack_blocks(make_merger, len(c.taps), rngs) if c.taps else None

    def __call__(self, patches: jax.Array, grid: VisionGrid) -> VisionFeatures:
        """Patches [I, P, channel x frame x row x column] in -1..1, padded as `grid` says -> features.

        Computes in the dtype of `patches`.
        """
        last, taps = self.hidden(patches, grid)
        main = self.merger(last)
        if self.deep_mergers is None:
            return VisionFeatures(main, jnp.zeros((0, *main.shape), main.dtype))
        _, deep = scan_blocks(self.deep_mergers, lambda merger, carry, tap: (carry, merger(tap)), None, taps)
        return VisionFeatures(main, deep)

    def hidden(self, patches: jax.Array, grid: VisionGrid) -> tuple[jax.Array, jax.Array]:
        """Outputs of the last block [I, P, C] and of the tapped blocks [K, I, P, C]."""
        c = self.config
        table = self.positions(grid.corners).astype(jnp.float32)  # I P 4 C
        x = self.patch(patches) + jnp.einsum("ipkc,ipk->ipc", table, grid.weights).astype(patches.dtype)
        x = constrain(x, BATCH)
        angles = grid.coords.astype(jnp.float32)[..., None] * inverse_frequencies(c.dim // c.heads // 2, ROPE_THETA)
        angles = angles.reshape(*angles.shape[:2], -1)  # rows first, then columns: I P H/2
        segments = grid.valid.astype(jnp.int32)
        where = jnp.array(c.taps, jnp.int32)[:, None, None, None]

        def block(block: VisionBlock, carry: Any, layer: jax.Array) -> tuple[Any, None]:
            x, taps = carry
            x = constrain(block(x, angles, segments), BATCH)
            return (x, jnp.where(where == layer, x, taps)), None

        taps = jnp.zeros((len(c.taps), *x.shape), x.dtype)
        carry, _ = scan_blocks(self.blocks, block, (x, taps), jnp.arange(c.layers), keep=(KEPT,))
        return carry
