"""published/*.json: names and shapes of the published checkpoints, one to one with our tables."""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.golden_checks.case import COMPARED, FAILED, Row
from spatialreward_jax.io.pretrained import abstract_net
from spatialreward_jax.io.weights import Entry, check_table
from spatialreward_jax.models import autoencoder_kl as kl
from spatialreward_jax.models import omnigen2, qwen2_5_text, qwen3_vl

Build = Callable[[nnx.Rngs], nnx.Module]
Described = tuple[Build, Sequence[Entry], Sequence[str]]


def _qwen3_vl(config: Mapping[str, Any], names: Sequence[str]) -> Described:
    del names
    sizes = qwen3_vl.Qwen3VLConfig.from_dict(config)
    return lambda rngs: qwen3_vl.Qwen3VL(sizes, rngs=rngs), qwen3_vl.entries(sizes), qwen3_vl.ignored(sizes)


def _qwen2_5_text(config: Mapping[str, Any], names: Sequence[str]) -> Described:
    sizes = qwen2_5_text.Qwen2_5TextConfig.from_dict(config)
    build = lambda rngs: qwen2_5_text.Qwen2_5Text(sizes, rngs=rngs)
    return build, qwen2_5_text.entries(sizes, names), qwen2_5_text.IGNORED


def _omnigen2(config: Mapping[str, Any], names: Sequence[str]) -> Described:
    del names
    sizes = omnigen2.OmniGen2Config.from_dict(config)
    return lambda rngs: omnigen2.OmniGen2Transformer(sizes, rngs=rngs), omnigen2.ENTRIES, ()


def _autoencoder(config: Mapping[str, Any], names: Sequence[str]) -> Described:
    del names
    sizes = kl.AutoencoderConfig.from_dict(config)
    return lambda rngs: kl.AutoencoderKL(sizes, rngs=rngs), kl.entries(sizes), ()


FILES: dict[str, Callable[[Mapping[str, Any], Sequence[str]], Described]] = {
    "qwen3_vl": _qwen3_vl,
    "qwen2_5_vl": _qwen2_5_text,
    "omnigen2_transformer": _omnigen2,
    "flux_vae": _autoencoder,
}
"""Start of a file's name -> what describes its net."""


def check_published(folder: pathlib.Path) -> Iterator[Row]:
    """One row for each file of the folder: error 0 where tensors and parameters correspond one to one."""
    for path in sorted(folder.iterdir()):
        name = f"{folder.name}/{path.name}"
        describe = next((FILES[start] for start in FILES if path.name.startswith(start)), None)
        if describe is None or path.suffix != ".json":
            yield Row(name, "", FAILED, None, None, False, "no check knows this file")
            continue
        try:
            file = json.loads(path.read_text())
            build, entries, ignore = describe(file["config"], list(file["tensors"]))
            check_table(file["tensors"], entries, abstract_net(build)[1], ignore=ignore)
            yield Row(name, "tensors", COMPARED, 0.0, 0.0, True, f"{len(file['tensors'])} names and shapes")
        except (InputError, ValueError, KeyError) as error:
            yield Row(name, "tensors", FAILED, None, None, False, f"{type(error).__name__}: {error}")
