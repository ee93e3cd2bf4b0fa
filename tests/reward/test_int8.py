"""The judge with int8 weights: close to the judge, in less memory, under another name."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.compare import identity_differences
from spatialreward_jax.evaluation.ranking import ranks
from spatialreward_jax.io.peft import LoRASpec, write_peft
from spatialreward_jax.io.pretrained import abstract_net
from spatialreward_jax.io.weights import flatten, unflatten
from spatialreward_jax.mesh import make_mesh, shardings
from spatialreward_jax.models.layers import quantize_linears
from spatialreward_jax.models.lora import add_lora, split
from spatialreward_jax.models.qwen3_vl import SHARDING, Qwen3VL, Qwen3VLConfig, empty_cache, entries
from spatialreward_jax.reward.chats import ChatRow, Turn
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.loading import load_judge
from spatialreward_jax.reward.processor import Processor
from spatialreward_jax.reward.supervision import pack_chats

CHATS = 12


@pytest.fixture(scope="module")
def folder(goldens):
    return goldens / "spatialreward"


@pytest.fixture(scope="module")
def nets(folder):
    """(float32, int8) on one device."""
    return load_judge(folder), load_judge(folder, quantize="int8")


@pytest.fixture(scope="module")
def chats(folder, nets):
    """Questions about different pictures, with one answer."""
    rng, rows = np.random.default_rng(0), []
    for number in range(CHATS):
        picture = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        asked = Turn("user", (None, f"Rate edit {number}."))
        rows.append(ChatRow((asked, Turn("assistant", ('{"score": [17, 9]}',))), (picture,)))
    return pack_chats(rows, Processor(folder), side=nets[0].config.vision.side)


def answer_of(net):
    """-> run(chats, base): logits [B, A, V] where the answers stand, log-probabilities of the answers [B]."""

    @jax.jit
    def run(adapters, base, chats):
        model, prompt = net.merge(adapters, base), chats.prompt
        features = model.images(chats.patches, chats.grid)
        hidden = model(prompt.tokens, prompt.image_index, prompt.positions, features)
        hidden = jnp.take_along_axis(hidden, chats.at[..., None], axis=1)
        return model.logits(hidden), (model.log_probs(hidden, chats.targets) * chats.weight).sum(1)

    def call(chats, base=net.base):
        with jax.set_mesh(net.mesh):
            return jax.device_get(run(net.adapters, base, chats))

    return call


@pytest.fixture(scope="module")
def answers(nets, chats):
    """Those of the float32 judge, of the int8 one, and of float32 weights that equal the int8 ones."""
    judge, quantized = (flatten(net.base) for net in nets)
    for name, leaf in quantized.items():
        if leaf.dtype == jnp.int8:
            scale = quantized[f"{name}_scale"]
            stacked = "blocks." in name or "deep_mergers." in name
            axes = range(stacked, stacked + leaf.ndim - scale.ndim)
            judge[name] = jnp.asarray(leaf, jnp.float32) * jnp.expand_dims(scale, tuple(axes))
    exact = answer_of(nets[0])
    return [exact(chats), answer_of(nets[1])(chats), exact(chats, unflatten(judge))]


def relative(ours, exact):
    """Root of the mean squared error over that of the values."""
    return np.sqrt(np.mean(np.square(ours - exact)) / np.mean(np.square(exact)))


def test_answers_stay_close_and_in_order(answers, chats):
    (exact, exact_logp), (ours, logp), (same, same_logp) = answers
    real = chats.weight.astype(bool)
    error = relative(ours[real], exact[real])
    rho = np.corrcoef(ranks(exact_logp), ranks(logp))[0, 1]
    print(f"relative error of logits {error:.5f}, Spearman's rho of {CHATS} answers' log-probabilities {rho:.4f}")
    assert relative(ours, same) < 1e-5 and np.abs(logp - same_logp).max() < 1e-3
    assert 1e-3 < error < 0.06 and rho > 0.9


def test_every_linear_kernel_is_int8_and_nothing_else(nets):
    exact, ours = (flatten(net.base) for net in nets)
    kernels = {name for name in exact if name.endswith(".kernel")}
    assert {name for name, leaf in ours.items() if leaf.dtype == jnp.int8} == kernels
    assert set(ours) - set(exact) == {f"{name}_scale" for name in kernels}
    assert all(np.array_equal(ours[name], exact[name]) for name in set(exact) - kernels)


def test_a_mesh_of_eight_computes_the_same(folder, nets, chats, answers):
    spread = load_judge(folder, mesh=make_mesh(2, 2, 2), quantize="int8")
    here = flatten(nets[1].base)
    for name, leaf in flatten(spread.base).items():
        np.testing.assert_array_equal(leaf, here[name], err_msg=name)
    logits, logp = answer_of(spread)(chats)
    np.testing.assert_allclose(logp, answers[1][1], rtol=1e-5, atol=1e-4)
    assert relative(logits, answers[1][0]) < 1e-5


def test_adapters_go_on_top(folder, nets, tmp_path):
    """The adapted int8 judge is far closer to the adapted judge than that to the judge; adapters have gradients."""
    config, rng = nets[0].config, np.random.default_rng(1)
    spec, table = LoRASpec(2, 4.0, ("q_proj", "down_proj")), entries(config)

    def adapted():
        net = Qwen3VL(config, rngs=nnx.Rngs(0))
        add_lora(net, table, spec, nnx.Rngs(0))
        return net

    shapes = flatten(split(nnx.eval_shape(adapted))[1])
    draw = {name: 0.3 * rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
    write_peft(tmp_path, unflatten(draw), spec, table)
    exact, net = (load_judge(folder, adapter=tmp_path, quantize=quantize) for quantize in (None, "int8"))
    assert len({exact.revision, net.revision, *(n.revision for n in nets)}) == 4
    tokens = jnp.asarray(rng.integers(0, 2000, (1, 8)))
    positions = jnp.broadcast_to(jnp.arange(8), (3, 1, 8))

    def hidden(adapters, net):
        return net.merge(adapters, net.base)(tokens, None, positions, None)

    run = jax.jit(hidden, static_argnums=1)
    with_adapter = run(exact.adapters, exact)
    assert relative(run(net.adapters, net), with_adapter) < 0.1 * relative(with_adapter, run(None, exact))
    gradients = jax.jit(jax.grad(lambda adapters: jnp.square(hidden(adapters, net)).sum()))(net.adapters)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_no_stack_of_kernels_is_ever_dequantised(nets):
    """A decoding loop holds the stacked kernels as integers alone."""
    net = nets[1]
    cache = empty_cache(net.config.text, 2, 16, jnp.float32)

    def loop(base, token, cache):
        def step(_, carry):
            logits, cache = net.merge(None, base).next_logits(*carry)
            return logits.argmax(-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, 8, step, (token, cache))

    text = jax.jit(loop).lower(net.base, jnp.zeros(2, jnp.int32), cache).compile().as_text()
    stacks = {leaf.shape for name, leaf in flatten(net.base["blocks"]).items() if name.endswith(".kernel")}
    for shape in stacks:
        shape = ",".join(map(str, shape))
        assert f"s8[{shape}]" in text and not re.search(rf"(f32|bf16|f16)\[{shape}\]", text), shape


def test_the_8b_judge_fits_a_chip_of_16_gb(goldens):
    published = json.loads((goldens / "published" / "qwen3_vl_8b.json").read_text())
    config = Qwen3VLConfig.from_dict(published["config"])
    build = lambda rngs: Qwen3VL(config, rngs=rngs, dtype=jnp.bfloat16)

    def gigabytes(build, *mesh):
        """Of weights on each device."""
        abstract = abstract_net(build, jnp.bfloat16)[1]
        where = flatten(shardings(abstract, SHARDING, make_mesh(*mesh, devices=jax.devices()[: int(np.prod(mesh))])))
        sizes = {n: np.prod(where[n].shard_shape(x.shape)) * x.dtype.itemsize for n, x in flatten(abstract).items()}
        return sum(sizes.values()) / 1e9

    assert 17.5 < gigabytes(build, 1, 1, 1) < 17.6
    one = gigabytes(lambda rngs: quantize_linears(build(rngs)), 1, 1, 1)
    four = gigabytes(lambda rngs: quantize_linears(build(rngs)), 1, 2, 2)
    print(f"int8 weights of the 8B judge: {one:.3f} GB on one device, {four:.3f} GB on each of four")
    assert one < 10.03 and four < one / 4 + 0.02


def test_scores_of_another_precision_refuse_to_be_compared(folder):
    load = lambda **how: vars(RewardModel.from_pretrained(folder, **({"dtype": "float32"} | how)).identity)
    exact, ours = load(), load(quantize="int8")
    half = load(dtype="bfloat16")
    assert ours["revision"] == f"{exact['revision']}-int8" and exact["revision"].endswith("-float32")
    assert half["revision"] == exact["revision"].replace("-float32", "-bfloat16")
    for other in (ours, half):
        (line,) = identity_differences(exact, other)
        assert line.startswith("revision")
    with pytest.raises(InputError, match="quantize 'int4' is unknown"):
        RewardModel.from_pretrained(folder, quantize="int4")
