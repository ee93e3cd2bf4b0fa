"""What recipes share: learning rate, the state that training starts from, and updates from several micro-batches."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.weights import Matrices
from spatialreward_jax.mesh import path_name
from spatialreward_jax.rl import TrainState, apply_gradients, clip_by_norm, make_optimizer
from spatialreward_jax.rl.metrics import Mean

SCHEDULES = ("constant", "cosine")

Loss = Callable[[Any, Any, Any, jax.Array | None], tuple[Mean, dict[str, Mean]]]
"""loss(params, frozen, batch, key) -> (loss, further metrics); the gradient is that of `loss.value()` over all
micro-batches of an update."""


def check_optimizer(
    lr: float, schedule: str, betas: Sequence[float], weight_decay: float, max_grad_norm: float
) -> None:
    """Raises InputError for what no optimiser can be made of; the names are those of a config."""
    if schedule not in SCHEDULES:
        raise InputError(f"schedule {schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    if not (lr > 0 and math.isfinite(lr)) or not max_grad_norm > 0:
        raise InputError(f"lr={lr}, max_grad_norm={max_grad_norm}: both must be above 0")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise InputError(f"betas={tuple(betas)}: give two, each at least 0 and below 1")
    if not weight_decay >= 0:
        raise InputError(f"weight_decay={weight_decay}: use at least 0")


def learning_rate(peak: float, schedule: str, steps: int, warmup: int = 0) -> optax.Schedule:
    """The rate at each of `steps` updates, as `get_constant/cosine_schedule_with_warmup` of transformers.

    Args:
        peak: the rate after the warm-up.
        schedule: "constant", or "cosine", which falls to 0 at the last step.
        steps: updates, those of the warm-up included.
        warmup: updates in which the rate rises from 0.
    """
    if schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


@dataclasses.dataclass(frozen=True)
class Optimizing:
    """AdamW, or Muon with AdamW, and their learning rates; fields of the same names in a config.

    Attributes:
        lr: peak. schedule: "constant" or "cosine" (to 0 at the last step). warmup: steps, or below 1 the share of all
            steps, in which the rate rises from 0.
        betas, weight_decay: of AdamW. max_grad_norm: gradients are clipped to this global norm.
        accumulate: micro-batches of one update.
        muon_lr: above 0: peak rate of kernels, which train by Muon; `lr` is that of everything else. Its schedule is
            that of `lr`.
    """

    lr: float
    schedule: str
    warmup: float
    betas: tuple[float, float]
    weight_decay: float
    max_grad_norm: float
    accumulate: int
    muon_lr: float = 0.0

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Optimizing":
        """Reads the fields; `muon_lr` may be absent. Raises InputError for senseless ones."""
        names = [field.name for field in dataclasses.fields(cls)]
        self = cls(**{name: config[name] for name in names if name in config or name != "muon_lr"})
        check_optimizer(self.lr, self.schedule, self.betas, self.weight_decay, self.max_grad_norm)
        if self.muon_lr < 0:
            raise InputError(f"muon_lr={self.muon_lr}: use 0 for AdamW alone, or the rate of Muon")
        if self.warmup < 0 or self.accumulate < 1:
            raise InputError(f"warmup={self.warmup}, accumulate={self.accumulate}: use at least 0 and at least 1")
        return self

    def learning_rate(self, steps: int, peak: float | None = None) -> optax.Schedule:
        """The rate at each of `steps` updates; peak: instead of `lr`."""
        warmup = round(self.warmup * steps) if self.warmup < 1 else round(self.warmup)
        return learning_rate(self.lr if peak is None else peak, self.schedule, steps, warmup)

    def optimizer(self, steps: int, kernels: Matrices | None = None) -> optax.GradientTransformation:
        """AdamW behind gradient clipping; where `muon_lr` asks for it, Muon for `kernels`.

        Muon's update is the kernel's momentum, orthogonalised as a matrix from inputs to outputs and scaled by
        sqrt(max(1, outputs / inputs)) (K. Jordan et al. 2024, "Muon: an optimizer for hidden layers"). Both rules
        then look ahead as Nesterov's.
        """
        rate, betas, decay = self.learning_rate(steps), tuple(self.betas), self.weight_decay
        if not (self.muon_lr and kernels):
            return make_optimizer(rate, betas=betas, weight_decay=decay, max_norm=self.max_grad_norm)
        dims = {name: optax.contrib.MuonDimensionNumbers(*axes) for name, axes in kernels.items()}
        muon = optax.contrib.muon(
            self.learning_rate(steps, self.muon_lr),
            adam_learning_rate=rate,
            adam_b1=betas[0],
            adam_b2=betas[1],
            weight_decay=decay,
            adam_weight_decay=decay,
            muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(
                lambda path, _: dims.get(path_name(path)), params
            ),
        )
        return optax.chain(clip_by_norm(self.max_grad_norm), muon)


def start_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step: float32 copies of `params`, each moment laid out as its parameter.

    The copies may be donated; nets that hold `params` stay as they are.
    """
    where = jax.tree.map(lambda x: x.sharding, params)
    one = jax.tree.leaves(where)[0]
    whole = NamedSharding(one.mesh, PartitionSpec()) if isinstance(one, NamedSharding) else one

    def make(params):
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        return TrainState.create(params, optimizer)

    named = {path_name(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(where)}

    def like_parameter(path, _):
        """A moment's path ends in that of its parameter."""
        parts = path_name(path).split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        return next((named[end] for end in ends if end in named), whole)

    moments = jax.tree_util.tree_map_with_path(like_parameter, jax.eval_shape(make, params).opt)
    return jax.jit(make, out_shardings=TrainState(whole, where, moments))(params)


class Updates:
    """Optimiser steps of a supervised loss; micro-batches may have different shapes, one program for each."""

    def __init__(self, loss: Loss, optimizing: Optimizing, *, steps: int, seed: int, kernels: Matrices | None = None):
        """`steps`: of the whole run. `seed`: of all draws of the loss. `kernels`: those that Muon may train."""
        rate, self.optimizer = optimizing.learning_rate(steps), optimizing.optimizer(steps, kernels)

        def gradient(params, frozen, batch, step, number, before):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), number)

            def total(params):
                mean, metrics = loss(params, frozen, batch, key)
                return mean.total, (mean, metrics)

            grads, (mean, metrics) = jax.grad(total, has_aux=True)(params)
            return (grads if before is None else jax.tree.map(jnp.add, before, grads)), mean, metrics

        def update(state, grads, mean):
            grads = jax.tree.map(lambda g: g / jnp.maximum(mean.count, 1.0), grads)
            now = rate(state.step)
            state, size = apply_gradients(state, self.optimizer, grads, mean.total)
            return state, {**size, "lr": now}

        def evaluate(params, frozen, batch, number):
            key = None if number is None else jax.random.fold_in(jax.random.key(seed), number)
            mean, metrics = loss(params, frozen, batch, key)
            return {"loss": mean, **metrics}

        self._gradient = jax.jit(gradient, donate_argnums=5)
        self._update = jax.jit(update, donate_argnums=0)
        self._evaluate = jax.jit(evaluate)

    def __call__(self, state: TrainState, frozen: Any, batches: Sequence[Any]) -> tuple[TrainState, dict[str, Any]]:
        """One update from one or more micro-batches (pytrees of device arrays) -> (state, metrics).

        Metrics: `loss`, those of the loss function (each summed over the micro-batches that have it), those of
        `rl.apply_gradients`, and `lr`. Draws follow from the seed, the state's step and the micro-batch's number.
        """
        grads, metrics = None, {}
        for number, batch in enumerate(batches):
            number = np.int32(number)
            grads, mean, more = self._gradient(state.params, frozen, batch, state.step, number, grads)
            metrics = add_metrics(metrics, {"loss": mean, **more})
        state, size = self._update(state, grads, metrics["loss"])
        return state, {**metrics, **size}

    def evaluate(self, params: Any, frozen: Any, batch: Any, number: int | None) -> dict[str, Mean]:
        """The loss and its metrics without an update; the loss's key follows from the number, None gives it None."""
        return self._evaluate(params, frozen, batch, None if number is None else np.int32(number))


def add_metrics(a: Mapping[str, Mean], b: Mapping[str, Mean]) -> dict[str, Mean]:
    """Sums of means by name; a name in one of them alone is kept."""
    return {**a, **{name: jax.tree.map(jnp.add, a[name], mean) if name in a else mean for name, mean in b.items()}}
