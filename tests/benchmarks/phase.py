"""Times a whole phase of online RL in both recipes: encode, roll out, decode, update. Rewards are given numbers.

    python tests/benchmarks/phase.py --json=phase.json
    python tests/benchmarks/phase.py --size=embedded --prompts=4 --group=8
    python tests/benchmarks/phase.py --reference=CLONE

Ours is the main job's own task (`recipes/flow_grpo.py`) on nets in the published layout with random weights. `parity`:
20 stochastic steps, 12 of them trained, KL term; `window`: 2 stochastic steps, trained, no KL term. Both guided, two
updates. With `--reference` (see `editor.py`) torch runs the framework's phase as it is written, on the same weights:
guidance as one padded batch, KL forward, gradient checkpointing of the joint blocks; both of our recipes are compared
with it. `gflop` counts the transformer alone.
"""

import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import common
import flops
import jax
import jax.numpy as jnp
import nets
import numpy as np
from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.data.pipeline import EditBatch
from spatialreward_jax.data.requests import EditRequest
from spatialreward_jax.editor import load_nets
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.recipes.flow_grpo import FlowGRPO
from spatialreward_jax.recipes.grpo_settings import RECIPES, Settings
from spatialreward_jax.reward.backends import Graded, WeightedReward

ROOMS = ("encode", "sample", "decode")
INSTRUCTION = "make the red circle in the middle of the picture a little larger and turn it blue"


def define_flags() -> None:
    """The program's flags."""
    common.define_flags()
    flags.FLAGS.set_default("rounds", 3)
    flags.DEFINE_string("reference", "", "Clone whose nets run in torch beside ours.")
    flags.DEFINE_string("size", "360", "'embedded', or the transformer's width: a multiple of 360.")
    flags.DEFINE_integer("layers", 6, "Joint blocks; one block in each of the three refiners.", lower_bound=1)
    flags.DEFINE_integer("side", 128, "Side in pixels of sources and edits, a multiple of 16.", lower_bound=16)
    flags.DEFINE_integer("prompts", 2, "Prompts of a phase, an even number.", lower_bound=2)
    flags.DEFINE_integer("group", 2, "Edits of each prompt.", lower_bound=2)
    flags.DEFINE_integer("steps", 20, "Sampler steps.", lower_bound=1)
    flags.DEFINE_list("recipes", list(RECIPES), "Which recipes to run.")


class FixedReward:
    """Backend that gives the k-th edit of a phase a number of its own, whatever it shows."""

    def __call__(self, edits: Sequence[Any], scores: Any) -> list[Graded]:
        """Numbers between 0 and 1."""
        return [Graded((0.37 * k) % 1.0) for k in range(len(edits))]


class Phase(NamedTuple):
    """One recipe's task, its batch, and the seconds that each room took in every run."""

    task: FlowGRPO
    batch: EditBatch
    rooms: dict[str, list[float]]


def settings_of(recipe: str, folder: pathlib.Path, given: flags.FlagValues) -> Settings:
    """The published recipe at the benchmark's sizes."""
    config = common.grpo_config("omnigen2")
    config.update({"editor": str(folder), "dtype": "float32", "recipe": recipe, "seed": given.seed})
    config.update({"prompts": given.prompts, "group": given.group, "kl_weight": 0.04 if recipe == "parity" else 0.0})
    config.sampler.steps, config.micro = given.steps, (1, 1)
    config.eval.prompts = 0
    return Settings.from_config(config, folder)


def pose(recipe: str, folder: pathlib.Path, given: flags.FlagValues) -> Phase:
    """A recipe's task on the folder's nets; its rooms are timed from outside."""
    editor = load_nets(folder, dtype="float32", mesh=make_mesh(devices=jax.devices()[:1]))
    reward = WeightedReward({"fixed": FixedReward()}, {"fixed": 1.0})
    requests = tuple(EditRequest(INSTRUCTION, (), INSTRUCTION, key=k) for k in range(given.prompts))
    task = FlowGRPO(settings_of(recipe, folder, given), requests, editor, reward, folder)
    pixels = np.random.default_rng(given.seed).integers(0, 256, (given.prompts, given.side, given.side, 3), np.uint8)
    batch = EditBatch(requests, tuple((image,) for image in pixels), ((given.side, given.side),) * given.prompts)
    rooms = {name: [] for name in ROOMS}
    for name in ROOMS:
        setattr(task, name, _timed(getattr(task, name), rooms[name]))
    return Phase(task, batch, rooms)


def _timed(run: Callable, seconds: list[float]) -> Callable:
    def timed(*args):
        start = time.perf_counter()
        out = run(*args)
        jax.block_until_ready([x for x in jax.tree.leaves(out) if isinstance(x, jax.Array)])
        seconds.append(time.perf_counter() - start)
        return out

    return timed


def program(phase: Phase) -> Callable[[], Any]:
    """One phase after another; the state goes on, so that every phase is a real one."""
    held = [phase.task.init(jax.random.key(0))]

    def run():
        state, metrics = phase.task.step(held.pop(), phase.batch)
        held.append(state)
        return state.params, metrics["update2/grad_norm"]

    return run


def work(phase: Phase, given: flags.FlagValues) -> common.Work:
    """The transformer's operations in a phase: rollout, training of the kept steps, KL forward."""
    task = phase.task
    encoded, s = task.encode(phase.batch, 0), task.settings
    texts = [int(b.text_mask[0].sum()) for b in encoded.branches]
    tokens, samples = (given.side // 16) ** 2, given.prompts * given.group
    config = task.nets.transformer.config
    branches = [
        flops.omnigen2(config, text=text, refs=refs, target=tokens, rank=s.lora.rank) * samples
        for text, refs in zip(texts, ((tokens,), (tokens,), ()))
    ]
    plan = s.plan(np.random.default_rng([s.seed, 0]))
    on = [s.guidance.range[0] <= i / s.sampler_steps <= s.guidance.range[1] for i in range(s.sampler_steps)]
    kept = [on[i] for i in np.atleast_2d(plan.keep)[0]]
    at = lambda guided: branches if guided else branches[:1]
    total = sum(b.forward for guided in on for b in at(guided))
    trained = [b for guided in kept for b in at(guided)]
    total += sum(b.forward + b.backward + (b.forward if s.kl_weight else 0) for b in trained)
    return common.Work(total, sum(b.again for b in trained))


def main(_argv: Sequence[str]) -> None:
    """Command line, see the module."""
    given = flags.FLAGS
    common.limit_threads(given.threads)
    configs, torch = nets.editor_configs(given.size, given.layers), None
    if given.reference:
        import torch
        import torch_editor
        import torch_phase

        torch_editor.add_clone(given.reference)
        torch.set_num_threads(given.threads)
    report = common.environment(given, ("torch", "diffusers", "peft", "transformers") if given.reference else ())
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        nets.write_editor(folder, configs, given.seed, ("transformer", "vae", "mllm"))
        phases = {recipe: pose(recipe, folder, given) for recipe in given.recipes}
        first = phases[given.recipes[0]]
        runs: dict[str, Callable] = {recipe: program(phase) for recipe, phase in phases.items()}
        reference = torch_phase.Framework(folder, first.task, first.batch) if given.reference else None
    if reference is not None:
        runs["framework"] = reference.run
    tokens = (given.side // 16) ** 2
    layer = nets.layer_shape(configs["transformer"], given.prompts * given.group, 2 * tokens)
    seconds = common.interleaved({**common.probes(torch, layer), **runs}, given.rounds)
    machine, rows = common.Machine.of(seconds, layer), {}
    for recipe, phase in phases.items():
        own = {recipe: seconds[recipe]}
        own |= {f"{recipe}/framework": seconds["framework"]} if reference is not None else {}
        rooms = {name: s[-given.rounds :] for name, s in phase.rooms.items()}
        rooms["update"] = (np.array(seconds[recipe]) - np.sum(list(rooms.values()), axis=0)).tolist()
        rows[recipe] = common.row(own, recipe, work(phase, given), machine)
        rows[recipe]["rooms_ms"] = {name: round(1e3 * float(np.median(s)), 1) for name, s in rooms.items()}
    report |= {
        "configs": configs,
        "parameters": nets.count(first.task.nets.transformer.params),
        "shapes": {"prompts": given.prompts, "group": given.group, "side": given.side, "steps": given.steps},
        "machine": machine.report(),
        "rows": rows,
    }
    if reference is not None:
        report["framework_rooms_ms"] = reference.rooms(given.rounds)
        encoded = first.task.encode(first.batch, 0)
        mask = np.asarray(encoded.branches.full.text_mask)
        report["compared"] = {
            "text features": common.apart(jnp.asarray(encoded.branches.full.text)[mask], reference.text())
        }
    common.write(report, given.json)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
