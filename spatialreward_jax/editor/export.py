"""An editor's folder in the published OmniGen2 layout, from its nets."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax

from spatialreward_jax.editor.nets import EditorNets
from spatialreward_jax.io.pretrained import WEIGHTS, copy_companions, read_json
from spatialreward_jax.io.weights import save_params
from spatialreward_jax.models import autoencoder_kl, omnigen2
from spatialreward_jax.models.qwen_layers import decoder_entries

PARTS = {"transformer": "transformer", "vae": "vae", "text": "mllm"}
"""Name of a net in `EditorNets` -> its sub-folder."""


def write_editor(
    folder: pathlib.Path, nets: EditorNets, changed: Mapping[str, Any], *, dtype: Any, vae_settings: Mapping[str, float]
) -> None:
    """Writes a folder that `Editor.from_pretrained` loads: configurations and tokenizer copied from `nets.folder`.

    Args:
      folder: to write to.
      nets: the editor that training began with.
      changed: parameters by name of the net ("transformer", "vae", "text"); weights of the others are copied as files
        where `nets.folder` ships them. A changed text tower is written without the vision tower beside it.
      dtype: of written weights.
      vae_settings: keys of the autoencoder's config.json that are to be replaced.

    All processes call it; only the first one writes.
    """
    source, first = nets.folder, jax.process_index() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("", *(p.name for p in source.iterdir() if p.is_dir())):
            copy_companions(source / part, folder / part)
        config = folder / "vae" / "config.json"
        config.write_text(json.dumps(read_json(config) | dict(vae_settings), indent=2) + "\n")
    tables = {
        "transformer": (omnigen2.ENTRIES, omnigen2.STEM),
        "vae": (autoencoder_kl.entries(nets.vae.config), autoencoder_kl.STEM),
        "text": (decoder_entries("model.", nets.text.config.text), "model"),
    }
    for name, (table, stem) in tables.items():
        part = PARTS[name]
        shipped = [file for file in (source / part).iterdir() if file.name.endswith(WEIGHTS)]
        if name in changed or not shipped:
            params = changed.get(name, getattr(nets, name).params)
            save_params(folder / part, params, table, stem=stem, dtype=dtype)
        elif first:
            for file in shipped:
                shutil.copyfile(file, folder / part / file.name)


def with_params(nets: EditorNets, params: Mapping[str, Any]) -> EditorNets:
    """The editor with other parameters, by name: "transformer" (the base), "vae", "text", or "adapters"."""
    new: dict[str, Any] = {n: dataclasses.replace(getattr(nets, n), params=params[n]) for n in PARTS if n in params}
    if "adapters" in params:
        new["adapters"] = params["adapters"]
    return dataclasses.replace(nets, **new)
