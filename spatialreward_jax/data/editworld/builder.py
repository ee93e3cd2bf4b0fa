"""EditWorld as a TensorFlow Datasets builder that needs no TensorFlow: judged edits, images as PNG bytes.

    builder = EditWorld(config="small", data_dir=folder)
    builder.download_and_prepare()
    train = builder.as_data_source(split="train")      # random access; images come as uint8 [H, W, 3]

Each row is one edit request with one candidate answer, everything the judge is trained on and more.
"""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import tensorflow_datasets as tfds

from spatialreward_jax.data.editworld import answers
from spatialreward_jax.data.editworld.candidates import FAILURES, Candidate, random_candidate
from spatialreward_jax.data.editworld.edits import sample_edit
from spatialreward_jax.data.editworld.folders import VERSION
from spatialreward_jax.data.editworld.render import render
from spatialreward_jax.data.editworld.scenes import SPLITS
from spatialreward_jax.io.images import png_bytes


@dataclasses.dataclass
class EditWorldConfig(tfds.core.BuilderConfig):
    """counts: rows of train, validation and test. seed: of all of them."""

    counts: tuple[int, int, int] = (256, 64, 64)
    seed: int = 0


def judged_edit(split: str, index: int, seed: int = 0) -> Candidate:
    """The judged edit number `index` of a split: one request, one candidate with a random failure."""
    return random_candidate(sample_edit(split, index, seed=seed), np.random.default_rng((seed, index, 1)), FAILURES)


class EditWorld(tfds.core.GeneratorBasedBuilder):
    """Procedural edits of coloured shapes with exact truth."""

    VERSION = tfds.core.Version(f"{VERSION}.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (the base class wants a plain list)
        EditWorldConfig(name="tiny", description="for tests", counts=(24, 8, 8)),
        EditWorldConfig(name="small", description="a look at it", counts=(2000, 256, 256)),
        EditWorldConfig(name="full", description="for training", counts=(50000, 1000, 1000)),
    ]

    def __init__(self, **settings):
        """settings: as of every builder (config, data_dir ...). The file format is always array_record."""
        super().__init__(file_format="array_record", **settings)

    def _info(self) -> tfds.core.DatasetInfo:
        picture = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "source": picture,
                    "target": picture,
                    "edited": picture,
                    "instruction": tfds.features.Text(),
                    "task_type": tfds.features.Text(),
                    "failure": tfds.features.Text(),
                    "consistency_answer": tfds.features.Text(),
                    "quality_answer": tfds.features.Text(),
                    "scores": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                    "regions": tfds.features.Sequence(tfds.features.Tensor(shape=(4,), dtype=np.int32)),
                    "truth": tfds.features.Text(),
                }
            ),
            homepage="",
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str):
        config = self.builder_config
        for index in range(config.counts[SPLITS.index(split)]):
            candidate = judged_edit(split, index, config.seed)
            sample = candidate.sample
            yield (
                index,
                {
                    "source": io.BytesIO(png_bytes(render(sample.source))),
                    "target": io.BytesIO(png_bytes(render(sample.target))),
                    "edited": io.BytesIO(png_bytes(candidate.image())),
                    "instruction": sample.instruction,
                    "task_type": sample.task_type,
                    "failure": candidate.failure,
                    "consistency_answer": answers.consistency_answer(candidate),
                    "quality_answer": answers.quality_answer(candidate),
                    "scores": np.array(candidate.scores, np.float32),
                    "regions": np.array([r.box for r in candidate.regions], np.int32).reshape(-1, 4),
                    "truth": json.dumps(sample.truth()),
                },
            )
