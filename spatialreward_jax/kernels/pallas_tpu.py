"""Fused attention for TPUs, forward and backward, in Pallas.

Why not the splash kernel that ships with jax: its masks are fixed when a program is traced, and ours are data (a cached
prefill's `positions` differ by row; a ragged batch's segments decide which blocks to skip); its fully masked queries
return the mean of the values where ours return 0; it wants lengths that are multiples of 128; and it keeps the
log-sum-exp to itself when it is differentiated, which `region_attention` needs. Tokamax wraps the same kernel and takes
no grouped queries.

Layout: scores stand transposed, keys x queries. So what belongs to a query (maximum, sum, log-sum-exp, segment,
position) is a row that broadcasts over sublanes; softmax reductions run over sublanes, and rows go to memory without
the 128-fold padding that columns need. Blocks of keys that no query of a block can see are neither fetched nor
computed, whatever the data; blocks that every query sees whole skip the mask (`blocks.py`). Head sizes need no
padding in the program: 72, 80 and 120 are legal block widths, and the chip pads them to 128 lanes in its tiles.

XLA cannot split a kernel over devices: programs for several run in a mesh context (`jax.set_mesh`), where each device
gets its own rows and heads. Heads stay whole where query and key heads do not both divide (21 and 7 over a `tensor`
axis of 2): the devices of that axis then do the same work, which is exact and costs only time.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from spatialreward_jax.kernels import blocks
from spatialreward_jax.kernels.masking import HIDDEN, per_shard
from spatialreward_jax.kernels.xla import Inputs

NN = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))
TN = (((0,), (0,)), ((), ()))
SMALLEST = 16
"""Fewer queries than this are a matrix-vector product that reads the cache once: XLA does that at memory speed."""

FORWARD = blocks.Sizes(queries=512, keys=1024)
BACKWARD = blocks.Sizes(queries=512, keys=512)


def refuses(inputs: Inputs) -> str | None:
    """Why this backend cannot take a call, or None when it can."""
    q = inputs.q
    if q.shape[1] < SMALLEST:
        return f"{q.shape[1]} queries are fewer than {SMALLEST}: decoding is bound by memory; use xla"
    if q.shape[-1] > 256:
        return f"head size {q.shape[-1]} is over 256; use xla"
    if any(x.dtype not in (jnp.bfloat16, jnp.float32) for x in inputs[:3]):
        return f"it takes bfloat16 and float32, not {q.dtype}; cast, or use xla"
    return None


def forward(inputs: Inputs, *, scale: float, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """Output [B, T, N, H] in q's dtype and log-sum-exp [B, N, T] float32; `interpret` runs it without a TPU."""
    q, k = inputs.q, inputs.k
    fn = lambda *args: _forward(Inputs(*args[:3], *_rest(args[3:])), scale, interpret)
    words = ("b.h.", "b.h.", "b.h.", "b.", "b.", "b.")
    fn = per_shard(fn, words, ("b.h.", "bh."), q.shape[0], (q.shape[2], k.shape[2]))
    return fn(*whole(inputs))


def backward(
    inputs: Inputs, lse: jax.Array, delta: jax.Array, grad: jax.Array, *, scale: float, interpret: bool = False
):
    """Gradients of q, k, v; arguments as in `xla.backward`."""
    q, k = inputs.q, inputs.k
    fn = lambda lse, delta, grad, *args: _backward(
        Inputs(*args[:3], *_rest(args[3:])), lse, delta, grad, scale, interpret
    )
    words = ("bh.", "bh.", "b.h.", "b.h.", "b.h.", "b.h.", "b.", "b.", "b.")
    fn = per_shard(fn, words, ("b.h.",) * 3, q.shape[0], (q.shape[2], k.shape[2]))
    return fn(lse, delta, grad, *whole(inputs))


def whole(inputs: Inputs) -> tuple[jax.Array, ...]:
    """All six arrays: absent segments are one segment, absent positions see every key."""
    q, k, v, segments, positions = inputs
    if segments is None:
        segments = (jnp.zeros(q.shape[:2], jnp.int32), jnp.zeros(k.shape[:2], jnp.int32))
    if positions is None:
        positions = jnp.full(q.shape[:2], k.shape[1] - 1, jnp.int32)
    return q, k, v, *segments, positions


def _rest(args):
    return (args[0], args[1]), args[2]


def _forward(inputs, scale, interpret):
    plan = blocks.plan(inputs, FORWARD)
    b, t, n, h = inputs.q.shape
    bq, bk = plan.sizes.queries, plan.sizes.keys
    query = lambda b, n, i, j, table, _: (b, n, i, 0)
    row = lambda b, n, i, j, table, _: (b, n, 0, i)
    head = key_head(n // inputs.k.shape[2])
    key = lambda b, n, i, j, table, _: (b, head(n), plan.key_block(table, b, i, j), 0)
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, plan=plan, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b, n, plan.query_blocks, plan.key_blocks),
            in_specs=[
                pl.BlockSpec((None, None, bq, h), query),
                pl.BlockSpec((None, None, bk, h), key),
                pl.BlockSpec((None, None, bk, h), key),
                pl.BlockSpec((None, 2, bq), lambda b, n, i, j, table, _: (b, 0, i)),
                pl.BlockSpec((None, 1, bk), lambda b, n, i, j, table, _: (b, 0, plan.key_block(table, b, i, j))),
            ],
            out_specs=[pl.BlockSpec((None, None, bq, h), query), pl.BlockSpec((None, None, 1, bq), row)],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in ((1, bq), (1, bq), (h, bq))],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((b, n, plan.queries, h), inputs.q.dtype),
            jax.ShapeDtypeStruct((b, n, 1, plan.queries), jnp.float32),
        ],
        compiler_params=dimensions(3, 1),
        cost_estimate=plan.cost(inputs, products=2),
        interpret=interpret,
        name="attention_forward",
    )(plan.query_table, plan.key_table, *blocks.pad(inputs, plan), plan.query_rows, plan.key_rows)
    return out[:, :, :t].swapaxes(1, 2), lse[:, :, 0, :t]


def _forward_kernel(q_table, k_table, q, k, v, q_rows, k_rows, out, lse, top, total, acc, *, plan, scale):
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def start():
        top[...] = jnp.full(top.shape, HIDDEN, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        acc[...] = jnp.zeros(acc.shape, jnp.float32)

    def step(masked):
        scores = block_scores(q[...], k[...], scale, (q_rows, k_rows, j) if masked else None)
        new = jnp.maximum(top[...], scores.max(axis=0, keepdims=True))
        weights = jnp.exp(scores - new)
        shrink = jnp.exp(top[...] - new)
        top[...] = new
        total[...] = total[...] * shrink + weights.sum(axis=0, keepdims=True)
        update = dot(v[...], weights.astype(v.dtype), TN)
        acc[...] = acc[...] * shrink + update

    plan.each_case(q_table, k_table, b, i, j, step)

    @pl.when(j == plan.key_blocks - 1)
    def end():
        some = top[...] > HIDDEN / 2
        out[...] = jnp.where(some, acc[...] / total[...], 0.0).T.astype(out.dtype)
        lse[...] = jnp.where(some, top[...] + jnp.log(total[...]), 0.0)


def dot(x: jax.Array, y: jax.Array, dims: tuple) -> jax.Array:
    """Matrix product with float32 sums; only float32 factors heed `jax.default_matmul_precision`."""
    precision = None if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(x, y, dims, precision=precision, preferred_element_type=jnp.float32)


def block_scores(q, k, scale: float, masks: tuple | None) -> jax.Array:
    """Scores [bk, bq] float32 of blocks q [bq, H] and k [bk, H]; `masks`: (query rows, key rows, key block)."""
    scores = dot(k, q, NT) * scale
    if masks is None:
        return scores
    q_rows, k_rows, j = masks
    index = j * k.shape[0] + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    seen = (q_rows[:1] == k_rows[...].T) & (index <= q_rows[1:2])
    return jnp.where(seen, scores, HIDDEN)


def _backward(inputs, lse, delta, grad, scale, interpret):
    plan = blocks.plan(inputs, BACKWARD)
    t = inputs.q.shape[1]
    queries = ((0, 0), (0, 0), (0, plan.queries - t))
    rows = jnp.pad(jnp.stack([lse, delta], axis=2), ((0, 0), *queries))
    grad = jnp.pad(grad.swapaxes(1, 2).astype(inputs.q.dtype), (*queries, (0, 0)))
    args = (*blocks.pad(inputs, plan), grad, rows, plan.query_rows, plan.key_rows)
    dq = _query_gradient(plan, args, scale, interpret, plan.cost(inputs, products=3))
    dk, dv = _key_gradient(plan, args, scale, interpret, plan.cost(inputs, products=4))
    keys = inputs.k.shape[1]
    return tuple(x.swapaxes(1, 2)[:, :size] for x, size in ((dq, t), (dk, keys), (dv, keys)))


def _gradient_specs(plan, h, query, key):
    """Block specs of (q, k, v, grad, rows, query rows, key rows) from index maps to (b, n, i) and (b, k, j)."""
    bq, bk = plan.sizes.queries, plan.sizes.keys
    whole = lambda index, *last: lambda *ids: (*index(*ids)[:2], *(x if x == 0 else index(*ids)[2] for x in last))
    return [
        pl.BlockSpec((None, None, bq, h), whole(query, None, 0)),
        pl.BlockSpec((None, None, bk, h), whole(key, None, 0)),
        pl.BlockSpec((None, None, bk, h), whole(key, None, 0)),
        pl.BlockSpec((None, None, bq, h), whole(query, None, 0)),
        pl.BlockSpec((None, None, 2, bq), whole(query, 0, None)),
        pl.BlockSpec((None, 2, bq), lambda *ids: (query(*ids)[0], 0, query(*ids)[2])),
        pl.BlockSpec((None, 1, bk), lambda *ids: (key(*ids)[0], 0, key(*ids)[2])),
    ]


def _query_gradient(plan, args, scale, interpret, cost):
    b, n, _, h = args[0].shape
    query = lambda b, n, i, j, *_: (b, n, i)
    head = key_head(n // args[1].shape[1])
    key = lambda b, n, i, j, table, _: (b, head(n), plan.key_block(table, b, i, j))
    bq = plan.sizes.queries
    return pl.pallas_call(
        functools.partial(_query_gradient_kernel, plan=plan, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b, n, plan.query_blocks, plan.key_blocks),
            in_specs=_gradient_specs(plan, h, query, key),
            out_specs=pl.BlockSpec((None, None, bq, h), lambda *ids: (*query(*ids), 0)),
            scratch_shapes=[pltpu.VMEM((h, bq), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(args[0].shape, args[0].dtype),
        compiler_params=dimensions(3, 1),
        cost_estimate=cost,
        interpret=interpret,
        name="attention_query_gradient",
    )(plan.query_table, plan.key_table, *args)


def _query_gradient_kernel(q_table, k_table, q, k, v, grad, rows, q_rows, k_rows, dq, acc, *, plan, scale):
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def start():
        acc[...] = jnp.zeros(acc.shape, jnp.float32)

    def step(masked):
        masks = (q_rows, k_rows, j) if masked else None
        _, d_scores = _score_gradient(q[...], k[...], v[...], grad[...], rows, scale, masks)
        acc[...] += dot(k[...], d_scores.astype(k.dtype), TN)

    plan.each_case(q_table, k_table, b, i, j, step)

    @pl.when(j == plan.key_blocks - 1)
    def end():
        dq[...] = acc[...].T.astype(dq.dtype)


def _key_gradient(plan, args, scale, interpret, cost):
    b, n, _, h = args[0].shape
    kv_heads = args[1].shape[1]
    group = n // kv_heads
    query = lambda b, kv, j, g, i, _, table: (b, kv * group + g, plan.query_block(table, b, i, j))
    key = lambda b, kv, j, *_: (b, kv, j)
    bk = plan.sizes.keys
    out = pl.BlockSpec((None, None, bk, h), lambda *ids: (*key(*ids), 0))
    return pl.pallas_call(
        functools.partial(_key_gradient_kernel, plan=plan, scale=scale, group=group),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b, kv_heads, plan.key_blocks, group, plan.query_blocks),
            in_specs=_gradient_specs(plan, h, query, key),
            out_specs=[out, out],
            scratch_shapes=[pltpu.VMEM((bk, h), jnp.float32)] * 2,
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in args[1:3]],
        compiler_params=dimensions(3, 2),
        cost_estimate=cost,
        interpret=interpret,
        name="attention_key_gradient",
    )(plan.query_table, plan.key_table, *args)


def _key_gradient_kernel(
    q_table, k_table, q, k, v, grad, rows, q_rows, k_rows, dk, dv, dk_acc, dv_acc, *, plan, scale, group
):
    b, j, g, i = pl.program_id(0), pl.program_id(2), pl.program_id(3), pl.program_id(4)

    @pl.when((g == 0) & (i == 0))
    def start():
        dk_acc[...] = jnp.zeros(dk_acc.shape, jnp.float32)
        dv_acc[...] = jnp.zeros(dv_acc.shape, jnp.float32)

    def step(masked):
        masks = (q_rows, k_rows, j) if masked else None
        weights, d_scores = _score_gradient(q[...], k[...], v[...], grad[...], rows, scale, masks)
        dv_acc[...] += dot(weights.astype(grad.dtype), grad[...], NN)
        dk_acc[...] += dot(d_scores.astype(q.dtype), q[...], NN)

    plan.each_case(q_table, k_table, b, i, j, step)

    @pl.when((g == group - 1) & (i == plan.query_blocks - 1))
    def end():
        dk[...] = dk_acc[...].astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)


def _score_gradient(q, k, v, grad, rows, scale, masks):
    """(weights, gradient of unscaled scores), both [bk, bq] float32."""
    weights = jnp.exp(block_scores(q, k, scale, masks) - rows[:1])
    d_weights = dot(v, grad, NT)
    return weights, weights * (d_weights - rows[1:2]) * scale


def key_head(group: int):
    """Query head -> key head, for index maps."""
    # Python's // would floor, whose sign test asks for the chip's generation: unknown when compiling without one
    return lambda n: n if group == 1 else jax.lax.div(n, group)


def dimensions(free: int, ordered: int) -> pltpu.CompilerParams:
    """Leading grid axes that chip cores may share, and trailing ones whose steps follow each other."""
    return pltpu.CompilerParams(dimension_semantics=("parallel",) * free + ("arbitrary",) * ordered)
