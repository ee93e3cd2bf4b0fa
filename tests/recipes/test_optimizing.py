"""Learning rates, the starting state, and updates from micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from spatialreward_jax.errors import InputError
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.recipes.optimizing import Optimizing, Updates, start_state
from spatialreward_jax.rl import Mean

FIELDS = {"lr": 0.1, "schedule": "cosine", "warmup": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.01}
FIELDS |= {"max_grad_norm": 1.0, "accumulate": 1}


def optimizing(**changes):
    return Optimizing.from_config(ConfigDict(FIELDS | changes))


def squares(params, frozen, batch, key):
    """Mean over the elements of a batch, whatever their number."""
    noise = 0 if key is None else jax.random.normal(key, ())
    return Mean.of(jnp.square(params["w"] * frozen - batch), 1.0), {"noise": Mean(noise + 0.0, jnp.float32(1))}


def test_rates_rise_and_fall():
    rate = optimizing().learning_rate(100)
    np.testing.assert_allclose([rate(n) for n in (0, 5, 10, 55, 100)], [0, 0.05, 0.1, 0.05, 0], atol=1e-7)
    rate = optimizing(schedule="constant", warmup=4).learning_rate(100)
    np.testing.assert_allclose([rate(n) for n in (0, 2, 4, 99)], [0, 0.05, 0.1, 0.1], atol=1e-7)
    assert optimizing(warmup=0).learning_rate(10)(0) == pytest.approx(0.1)


@pytest.mark.parametrize("changes", [{"schedule": "linear"}, {"warmup": -1}, {"accumulate": 0}])
def test_senseless_settings(changes):
    with pytest.raises(InputError):
        optimizing(**changes)


def test_moments_lie_where_their_parameters_lie_and_are_float32():
    mesh = make_mesh(data=1, fsdp=8)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    params = {"w": jax.device_put(jnp.ones((8, 2), jnp.bfloat16), split)}
    state = start_state(params, optimizing().optimizer(10))
    assert state.params["w"].dtype == jnp.float32 and params["w"].dtype == jnp.bfloat16
    moments = [x for x in jax.tree.leaves(state.opt) if x.shape == (8, 2)]
    assert len(moments) == 2 and all(x.sharding.is_equivalent_to(split, 2) for x in [*moments, state.params["w"]])


def test_micro_batches_of_different_sizes_make_one_mean():
    """Two micro-batches of 1 and 3 elements are one batch of 4."""
    whole, frozen = jnp.array([1.0, 2.0, 3.0, 5.0]), jnp.float32(2.0)
    params = {"w": jnp.float32(0.7)}
    results = []
    for batches in ([whole], [whole[:1], whole[1:]]):
        settings = optimizing(accumulate=len(batches), warmup=0)
        updates = Updates(squares, settings, steps=10, seed=0)
        state, metrics = updates(start_state(params, updates.optimizer), frozen, batches)
        results.append((float(state.params["w"]), float(metrics["loss"].value()), float(metrics["grad_norm"])))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)
    by_hand = [np.mean((1.4 - np.asarray(whole)) ** 2), abs(np.mean(2 * 2 * (1.4 - np.asarray(whole))))]
    np.testing.assert_allclose(results[0][1:], by_hand, rtol=1e-5)
    assert float(params["w"]) == pytest.approx(0.7), "the nets stay as they are"


def test_draws_follow_from_seed_step_and_micro_batch():
    updates = Updates(squares, optimizing(warmup=0), steps=10, seed=1)
    frozen, batch, draws = jnp.float32(1.0), jnp.ones(2), []
    for _ in range(2):
        state = start_state({"w": jnp.float32(0.0)}, updates.optimizer)
        for _ in range(2):
            state, metrics = updates(state, frozen, [batch])
            draws.append(float(metrics["noise"].value()))
    assert draws[0] != draws[1] and draws[:2] == draws[2:]
    assert float(updates.evaluate(state.params, frozen, batch, None)["noise"].value()) == 0
