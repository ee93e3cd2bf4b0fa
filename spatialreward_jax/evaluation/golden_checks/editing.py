"""Inputs that sampler.npz and grpo.npz share: texts, references, targets and noise of one sampling request."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from spatialreward_jax.evaluation.golden_checks.case import Case
from spatialreward_jax.evaluation.golden_checks.nets import Goldens, channels_last
from spatialreward_jax.flow import Branches, Guidance, replay_noise, rollout, time_grid
from spatialreward_jax.flow.sampler import Trajectory
from spatialreward_jax.flow.schedule import StepPlan
from spatialreward_jax.models.autoencoder_kl import sample_posterior
from spatialreward_jax.models.omnigen2 import Conditioning, pack_images, pack_references


class Scene(NamedTuple):
    """A sampling request of B samples, one reference each.

    branches: conditioning; start [B, T, C] noise; mask [B, T] bool; sizes: latent (h, w) of each target;
    step_noise [N, B, T, C].
    """

    branches: Branches
    start: np.ndarray
    mask: np.ndarray
    sizes: list[tuple[int, int]]
    step_noise: np.ndarray

    def times(self, steps: int, base: float) -> np.ndarray:
        """[B, steps + 1] float32, each sample's own."""
        return time_grid(np.array([h * w for h, w in self.sizes]), steps, base)


def read_scene(case: Case, goldens: Goldens) -> Scene:
    """Reads the inputs, encodes the references, and compares `ref_latents`, `ref_mask` and `img_mask`."""
    case.input("prompts")
    numbers = sorted(int(m[1]) for n in case.names if (m := re.fullmatch(r"noise_(\d+)", n)))
    encode = _reference_encoder(case, goldens)
    references = [[encode(i)] for i in numbers]
    targets = [np.moveaxis(case.input(f"noise_{i}"), 0, -1) for i in numbers]
    config = goldens.transformer.config
    start, sizes = pack_images(targets, patch=config.patch_size)
    refs, ref_sizes = pack_references(references, channels=config.in_channels, patch=config.patch_size)
    full = Conditioning(case.input("prompt_embeds"), case.input("prompt_mask").astype(bool), refs, ref_sizes, sizes)
    full = jax.tree.map(jax.numpy.asarray, full)
    negative = full.with_text(case.input("negative_embeds"), case.input("negative_mask").astype(bool))
    mask = np.asarray(full.target_mask(start.shape[1]))
    case.compare("img_mask", mask)
    case.compare("ref_latents", refs[:, 0])
    case.compare("ref_mask", full.ref_mask[:, 0])
    if "ref_sizes" in case:
        case.compare("ref_sizes", ref_sizes[:, 0].astype(np.int64) * config.patch_size)
    shapes = [target.shape[:2] for target in targets]
    return Scene(Branches(full, negative, negative.without_references()), start, mask, shapes, case.input("step_noise"))


def _reference_encoder(case: Case, goldens: Goldens):
    """-> encode(number): latent [h, w, C] of a reference, a posterior sample with the stored noise."""
    net = goldens.autoencoder

    @jax.jit
    def encode(params, image, noise):
        model = net.bind(params)
        return model.to_latent(sample_posterior(*model.encode(image), noise))

    stored = lambda name, number: channels_last(case.input(f"{name}_{number}"))
    return lambda i: np.asarray(encode(net.params, stored("ref_image", i), stored("posterior_noise", i))[0])


def read_guidance(settings: dict) -> Guidance:
    """Guidance of a section of goldens.json."""
    return Guidance(settings["text_guidance"], settings["image_guidance"], tuple(settings["guidance_range"]))


def sampling_program(policy: Callable, scene: Scene, guidance: Guidance) -> Callable:
    """-> sample(params, frozen, times [B, N + 1], coef): replays the stored noise and keeps every step.

    policy: see `rl.update`.
    """

    @jax.jit
    def run(params, frozen, arrays, times, plan):
        branches, start, mask, noise = arrays
        velocity = lambda x, t, cond: policy(params, frozen, x, t, cond)
        noise = replay_noise(noise)
        return rollout(velocity, branches, start, times, mask, guidance=guidance, plan=plan, noise=noise)[1]

    def sample(params, frozen, times: np.ndarray, coef: float) -> Trajectory:
        steps = times.shape[-1] - 1
        plan = StepPlan(np.full(steps, coef, np.float32), np.arange(steps, dtype=np.int32))
        return run(params, frozen, (scene.branches, scene.start, scene.mask, scene.step_noise), times, plan)

    return sample


def states(trajectory: Trajectory) -> np.ndarray:
    """[N + 1, B, T, C]: the states around all N steps of a trajectory that keeps them all."""
    latents = np.moveaxis(np.asarray(trajectory.latents), 1, 0)
    return np.concatenate([latents[:, :, 0], latents[-1:, :, 1]])
