"""The TPU kernels compiled for chips that are not here: they fit, and their temporaries grow linearly.

Wants libtpu (`pip install -e .[tpu,test]`), no TPU: `pytest -m tpu_compile tests/kernels`.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatialreward_jax.kernels.attention import attention
from spatialreward_jax.kernels.region_attention import region_attention
from spatialreward_jax.mesh import make_mesh

pytestmark = pytest.mark.tpu_compile

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
NETS = {  # query heads, key heads, head size
    "vision tower": (16, 16, 72),
    "text tower": (16, 2, 128),
    "editor": (21, 7, 120),
    "judge": (32, 8, 128),
    "head size 80": (16, 16, 80),
}
LENGTHS = (1024, 4096, 16384)


@pytest.fixture(scope="module", params=TOPOLOGIES)
def devices(request):
    """The devices of a described slice."""
    pytest.importorskip("libtpu", reason="the `tpu` extra is not installed")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v6e-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else a second process that compiles aborts
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[request.param]).devices


@pytest.fixture(scope="module")
def sharding(devices):
    """Everything on one of them."""
    return NamedSharding(Mesh(np.array(devices[:1]), ("x",)), PartitionSpec())


def compiled(fn, sharding, *shapes):
    return jax.jit(fn, in_shardings=sharding, out_shardings=sharding).lower(*shapes).compile()


def arguments(net, length, dtype):
    heads, kv_heads, size = NETS[net]
    arrays = [jax.ShapeDtypeStruct((1, length, n, size), dtype) for n in (heads, kv_heads, kv_heads)]
    return arrays + [jax.ShapeDtypeStruct((1, length), jnp.int32)] * 2


def attend(q, k, v, segments, positions):
    return attention(q, k, v, segments=(segments, segments), positions=positions)


def gradients(q, k, v, segments, positions):
    loss = lambda q, k, v: attend(q, k, v, segments, positions).astype(jnp.float32).sum()
    return jax.grad(loss, (0, 1, 2))(q, k, v)


def regions_of(q, k, sets, regions, segments, positions):
    return region_attention(q, k, sets, regions, segments=(segments, segments), positions=positions)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("net", NETS)
def test_attention_compiles(sharding, net, dtype):
    shapes = arguments(net, 1500, dtype)
    assert compiled(attend, sharding, *shapes).as_text().count('custom_call_target="tpu_custom_call"') == 1
    assert compiled(gradients, sharding, *shapes).as_text().count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_region_attention_compiles(sharding, dtype):
    q, k, _, ids, positions = arguments("judge", 1500, dtype)
    sets, regions = (jax.ShapeDtypeStruct((1, x, 1500), y) for x, y in ((5, jnp.float32), (11, jnp.bool_)))
    program = compiled(regions_of, sharding, q, k, sets, regions, ids, positions)
    assert program.as_text().count('custom_call_target="tpu_custom_call"') == 2


def test_four_chips_share_the_work_without_talking(devices):
    mesh = make_mesh(2, 1, 2, devices=devices[:4])
    by_head = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    by_row = NamedSharding(mesh, PartitionSpec("data"))
    arrays = [jax.ShapeDtypeStruct((4, 1024, n, 128), jnp.bfloat16, sharding=by_head) for n in (32, 8, 8)]
    ids = [jax.ShapeDtypeStruct((4, 1024), jnp.int32, sharding=by_row)] * 2
    with jax.set_mesh(mesh):
        text = jax.jit(gradients, out_shardings=by_head).lower(*arrays, *ids).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    assert "bf16[2,16,1024,128]" in text and not any(word in text for word in ("all-gather", "all-to-all"))


@pytest.mark.parametrize("fn", [attend, gradients, regions_of])
def test_temporaries_grow_linearly(sharding, fn):
    """At 1k, 4k, 16k keys: never more than a few copies of the arguments, where one head's scores take 1 GiB at 16k."""
    found = []
    for length in LENGTHS:
        q, k, v, ids, positions = arguments("judge", length, jnp.bfloat16)
        shapes = [q, k, v, ids, positions]
        if fn is regions_of:
            sets, regions = (jax.ShapeDtypeStruct((1, x, length), y) for x, y in ((8, jnp.float32), (16, jnp.bool_)))
            shapes = [q, k, sets, regions, ids, positions]
        memory = compiled(fn, sharding, *shapes).memory_analysis()
        found.append(memory.temp_size_in_bytes)
        assert memory.temp_size_in_bytes < 3 * memory.argument_size_in_bytes, (length, found)
    print({length: f"{size / 2**20:.1f} MiB" for length, size in zip(LENGTHS, found)})
    per_key = [size / length for size, length in zip(found, LENGTHS)]
    assert max(per_key) < 64 * 1024, dict(zip(LENGTHS, found))  # bytes; a quadratic term would be 2 MiB a key at 16k
