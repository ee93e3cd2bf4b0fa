"""Static shapes: lengths rounded up to a few buckets, and examples of the same shape put together."""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from spatialreward_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Rising lengths to which token sequences are padded; at most one compilation each.

    Example: `Buckets.linear(64, 256).fit(100)` is 128.
    """

    lengths: tuple[int, ...]

    def __post_init__(self):
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < 1:
            raise InputError(f"bucket lengths must be positive and rising, got {list(self.lengths)}")

    @classmethod
    def linear(cls, step: int, largest: int) -> "Buckets":
        """Multiples of `step`, the last one at least `largest`."""
        return cls(tuple(range(step, largest + step, step)))

    def fit(self, length: int, what: str = "sequence") -> int:
        """Smallest bucket that holds `length`. Raises InputError naming `what` when it is longer than all of them."""
        for bucket in self.lengths:
            if length <= bucket:
                return bucket
        raise InputError(f"{what} of length {length} does not fit: the longest bucket is {self.lengths[-1]}")


def group_by_shape(shapes: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Positions of equal shapes, in order of first appearance: {shape: [index, ...]}.

    For nets that must not see padding (the autoencoder's norms and attention look at whole images).
    """
    groups: dict[Hashable, list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    return groups


def pad_rows(rows: Sequence[np.ndarray], length: int, fill: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows [t_i, ...] with t_i <= length -> (array [B, length, ...] padded on the right, mask bool [B, length])."""
    if not rows:
        raise InputError("no rows to pad: a batch needs at least one")
    longest = max(len(row) for row in rows)
    if longest > length:
        raise InputError(f"a row of length {longest} does not fit into the bucket of {length}")
    out = np.full((len(rows), length, *rows[0].shape[1:]), fill, rows[0].dtype)
    mask = np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
        mask[index, : len(row)] = True
    return out, mask


def pad_batch(rows: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Stacks rows of one shape and repeats the last one up to `count`, so that the batch axis is static too."""
    if not 0 < len(rows) <= count:
        raise InputError(f"{len(rows)} rows do not fit into a batch of {count}")
    return np.stack([*rows, *[rows[-1]] * (count - len(rows))])
