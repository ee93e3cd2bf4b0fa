"""The rollout: every sampler step in one program, one scan per guided or unguided stretch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spatialreward_jax.flow import sde
from spatialreward_jax.flow.guidance import Branches, Guidance, guided
from spatialreward_jax.flow.schedule import StepPlan, guided_steps, stretches


class Trajectory(NamedTuple):
    """What training needs of a rollout: the states around its S kept steps.

    Samples lead with [P, G] (prompts, edits of each) or with [B]; P stands for the first of these axes. T tokens.
    latents: [P, G, S, 2, T, C] float32, the state before and after each kept step; padded tokens are 0.
    mask: [P, T] bool, real tokens.
    times: [P, S, 2] float32, each sample's own (t, t_next), 0 noise ... 1 data.
    sigma: [P, S] float32, noise scale of each kept step.
    guided: [S] bool, whether guidance was on.
    logp: [P, G, S] float32, log-probability under the policy that sampled (see `sde.log_prob`).
    """

    latents: jax.Array
    mask: jax.Array
    times: jax.Array
    sigma: jax.Array
    guided: jax.Array
    logp: jax.Array

    @property
    def std(self):
        """[P, S] standard deviation of each kept step's noise."""
        return sde.step_std(self.times[..., 0], self.times[..., 1], self.sigma)

    def take(self, steps) -> "Trajectory":
        """The same trajectory with the kept steps `steps` [S'] (positions among S) alone."""
        pick = lambda a, axis: jnp.take(a, jnp.asarray(steps), axis=axis)
        return Trajectory(
            pick(self.latents, -4),
            self.mask,
            pick(self.times, -2),
            pick(self.sigma, -1),
            pick(self.guided, -1),
            pick(self.logp, -1),
        )


def key_noise(keys, tokens: int, channels: int):
    """-> noise(step) [..., T, C] drawn from one key per sample; `noise(-1)` is the start, 0 .. N - 1 the steps."""
    return lambda step: sde.token_noise(keys, step + 1, tokens, channels)


def replay_noise(array):
    """-> noise(step) [..., T, C] that replays array [N, ..., T, C]."""
    return lambda step: jnp.asarray(array)[step]


def rollout(velocity, branches: Branches, start, times, mask, *, guidance: Guidance | None, plan: StepPlan, noise):
    """Sample from noise to data -> (latents [P, G, T, C] float32, `Trajectory` of the kept steps).

    velocity(x [P, G, T, C], t [P, G], conditioning) -> [P, G, T, C]; the group axis may be absent. start [P, G, T, C]
    standard normal noise; times [P, N + 1] from `time_grid`; mask [P, T] bool, real tokens. plan: what changes from
    call to call without a recompilation when given as an argument of the jitted caller; `ode_plan` samples without
    noise. noise(step) -> [P, G, T, C], see `key_noise` and `replay_noise`; not drawn at a step where nobody's
    coefficient is above 0, which is a plain Euler step. To be called under jit.
    """
    lead, steps = start.shape[:-2], times.shape[-1] - 1
    times, mask, plan = jnp.asarray(times, jnp.float32), jnp.asarray(mask), StepPlan(*map(jnp.asarray, plan))
    flags = guided_steps(steps, guidance)
    real = sde.spread(mask, lead, 1)[..., None]

    def predict(x, t, on):
        t = jnp.broadcast_to(sde.spread(t, lead), lead)
        return guided(velocity, x, t, branches, guidance) if on else velocity(x, t, branches.full).astype(jnp.float32)

    def step(carry, i, on):
        x, kept = carry
        t, t_next, coef = times[..., i], times[..., i + 1], plan.coef[..., i]
        v = predict(x, t, on)
        euler = lambda x, v: x + v * sde.spread(t_next - t, x.shape)

        def stochastic(x, v):
            scale = sde.sigma(t, t_next, coef, i == 0)
            mean, std = sde.step_mean(x, v, t, t_next, scale), sde.step_std(t, t_next, scale)
            wide = sde.spread(std, x.shape)
            after = jnp.where(real, jnp.where(wide > 0, mean + wide * noise(i), euler(x, v)), 0)
            return after, sde.log_prob(after, mean, std, mask)

        def plain(x, v):
            return jnp.where(real, euler(x, v), 0), jnp.zeros(lead, jnp.float32)

        after, logp = jax.lax.cond((coef > 0).any(), stochastic, plain, x, v)
        return (after, _keep(kept, plan.keep == i, x, after, logp)), None

    x = jnp.where(real, jnp.asarray(start, jnp.float32), 0)
    carry = (x, _room(x, plan.keep.shape[-1]))
    for low, high, on in stretches(flags):
        carry, _ = jax.lax.scan(lambda c, i, on=on: step(c, i, on), carry, jnp.arange(low, high))
    return carry[0], _trajectory(carry[1], times, mask, plan, jnp.asarray(flags))


def _room(x, kept: int):
    """Empty (states [..., S, 2, T, C], logp [..., S])."""
    lead = x.shape[:-2]
    return jnp.zeros((*lead, kept, 2, *x.shape[-2:]), x.dtype), jnp.zeros((*lead, kept), jnp.float32)


def _keep(kept, here, before, after, logp):
    """Write this step into the slots where `here` [S] or [P, S]; a select, so that groups may keep different steps."""
    states, logps = kept
    here = here if here.ndim == 1 else sde.spread(here, logp.shape, 1)
    pair = jnp.stack([before, after], axis=-3)[..., None, :, :, :]
    return jnp.where(here[..., None, None, None], pair, states), jnp.where(here, logp[..., None], logps)


def _trajectory(kept, times, mask, plan: StepPlan, flags) -> Trajectory:
    rows = (times.shape[0], plan.keep.shape[-1])
    keep = jnp.broadcast_to(plan.keep, rows)
    pick = lambda a, index: jnp.take_along_axis(jnp.broadcast_to(a, (rows[0], a.shape[-1])), index, axis=-1)
    pairs = jnp.stack([pick(times, keep), pick(times, keep + 1)], axis=-1)
    scale = sde.sigma(pairs[..., 0], pairs[..., 1], pick(plan.coef, keep), keep == 0)
    return Trajectory(kept[0], mask, pairs, scale, flags[keep[0]], kept[1])  # all groups agree: see `window_plan`
