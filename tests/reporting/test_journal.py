import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.reporting.journal import History, Journal, NonFiniteError, Samples, to_numbers
from spatialreward_jax.rl.metrics import Mean, Peak


def _mean(total, count):
    return Mean(jnp.asarray(total, jnp.float32), jnp.asarray(count, jnp.float32))


def test_numbers_of_every_kind():
    metrics = {
        "a": _mean([1, 5], [1, 3]),
        "b": Peak(jnp.array([0.5, 2])),
        "c": np.float32(3),
        "d": 4,
        "none": _mean(0, 0),
    }
    assert to_numbers(metrics, 1) == {"a": 1.5, "b": 2.0, "c": 3.0, "d": 4.0}


def test_every_bad_value_is_named_with_its_step():
    with pytest.raises(NonFiniteError, match=r"step 9: kl is inf, loss is nan; "):
        to_numbers({"kl": np.inf, "fine": 1, "loss": _mean(np.nan, 2)}, 9)


def test_a_step_that_is_not_finite_names_its_samples():
    names = ["key 7 (a.jsonl:3)", "key 9 (a.jsonl:5)"]
    assert to_numbers({"loss": 1.0, "samples": Samples(names, jnp.array([True, False]))}, 9) == {"loss": 1.0}
    with pytest.raises(
        NonFiniteError, match=r"step 9: loss is nan; not finite already when sampled: key 9 \(a.jsonl:5\);"
    ):
        to_numbers({"loss": np.nan, "samples": Samples(names, jnp.array([True, False]))}, 9)
    with pytest.raises(NonFiniteError, match=r"all samples were finite when sampled: key 7 \(a.jsonl:3\), key 9"):
        to_numbers({"loss": np.nan, "samples": Samples(names, jnp.array([True, True]))}, 9)


def test_history_means_only_over_steps_that_have_the_metric():
    history = History()
    for metrics in ({"reward": 1.0}, {"reward": 2.0, "other": 8.0}, {"other": 4.0}):
        history.add(metrics)
    assert history.first == {"reward": 1.0, "other": 8.0} and history.last == {"reward": 2.0, "other": 4.0}
    assert history.mean("reward") == 1.5 and history.mean("other") == 6.0 and history.mean("never") is None


def test_one_step_late_and_evaluations(tmp_path):
    said, history = [], History()
    journal = Journal(tmp_path, 2, 0, history, say=said.append)
    journal.log(1, {"reward": _mean(1, 2)})
    assert not said and not history.last
    journal.log(2, {"reward": _mean(3, 2)})
    assert len(said) == 1 and history.last == {"reward": 0.5}
    pictures = np.zeros((2, 2, 3), np.uint8)
    journal.evaluate({"held": lambda state, step: [("score", state + step), ("grid", pictures)]}, 1, 2)
    journal.close()
    assert len(said) == 2 and history.last == {"reward": 1.5} and history.eval_last == {"held/score": 3.0}
    with pytest.raises(NonFiniteError, match="held/score is nan"):
        journal.evaluate({"held": lambda state, step: [("score", np.nan)]}, 1, 2)


def test_other_processes_write_nothing(tmp_path):
    journal = Journal(tmp_path, 1, 0, History(), write=False, say=lambda line: None)
    journal.log(1, {"reward": 1.0})
    journal.evaluate({"held": lambda state, step: [("grid", np.zeros((2, 2, 3), np.uint8))]}, None, 1)
    journal.close()
    assert not list(tmp_path.iterdir())
