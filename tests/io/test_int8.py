"""Rounding to int8, and reading a checkpoint so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.int8 import Int8Reader, check_format, quantize
from spatialreward_jax.io.pretrained import abstract_net
from spatialreward_jax.io.weights import CheckpointFiles, Entry, flatten, load_params
from spatialreward_jax.mesh import make_mesh, shardings
from spatialreward_jax.models.layers import Linear, quantize_linears, stack_blocks

LAYERS, DIM, HEADS, SIZE = 3, 16, 4, 8


class Net(nnx.Module):
    """Two stacked layers and one alone, as nets have them."""

    def __init__(self, rngs):
        self.q = stack_blocks(lambda rngs: Linear(DIM, (HEADS, SIZE), bias=True, rngs=rngs), LAYERS, rngs)
        self.o = stack_blocks(lambda rngs: Linear((HEADS, SIZE), DIM, rngs=rngs), LAYERS, rngs)
        self.patch = Linear(24, DIM, rngs=rngs)


ENTRIES = (
    Entry("{L}.q.weight", "q.kernel", "(N H) D -> D N H"),
    Entry("{L}.q.bias", "q.bias", "(N H) -> N H"),
    Entry("{L}.o.weight", "o.kernel", "D (N H) -> N H D"),
    Entry("patch.weight", "patch.kernel", "D c p -> (c p) D", {"c": 6, "p": 4}),
)
RULES = (
    (r"^q\.kernel$", (None, "fsdp", "tensor")),
    (r"^o\.kernel$", (None, "tensor", None, "fsdp")),
    (r"^patch\.kernel$", ("fsdp", "tensor")),
    (r"bias|scale$", ()),
)
INPUTS = {"q.kernel": (1,), "o.kernel": (1, 2), "patch.kernel": (0,)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("checkpoint")
    tensors = {"patch.weight": rng.normal(size=(DIM, 6, 4)).astype(np.float32)}
    for layer in range(LAYERS):
        tensors[f"{layer}.q.weight"] = rng.standard_cauchy(size=(HEADS * SIZE, DIM)).astype(jnp.bfloat16)
        tensors[f"{layer}.q.bias"] = rng.normal(size=HEADS * SIZE).astype(np.float32)
        tensors[f"{layer}.o.weight"] = rng.normal(size=(DIM, HEADS * SIZE)).astype(jnp.bfloat16)
    tensors["1.o.weight"][5] = 0  # an output channel that is never used
    save_file(tensors, folder / "model.safetensors")
    return CheckpointFiles.open(folder)


def load(files, build, **settings):
    return flatten(load_params(files, ENTRIES, abstract_net(build, jnp.float32)[1], **settings))


def whole(rngs):
    return quantize_linears(Net(rngs))


def test_no_weight_moves_by_more_than_half_a_step(files):
    exact, ours = load(files, Net), load(files, whole)
    assert set(ours) - set(exact) == {f"{name}_scale" for name in INPUTS}
    for name, axes in INPUTS.items():
        kernel, values, scale = (np.asarray(x) for x in (exact[name], ours[name], ours[f"{name}_scale"]))
        assert values.dtype == np.int8 and scale.dtype == np.float32 and values.min() >= -127
        steps = np.expand_dims(scale, axes)
        assert np.all(np.abs(values * steps - kernel) <= steps / 2 * (1 + 1e-5))
        top = np.abs(values).max(axis=axes)
        assert np.all((top == 127) | (np.abs(kernel).max(axis=axes) == 0))
    assert np.all(np.asarray(ours["o.kernel"])[1, :, :, 5] == 0)
    np.testing.assert_array_equal(ours["q.bias"], exact["q.bias"])


def test_every_device_gets_the_same_integers(files):
    abstract = abstract_net(whole, jnp.bfloat16)[1]
    where = shardings(abstract, RULES, make_mesh(1, 4, 2))
    spread, here = load(files, whole, shardings=where), load(files, whole)
    assert spread["q.kernel"].sharding.shard_shape(spread["q.kernel"].shape) == (LAYERS, DIM // 4, HEADS // 2, SIZE)
    assert all(np.array_equal(spread[name], here[name]) for name in here)


def test_a_net_in_memory_is_quantised_alike(files):
    graph, abstract = abstract_net(Net)

    @jax.jit
    def run(params):
        return nnx.to_pure_dict(nnx.state(quantize_linears(nnx.merge(graph, params))))

    drawn, read = flatten(run(load_params(files, ENTRIES, abstract))), load(files, whole)
    for name in read:
        if read[name].dtype == np.int8:  # XLA divides a little differently: a few weights lie halfway
            moved = np.abs(np.asarray(drawn[name], np.int32) - np.asarray(read[name], np.int32))
            assert moved.max() <= 1 and moved.mean() < 0.002
        else:
            np.testing.assert_allclose(drawn[name], read[name], rtol=1e-6)


def test_a_whole_layer_is_read_once(files):
    reads = []
    kernel = np.random.default_rng(0).normal(size=(LAYERS, DIM, SIZE))

    def read(layer, part):
        reads.append(layer)
        return kernel[layer][part]

    make = lambda: Int8Reader(read, kernel.shape, (LAYERS, SIZE), stacked=True)
    reader, everything = make(), (slice(None),) * 3
    values, scale = reader.kernel(everything), reader.scale(everything[:2])
    assert sorted(reads) == [0, 1, 2]
    expected = quantize(kernel, (1,))
    assert np.array_equal(values, expected[0]) and np.array_equal(scale, expected[1])
    part = make().kernel((slice(1, 3), slice(0, 4), slice(2, 6)))
    assert sorted(reads[3:]) == [1, 1, 2, 2] and np.array_equal(part, values[1:3, 0:4, 2:6])


def test_a_layer_computes_what_its_integers_say(files):
    exact, ours = load(files, Net), load(files, whole)
    graph, _ = abstract_net(lambda rngs: quantize_linears(Linear(24, DIM, rngs=rngs)))
    layer = nnx.merge(graph, {name: ours[f"patch.{name}"] for name in ("kernel", "kernel_scale")})
    x = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)
    weights = np.asarray(ours["patch.kernel"]) * np.asarray(ours["patch.kernel_scale"])
    np.testing.assert_allclose(layer(jnp.asarray(x)), x @ weights, rtol=1e-5, atol=1e-5)
    half = layer(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), x @ np.asarray(exact["patch.kernel"]), atol=0.2)


def test_formats():
    check_format(None)
    check_format("int8")
    with pytest.raises(InputError, match="quantize 'int4' is unknown: use int8"):
        check_format("int4")
