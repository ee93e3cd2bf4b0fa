"""One table per net loads and saves its checkpoint: safetensors files in the published layout <-> parameter trees."""

import collections
import dataclasses
import functools
import gc
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.int8 import Int8Reader, scale_name
from spatialreward_jax.io.layout import Layout
from spatialreward_jax.mesh import on_host, path_name

PIECE = 2**24
"""Bytes of a tensor that are read at a time: beside what is loaded, the host holds one parameter and one such piece."""

LAYER = "{L}"
"""Stands for the layer number in a source name; the parameter stacks the layers on its first axis."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a table.

    Attributes:
      source: tensor name in the checkpoint, with `{L}` where layers stack.
      target: dotted parameter path.
      layout: axes of the tensor -> axes of the parameter without L (see `io.layout`); None if they are the same.
      sizes: sizes of axes that the parameter merges.
    """

    source: str
    target: str
    layout: str | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def stacked(self) -> bool:
        """Whether the parameter stacks one tensor per layer."""
        return LAYER in self.source

    def name(self, layer: int) -> str:
        """Tensor name of this layer."""
        return self.source.replace(LAYER, str(layer))

    def bind(self, shape: Sequence[int]) -> Layout:
        """Layout of one tensor, given the (stacked) parameter's shape."""
        return Layout.bind(self.layout, tuple(shape)[1:] if self.stacked else tuple(shape), self.sizes)


Matrices = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Dotted path of a kernel -> its axes that are inputs, and those that are outputs; an axis of layers is neither."""


def matrices(entries: Sequence[Entry], params: Any, prefix: str = "") -> Matrices:
    """The kernels of linear layers and convolutions among `params`: no embeddings, norms or biases.

    prefix: stands before every path, where `params` are a part of a larger tree.
    """
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    found = {}
    for entry in entries:
        if entry.target.endswith(".kernel") and entry.target in shapes:
            axes = entry.bind(shapes[entry.target]).matrix()
            found[prefix + entry.target] = tuple(tuple(a + entry.stacked for a in part) for part in axes)
    return found


class CheckpointFiles:
    """The tensors of a folder: one `<stem>.safetensors`, or shards listed by `<stem>.safetensors.index.json`.

    Attributes:
      folder: where they lie.
      files: tensor name -> file.
    """

    def __init__(self, folder: pathlib.Path, files: dict[str, pathlib.Path]):
        self.folder, self.files = folder, files

    @classmethod
    def open(cls, folder: str | pathlib.Path, stem: str = "model") -> "CheckpointFiles":
        """Lists the tensors without reading them.

        Raises:
          InputError: no weights there, a shard is missing, or a file is no safetensors file.
        """
        folder = pathlib.Path(folder)
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if index.exists():
            files = {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        elif single.exists():
            files = dict.fromkeys(_names(single), single)
        else:
            raise InputError(f"{folder} holds neither {single.name} nor {index.name}: give the folder of a checkpoint")
        absent = sorted({f.name for f in files.values() if not f.exists()})
        if absent:
            raise InputError(f"{index} lists files that are not there: {', '.join(absent)}; download them again")
        found = {file: _names(file) for file in set(files.values())}
        lost = sorted(name for name, file in files.items() if name not in found[file])
        if lost:
            raise InputError(f"{index} lists tensors that its files lack: {some(lost)}; download them again")
        return cls(folder, files)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, from the headers."""
        return {name: tuple(self.slice(name).get_shape()) for name in self.files}

    def slice(self, name: str) -> Any:
        """Lazy view of a tensor; indexing it reads that part from disk."""
        return _open(self.files[name]).get_slice(name)


def _open(file: pathlib.Path):
    try:
        state = file.stat()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    return _opened(file, (state.st_ino, state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=256)
def _opened(file: pathlib.Path, version: tuple[int, ...]):
    """version: tells a file from the one that was written again in its place."""
    del version
    try:
        return safe_open(file, "numpy")
    except Exception as error:
        raise InputError(f"{file} is no readable safetensors file ({error}); download it again") from None


def _names(file: pathlib.Path) -> list[str]:
    return list(_open(file).keys())


def some(names: Sequence[str], limit: int = 6) -> str:
    """The first names and how many more there are, for an error message."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def flatten(params: Any) -> dict[str, Any]:
    """Parameter tree -> {dotted path: leaf}."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def unflatten(leaves: Mapping[str, Any]) -> dict:
    """{dotted path: leaf} -> nested dicts; a number in a path is an index into an `nnx.List` and becomes an int."""
    tree: dict = {}
    for name, leaf in leaves.items():
        *parents, last = (int(key) if key.isdigit() else key for key in name.split("."))
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _tensors(entries: Sequence[Entry], shapes: Mapping[str, tuple]) -> Iterator[tuple[str, Entry, Layout]]:
    """(tensor name, entry, layout) of every tensor that parameters of these shapes are made of."""
    for entry in entries:
        shape = shapes[entry.target]
        layout = entry.bind(shape)
        for layer in range(shape[0] if entry.stacked else 1):
            yield entry.name(layer), entry, layout


def check_table(
    tensors: Mapping[str, Sequence[int]], entries: Sequence[Entry], abstract: Any, *, ignore: Sequence[str] = ()
) -> None:
    """Checks that tensors and parameters correspond one to one, in shape too.

    Args:
      tensors: shape of every tensor in the checkpoint.
      entries: the net's table.
      abstract: parameter tree of arrays or `jax.ShapeDtypeStruct`.
      ignore: regular expressions (from the start of the name) of tensors that this net leaves out on purpose.

    Raises:
      ValueError: the table itself does not cover the parameters exactly once.
      InputError: missing, unused or misshapen tensors, all listed together.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(abstract).items()}
    _check_rows(entries, shapes)
    wanted = {name: layout.source_shape for name, _, layout in _tensors(entries, shapes)}
    used = {name: tuple(shape) for name, shape in tensors.items() if not any(re.match(i, name) for i in ignore)}
    problems = {
        "missing": sorted(set(wanted) - set(used)),
        "not used by this architecture": sorted(set(used) - set(wanted)),
        "of another shape": sorted(
            f"{name} {used[name]} (wanted {wanted[name]})"
            for name in set(wanted) & set(used)
            if wanted[name] != used[name]
        ),
    }
    if any(problems.values()):
        raise InputError(
            "the checkpoint does not fit its config.json: "
            + "; ".join(f"{len(names)} tensors {what}: {some(names)}" for what, names in problems.items() if names)
        )


def _check_rows(entries: Sequence[Entry], shapes: Mapping[str, tuple]) -> None:
    """Raises ValueError unless every parameter has exactly one row, and every row its parameter."""
    rows = collections.Counter(entry.target for entry in entries)
    wrong = sorted(set(shapes) ^ set(rows)) + [name for name, count in rows.items() if count > 1]
    if wrong:
        raise ValueError(f"table and parameters do not correspond: {some(wrong)}")


def load_params(
    source: CheckpointFiles,
    entries: Sequence[Entry],
    abstract: Any,
    *,
    shardings: Any = None,
    dtype: Any = None,
    ignore: Sequence[str] = (),
) -> dict:
    """Reads a parameter tree; every device reads only its slice, and the host holds one parameter at a time.

    A kernel with a `kernel_scale` beside it in `abstract` is quantised as it is read, see `io.int8`.

    Args:
      source: the checkpoint.
      entries: the net's table.
      abstract: tree of `jax.ShapeDtypeStruct`.
      shardings: tree of `jax.sharding.Sharding` like `abstract`; by default the first local device holds everything.
      dtype: of the result; by default each parameter's dtype in `abstract`. Quantised kernels keep theirs.
      ignore: see `check_table`.

    Raises:
      InputError: the checkpoint does not fit, see `check_table`.
    """
    leaves = flatten(abstract)
    scales = {scale_name(name) for name in leaves} & set(leaves)
    check_table(source.shapes(), entries, {n: x for n, x in leaves.items() if n not in scales}, ignore=ignore)
    where = flatten(shardings) if shardings is not None else {}
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    loaded, held = {}, 0
    for entry in entries:
        name = entry.target
        leaf = leaves[name]
        if scale_name(name) in scales:
            scale = leaves[scale_name(name)]
            layer = functools.partial(_read_layer, source, entry, leaf.shape)
            reader = Int8Reader(layer, leaf.shape, scale.shape, stacked=entry.stacked)
            readers = {name: reader.kernel, scale_name(name): reader.scale}
        else:
            readers = {name: functools.partial(_read, source, entry, leaf.shape, dtype or leaf.dtype)}
        for name, read in readers.items():
            place = where.get(name, default)
            loaded[name] = jax.block_until_ready(jax.make_array_from_callback(leaves[name].shape, place, read))
            held += loaded[name].nbytes
        if held > PIECE:  # what was read stays on the host until the transfer is over *and* jax lets go of it
            gc.collect()
            held = 0
    return unflatten(loaded)


def _read_layer(source: CheckpointFiles, entry: Entry, shape: tuple, layer: int, index: tuple) -> np.ndarray:
    return entry.bind(shape).read(source.slice(entry.name(layer)), index)


def _read(source: CheckpointFiles, entry: Entry, shape: tuple, dtype: Any, index: tuple[slice, ...]) -> np.ndarray:
    """The part `index` of a parameter, read a layer and at most `PIECE` bytes at a time into its final place."""
    layout = entry.bind(shape)
    layers = range(*index[0].indices(shape[0])) if entry.stacked else (0,)
    part, sizes = (index[1:], shape[1:]) if entry.stacked else (index, shape)
    out = np.empty((len(layers), *(len(range(*i.indices(size))) for i, size in zip(part, sizes))), dtype)
    for row, layer in enumerate(layers):
        stored = source.slice(entry.name(layer))
        for place, piece in _pieces(layout.row_axis, part, sizes, out[row].nbytes):
            out[row][place] = layout.read(stored, piece)
    return out if entry.stacked else out[0]


def _pieces(axis: int | None, part: tuple[slice, ...], sizes: Sequence[int], size: int) -> Iterator[tuple]:
    """(place in the result, part of the parameter) of pieces along an axis, none larger than `PIECE` by much."""
    if axis is None or size <= PIECE:
        yield (..., part)
        return
    start, stop, _ = part[axis].indices(sizes[axis])
    step = max(1, (stop - start) * PIECE // size)
    for at in range(start, stop, step):
        end = min(at + step, stop)
        place = (*(slice(None),) * axis, slice(at - start, end - start))
        yield place, (*part[:axis], slice(at, end), *part[axis + 1 :])


def save_params(
    folder: str | pathlib.Path,
    params: Any,
    entries: Sequence[Entry],
    *,
    stem: str = "model",
    max_shard_bytes: int = 5 * 2**30,
    dtype: Any = None,
) -> None:
    """Writes the published layout: `<stem>.safetensors`, or numbered shards with an index when it is larger.

    Bit-exact for parameters that were loaded in the checkpoint's dtype. The host holds one shard and one parameter at a
    time. Only process 0 writes; every process must call.

    Raises:
      ValueError: the table does not cover exactly these parameters (adapted or int8 trees are not written so).
    """
    folder, leaves = pathlib.Path(folder), flatten(params)
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    _check_rows(entries, shapes)
    item = lambda entry: np.dtype(dtype or leaves[entry.target].dtype).itemsize
    sizes = {n: math.prod(layout.source_shape) * item(entry) for n, entry, layout in _tensors(entries, shapes)}
    files, where = _share_out(sizes, stem, max_shard_bytes)
    first = jax.process_index() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
    shard: dict[str, np.ndarray] = {}
    for entry in entries:
        value = on_host(leaves[entry.target])
        value = value if dtype is None else value.astype(dtype)
        layout = entry.bind(value.shape)
        for layer in range(value.shape[0] if entry.stacked else 1):
            name = entry.name(layer)
            shard[name] = np.ascontiguousarray(layout.save(value[layer] if entry.stacked else value))
            if name == files[where[name]]:  # the last one of its file
                if first:
                    write_tensors(folder / where[name], shard)
                shard = {}
    if first and len(files) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_tensors(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes one safetensors file, marked as PyTorch's loaders want it, with the mode of any new file (the library's
    own is 0600, which the other users of a shared folder cannot read)."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt", **(metadata or {})})
    path.chmod(mode)


def _share_out(sizes: Mapping[str, int], stem: str, limit: int) -> tuple[dict[str, str], dict[str, str]]:
    """Tensors in order to files of at most `limit` bytes: ({file: its last tensor}, {tensor: its file})."""
    numbers, number, filled = {}, 0, 0
    for name, size in sizes.items():
        if filled and filled + size > limit:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += size
    names = [f"{stem}-{i + 1:05d}-of-{number + 1:05d}.safetensors" for i in range(number + 1)]
    names = names if number else [f"{stem}.safetensors"]
    where = {name: names[i] for name, i in numbers.items()}
    return {file: name for name, file in where.items()}, where
