"""Whether edits of the stochastic samplers are as clean as those of the deterministic one.

    python tests/benchmarks/sde_edits.py
    python tests/benchmarks/sde_edits.py --editor=FOLDER --adapter=FOLDER --edits=64

Edits the same EditWorld requests from the same noise by the ODE and by the SDE of both recipes, as the main job would
(configs/grpo.py), and prints, for each sampler, the energy above half the highest frequency against that of the ODE.
"""

import json
import pathlib
import tempfile

import common
import jax
import numpy as np
from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.data.pipeline import load_batch
from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import ode_plan
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.recipes.flow_grpo import FlowGRPO, make_task
from spatialreward_jax.recipes.grpo_settings import RECIPES


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_string("editor", "embedded", "Editor: a folder, or embedded.")
    flags.DEFINE_string("adapter", "", "Adapter on top of it.")
    flags.DEFINE_integer("edits", 32, "Requests of EditWorld's training split.", lower_bound=1)


def high_frequency_energy(image: np.ndarray) -> float:
    """Mean squared amplitude of a uint8 image [H, W, 3] above 0.25 cycles a pixel along either axis, in levels."""
    spectrum = np.fft.fft2(image.astype(np.float64), axes=(0, 1), norm="ortho")
    fast = [np.abs(np.fft.fftfreq(size)) > 0.25 for size in image.shape[:2]]
    return float(np.mean(np.abs(spectrum[fast[0][:, None] | fast[1][None]]) ** 2))


def task_of(recipe: str, editor: str, adapter: str, folder: pathlib.Path) -> FlowGRPO:
    """The main job on one device, its reward the pixel measures alone."""
    config = common.grpo_config()
    config.update({"recipe": recipe, "editor": editor, "adapter": adapter, "eval": {"prompts": 0}})
    config.rewards = {"guards": 1.0}
    return make_task(config, make_mesh(devices=jax.devices()[:1]), folder)


def main(_argv: list[str]) -> None:
    """Edits, measures and prints one line of JSON for each recipe."""
    given = flags.FLAGS
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            task = task_of(recipe, given.editor, given.adapter, pathlib.Path(folder))
            rows, energies, state = task.settings.prompts, {"ode": [], "sde": []}, task.init(None)
            if given.edits % rows:
                raise InputError(f"--edits={given.edits}: use a multiple of {rows}, which are edited at a time")
            plans = {"ode": ode_plan(task.settings.sampler_steps), "sde": task.settings.plan(np.random.default_rng(0))}
            for first in range(0, given.edits, rows):
                batch = load_batch(task.requests[first : first + rows], task.size)
                encoded, keys = task.encode(batch, 0), task.sample_keys(batch, 0, 1)
                for name, plan in plans.items():
                    images = task.decode(encoded, task.sample(state.params, encoded, keys, plan)[0])
                    energies[name] += map(high_frequency_energy, images)
        means = {name: float(np.mean(values)) for name, values in energies.items()}
        found = {"recipe": recipe, "edits": len(energies["sde"]), **means, "ratio": means["sde"] / means["ode"]}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
