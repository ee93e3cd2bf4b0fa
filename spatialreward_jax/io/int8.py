"""Weight-only int8: a kernel as integers -127..127, and for each output channel the float32 size of one step.

    kernel [*in, *out]  ~  kernel_int8 * kernel_scale [*out],   kernel_scale = max |kernel| over `in` / 127

Symmetric, rounded to nearest: no weight moves by more than half a step. The general library for this in JAX (qwix)
replaces functions of jax while a module's method runs, learns what to quantise by calling the module on an example,
and quantises whole arrays that already lie on the devices; parameters as plain trees, read slice by slice, need less.
"""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from spatialreward_jax.errors import InputError

FORMATS = ("int8",)
"""What a judge's weights can be quantised to."""

LIMIT = 127
"""Largest integer; -128 stays unused, so that the range is symmetric."""

THREADS = min(4, os.cpu_count() or 1)
"""Layers rounded at a time; each takes a few times its size in float32 on the host."""

Index = tuple[slice, ...]


def check_format(quantize: str | None) -> None:
    """Raises InputError for a format that is none of `FORMATS`; None is no quantisation."""
    if quantize is not None and quantize not in FORMATS:
        raise InputError(f"quantize {quantize!r} is unknown: use {' or '.join(FORMATS)}, or leave it out")


def scale_name(kernel: str) -> str:
    """Path of the scale beside the kernel of this path: `...q.kernel` -> `...q.kernel_scale`."""
    return f"{kernel}_scale"


def is_quantized(name: str, dtype: Any) -> bool:
    """Whether a parameter belongs to a quantised kernel, so that its dtype is not a matter of choice."""
    return dtype == np.int8 or name.endswith(scale_name(".kernel"))


def step_size(kernel: Any, axes: Sequence[int], xp: ModuleType = np) -> Any:
    """float32, the kernel's shape with 1 at the input `axes`; 1 where a channel is all zeros. xp: numpy, jax.numpy."""
    top = xp.abs(kernel).max(axis=tuple(axes), keepdims=True).astype(np.float32)
    return xp.where(top > 0, top / LIMIT, np.float32(1))


def rounded(kernel: Any, step: Any, xp: ModuleType = np) -> Any:
    """int8 like the kernel: each weight in steps, to the nearest."""
    return xp.rint(kernel / step).astype(np.int8)


def quantize(kernel: Any, axes: Sequence[int], xp: ModuleType = np) -> tuple[Any, Any]:
    """Kernel -> (int8 of its shape, float32 scale without the input `axes`)."""
    step = step_size(kernel, axes, xp)
    return rounded(kernel, step, xp), step.squeeze(tuple(axes))


class Int8Reader:
    """One kernel of a checkpoint as int8, a slice of a layer at a time; scales come from whole channels.

    Where a device holds a whole layer, that layer is read once; where it holds a part, the layer is read once more per
    process, for the scales.
    """

    def __init__(
        self,
        read: Callable[[int, Index], np.ndarray],
        shape: Sequence[int],
        scale_shape: Sequence[int],
        *,
        stacked: bool,
    ):
        """
        Args:
          read: (layer, part of that layer's kernel) -> floats.
          shape: of the kernel [(L,) *in, *out]. scale_shape: [(L,) *out].
          stacked: whether the layers L lead.
        """
        self._read, self._shape, self._stacked = read, tuple(shape)[int(stacked) :], stacked
        self._layers = shape[0] if stacked else 1
        self._axes = range(len(shape) - len(scale_shape))
        self._steps: dict[int, np.ndarray] = {}

    def kernel(self, index: Index) -> np.ndarray:
        """int8, the part of the kernel."""
        layers, part = self._split(index)
        cut = [len(range(*i.indices(size))) for i, size in zip(part, self._shape)]
        out = np.empty((len(layers), *cut), np.int8)

        def fill(row: int) -> None:
            values = self._read(layers[row], part).astype(np.float32)
            step = self._step(layers[row], values if values.shape == self._shape else None)
            out[row] = rounded(values, step[part[len(self._axes) :]])

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fill, range(len(layers))))
        return out if self._stacked else out[0]

    def scale(self, index: Index) -> np.ndarray:
        """float32, the part of the scale."""
        layers, part = self._split(index)
        out = np.stack([self._step(layer)[part] for layer in layers])
        return out if self._stacked else out[0]

    def _split(self, index):
        """Part of a parameter -> (layers, part of each)."""
        return (range(*index[0].indices(self._layers)), index[1:]) if self._stacked else (range(1), index)

    def _step(self, layer, whole=None):
        if layer not in self._steps:
            whole = self._read(layer, (slice(None),) * len(self._shape)) if whole is None else whole
            self._steps[layer] = step_size(whole.astype(np.float32, copy=False), self._axes).squeeze(tuple(self._axes))
        return self._steps[layer]
