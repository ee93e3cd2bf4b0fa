"""Every net gives the same outputs and gradients on one device and on eight, for every shape of the mesh.

Tiny nets whose sizes stand to the mesh as the published ones do: the model width divides over `fsdp`, the editor's
heads (6 over 3 key heads) do not divide over `tensor`, the judge's key heads go up to eight devices.
"""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.peft import LoRASpec
from spatialreward_jax.mesh import batch_sharding, make_mesh, path_name, serving_mesh, shardings
from spatialreward_jax.models import autoencoder_kl, lora, omnigen2, qwen2_5_text, qwen3_vl
from spatialreward_jax.models.qwen_layers import DecoderConfig

MESHES = [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)]
TOLERANCE = 1e-5
"""Of the largest value of an array."""

ROWS = 8
EDITOR = omnigen2.OmniGen2Config(
    hidden_size=48,
    num_layers=2,
    num_refiner_layers=1,
    num_attention_heads=6,
    num_kv_heads=3,
    multiple_of=16,
    axes_dim_rope=(4, 2, 2),
    axes_lens=(32, 16, 16),
    text_feat_dim=16,
    in_channels=4,
    timestep_scale=1000.0,
)
SMALL = {"dim": 32, "layers": 2, "vocab": 64, "eps": 1e-6, "theta": 1e4}
TOWER = DecoderConfig(**SMALL, mlp=48, heads=4, kv_heads=2, head_dim=8, qkv_bias=True, qk_norm=False)
JUDGE = qwen3_vl.Qwen3VLConfig(
    text=DecoderConfig(**SMALL, mlp=64, heads=16, kv_heads=8, head_dim=6, qkv_bias=False, qk_norm=True),
    vision=qwen3_vl.VisionConfig(
        dim=32, mlp=64, layers=2, heads=8, channels=3, patch=2, frames=2, merge=2, side=4, taps=(0,), out_dim=32
    ),
    mrope_section=(1, 1, 1),
    tied=False,
    image_token=63,
)
IMAGE = autoencoder_kl.AutoencoderConfig(
    block_out_channels=(8, 16),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    use_quant_conv=False,
    use_post_quant_conv=False,
    scaling_factor=0.5,
    shift_factor=0.25,
)


class Case(NamedTuple):
    """A net: its table, trees of parameters, `run(params, inputs) -> outputs`, and inputs that lead with rows."""

    rules: Any
    params: Any
    run: Any
    inputs: Any


def drawn(tree, seed=0):
    """Random parameters of these shapes: every one, norms and adapters' B too, has an influence of its own."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        name = path_name(path)
        mean, width = (1.0, 0.1) if name.endswith("scale") else (0.0, 0.1 if name.endswith("bias") else x.size**-0.25)
        return jnp.asarray(rng.normal(mean, width, x.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


def split(build):
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return graph, (drawn(nnx.to_pure_dict(state)),)


def editor():
    """With adapters; rows of different sizes, one with an absent reference."""
    rng = np.random.default_rng(1)
    sizes = [(2, 3), (4, 4), (3, 2), (1, 4)] * 2
    latent = lambda size: rng.normal(size=(2 * size[0], 2 * size[1], EDITOR.in_channels)).astype(np.float32)
    x, target = omnigen2.pack_images([latent(size) for size in sizes])
    shown = [[latent(size)] if row else [] for row, size in enumerate(sizes[::-1])]
    refs, ref_sizes = omnigen2.pack_references(shown, channels=EDITOR.in_channels)
    text = rng.normal(size=(ROWS, 8, EDITOR.text_feat_dim)).astype(np.float32)
    mask = np.arange(8) < np.arange(1, ROWS + 1)[:, None]
    times = rng.uniform(size=ROWS).astype(np.float32)

    def make():
        model = omnigen2.OmniGen2Transformer(EDITOR, rngs=nnx.Rngs(0))
        lora.add_lora(model, omnigen2.ENTRIES, LoRASpec(2, 4.0, ("to_q", "to_k", "to_v", "to_out.0")), nnx.Rngs(0))
        return model

    graphs, adapters, base = lora.split(nnx.eval_shape(make))
    run = lambda params, inputs: lora.merge(graphs, *params)(*inputs)
    inputs = (x, times, omnigen2.Conditioning(text, mask, refs, ref_sizes, target))
    return Case(omnigen2.SHARDING, (drawn(adapters), drawn(base)), run, inputs)


def tower():
    config = qwen2_5_text.Qwen2_5TextConfig(TOWER)
    graph, params = split(lambda rngs: qwen2_5_text.Qwen2_5Text(config, rngs=rngs))
    tokens = np.random.default_rng(2).integers(0, TOWER.vocab, (ROWS, 12), np.int32)
    inputs = (tokens, np.arange(12) < np.arange(5, 5 + ROWS)[:, None])
    return Case(qwen2_5_text.SHARDING, params, lambda params, inputs: nnx.merge(graph, *params)(*inputs), inputs)


def asked():
    """(patches, grid, prompt): a picture for each row, of two sizes."""
    rng = np.random.default_rng(3)
    grids = [(2, 4), (4, 4)] * (ROWS // 2)
    images = [rng.normal(size=(r * c, JUDGE.vision.patch_size)).astype(np.float32) for r, c in grids]
    patches, grid = qwen3_vl.pack_images(images, grids, 16, side=JUDGE.vision.side)
    rows = [[1, *[JUDGE.image_token] * (r * c // 4), *rng.integers(2, 60, 3 + n)] for n, (r, c) in enumerate(grids)]
    shown = [[n] for n in range(ROWS)]
    prompt = qwen3_vl.pack_prompts(rows, shown, grids, length=16, patches=16, image_token=JUDGE.image_token)
    return patches, grid, prompt


def judge():
    """The whole of it: pictures, DeepStack, decoder, log-probabilities of tokens."""
    graph, params = split(lambda rngs: qwen3_vl.Qwen3VL(JUDGE, rngs=rngs))

    def run(params, inputs):
        patches, grid, prompt = inputs
        model = nnx.merge(graph, *params)
        features = model.images(patches, grid)
        hidden = model(prompt.tokens, prompt.image_index, prompt.positions, features)
        return features.main, features.deep, model.log_probs(hidden, prompt.tokens)

    return Case(qwen3_vl.SHARDING, params, run, asked())


def autoencoder():
    graph, params = split(lambda rngs: autoencoder_kl.AutoencoderKL(IMAGE, rngs=rngs))
    images = np.random.default_rng(4).uniform(-1, 1, (ROWS, 4, 8, 3)).astype(np.float32)

    def run(params, images):
        model = nnx.merge(graph, *params)
        mean, logvar = model.encode(images)
        return mean, logvar, model.decode(mean)

    return Case(autoencoder_kl.SHARDING, params, run, images)


CASES = {"editor": editor, "text tower": tower, "judge": judge, "autoencoder": autoencoder}


def program(case):
    """Jitted (params, inputs) -> outputs, and the gradients of a random sum of all of them."""

    def loss(params, inputs):
        out = case.run(params, inputs)
        keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(out)))
        terms = [(x * jax.random.normal(key, x.shape)).sum() for key, x in zip(keys, jax.tree.leaves(out))]
        return sum(terms), out

    def both(params, inputs):
        (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(params, inputs)
        return {"output": out, "gradient": gradients}

    return jax.jit(both)


def on_mesh(mesh, rules, params, inputs):
    place = lambda x: jax.device_put(x, batch_sharding(mesh, x.shape[0]))
    placed = tuple(jax.device_put(tree, shardings(tree, rules, mesh)) for tree in params)
    return placed, jax.tree.map(place, inputs)


def wrong(found, wanted):
    """{array: largest difference in units of its largest value} of those beyond the tolerance.

    The key bias of the autoencoder's attention has no gradient, as the softmax cancels it: what is a millionth of the
    largest gradient is rounding, and may be any.
    """
    errors = {}
    for kind in wanted:
        pairs = list(zip(jax.tree.leaves_with_path(wanted[kind]), jax.tree.leaves(found[kind]), strict=True))
        rounding = 1e-6 * max(float(jnp.abs(a).max()) for (_, a), _ in pairs)
        assert rounding > 0
        for (path, a), b in pairs:
            a, b = np.asarray(a), np.asarray(b)
            largest = np.abs(a).max()
            if largest > rounding or not np.abs(b).max() <= rounding:
                errors[f"{kind} {path_name(path)}"] = float(np.abs(a - b).max() / largest)
    return {name: error for name, error in errors.items() if not error <= TOLERANCE}


@pytest.fixture(scope="module", params=CASES)
def net(request):
    """(case, its program, results on one device)."""
    case = CASES[request.param]()
    run = program(case)
    return case, run, run(case.params, case.inputs)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_sharded_equals_unsharded(net, sizes):
    case, run, wanted = net
    mesh = make_mesh(*sizes)
    params, inputs = on_mesh(mesh, case.rules, case.params, case.inputs)
    with jax.set_mesh(mesh):
        assert wrong(run(params, inputs), wanted) == {}


@pytest.mark.slow
def test_a_small_difference_is_seen(net):
    """One number of one parameter, a thousandth off, shows in outputs and gradients."""
    case, run, wanted = net
    leaves, tree = jax.tree.flatten(case.params)
    at = max(range(len(leaves)), key=lambda n: leaves[n].size)
    leaves[at] = leaves[at].at[(0,) * leaves[at].ndim].add(1e-3 * jnp.abs(leaves[at]).max())
    seen = wrong(run(jax.tree.unflatten(tree, leaves), case.inputs), wanted)
    assert {name.split()[0] for name in seen} == {"output", "gradient"}


@pytest.fixture(scope="module")
def decoding():
    """(program of prompts and three more tokens, parameters, its results on one device)."""
    graph, (params,) = split(lambda rngs: qwen3_vl.Qwen3VL(JUDGE, rngs=rngs))

    @jax.jit
    def read(params, inputs):
        patches, grid, prompt = inputs
        model = nnx.merge(graph, params)
        hidden, cache = model.prefill(prompt, model.images(patches, grid), prompt.tokens.shape[1] + 4)

        def step(carry, token):
            logits, cache = model.next_logits(token, carry)
            return cache, logits

        cache, logits = jax.lax.scan(step, cache, prompt.tokens.T[:3])
        return model.logits(hidden), logits, cache.k

    return read, params, read(params, asked())


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "tensor"), [((1, 8, 1), 8), ((1, 4, 2), 8), ((2, 2, 2), 4)], ids=str)
def test_decoding_where_weights_stay(decoding, sizes, tensor):
    """Equal to one device, no weight is gathered, and each device holds its heads."""
    read, params, wanted = decoding
    mesh = serving_mesh(make_mesh(*sizes), params, qwen3_vl.SHARDING)
    assert dict(mesh.shape) == {"data": 8 // tensor, "fsdp": 1, "tensor": tensor}
    (placed,), inputs = on_mesh(mesh, qwen3_vl.SHARDING, (params,), asked())
    with jax.set_mesh(mesh):
        compiled = read.lower(placed, inputs).compile()
        found = compiled(placed, inputs)
    assert wrong({"output": found}, {"output": wanted}) == {}
    assert found[2].sharding.shard_shape(found[2].shape)[3] == JUDGE.text.kv_heads // tensor
    moved = {shape for one in re.findall(r"= (.*) all-gather\(", compiled.as_text()) for shape in one.split()}
    for leaf in jax.tree.leaves(params["blocks"]):
        if leaf.ndim > 2:
            gathered = ",".join(map(str, leaf.shape[1:]))
            assert not any(gathered in shape for shape in moved), gathered


def test_a_serving_mesh_never_cuts_a_head():
    """Two key heads over eight devices: groups of two share the weights, each group has rows of its own."""
    few = dataclasses.replace(JUDGE, text=dataclasses.replace(JUDGE.text, kv_heads=2))
    _, state = nnx.split(nnx.eval_shape(lambda: qwen3_vl.Qwen3VL(few, rngs=nnx.Rngs(0))))
    mesh = make_mesh(1, 8, 1)
    laid = serving_mesh(mesh, nnx.to_pure_dict(state), qwen3_vl.SHARDING)
    assert dict(laid.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert laid.devices.flatten().tolist() == mesh.devices.flatten().tolist()
    with pytest.raises(ValueError, match="0 sharding rules"):
        serving_mesh(mesh, nnx.to_pure_dict(state), qwen3_vl.SHARDING[1:])
    with pytest.raises(InputError, match="tensor=8: choose another --mesh"):
        shardings(nnx.to_pure_dict(state), qwen3_vl.SHARDING, make_mesh(1, 1, 8))
