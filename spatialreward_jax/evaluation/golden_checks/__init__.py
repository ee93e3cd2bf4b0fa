"""Checks of a folder of reference arrays, such as `tests/goldens`, against our nets and maths."""

from spatialreward_jax.evaluation.golden_checks.case import Case, Row
from spatialreward_jax.evaluation.golden_checks.nets import Goldens
from spatialreward_jax.evaluation.golden_checks.run import check_file, check_folder

__all__ = ["Case", "Goldens", "Row", "check_file", "check_folder"]
