"""grpo.npz: advantages, clipped losses, KL, gradients of the adapter, and one optimiser step."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.golden_checks import editing
from spatialreward_jax.evaluation.golden_checks.case import Case
from spatialreward_jax.evaluation.golden_checks.nets import Goldens
from spatialreward_jax.evaluation.golden_checks.sampler import velocity_program
from spatialreward_jax.flow import sde
from spatialreward_jax.flow.sampler import Trajectory
from spatialreward_jax.io.peft import adapter_tensors
from spatialreward_jax.models import omnigen2
from spatialreward_jax.rl import (
    Batch,
    Objective,
    group_advantage,
    group_stats,
    grpo_loss,
    make_gradient,
    make_optimizer,
    step_weight,
    values,
)

MEANS = {
    "policy_loss": "policy_loss",
    "clip_frac": "clip_fraction",
    "approx_kl": "approx_kl",
    "ratio_positive": "ratio_positive",
    "ratio_negative": "ratio_negative",
    "ratio_large_than_1": "ratio_above",
    "ratio_small_than_1": "ratio_below",
}
TOTALS = {"num_positive": "positive", "num_negative": "negative"}
EACH = {"unclipped_loss": "loss_unclipped", "clipped_loss": "loss_clipped", "ratio": "ratio"}
STEP_TOLERANCE = 0.01  # of the learning rate, which is what the first AdamW step moves every element by


def check(case: Case, goldens: Goldens) -> None:
    """Checks the whole file."""
    settings = goldens.settings["grpo"]
    check_advantages(case)
    for i in range(int(case.input("ppo_cases"))):
        old, new, advantage = (case.input(f"ppo{i}_{k}") for k in ("old", "new", "adv"))
        compare_loss(case, f"ppo{i}_", new, old, advantage, settings)
    check_training(case, goldens, read_training(case, goldens))


def check_advantages(case: Case) -> None:
    """Compares group statistics and advantages; the groups are padded to one length with invalid samples."""
    names = case.input("reward_prompt_ids")
    groups = np.unique(names)
    case.compare("reward_group_names", groups)
    rows = np.searchsorted(groups, names)
    columns = np.array([np.sum(names[:i] == name) for i, name in enumerate(names)])
    reward = np.full((len(groups), columns.max() + 1), np.nan)
    reward[rows, columns] = case.input("rewards")
    valid = np.isfinite(reward)
    stats = group_stats(reward, valid)
    case.compare("reward_group_stats", np.stack([stats.low, stats.high, stats.mean, stats.std], axis=-1))
    for std in ("group", "batch"):
        case.compare(f"reward_advantages_{std}", group_advantage(reward, valid, std=std)[rows, columns])


def compare_loss(case: Case, prefix: str, new, old, advantage, settings: dict) -> None:
    """Compares the clipped surrogate and its statistics for flat log-probabilities [B]."""
    limit, clip = settings["advantage_clip"], tuple(settings["clip"])
    advantage = jnp.clip(jnp.asarray(advantage), -limit, limit)
    one = lambda n, o, a: grpo_loss(n[..., None], o[..., None], a, jnp.ones(a.shape, bool), jnp.ones(1), clip=clip)[1]
    metrics = one(jnp.asarray(new), jnp.asarray(old), advantage)
    alone = jax.vmap(one)(jnp.asarray(new), jnp.asarray(old), advantage)
    for theirs, ours in MEANS.items():
        case.compare(prefix + theirs, metrics[ours].value())
    for theirs, ours in TOTALS.items():
        case.compare(prefix + theirs, metrics[ours].total)
    for theirs, ours in EACH.items():
        case.compare(prefix + theirs, alone[ours].total)


class Training(NamedTuple):
    """Everything that the update sees. steps [S]: the trained steps; main: which of them stands alone."""

    scene: editing.Scene
    batch: Batch
    steps: np.ndarray
    main: int
    objective: Objective
    policy: Any
    reference: Any


def read_training(case: Case, goldens: Goldens) -> Training:
    """Samples with the adapted policy (compared too) and puts the update's batch together."""
    settings, net = goldens.settings["grpo"], goldens.adapted_transformer
    scene, guidance = editing.read_scene(case, goldens), editing.read_guidance(settings)
    case.compare("img_sizes", np.array(scene.sizes, np.int64))
    times = scene.times(settings["steps"], settings["time_shift_base"])
    case.compare("timesteps", times)
    policy = lambda adapters, base, x, t, cond: net.bind(adapters, base)(x, t, cond)
    reference = lambda base, x, t, cond: net.bind(None, base)(x, t, cond)
    sample = editing.sampling_program(policy, scene, guidance)
    sampled = sample(net.adapters, net.base, times, settings["sigma_coef"])
    case.compare("middle_latents", editing.states(sampled))
    case.compare("sampled_log_probs", sampled.logp.T)
    steps = case.input("train_timesteps")
    trajectory = sampled.take(steps)._replace(logp=jnp.asarray(case.input("old_log_probs")[steps].T))
    limit = settings["advantage_clip"]
    advantage = np.clip(case.input("advantages"), -limit, limit)
    weight = step_weight(trajectory.std[:1])  # the reference has the first sample's times for everyone
    case.compare("sigma_sqrt_dt", trajectory.std[0])
    case.compare("reweight_factor", weight[0])
    batch = Batch(trajectory, scene.branches, jnp.asarray(advantage), np.ones(len(advantage), bool), weight)
    objective = Objective(
        clip=tuple(settings["clip"]),
        kl_weight=settings["kl_weight"],
        kl_form=settings["kl_form"],
        guidance=guidance if settings["guidance_in_training"] else None,
    )
    main = int(np.flatnonzero(steps == case.input("main_timestep"))[0])
    return Training(scene, batch, steps, main, objective, policy, reference)


def check_training(case: Case, goldens: Goldens, training: Training) -> None:
    """Compares losses of every trained step, gradients and optimiser steps, all by one compiled gradient."""
    net, settings, batch = goldens.adapted_transformer, goldens.settings["grpo"], training.batch
    program = jax.jit(make_gradient(training.policy, training.reference, training.objective))
    gradient = lambda batch: program(net.adapters, net.base, batch)
    runs = [gradient(one_step(batch, s)) for s in range(len(training.steps))]
    metrics = [values(metrics) for _, metrics in runs]
    column = lambda name: np.array([float(m[name]) for m in metrics], np.float32)
    case.compare("per_timestep_policy_loss", column("policy_loss"))
    case.compare("per_timestep_policy_loss_reweighted", column("policy_loss") * np.asarray(batch.weight[0]))
    case.compare("per_timestep_kl_loss", column("kl"))
    case.compare("per_timestep_total_loss", column("loss"))
    case.compare("main_total_loss", metrics[training.main]["loss"])
    check_means(case, goldens, training)
    check_update(case, goldens, runs[training.main][0], "", "grad/")
    check_update(case, goldens, gradient(batch)[0], "accum_", "accum_grad/")
    silent = one_step(batch, training.main)._replace(advantage=jnp.zeros_like(batch.advantage))
    kl = jax.tree.map(lambda g: g / settings["kl_weight"], gradient(silent)[0])
    compare_adapter(case, goldens, kl, "grad_kl/")


def one_step(batch: Batch, s: int) -> Batch:
    """Trained step number s, as often as there are steps: its own loss, by the program for all of them."""
    again = np.full(batch.weight.shape[-1], s)
    return batch._replace(trajectory=batch.trajectory.take(again), weight=batch.weight[:, again])


def check_means(case: Case, goldens: Goldens, training: Training) -> None:
    """Compares the means of every trained step with the adapter and without, and what follows from them."""
    net, trajectory, main = goldens.adapted_transformer, training.batch.trajectory, training.main
    velocities = velocity_program(lambda p: net.bind(*p), training.scene, training.objective.guidance)
    silent = jax.tree.map(jnp.zeros_like, net.adapters)  # the adapter that changes nothing: one program for both
    mean, plain = (step_means(trajectory, velocities((a, net.base), trajectory)) for a in (net.adapters, silent))
    case.compare("main_prev_sample_mean", mean[main])
    case.compare("main_prev_sample_mean_ref", plain[main])
    square = np.square(np.asarray(trajectory.sigma))
    case.compare("main_sigma_squared", square[:, main])
    error = np.square(mean - plain).mean((-2, -1))  # padded elements included, as the reference has it
    case.compare("per_timestep_kl_loss_same_sample", (error / (2 * square.T)).mean(-1))
    after = jnp.moveaxis(trajectory.latents[:, :, 1], 1, 0)
    logp = jax.vmap(sde.log_prob, (0, 0, 0, None))(after, mean, trajectory.std.T, trajectory.mask)
    case.compare("per_timestep_step_log_probs", logp)
    old = trajectory.logp[:, main]
    compare_loss(case, "main_", logp[main], old, training.batch.advantage, goldens.settings["grpo"])


def step_means(t: Trajectory, v: np.ndarray) -> np.ndarray:
    """[S, B, T, C]: mean of the state after each kept step, from its velocity v of the same shape."""
    mean = [sde.step_mean(t.latents[:, s, 0], v[s], *t.times[:, s].T, t.sigma[:, s]) for s in range(len(v))]
    return np.stack(mean) * np.asarray(t.mask)[..., None]


def compare_adapter(case: Case, goldens: Goldens, tree: Any, prefix: str) -> dict[str, np.ndarray]:
    """Compares a tree like the adapters with the arrays of a prefix; returns it in the checkpoint's names."""
    tensors = adapter_tensors(tree, goldens.adapted_transformer.spec, omnigen2.ENTRIES)
    for name, tensor in tensors.items():
        case.compare(prefix + name, tensor)
    return tensors


def check_update(case: Case, goldens: Goldens, grads: Any, prefix: str, stored: str) -> None:
    """Compares gradients, their norm, the optimiser's moments where stored, and the adapter after one step."""
    adapters, wanted = goldens.adapted_transformer.adapters, goldens.settings["grpo"]["optimizer"]
    optimizer = make_optimizer(
        wanted["lr"],
        betas=tuple(wanted["betas"]),
        eps=wanted["eps"],
        weight_decay=wanted["weight_decay"],
        max_norm=wanted["max_grad_norm"],
    )
    updates, state = optimizer.update(grads, optimizer.init(adapters), adapters)
    case.compare(f"{prefix}grad_norm", optax.global_norm(grads))
    compare_adapter(case, goldens, grads, stored)
    if not prefix:
        compare_adapter(case, goldens, state[1][0].mu, "exp_avg/")
        compare_adapter(case, goldens, state[1][0].nu, "exp_avg_sq/")
    after = adapter_tensors(optax.apply_updates(adapters, updates), goldens.adapted_transformer.spec, omnigen2.ENTRIES)
    compare_stepped(case, after, (f"{prefix}step1/", stored), goldens.settings["grpo"])


def compare_stepped(case: Case, after: dict[str, np.ndarray], prefixes: tuple[str, str], settings: dict) -> None:
    """Compares the adapter after the first step, where AdamW moves every element by lr in its gradient's direction.

    Elements whose gradient is too faint to have a certain direction are left out; too many of them fail.
    """
    faintest, most = step_rule(settings["step1_rule"])
    prefix, gradients = prefixes
    faint = {name: np.abs(case.stored(gradients + name)) < faintest for name in after}
    share = sum(f.sum() for f in faint.values()) / sum(f.size for f in faint.values())
    allowed = STEP_TOLERANCE * settings["optimizer"]["lr"]
    for name, tensor in after.items():
        stored = case.stored(prefix + name)
        error = np.abs(tensor - stored)[~faint[name]].max(initial=0.0) if tensor.shape == stored.shape else np.inf
        note = f"{int(faint[name].sum())} faint elements left out"
        case.add(prefix + name, float(error) if share <= most else np.inf, allowed, note)


def step_rule(text: str) -> tuple[float, float]:
    """`step1_rule` of goldens.json -> (gradients below this are left out, share of elements that may be)."""
    least, percent = re.search(r"< *([\d.e+-]+)", text), re.search(r"([\d.]+) *%", text)
    if not least or not percent:
        raise InputError(f"step1_rule {text!r}: want '... < NUMBER ... NUMBER% ...'")
    return float(least[1].rstrip(".")), float(percent[1]) / 100
