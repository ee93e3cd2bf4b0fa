"""sampler.npz: time grids and noise scales, and an ODE and an SDE rollout with replayed noise, decoded."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spatialreward_jax.evaluation.golden_checks import editing
from spatialreward_jax.evaluation.golden_checks.case import Case
from spatialreward_jax.evaluation.golden_checks.nets import Goldens, channels_first
from spatialreward_jax.flow import Guidance, guided, sde, time_grid
from spatialreward_jax.flow.sampler import Trajectory
from spatialreward_jax.models.omnigen2 import unpack


def check(case: Case, goldens: Goldens) -> None:
    """Checks schedules and both rollouts."""
    settings, net = goldens.settings["sampler"], goldens.transformer
    check_schedules(case, settings["sde"]["sigma_coef"])
    scene, guidance = editing.read_scene(case, goldens), editing.read_guidance(settings)
    policy = lambda params, frozen, x, t, cond: net.bind(params)(x, t, cond)
    for kind in ("ode", "sde"):
        times = scene.times(settings["steps"], settings[kind]["time_shift_base"])
        coef = settings[kind].get("sigma_coef", 0.0)
        sampled = editing.sample_all(policy, net.params, None, scene, times, guidance, coef)
        states = editing.states(sampled)
        case.compare(f"{kind}_timesteps", times)
        case.compare(f"{kind}_latents", states)
        case.compare(f"{kind}_velocity", velocities(net.bind, net.params, scene, sampled, guidance))
        if coef:
            case.compare(f"{kind}_log_probs", sampled.logp.T)
        compare_images(case, kind, goldens, states[-1], scene.sizes)


def check_schedules(case: Case, coef: float) -> None:
    """Arrays whose names carry their own settings: `ts_*` time grids and `sigma_*` noise scales."""
    for name in case.names:
        if found := re.fullmatch(r"ts_(?:ode|sde)_base(\d+)_steps(\d+)", name):
            base, steps = map(int, found.groups())
            case.compare(name, time_grid(case.input("ts_num_tokens"), steps, base))
        if found := re.fullmatch(r"sigma_base(\d+)_steps(\d+)_tokens(\d+)", name):
            base, steps, tokens = map(int, found.groups())
            t = time_grid(tokens, steps, base)
            case.compare(name, sde.sigma(t[:-1], t[1:], coef, np.arange(steps) == 0))


def velocities(
    bind: Callable, params: Any, scene: editing.Scene, trajectory: Trajectory, guidance: Guidance | None
) -> np.ndarray:
    """[S, B, T, C]: the velocity at the state before each kept step, with guidance where the sampler had it."""

    @jax.jit
    def run(params, branches, x, t, on):
        net = bind(params)

        def one(step):
            x, t, on = step
            plain = lambda: net(x, t, branches.full)
            return (
                plain() if guidance is None else jax.lax.cond(on, lambda: guided(net, x, t, branches, guidance), plain)
            )

        return jax.lax.map(one, (x, t, on))

    x, t = jnp.moveaxis(trajectory.latents[:, :, 0], 1, 0), trajectory.times[..., 0].T
    return np.asarray(run(params, scene.branches, x, t, trajectory.guided))


def compare_images(case: Case, kind: str, goldens: Goldens, latents: np.ndarray, sizes: list) -> None:
    """Decodes each sample's last state [B, T, C] and compares the raw and the clamped image."""
    net, patch = goldens.autoencoder, goldens.transformer.config.patch_size
    decode = jax.jit(lambda params, z: net.bind(params).decode(net.bind(params).from_latent(z)))
    for i, (height, width) in enumerate(sizes):
        image = decode(net.params, unpack(jnp.asarray(latents[i : i + 1]), height // patch, width // patch, patch))[0]
        case.compare(f"{kind}_decoded_{i}", channels_first(image))
        case.compare(f"{kind}_image_{i}", channels_first(jnp.clip(image / 2 + 0.5, 0, 1)))
