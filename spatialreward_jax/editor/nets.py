"""The editor's three nets and its tokenizer, from a folder in the published OmniGen2 layout."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.huggingface import PreTrainedTokenizerBase, load_tokenizer
from spatialreward_jax.io.peft import LoRASpec, read_adapter
from spatialreward_jax.io.pretrained import Placement, default_dtype, load_net, read_json, resolve
from spatialreward_jax.mesh import make_mesh, put
from spatialreward_jax.models import autoencoder_kl, lora, omnigen2, qwen2_5_text

PARTS = ("transformer", "vae", "mllm")
"""Folders of an editor's nets."""


@dataclasses.dataclass
class Net:
    """A net as a pure function: `nnx.merge(graph, params)` inside jit."""

    graph: nnx.GraphDef
    params: dict
    config: Any


@dataclasses.dataclass
class EditorNets:
    """Everything that the editor computes with, on one mesh.

    Attributes:
      transformer: the rectified-flow transformer; `graph` is a `models.lora.Graphs`.
      adapters: LoRA parameters of the transformer, or None.
      spec: what `adapters` are, or None.
      vae: the image autoencoder, float32.
      text: the text tower.
      tokenizer: of the text tower, with its chat template.
      mesh: where the parameters lie.
      dtype: of the transformer's and the text tower's computation.
      folder: where they came from.
    """

    transformer: Net
    vae: Net
    text: Net
    tokenizer: PreTrainedTokenizerBase
    mesh: jax.sharding.Mesh
    dtype: Any
    folder: pathlib.Path
    adapters: dict | None = None
    spec: LoRASpec | None = None

    @property
    def multiple(self) -> int:
        """Image sides are multiples of this many pixels."""
        return EditorConfigs(self.transformer.config, self.vae.config, self.text.config).multiple

    def add_adapters(self, spec: LoRASpec, seed: int) -> None:
        """Attaches new adapters to the transformer: A random, B zero, so that the net is unchanged at first."""
        net = self.transformer
        net.graph, adapters = lora.new_adapters(net.graph.plain, net.params, omnigen2.ENTRIES, spec, seed)
        self.spec, self.adapters = spec, self._place(adapters)

    def read_adapter(self, path: str | pathlib.Path, alpha: float | None = None) -> None:
        """Attaches an adapter from a PEFT or diffusers file. Raises InputError when it is for another net."""
        spec, adapters = read_adapter(path, omnigen2.ENTRIES, self.transformer.params, alpha=alpha)
        self._attach(spec)
        self.adapters = self._place(adapters)

    def _attach(self, spec: LoRASpec) -> None:
        plain = lambda: nnx.merge(self.transformer.graph.plain, self.transformer.params)
        self.transformer.graph = lora.graphs_of(plain, omnigen2.ENTRIES, spec)
        self.spec = spec

    def _place(self, adapters: dict) -> dict:
        everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        return jax.tree.map(lambda x: put(x, everywhere), adapters)


@dataclasses.dataclass(frozen=True)
class EditorConfigs:
    """What the nets of an editor's folder are, before any of their weights are read."""

    transformer: omnigen2.OmniGen2Config
    vae: autoencoder_kl.AutoencoderConfig
    text: qwen2_5_text.Qwen2_5TextConfig

    @property
    def multiple(self) -> int:
        """Image sides are multiples of this many pixels: a latent position's times a patch's."""
        return self.vae.downscale * self.transformer.patch_size


def read_configs(path: str | pathlib.Path) -> EditorConfigs:
    """Reads `config.json` of the three nets of a folder, or of the embedded editor.

    Raises:
      InputError: one is missing, or they do not belong together.
    """
    folder = resolve(path, "editor")
    files = {part: read_json(folder / part / "config.json") for part in PARTS}
    flow = omnigen2.OmniGen2Config.from_dict(files["transformer"])
    image = autoencoder_kl.AutoencoderConfig.from_dict(files["vae"])
    text = qwen2_5_text.Qwen2_5TextConfig.from_dict(files["mllm"])
    if flow.text_feat_dim != text.text.dim or flow.in_channels != image.latent_channels:
        raise InputError(
            f"{folder}: transformer wants text of width {flow.text_feat_dim} and {flow.in_channels} latent channels, "
            f"mllm and vae give {text.text.dim} and {image.latent_channels}: they belong to different editors"
        )
    return EditorConfigs(flow, image, text)


def load_nets(
    path: str | pathlib.Path,
    *,
    adapter: str | pathlib.Path | None = None,
    alpha: float | None = None,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    scratch: tuple[tuple[str, int], ...] = (),
) -> EditorNets:
    """Loads `transformer/`, `vae/`, `mllm/` and `processor/` of a folder, or the embedded editor.

    Args:
      path: the folder, or "embedded".
      adapter: a LoRA adapter for the transformer.
      alpha: of an adapter that does not carry it.
      dtype: of transformer and text tower; by default bfloat16, on CPU float32.
      mesh: by default the first device alone.
      scratch: (part, seed) pairs; these of "transformer", "vae" and "mllm" are drawn from the seed instead of read.

    Raises:
      InputError: something is missing or belongs to another architecture.
    """
    folder = resolve(path, "editor")
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    dtype = jnp.dtype(default_dtype() if dtype is None else dtype)
    configs = read_configs(folder)
    seeds, place = dict(scratch), Placement(mesh, dtype)
    at = {part: dataclasses.replace(place, scratch=seeds.get(part)) for part in PARTS}
    graph, params = load_net(
        lambda rngs: omnigen2.OmniGen2Transformer(configs.transformer, rngs=rngs),
        folder / "transformer",
        omnigen2.STEM,
        lambda names: omnigen2.ENTRIES,
        omnigen2.SHARDING,
        at["transformer"],
    )
    nets = EditorNets(
        transformer=Net(lora.Graphs(graph, graph), params, configs.transformer),
        vae=_load_vae(folder, configs.vae, dataclasses.replace(at["vae"], dtype=jnp.float32)),
        text=_load_text(folder, configs.text, at["mllm"]),
        tokenizer=load_tokenizer(folder / "processor"),
        mesh=mesh,
        dtype=dtype,
        folder=folder,
    )
    if adapter is not None:
        nets.read_adapter(adapter, alpha)
    return nets


def _load_vae(folder: pathlib.Path, config: autoencoder_kl.AutoencoderConfig, place: Placement) -> Net:
    build = lambda rngs: autoencoder_kl.AutoencoderKL(config, rngs=rngs)
    table = lambda names: autoencoder_kl.entries(config)
    return Net(
        *load_net(build, folder / "vae", autoencoder_kl.STEM, table, autoencoder_kl.SHARDING, place), config=config
    )


def _load_text(folder: pathlib.Path, config: qwen2_5_text.Qwen2_5TextConfig, place: Placement) -> Net:
    build = lambda rngs: qwen2_5_text.Qwen2_5Text(config, rngs=rngs, dtype=place.dtype)
    table = lambda names: qwen2_5_text.entries(config, names)
    rules, ignore = qwen2_5_text.SHARDING, qwen2_5_text.IGNORED
    return Net(*load_net(build, folder / "mllm", "model", table, rules, place, ignore=ignore), config=config)
