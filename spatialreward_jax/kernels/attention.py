"""Attention as one op: ragged batches by segment ids, causal or cached decoding by positions, grouped queries.

Three backends give the same numbers. The one that runs is picked per platform when a program is lowered, so a program
compiled for a TPU slice that is not there holds the TPU kernel:

* `pallas_tpu`: our fused forward and backward kernels (`pallas_tpu.py` says why jax's splash does not serve);
* `cudnn`: NVIDIA's fused attention, through `jax.nn.dot_product_attention`, for calls without masks in 16 bits;
* `xla`: a stretch of queries at a time in plain XLA; takes every call on every platform.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from spatialreward_jax.errors import InputError
from spatialreward_jax.kernels import cudnn, pallas_tpu, xla
from spatialreward_jax.kernels.masking import Segments
from spatialreward_jax.kernels.xla import Inputs

BACKENDS = ("pallas_tpu", "cudnn", "xla")

KEPT = "attention"
"""Name of the output and its log-sum-exp for `jax.checkpoint` policies: kept, the backward pass attends once less."""


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segments: Segments | None = None,
    positions: jax.Array | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> jax.Array:
    """Softmax attention with float32 softmax; query head n reads key head n // (N / K).

    No T x S matrix is held, forward or backward. Under a mesh context (`jax.set_mesh`) rows split over `data` and
    `fsdp`, heads over `tensor` where they divide.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H].
      v: [B, S, K, H].
      segments: int32 ([B, T], [B, S]); a query sees a key where the ids are equal.
      positions: int32 [B, T]; a query sees the keys whose index is at most its position.
      scale: factor on the scores, by default H ** -0.5.
      backend: one of `BACKENDS`; by default the best that takes the call on the platform of the compiled program.

    Returns:
      [B, T, N, H] in q's dtype; queries that see no key get 0.

    Raises:
      InputError: shapes do not fit together, or the backend asked for does not take the call (it says why).
    """
    inputs = Inputs(q, k, v, segments, positions)
    return _attend(_options(inputs, scale, backend, wants_lse=False), inputs)[0]


def attention_with_lse(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segments: Segments | None = None,
    positions: jax.Array | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`attention` and the log-sum-exp of its scores [B, N, T] float32 (0 where a query sees nothing).

    The second value is what `region_attention` needs to find exact attention weights again. Both have gradients.
    """
    inputs = Inputs(q, k, v, segments, positions)
    return _attend(_options(inputs, scale, backend, wants_lse=True), inputs)


@dataclasses.dataclass(frozen=True)
class _Options:
    scale: float
    backend: str | None
    wants_lse: bool

    def refuses(self, backend: str, inputs: Inputs) -> str | None:
        if backend == "cudnn" and self.wants_lse:
            return "it rounds the log-sum-exp to 16 bits; use xla"
        return {"pallas_tpu": pallas_tpu.refuses, "cudnn": cudnn.refuses, "xla": lambda _: None}[backend](inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: _Options, inputs: Inputs):
    return _run(options, inputs, "forward", inputs)


def _attend_fwd(options, inputs):
    inputs = _tied(inputs)
    out, lse = (checkpoint_name(x, KEPT) for x in _run(options, inputs, "forward", inputs))
    return (out, lse), (inputs, out, lse)


def _tied(inputs):
    """The same values, with masks that seem to depend on q; XLA removes the product with 0.

    Else a rematerialised loop over layers finds that segments and positions are known before it starts, and keeps for
    it what a backend makes of them: in plain XLA a T x S mask.
    """
    zero = inputs.q[0, 0, 0, 0].astype(jnp.int32) * 0
    segments, positions = jax.tree.map(lambda x: x + zero, (inputs.segments, inputs.positions))
    return inputs._replace(segments=segments, positions=positions)


def _attend_bwd(options, saved, grads):
    inputs, out, lse = saved
    grad, d_lse = grads
    delta = jnp.einsum("btnh,btnh->bnt", out, grad, preferred_element_type=jnp.float32) - d_lse
    dq, dk, dv = _run(options, inputs, "backward", inputs, lse, delta, grad)
    return (Inputs(dq, dk, dv, None, None),)


_attend.defvjp(_attend_fwd, _attend_bwd)


def _run(options, inputs, which, *args):
    """Calls a pass of the backend asked for, or of the best one for each platform."""
    one = lambda module: functools.partial(getattr(module, which), scale=options.scale)
    on_cpu = functools.partial(one(xla), limit=xla.CPU_BYTES)
    on_device = functools.partial(one(xla), limit=xla.DEVICE_BYTES)
    if options.backend in ("pallas_tpu", "cudnn"):
        return one({"pallas_tpu": pallas_tpu, "cudnn": cudnn}[options.backend])(*args)
    fused = {}
    if options.backend is None and options.refuses("pallas_tpu", inputs) is None:
        fused["tpu"] = one(pallas_tpu)
    if options.backend is None and options.refuses("cudnn", inputs) is None:
        fused["cuda"] = one(cudnn)
    return jax.lax.platform_dependent(*args, cpu=on_cpu, default=on_device, **fused)


def _options(inputs: Inputs, scale: float | None, backend: str | None, wants_lse: bool) -> _Options:
    q, k, v, segments, positions = inputs
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise InputError(f"attention: q {q.shape}, k {k.shape}, v {v.shape} do not fit [B, T, N, H] and [B, S, K, H]")
    if q.shape[2] % k.shape[2]:
        raise InputError(f"attention: {q.shape[2]} query heads are no multiple of {k.shape[2]} key heads")
    wanted = (q.shape[:2], k.shape[:2])
    if segments is not None and tuple(x.shape for x in segments) != wanted:
        raise InputError(f"attention: segments {[x.shape for x in segments]}, want {wanted}")
    if positions is not None and positions.shape != wanted[0]:
        raise InputError(f"attention: positions {positions.shape}, want {wanted[0]}")
    options = _Options(q.shape[-1] ** -0.5 if scale is None else float(scale), backend, wants_lse)
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"attention backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if backend is not None and (reason := options.refuses(backend, inputs)):
        raise InputError(f"attention backend {backend}: {reason}")
    return options
