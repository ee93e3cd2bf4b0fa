"""Adapters in and out: shapes, alpha, errors, and agreement with what PEFT wrote."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.peft import LoRASpec, read_adapter, write_diffusers, write_peft
from spatialreward_jax.io.weights import Entry, flatten
from spatialreward_jax.models import lora
from spatialreward_jax.models.layers import Linear, scan_blocks, stack_blocks

ENTRIES = (
    Entry("proj.weight", "proj.kernel", "F D -> D F"),
    Entry("layers.{L}.attn.to_q.weight", "blocks.q.kernel", "(N H) D -> D N H"),
    Entry("layers.{L}.attn.to_out.0.weight", "blocks.o.kernel", "D (N H) -> N H D"),
)
SPEC = LoRASpec(rank=3, alpha=6, targets=("proj", "to_out.0", "to_q"))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.q = Linear(8, (4, 2), rngs=rngs)
        self.o = Linear((4, 2), 8, rngs=rngs)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.proj = Linear(8, 8, rngs=rngs)
        self.blocks = stack_blocks(Block, 2, rngs)

    def __call__(self, x):
        return scan_blocks(self.blocks, lambda block, x, _: (x + block.o(block.q(x)), None), self.proj(x))[0]


def adapted(seed=0):
    net = Net(nnx.Rngs(seed))
    lora.add_lora(net, ENTRIES, SPEC, nnx.Rngs(1))
    graph, adapters, base = lora.split(net)
    key = jax.random.key(2)
    return graph, jax.tree.map(lambda x: jax.random.normal(key, x.shape), adapters), base


@pytest.mark.parametrize("write", [write_peft, write_diffusers])
def test_written_adapters_read_back_with_alpha(tmp_path, write):
    _, adapters, base = adapted()
    write(tmp_path, adapters, SPEC, ENTRIES)
    spec, again = read_adapter(tmp_path, ENTRIES, base)
    assert spec == SPEC
    assert flatten(again).keys() == flatten(adapters).keys()
    assert all(np.array_equal(flatten(again)[n], a) for n, a in flatten(adapters).items())


def test_peft_tensors_have_the_torch_layout_and_scale(tmp_path):
    graph, adapters, base = adapted()
    write_peft(tmp_path, adapters, SPEC, ENTRIES)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.proj.lora_{f}.weight"] for f in "AB")
    assert a.shape == (3, 8) and b.shape == (8, 3)
    x = np.arange(8.0, dtype=np.float32)
    net, plain = lora.merge(graph, adapters, base), lora.merge(graph, None, base)
    np.testing.assert_allclose(net.proj(x) - plain.proj(x), 2 * b @ (a @ x), rtol=1e-4, atol=1e-4)
    o = tensors["base_model.model.layers.1.attn.to_out.0.lora_B.weight"]
    np.testing.assert_array_equal(o, np.asarray(adapters["blocks"]["o"]["lora"]["b"][1]).T)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 6


def test_adapters_start_as_the_identity_and_switch_off():
    net = Net(nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 8))
    before = net(x)
    lora.add_lora(net, ENTRIES, SPEC, nnx.Rngs(1))
    np.testing.assert_array_equal(net(x), before)
    graph, adapters, base = adapted()
    assert np.abs(lora.merge(graph, adapters, base)(x) - before).max() > 0.1
    np.testing.assert_array_equal(lora.merge(graph, None, base)(x), before)


def test_dropout_needs_a_key_and_differs_by_layer():
    net = Net(nnx.Rngs(0))
    lora.add_lora(net, ENTRIES, LoRASpec(3, 6, ("to_q",), dropout=0.5), nnx.Rngs(1))
    graph, adapters, base = lora.split(net)
    adapters = jax.tree.map(lambda x: jax.random.normal(jax.random.key(2), x.shape), adapters)
    x = jax.random.normal(jax.random.key(0), (2, 8))
    run = jax.jit(lambda key: lora.merge(graph, adapters, base, dropout_key=key)(x))
    off, one, two = lora.merge(graph, adapters, base)(x), run(jax.random.key(0)), run(jax.random.key(1))
    assert np.abs(one - off).max() > 1e-3 and np.abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(one, run(jax.random.key(0)))


def test_an_adapter_without_alpha_asks_for_it(tmp_path):
    _, adapters, base = adapted()
    write_diffusers(tmp_path, adapters, SPEC, ENTRIES)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    with safe_open(file, "numpy") as stored:
        assert "lora_adapter_metadata" in stored.metadata()
    save_file(load_file(file), file)
    with pytest.raises(InputError, match="give alpha"):
        read_adapter(tmp_path, ENTRIES, base)
    assert read_adapter(file, ENTRIES, base, alpha=6)[0].alpha == 6


def test_adapters_of_another_net_are_refused(tmp_path):
    _, adapters, base = adapted()
    write_peft(tmp_path, adapters, SPEC, ENTRIES)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n.replace("to_q", "to_x"): t for n, t in tensors.items()}, file)
    with pytest.raises(InputError, match="no adapter for this net"):
        read_adapter(tmp_path, ENTRIES, base)
    save_file({n: t[:, :4] if "lora_A" in n else t for n, t in tensors.items()}, file)
    with pytest.raises(InputError, match="has not the shape"):
        read_adapter(tmp_path, ENTRIES, base)
    with pytest.raises(InputError, match="names no linear layer"):
        lora.add_lora(Net(nnx.Rngs(0)), ENTRIES, LoRASpec(3, 6, ("to_k",)), nnx.Rngs(0))
    with pytest.raises(InputError, match="is no adapter"):
        read_adapter(tmp_path / "nowhere", ENTRIES, base)
