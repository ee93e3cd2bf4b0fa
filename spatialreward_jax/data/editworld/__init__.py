"""EditWorld: a procedural world of image edits with exact truth (scenes, instructions, targets, regions)."""

from spatialreward_jax.data.editworld.edits import TASKS, EditRegion, EditSample, Op, box_1000, sample_edit
from spatialreward_jax.data.editworld.render import render
from spatialreward_jax.data.editworld.requests import read_truths, write_requests
from spatialreward_jax.data.editworld.scenes import SPLITS, Ground, Scene, Shape, split_of

__all__ = [
    "SPLITS",
    "TASKS",
    "EditRegion",
    "EditSample",
    "Ground",
    "Op",
    "Scene",
    "Shape",
    "box_1000",
    "read_truths",
    "render",
    "sample_edit",
    "split_of",
    "write_requests",
]
