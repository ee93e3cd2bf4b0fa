"""Axis rearrangements between a checkpoint's tensors and our parameters, readable slice by slice.

A layout is written like einops: `"(N H) D -> D N H"` splits the checkpoint's first axis into heads and puts the input
axis first. Both directions, the checkpoint's expected shape, and the part of the file behind a slice follow from it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

Axes = tuple[tuple[str, ...], ...]


def _parse(side: str) -> Axes:
    return tuple(tuple(t.strip("()").split()) for t in re.findall(r"\([^)]*\)|\S+", side))


@functools.cache
def _parse_layout(layout: str) -> tuple[Axes, Axes]:
    source, arrow, target = layout.partition("->")
    source, target = _parse(source), _parse(target)
    if not arrow or sorted(sum(source, ())) != sorted(sum(target, ())):
        raise ValueError(f"layout {layout!r}: write 'source axes -> target axes' with the same letters on both sides")
    return source, target


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout bound to one parameter's shape.

    Attributes:
      source: groups of axis names, one group per axis of the checkpoint's tensor.
      target: the same for the parameter.
      sizes: size of every named axis.
    """

    source: Axes
    target: Axes
    sizes: Mapping[str, int]

    @classmethod
    def bind(cls, layout: str | None, shape: Sequence[int], sizes: Mapping[str, int] | None = None) -> "Layout":
        """Layout for a parameter of this shape; `sizes` names axes that the parameter merges.

        Raises:
          ValueError: the shape does not fit the layout.
        """
        if layout is None:
            names = " ".join(f"x{i}" for i in range(len(shape)))
            layout = f"{names} -> {names}"
        source, target = _parse_layout(layout)
        if len(target) != len(shape):
            raise ValueError(f"layout {layout!r} does not fit the parameter shape {tuple(shape)}")
        known = dict(sizes or {})
        for group, size in zip(target, shape):
            open_axes = [a for a in group if a not in known]
            rest = size // math.prod(known.get(a, 1) for a in group)
            if len(open_axes) > 1:
                raise ValueError(f"layout {layout!r}: give the sizes of all but one of {' '.join(group)}")
            known.update(dict.fromkeys(open_axes, rest))
            if math.prod(known[a] for a in group) != size:
                raise ValueError(f"layout {layout!r} does not fit the parameter shape {tuple(shape)}")
        return cls(source, target, known)

    @classmethod
    def from_sizes(cls, layout: str, sizes: Mapping[str, int]) -> "Layout":
        """Layout whose axis sizes are all known."""
        return cls(*_parse_layout(layout), sizes)

    def _shape(self, axes: Axes) -> tuple[int, ...]:
        return tuple(math.prod(self.sizes[a] for a in group) for group in axes)

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Shape that the checkpoint's tensor must have."""
        return self._shape(self.source)

    def load(self, tensor: np.ndarray) -> np.ndarray:
        """Checkpoint tensor -> parameter."""
        return self._rearrange(tensor, self.source, self.target)

    def save(self, parameter: np.ndarray) -> np.ndarray:
        """Parameter -> checkpoint tensor."""
        return self._rearrange(parameter, self.target, self.source)

    def matrix(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The parameter's axes that a layer contracts with its input, and those of its output.

        The checkpoint's tensor is that of a torch layer: outputs first, then inputs.
        """
        of = lambda groups: tuple(axis for axis, group in enumerate(self.target) if set(group) <= set(sum(groups, ())))
        return of(self.source[1:]), of(self.source[:1])

    @property
    def row_axis(self) -> int | None:
        """The parameter's axis whose slices are contiguous in the file; None where it has been merged with others."""
        lead = self.source[0][0] if self.source else None
        return next((axis for axis, group in enumerate(self.target) if group == (lead,)), None)

    def _rearrange(self, x, before, after):
        flat_before, flat_after = sum(before, ()), sum(after, ())
        x = x.reshape([self.sizes[a] for a in flat_before])
        x = x.transpose([flat_before.index(a) for a in flat_after])
        return x.reshape(self._shape(after))

    def read(self, stored, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of the parameter, reading from `stored` (anything that slices) little more than it needs.

        A slice of a whole axis, or of the leading axis of a split group, is contiguous in the file; anything else is
        cut after reading.
        """
        wanted = {
            group[0]: cut
            for group, cut, size in zip(self.target, index, self._shape(self.target))
            if len(group) == 1 and cut.indices(size) != (0, size, 1)
        }
        narrow, cuts = dict(self.sizes), []
        for group in self.source:
            lead, inner = group[0], math.prod(self.sizes[a] for a in group[1:])
            if lead in wanted:
                start, stop, _ = wanted.pop(lead).indices(self.sizes[lead])
                narrow[lead] = stop - start
                cuts.append(slice(start * inner, stop * inner))
            else:
                cuts.append(slice(None))
        part = dataclasses.replace(self, sizes=narrow).load(np.asarray(stored[tuple(cuts)]))
        done = {a for a in narrow if narrow[a] != self.sizes[a]}
        return part[tuple(slice(None) if set(group) & done else cut for group, cut in zip(self.target, index))]
