"""The transformer as the velocity function that `flow` and `rl` take."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spatialreward_jax.mesh import BATCH, constrain
from spatialreward_jax.models import lora
from spatialreward_jax.models.omnigen2 import Conditioning


def velocity_fn(graphs: lora.Graphs, adapters: Any | None, base: Any, dtype: Any) -> Callable:
    """velocity(x [*lead, T, C], t [*lead], cond) -> float32 [*lead, T, C], computed in `dtype`.

    `cond` leads with a prefix of the samples' axes: [P, ...] for samples [P, G, ...]. Without adapters it is the
    reference policy.
    """

    def velocity(x: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        lead = x.shape[:-2]
        flat = constrain(x.reshape(-1, *x.shape[-2:]), BATCH)
        rows = cond.repeat(flat.shape[0] // cond.text.shape[0])
        v = lora.apply(graphs, adapters, base, flat.astype(dtype), t.reshape(-1), rows)
        return v.astype(jnp.float32).reshape(*lead, *x.shape[-2:])

    return velocity
