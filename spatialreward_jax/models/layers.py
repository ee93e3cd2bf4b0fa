"""Layers shared by all nets, and the scan over stacked blocks.

Everything computes in the dtype of its input; kernels are cast to it. Norms compute in float32. Weights keep their
natural shape (`[D, N, H]`), so that einsums, shardings and checkpoint tables read off the same letters.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spatialreward_jax.io import int8

Shape = int | tuple[int, ...]


def _shape(size: Shape) -> tuple[int, ...]:
    return (size,) if isinstance(size, int) else tuple(size)


class Linear(nnx.Module):
    """Contracts the trailing `in_shape` axes of x: [..., *in_shape] -> [..., *out_shape].

    `kernel` is [*in_shape, *out_shape], `bias` (if any) [*out_shape]. `lora`, if set by `models.lora.add_lora`, adds.
    After `quantize_linears` the kernel is int8 in steps of `kernel_scale` [*out_shape].
    """

    def __init__(
        self, in_shape: Shape, out_shape: Shape, *, bias: bool = False, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        self.in_shape, self.out_shape = _shape(in_shape), _shape(out_shape)
        scale = math.prod(self.in_shape) ** -0.5
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), self.in_shape + self.out_shape, dtype))
        self.bias = nnx.Param(jnp.zeros(self.out_shape, dtype)) if bias else None
        self.kernel_scale = nnx.data(None)
        self.lora = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, axes = self.kernel[...].astype(x.dtype), len(self.in_shape)
        if self.kernel_scale is None:
            y = jnp.tensordot(x, kernel, axes)
        else:  # integers up to 127 are exact in any dtype; scaling what comes out keeps the cast within the product
            y = jnp.tensordot(x, kernel, axes, preferred_element_type=jnp.float32)
            y = (y * self.kernel_scale[...]).astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.lora is not None:
            y = y + self.lora(x, axes)
        return y


def quantize_linears(model: nnx.Module) -> nnx.Module:
    """Makes every kernel of a `Linear` int8 (see `io.int8`), stacked or not, in place; -> model.

    Embeddings, norms, biases, convolutions and adapters stay. Works under `nnx.eval_shape` too.
    """
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, Linear):
            kernel, inputs = layer.kernel[...], len(layer.in_shape)
            lead = kernel.ndim - inputs - len(layer.out_shape)
            values, scale = int8.quantize(kernel, range(lead, lead + inputs), jnp)
            layer.kernel, layer.kernel_scale = nnx.Param(values), nnx.Param(scale)
    return model


class Embedding(nnx.Module):
    """Rows of a table: int [...] -> [..., dim]."""

    def __init__(self, rows: int, dim: int, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.table = nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, dim), dtype))

    def __call__(self, ids: jax.Array) -> jax.Array:
        return jnp.take(self.table[...], ids, axis=0)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis [..., D], statistics in float32."""

    def __init__(self, dim: int, eps: float, *, dtype: Any = jnp.float32):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((dim,), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / std over the last axis [..., D], times scale plus bias if `affine`; statistics in float32."""

    def __init__(self, dim: int, eps: float, *, affine: bool = True, dtype: Any = jnp.float32):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((dim,), dtype)) if affine else None
        self.bias = nnx.Param(jnp.zeros((dim,), dtype)) if affine else None

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        if self.scale is not None:
            wide = wide * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return wide.astype(x.dtype)


class GroupNorm(nnx.Module):
    """Normalises [B, H, W, C] over space and the channels of each group, statistics in float32."""

    def __init__(self, channels: int, groups: int, eps: float, *, dtype: Any = jnp.float32):
        self.groups, self.eps = groups, eps
        self.scale = nnx.Param(jnp.ones((channels,), dtype))
        self.bias = nnx.Param(jnp.zeros((channels,), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32).reshape(*x.shape[:-1], self.groups, -1)  # B H W G C/G
        wide = wide - wide.mean(axis=(1, 2, 4), keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=(1, 2, 4), keepdims=True) + self.eps)
        wide = wide.reshape(x.shape) * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return wide.astype(x.dtype)


class Conv(nnx.Module):
    """2-D convolution, [B, H, W, in] -> [B, H', W', out]; `padding` is ((top, bottom), (left, right))."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        padding: tuple[tuple[int, int], tuple[int, int]] | None = None,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.stride = stride
        self.padding = ((size // 2, size // 2),) * 2 if padding is None else padding
        shape = (size, size, in_channels, out_channels)
        self.kernel = nnx.Param((size * size * in_channels) ** -0.5 * jax.random.normal(rngs.params(), shape, dtype))
        self.bias = nnx.Param(jnp.zeros((out_channels,), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        strides, dims = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, strides, self.padding, dimension_numbers=dims)
        return y + self.bias[...].astype(x.dtype)


def stack_blocks(make_block: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """One module that holds `layers` blocks: every parameter leads with an axis L. Run it with `scan_blocks`."""
    return nnx.vmap(make_block)(rngs.split(layers))


def scan_blocks(
    blocks: nnx.Module, call: Callable, carry: Any, xs: Any = None, *, remat: bool = True, keep: Sequence[str] = ()
) -> tuple[Any, Any]:
    """Runs stacked blocks in order: `call(block, carry, xs of this layer) -> (carry, y)`; returns (carry, stacked ys).

    With `remat` the backward pass keeps only each block's inputs, and what `checkpoint_name` gives a name in `keep`.
    """
    graph, params = nnx.split(blocks)

    def layer(carry, inputs):
        params, xs = inputs
        return call(nnx.merge(graph, params), carry, xs)

    # A scan body is never merged with its surroundings, so the barriers against it would only cost.
    policy = jax.checkpoint_policies.save_only_these_names(*keep)
    layer = jax.checkpoint(layer, prevent_cse=False, policy=policy) if remat else layer
    return jax.lax.scan(layer, carry, (params, xs))
