"""The nets of a run as shapes and shardings: everything that compiling needs, nothing that takes memory."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatialreward_jax.editor.nets import EditorNets, Net, read_configs
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.int8 import check_format
from spatialreward_jax.io.peft import LoRASpec
from spatialreward_jax.io.pretrained import ASSETS, abstract_net, read_json, resolve
from spatialreward_jax.mesh import Rules, serving_mesh, shardings
from spatialreward_jax.models import autoencoder_kl, lora, omnigen2, qwen2_5_text, qwen3_vl
from spatialreward_jax.models.layers import quantize_linears
from spatialreward_jax.reward.loading import JudgeNet

PUBLISHED = ASSETS / "published"
"""Sizes of the published editor and judge: their `config.json` files, without weights."""


def folder_of(path: str, kind: str) -> pathlib.Path:
    """The folder of an editor or a judge; "" and "published" stand for the published sizes. Raises InputError."""
    return PUBLISHED / kind if path in ("", "published") else resolve(path, kind)


def placed(abstract: Any, where: Any) -> Any:
    """Shapes with shardings; `where` is a tree of them, or one for all."""
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda _: where, abstract)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where)


def whole(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def editor_nets(
    folder: pathlib.Path, mesh: Mesh, *, dtype: Any, spec: LoRASpec | None, layers: int | None = None
) -> EditorNets:
    """Transformer (with adapters if there is a spec), autoencoder and text tower as `editor.nets.load_nets` lays them
    out.

    Args:
      folder: holds `transformer/`, `vae/` and `mllm/`, each with a `config.json`.
      mesh: the devices, which need not be there.
      dtype: of transformer and text tower; "" is bfloat16.
      spec: of the adapters, or None.
      layers: cut the transformer and the text tower to this depth, for tests.

    Raises:
      InputError: a config is missing or of another architecture, or a size does not divide over the mesh.
    """
    dtype = jnp.dtype(dtype or jnp.bfloat16)
    configs = read_configs(folder)
    flow, image, text = configs.transformer, configs.vae, configs.text
    if layers:
        flow = dataclasses.replace(flow, num_layers=layers)
        text = dataclasses.replace(text, text=dataclasses.replace(text.text, layers=layers))
    build = lambda rngs: omnigen2.OmniGen2Transformer(flow, rngs=rngs)
    graph, params = _net(build, omnigen2.SHARDING, mesh, dtype)
    adapted, adapters = lora.Graphs(graph, graph), None
    if spec is not None:
        adapted, adapters = _adapters(build, spec, whole(mesh))
    encoder = lambda rngs: autoencoder_kl.AutoencoderKL(image, rngs=rngs)
    tower = lambda rngs: qwen2_5_text.Qwen2_5Text(text, rngs=rngs, dtype=dtype)
    return EditorNets(
        transformer=Net(adapted, params, flow),
        vae=Net(*_net(encoder, autoencoder_kl.SHARDING, mesh, jnp.float32), config=image),
        text=Net(*_net(tower, qwen2_5_text.SHARDING, mesh, dtype), config=text),
        tokenizer=None,  # nothing is tokenised: lengths are given
        mesh=mesh,
        dtype=dtype,
        folder=folder,
        adapters=adapters,
        spec=spec,
    )


def judge_net(
    folder: pathlib.Path, mesh: Mesh, *, dtype: Any, quantize: str | None = None, layers: int | None = None
) -> JudgeNet:
    """A judge as `reward.loading.load_judge` lays it out for serving.

    Arguments and errors as in `editor_nets`; `quantize` as in `load_judge`.
    """
    check_format(quantize)
    dtype = jnp.dtype(dtype or jnp.bfloat16)
    config = qwen3_vl.Qwen3VLConfig.from_dict(read_json(folder / "config.json"))
    if layers:
        vision = dataclasses.replace(config.vision, layers=layers, taps=tuple(range(min(layers, 3))))
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, layers=layers), vision=vision)
    finish = quantize_linears if quantize else lambda model: model
    build = lambda rngs: finish(qwen3_vl.Qwen3VL(config, rngs=rngs, dtype=dtype))
    mesh = serving_mesh(mesh, abstract_net(build)[1], qwen3_vl.SHARDING)
    graph, base = _net(build, qwen3_vl.SHARDING, mesh, dtype)
    graphs = lora.Graphs(graph, graph)
    return JudgeNet(config, dtype, folder, "planned", base, None, graphs, mesh, eos=(0,), pad=0)


def _net(build, rules: Rules, mesh: Mesh, dtype) -> tuple[nnx.GraphDef, dict]:
    graph, abstract = abstract_net(build, dtype)
    try:
        return graph, placed(abstract, shardings(abstract, rules, mesh))
    except ValueError as error:
        raise InputError(f"{error}: give another --mesh") from None


def _adapters(build, spec: LoRASpec, where: NamedSharding) -> tuple[lora.Graphs, dict]:
    """Graphs and adapter shapes."""

    def make():
        model = build(nnx.Rngs(0))
        lora.add_lora(model, omnigen2.ENTRIES, spec, nnx.Rngs(0))
        return model

    graphs, adapters, _ = lora.split(nnx.eval_shape(make))
    return graphs, placed(adapters, where)
