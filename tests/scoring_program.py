"""Scores a few edits in one of several processes, for `test_many_processes.py`; the first one writes the answers."""

import json
import pathlib

import jax
import numpy as np
import shared_compile_program
from absl import flags

from spatialreward_jax import cli, processes
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.reward.batching import Limits
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.types import Edit
from spatialreward_jax.reward.vlm import Decoding

_JUDGE = flags.DEFINE_string("judge", "", "Folder.")
_OUT = flags.DEFINE_string("out", "", "File for the answers.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "Of the processes.")
_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Of the run.")
_PROCESS = flags.DEFINE_integer("process_id", -1, "This one.")


def main(_argv):
    processes.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    model = RewardModel.from_pretrained(
        _JUDGE.value,
        mesh=make_mesh(2, 1, 1),
        decoding=Decoding(max_new_tokens=48, constrained=True),
        limits=Limits(batch=2),
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
    edits = [Edit(images[0], image, f"edit {number}") for number, image in enumerate(images[1:])]
    scores = model.score(edits)
    if jax.process_index() == 0:
        texts = [text for score in scores for text in (score.raw_sc, score.raw_pq)]
        pathlib.Path(_OUT.value).write_text(json.dumps(texts))


if __name__ == "__main__":
    shared_compile_program.share()
    cli.run(main)
