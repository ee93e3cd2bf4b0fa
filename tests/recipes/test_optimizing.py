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


@pytest.mark.parametrize(
    "changes",
    [
        *({"schedule": "linear"}, {"warmup": -1}, {"accumulate": 0}, {"muon_lr": -1.0}, {"lr": float("nan")}),
        *({"betas": (0.9,)}, {"betas": (0.9, 1.0)}, {"weight_decay": -1.0}, {"max_grad_norm": 0.0}),
    ],
)
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


def test_muon_trains_kernels_and_adamw_the_rest():
    """The first update of a kernel is orthogonal as a matrix from inputs to outputs, that of anything else a sign."""
    settings = optimizing(muon_lr=0.5, lr=0.1, warmup=0, weight_decay=0.0, schedule="constant", max_grad_norm=1e9)
    optimizer = settings.optimizer(10, {"net.kernel": ((1,), (2, 3))})
    params = {"net": {"kernel": jnp.zeros((2, 8, 2, 4)), "scale": jnp.zeros(3)}}
    keys = jax.random.split(jax.random.key(0))
    grads = {"net": {"kernel": jax.random.normal(keys[0], (2, 8, 2, 4)), "scale": jax.random.normal(keys[1], 3)}}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for layer, grad in zip(np.asarray(updates["net"]["kernel"]), np.asarray(grads["net"]["kernel"])):
        values = np.linalg.svd(layer.reshape(8, 8), compute_uv=False)
        assert values.max() < 0.5 * 1.3 and values[:-1].min() > 0.5 * 0.5  # Newton-Schulz: roughly 1
        assert np.sum(layer * grad) < 0
    size = 0.1 * (1 + 0.9 * 0.1 / (1 - 0.9**2))  # optax gives AdamW here Nesterov's look ahead
    np.testing.assert_allclose(updates["net"]["scale"], -size * np.sign(grads["net"]["scale"]), rtol=1e-4)
    adam = optimizing(warmup=0).optimizer(10, {"net.kernel": ((1,), (2, 3))})  # muon_lr=0: AdamW for everything
    assert len(jax.tree.leaves(adam.init(params))) == len(jax.tree.leaves(optimizing().optimizer(10).init(params)))


def test_muon_moments_lie_where_their_parameters_lie():
    mesh = make_mesh(data=1, fsdp=8)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    params = {name: jax.device_put(jnp.ones((8, 4)), split) for name in ("kernel", "table")}
    state = start_state(params, optimizing(muon_lr=0.1).optimizer(10, {"kernel": ((0,), (1,))}))
    moments = [x for x in jax.tree.leaves(state.opt) if x.shape == (8, 4)]
    assert len(moments) == 3 and all(x.sharding.is_equivalent_to(split, 2) for x in moments)


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
