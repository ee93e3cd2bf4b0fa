"""The device mesh, sharding tables and activation constraints.

A mesh always has the axes `data`, `fsdp` and `tensor` (size 1 where unused): a single device is no special case. A
net's table gives for each parameter path exactly one row (regex, mesh axes).
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from spatialreward_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
"""Mesh axes over which a batch axis is split."""

Rules = Sequence[tuple[str, tuple]]


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh [data, fsdp, tensor] over all devices; one size may be -1 and takes what is left.

    The axes are `Auto`: XLA's partitioner propagates shardings from parameters and `constrain` calls.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise ValueError(f"mesh sizes {dict(zip(AXES, sizes))}: use positive numbers and at most one -1")
    if -1 in sizes:
        known = -int(np.prod(sizes))
        if devices.size % known:
            wanted = ",".join(map(str, sizes))
            raise ValueError(f"mesh {wanted}: {devices.size} devices do not divide by {known}; choose other sizes")
        sizes[sizes.index(-1)] = devices.size // known
    if int(np.prod(sizes)) != devices.size:
        raise ValueError(f"mesh {dict(zip(AXES, sizes))} needs {int(np.prod(sizes))} devices, there are {devices.size}")
    return Mesh(devices.reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def parse_mesh(text: str) -> dict[str, int]:
    """ "4,2,1" -> sizes of the mesh axes data, fsdp, tensor. Raises InputError."""
    try:
        return dict(zip(AXES, (int(part) for part in text.split(",")), strict=True))
    except ValueError as error:
        raise InputError(f"--mesh={text}: want three numbers data,fsdp,tensor, one may be -1 (what is left)") from error


def mesh_of(text: str) -> Mesh:
    """The mesh that a program's --mesh asks for; "" is the first device alone. Raises InputError."""
    try:
        return make_mesh(**parse_mesh(text)) if text else make_mesh(devices=jax.devices()[:1])
    except ValueError as error:
        raise InputError(str(error)) from error


def path_name(path: tuple) -> str:
    """A tree path as the dotted name that tables use: `blocks.attn.q.kernel`."""
    return ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)


def shardings(abstract: Any, rules: Rules, mesh: Mesh) -> Any:
    """Tree of `NamedSharding` for a tree of arrays or shapes.

    A row's axes stand for the leading dimensions; an axis name, a tuple of names, or None each.

    Raises:
      ValueError: a path matches no row or several. InputError: a dimension is no multiple of its mesh axes' size.
    """

    def one(path, leaf):
        name = path_name(path)
        hits = [axes for regex, axes in rules if re.search(regex, name)]
        if len(hits) != 1:
            raise ValueError(f"{name}: {len(hits)} sharding rules match, want exactly one")
        if len(hits[0]) > len(leaf.shape):
            raise ValueError(f"{name} {leaf.shape}: its sharding rule has {len(hits[0])} axes")
        for size, axes in zip(leaf.shape, hits[0]):
            parts = int(np.prod([mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ())]))
            if size % parts:
                raise InputError(
                    f"{name} {leaf.shape}: {size} is no multiple of mesh axis {axes}={parts}: choose another --mesh"
                )
        return NamedSharding(mesh, P(*hits[0]))

    return jax.tree_util.tree_map_with_path(one, abstract)


def serving_mesh(mesh: Mesh, abstract: Any, rules: Rules) -> Mesh:
    """The devices of a mesh, laid out so that a net's weights stay where they are while it decodes.

    Decoding reads every weight once for each token. What is split over `fsdp` would be sent to all devices each time;
    what is split over `tensor` stays, and only the activations of the new tokens travel. So the devices of `fsdp` and
    `tensor` become one `tensor` axis, as long as it may be for every row of the net's table to divide: the key heads
    (8 in all published Qwen3-VL sizes) set the bound. Devices beyond that go to `data`: they hold a copy of the
    weights and decode rows of their own, so that no head is cut and no device decodes what another does.

    Args:
      mesh: of the run. abstract: the net's parameters as shapes. rules: its table.

    Raises:
      ValueError: as `shardings`.
    """
    share = mesh.shape["fsdp"] * mesh.shape["tensor"]
    for tensor in (n for n in range(share, 0, -1) if share % n == 0):
        laid = make_mesh(-1, 1, tensor, devices=mesh.devices.flatten())
        try:
            shardings(abstract, rules, laid)
        except ValueError:
            if tensor == 1:
                raise
            continue
        break
    return laid


def batch_sharding(mesh: Mesh, batch: int) -> NamedSharding:
    """Sharding of an array whose leading axis is a batch of this size; replicated if it does not divide."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return NamedSharding(mesh, P(BATCH) if batch % parts == 0 else P())


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """A host array as a device array; over several processes each of them holds `x` whole and gives its devices' parts.

    All host arrays of a run reach the devices here: what decides shapes is then the same in every process.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        whole = NamedSharding(sharding.mesh, P(*sharding.spec))
        return jax.random.wrap_key_data(put(jax.random.key_data(x), whole), impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def place_batch(mesh: Mesh, x: Any) -> jax.Array:
    """A host array [B, ...] on the mesh, its leading axis split over the batch axes (see `batch_sharding`)."""
    x = np.asarray(x)
    return put(x, batch_sharding(mesh, x.shape[0]))


def place_whole(mesh: Mesh, tree: Any) -> Any:
    """Host arrays (random keys too) on the mesh, each whole on every device."""
    return jax.tree.map(lambda x: put(x, NamedSharding(mesh, P())), tree)


def on_host(leaf: Any) -> np.ndarray:
    """The whole array as NumPy, also where it is spread over processes (then every process must call)."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """x [...] with its leading axes split over these mesh axes: for each a name, a tuple of names, or None.

    Does nothing outside a mesh context (`jax.set_mesh`).
    Axes that do not divide their dimension are left alone, so that odd batch sizes stay legal.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x

    def fits(size, axis):
        names = (axis,) if isinstance(axis, str) else axis or ()
        return axis if size % int(np.prod([mesh.shape[a] for a in names])) == 0 else None

    return jax.lax.with_sharding_constraint(x, P(*(fits(s, a) for s, a in zip(x.shape, axes))))
