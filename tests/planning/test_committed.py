"""The committed plans: every program of both recipes, made for slices that hold them, and within the budget."""

import json
import pathlib

import pytest

from spatialreward_jax.planning.programs import MAKERS
from spatialreward_jax.planning.topology import Topology

PLANS = pathlib.Path(__file__).parents[1] / "benchmarks" / "plan"
SLICES = {"v5e-4x8": 32, "v6e-2x4": 8, "v6e-4x4": 16, "v5p-2x2x2": 8}


def read(name):
    return json.loads((PLANS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", SLICES)
def test_all_programs_fit(name):
    parity, window = read(name), read(f"{name}-window")
    assert {row["program"] for row in parity["programs"]} == set(MAKERS)
    assert [row["program"] for row in window["programs"]] == ["rollout", "update"]
    for plan in (parity, window):
        topology = Topology.parse(plan["topology"])
        assert plan["chips"] == SLICES[name] == topology.chips and plan["fits"]
        assert plan["date"] and all(plan["versions"].values())
        for row in plan["programs"]:
            assert row["fits"] and 0 < row["hbm_per_chip"]["total"] <= topology.chip.usable, row["program"]


@pytest.mark.parametrize("name", SLICES)
def test_the_judges_weights_stay(name):
    """For each token of a batch of answers a chip sends a fraction of its weights, where gathering sends them all."""
    plan = read(name)
    row = next(row for row in plan["programs"] if row["program"] == "judge_answer")
    sent = sum(kind["bytes"] for kind in row["collectives_per_chip"].values())
    assert 0 < sent / plan["request"]["answer"] < row["hbm_per_chip"]["weights"] / 20


def test_recipes_stay_within_their_aims():
    recipes = {row["recipe"]: row for row in read("recipes")["recipes"]}
    assert recipes["parity"]["tflop_per_image"] <= 2003 and recipes["window"]["tflop_per_image"] <= 811
