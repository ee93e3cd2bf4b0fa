"""Cutting ragged attention into blocks, and which blocks a kernel may skip.

Segments and positions are data, so what to skip is found on the device, from a few numbers per block (its smallest and
largest segment and position): tables that grow with T + S. They tell a kernel, before it fetches anything, the stretch
of blocks that can matter, and in each step whether the block is empty, mixed or wholly visible.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from spatialreward_jax.kernels.xla import Inputs

LANES = 128


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Rows of a block of queries and of keys, at most; multiples of 128."""

    queries: int
    keys: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one call is cut.

    Attributes:
      sizes: the block sizes in use.
      queries, keys: padded lengths, multiples of the block sizes.
      query_table: int32 [6, B * query blocks]: first and last key block of interest, smallest and largest segment,
        smallest and largest position.
      key_table: int32 [4, B * key blocks]: first and last query block of interest, smallest and largest segment.
      query_rows: int32 [B, 2, queries], segment and position (at most S - 1) of each query.
      key_rows: int32 [B, 1, keys], segment of each key.
    """

    sizes: Sizes
    queries: int
    keys: int
    query_table: jax.Array
    key_table: jax.Array
    query_rows: jax.Array
    key_rows: jax.Array

    @property
    def query_blocks(self) -> int:
        """Blocks of queries of one row."""
        return self.queries // self.sizes.queries

    @property
    def key_blocks(self) -> int:
        """Blocks of keys of one row."""
        return self.keys // self.sizes.keys

    def key_block(self, query_table, b, i, j):
        """The key block to hold at step j of query block i: j, kept within what matters, so that nothing else moves."""
        at = b * self.query_blocks + i
        return jnp.clip(j, query_table[0, at], query_table[1, at])

    def query_block(self, key_table, b, i, j):
        """The same for a kernel that walks over query blocks i with a fixed key block j."""
        at = b * self.key_blocks + j
        return jnp.clip(i, key_table[0, at], key_table[1, at])

    def cost(self, inputs: Inputs, products: int) -> pl.CostEstimate:
        """Upper bounds for a kernel that multiplies matrices `products` times per pair of blocks, none skipped."""
        b, _, n, h = inputs.q.shape
        pairs = b * n * self.queries * self.keys
        width = h * inputs.q.dtype.itemsize
        moved = b * n * width * (2 * self.queries + 2 * self.keys * self.query_blocks)
        return pl.CostEstimate(flops=2 * products * h * pairs, transcendentals=pairs, bytes_accessed=moved)

    def each_case(self, query_table, key_table, b, i, j, step) -> None:
        """Runs step(masked=...) for a block pair: not at all, with the mask, or without where all is visible."""
        at, kt = b * self.query_blocks + i, b * self.key_blocks + j
        low, high = query_table[2, at], query_table[3, at]
        key_low, key_high = key_table[2, kt], key_table[3, kt]
        start = j * self.sizes.keys
        run = (query_table[5, at] >= start) & (low <= key_high) & (key_low <= high)
        whole = (query_table[4, at] >= start + self.sizes.keys - 1) & (low == key_high) & (key_low == high)
        pl.when(run & ~whole)(lambda: step(True))
        pl.when(run & whole)(lambda: step(False))


def plan(inputs: Inputs, most: Sizes) -> Plan:
    """Cuts a call whose segments and positions are both present."""
    (q_segments, k_segments), positions = inputs.segments, inputs.positions
    b, t = q_segments.shape
    s = k_segments.shape[1]
    sizes = Sizes(_block(t, most.queries), _block(s, most.keys))
    queries, keys = _up(t, sizes.queries), _up(s, sizes.keys)
    pad = lambda x, size: jnp.pad(x, ((0, 0), (0, size - x.shape[1])), mode="edge")  # keeps blocks of one kind whole
    q_segments, k_segments = pad(q_segments, queries), pad(k_segments, keys)
    positions = pad(jnp.minimum(positions, s - 1), queries)
    by_query = [x.reshape(b, -1, sizes.queries) for x in (q_segments, positions)]
    ends = [f(axis=-1) for x in by_query for f in (x.min, x.max)]
    by_key = k_segments.reshape(b, -1, sizes.keys)
    key_ends = [by_key.min(axis=-1), by_key.max(axis=-1)]
    starts = jnp.arange(keys // sizes.keys) * sizes.keys
    wide = [x[:, :, None] for x in ends]
    meet = (wide[3] >= starts) & (wide[0] <= key_ends[1][:, None]) & (key_ends[0][:, None] <= wide[1])
    flat = lambda rows: jnp.stack([x.reshape(-1) for x in rows]).astype(jnp.int32)
    return Plan(
        sizes,
        queries,
        keys,
        query_table=flat([*_reach(meet), *ends]),
        key_table=flat([*_reach(meet.swapaxes(1, 2)), *key_ends]),
        query_rows=jnp.stack([q_segments, positions], axis=1).astype(jnp.int32),
        key_rows=k_segments[:, None].astype(jnp.int32),
    )


def pad(inputs: Inputs, plan: Plan) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q, k, v with heads before rows, [B, N, T, H], and rows padded to whole blocks."""
    lengths = (plan.queries, plan.keys, plan.keys)
    return tuple(
        jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)))
        for x, length in zip(inputs[:3], lengths)
    )


def _reach(meet):
    """First and last True along the last axis; 0 and 0 where there is none."""
    size = meet.shape[-1]
    first = jnp.argmax(meet, axis=-1)
    last = size - 1 - jnp.argmax(meet[..., ::-1], axis=-1)
    return first, jnp.where(meet.any(axis=-1), last, 0)


def _block(length, most):
    """The multiple of 128 that cuts `length` into as few blocks as `most` allows, with the least padding."""
    return _up(-(-length // -(-length // most)), LANES)


def _up(x, step):
    return -(-x // step) * step
