"""Group advantages: reference values, and what must never leak into a statistic."""

import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.golden_checks import Case
from spatialreward_jax.evaluation.golden_checks.grpo import check_advantages
from spatialreward_jax.rl import advantage as module
from spatialreward_jax.rl.advantage import group_advantage, reward_metrics


@pytest.fixture
def rows(goldens):
    """Function that compares the stored advantages and statistics -> {array: (largest error, passes)}."""

    def compare():
        with np.load(goldens / "grpo.npz") as arrays:
            case = Case("grpo.npz", {n: arrays[n] for n in arrays.files if n.startswith("reward")}, 1e-5)
        check_advantages(case)
        return {row.array: (row.max_error, row.ok) for row in case.finish() if row.status == "compared"}

    return compare


def test_reference_values(rows):
    got = rows()
    assert all(ok for _, ok in got.values())
    assert got["reward_advantages_group"][0] < 1e-6 and got["reward_group_stats"][0] < 1e-12
    assert {"reward_advantages_batch", "reward_group_names"} <= set(got)


def test_mixed_groups_are_caught(rows, monkeypatch):
    alone = module.group_stats

    def mixed(reward, valid):
        whole = alone(np.reshape(reward, (1, -1)), np.reshape(valid, (1, -1)))
        return whole._replace(**{k: np.repeat(getattr(whole, k), len(reward)) for k in whole._fields})

    monkeypatch.setattr(module, "group_stats", mixed)
    error, ok = rows()["reward_advantages_group"]
    assert error > 0.1 and not ok


def test_groups_do_not_see_each_other():
    reward = np.random.default_rng(0).random((3, 5))
    valid = np.ones((3, 5), bool)
    changed = reward.copy()
    changed[1] += np.arange(5)
    a, b = group_advantage(reward, valid), group_advantage(changed, valid)
    np.testing.assert_array_equal(a[[0, 2]], b[[0, 2]])


@pytest.mark.parametrize("std", ["group", "batch"])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.37, 1.0])
def test_identical_rewards_teach_exactly_nothing(std, value):
    reward = np.full((3, 7), value, np.float32) + np.array([[0.0], [0.2], [0.0]], np.float32)
    assert (group_advantage(reward, np.ones((3, 7), bool), std=std) == 0).all()


def test_invalid_samples_count_in_no_statistic():
    reward = np.array([[0.1, 0.4, np.nan, 0.6], [0.5, np.nan, np.nan, np.nan]])
    valid = np.isfinite(reward)
    got = group_advantage(reward, valid)
    np.testing.assert_allclose(got[0, [0, 1, 3]], group_advantage(reward[:1, [0, 1, 3]], valid[:1, [0, 1, 3]])[0])
    assert got[0, 2] == 0 and (got[1] == 0).all()
    batch = group_advantage(reward, valid, std="batch")
    np.testing.assert_allclose(batch[0, 0], (0.1 - 1.1 / 3) / np.std([0.1, 0.4, 0.6, 0.5]), rtol=1e-6)


def test_invalid_score_counted_as_a_number_is_caught(monkeypatch):
    reward, valid = np.array([[0.1, 0.4, 0.0, 0.6]]), np.array([[True, True, False, True]])
    want = np.array([-1.2978, 0.1622, 0.0, 1.1355])
    deviation = lambda: np.abs(module.group_advantage(reward, valid) - want).max()
    assert deviation() < 1e-4
    alone = module.group_stats
    monkeypatch.setattr(module, "group_stats", lambda reward, valid: alone(reward, np.ones_like(valid)))
    assert deviation() > 0.1


def test_clip():
    reward = np.zeros((1, 100))
    reward[0, 0] = 1
    got = group_advantage(reward, np.ones_like(reward, bool), clip=5.0)
    assert got[0, 0] == 5 and got[0, 1] > -1


def test_bad_input():
    with pytest.raises(InputError, match="choose group or batch"):
        group_advantage(np.zeros((1, 2)), np.ones((1, 2), bool), std="none")
    with pytest.raises(InputError, match="not finite"):
        group_advantage(np.array([[np.nan, 1.0]]), np.ones((1, 2), bool))
    with pytest.raises(InputError, match=r"\[prompts, group\]"):
        group_advantage(np.zeros(4), np.ones(4, bool))


def test_reward_metrics():
    reward, valid = np.array([[0.2, 0.4], [0.5, 0.5], [9.0, 0.3]]), np.array([[1, 1], [1, 1], [0, 1]], bool)
    got = reward_metrics(reward, valid)
    np.testing.assert_allclose(got["reward"], np.mean([0.2, 0.4, 0.5, 0.5, 0.3]))
    np.testing.assert_allclose([got["invalid_share"], got["zero_std_share"]], [1 / 6, 2 / 3])
    assert reward_metrics(reward, np.zeros_like(valid)) == {"invalid_share": 1.0, "zero_std_share": 1.0}
