"""NVIDIA's fused attention where it serves: 16 bits, every query sees every key, no log-sum-exp wanted."""

import functools

import jax
import jax.numpy as jnp

from spatialreward_jax.kernels.xla import Inputs


def refuses(inputs: Inputs) -> str | None:
    """Why this backend cannot take a call, or None when it can."""
    head = inputs.q.shape[-1]
    if inputs.segments is not None or inputs.positions is not None:
        return "it takes segment ids and positions only as a T x S mask in memory; use xla"
    if any(x.dtype not in (jnp.bfloat16, jnp.float16) for x in inputs[:3]):
        return f"it takes bfloat16 and float16, not {inputs.q.dtype}; cast, or use xla"
    if head % 8 or head > 128:
        return f"head size {head} is no multiple of 8 up to 128; use xla"
    if jax.default_backend() != "gpu":  # tracing the library's call already looks for the GPU
        return f"this process runs on {jax.default_backend()}, without an NVIDIA GPU"
    return None


def forward(inputs: Inputs, *, scale: float) -> tuple[jax.Array, jax.Array]:
    """As `xla.forward`, but the log-sum-exp is 0: the library rounds it to 16 bits, which serves nobody."""
    q = inputs.q
    return _fused(scale)(*inputs[:3]), jnp.zeros((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)


def backward(inputs: Inputs, lse: jax.Array, delta: jax.Array, grad: jax.Array, *, scale: float):
    """As `xla.backward`; the library keeps its own statistics, so its forward pass runs again."""
    del lse, delta
    return jax.vjp(_fused(scale), *inputs[:3])[1](grad)


def _fused(scale):
    return functools.partial(jax.nn.dot_product_attention, scale=scale, implementation="cudnn")
