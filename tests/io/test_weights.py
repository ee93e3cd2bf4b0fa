"""The table-driven loader and writer: layouts, slices, shards, strictness."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spatialreward_jax.errors import InputError
from spatialreward_jax.io import weights
from spatialreward_jax.io.layout import Layout
from spatialreward_jax.io.weights import CheckpointFiles, Entry, check_table, load_params, matrices, save_params
from spatialreward_jax.mesh import make_mesh, shardings

ENTRIES = (
    Entry("embed.weight", "embed.table"),
    Entry("patch.weight", "patch.kernel", "D c t p q -> (c t p q) D", {"c": 3, "t": 2, "p": 2}),
    Entry("layers.{L}.q.weight", "blocks.q.kernel", "(N H) D -> D N H"),
    Entry("layers.{L}.o.weight", "blocks.o.kernel", "D (N H) -> N H D"),
)
SHAPES = {
    "embed": {"table": (6, 8)},
    "patch": {"kernel": (24, 8)},
    "blocks": {"q": {"kernel": (3, 8, 4, 2)}, "o": {"kernel": (3, 4, 2, 8)}},
}
ABSTRACT = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), SHAPES, is_leaf=lambda s: isinstance(s, tuple))


def checkpoint():
    rng = np.random.default_rng(0)
    tensors = {
        "embed.weight": rng.normal(size=(6, 8)),
        "patch.weight": rng.normal(size=(8, 3, 2, 2, 2)),
        **{f"layers.{i}.q.weight": rng.normal(size=(8, 8)) for i in range(3)},
        **{f"layers.{i}.o.weight": rng.normal(size=(8, 8)) for i in range(3)},
    }
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def test_parameters_have_the_natural_shapes_and_the_layers_stack(tmp_path):
    tensors = checkpoint()
    save_file(tensors, tmp_path / "model.safetensors")
    params = load_params(CheckpointFiles.open(tmp_path), ENTRIES, ABSTRACT)
    x = np.arange(8.0, dtype=np.float32)
    q = np.einsum("d,dnh->nh", x, params["blocks"]["q"]["kernel"][1])
    np.testing.assert_allclose(q.reshape(-1), tensors["layers.1.q.weight"] @ x, rtol=1e-5)
    o = np.einsum("nh,nhd->d", x.reshape(4, 2), params["blocks"]["o"]["kernel"][2])
    np.testing.assert_allclose(o, tensors["layers.2.o.weight"] @ x, rtol=1e-5)


def test_kernels_are_told_apart_from_other_parameters_with_their_inputs_and_outputs():
    assert matrices(ENTRIES, ABSTRACT, "net.") == {
        "net.patch.kernel": ((0,), (1,)),
        "net.blocks.q.kernel": ((1,), (2, 3)),
        "net.blocks.o.kernel": ((1, 2), (3,)),
    }


def test_pieces_make_the_same_whole(tmp_path, monkeypatch):
    save_file(checkpoint(), tmp_path / "model.safetensors")
    rules = ((r"embed|patch", ("fsdp",)), (r"blocks", (None, "tensor")))
    where = shardings(ABSTRACT, rules, make_mesh(2, 2, 2))
    whole = load_params(CheckpointFiles.open(tmp_path), ENTRIES, ABSTRACT)
    monkeypatch.setattr(weights, "PIECE", 20)
    for places in (None, where):
        pieces = load_params(CheckpointFiles.open(tmp_path), ENTRIES, ABSTRACT, shardings=places)
        jax.tree.map(np.testing.assert_array_equal, pieces, whole)


@pytest.mark.parametrize("max_shard_bytes", [2**30, 1000])
def test_saving_what_was_loaded_is_bit_exact(tmp_path, max_shard_bytes):
    tensors = checkpoint()
    save_file(tensors, tmp_path / "model.safetensors")
    params = load_params(CheckpointFiles.open(tmp_path), ENTRIES, ABSTRACT)
    save_params(tmp_path / "again", params, ENTRIES, max_shard_bytes=max_shard_bytes)
    (plain := tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in (tmp_path / "again").glob("*.safetensors")} == {plain.stat().st_mode}
    files = sorted((tmp_path / "again").glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_bytes == 1000)
    again = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    reloaded = load_params(CheckpointFiles.open(tmp_path / "again"), ENTRIES, ABSTRACT)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, reloaded)))


def test_weights_that_are_written_again_are_read_again(tmp_path):
    for factor in (1.0, 2.0):
        save_file({name: factor * t for name, t in checkpoint().items()}, tmp_path / "model.safetensors")
        params = load_params(CheckpointFiles.open(tmp_path), ENTRIES, ABSTRACT)
        np.testing.assert_array_equal(params["embed"]["table"], factor * checkpoint()["embed.weight"])


def test_bfloat16_survives_both_ways(tmp_path):
    save_file({name: t.astype(jnp.bfloat16) for name, t in checkpoint().items()}, tmp_path / "model.safetensors")
    params = load_params(CheckpointFiles.open(tmp_path), ENTRIES, ABSTRACT, dtype=jnp.bfloat16)
    assert params["embed"]["table"].dtype == jnp.bfloat16
    save_params(tmp_path / "again", params, ENTRIES)
    assert (tmp_path / "again/model.safetensors").read_bytes()[-64:] == (tmp_path / "model.safetensors").read_bytes()[
        -64:
    ]


def test_sharded_loading_gives_the_same_values(tmp_path):
    save_file(checkpoint(), tmp_path / "model.safetensors")
    rules = (
        (r"embed", (None, "fsdp")),
        (r"patch", ("fsdp", "tensor")),
        (r"blocks\.q", (None, "fsdp", "tensor", None)),
        (r"blocks\.o", (None, "fsdp", "tensor", None)),
    )
    where = shardings(ABSTRACT, rules, make_mesh(data=1, fsdp=4, tensor=2))
    files = CheckpointFiles.open(tmp_path)
    sharded, whole = load_params(files, ENTRIES, ABSTRACT, shardings=where), load_params(files, ENTRIES, ABSTRACT)
    assert sharded["blocks"]["q"]["kernel"].sharding == where["blocks"]["q"]["kernel"]
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), sharded, whole)))


def test_a_slice_reads_only_its_part():
    class Stored:
        def __init__(self, tensor):
            self.tensor, self.read = tensor, 0

        def __getitem__(self, index):
            part = self.tensor[index]
            self.read += part.size
            return part

    tensor = np.arange(64.0).reshape(8, 8)
    layout = Layout.bind("(N H) D -> D N H", (8, 4, 2))
    stored = Stored(tensor)
    part = layout.read(stored, (slice(0, 4), slice(2, 4), slice(None)))
    assert np.array_equal(part, layout.load(tensor)[0:4, 2:4])
    assert stored.read == part.size
    inner = layout.read(stored, (slice(None), slice(None), slice(0, 1)))
    assert np.array_equal(inner, layout.load(tensor)[:, :, 0:1])


def test_all_misfits_are_listed_together(tmp_path):
    tensors = checkpoint()
    tensors["extra.weight"] = tensors.pop("layers.2.q.weight")
    tensors["embed.weight"] = tensors["embed.weight"][:5]
    with pytest.raises(InputError) as error:
        check_table({name: t.shape for name, t in tensors.items()}, ENTRIES, ABSTRACT)
    for part in ("missing: layers.2.q.weight", "extra.weight", r"embed.weight (5, 8) (wanted (6, 8))"):
        assert part in str(error.value)
    ignored = {"visual.patch.weight": (1,), **{name: t.shape for name, t in checkpoint().items()}}
    check_table(ignored, ENTRIES, ABSTRACT, ignore=(r"visual\.",))


def test_no_weights_and_lost_shards_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="give the folder of a checkpoint"):
        CheckpointFiles.open(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(InputError, match=r"model-1\.safetensors; download"):
        CheckpointFiles.open(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(InputError, match="no readable safetensors"):
        CheckpointFiles.open(tmp_path)


def test_a_layout_must_fit():
    with pytest.raises(ValueError, match="same letters"):
        Layout.bind("a b -> a c", (1, 2))
    with pytest.raises(ValueError, match="does not fit"):
        Layout.bind("a b -> b a", (1, 2, 3))


LOADING = """
import pathlib, re, sys, threading, time
import jax, numpy as np
from spatialreward_jax.io import weights
from spatialreward_jax.mesh import make_mesh, shardings

entries = (
    weights.Entry("embed", "embed"),
    weights.Entry("out", "out", "F D -> D F"),
    weights.Entry("layers.{L}", "up", "F D -> D F"),
)
shapes = {"embed": (4096, 4096), "out": (4096, 4096), "up": (4, 2048, 2048)}  # 64 MiB each
abstract = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
rules = (("embed", (None, "fsdp")), ("out|up", ("fsdp",)))
where = shardings(abstract, rules, make_mesh(1, 4, 1, devices=jax.devices()[:4])) if sys.argv[2] == "mesh" else None
files = weights.CheckpointFiles.open(pathlib.Path(sys.argv[1]))
weights.PIECE = 2**22
used = lambda: 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
peak, done = [used()], threading.Event()
before = peak[0]

def watch():
    while not done.wait(0.0005):
        peak.append(used())

watcher = threading.Thread(target=watch)
watcher.start()
params = jax.block_until_ready(weights.load_params(files, entries, abstract, shardings=where))
done.set()
watcher.join()
sizes = [leaf.nbytes for leaf in params.values()]
print((max(peak) - before - sum(sizes)) / max(sizes), float(params["out"][3, 5]), float(params["up"][1, 3, 5]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_host_holds_one_parameter_beside_what_is_loaded(tmp_path):
    """At most 1.3 times the largest one, on one device and spread over four."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=(4096, 4096)).astype(np.float32) for name in ("embed", "out")}
    tensors |= {f"layers.{i}": rng.normal(size=(2048, 2048)).astype(np.float32) for i in range(4)}
    save_file(tensors, tmp_path / "model.safetensors")
    for kind in ("one", "mesh"):
        call = [sys.executable, "-c", LOADING, str(tmp_path), kind]
        done = subprocess.run(call, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        above, *values = map(float, done.stdout.split())
        assert 0 < above < 1.3, f"{kind}: {above} times the largest parameter"
        assert values == [tensors["out"][5, 3], tensors["layers.1"][5, 3]]
