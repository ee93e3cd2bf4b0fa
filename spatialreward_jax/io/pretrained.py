"""One net from a folder: its configuration, its weights on the mesh, or random ones where a folder ships none."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.int8 import is_quantized
from spatialreward_jax.io.weights import CheckpointFiles, Entry, load_params
from spatialreward_jax.mesh import Rules, path_name, shardings

ASSETS = pathlib.Path(__file__).parents[1] / "assets"


def resolve(path: str | pathlib.Path, kind: str) -> pathlib.Path:
    """Folder of a checkpoint: `embedded` is the one of this kind ("editor", "judge") that ships with the package.

    Raises:
      InputError: there is no such folder.
    """
    folder = ASSETS / "embedded" / kind if str(path) == "embedded" else pathlib.Path(path)
    if not str(path) or not folder.is_dir():
        raise InputError(f"{kind} {str(path)!r} is no folder: give a checkpoint's folder, or 'embedded'")
    return folder


WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".msgpack", ".h5")


def copy_companions(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies what stands beside the weights of a checkpoint (configurations, tokenizer, ...), links followed."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith(WEIGHTS):
            (target / file.name).write_bytes(file.read_bytes())


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """A parsed JSON object. Raises InputError when it is missing or broken."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"{file} is missing: give the folder of a checkpoint in the published layout") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no readable JSON: {str(error).splitlines()[0]}") from None


def default_dtype() -> Any:
    """bfloat16 where there is an accelerator, float32 on CPU (which has no fast bfloat16)."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def abstract_net(build: Callable[[nnx.Rngs], nnx.Module], dtype: Any = None) -> tuple[nnx.GraphDef, dict]:
    """(graph, parameter shapes) of a net, without allocating it.

    `dtype` replaces the parameters' own, but for quantised ones.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def cast(path, leaf):
        own = dtype is None or is_quantized(path_name(path), leaf.dtype)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if own else dtype)

    return graph, jax.tree_util.tree_map_with_path(cast, nnx.to_pure_dict(state))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where and how a net's parameters are stored.

    Attributes:
      mesh: the devices.
      dtype: of the parameters.
      scratch: draw the weights from this seed, whatever the folder ships; None reads them.
    """

    mesh: jax.sharding.Mesh
    dtype: Any
    scratch: int | None = None


def load_net(
    build: Callable[[nnx.Rngs], nnx.Module],
    folder: pathlib.Path,
    stem: str,
    table: Callable[[Sequence[str]], Sequence[Entry]],
    rules: Rules,
    place: Placement,
    *,
    ignore: Sequence[str] = (),
) -> tuple[nnx.GraphDef, dict]:
    """(graph, parameters) of a net from its checkpoint; every device reads only its slice.

    Args:
      build: makes the module.
      folder: holds `<stem>.safetensors` or its shards.
      stem: start of the weights' file names.
      table: the net's rows, given the tensor names that are there.
      rules: the net's sharding table.
      place: mesh and dtype.
      ignore: tensors left out on purpose, see `io.weights.check_table`.

    Raises:
      InputError: there are no weights, or they do not fit the architecture.
    """
    graph, abstract = abstract_net(build, place.dtype)
    where = shardings(abstract, rules, place.mesh)
    if place.scratch is not None:
        return graph, _random(build, where, abstract, place.scratch)
    files = CheckpointFiles.open(folder, stem)
    return graph, load_params(files, table(list(files.files)), abstract, shardings=where, ignore=ignore)


def _random(build, where, abstract, seed):
    """Parameters drawn from a seed; no array ever exists unsharded."""

    def init():
        params = nnx.to_pure_dict(nnx.state(build(nnx.Rngs(seed))))
        return jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), params, abstract)

    return jax.jit(init, out_shardings=where)()
