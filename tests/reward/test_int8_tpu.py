"""The 8B judge with int8 weights compiled for one chip of 16 GB that is not here: it fits, cache and all.

Wants libtpu (`pip install -e .[tpu,test]`), no TPU: `pytest -m tpu_compile tests/reward`.
"""

import json
import os
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from spatialreward_jax.io.pretrained import abstract_net
from spatialreward_jax.io.weights import flatten
from spatialreward_jax.mesh import make_mesh, shardings
from spatialreward_jax.models.layers import quantize_linears
from spatialreward_jax.models.qwen3_vl import SHARDING, Prompt, Qwen3VL, Qwen3VLConfig, VisionGrid, empty_cache

pytestmark = pytest.mark.tpu_compile

ROWS, PROMPT, SLOTS, IMAGES, PATCHES = 8, 1024, 1536, 8, 1024
CHIP = 15.75 * 2**30
"""Bytes that the compiler gives to a program on a v5e chip."""


@pytest.fixture(scope="module")
def mesh():
    pytest.importorskip("libtpu", reason="the `tpu` extra is not installed")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else a second process that compiles aborts
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    return make_mesh(devices=devices[:1])


@pytest.fixture(scope="module")
def judge(mesh, goldens):
    """(config, graph, parameter shapes on the chip)."""
    published = json.loads((goldens / "published" / "qwen3_vl_8b.json").read_text())
    config = Qwen3VLConfig.from_dict(published["config"])
    graph, abstract = abstract_net(
        lambda rngs: quantize_linears(Qwen3VL(config, rngs=rngs, dtype=jnp.bfloat16)), jnp.bfloat16
    )
    where = shardings(abstract, SHARDING, mesh)
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return config, graph, jax.tree.map(place, abstract, where)


def compiled(mesh, judge, function, *shapes, donate=()):
    """-> (program, bytes on the chip while it runs, all weights counted)."""
    whole = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes)
    graph, params = judge[1:]
    run = jax.jit(lambda params, *args: function(nnx.merge(graph, params), *args), donate_argnums=donate)
    with jax.set_mesh(mesh):
        program = run.lower(params, *shapes).compile()
    memory = program.memory_analysis()
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    others = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return program, weights + others + made


def test_decoding_fits(mesh, judge):
    config, _, params = judge
    cache = jax.eval_shape(lambda: empty_cache(config.text, ROWS, SLOTS, jnp.bfloat16))

    def loop(model, token, cache):
        def step(_, carry):
            logits, cache = model.next_logits(*carry)
            return logits.argmax(-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, SLOTS - PROMPT, step, (token, cache))

    token = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    program, size = compiled(mesh, judge, loop, token, cache, donate=2)
    print(f"decoding {ROWS} rows of {SLOTS}: {size / 1e9:.2f} GB")
    assert size < CHIP
    text = program.as_text()
    for name, leaf in flatten(params["blocks"]).items():
        if leaf.dtype == jnp.int8:
            shape = ",".join(map(str, leaf.shape))
            assert f"s8[{shape}]" in text and not re.search(rf"(f32|bf16)\[{shape}\]", text), name


def test_reading_images_and_prompts_fits(mesh, judge):
    vision = judge[0].vision
    shape = jax.ShapeDtypeStruct
    each = (IMAGES, PATCHES)
    grid = VisionGrid(
        corners=shape((*each, 4), jnp.int32),
        weights=shape((*each, 4), jnp.float32),
        coords=shape((*each, 2), jnp.int32),
        valid=shape(each, jnp.bool_),
    )
    tokens, row = shape((ROWS, PROMPT), jnp.int32), shape((ROWS,), jnp.int32)
    prompt = Prompt(tokens, tokens, shape((3, ROWS, PROMPT), jnp.int32), row, row)

    def read(model, patches, grid, prompt):
        return model.prefill(prompt, model.images(patches, grid), SLOTS)

    patches = shape((*each, vision.patch_size), jnp.bfloat16)
    _, size = compiled(mesh, judge, read, patches, grid, prompt)
    print(f"{IMAGES} images of {PATCHES} patches and {ROWS} prompts of {PROMPT} tokens: {size / 1e9:.2f} GB")
    assert size < CHIP
