"""Sampling times, guided steps, and which steps are stochastic and kept for training. Host-side numpy.

Time runs from 0 (noise) to 1 (data). Grid and warp follow `scheduling_flow_match_euler_maruyama_discrete.py` of the
OmniGen2 RL framework (VectorSpaceLab/EditScore).
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np

from spatialreward_jax.errors import InputError

VAE_FACTOR = 8  # pixels per latent along one side


def time_grid(num_tokens, steps: int, base: float) -> np.ndarray:
    """Sampling times of images of `num_tokens` latent positions -> [..., steps + 1] float32, 0 first and 1 last.

    num_tokens [...]: latent height * latent width (latent positions, not 2 x 2 patches). base: image side in pixels
    at which the grid is even; larger images spend more steps near the noise.
    t -> t / (m - m t + t) with m = sqrt(num_tokens) / (base / 8); the end 1 is appended, never warped.
    Raises InputError for fewer than one step.
    """
    if steps < 1:
        raise InputError(f"{steps} sampling steps: use at least 1")
    even = np.linspace(0, 1, steps + 1, dtype=np.float32)[:-1]
    m = np.asarray(np.sqrt(num_tokens) / (base / VAE_FACTOR))[..., None]
    warped = even / (m - m * even + even)
    return np.concatenate([warped, np.ones_like(warped[..., :1])], axis=-1).astype(np.float32)


def guided_steps(steps: int, guidance) -> np.ndarray:
    """Steps at which guidance is on -> [steps] bool: lo <= i / steps <= hi, both ends included.

    guidance: a `Guidance`, or None for no guidance at all.
    """
    if guidance is None or not guidance.active:
        return np.zeros(steps, bool)
    low, high = guidance.range
    return np.array([low <= i / steps <= high for i in range(steps)], bool)


def stretches(flags: np.ndarray) -> list[tuple[int, int, bool]]:
    """Cut [N] flags into contiguous runs: (first step, one past the last step, flag)."""
    edges = [0, *(np.flatnonzero(np.diff(flags)) + 1).tolist(), len(flags)]
    return [(a, b, bool(flags[a])) for a, b in itertools.pairwise(edges)]


class StepPlan(NamedTuple):
    """Which sampler steps add noise, and which are kept for training. Leading axes: none, or one row per group.

    coef: [N] or [P, N] float32, the noise coefficient of each step; 0 is an ODE step.
    keep: [S] or [P, S] int32, increasing, the steps whose states go into the trajectory.
    """

    coef: np.ndarray
    keep: np.ndarray


def ode_plan(steps: int) -> StepPlan:
    """No noise anywhere, nothing kept: the deterministic Euler sampler."""
    return StepPlan(np.zeros(steps, np.float32), np.zeros(0, np.int32))


def full_plan(rng: np.random.Generator, steps: int, coef: float, fraction: float) -> StepPlan:
    """Every step stochastic; ceil(fraction * steps) of them kept, drawn without replacement, the same for everyone.

    Raises InputError for a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction of trained steps {fraction}: use a number above 0 and at most 1")
    count = math.ceil(round(fraction * steps, 9))
    keep = np.sort(rng.choice(steps, count, replace=False)).astype(np.int32)
    return StepPlan(np.full(steps, coef, np.float32), keep)


@dataclasses.dataclass(frozen=True)
class SDEWindow:
    """A run of `size` stochastic steps whose place is drawn within steps span[0] .. span[1] - 1."""

    size: int
    span: tuple[int, int]


def window_plan(
    rng: np.random.Generator, coef: float, window: SDEWindow, *, groups: int, guided: np.ndarray
) -> StepPlan:
    """One stochastic window for each group, all else ODE; exactly the window is kept -> coef [P, N], keep [P, S].

    guided [N] bool (see `guided_steps`): all windows train side by side in one program, so that the span must lie in
    one guided or one unguided stretch. Raises InputError where it does not, or is no span of the steps.
    """
    steps, (low, high) = len(guided), window.span
    if not 0 <= low < high <= steps or not 1 <= window.size <= high - low:
        raise InputError(
            f"SDE window of {window.size} steps within {low}..{high} of {steps} steps: "
            f"use a span inside 0..{steps} and a size from 1 to the span's length"
        )
    if len(set(guided[low:high].tolist())) > 1:
        runs = ", ".join(f"{a}..{b}" for a, b, _ in stretches(guided))
        raise InputError(f"SDE window span {low}..{high} crosses the end of guidance: keep it inside one of {runs}")
    start = rng.integers(low, high - window.size + 1, size=groups)
    keep = (start[:, None] + np.arange(window.size)).astype(np.int32)
    place = np.zeros((groups, steps), np.float32)
    np.put_along_axis(place, keep, np.float32(coef), axis=-1)
    return StepPlan(place, keep)
