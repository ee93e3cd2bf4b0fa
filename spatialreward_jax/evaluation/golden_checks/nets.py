"""The nets of a folder of goldens, loaded from their checkpoints once."""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.peft import LoRASpec, read_adapter
from spatialreward_jax.io.pretrained import Placement, load_net
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.models import autoencoder_kl as kl
from spatialreward_jax.models import lora, omnigen2, qwen2_5_text
from spatialreward_jax.reward.loading import JudgeNet, load_judge


class Net(NamedTuple):
    """A net split into its parameters and the rest."""

    config: Any
    graph: nnx.GraphDef
    params: dict

    def bind(self, params: Any) -> Any:
        """The module with these parameters; cheap, also under jit."""
        return nnx.merge(self.graph, params)


class AdaptedNet(NamedTuple):
    """A net with an adapter: graphs, the adapter's parameters and description, and the frozen rest."""

    graphs: lora.Graphs
    spec: LoRASpec
    adapters: dict
    base: dict

    def bind(self, adapters: Any, base: Any) -> Any:
        """The net with these parameters, to be called; `adapters` None gives the net without adapter."""
        return functools.partial(lora.apply, self.graphs, adapters, base)


class Goldens:
    """A folder of goldens: its settings and its nets.

    Attributes:
      folder: where it lies.
      settings: the parsed `goldens.json`: hyper-parameters and tolerances.
    """

    def __init__(self, folder: str | pathlib.Path):
        """Reads `goldens.json`. Raises InputError where there is none."""
        self.folder = pathlib.Path(folder)
        settings = self.folder / "goldens.json"
        if not settings.is_file():
            raise InputError(f"{self.folder} has no goldens.json: give a folder of reference goldens")
        self.settings = json.loads(settings.read_text())

    def read_json(self, *parts: str) -> Any:
        """A parsed JSON file of the folder."""
        return json.loads(self.folder.joinpath(*parts).read_text())

    def _load(self, build: Callable, parts: Sequence[str], stem: str, table: Callable, config: Any, **options) -> Net:
        place = Placement(make_mesh(devices=jax.devices()[:1]), jnp.dtype("float32"))
        rules = options.pop("rules")
        return Net(config, *load_net(build, self.folder.joinpath(*parts), stem, table, rules, place, **options))

    @functools.cached_property
    def autoencoder(self) -> Net:
        """The autoencoder of `omnigen2/vae`."""
        config = kl.AutoencoderConfig.from_dict(self.read_json("omnigen2", "vae", "config.json"))
        build = lambda rngs: kl.AutoencoderKL(config, rngs=rngs)
        table = lambda names: kl.entries(config)
        return self._load(build, ("omnigen2", "vae"), kl.STEM, table, config, rules=kl.SHARDING)

    @functools.cached_property
    def transformer(self) -> Net:
        """The editor's transformer of `omnigen2/transformer`."""
        config = omnigen2.OmniGen2Config.from_dict(self.read_json("omnigen2", "transformer", "config.json"))
        build = lambda rngs: omnigen2.OmniGen2Transformer(config, rngs=rngs)
        table = lambda names: omnigen2.ENTRIES
        where = ("omnigen2", "transformer")
        return self._load(build, where, omnigen2.STEM, table, config, rules=omnigen2.SHARDING)

    @functools.cached_property
    def text_tower(self) -> Net:
        """The editor's text tower of `omnigen2/mllm`."""
        config = qwen2_5_text.Qwen2_5TextConfig.from_dict(self.read_json("omnigen2", "mllm", "config.json"))
        build = lambda rngs: qwen2_5_text.Qwen2_5Text(config, rngs=rngs)
        table = lambda names: qwen2_5_text.entries(config, names)
        rules, ignore = qwen2_5_text.SHARDING, qwen2_5_text.IGNORED
        return self._load(build, ("omnigen2", "mllm"), "model", table, config, rules=rules, ignore=ignore)

    @functools.cached_property
    def judge(self) -> JudgeNet:
        """The judge of `spatialreward`."""
        return load_judge(self.folder / "spatialreward", dtype="float32")

    @functools.cached_property
    def adapted_transformer(self) -> AdaptedNet:
        """The editor's transformer with the adapter of the LoRA folder."""
        config, _, base = self.transformer
        folder = self.settings["grpo"]["lora"]["dir"]
        spec, adapters = read_adapter(self.folder / folder, omnigen2.ENTRIES, base)

        def make():
            model = omnigen2.OmniGen2Transformer(config, rngs=nnx.Rngs(0))
            lora.add_lora(model, omnigen2.ENTRIES, spec, nnx.Rngs(1))
            return model

        graphs, _, _ = lora.split(nnx.eval_shape(make))
        return AdaptedNet(graphs, spec, jax.tree.map(jnp.asarray, adapters), base)


def channels_last(image: Any) -> jax.Array:
    """[..., C, H, W] -> [..., H, W, C]."""
    return jnp.moveaxis(jnp.asarray(image), -3, -1)


def channels_first(image: Any) -> jax.Array:
    """[..., H, W, C] -> [..., C, H, W]."""
    return jnp.moveaxis(jnp.asarray(image), -1, -3)
