"""LoRA on any linear layer (arXiv 2106.09685): y + alpha / r * B A x.

Adapters are a parameter tree of their own: `merge(graphs, adapters, base)` is the adapted net and
`merge(graphs, None, base)` the net without, so that the reference policy of RL needs no second copy of the base.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from spatialreward_jax.io.peft import LoRASpec, adapted_entries
from spatialreward_jax.io.weights import Entry, flatten
from spatialreward_jax.models.layers import Linear


class LoRAParam(nnx.Param):
    """A factor of an adapter."""


class LoRA(nnx.Module):
    """The low-rank update of one (possibly stacked) linear layer: a [*in, r], b [r, *out], float32."""

    def __init__(self, a: jax.Array, b: jax.Array, scale: float, dropout: float):
        self.a, self.b = LoRAParam(a), LoRAParam(b)
        self.scale, self.dropout = scale, dropout
        self.key = nnx.data(None)

    def __call__(self, x: jax.Array, axes: int) -> jax.Array:
        """x [..., *in] with `axes` input axes -> [..., *out] in x's dtype."""
        if self.key is not None and self.dropout:
            keep = jax.random.bernoulli(self.key[...], 1 - self.dropout, x.shape)
            x = jnp.where(keep, x / (1 - self.dropout), 0).astype(x.dtype)
        a, b = self.a[...].astype(x.dtype), self.b[...].astype(x.dtype)
        return self.scale * jnp.tensordot(jnp.tensordot(x, a, axes), b, 1)


class DropoutKey(nnx.Variable):
    """Random key of one adapter's dropout; present only while training."""


def add_lora(model: nnx.Module, entries: Sequence[Entry], spec: LoRASpec, rngs: nnx.Rngs) -> None:
    """Adds adapters to a net in place: A ~ N(0, 1/r^2) as PEFT's `gaussian`, B = 0.

    Works under `nnx.eval_shape` too. `entries` is the net's table.
    """
    for entry in adapted_entries(entries, spec):
        layer = find(model, entry.target.removesuffix(".kernel"))
        lead = layer.kernel.shape[:1] if entry.stacked else ()
        a = jax.random.normal(rngs.params(), (*lead, *layer.in_shape, spec.rank), jnp.float32) / spec.rank
        b = jnp.zeros((*lead, spec.rank, *layer.out_shape), jnp.float32)
        layer.lora = LoRA(a, b, spec.alpha / spec.rank, spec.dropout)


class Graphs(NamedTuple):
    """Graph definitions of one net with its adapters and without."""

    adapted: nnx.GraphDef
    plain: nnx.GraphDef


def split(model: nnx.Module) -> tuple[Graphs, dict, dict]:
    """A net with adapters -> (graphs, adapters, base), the last two plain dicts."""
    graph, adapters, base = nnx.split(model, LoRAParam, ...)
    layers = [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, Linear) and layer.lora is not None]
    attached = [layer.lora for layer in layers]
    for layer in layers:
        layer.lora = None
    plain = nnx.graphdef(model)
    for layer, update in zip(layers, attached):
        layer.lora = update
    return Graphs(graph, plain), nnx.to_pure_dict(adapters), nnx.to_pure_dict(base)


def graphs_of(build: Callable[[], nnx.Module], entries: Sequence[Entry], spec: LoRASpec | None) -> Graphs:
    """Graphs of the net that `build` makes, under a spec or without; nothing is allocated."""

    def make():
        model = build()
        if spec is not None:
            add_lora(model, entries, spec, nnx.Rngs(0))
        return model

    return split(nnx.eval_shape(make))[0]


def new_adapters(
    plain: nnx.GraphDef, params: Any, entries: Sequence[Entry], spec: LoRASpec, seed: int
) -> tuple[Graphs, dict]:
    """(graphs, new adapters) for a net without any: A random, B zero, so that the net is unchanged at first."""
    model = nnx.merge(plain, params)
    add_lora(model, entries, spec, nnx.Rngs(seed))
    return split(model)[:2]


def merge(graphs: Graphs, adapters: Any | None, base: Any, *, dropout_key: jax.Array | None = None) -> nnx.Module:
    """The adapted net, or with `adapters` None the net without them.

    With a key, the adapters drop inputs, every layer by its own mask.
    """
    if adapters is None:
        return nnx.merge(graphs.plain, base)
    model = nnx.merge(graphs.adapted, adapters, base)
    if dropout_key is not None:
        for number, name in enumerate(sorted({name.rsplit(".", 2)[0] for name in flatten(adapters)})):
            layer = find(model, name)
            key = jax.random.fold_in(dropout_key, number)
            lead = layer.kernel.ndim - len(layer.in_shape) - len(layer.out_shape)
            layer.lora.key = DropoutKey(jax.random.split(key, layer.kernel.shape[:lead]) if lead else key)
    return model


@functools.partial(jax.jit, static_argnums=0)
def apply(graphs: Graphs, adapters: Any | None, base: Any, *inputs: Any) -> Any:
    """`merge(graphs, adapters, base)(*inputs)`, traced once per shape, however many programs call it and how often."""
    return merge(graphs, adapters, base)(*inputs)


def find(model: nnx.Module, path: str) -> nnx.Module:
    """The submodule at a dotted path."""
    return functools.reduce(getattr, path.split("."), model)
