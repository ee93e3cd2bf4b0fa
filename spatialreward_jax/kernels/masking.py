"""Which query sees which key, and how a call is split over a mesh: what all attention backends share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from spatialreward_jax.mesh import BATCH

Segments = tuple[jax.Array, jax.Array]

HIDDEN = -0.7 * float(np.finfo(np.float32).max)
"""Score of an invisible key: far below any real score, yet `HIDDEN - HIDDEN` is 0 and not NaN."""


def visible(segments: Segments | None, positions: jax.Array | None, keys: int) -> jax.Array | None:
    """bool [B, T, S]: equal segment ids and key index <= position; None where every query sees every key."""
    mask = None
    if segments is not None:
        mask = segments[0][:, :, None] == segments[1][:, None, :]
    if positions is not None:
        causal = jnp.arange(keys) <= positions[:, :, None]
        mask = causal if mask is None else mask & causal
    return mask


def per_shard(fn: Callable, inputs: tuple[str, ...], outputs: tuple[str, ...], batch: int, heads: tuple[int, ...]):
    """`fn` on each device's own rows and heads: a custom call cannot be split by XLA's partitioner.

    Args:
      fn: takes and returns arrays whose axes the next two arguments spell.
      inputs: one word per argument, a letter per axis: `b` batch, `h` heads (query or key heads), `.` whole.
      outputs: the same for the results.
      batch: size of the batch axis; mesh axes that do not divide it leave it whole.
      heads: sizes of all head axes; they split over `tensor` together or not at all, so that groups stay whole.

    Returns:
      `fn` itself outside a mesh context (`jax.set_mesh`), or where the caller is already inside `shard_map`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(kind == AxisType.Manual for kind in mesh.axis_types):
        return fn
    candidates = (BATCH, BATCH[:1], BATCH[1:])
    rows = next((axes for axes in candidates if _divides(mesh, axes, (batch,))), None)
    split = "tensor" if _divides(mesh, ("tensor",), heads) else None
    spec = lambda word: P(*({"b": rows, "h": split, ".": None}[letter] for letter in word))
    return jax.shard_map(
        fn, mesh=mesh, in_specs=tuple(map(spec, inputs)), out_specs=tuple(map(spec, outputs)), check_vma=False
    )


def _divides(mesh, axes, sizes):
    parts = int(np.prod([mesh.shape.get(axis, 1) for axis in axes]))
    return set(axes) <= set(mesh.axis_names) and all(size % parts == 0 for size in sizes)
