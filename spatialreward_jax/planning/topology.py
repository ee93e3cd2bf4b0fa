"""TPU slices that need not be there: chips, shapes, and their devices for the compiler."""

import dataclasses
import math
import os
import re
from typing import Any

from spatialreward_jax.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do, from the tables at https://cloud.google.com/tpu/docs (v4, v5e, v5p, v6e; 2026).

    Attributes:
      flops: peak bfloat16 FLOP/s. memory: bytes of HBM. bandwidth: HBM bytes/s.
      link: interconnect bytes/s of one port in one direction (bidirectional bandwidth / ports / 2).
      dimensions: axes of the torus.
    """

    flops: float
    memory: int
    bandwidth: float
    link: float
    dimensions: int

    @property
    def usable(self) -> int:
        """Bytes of HBM that programs get: the runtime keeps up to 0.75 GiB for itself (on a v6e)."""
        return self.memory - 3 * GIB // 4


CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1.2e12, 50e9, 3),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 50e9, 2),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 100e9, 3),
    "v6e": Chip(918e12, 32 * GIB, 1638e9, 100e9, 2),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: `name` as given, kind of chip, and chips along each axis."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """Reads `v6e:4x4` and the like.

        Raises:
          InputError: an unknown chip, or a shape that is none of it.
        """
        match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
        if match is None or match[1] not in CHIPS:
            raise InputError(
                f"topology {name!r} is unknown: give chip:shape with a chip of {', '.join(CHIPS)}, such as v6e:4x4"
            )
        shape = tuple(int(n) for n in match[2].split("x"))
        axes = CHIPS[match[1]].dimensions
        if len(shape) != axes or min(shape) < 1:
            example = "x".join(["2"] * axes)
            raise InputError(f"topology {name!r}: {match[1]} slices have {axes} axes, such as {match[1]}:{example}")
        return cls(name, match[1], shape)

    @property
    def chip(self) -> Chip:
        """One of its chips."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    def devices(self) -> list[Any]:
        """Descriptions of the devices, one per chip, that the compiler takes for real ones.

        Raises:
          InputError: libtpu is not installed, or knows no such slice.
        """
        try:
            import libtpu  # noqa: F401
        except ImportError:
            raise InputError(
                "compiling for TPUs needs libtpu, not a TPU: pip install 'spatialreward_jax[tpu]' (--flops_only needs "
                "neither)"
            ) from None
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        from jax.experimental import topologies

        extra: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if self.chips == 1 else {}
        if self.kind == "v4":  # its two cores as one device, as a v4 runs by default
            extra["chip_config_name"] = "megacore"
        try:
            devices = list(topologies.get_topology_desc(platform="tpu", topology_name=self.name, **extra).devices)
        except Exception as error:
            raise InputError(f"libtpu describes no slice {self.name}: {str(error).splitlines()[0]}") from None
        if len(devices) != self.chips:
            raise InputError(f"{self.name}: libtpu describes {len(devices)} devices for {self.chips} chips")
        return devices


_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "TPU_ACCELERATOR_TYPE": "v6e-4",  # any: the topology's name is what counts
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process that compiles aborts
}
