"""sampler.npz: time grids and noise scales, and an ODE and an SDE rollout with replayed noise, decoded."""

import functools
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
from spatialreward_jax.models import lora
from spatialreward_jax.models.omnigen2 import unpack


def check(case: Case, goldens: Goldens) -> None:
    """Checks schedules and both rollouts."""
    settings, net = goldens.settings["sampler"], goldens.transformer
    check_schedules(case, settings["sde"]["sigma_coef"])
    scene, guidance = editing.read_scene(case, goldens), editing.read_guidance(settings)
    graphs = lora.Graphs(net.graph, net.graph)  # no adapter
    bind = lambda params: functools.partial(lora.apply, graphs, None, params)
    sample = editing.sampling_program(lambda params, frozen, *inputs: bind(params)(*inputs), scene, guidance)
    velocities, decode = velocity_program(bind, scene, guidance), decoder(goldens)
    for kind in ("ode", "sde"):
        times = scene.times(settings["steps"], settings[kind]["time_shift_base"])
        coef = settings[kind].get("sigma_coef", 0.0)
        sampled = sample(net.params, None, times, coef)
        states = editing.states(sampled)
        case.compare(f"{kind}_timesteps", times)
        case.compare(f"{kind}_latents", states)
        case.compare(f"{kind}_velocity", velocities(net.params, sampled))
        if coef:
            case.compare(f"{kind}_log_probs", sampled.logp.T)
        for i, size in enumerate(scene.sizes):
            image = decode(states[-1][i], size)
            case.compare(f"{kind}_decoded_{i}", channels_first(image))
            case.compare(f"{kind}_image_{i}", channels_first(np.clip(image / 2 + 0.5, 0, 1)))


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


def velocity_program(bind: Callable, scene: editing.Scene, guidance: Guidance | None) -> Callable:
    """-> velocities(params, trajectory) [S, B, T, C]: at the state before each kept step, guided as the sampler was.

    bind(params) is the net.
    """

    @jax.jit
    def run(params, branches, x, t, on):
        net = bind(params)

        def one(step):
            x, t, on = step
            plain = lambda: net(x, t, branches.full)
            if guidance is None:
                return plain()
            return jax.lax.cond(on, lambda: guided(net, x, t, branches, guidance), plain)

        return jax.lax.map(one, (x, t, on))

    def velocities(params: Any, trajectory: Trajectory) -> np.ndarray:
        x, t = jnp.moveaxis(trajectory.latents[:, :, 0], 1, 0), trajectory.times[..., 0].T
        return np.asarray(run(params, scene.branches, x, t, trajectory.guided))

    return velocities


def decoder(goldens: Goldens) -> Callable:
    """-> decode(latent tokens [T, C], (h, w)): the raw image [H, W, 3]."""
    net, patch = goldens.autoencoder, goldens.transformer.config.patch_size
    run = jax.jit(lambda params, z: net.bind(params).decode(net.bind(params).from_latent(z)))

    def decode(latent: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        rows, columns = (side // patch for side in size)
        return np.asarray(run(net.params, unpack(jnp.asarray(latent[None]), rows, columns, patch))[0])

    return decode
