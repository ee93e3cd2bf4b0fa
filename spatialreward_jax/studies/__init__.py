"""The paper in miniature: comparisons on EditWorld with as many updates or phases for every arm."""

from spatialreward_jax.studies.arms import STUDIES, Arm, Place, Quotient, Study, Value
from spatialreward_jax.studies.cells import Cell, claim, find_arm, read_cell, run_cell, seeds_of
from spatialreward_jax.studies.table import interval, study_table

__all__ = [
    "STUDIES",
    "Arm",
    "Cell",
    "Place",
    "Quotient",
    "Study",
    "Value",
    "claim",
    "find_arm",
    "interval",
    "read_cell",
    "run_cell",
    "seeds_of",
    "study_table",
]
