"""Exact count of a traced program's multiplications: matrix products, convolutions and attention, loops multiplied out.

XLA's own `cost_analysis` counts the body of a scan once and a Pallas kernel not at all. This counter walks the jaxpr
instead, after removing what nobody reads. One multiply-add is 2 FLOPs; element-wise work is left out.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.interpreters import partial_eval

from spatialreward_jax.errors import InputError

PRODUCTS = {"attention_forward": 2, "attention_query_gradient": 3, "attention_key_gradient": 4}
"""Matrix products of queries x keys in each of our attention kernels. The backward pass needs five (scores again, and
four gradients); taking two passes, one for queries and one for keys, it computes scores and their gradients twice."""


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs by kind; adds, and multiplies by a number.

    Attributes:
      linear: matrix products. convolution: convolutions, products with padding included.
      attention: all queries x all keys, whatever the masks hide; the padding of our kernels' blocks is left out.
      kernels: other Pallas calls, by their own cost estimates.
    """

    linear: float = 0
    convolution: float = 0
    attention: float = 0
    kernels: float = 0

    @property
    def total(self) -> float:
        """All kinds together."""
        return sum(dataclasses.astuple(self))

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    def __mul__(self, times: float) -> "Flops":
        return Flops(*(times * x for x in dataclasses.astuple(self)))


@dataclasses.dataclass(frozen=True)
class Counting:
    """What a trace does not say.

    Attributes:
      heavy: of the executions of a `cond` whose branches cost differently, the share that takes the most expensive
        branch; the others take the cheapest.
      trips: executions of the body of a `while` loop, or None where there is no loop worth counting.
    """

    heavy: float = 1.0
    trips: float | None = None


DEFAULT = Counting()


def count_flops(fn, *args: Any, counting: Counting = DEFAULT) -> Flops:
    """FLOPs of `fn(*args)` on a TPU; the arguments may be abstract, nothing runs. See `count_jaxpr`."""
    return count_jaxpr(jax.make_jaxpr(fn)(*args), counting)


def count_jaxpr(closed: Any, counting: Counting = DEFAULT) -> Flops:
    """FLOPs of a closed jaxpr.

    Raises:
      InputError: a `while` loop multiplies matrices and `counting.trips` is None.
    """
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _walk(jaxpr, counting)


def _walk(jaxpr: Any, counting: Counting) -> Flops:
    return sum((_one(eqn, counting) for eqn in jaxpr.eqns), Flops())


def _one(eqn: Any, counting: Counting) -> Flops:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = eqn.invars[0].aval.shape
        return Flops(linear=2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted))
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        taps = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
        return Flops(convolution=2 * math.prod(eqn.outvars[0].aval.shape) * taps)
    if name == "scan":
        return _walk(params["jaxpr"].jaxpr, counting) * params["length"]
    if name == "while":
        return _while(params, counting)
    if name == "cond":
        return _cond(eqn, counting)
    if name == "pallas_call":
        estimate = params.get("cost_estimate")
        return Flops(kernels=estimate.flops if estimate else 0)
    inner = sum((_walk(jaxpr, counting) for jaxpr in _inner(params)), Flops())
    return inner * params["mesh"].size if name == "shard_map" else inner


def _while(params: Any, counting: Counting) -> Flops:
    body = _walk(params["body_jaxpr"].jaxpr, counting) + _walk(params["cond_jaxpr"].jaxpr, counting)
    if body.total and counting.trips is None:
        raise InputError("the program has a while loop: say how often it runs (Counting.trips)")
    return body * (counting.trips or 0)


def _cond(eqn: Any, counting: Counting) -> Flops:
    if eqn.params.get("branches_platforms") is not None:
        return _attention(eqn, counting)
    branches = sorted((_walk(b.jaxpr, counting) for b in eqn.params["branches"]), key=lambda flops: flops.total)
    return branches[-1] * counting.heavy + branches[0] * (1 - counting.heavy)


def _attention(eqn: Any, counting: Counting) -> Flops:
    """A call of `kernels.attention`, which picks its backend by platform.

    Its last operands of rank 4 are q, k, v, and backward the output's gradient. (What differentiation moved out of a
    loop comes first.) Few queries run in plain XLA even on a TPU, and are counted as they are.
    """
    platforms = [names or ("tpu",) for names in eqn.params["branches_platforms"]]
    branch = eqn.params["branches"][next(i for i, names in enumerate(platforms) if "tpu" in names)].jaxpr
    kernels = [name for name in _kernel_names(branch) if name in PRODUCTS]
    if not kernels:
        return Flops(attention=_walk(branch, counting).total)
    arrays = [v.aval.shape for v in eqn.invars if v.aval.ndim == 4]
    q, k = arrays[-3:-1] if kernels == ["attention_forward"] else arrays[-4:-2]
    batch, queries, heads, size = q
    return Flops(attention=2 * batch * heads * queries * k[1] * size * sum(PRODUCTS[name] for name in kernels))


def _kernel_names(jaxpr: Any) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            yield eqn.params["name"]
        for inner in _inner(eqn.params):
            yield from _kernel_names(inner)


def _inner(params: Any) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item.jaxpr
