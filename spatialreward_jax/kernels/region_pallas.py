"""Region attention as one fused TPU kernel: every block of weights is found once and added up three ways."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from spatialreward_jax.kernels import blocks, pallas_tpu
from spatialreward_jax.kernels.masking import HIDDEN, per_shard
from spatialreward_jax.kernels.region_xla import Call
from spatialreward_jax.kernels.xla import Inputs

SIZES = blocks.Sizes(queries=512, keys=512)
ROWS = 8
"""Sets and regions are padded to this many rows, a tile of the chip."""
RESIDENT_BYTES = 4 * 2**20
"""Key mass of all sets, float32 [Q, S], stays in the chip's fast memory while a head's blocks pass."""


def refuses(call: Call) -> str | None:
    """Why this backend cannot take a call, or None when it can."""
    sets, keys = call.query_sets.shape[1], call.regions.shape[2]
    if 4 * _up(sets, ROWS) * _up(keys, SIZES.keys) > RESIDENT_BYTES:
        return (
            f"{sets} query sets over {keys} keys need over {RESIDENT_BYTES} bytes on the chip; use fewer sets, or xla"
        )
    if _up(call.regions.shape[1], ROWS) > 256:
        return f"{call.regions.shape[1]} regions are over 256; split them, or use xla"
    if any(x.dtype not in (jnp.bfloat16, jnp.float32) for x in call.inputs[:2]):
        return f"it takes bfloat16 and float32, not {call.inputs.q.dtype}; cast, or use xla"
    return None


def forward(call: Call, *, scale: float, interpret: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `region_xla.forward`; `interpret` runs it without a TPU."""
    q, k, _, *masks = pallas_tpu.whole(call.inputs)

    def fn(q, k, q_segments, k_segments, positions, *rest):
        return _forward(Call(Inputs(q, k, k, (q_segments, k_segments), positions), *rest), scale, interpret)

    words = ("b.h.", "b.h.", "b.", "b.", "b.", "b..", "b..", "bh.")
    fn = per_shard(fn, words, ("bh..",) * 3, q.shape[0], (q.shape[2], k.shape[2]))
    return fn(q, k, *masks, *call[1:])


def _forward(call, scale, interpret):
    plan = blocks.plan(call.inputs, SIZES)
    b, t, n, h = call.inputs.q.shape
    keys = call.inputs.k.shape[1]
    bq, bk = plan.sizes.queries, plan.sizes.keys
    pad = lambda x, size: jnp.pad(
        x.astype(jnp.float32), ((0, 0), (0, _up(x.shape[1], ROWS) - x.shape[1]), (0, size - x.shape[2]))
    )
    sets, inside = pad(call.query_sets, plan.queries), pad(call.regions, plan.keys)
    lse = jnp.pad(call.lse, ((0, 0), (0, 0), (0, plan.queries - t)))[:, :, None]
    q, k, _ = blocks.pad(call.inputs, plan)
    rows, regions = sets.shape[1], inside.shape[1]
    head = pallas_tpu.key_head(n // k.shape[1])
    j_of = lambda table, b, i, j: plan.key_block(table, b, i, j)
    by_query = lambda b, n, i, j, *_: (b, n, 0, i)
    out = [(rows, plan.keys), (regions, plan.queries), (regions, plan.queries)]
    key_mass, mass, w_log_w = pl.pallas_call(
        functools.partial(_kernel, plan=plan, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b, n, plan.query_blocks, plan.key_blocks),
            in_specs=[
                pl.BlockSpec((None, None, bq, h), lambda b, n, i, j, *_: (b, n, i, 0)),
                pl.BlockSpec((None, None, bk, h), lambda b, n, i, j, table, _: (b, head(n), j_of(table, b, i, j), 0)),
                pl.BlockSpec((None, rows, bq), lambda b, n, i, j, *_: (b, 0, i)),
                pl.BlockSpec((None, regions, bk), lambda b, n, i, j, table, _: (b, 0, j_of(table, b, i, j))),
                pl.BlockSpec((None, None, 1, bq), by_query),
                pl.BlockSpec((None, 2, bq), lambda b, n, i, j, *_: (b, 0, i)),
                pl.BlockSpec((None, 1, bk), lambda b, n, i, j, table, _: (b, 0, j_of(table, b, i, j))),
            ],
            out_specs=[
                pl.BlockSpec((None, None, rows, plan.keys), lambda b, n, i, j, *_: (b, n, 0, 0)),
                pl.BlockSpec((None, None, regions, bq), by_query),
                pl.BlockSpec((None, None, regions, bq), by_query),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct((b, n, *shape), jnp.float32) for shape in out],
        compiler_params=pallas_tpu.dimensions(2, 2),
        cost_estimate=plan.cost(call.inputs, products=1),
        interpret=interpret,
        name="region_attention",
    )(plan.query_table, plan.key_table, q, k, sets, inside, lse, plan.query_rows, plan.key_rows)
    size = call.regions.shape[1]
    return key_mass[:, :, : call.query_sets.shape[1], :keys], mass[:, :, :size, :t], w_log_w[:, :, :size, :t]


def _kernel(q_table, k_table, q, k, sets, inside, lse, q_rows, k_rows, key_mass, mass, w_log_w, *, plan, scale):
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when((i == 0) & (j == 0))
    def start_head():
        key_mass[...] = jnp.zeros(key_mass.shape, jnp.float32)

    @pl.when(j == 0)
    def start_queries():
        mass[...] = jnp.zeros(mass.shape, jnp.float32)
        w_log_w[...] = jnp.zeros(w_log_w.shape, jnp.float32)

    def step(masked):
        scores = pallas_tpu.block_scores(q[...], k[...], scale, (q_rows, k_rows, j) if masked else None)
        logs = scores - lse[...]
        weights = jnp.exp(logs)
        bk = plan.sizes.keys
        at = pl.ds(pl.multiple_of(j * bk, bk), bk)
        key_mass[:, at] += _exact(sets[...], weights, pallas_tpu.NT)
        mass[...] += _exact(inside[...], weights, pallas_tpu.NN)
        terms = weights * jnp.where(scores > HIDDEN / 2, logs, 0.0) if masked else weights * logs
        w_log_w[...] += _exact(inside[...], terms, pallas_tpu.NN)

    plan.each_case(q_table, k_table, b, i, j, step)


def _exact(x, y, dims):
    return jax.lax.dot_general(x, y, dims, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _up(x, step):
    return -(-x // step) * step
