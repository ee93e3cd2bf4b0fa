"""LoRA adapters as files, alpha included.

PEFT: `adapter_config.json` and `adapter_model.safetensors`, names `base_model.model.<module>.lora_A.weight`.
diffusers: `pytorch_lora_weights.safetensors`, names `transformer.<module>.lora_A.weight`, config in its metadata.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from safetensors import safe_open

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.layout import Layout
from spatialreward_jax.io.weights import Entry, flatten, some, unflatten, write_tensors
from spatialreward_jax.mesh import on_host

PEFT_PREFIX = "base_model.model."
DIFFUSERS_PREFIX = "transformer."
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
DIFFUSERS_METADATA = "lora_adapter_metadata"
FACTORS = {"a": "lora_A", "b": "lora_B"}
UNSUPPORTED = {  # PEFT options that change the arithmetic -> the value that leaves it alone
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}


@dataclasses.dataclass(frozen=True)
class LoRASpec:
    """Which linear layers are adapted, and how.

    Attributes:
      rank: r, the inner size.
      alpha: the update is scaled by alpha / rank.
      targets: module names as in the checkpoint; adapted is what equals one or ends with "." and one, as in PEFT.
      dropout: share of the adapters' inputs dropped in training.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0

    def __post_init__(self):
        if self.rank < 1 or not self.targets or not 0 <= self.dropout < 1:
            raise InputError(f"{self}: rank must be positive, targets not empty, and dropout in [0, 1)")

    def matches(self, module: str) -> bool:
        """Whether the module of this checkpoint name is adapted."""
        return any(module == target or module.endswith("." + target) for target in self.targets)


def module_name(entry: Entry) -> str:
    """Checkpoint name of the module behind a kernel's row, `{L}` included: `layers.{L}.attn.to_q`."""
    return entry.source.removesuffix(".weight")


def linear_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Rows of a net's table that are kernels of linear layers: two axes in the checkpoint, [out, in]."""
    kernels = (e for e in entries if e.target.endswith(".kernel") and e.source.endswith(".weight") and e.layout)
    return [e for e in kernels if len(_sides(e)) == 2]


def adapted_entries(entries: Sequence[Entry], spec: LoRASpec) -> list[Entry]:
    """Rows of a net's table whose module the spec adapts.

    Raises:
      InputError: a target names no linear layer of this net.
    """
    linear = linear_entries(entries)
    for target in spec.targets:
        one = dataclasses.replace(spec, targets=(target,))
        if not any(one.matches(module_name(e)) for e in linear):
            raise InputError(f"LoRA target {target!r} names no linear layer of this net: check the adapter or config")
    return [e for e in linear if spec.matches(module_name(e))]


def _sides(entry: Entry) -> list[str]:
    """Letters of the checkpoint's axes, one string per axis: `"(N H) D -> ..."` gives `["N H", "D"]`."""
    return [axis.strip("()") for axis in re.findall(r"\([^)]*\)|\S+", entry.layout.partition("->")[0])]


def adapter_entries(entry: Entry) -> list[Entry]:
    """The two rows of an adapter, derived from its kernel's row."""
    out, inner = _sides(entry)
    module, path = module_name(entry), entry.target.removesuffix("kernel") + "lora"
    return [
        Entry(f"{module}.lora_A.weight", f"{path}.a", f"r ({inner}) -> {inner} r"),
        Entry(f"{module}.lora_B.weight", f"{path}.b", f"({out}) r -> r {out}"),
    ]


def read_adapter(
    path: str | pathlib.Path, entries: Sequence[Entry], base: Any, *, alpha: float | None = None
) -> tuple[LoRASpec, dict]:
    """Reads a PEFT or diffusers adapter for the net of this table.

    Args:
      path: its folder, or the diffusers file.
      entries: the net's table.
      base: the net's parameters, or their shapes.
      alpha: for files that do not carry it.

    Returns:
      (spec, adapters): float32 NumPy arrays `a` [(L,) *in, r] and `b` [(L,) r, *out] under each layer's `lora`.

    Raises:
      InputError: no adapter there, one for another net, one without alpha, or one with options that we do not compute.
    """
    path = pathlib.Path(path)
    config, tensors = _read_files(path)
    for option, neutral in UNSUPPORTED.items():
        if config.get(option, neutral) not in (neutral, None):
            raise InputError(f"{path}: the adapter uses {option}={config[option]!r}, which is not supported")
    alpha = config.get("lora_alpha", alpha) if alpha is None else alpha
    if alpha is None:
        raise InputError(f"{path} carries no alpha, so its scale alpha/r is unknown: give alpha as in training")
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(base).items()}
    spec, leaves = _assemble(path, tensors, entries, shapes, config, float(alpha))
    return spec, unflatten(leaves)


def _read_files(path: pathlib.Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(PEFT-like configuration, tensors by name without prefix)."""
    config_file, peft_file = path / "adapter_config.json", path / "adapter_model.safetensors"
    file = path if path.is_file() else path / DIFFUSERS_FILE
    if peft_file.exists() and config_file.exists():
        config, file, prefix = json.loads(config_file.read_text()), peft_file, PEFT_PREFIX
    elif file.exists():
        config, prefix = {}, DIFFUSERS_PREFIX
    else:
        raise InputError(
            f"{path} is no adapter: neither {peft_file.name} with its config nor {DIFFUSERS_FILE} is there"
        )
    with safe_open(file, "numpy") as stored:
        tensors = {name.removeprefix(prefix): stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        if prefix == DIFFUSERS_PREFIX:
            metadata = json.loads((stored.metadata() or {}).get(DIFFUSERS_METADATA, "{}"))
            config = {name.removeprefix(prefix): value for name, value in metadata.items()}
    return config, tensors


def _assemble(
    path: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    entries: Sequence[Entry],
    shapes: Mapping[str, tuple],
    config: Mapping[str, Any],
    alpha: float,
) -> tuple[LoRASpec, dict[str, np.ndarray]]:
    """Stacks the factors of every adapted module; lists all that does not fit."""
    left, problems, leaves, adapted, ranks = dict(tensors), [], {}, [], set()
    for entry in linear_entries(entries):
        kernel = shapes[entry.target]
        layers = range(kernel[0] if entry.stacked else 1)
        if not any(row.name(i) in left for row in adapter_entries(entry) for i in layers):
            continue
        adapted.append(module_name(entry))
        ranks |= {left[n].shape[0] for i in layers if (n := adapter_entries(entry)[0].name(i)) in left}
        sizes = Layout.bind(entry.layout, kernel[1:] if entry.stacked else kernel, entry.sizes).sizes
        for row in adapter_entries(entry):
            found = [left.pop(row.name(i), None) for i in layers]
            problems += [f"{row.name(i)} is missing" for i, tensor in zip(layers, found) if tensor is None]
            layout = Layout.from_sizes(row.layout, {**sizes, "r": min(ranks, default=1)})
            wrong = [row.name(i) for i, t in zip(layers, found) if t is not None and t.shape != layout.source_shape]
            problems += [f"{name} has not the shape {layout.source_shape}" for name in wrong]
            if not problems:
                parts = [layout.load(tensor.astype(np.float32)) for tensor in found]
                leaves[row.target] = np.stack(parts) if entry.stacked else parts[0]
    problems += [f"{name} belongs to no layer of this net" for name in left]
    if problems or not adapted:
        raise InputError(f"{path} is no adapter for this net: {some(problems) or 'it is empty'}")
    named = config.get("target_modules")
    named = tuple(sorted(named)) if isinstance(named, list | tuple) else ()
    spec = LoRASpec(min(ranks), alpha, tuple(adapted), float(config.get("lora_dropout", 0.0)))
    if named and {module_name(e) for e in adapted_entries(entries, dataclasses.replace(spec, targets=named))} == set(
        adapted
    ):
        spec = dataclasses.replace(spec, targets=named)  # the short names, as the adapter's author wrote them
    return spec, leaves


def adapter_tensors(adapters: Any, spec: LoRASpec, entries: Sequence[Entry], prefix: str = "") -> dict[str, np.ndarray]:
    """Adapters, or a tree like them (gradients, moments), as named tensors in the checkpoint's layout, on the host."""
    leaves, tensors = flatten(adapters), {}
    for entry in adapted_entries(entries, spec):
        for row in adapter_entries(entry):
            value = on_host(leaves[row.target])
            layout = row.bind(value.shape)
            for layer in range(value.shape[0] if row.stacked else 1):
                tensor = layout.save(value[layer] if row.stacked else value)
                tensors[prefix + row.name(layer)] = np.ascontiguousarray(tensor)
    return tensors


def _targets(spec: LoRASpec, tensors: Mapping[str, np.ndarray], prefix: str) -> list[str]:
    """Short names as they are; names with `{L}` spelt out for every layer."""
    modules = sorted({name.removeprefix(prefix).rsplit(".lora_", 1)[0] for name in tensors})
    return sorted(spec.targets) if not any("{L}" in t for t in spec.targets) else modules


def write_peft(
    folder: str | pathlib.Path, adapters: Any, spec: LoRASpec, entries: Sequence[Entry], *, base_model: str = ""
) -> None:
    """Writes an adapter that `peft.PeftModel.from_pretrained` loads, with alpha. Process 0 writes; all must call."""
    folder = pathlib.Path(folder)
    tensors = adapter_tensors(adapters, spec, entries, PEFT_PREFIX)
    if jax.process_index():
        return
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model or None,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": _targets(spec, tensors, PEFT_PREFIX),
        "bias": "none",
        "init_lora_weights": "gaussian",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def write_diffusers(folder: str | pathlib.Path, adapters: Any, spec: LoRASpec, entries: Sequence[Entry]) -> None:
    """Writes the file that diffusers' `load_lora_weights` reads, config in its metadata. As `write_peft`."""
    folder = pathlib.Path(folder)
    tensors = adapter_tensors(adapters, spec, entries, DIFFUSERS_PREFIX)
    if jax.process_index():
        return
    config = {"r": spec.rank, "lora_alpha": spec.alpha, "target_modules": _targets(spec, tensors, DIFFUSERS_PREFIX)}
    packed = json.dumps({DIFFUSERS_PREFIX + name: value for name, value in config.items()}, sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / DIFFUSERS_FILE, tensors, {DIFFUSERS_METADATA: packed})
