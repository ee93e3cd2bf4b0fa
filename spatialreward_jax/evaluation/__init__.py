"""Benchmarks of edit judges and editors: readers of the published layouts, metrics, statistics, result files."""

from spatialreward_jax.evaluation.answers import read_answers
from spatialreward_jax.evaluation.compare import compare, comparison_table, read_results
from spatialreward_jax.evaluation.run import BENCHMARKS, evaluate, evaluate_answers

__all__ = [
    "BENCHMARKS",
    "compare",
    "comparison_table",
    "evaluate",
    "evaluate_answers",
    "read_answers",
    "read_results",
]
