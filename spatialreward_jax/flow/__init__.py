"""The flow sampler: schedules, guidance, stochastic steps, rollouts. Pure functions over arrays."""

from spatialreward_jax.flow.guidance import Branches, Guidance, guided
from spatialreward_jax.flow.matching import matching_error, sample_times, shift_times
from spatialreward_jax.flow.presets import PRESETS, SamplerPreset, sampler_preset
from spatialreward_jax.flow.sampler import Trajectory, key_noise, replay_noise, rollout
from spatialreward_jax.flow.schedule import (
    SDEWindow,
    StepPlan,
    full_plan,
    guided_steps,
    ode_plan,
    time_grid,
    window_plan,
)

__all__ = [
    "PRESETS",
    "Branches",
    "Guidance",
    "SDEWindow",
    "SamplerPreset",
    "StepPlan",
    "Trajectory",
    "full_plan",
    "guided",
    "guided_steps",
    "key_noise",
    "matching_error",
    "ode_plan",
    "replay_noise",
    "rollout",
    "sample_times",
    "sampler_preset",
    "shift_times",
    "time_grid",
    "window_plan",
]
