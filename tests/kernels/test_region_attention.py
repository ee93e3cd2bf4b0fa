"""Region attention against its definition on ragged multi-image inputs: the three sums, entropies and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.kernels import blocks, region_pallas, region_xla, xla
from spatialreward_jax.kernels.attention import attention_with_lse
from spatialreward_jax.kernels.region_attention import region_attention, region_attention_reference
from spatialreward_jax.mesh import make_mesh

IMAGES = ((70, 50, 90), (120, 40, 0))
"""Patches of each row's images (two sources or one, and the edited image last): ragged, and one image absent."""
TEXT, PAD = 60, 7


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(region_pallas, "SIZES", blocks.Sizes(queries=128, keys=128))


def make(heads=4, kv_heads=2, head=40, seed=0):
    """A causal judge prompt [images | text] padded on the right; queries are the text and some image tokens."""
    rng = np.random.default_rng(seed)
    keys = max(map(sum, IMAGES)) + TEXT + PAD
    b = len(IMAGES)
    queries = 140
    q, k = (rng.normal(size=(b, t, n, head)) for t, n in ((queries, heads), (keys, kv_heads)))
    regions = np.zeros((b, 6, keys), bool)
    segments = np.full((b, keys), 1, np.int32)
    positions = np.zeros((b, queries), np.int32)
    for row, sizes in enumerate(IMAGES):
        stops = np.cumsum([0, *sizes])
        for image in range(3):
            regions[row, image, stops[image] : stops[image + 1]] = True
        regions[row, 3, stops[0] : stops[2]] = True  # all sources together: regions overlap
        regions[row, 4] = regions[row, 2] & (rng.random(keys) < 0.2)  # a box in the edited image
        length = stops[-1] + TEXT
        segments[row, length:] = 0
        positions[row] = np.sort(rng.integers(0, length, queries))
    sets = rng.random((b, 3, queries)) * (rng.random((b, 3, queries)) < 0.2)
    sets /= np.maximum(sets.sum(axis=-1, keepdims=True), 1e-6)
    masks = {
        "segments": (jnp.ones((b, queries), jnp.int32), jnp.asarray(segments)),
        "positions": jnp.asarray(positions),
    }
    arrays = (jnp.asarray(1.5 * q, jnp.float32), jnp.asarray(k, jnp.float32), jnp.asarray(sets, jnp.float32))
    return arrays, jnp.asarray(regions), masks


def close(got, want, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=0, atol=tolerance)


def call_of(arrays, regions, masks):
    q, k, sets = arrays
    lse = attention_with_lse(q, k, k, **masks)[1]
    return region_xla.Call(xla.Inputs(q, k, k, masks["segments"], masks["positions"]), sets, regions, lse)


@pytest.mark.parametrize("limit", [2**30, 2**17])
def test_xla_with_gradients(limit, monkeypatch):
    monkeypatch.setattr(xla, "CPU_BYTES", limit)
    arrays, regions, masks = make()

    def both(op):
        @jax.jit
        def run(arrays):
            out, pull = jax.vjp(lambda q, k, sets: op(q, k, sets, regions, **masks), *arrays)
            grads = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), out)
            return out, pull(grads)

        return run(arrays)

    close(both(region_attention), both(region_attention_reference))


def test_pallas_tpu_interpreted():
    arrays, regions, masks = make()
    kernel = jax.jit(lambda call: region_pallas.forward(call, scale=40**-0.5, interpret=True))
    plain = jax.jit(lambda call: region_xla.forward(call, scale=40**-0.5, limit=2**30))
    call = call_of(arrays, regions, masks)
    close(kernel(call), plain(call))
    want = region_attention_reference(*arrays, regions, **masks)
    close(kernel(call)[:2], (want.key_mass, want.mass.swapaxes(2, 3)))


def test_sums_agree_with_each_other():
    (q, k, sets), regions, masks = make()
    got = region_attention(q, k, sets, regions, **masks)
    by_key = jnp.einsum("bnqs,brs->bnqr", got.key_mass, regions.astype(jnp.float32))
    close(by_key, jnp.einsum("bqt,bntr->bnqr", sets, got.mass))
    close(got.mass[..., 3], got.mass[..., 0] + got.mass[..., 1])
    assert got.mass.max() <= 1 + 1e-5 and got.entropy.min() >= 0
    assert not got.mass[1, :, :, 2].any() and not got.entropy[1, :, :, 2].any()  # the absent image
    sizes = regions.sum(axis=-1)[:, None, None].astype(jnp.float32)
    assert (got.entropy <= jnp.log(jnp.maximum(sizes, 1)) + 1e-4).all()


def test_a_stored_log_sum_exp_gives_the_same():
    (q, k, sets), regions, masks = make()
    lse = attention_with_lse(q, k, k, **masks)[1]
    close(region_attention(q, k, sets, regions, lse=lse, **masks), region_attention(q, k, sets, regions, **masks))


def test_sharded_equals_unsharded():
    arrays, regions, masks = make()
    call = call_of(arrays, regions, masks)
    kernel = lambda call: region_pallas.forward(call, scale=40**-0.5, interpret=True)
    want = region_xla.forward(call, scale=40**-0.5, limit=2**30)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        close(jax.jit(kernel)(call), want)


def test_uniform_attention_has_the_known_entropy():
    q = jnp.zeros((1, 2, 1, 8))
    k = jnp.ones((1, 20, 1, 8))
    regions = jnp.arange(20)[None, None] < jnp.array([5, 20])[None, :, None]
    got = region_attention(q, k, jnp.ones((1, 1, 2)) / 2, regions)
    close(got.mass[0, 0], jnp.array([[0.25, 1.0]] * 2))
    close(got.entropy[0, 0], jnp.log(jnp.array([[5.0, 20.0]] * 2)))
    close(got.key_mass, jnp.full((1, 1, 1, 20), 0.05))


def test_programs_for_a_tpu_hold_the_kernel():
    arrays, regions, masks = make()
    traced = jax.jit(lambda *x: region_attention(*x, regions, **masks)).trace(*arrays)
    assert "region_attention" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "custom_call" not in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_wrong_calls_are_named():
    (q, k, sets), regions, masks = make()
    with pytest.raises(InputError, match="query sets"):
        region_attention(q, k, sets[:, :, 1:], regions, **masks)
    with pytest.raises(InputError, match="want bool"):
        region_attention(q, k, sets, regions.astype(jnp.float32), **masks)
    with pytest.raises(InputError, match="unknown; choose one of pallas_tpu, xla"):
        region_attention(q, k, sets, regions, **masks, backend="cuda")
    with pytest.raises(InputError, match="use fewer sets"):
        many = jnp.zeros((sets.shape[0], 4000, sets.shape[2]))
        region_attention(q, k, many, regions, **masks, backend="pallas_tpu")
