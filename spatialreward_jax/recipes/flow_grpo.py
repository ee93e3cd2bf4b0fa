"""Online RL of the editor (Flow-GRPO, arXiv 2505.05470), the main job.

One step is one phase: encode P requests, roll out G edits of each, decode, score, advantages over the phase, then
`updates_per_phase` optimiser steps, each on its own share of the prompts. Everything runs on one mesh.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from spatialreward_jax import processes
from spatialreward_jax.data.pipeline import EditBatch, batches, whole
from spatialreward_jax.data.requests import EditRequest, read_requests
from spatialreward_jax.editor import encode as encoding
from spatialreward_jax.editor.nets import EditorNets, load_nets
from spatialreward_jax.editor.velocity import velocity_fn
from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import StepPlan, Trajectory, key_noise, rollout, time_grid
from spatialreward_jax.io.peft import write_diffusers, write_peft
from spatialreward_jax.io.pretrained import resolve
from spatialreward_jax.io.weights import save_params
from spatialreward_jax.mesh import place_batch, place_whole
from spatialreward_jax.models import omnigen2
from spatialreward_jax.recipes import grpo_settings, heldout, previews
from spatialreward_jax.recipes.checks import check_references
from spatialreward_jax.recipes.kept_edits import keep_edits
from spatialreward_jax.recipes.optimizing import start_state
from spatialreward_jax.recipes.task import Batches, Evaluator, History
from spatialreward_jax.reporting.journal import Samples
from spatialreward_jax.reporting.report import Caption, Chart
from spatialreward_jax.reward.backends import WeightedReward
from spatialreward_jax.reward.types import Edit
from spatialreward_jax.rl import (
    Batch,
    TrainState,
    group_advantage,
    make_logp,
    make_optimizer,
    make_update,
    reward_metrics,
    step_weight,
)

REWARD_CHARTS = (
    Chart("Reward of the sampled edits", {"reward": "reward", "judge": "reward/judge/reward"}),
    Chart("Truth (oracle) of the sampled edits", {"oracle": "reward/oracle/reward"}),
    Chart("Held-out edits, same noise", {n: f"heldout/{n}" for n in ("oracle", "reward", "judge")}),
    Chart(
        "Held-out edits, truth of 25: what was asked, what was to stay",
        {"success": "heldout/success", "no over-editing": "heldout/no_overedit"},
    ),
    Chart("Guards", {"reward": "reward/guards/reward", "outside change": "reward/guards/outside_change"}),
    Chart("Health of rewards", {"invalid": "invalid_share", "flat groups": "zero_std_share"}),
    Chart("Spread of rewards", {"all": "reward_std", "within groups": "reward_group_std"}),
)


def charts_of(updates: int) -> tuple[Chart, ...]:
    """Curves of a run with this many updates a phase: rewards, and the health of the first and the last of them."""
    ends = {"first update": "update1"} | ({"last": f"update{updates}"} if updates > 1 else {})
    health = {
        "Gradient norm": "grad_norm",
        "Largest |ratio - 1|": "ratio_deviation",
        "Clipped share": "clip_fraction",
        "KL to the reference": "kl",
    }
    return (
        *REWARD_CHARTS,
        *(Chart(title, {end: f"{update}/{name}" for end, update in ends.items()}) for title, name in health.items()),
        Chart("Seconds of a phase", {"seconds": "seconds_per_step"}),
    )


RATIO_SHARE = 0.2
"""Share of the lower clip that the sampler's log-probabilities may be off before training computes its own."""


class FlowGRPO:
    """The task that `train.py` runs. See `recipes.task.Task` for the contract of each method."""

    def __init__(
        self,
        settings: grpo_settings.Settings,
        requests: Sequence[EditRequest],
        nets: EditorNets,
        reward: WeightedReward,
        workdir: pathlib.Path,
    ):
        """`nets` get new adapters where the settings ask for LoRA and they carry none."""
        self.settings, self.nets, self.reward, self.workdir = settings, nets, reward, workdir
        self.phase_reward = reward.of_phases()
        self.size = dataclasses.replace(settings.size, multiple=nets.multiple)
        self.requests = requests
        if settings.lora and nets.adapters is None:
            nets.add_adapters(settings.lora, settings.seed)
        self.programs = Programs(nets, settings)
        self.recompute: bool | None = None  # decided by measurement in the first phase
        self.first_deviation: float | None = None
        self.charts: Sequence[Chart | Caption] = charts_of(settings.updates_per_phase)
        self.heldout = heldout.HeldoutEdits(self, settings.heldout) if settings.heldout else None
        self.evaluators: Mapping[str, Evaluator] = {}
        if settings.eval_prompts:
            preview = previews.Previews(self)
            self.evaluators, self.charts = {"preview": preview}, (*self.charts, Caption("preview.edits", preview.text))
        if self.heldout:
            self.evaluators |= {"heldout": self.heldout}

    # ---- the contract with the loop

    def init(self, key: Any) -> TrainState:
        """Adapters (or all parameters) and the optimiser's state."""
        del key  # adapters were drawn from the config's seed when the nets were made
        return start_state(self.start, self.programs.optimizer)

    @property
    def start(self) -> Any:
        """What training begins with: adapters, or all parameters of the transformer."""
        return self.nets.transformer.params if self.nets.adapters is None else self.nets.adapters

    def batches(self) -> Batches:
        """P requests at a time."""
        s = self.settings
        process = (jax.process_index(), jax.process_count())
        return batches(self.requests, s.prompts, seed=s.seed, size=self.size, process=process, threads=s.threads)

    def step(self, state: TrainState, batch: EditBatch) -> tuple[TrainState, dict[str, Any]]:
        """One phase. From here on all processes have the prompts of all of them, see `processes`."""
        batch, s = whole(batch), self.settings
        phase = int(state.step) // s.updates_per_phase
        encoded = self.encode(batch, phase)
        plan = s.plan(np.random.default_rng([s.seed, phase]))
        latents, trajectory = self.sample(state.params, encoded, self.sample_keys(batch, phase, s.group), plan)
        edits = self.edits(batch, self.decode(encoded, latents))
        rewards = self.phase_reward(edits)
        groups = lambda x: x.reshape(s.prompts, s.group)
        reward, valid = groups(rewards.reward), groups(rewards.valid)
        advantage = group_advantage(reward, valid, std=s.advantage_std, clip=s.advantage_clip)
        weight = step_weight(trajectory.std) if s.reweight_by_sigma else jnp.ones_like(trajectory.sigma)
        placed = place_whole(self.nets.mesh, (advantage, valid))
        state, update_metrics = self._updates(state, Batch(trajectory, encoded.branches, *placed, weight))
        # Only now: what is logged alone was graded while the devices were busy.
        metrics = reward_metrics(reward, valid) | {f"reward/{n}": _mean(x) for n, x in rewards.parts.items()}
        for name in (name for name in rewards.parts if name.endswith("/reward")):
            part = groups(rewards.parts[name])
            metrics[f"reward/{name}_sem"] = reward_metrics(part, np.isfinite(part)).get("reward_sem")
        metrics = {name: value for name, value in metrics.items() if value is not None}
        if s.keep_edits and processes.is_first():
            keep_edits(self.workdir / "edits", phase, edits, rewards)
        names = [f"key {request.key} ({request.where})" for request in batch.requests]
        return state, metrics | update_metrics | {"samples": Samples(names, _finite(latents))}

    def record(self) -> dict[str, Any]:
        """What was measured in the first phase, and held-out scores."""
        heldout = self.heldout.record() if self.heldout else None
        return {"recompute": self.recompute, "first_deviation": self.first_deviation, "heldout": heldout}

    def restore_record(self, record: dict[str, Any]) -> None:
        """Undoes `record`."""
        self.recompute, self.first_deviation = record["recompute"], record["first_deviation"]
        if self.heldout and record["heldout"]:
            self.heldout.restore_record(record["heldout"])

    def summary(self, history: History) -> dict[str, Any]:
        """Keys of `summary.json` that belong to RL."""
        return {
            "reward_first": history.first.get("reward"),
            "reward_last": history.last.get("reward"),
            "images_per_step": self.settings.prompts * self.settings.group,
            "invalid_share": history.mean("invalid_share"),
            "zero_std_share": history.mean("zero_std_share"),
            "first_update_max_ratio_deviation": self.first_deviation,
            "exported": str(self.exported),
            "old_logp": "training program" if self.recompute else "sampler",
        } | (self.heldout.gain(history) if self.heldout else {})

    def export(self, state: TrainState) -> None:
        """Writes what the editor loads back: adapters as PEFT and diffusers files, or the whole transformer."""
        nets, folder = self.nets, self.exported
        if nets.spec is None:
            save_params(folder, state.params, omnigen2.ENTRIES, stem=omnigen2.STEM, dtype=nets.dtype)
            return
        write_peft(folder, state.params, nets.spec, omnigen2.ENTRIES, base_model=self.settings.editor)
        write_diffusers(folder, state.params, nets.spec, omnigen2.ENTRIES)

    @property
    def exported(self) -> pathlib.Path:
        """Folder that `export` writes."""
        return self.workdir / ("transformer" if self.nets.spec is None else "adapter")

    # ---- the rooms of a phase

    def encode(self, batch: EditBatch, phase: int) -> encoding.Encoded:
        """Requests -> conditioning of the guidance branches."""
        return encoding.encode(
            self.nets,
            [request.instruction for request in batch.requests],
            batch.sources,
            batch.target_sizes,
            negative=self.settings.negative,
            keys=self.request_keys(batch, phase),
            max_tokens=self.settings.max_text_tokens,
        )

    def sample(
        self, params: Any, encoded: encoding.Encoded, keys: jax.Array, plan: StepPlan
    ) -> tuple[jax.Array, Trajectory]:
        """One edit for each of the keys [P, G]: final latents [P, G, T, C] and the trajectory of the kept steps.

        `sample_prompts` prompts run at a time.
        """
        s = self.settings
        sizes = np.array([h * w for h, w in encoded.latent_sizes])
        times = place_batch(self.nets.mesh, time_grid(sizes, s.sampler_steps, s.base))
        frozen, parts = self.programs.frozen, []
        prompts = len(keys)
        for first in range(0, prompts, s.sample_prompts or prompts):
            rows = slice(first, first + (s.sample_prompts or prompts))
            cut = functools.partial(jax.tree.map, lambda x, rows=rows: x[rows])
            own = StepPlan(*(x[rows] if x.ndim == 2 else x for x in plan))
            with jax.set_mesh(self.nets.mesh):
                parts.append(
                    self.programs.rollout(
                        params, frozen, cut(encoded.branches), encoded.mask[rows], times[rows], keys[rows], own
                    )
                )
        return parts[0] if len(parts) == 1 else _join(parts)

    def decode(self, encoded: encoding.Encoded, latents: jax.Array) -> list[np.ndarray]:
        """[P, G, T, C] -> P * G uint8 images, group by group."""
        sizes = [size for size in encoded.latent_sizes for _ in range(latents.shape[1])]
        return encoding.decode(self.nets, latents.reshape(-1, *latents.shape[2:]), sizes)

    def edits(self, batch: EditBatch, images: Sequence[np.ndarray]) -> list[Edit]:
        """What is to be judged: the images, the same number for each request, in the requests' order.

        The judge sees the sources as the editor saw them.
        """
        group = len(images) // len(batch)
        return [
            Edit(batch.sources[i // group], image, batch.requests[i // group].reward_instruction)
            for i, image in enumerate(images)
        ]

    def request_keys(self, batch: EditBatch, phase: int) -> jax.Array:
        """[P] keys that depend on seed, phase and request alone."""
        root = jax.random.fold_in(jax.random.key(self.settings.seed), phase)
        return jax.vmap(jax.random.fold_in, (None, 0))(root, batch.keys)

    def sample_keys(self, batch: EditBatch, phase: int, group: int) -> jax.Array:
        """[P, G] keys: those of the requests, folded by the number of the edit."""
        number = jax.vmap(jax.random.fold_in, (None, 0))
        return jax.vmap(lambda key: number(key, jnp.arange(group)))(self.request_keys(batch, phase))

    def _updates(self, state: TrainState, data: Batch) -> tuple[TrainState, dict[str, Any]]:
        """`updates_per_phase` optimiser steps; the second is off-policy by the first: its ratios are rightly not 1."""
        s, programs = self.settings, self.programs
        metrics = {"lr": float(s.learning_rate()(int(state.step)))}  # of the first of them
        with jax.set_mesh(self.nets.mesh):
            data = self._old_logp(state, data)
            for update in range(s.updates_per_phase):
                share = _take(data, slice(update, None, s.updates_per_phase))
                state, new = programs.update(state, programs.frozen, share)
                if self.first_deviation is None:
                    self.first_deviation = float(new["ratio_deviation"].value())
                metrics |= {f"update{update + 1}/{name}": value for name, value in new.items()}
        return state, metrics

    def _old_logp(self, state: TrainState, data: Batch) -> Batch:
        """Replaces the sampler's log-probabilities where they differ from the training program's by too much."""
        if self.recompute is False:
            return data
        logp = self.programs.logp(state.params, self.programs.frozen, data)
        if self.recompute is None:
            apart = float(jnp.abs(jnp.exp(data.trajectory.logp - logp) - 1).max())
            self.recompute = apart > RATIO_SHARE * self.settings.clip[0]
        return data._replace(trajectory=data.trajectory._replace(logp=logp)) if self.recompute else data


class Programs:
    """The jitted functions of a run, and what they hold fixed (`frozen`: the base under an adapter)."""

    def __init__(self, nets: EditorNets, settings: grpo_settings.Settings):
        graphs, dtype, lora = nets.transformer.graph, nets.dtype, nets.adapters is not None
        # Without adapters, the KL term's reference is the model that training began with.
        self.frozen = nets.transformer.params if lora or settings.kl_weight else {}
        sampling, objective = settings.guidance, settings.objective()
        optimizer = make_optimizer(
            settings.learning_rate(),
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            max_norm=settings.max_grad_norm,
        )

        def velocity(params, frozen):
            return velocity_fn(graphs, params, frozen, dtype) if lora else velocity_fn(graphs, None, params, dtype)

        def policy(params, frozen, x, t, cond):
            return velocity(params, frozen)(x, t, cond)

        def reference(frozen, x, t, cond):
            return velocity_fn(graphs, None, frozen, dtype)(x, t, cond)

        def roll(params, frozen, branches, mask, times, keys, plan):
            noise = key_noise(keys, mask.shape[-1], branches.full.refs.shape[-1])
            net = velocity(params, frozen)
            return rollout(net, branches, noise(-1), times, mask, guidance=sampling, plan=plan, noise=noise)

        self.rollout = jax.jit(roll)
        self.logp = jax.jit(make_logp(policy, objective))
        self.update = jax.jit(make_update(policy, reference, optimizer, objective), donate_argnums=0)
        self.optimizer = optimizer


def _take(batch: Batch, rows: slice) -> Batch:
    """Some prompts of a batch; `guided` is the only array that all prompts share."""
    taken = jax.tree.map(lambda x: x[rows], batch._replace(trajectory=batch.trajectory._replace(guided=None)))
    return taken._replace(trajectory=taken.trajectory._replace(guided=batch.trajectory.guided))


def _join(parts):
    """Rollouts of consecutive prompts as one; what is shared by all prompts is taken from the first."""
    latents = jnp.concatenate([latents for latents, _ in parts])
    trajectories = [trajectory for _, trajectory in parts]
    joined = Trajectory(*(jnp.concatenate(x) for x in zip(*trajectories)))
    return latents, joined._replace(guided=trajectories[0].guided)


@jax.jit
def _finite(latents):
    """[P, G, T, C] -> bool [P]."""
    return jnp.isfinite(latents).all((1, 2, 3))


def _mean(x: np.ndarray) -> float | None:
    return float(np.nanmean(x)) if np.isfinite(x).any() else None


def make_task(config: ConfigDict, mesh: jax.sharding.Mesh, workdir: pathlib.Path) -> FlowGRPO:
    """The task of a config; checks everything cheap before it loads anything.

    Raises:
      InputError: a config value, the data, the editor or a reward is not as it should be.
    """
    settings = grpo_settings.Settings.from_config(config, workdir)
    resolve(settings.editor, "editor")  # the judge, which may be large, is loaded before the editor
    requests = read_requests(settings.data, tasks=settings.tasks, check=settings.check)
    check_references(requests)
    if len(requests) < settings.prompts:
        raise InputError(f"prompts={settings.prompts}, but {settings.data} holds only {len(requests)} requests")
    reward = grpo_settings.make_reward(config, mesh, settings.data)
    nets = load_nets(
        settings.editor,
        adapter=settings.adapter or None,
        alpha=settings.adapter_alpha or None,
        dtype=settings.dtype or None,
        mesh=mesh,
    )
    return FlowGRPO(settings, requests, nets, reward, workdir)
