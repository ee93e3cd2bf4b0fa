"""The nets of a folder of goldens, loaded from their checkpoints once."""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.peft import LoRASpec, read_adapter
from spatialreward_jax.io.weights import CheckpointFiles, load_params
from spatialreward_jax.models import autoencoder_kl, lora, omnigen2


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
        """The module with these parameters; `adapters` None gives the net without adapter."""
        return lora.merge(self.graphs, adapters, base)


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

    @functools.cached_property
    def autoencoder(self) -> Net:
        """The autoencoder of `omnigen2/vae`."""
        config = autoencoder_kl.AutoencoderConfig.from_dict(self.read_json("omnigen2", "vae", "config.json"))
        make = lambda: autoencoder_kl.AutoencoderKL(config, rngs=nnx.Rngs(0))
        return load_net(self.folder / "omnigen2" / "vae", config, make, autoencoder_kl.entries(config))

    @functools.cached_property
    def transformer(self) -> Net:
        """The editor's transformer of `omnigen2/transformer`."""
        config = omnigen2.OmniGen2Config.from_dict(self.read_json("omnigen2", "transformer", "config.json"))
        make = lambda: omnigen2.OmniGen2Transformer(config, rngs=nnx.Rngs(0))
        return load_net(self.folder / "omnigen2" / "transformer", config, make, omnigen2.ENTRIES)

    @functools.cached_property
    def adapted_transformer(self) -> AdaptedNet:
        """The editor's transformer with the adapter of the LoRA folder."""
        config, _, base = self.transformer
        folder = self.settings.get("grpo", {}).get("lora", {}).get("dir", "lora")
        spec, adapters = read_adapter(self.folder / folder, omnigen2.ENTRIES, base)

        def make():
            model = omnigen2.OmniGen2Transformer(config, rngs=nnx.Rngs(0))
            lora.add_lora(model, omnigen2.ENTRIES, spec, nnx.Rngs(1))
            return model

        graphs, _, _ = lora.split(nnx.eval_shape(make))
        return AdaptedNet(graphs, spec, jax.tree.map(jax.numpy.asarray, adapters), base)


def load_net(folder: pathlib.Path, config: Any, make: Any, entries: Any, *, stem: str = "", ignore: Any = ()) -> Net:
    """Builds a net abstractly with `make` and loads the checkpoint of a folder into it, in float32."""
    graph, state = nnx.split(nnx.eval_shape(make))
    files = CheckpointFiles.open(folder, stem or omnigen2.STEM)
    params = load_params(files, entries, nnx.to_pure_dict(state), dtype=jax.numpy.float32, ignore=ignore)
    return Net(config, graph, params)


def channels_last(image: Any) -> Any:
    """[..., C, H, W] -> [..., H, W, C]."""
    return jax.numpy.moveaxis(jax.numpy.asarray(image), -3, -1)


def channels_first(image: Any) -> Any:
    """[..., H, W, C] -> [..., C, H, W]."""
    return jax.numpy.moveaxis(jax.numpy.asarray(image), -1, -3)
