"""One optimiser step of the policy from a trajectory: pure functions of arrays, steps and micro-batches as one scan.

A velocity that can be trained is a function `policy(params, frozen, x, t, conditioning) -> velocity`, with x
[P, G, T, C] (or [B, T, C]), t [P, G], and conditioning leading with P; `frozen` is whatever is not trained (the base
under an adapter). `reference(frozen, x, t, conditioning)` is the same net without the adapter, for the KL term.

The gradient is taken inside the scan, one step and micro-batch at a time: what the backward pass needs of a velocity
lives for that iteration alone (layer by layer, if the net rematerialises), and only the sum of gradients is carried.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import sde
from spatialreward_jax.flow.guidance import Branches, Guidance, guided
from spatialreward_jax.flow.sampler import Trajectory
from spatialreward_jax.rl.loss import grpo_loss, kl_scale
from spatialreward_jax.rl.metrics import Mean, collapse


@flax.struct.dataclass
class TrainState:
    """step [] int32; params: what is trained; opt: the optimiser's state."""

    step: jax.Array
    params: Any
    opt: Any

    @classmethod
    def create(cls, params, optimizer) -> "TrainState":
        """State before the first step."""
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params))


@dataclasses.dataclass(frozen=True)
class Objective:
    """clip: ratio bounds (below, above); kl_weight: 0 leaves the reference model out; kl_form: see `loss.kl_scale`.

    guidance: the sampler's, applied in training too, or None to train the full branch alone.
    micro: micro-batches over prompts and over the group; memory falls, the result does not change.
    """

    clip: tuple[float, float] = (1e-4, 5e-4)
    kl_weight: float = 0.0
    kl_form: str = "sample"
    guidance: Guidance | None = None
    micro: tuple[int, int] = (1, 1)


class Batch(NamedTuple):
    """One optimiser step's data. trajectory, branches; advantage [P, G] float32; valid [P, G] bool; weight [P, S]
    float32 per step (`loss.step_weight`, or ones; [1, S] serves all). The group axis may be absent."""

    trajectory: Trajectory
    branches: Branches
    advantage: jax.Array
    valid: jax.Array
    weight: jax.Array


def make_optimizer(lr, *, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, max_norm=1.0):
    """AdamW behind gradient clipping, both as in torch. lr: a number or an optax schedule."""
    adamw = optax.adamw(lr, b1=betas[0], b2=betas[1], eps=eps, weight_decay=weight_decay)
    return optax.chain(clip_by_norm(max_norm), adamw)


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients by min(1, max_norm / (global norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_` does."""

    def update(grads, state, params=None):
        del params
        factor = jnp.minimum(1.0, max_norm / (optax.global_norm(grads) + 1e-6))
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_logp(policy, objective: Objective):
    """-> logp(params, frozen, batch) [P, G, S] float32: log-probabilities of the kept steps by the training program.

    Replaces the sampler's own where the two differ by more than a fraction of the clip (low-precision nets).
    """

    def logp(params, frozen, batch: Batch):
        split = _Split(batch, objective)

        def one(_, index):
            piece = split.piece(index)
            run = lambda on: _step_logp(policy, params, frozen, piece, objective.guidance if on else None)[0]
            return None, _by_guidance(run, piece.guided, objective)

        return split.join(jax.lax.scan(one, None, split.indices)[1])

    return logp


def make_gradient(policy, reference, objective: Objective):
    """-> gradient(params, frozen, batch) -> (gradient of the loss, metrics), summed over steps and micro-batches.

    loss = mean over the S steps of (mean over valid samples of weight * clipped surrogate + kl_weight * KL).
    Metrics: those of `loss.grpo_loss`, the scalar `loss` and, with a KL term, `kl`.
    Raises InputError for a KL term without a reference model.
    """
    if objective.kl_weight and reference is None:
        raise InputError("kl_weight is not 0 but there is no reference model: give one, or set kl_weight to 0")

    def gradient(params, frozen, batch: Batch):
        split = _Split(batch, objective)

        def one(total, index):
            piece = split.piece(index)

            def run(on):
                inner = objective.guidance if on else None
                loss = lambda p: _piece_loss(policy, reference, p, frozen, piece, objective, inner)
                return jax.value_and_grad(loss, has_aux=True)(params)

            (loss, metrics), grads = _by_guidance(run, piece.guided, objective)
            return jax.tree.map(jnp.add, total, grads), (loss, metrics)

        zero = jax.tree.map(jnp.zeros_like, params)
        grads, (losses, metrics) = jax.lax.scan(one, zero, split.indices)
        return grads, {**collapse(metrics), "loss": losses.sum()}

    return gradient


def apply_gradients(state: TrainState, optimizer, grads, loss) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser step -> (state, metrics `grad_norm` before clipping, `update_norm`, `finite`).

    `finite` is False when the loss or the gradient is not finite, in which case the state comes back as it was.
    """
    norm = optax.global_norm(grads)
    updates, opt = optimizer.update(grads, state.opt, state.params)
    new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    change = jnp.where(finite, optax.global_norm(updates), 0.0)
    return state, {"grad_norm": norm, "update_norm": change, "finite": finite}


def make_update(policy, reference, optimizer, objective: Objective):
    """-> update(state, frozen, batch) -> (state, metrics), pure; donate `state` when jitting.

    Metrics as in `make_gradient` and `apply_gradients`.
    """
    gradient = make_gradient(policy, reference, objective)

    def update(state: TrainState, frozen, batch: Batch):
        grads, metrics = gradient(state.params, frozen, batch)
        state, size = apply_gradients(state, optimizer, grads, metrics["loss"])
        return state, metrics | size

    return update


class _Piece(NamedTuple):
    """One kept step of one micro-batch. `count`: valid samples of the whole batch; the rest as in `Batch`."""

    latents: jax.Array  # [P, G, 2, T, C]
    mask: jax.Array  # [P, T]
    times: jax.Array  # [P, 2]
    sigma: jax.Array  # [P]
    guided: jax.Array  # []
    old_logp: jax.Array  # [P, G]
    branches: Branches
    advantage: jax.Array  # [P, G]
    valid: jax.Array  # [P, G]
    weight: jax.Array  # [P]
    kl_scale: jax.Array  # [P]
    count: jax.Array  # []
    steps: int


class _Split:
    """A batch cut along steps, prompts and group. Prompts are cut in strides (every n-th), so that a batch sharded
    over prompts stays evenly spread over the devices in every micro-batch."""

    def __init__(self, batch: Batch, objective: Objective):
        trajectory = batch.trajectory
        lead, self.steps = trajectory.logp.shape[:-1], trajectory.logp.shape[-1]
        self.over = objective.micro[: len(lead)]
        if math.prod(objective.micro) != math.prod(self.over) or any(n % m for n, m in zip(lead, self.over)):
            raise InputError(f"micro-batches {objective.micro} do not divide samples {lead}: use divisors of each axis")
        self.lead, self.batch = lead, batch
        valid = jnp.asarray(batch.valid)
        self.count = jnp.maximum(valid.sum(), 1).astype(jnp.float32)
        channels = trajectory.latents.shape[-1]
        self.kl_scale = kl_scale(objective.kl_form, trajectory.sigma, trajectory.mask, valid, channels)
        self.weight = jnp.broadcast_to(batch.weight, trajectory.sigma.shape)
        grids = jnp.meshgrid(*(jnp.arange(n) for n in (self.steps, *self.over)), indexing="ij")
        self.indices = tuple(g.reshape(-1) for g in grids)

    def piece(self, index) -> _Piece:
        step, *cut = index
        at = lambda a, axis: jax.lax.dynamic_index_in_dim(a, step, axis, keepdims=False)
        rows = lambda a: self._cut(a, cut[:1])
        cells = lambda a: self._cut(a, cut)
        t, batch = self.batch.trajectory, self.batch
        return _Piece(
            latents=cells(at(t.latents, len(self.lead))),
            mask=rows(t.mask),
            times=rows(at(t.times, 1)),
            sigma=rows(at(t.sigma, 1)),
            guided=t.guided[step],
            old_logp=cells(at(t.logp, len(self.lead))),
            branches=jax.tree.map(rows, batch.branches),
            advantage=cells(jnp.asarray(batch.advantage)),
            valid=cells(jnp.asarray(batch.valid)),
            weight=rows(at(self.weight, 1)),
            kl_scale=rows(at(self.kl_scale, 1)),
            count=self.count,
            steps=self.steps,
        )

    def _cut(self, a, cut):
        """The micro-batch `cut` of an array that leads with the first len(cut) sample axes."""
        for axis, (part, parts) in enumerate(zip(cut, self.over)):
            if parts > 1:
                a = a.reshape(*a.shape[:axis], a.shape[axis] // parts, parts, *a.shape[axis + 1 :])
                a = jax.lax.dynamic_index_in_dim(a, part, axis + 1, keepdims=False)
        return a

    def join(self, rows):
        """Scan results [steps * micro-batches, micro-batch's axes...] -> [P, G, S]."""
        small = [n // m for n, m in zip(self.lead, self.over)]
        rows = rows.reshape(self.steps, *self.over, *small)
        k = len(small)
        order = [i for axis in range(k) for i in (1 + k + axis, 1 + axis)]
        return rows.transpose(*order, 0).reshape(*self.lead, self.steps)


def _by_guidance(run, flag, objective: Objective):
    """run(True) or run(False) by the traced flag; the plain program alone where guidance is never applied."""
    if objective.guidance is None or not objective.guidance.active:
        return run(False)
    return jax.lax.cond(flag, lambda: run(True), lambda: run(False))


def _velocity(net, piece: _Piece, guidance):
    """net(x, t, conditioning) at the piece's states, with guidance or without -> [P, G, T, C] float32."""
    x = piece.latents[..., 0, :, :]
    t = jnp.broadcast_to(sde.spread(piece.times[..., 0], x.shape[:-2]), x.shape[:-2])
    if guidance is None:
        return net(x, t, piece.branches.full).astype(jnp.float32)
    return guided(net, x, t, piece.branches, guidance)


def _step_logp(policy, params, frozen, piece: _Piece, guidance):
    """-> (log-probability [P, G], velocity [P, G, T, C]) of one step under the policy."""
    v = _velocity(lambda *a: policy(params, frozen, *a), piece, guidance)
    t, t_next = piece.times[..., 0], piece.times[..., 1]
    mean = sde.step_mean(piece.latents[..., 0, :, :], v, t, t_next, piece.sigma)
    std = sde.step_std(t, t_next, piece.sigma)
    return sde.log_prob(piece.latents[..., 1, :, :], mean, std, piece.mask), v


def _piece_loss(policy, reference, params, frozen, piece: _Piece, objective: Objective, guidance):
    """A piece's share of the loss (normalised by the whole batch's counts) -> (loss, metrics)."""
    logp, v = _step_logp(policy, params, frozen, piece, guidance)
    loss, metrics = grpo_loss(
        logp[..., None],
        piece.old_logp[..., None],
        piece.advantage,
        piece.valid,
        piece.weight[..., None],
        clip=objective.clip,
    )
    total = loss.total
    if objective.kl_weight:
        lead = logp.shape
        v_ref = jax.lax.stop_gradient(_velocity(lambda *a: reference(frozen, *a), piece, guidance))
        slope = sde.mean_slope(piece.times[..., 0], piece.times[..., 1], piece.sigma)
        apart = jnp.where(sde.spread(piece.mask, lead, 1)[..., None], v - v_ref, 0)
        square = jnp.square(sde.spread(slope, lead)) * jnp.square(apart).sum((-2, -1))
        kl = Mean.of(square * sde.spread(piece.kl_scale, lead), piece.valid)
        metrics["kl"] = kl
        total = total + objective.kl_weight * kl.total
    return total / (piece.count * piece.steps), metrics
