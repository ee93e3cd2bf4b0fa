"""A judge's net from a folder in Hugging Face layout, with an optional adapter, laid out on a mesh."""

import dataclasses
import hashlib
import json
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.peft import LoRASpec, read_adapter
from spatialreward_jax.io.weights import CheckpointFiles, load_params
from spatialreward_jax.mesh import make_mesh, shardings
from spatialreward_jax.models import lora
from spatialreward_jax.models.qwen3_vl import SHARDING, Qwen3VL, Qwen3VLConfig, entries, ignored

EMBEDDED = pathlib.Path(__file__).parent.parent / "assets" / "embedded" / "judge"
RANDOM_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class JudgeNet:
    """A Qwen3-VL net as pure data.

    Attributes:
        config: sizes. dtype: of parameters and activations.
        folder: where it came from. revision: fingerprint of weights and adapter.
        base: parameters. adapters: LoRA parameters or None. graphs: what `merge` puts them into.
        mesh: where the parameters lie.
        eos, pad: token ids that end an answer and that fill rows.
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

    def merge(self, adapters: Any, base: Any) -> Qwen3VL:
        """The net with these parameters; inside jit too."""
        return lora.merge(self.graphs, adapters, base)


def judge_folder(name: str | os.PathLike) -> pathlib.Path:
    """The folder of a judge: `embedded`, or a path. Raises InputError where there is none."""
    folder = EMBEDDED if name == "embedded" else pathlib.Path(name)
    if not (folder / "config.json").is_file():
        raise InputError(f"{name} is no judge: give `embedded` or a folder with config.json in Hugging Face layout")
    return folder


def load_net(
    name: str | os.PathLike,
    *,
    adapter: str | os.PathLike | None = None,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> JudgeNet:
    """Reads config, weights and adapter.

    Args:
        name: folder or `embedded`.
        adapter: PEFT folder, or None.
        dtype: of parameters and activations; by default the one that `config.json` names, else float32.
        mesh: by default the first device alone.

    Raises:
        InputError: another architecture, weights or adapter that do not fit, or nothing there.
    """
    folder = judge_folder(name)
    raw = read_json(folder / "config.json")
    config = Qwen3VLConfig.from_dict(raw)
    dtype = jnp.dtype(dtype or _dtype_name(raw))
    table = entries(config)
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    make = lambda: Qwen3VL(config, rngs=nnx.Rngs(RANDOM_SEED), dtype=dtype)
    model = nnx.eval_shape(make)
    abstract = nnx.to_pure_dict(nnx.state(model))
    where = shardings(abstract, SHARDING, mesh)
    spec, adapters = read_adapter(adapter, table, abstract) if adapter else (None, None)
    if _has_weights(folder):
        files = CheckpointFiles.open(folder)
        base = load_params(files, table, abstract, shardings=where, dtype=dtype, ignore=ignored(config))
        revision = fingerprint([*set(files.files.values()), *_adapter_files(adapter)])
    elif folder == EMBEDDED:
        warnings.warn("the embedded judge has no trained weights: its answers are random text", stacklevel=2)
        base = jax.jit(lambda: _cast(nnx.to_pure_dict(nnx.state(make())), dtype), out_shardings=where)()
        revision = f"random-{RANDOM_SEED}"
    else:
        raise InputError(f"{folder} holds no weights (model.safetensors or its shards): give a complete checkpoint")
    if adapters is not None:
        adapters = jax.device_put(adapters, NamedSharding(mesh, PartitionSpec()))
    eos, pad = _end_tokens(folder, raw)
    return JudgeNet(config, dtype, folder, revision, base, adapters, _graphs(model, table, spec), mesh, eos, pad)


def _graphs(model: Qwen3VL, table: Sequence, spec: LoRASpec | None) -> lora.Graphs:
    if spec is None:
        plain = nnx.graphdef(model)
        return lora.Graphs(plain, plain)

    def adapted():
        lora.add_lora(model, table, spec, nnx.Rngs(0))
        return model

    return lora.split(nnx.eval_shape(adapted))[0]


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _dtype_name(config: dict[str, Any]) -> str:
    """The dtype that a config names, in the fields of transformers 4 and 5."""
    text = config.get("text_config", {})
    names = (config.get("dtype"), config.get("torch_dtype"), text.get("dtype"), text.get("torch_dtype"))
    return next((name for name in names if name), "float32")


def _has_weights(folder: pathlib.Path) -> bool:
    return any((folder / f"model.safetensors{end}").exists() for end in ("", ".index.json"))


def _adapter_files(adapter: str | os.PathLike | None) -> list[pathlib.Path]:
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


def fingerprint(files: Sequence[pathlib.Path], *, blocks: int = 16, block: int = 4096) -> str:
    """12 hex digits over names, sizes and evenly spaced blocks of files: cheap, yet sensitive to fine-tuning."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as stream:
            for n in range(blocks):
                stream.seek(n * max(size - block, 0) // (blocks - 1))
                digest.update(stream.read(block))
    return digest.hexdigest()[:12]


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError when it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as why:
        raise InputError(f"{path} is missing: give a complete checkpoint folder in Hugging Face layout") from why
    except ValueError as why:
        raise InputError(f"{path} is no readable JSON: {why}") from why
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    return value
