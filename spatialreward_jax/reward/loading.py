"""A judge's net from a folder in Hugging Face layout, with an optional adapter, laid out on a mesh."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.int8 import check_format
from spatialreward_jax.io.peft import LoRASpec, read_adapter
from spatialreward_jax.io.pretrained import Placement, abstract_net, default_dtype, load_net, read_json
from spatialreward_jax.mesh import make_mesh, place_whole, serving_mesh, shardings
from spatialreward_jax.models import lora
from spatialreward_jax.models.layers import quantize_linears
from spatialreward_jax.models.qwen3_vl import SHARDING, Qwen3VL, Qwen3VLConfig, entries, ignored


@dataclasses.dataclass(frozen=True, eq=False)
class JudgeNet:
    """A Qwen3-VL net as pure data.

    Attributes:
        config: sizes. dtype: of parameters and activations.
        folder: where it came from. revision: fingerprint of its files and the adapter's, the dtype that it computes in,
            and "int8" if quantised, joined by "-": whatever may change its numbers.
        base: parameters. adapters: LoRA parameters or None. graphs: what `merge` puts them into.
        mesh: where the parameters lie.
        eos, pad: token ids that end an answer and that fill rows.
        spec: what `adapters` are, or None.
    """

    config: Qwen3VLConfig
    dtype: Any
    folder: pathlib.Path
    revision: str
    base: Any
    adapters: Any
    graphs: lora.Graphs
    mesh: jax.sharding.Mesh
    eos: tuple[int, ...]
    pad: int
    spec: LoRASpec | None = None

    def merge(self, adapters: Any, base: Any) -> Qwen3VL:
        """The net with these parameters; inside jit too."""
        return lora.merge(self.graphs, adapters, base)


def load_judge(
    folder: pathlib.Path,
    *,
    adapter: str | os.PathLike | None = None,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    scratch: int | None = None,
    quantize: str | None = None,
    serving: bool = False,
) -> JudgeNet:
    """Reads config, weights and adapter.

    Args:
        folder: in Hugging Face layout.
        adapter: PEFT folder, or None.
        dtype: of parameters and activations; by default bfloat16 on accelerators, float32 on CPU.
        mesh: by default the first device alone.
        scratch: draw the weights from this seed instead of reading them.
        quantize: "int8" keeps the kernels of all linear layers as int8 (`io.int8`), made so while they are read. The
            embedding and the head stay: quantised, a head errs in the very numbers that scores are read from, and
            where it is tied to the embedding there is one table for both.
        serving: lay the mesh's devices out for decoding, see `mesh.serving_mesh`; False keeps them for training.

    Raises:
        InputError: another architecture, weights or adapter that do not fit, or nothing there.
    """
    check_format(quantize)
    raw = read_json(folder / "config.json")
    config = Qwen3VLConfig.from_dict(raw)
    dtype = jnp.dtype(dtype or default_dtype())
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    eos, pad = _end_tokens(folder, raw)
    finish = quantize_linears if quantize else lambda model: model
    table, build = entries(config), lambda rngs: finish(Qwen3VL(config, rngs=rngs, dtype=dtype))
    abstract = abstract_net(build)[1]
    spec, adapters = read_adapter(adapter, table, abstract) if adapter else (None, None)
    if serving:
        mesh = serving_mesh(mesh, abstract, SHARDING)
    place = Placement(mesh, dtype, scratch=scratch)
    _, base = load_net(build, folder, "model", lambda names: table, SHARDING, place, ignore=ignored(config))
    graphs = lora.graphs_of(lambda: build(nnx.Rngs(0)), table, spec)
    if adapters is not None:
        adapters = place_whole(mesh, adapters)
    files = [*folder.glob("model*.safetensors"), *folder.glob("*.json"), *adapter_files(adapter)]
    revision = "-".join([fingerprint(files), dtype.name, *([quantize] if quantize else [])])
    return JudgeNet(config, dtype, folder, revision, base, adapters, graphs, mesh, eos, pad, spec)


def for_serving(net: JudgeNet) -> JudgeNet:
    """A net in training as a copy that is laid out for decoding (`mesh.serving_mesh`).

    Its weights travel once, instead of for every token. Where nothing would move it is the net itself.
    """
    mesh = serving_mesh(net.mesh, net.base, SHARDING)
    if mesh == net.mesh:
        return net
    whole = NamedSharding(mesh, PartitionSpec())
    where = shardings(net.base, SHARDING, mesh), jax.tree.map(lambda _: whole, net.adapters)
    base, adapters = jax.jit(lambda *trees: trees, out_shardings=where)(net.base, net.adapters)
    return dataclasses.replace(net, base=base, adapters=adapters, mesh=mesh)


def adapter_files(adapter: str | os.PathLike | None) -> list[pathlib.Path]:
    """The files that make an adapter: of a PEFT folder, or the one diffusers file; none for None."""
    if adapter is None:
        return []
    path = pathlib.Path(adapter)
    return [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in (".safetensors", ".json"))


def _end_tokens(folder: pathlib.Path, config: dict[str, Any]) -> tuple[tuple[int, ...], int]:
    """(ids that end an answer, padding id)."""
    path = folder / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    eos = settings.get("eos_token_id", config.get("text_config", {}).get("eos_token_id", config.get("eos_token_id")))
    if eos is None:
        raise InputError(f"neither {path} nor config.json names eos_token_id: an answer would never end")
    eos = tuple(eos) if isinstance(eos, list) else (eos,)
    return eos, settings.get("pad_token_id", eos[-1])


def fingerprint(files: Sequence[pathlib.Path], *, whole: int = 64 * 2**20, every: int = 2**20) -> str:
    """12 hex digits over the names and the bytes of files; "random" where there are none.

    Of a file of more than `whole` bytes a page of 4 KiB in `every` bytes is read, which no fine-tuning leaves as it is.
    """
    if not files:
        return "random"
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        page = 4096 if size > whole else every
        with path.open("rb") as stream:
            for start in range(0, size, every):
                stream.seek(start)
                digest.update(stream.read(page))
    return digest.hexdigest()[:12]
