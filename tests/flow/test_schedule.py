"""Time grids, guided steps and step plans."""

import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.golden_checks import Case
from spatialreward_jax.evaluation.golden_checks.sampler import check_schedules
from spatialreward_jax.flow import Guidance, SDEWindow, full_plan, guided_steps, sampler_preset, time_grid, window_plan
from spatialreward_jax.flow.schedule import stretches
from spatialreward_jax.flow.sde import sigma


def test_reference_schedules(goldens):
    with np.load(goldens / "sampler.npz") as arrays:
        case = Case("sampler.npz", {n: arrays[n] for n in arrays.files if n.startswith(("ts_", "sigma_"))}, 1e-6)
    check_schedules(case, 0.7)
    assert len(case.rows) == 13 and [row for row in case.finish() if not row.ok] == []


def test_time_grid_of_one_image_ends_at_one():
    grid = time_grid(1024, 20, 168)
    assert grid.shape == (21,) and grid.dtype == np.float32
    assert grid[0] == 0 and grid[-1] == 1 and (np.diff(grid) > 0).all()


def test_sigma_of_first_step_uses_the_next_time():
    assert sigma(0.0, 0.25, 0.5, True) == 0.5 * (1 / 0.25) ** 0.5


@pytest.mark.parametrize(
    ("steps", "span", "on"), [(20, (0.0, 0.6), 13), (6, (0.0, 0.6), 4), (20, (0.1, 0.2), 3), (20, (0, 1), 20)]
)
def test_guided_steps_include_both_ends(steps, span, on):
    flags = guided_steps(steps, Guidance(4.0, 2.0, span))
    assert flags.sum() == on


def test_no_guidance_without_text_scale():
    assert not guided_steps(10, Guidance(1.0, 2.0)).any()
    assert not guided_steps(10, None).any()


def test_stretches_cover_all_steps():
    assert stretches(guided_steps(20, Guidance(4.0, 2.0, (0.1, 0.6)))) == [
        (0, 2, False),
        (2, 13, True),
        (13, 20, False),
    ]


def test_full_plan_draws_without_replacement():
    plan = full_plan(np.random.default_rng(0), 20, 0.7, 0.6)
    assert len(plan.keep) == 12 and (np.diff(plan.keep) > 0).all() and (plan.coef == np.float32(0.7)).all()
    again = full_plan(np.random.default_rng(0), 20, 0.7, 0.6)
    np.testing.assert_array_equal(plan.keep, again.keep)


def test_window_plan_is_stochastic_in_its_window_alone():
    guided = guided_steps(20, Guidance(4.0, 2.0, (0.0, 0.6)))
    plan = window_plan(np.random.default_rng(1), 0.7, SDEWindow(2, (0, 10)), groups=50, guided=guided)
    assert plan.keep.shape == (50, 2) and plan.keep.min() >= 0 and plan.keep.max() == 9
    for coef, keep in zip(plan.coef, plan.keep):
        np.testing.assert_array_equal(np.flatnonzero(coef), keep)
    assert len(set(plan.keep[:, 0].tolist())) > 3


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (SDEWindow(2, (10, 16)), "crosses the end of guidance"),
        (SDEWindow(4, (0, 3)), "size from 1"),
        (SDEWindow(1, (0, 30)), "span inside"),
    ],
)
def test_bad_windows_are_refused(window, words):
    guided = guided_steps(20, Guidance(4.0, 2.0, (0.0, 0.6)))
    with pytest.raises(InputError, match=words):
        window_plan(np.random.default_rng(1), 0.7, window, groups=2, guided=guided)


def test_presets():
    rl = sampler_preset("rl")
    assert (rl.steps, rl.base, rl.coef) == (20, 168, 0.7) and guided_steps(rl.steps, rl.guidance).sum() == 13
    with pytest.raises(InputError, match="omnigen2, rl-eval, rl"):
        sampler_preset("fast")
