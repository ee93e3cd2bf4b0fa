"""Every attention backend against the definition, on ragged, causal and cached calls, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.kernels import blocks, cudnn, pallas_tpu, reference, xla
from spatialreward_jax.kernels.attention import attention, attention_with_lse
from spatialreward_jax.kernels.xla import Inputs
from spatialreward_jax.mesh import make_mesh

CASES = {  # B, T, S, N, K, H; which masks
    "editor, ragged, 3 query heads a key head, head 120": ((2, 200, 200, 6, 2, 120), "segments"),
    "vision, padded patches, head 72": ((2, 130, 130, 2, 2, 72), "segments"),
    "vision, whole, head 80": ((1, 150, 150, 2, 2, 80), ""),
    "causal prefill, head 128": ((2, 160, 160, 4, 1, 128), "positions"),
    "extension of a cache, ragged": ((2, 40, 290, 4, 2, 16), "segments positions"),
    "one token against a cache": ((3, 1, 70, 4, 2, 16), "positions"),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for name in ("FORWARD", "BACKWARD"):
        monkeypatch.setattr(pallas_tpu, name, blocks.Sizes(queries=128, keys=128))


def make(shape, masks, seed=0, dtype=jnp.float32) -> Inputs:
    b, t, s, n, k, h = shape
    rng = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(rng.normal(size=x), dtype) for x in ((b, t, n, h), (b, s, k, h), (b, s, k, h)))
    segments = tuple(jnp.asarray(np.sort(rng.integers(0, 3, (b, size)), axis=1), jnp.int32) for size in (t, s))
    if t == s:
        segments = (segments[0], segments[0])
    start = rng.integers(-1, s - t + 1, (b, 1)) if t < s else np.zeros((b, 1), int)
    positions = jnp.asarray(start + np.arange(t), jnp.int32)
    return Inputs(q, k, v, segments if "segments" in masks else None, positions if "positions" in masks else None)


def close(got, want, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1.0, np.abs(y).max()))


@jax.jit
def wanted(inputs):
    """Output, log-sum-exp and gradients by definition."""
    masks = {"segments": inputs.segments, "positions": inputs.positions}

    def both(q, k, v):
        return reference.attention(q, k, v, **masks), reference.probabilities(q, k, **masks)[1]

    (out, lse), pull = jax.vjp(both, *inputs[:3])
    grads = (jnp.cos(3 * out), jnp.sin(lse))
    return out, lse, grads, pull(grads)


def check_passes(inputs, backend, **options):
    """Both passes of a backend module against the definition."""
    scale = inputs.q.shape[-1] ** -0.5
    out, lse, (d_out, d_lse), grads = wanted(inputs)

    @jax.jit
    def passes(inputs, lse, d_out, d_lse):
        got = backend.forward(inputs, scale=scale, **options)
        delta = jnp.einsum("btnh,btnh->bnt", got[0], d_out) - d_lse
        return got, backend.backward(inputs, lse, delta, d_out, scale=scale, **options)

    close(passes(inputs, lse, d_out, d_lse), ((out, lse), grads))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("limit", [2**30, 2**14])
def test_xla(case, limit):
    check_passes(make(*CASES[case]), xla, limit=limit)


@pytest.mark.parametrize("case", [case for case in CASES if "one token" not in case])
def test_pallas_tpu_interpreted(case):
    check_passes(make(*CASES[case]), pallas_tpu, interpret=True)


def test_public_op_and_its_gradients():
    inputs = make((2, 40, 90, 4, 2, 16), "segments positions")
    masks = {"segments": inputs.segments, "positions": inputs.positions}
    out, lse, grads, want = wanted(inputs)
    got, pull = jax.vjp(lambda q, k, v: attention_with_lse(q, k, v, **masks), *inputs[:3])
    close(got, (out, lse))
    close(pull(grads), want)
    close(attention(*inputs[:3], **masks, backend="xla"), out)


def test_gradients_survive_scan_and_remat():
    inputs = make((1, 24, 24, 2, 1, 8), "positions")
    weights = jnp.linspace(0.5, 1.5, 3)

    def stack(op, q):
        layer = lambda x, w: (x + op(x * w, inputs.k, inputs.v, positions=inputs.positions), None)
        return jax.lax.scan(jax.checkpoint(layer), q, weights)[0].sum()

    got, want = (jax.jit(jax.grad(lambda q, op=op: stack(op, q)))(inputs.q) for op in (attention, reference.attention))
    close(got, want)


def test_queries_that_see_nothing_give_zero_and_no_nan():
    inputs = make((1, 20, 20, 2, 2, 8), "")
    hidden = (jnp.full((1, 20), 5, jnp.int32), jnp.zeros((1, 20), jnp.int32))
    for run in (
        lambda i: xla.forward(i, scale=1.0, limit=1),
        lambda i: pallas_tpu.forward(i, scale=1.0, interpret=True),
    ):
        for masked in (inputs._replace(segments=hidden), inputs._replace(positions=jnp.full((1, 20), -1, jnp.int32))):
            out, lse = run(masked)
            assert not out.any() and not lse.any()
    grads = jax.jit(jax.grad(lambda q, k, v: attention(q, k, v, segments=hidden).sum(), (0, 1, 2)))(*inputs[:3])
    assert not any(np.any(np.asarray(g)) for g in grads)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 2e-2)])
def test_sixteen_bits(dtype, tolerance):
    inputs = make((1, 70, 70, 2, 1, 64), "segments", dtype=dtype)
    want = reference.attention(*(x.astype(jnp.float32) for x in inputs[:3]), segments=inputs.segments)
    for got in (
        attention(*inputs[:3], segments=inputs.segments),
        pallas_tpu.forward(inputs, scale=0.125, interpret=True)[0],
    ):
        assert got.dtype == dtype
        close(got, want, tolerance)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)])
def test_sharded_equals_unsharded(sizes):
    inputs = make((8, 18, 18, 4, 2, 8), "segments")

    @jax.jit
    def both(i, grad):
        out, pull = jax.vjp(lambda *x: attention(*x, segments=i.segments), *i[:3])
        return out, pull(grad)

    grad = jnp.cos(3 * inputs.q)
    want = both(inputs, grad)
    mesh = make_mesh(*sizes)
    rows = jax.sharding.PartitionSpec(("data", "fsdp"))
    placed = jax.device_put(inputs, jax.sharding.NamedSharding(mesh, rows))
    with jax.set_mesh(mesh):
        got = both(placed, grad)
        kernel = jax.jit(lambda i: pallas_tpu.forward(i, scale=8**-0.5, interpret=True)[0])(placed)
    close((got, kernel), (want, want[0]))


def test_the_kernel_splits_over_a_mesh():
    inputs = make((8, 18, 18, 4, 2, 8), "segments")
    with jax.set_mesh(make_mesh(2, 2, 2)):
        text = jax.jit(lambda i: pallas_tpu.forward(i, scale=1.0, interpret=True)[0]).lower(inputs).as_text()
    assert "tensor<2x18x2x8xf32>" in text  # a device holds 8 / 4 rows and 4 / 2 heads


def test_programs_for_a_tpu_hold_the_kernel_and_others_do_not():
    inputs = make((1, 32, 32, 2, 1, 16), "positions")
    step = lambda q, k, v: jax.grad(lambda q: attention(q, k, v, positions=inputs.positions).sum())(q)
    lowered = {
        platform: jax.jit(step).trace(*inputs[:3]).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("tpu", "cpu", "cuda")
    }
    assert lowered["tpu"].count("tpu_custom_call") >= 2
    assert "custom_call" not in lowered["cpu"] and "tpu_custom_call" not in lowered["cuda"]


def test_backends_say_why_they_refuse():
    inputs = make((1, 4, 8, 2, 1, 16), "positions")
    with pytest.raises(InputError, match="4 queries are fewer than 16"):
        attention(*inputs[:3], positions=inputs.positions, backend="pallas_tpu")
    with pytest.raises(InputError, match="T x S mask"):
        attention(*inputs[:3], positions=inputs.positions, backend="cudnn")
    with pytest.raises(InputError, match="unknown; choose one of pallas_tpu, cudnn, xla"):
        attention(*inputs[:3], backend="flash")
    assert "bfloat16" in cudnn.refuses(inputs._replace(positions=None))


def test_shapes_that_do_not_fit_are_named():
    inputs = make((1, 4, 8, 2, 1, 16), "")
    with pytest.raises(InputError, match="3 query heads are no multiple of 2"):
        attention(jnp.zeros((1, 4, 3, 8)), jnp.zeros((1, 4, 2, 8)), jnp.zeros((1, 4, 2, 8)))
    with pytest.raises(InputError, match="positions"):
        attention(*inputs[:3], positions=jnp.zeros((1, 5), jnp.int32))
    with pytest.raises(InputError, match="segments"):
        attention(*inputs[:3], segments=(jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4), jnp.int32)))


def test_stretches_keep_to_their_limit():
    assert xla.stretch(1, 8, 1000, 1000, 2**40) == 1000
    size = xla.stretch(2, 16, 4096, 4096, 64 * 2**20)
    assert 4 * 2 * 16 * size * 4096 <= 64 * 2**20 and size >= 16
