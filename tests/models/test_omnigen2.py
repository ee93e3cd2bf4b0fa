"""The editor's transformer: reference arrays, invariances, planted faults, shardings, published sizes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialreward_jax import mesh as meshes
from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation import golden_checks
from spatialreward_jax.evaluation.golden_checks import transformer as transformer_check
from spatialreward_jax.io.weights import check_table
from spatialreward_jax.models import omnigen2
from spatialreward_jax.models.omnigen2 import blocks, rope
from spatialreward_jax.models.omnigen2.model import timestep_sinusoid

FILE = "omnigen2_transformer.npz"
TINY = omnigen2.OmniGen2Config(
    hidden_size=24,
    num_layers=2,
    num_refiner_layers=1,
    num_attention_heads=2,
    num_kv_heads=1,
    multiple_of=8,
    axes_dim_rope=(4, 4, 4),
    axes_lens=(64, 32, 32),
    text_feat_dim=10,
    in_channels=2,
    timestep_scale=1000.0,
)


def make(config=TINY):
    return omnigen2.OmniGen2Transformer(config, rngs=nnx.Rngs(0))


def abstract(config):
    return nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: make(config)))[1])


def published(goldens):
    file = json.loads((goldens / "published" / "omnigen2_transformer.json").read_text())
    return omnigen2.OmniGen2Config.from_dict(file["config"]), file["tensors"]


@pytest.fixture(scope="module")
def net():
    """(random parameters, jitted function)."""
    rng, (graph, state) = np.random.default_rng(1), nnx.split(nnx.eval_shape(make))
    draw = lambda x: jnp.asarray(rng.normal(0.1 if x.ndim < 3 else 0.0, 0.15, x.shape), jnp.float32)
    params = jax.tree.map(draw, nnx.to_pure_dict(state))
    return params, jax.jit(lambda params, *args: nnx.merge(graph, params)(*args))


def request(seed=0, refs=(((3, 2), (2, 2)), ((1, 4),)), targets=((2, 3), (3, 3)), lengths=(5, 3)):
    """Random inputs: patch sizes of each sample's references and target, and text lengths -> (x, t, conditioning)."""
    rng = np.random.default_rng(seed)
    latent = lambda size: rng.normal(size=(2 * size[0], 2 * size[1], TINY.in_channels)).astype(np.float32)
    x, sizes = omnigen2.pack_images([latent(s) for s in targets])
    tokens, ref_sizes = omnigen2.pack_references([[latent(s) for s in r] for r in refs], channels=TINY.in_channels)
    text = rng.normal(size=(len(refs), max(lengths), TINY.text_feat_dim)).astype(np.float32)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    cond = omnigen2.Conditioning(text, mask, tokens, ref_sizes, sizes)
    return jnp.asarray(x), jnp.asarray(rng.uniform(size=len(refs)), jnp.float32), jax.tree.map(jnp.asarray, cond)


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-5 * float(jnp.abs(b).max()))


def differs(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max()) > 1e-3


# Reference arrays


@pytest.mark.slow
def test_goldens(goldens):
    rows = golden_checks.check_file(golden_checks.Goldens(goldens), FILE)
    assert [r for r in rows if not r.ok] == []
    assert {"a_velocity_0", "b_velocity_lora_2", "c_position_ids"} <= {r.array for r in rows if r.status == "compared"}


def _errors(goldens, base=None):
    """Share of its tolerance that each velocity of case b uses up."""
    checks = golden_checks.Goldens(goldens)
    if base is not None:
        checks.transformer = checks.transformer._replace(params=base(checks.transformer.params))
    with np.load(goldens / FILE) as arrays:
        case_b = {n: arrays[n] for n in arrays.files if n.startswith("b_") and "lora" not in n}
    case = golden_checks.Case(FILE, case_b, checks.settings["tolerance"][FILE])
    transformer_check.check(case, checks)
    return np.array([r.max_error / r.tolerance for r in case.rows if "velocity" in r.array])


def test_dropped_index_embedding_breaks_parity(goldens):
    errors = _errors(goldens, lambda p: {**p, "index_embedding": jnp.zeros_like(p["index_embedding"])})
    assert errors[0] < 1 < errors[1:].min()  # sample 0 has no reference


def test_gates_without_tanh_break_parity(goldens, monkeypatch):
    monkeypatch.setattr(blocks.jnp, "tanh", lambda x: x)
    assert _errors(goldens).min() > 1


def test_leaking_text_padding_breaks_parity(goldens, monkeypatch):
    original = rope.masks
    monkeypatch.setattr(rope, "masks", lambda *a: original(*a)._replace(text=jnp.ones_like(a[0].text_mask)))
    assert _errors(goldens).max() > 1


def test_sinusoid_rounds_as_the_reference():
    t = np.random.default_rng(0).uniform(size=64).astype(np.float32)
    exponent = np.float32(-np.log(10000.0)) * np.arange(128, dtype=np.float32) / np.float32(128)
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = ((t[:, None] * frequency) * np.float32(1000)).astype(np.float64)
    ours = jax.jit(lambda t: timestep_sinusoid(t, 1000.0))(t)
    assert np.abs(ours - np.concatenate([np.cos(angle), np.sin(angle)], axis=1)).max() < 5e-7


# Invariances


def test_padding_has_no_influence(net):
    params, run = net
    x, t, cond = request()
    pad = lambda a, n, axis: jnp.pad(a, [(0, n if i == axis else 0) for i in range(a.ndim)], constant_values=7)
    wide = dataclasses.replace(
        cond,
        text=pad(cond.text, 4, 1),
        text_mask=jnp.pad(cond.text_mask, ((0, 0), (0, 4))),
        refs=pad(pad(cond.refs, 3, 2), 1, 1),
        ref_sizes=jnp.pad(cond.ref_sizes, ((0, 0), (0, 1), (0, 0))),
    )
    out = run(params, pad(x, 5, 1), t, wide)
    close(out[:, : x.shape[1]], run(params, x, t, cond))
    assert not out[~np.asarray(cond.target_mask(out.shape[1]))].any()


def test_batch_has_no_influence(net):
    params, run = net
    x, t, cond = request()
    for i in range(2):
        one = jax.tree.map(lambda a, i=i: a[i : i + 1], cond)
        close(run(params, x[i : i + 1], t[i : i + 1], one)[0], run(params, x, t, cond)[i])


def test_absent_references_equal_no_slots(net):
    params, run = net
    x, t, cond = request()
    absent = dataclasses.replace(cond, ref_sizes=jnp.zeros_like(cond.ref_sizes))
    close(run(params, x, t, absent), run(params, x, t, cond.without_references()))
    assert differs(run(params, x, t, cond), run(params, x, t, absent))


def test_order_of_references_matters(net):
    params, run = net
    x, t, cond = request(refs=(((2, 2), (2, 2)), ((2, 2), (2, 2))))
    swapped = dataclasses.replace(cond, refs=cond.refs[:, ::-1])
    assert differs(run(params, x, t, cond), run(params, x, t, swapped))


def test_references_are_refined_alone(net):
    """A second reference must not change the first one's refined tokens."""
    params, _ = net
    graph = nnx.split(nnx.eval_shape(make))[0]

    @jax.jit
    def refine(params, cond):
        model, masks = nnx.merge(graph, params), rope.masks(cond, 9)
        phase = rope.phases(TINY, rope.position_ids(cond, 9), 64)
        return model._refine_refs(cond.refs, masks.refs, phase.refs, jnp.ones((2, TINY.time_dim)))

    _, _, cond = request(refs=(((2, 2), (2, 2)), ((2, 2), (2, 2))))
    changed = dataclasses.replace(cond, refs=cond.refs.at[:, 1].add(1.0))
    before, after = refine(params, cond), refine(params, changed)
    close(before[:, 0], after[:, 0])
    assert differs(before[:, 1], after[:, 1])


def test_conditioning_repeats_rows():
    _, _, cond = request()
    assert cond.repeat(3).target_size.tolist() == np.repeat(np.asarray(cond.target_size), 3, axis=0).tolist()


def test_bfloat16_follows_the_input(net):
    params, run = net
    x, t, cond = request()
    out = run(params, x.astype(jnp.bfloat16), t, cond)
    assert out.dtype == jnp.bfloat16
    exact = run(params, x, t, cond)
    assert float(jnp.abs(out.astype(jnp.float32) - exact).max() / jnp.abs(exact).max()) < 0.1


# Packing


def test_packed_channels_are_row_column_channel():
    latent = np.arange(4 * 6 * 2).reshape(4, 6, 2)
    tokens = omnigen2.pack(latent)
    assert tokens.shape == (6, 8)
    assert tokens[4].tolist() == latent[2:4, 2:4].reshape(-1).tolist()
    np.testing.assert_array_equal(omnigen2.unpack(tokens, 2, 3), latent)


def test_packing_errors():
    with pytest.raises(InputError, match="multiple"):
        omnigen2.pack(np.zeros((3, 4, 2)))
    with pytest.raises(InputError, match="bucket holds 3"):
        omnigen2.pack_images([np.zeros((4, 4, 2))], tokens=3)
    with pytest.raises(InputError, match="6 references"):
        omnigen2.pack_references([[np.zeros((2, 2, 2))] * 6], channels=2)


# Config, published sizes, shardings


def test_config_errors():
    good = {**dataclasses.asdict(TINY), "_class_name": "OmniGen2Transformer2DModel"}
    assert omnigen2.OmniGen2Config.from_dict(good) == TINY
    for change, message in (
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
        ({"width": 3}, "width"),
        ({"num_kv_heads": 3}, "num_kv_heads 3"),
        ({"axes_dim_rope": [4, 4, 8]}, "sum 12"),
    ):
        with pytest.raises(InputError, match=message):
            omnigen2.OmniGen2Config.from_dict({**good, **change})


def test_table_maps_the_published_checkpoint(goldens):
    config, tensors = published(goldens)
    assert (config.mlp_dim, config.head_dim) == (10240, 120)
    check_table(tensors, omnigen2.ENTRIES, abstract(config))


@pytest.mark.parametrize("fsdp,tensor", [(1, 1), (4, 2), (8, 1), (1, 4), (2, 4), (4, 1), (1, 2)])
def test_sharding_rules_fit_every_mesh(goldens, fsdp, tensor):
    tiny = omnigen2.OmniGen2Config.from_dict(
        json.loads((goldens / "omnigen2" / "transformer" / "config.json").read_text())
    )
    mesh = meshes.make_mesh(fsdp=fsdp, tensor=tensor)
    for config in (tiny, published(goldens)[0]):
        meshes.shardings(abstract(config), omnigen2.SHARDING, mesh)
