"""Online RL of a flow sampler: advantages, losses, updates. Pure functions over arrays."""

from spatialreward_jax.rl.advantage import (
    STDS,
    GroupStats,
    group_advantage,
    group_stats,
    reward_metrics,
    standard_error,
)
from spatialreward_jax.rl.loss import KL_FORMS, grpo_loss, kl_scale, step_weight
from spatialreward_jax.rl.metrics import Mean, Peak, collapse, values
from spatialreward_jax.rl.update import (
    Batch,
    Objective,
    TrainState,
    apply_gradients,
    clip_by_norm,
    make_gradient,
    make_logp,
    make_optimizer,
    make_update,
)

__all__ = [
    "KL_FORMS",
    "STDS",
    "Batch",
    "GroupStats",
    "Mean",
    "Objective",
    "Peak",
    "TrainState",
    "apply_gradients",
    "clip_by_norm",
    "collapse",
    "group_advantage",
    "group_stats",
    "grpo_loss",
    "kl_scale",
    "make_gradient",
    "make_logp",
    "make_optimizer",
    "make_update",
    "reward_metrics",
    "standard_error",
    "step_weight",
    "values",
]
