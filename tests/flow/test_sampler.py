"""Rollouts of a small velocity: padding, plans, leading axes, devices."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import (
    Branches,
    Guidance,
    SDEWindow,
    StepPlan,
    full_plan,
    guided,
    guided_steps,
    key_noise,
    ode_plan,
    replay_noise,
    rollout,
    time_grid,
    window_plan,
)
from spatialreward_jax.mesh import make_mesh

spec = importlib.util.spec_from_file_location("toy", pathlib.Path(__file__).parent / "toy.py")
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)

GUIDANCE = Guidance(4.0, 2.0, (0.0, 0.6))
STEPS, TOKENS = 6, 10


def setup(prompts=3, group=2, tokens=TOKENS):
    lead = (prompts, group) if group else (prompts,)
    times = time_grid(np.array([40, 64, 96, 128][:prompts]), STEPS, 168)
    mask = np.arange(tokens) < np.array([10, 6, 8, 4][:prompts])[:, None]
    keys = jax.random.split(jax.random.key(3), (prompts, max(group, 1))).reshape(lead)
    branches = Branches(*(toy.conditioning(prompts, seed) for seed in range(3)))
    return keys, times, mask, branches


@jax.jit(static_argnames=("guidance", "tokens"))
def sample(keys, times, mask, branches, plan, guidance=GUIDANCE, tokens=TOKENS):
    noise = key_noise(keys, tokens, toy.CHANNELS)
    velocity = lambda x, t, cond: toy.velocity(toy.params(), x, t, cond)
    return rollout(velocity, branches, noise(-1), times, mask, guidance=guidance, plan=plan, noise=noise)


PLAN = StepPlan(np.full(STEPS, 0.7, np.float32), np.arange(STEPS, dtype=np.int32))


def test_states_join_up_and_padding_stays_zero():
    keys, times, mask, branches = setup()
    x, kept = sample(keys, times, mask, branches, PLAN)
    assert kept.latents.shape == (3, 2, STEPS, 2, TOKENS, toy.CHANNELS) and kept.logp.shape == (3, 2, STEPS)
    np.testing.assert_array_equal(kept.latents[:, :, 1:, 0], kept.latents[:, :, :-1, 1])
    np.testing.assert_array_equal(kept.latents[:, :, -1, 1], x)
    padded = np.broadcast_to(~mask[:, None, None, None], kept.latents.shape[:-1])
    assert (np.asarray(kept.latents)[padded] == 0).all()
    np.testing.assert_array_equal(kept.times[..., 0], times[:, :-1])
    np.testing.assert_array_equal(kept.guided, guided_steps(STEPS, GUIDANCE))


def test_kept_steps_are_those_of_the_whole_trajectory():
    keys, times, mask, branches = setup()
    x, whole = sample(keys, times, mask, branches, PLAN)
    plan = full_plan(np.random.default_rng(0), STEPS, 0.7, 0.6)
    y, kept = sample(keys, times, mask, branches, plan)
    np.testing.assert_array_equal(x, y)
    for got, want in zip(kept, whole.take(plan.keep)):
        np.testing.assert_array_equal(got, want)


def test_noise_scale_zero_is_the_ode_sampler():
    keys, times, mask, branches = setup()
    still = StepPlan(np.zeros(STEPS, np.float32), np.arange(STEPS, dtype=np.int32))
    x, kept = sample(keys, times, mask, branches, still)
    ode, nothing = sample(keys, times, mask, branches, ode_plan(STEPS))
    np.testing.assert_array_equal(x, ode)
    assert nothing.logp.shape == (3, 2, 0) and (kept.logp == 0).all()
    assert not np.allclose(x, sample(keys, times, mask, branches, PLAN)[0])


def test_ode_sampler_is_euler():
    keys, times, mask, branches = setup()
    x, _ = sample(keys, times, mask, branches, ode_plan(STEPS))
    y = key_noise(keys, TOKENS, toy.CHANNELS)(-1) * mask[:, None, :, None]
    velocity = lambda x, t, cond: toy.velocity(toy.params(), x, t, cond)
    for i, on in enumerate(guided_steps(STEPS, GUIDANCE)):
        t = jnp.broadcast_to(times[:, None, i], (3, 2))
        v = guided(velocity, y, t, branches, GUIDANCE) if on else velocity(y, t, branches.full)
        y = (y + v * (times[:, i + 1] - times[:, i])[:, None, None, None]) * mask[:, None, :, None]
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


def test_window_keeps_each_groups_own_steps():
    keys, times, mask, branches = setup()
    flags = guided_steps(STEPS, GUIDANCE)
    plan = window_plan(np.random.default_rng(5), 0.7, SDEWindow(2, (0, 4)), groups=3, guided=flags)
    assert len(set(plan.keep[:, 0].tolist())) > 1
    _, kept = sample(keys, times, mask, branches, plan)
    rows = np.arange(3)[:, None]
    np.testing.assert_array_equal(kept.times[..., 0], times[rows, plan.keep])
    np.testing.assert_array_equal(kept.times[..., 1], times[rows, plan.keep + 1])
    assert (kept.sigma > 0).all() and (kept.logp != 0).all() and kept.guided.all()
    np.testing.assert_array_equal(kept.latents[:, :, 0, 1], kept.latents[:, :, 1, 0])
    one = [sample(keys, times, mask, branches, StepPlan(plan.coef[p], plan.keep[p]))[1] for p in range(3)]
    for p in range(3):
        np.testing.assert_allclose(kept.latents[p], one[p].latents[p], rtol=0, atol=1e-6)


def test_sample_does_not_depend_on_batch_or_padding():
    keys, times, mask, branches = setup()
    x, kept = sample(keys, times, mask, branches, PLAN)
    row = lambda a: jax.tree.map(lambda b: b[1:2], a)
    y, one = sample(keys[1:2, 1:], times[1:2], mask[1:2], row(branches), PLAN)
    np.testing.assert_allclose(y[0, 0], x[1, 1], rtol=0, atol=2e-6)
    np.testing.assert_allclose(one.logp[0, 0], kept.logp[1, 1], rtol=0, atol=1e-6)
    wide = np.pad(mask, ((0, 0), (0, 6)))
    z, _ = sample(keys, times, wide, branches, PLAN, tokens=TOKENS + 6)
    np.testing.assert_allclose(z[..., :TOKENS, :], x, rtol=0, atol=2e-6)


def test_flat_batch_equals_groups():
    keys, times, mask, branches = setup()
    x, kept = sample(keys, times, mask, branches, PLAN)
    twice = lambda a: np.repeat(a, 2, axis=0)
    y, flat = sample(keys.reshape(-1), twice(times), twice(mask), jax.tree.map(twice, branches), PLAN)
    np.testing.assert_allclose(y, x.reshape(y.shape), rtol=0, atol=1e-6)
    np.testing.assert_allclose(flat.logp, kept.logp.reshape(flat.logp.shape), rtol=0, atol=1e-6)


def test_devices_do_not_change_the_sample():
    keys, times, mask, branches = (jax.tree.map(lambda a: jnp.concatenate([a, a]), part) for part in setup(4, 2))
    mesh = make_mesh()
    place = lambda a: jax.device_put(a, jax.NamedSharding(mesh, jax.P("data")))
    x, kept = sample(keys, times, mask, branches, PLAN)
    y, sharded = sample(*jax.tree.map(place, (keys, times, mask, branches)), PLAN)
    np.testing.assert_allclose(y, x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(sharded.logp, kept.logp, rtol=0, atol=1e-5)


def test_replayed_noise_matches_drawn_noise():
    keys, times, mask, branches = setup()
    draw = key_noise(keys, TOKENS, toy.CHANNELS)
    stored = jnp.stack([draw(i) for i in range(STEPS)])
    velocity = lambda x, t, cond: toy.velocity(toy.params(), x, t, cond)
    run = lambda noise: rollout(velocity, branches, draw(-1), times, mask, guidance=GUIDANCE, plan=PLAN, noise=noise)[0]
    np.testing.assert_allclose(jax.jit(lambda: run(replay_noise(stored)))(), jax.jit(lambda: run(draw))(), atol=1e-6)


def test_reference_trajectory_from_stored_velocities(goldens):
    """The whole stored SDE and ODE trajectories, with the stored guided velocity of each step in place of a net."""
    arrays = np.load(goldens / "sampler.npz")
    noise, mask = replay_noise(arrays["step_noise"]), arrays["img_mask"]
    for kind, coef in (("sde", 0.7), ("ode", 0.0)):
        times, v = arrays[f"{kind}_timesteps"], jnp.asarray(arrays[f"{kind}_velocity"])
        look_up = lambda x, t, cond, v=v, times=times: v[jnp.argmin(jnp.abs(times[0] - t[0]))]
        plan = StepPlan(np.full(6, coef, np.float32), np.arange(6, dtype=np.int32))
        start = arrays[f"{kind}_latents"][0]
        x, kept = rollout(look_up, Branches(None), start, times, mask, guidance=None, plan=plan, noise=noise)
        np.testing.assert_allclose(x, arrays[f"{kind}_latents"][-1], rtol=0, atol=2e-5)
        want = arrays[f"{kind}_latents"]
        np.testing.assert_allclose(np.moveaxis(kept.latents[:, :, 1], 0, 1), want[1:], rtol=0, atol=2e-5)
        if coef:
            np.testing.assert_allclose(kept.logp.T, arrays["sde_log_probs"], rtol=0, atol=1e-5)


def test_guidance_formulas():
    x, t = jnp.zeros((1, 2, 1)), jnp.zeros(1)
    velocity = lambda x, t, cond: x + cond
    run = lambda a, b, branches: float(guided(velocity, x, t, branches, Guidance(a, b))[0, 0, 0])
    three = Branches(5.0, 3.0, 2.0)
    assert run(4.0, 2.0, three) == 2 + 2 * (3 - 2) + 4 * (5 - 3)
    assert run(4.0, 1.0, Branches(5.0, None, 2.0)) == 2 + 4 * (5 - 2)
    assert run(1.0, 2.0, Branches(5.0)) == 5
    with pytest.raises(InputError, match="needs the branch uncond and ref"):
        run(4.0, 2.0, Branches(5.0))
