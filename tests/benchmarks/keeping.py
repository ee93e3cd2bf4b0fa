"""What an editor has that keeps its source, by EditWorld's truth: the ceiling of a policy that only learns to keep.

    python tests/benchmarks/keeping.py --seed=2233
    python tests/benchmarks/keeping.py --seed=2233 --adapter=WORKDIR/adapter

Prints, for requests of the main job (configs/grpo.py), the oracle's mean reward and scores of the source as
it is, of its round trip through the editor's autoencoder (a posterior sample, which is what the editor is given of it),
and of the editor's own edit.
"""

import json
import pathlib
import tempfile

import common
import jax
import numpy as np
from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.data.editworld import SPLITS, write_requests
from spatialreward_jax.data.editworld.oracle import Oracle
from spatialreward_jax.data.editworld.rule import Scores
from spatialreward_jax.data.pipeline import EditBatch, load_batch
from spatialreward_jax.data.requests import read_requests
from spatialreward_jax.editor import encode as encoding
from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import ode_plan
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.models.omnigen2 import pack_images
from spatialreward_jax.recipes.flow_grpo import FlowGRPO, make_task
from spatialreward_jax.recipes.task import HELDOUT

CHUNK = 32
"""Requests that are edited at a time."""


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_string("editor", "embedded", "Editor: a folder, or embedded.")
    flags.DEFINE_string("adapter", "", "Adapter on top of it.")
    flags.DEFINE_integer("seed", 2233, "Of the requests.")
    flags.DEFINE_enum("split", "validation", SPLITS, "Of the requests: held out, or those of the main job (train).")
    flags.DEFINE_integer("edits", 256, f"Requests, a multiple of {CHUNK}.", lower_bound=CHUNK)


def round_trip(task: FlowGRPO, batch: EditBatch) -> list[np.ndarray]:
    """The sources, uint8, as the autoencoder gives them back."""
    latents = [rows[0] for rows in encoding.encode_images(task.nets, batch.sources, task.request_keys(batch, HELDOUT))]
    patch = task.nets.transformer.config.patch_size
    most = max(height * width // patch**2 for height, width, _ in (latent.shape for latent in latents))
    packed, _ = pack_images(latents, tokens=most, patch=patch)
    return encoding.decode(task.nets, packed, [latent.shape[:2] for latent in latents])


def main(_argv: list[str]) -> None:
    """Prints one line of JSON for each kind of answer."""
    given = flags.FLAGS
    if given.edits % CHUNK:
        raise InputError(f"--edits={given.edits}: use a multiple of {CHUNK}")
    found: dict[str, list[list[float]]] = {"source": [], "round trip": [], "edit": []}
    with tempfile.TemporaryDirectory() as folder:
        config = common.grpo_config()
        config.update({"editor": given.editor, "adapter": given.adapter, "seed": given.seed})
        config.eval.update({"prompts": 0, "heldout": 0})
        config.rewards = {"guards": 1.0}  # no judge is needed
        task = make_task(config, make_mesh(devices=jax.devices()[:1]), pathlib.Path(folder))
        index = write_requests(pathlib.Path(folder) / "requests", given.split, given.edits, given.seed)
        requests, oracle, state = read_requests(index), Oracle.from_requests(index), task.init(None)
        for first in range(0, given.edits, CHUNK):
            batch = load_batch(requests[first : first + CHUNK], task.size)
            encoded, keys = task.encode(batch, HELDOUT), task.sample_keys(batch, HELDOUT, 1)
            latents, _ = task.sample(state.params, encoded, keys, ode_plan(task.settings.sampler_steps))
            answers = {
                "source": [sources[0] for sources in batch.sources],
                "round trip": round_trip(task, batch),
                "edit": task.decode(encoded, latents),
            }
            for name, images in answers.items():
                graded = oracle(task.edits(batch, images))
                found[name] += [[grade.reward, *(grade.measures[name] for name in Scores._fields)] for grade in graded]
    for name, rows in found.items():
        means = {key: round(float(value), 4) for key, value in zip(("oracle", *Scores._fields), np.mean(rows, axis=0))}
        print(json.dumps({"answer": name, "edits": len(rows), **means}), flush=True)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
