"""The paper in miniature: comparisons on EditWorld with the same budget for every arm."""

from spatialreward_jax.studies.arms import STUDIES, Arm, Place, Quotient, Study, Value
from spatialreward_jax.studies.cells import Cell, find_arm, read_cell, run_cell
from spatialreward_jax.studies.table import interval, study_table

__all__ = [
    "STUDIES",
    "Arm",
    "Cell",
    "Place",
    "Quotient",
    "Study",
    "Value",
    "find_arm",
    "interval",
    "read_cell",
    "run_cell",
    "study_table",
]
