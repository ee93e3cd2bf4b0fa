"""Where chosen tokens look: exact attention per key, per region and per image, without the T x S matrix.

A first pass of attention leaves the log-sum-exp of every query's scores. From it a second pass finds each weight again,
a block at a time, and adds it up three ways: over sets of queries for every key (a heat map), over each region's keys
for every query (how much it looks at a box or an image), and as w log w, which gives the entropy within the region.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spatialreward_jax.errors import InputError
from spatialreward_jax.kernels import reference, region_pallas, region_xla, xla
from spatialreward_jax.kernels.attention import attention_with_lse
from spatialreward_jax.kernels.masking import Segments

BACKENDS = ("pallas_tpu", "xla")


class RegionAttention(NamedTuple):
    """What `region_attention` finds, all float32.

    Attributes:
      key_mass: [B, N, Q, S], the sum over a set's queries of set weight times attention weight, for every key.
      mass: [B, N, T, R], the attention weight that a query gives to a region, in 0..1.
      entropy: [B, N, T, R], nats: entropy of a query's attention renormalised within the region; 0 without any mass.
    """

    key_mass: jax.Array
    mass: jax.Array
    entropy: jax.Array


def region_attention(
    q: jax.Array,
    k: jax.Array,
    query_sets: jax.Array,
    regions: jax.Array,
    *,
    segments: Segments | None = None,
    positions: jax.Array | None = None,
    lse: jax.Array | None = None,
    backend: str | None = None,
) -> RegionAttention:
    """Exact attention of query sets over keys and of queries over regions; memory grows with T + S.

    Scores are q k / sqrt(H), visible as in `attention`. Gradients flow to q, k and query_sets: those of the softmax as
    a function of q and k, whether or not `lse` is given. They are computed by the `xla` backend on every platform.

    Args:
      q: [B, T, N, H] queries of interest (all of a sequence, or a few rows of it with their `positions`).
      k: [B, S, K, H].
      query_sets: float32 [B, Q, T], weight of each query in each set; rows that sum to 1 average.
      regions: bool [B, R, S], the keys of each region: an image, a box in it, anything; regions may overlap.
      segments: int32 ([B, T], [B, S]).
      positions: int32 [B, T].
      lse: float32 [B, N, T] as `attention_with_lse` returns it for these queries; by default it is computed first.
      backend: one of `BACKENDS`; by default the best on the platform of the compiled program.

    Raises:
      InputError: shapes do not fit together, or the backend asked for does not take the call (it says why).
    """
    _check(q, k, query_sets, regions, lse)
    if lse is None:
        masks = {"segments": segments, "positions": positions}
        lse = attention_with_lse(*jax.lax.stop_gradient((q, k, k)), **masks)[1]
    call = region_xla.Call(xla.Inputs(q, k, k, segments, positions), query_sets, regions, lse)
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"region attention backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if backend == "pallas_tpu" and (reason := region_pallas.refuses(call)):
        raise InputError(f"region attention backend {backend}: {reason}")
    key_mass, mass, w_log_w = _sums(_Options(q.shape[-1] ** -0.5, backend), call)
    return RegionAttention(key_mass, mass.swapaxes(2, 3), entropy_within(mass, w_log_w).swapaxes(2, 3))


def entropy_within(mass: jax.Array, w_log_w: jax.Array) -> jax.Array:
    """Entropy in nats of weights renormalised to 1, from their sum and their sum of w log w (arrays of one shape).

    0 where the sum is 0.
    """
    some = mass > 0
    safe = jnp.where(some, mass, 1.0)
    return jnp.where(some, jnp.maximum(jnp.log(safe) - w_log_w / safe, 0.0), 0.0)


def region_attention_reference(
    q: jax.Array,
    k: jax.Array,
    query_sets: jax.Array,
    regions: jax.Array,
    *,
    segments: Segments | None = None,
    positions: jax.Array | None = None,
) -> RegionAttention:
    """`region_attention` by definition, from the whole T x S matrix."""
    weights, _ = reference.probabilities(q, k, segments=segments, positions=positions)
    w_log_w = weights * jnp.log(jnp.where(weights > 0, weights, 1.0))
    inside = regions.astype(jnp.float32)
    mass = jnp.einsum("bnts,brs->bntr", weights, inside)
    entropy = entropy_within(mass, jnp.einsum("bnts,brs->bntr", w_log_w, inside))
    return RegionAttention(jnp.einsum("bqt,bnts->bnqs", query_sets, weights), mass, entropy)


@dataclasses.dataclass(frozen=True)
class _Options:
    scale: float
    backend: str | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(options, call):
    return _forward(options, call)


def _forward(options, call):
    """Key mass [B, N, Q, S], mass and sum of w log w [B, N, R, T]."""
    on_cpu, on_device = _by_memory(region_xla.forward, options)
    kernel = functools.partial(region_pallas.forward, scale=options.scale)
    if options.backend == "pallas_tpu":
        return kernel(call)
    fused = {"tpu": kernel} if options.backend is None and region_pallas.refuses(call) is None else {}
    return jax.lax.platform_dependent(call, cpu=on_cpu, default=on_device, **fused)


def _backward(options, call, grads):
    on_cpu, on_device = _by_memory(region_xla.backward, options)
    dq, dk, d_sets = jax.lax.platform_dependent(call, *grads, cpu=on_cpu, default=on_device)
    inputs = xla.Inputs(dq, dk, jnp.zeros_like(dk), None, None)
    return (region_xla.Call(inputs, d_sets, None, jnp.zeros_like(call.lse)),)


_sums.defvjp(lambda options, call: (_forward(options, call), call), _backward)


def _by_memory(fn, options):
    return tuple(functools.partial(fn, scale=options.scale, limit=x) for x in (xla.CPU_BYTES, xla.DEVICE_BYTES))


def _check(q, k, query_sets, regions, lse):
    if q.ndim != 4 or k.ndim != 4 or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3] or q.shape[2] % k.shape[2]:
        raise InputError(f"region attention: q {q.shape} and k {k.shape} do not fit [B, T, N, H] and [B, S, K, H]")
    b, t, n, _ = q.shape
    if query_sets.ndim != 3 or query_sets.shape[::2] != (b, t):
        raise InputError(f"region attention: query sets {query_sets.shape}, want [{b}, sets, {t}]")
    if regions.ndim != 3 or regions.shape[::2] != k.shape[:2] or regions.dtype != jnp.bool_:
        raise InputError(
            f"region attention: regions {regions.dtype}{list(regions.shape)}, want bool [{b}, regions, {k.shape[1]}]"
        )
    if lse is not None and lse.shape != (b, n, t):
        raise InputError(f"region attention: lse {lse.shape}, want {(b, n, t)}")
