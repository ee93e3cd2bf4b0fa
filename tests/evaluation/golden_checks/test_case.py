"""Rows of the table: what counts as equal, and that nothing is skipped."""

import json
import shutil

import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.golden_checks import Case, Goldens, check_file, check_folder
from spatialreward_jax.evaluation.golden_checks import published as published_module
from spatialreward_jax.evaluation.golden_checks.grpo import step_rule
from spatialreward_jax.evaluation.golden_checks.rewards import check as check_rewards


def case(**arrays):
    return Case("file.npz", {k: np.asarray(v) for k, v in arrays.items()}, {"*": 0.1, "fine*": 1e-6, "*e": 5})


def only(rows):
    assert len(rows) == 1
    return rows[0]


def test_tolerance_grows_with_the_largest_value():
    small, large = case(x=[0.5, 0.2]), case(x=[50.0, 0.2])
    small.compare("x", np.array([0.5, 0.35]))
    large.compare("x", np.array([50.0, 5.1]))
    assert not only(small.finish()).ok and only(large.finish()).ok
    assert only(large.finish()).tolerance == pytest.approx(5.0)


def test_first_matching_pattern_after_the_star_wins():
    assert [case().tolerance(n) for n in ("x", "fine", "fine_e", "e")] == [0.1, 1e-6, 1e-6, 5]


def test_arrays_that_nobody_knows_fail():
    c = case(used=1.0, x=1.0, stranger=1.0)
    c.input("used")
    c.compare("x", 1.0)
    assert [(r.array, r.status, r.ok) for r in c.finish()] == [
        ("used", "input", True),
        ("x", "compared", True),
        ("stranger", "failed", False),
    ]


@pytest.mark.parametrize(
    ("theirs", "ours", "ok"),
    [
        (np.array([1.0]), np.array([np.nan]), False),
        (np.array([1.0]), np.array([[1.0]]), False),
        (np.array([3, 4]), np.array([3, 5]), False),
        (np.array([3, 4]), np.array([3, 4], np.int32), True),
        (np.array(["a", "b"]), np.array(["a", "c"]), False),
        (np.array([True]), np.array([False]), False),
        (np.zeros((0, 3)), np.zeros((0, 3)), True),
    ],
)
def test_what_is_equal(theirs, ours, ok):
    c = case(x=theirs)
    c.compare("x", ours)
    assert only(c.finish()).ok is ok


def test_missing_results_and_masks():
    c = case(x=[[1.0, 2.0], [3.0, 9.0]])
    c.compare("y", 1.0)
    c.compare("x", np.array([[1.0, 2.0], [3.0, 4.0]]), mask=np.array([[True, True], [True, False]]))
    assert [(r.array, r.ok) for r in c.finish()] == [("y", False), ("x", True)]


@pytest.fixture
def folder(tmp_path, goldens):
    """A folder of goldens with reward.json alone."""
    shutil.copy(goldens / "goldens.json", tmp_path)
    shutil.copy(goldens / "reward.json", tmp_path)
    return tmp_path


def test_files_that_nobody_knows_fail(folder):
    np.savez(folder / "future.npz", x=1)
    (folder / "extras").mkdir()
    (folder / "published").mkdir()
    (folder / "published" / "other.json").write_text("{}")
    rows = list(check_folder(folder))
    bad = {r.file for r in rows if not r.ok}
    assert bad == {"future.npz", "extras", "published/other.json"}
    assert any(r.file == "reward.json" and r.status == "compared" for r in rows)


def test_what_a_check_runs_into_is_a_row(folder):
    np.savez(folder / "vae.npz", image_0=np.zeros((1, 3, 16, 16), np.float32))
    rows = check_file(Goldens(folder), "vae.npz")
    assert {(r.array, r.ok) for r in rows} == {("", False), ("image_0", False)}
    assert "config.json" in rows[0].note


def test_folder_without_settings(tmp_path):
    with pytest.raises(InputError, match=r"no goldens\.json"):
        Goldens(tmp_path)


def test_rewards_notice_changes(goldens):
    file = json.loads((goldens / "reward.json").read_text())
    file["cases"][3]["reward_min"] += 1e-6
    file["cases"][5]["sc_rule"] = "other"
    file["cases"][7]["new_field"] = 1
    c = Case("reward.json", file, 1e-9)
    check_rewards(c, None)
    assert {r.array for r in c.finish() if not r.ok} == {"cases.reward_min", "cases.sc_rule", "cases.new_field"}


def test_published_names_and_shapes(goldens, tmp_path):
    rows = list(published_module.check_published(goldens / "published"))
    assert rows and all(r.ok for r in rows)
    file = json.loads((goldens / "published" / "flux_vae.json").read_text())
    file["tensors"]["encoder.conv_in.bias"] = [3]
    (tmp_path / "flux_vae.json").write_text(json.dumps(file))
    row = only(list(published_module.check_published(tmp_path)))
    assert not row.ok and "encoder.conv_in.bias" in row.note


def test_step_rule():
    assert step_rule("ignore elements whose |gradient| < 1e-6; at most 1% of the elements") == (1e-6, 0.01)
    with pytest.raises(InputError, match="step1_rule"):
        step_rule("none")
