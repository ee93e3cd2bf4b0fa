"""EditWorld: a procedural world of image edits with exact truth (scenes, instructions, targets, regions, scores).

`builder.EditWorld` is the TensorFlow Datasets builder, `oracle.Oracle` the reward backend that knows the truth.
"""

from spatialreward_jax.data.editworld.answers import (
    CHANGES_QUESTION,
    GROUNDING_QUESTION,
    answer_opening,
    changes_answer,
    consistency_answer,
    grounding_answer,
    quality_answer,
    rationale,
)
from spatialreward_jax.data.editworld.artifacts import FLAWS, Artifact
from spatialreward_jax.data.editworld.candidates import (
    FAILURES,
    Candidate,
    make_candidate,
    random_artifacts,
    random_candidate,
)
from spatialreward_jax.data.editworld.edits import (
    TASKS,
    EditRegion,
    EditSample,
    Op,
    box_1000,
    sample_edit,
    several_ops,
)
from spatialreward_jax.data.editworld.rankings import exact_reward, ranking, ranking_row, write_rankings
from spatialreward_jax.data.editworld.render import render
from spatialreward_jax.data.editworld.requests import read_truths, write_requests
from spatialreward_jax.data.editworld.rule import Scores
from spatialreward_jax.data.editworld.scenes import SPLITS, Ground, Scene, Shape, split_of

__all__ = [
    "CHANGES_QUESTION",
    "FAILURES",
    "FLAWS",
    "GROUNDING_QUESTION",
    "SPLITS",
    "TASKS",
    "Artifact",
    "Candidate",
    "EditRegion",
    "EditSample",
    "Ground",
    "Op",
    "Scene",
    "Scores",
    "Shape",
    "answer_opening",
    "box_1000",
    "changes_answer",
    "consistency_answer",
    "exact_reward",
    "grounding_answer",
    "make_candidate",
    "quality_answer",
    "random_artifacts",
    "random_candidate",
    "ranking",
    "ranking_row",
    "rationale",
    "read_truths",
    "render",
    "sample_edit",
    "several_ops",
    "split_of",
    "write_rankings",
    "write_requests",
]
