"""Updates of a small policy: scans against plain differentiation, micro-batches, devices, both recipes."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import (
    Branches,
    Guidance,
    SDEWindow,
    full_plan,
    guided,
    guided_steps,
    replay_noise,
    rollout,
    sde,
    time_grid,
    window_plan,
)
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.rl import (
    Batch,
    Objective,
    TrainState,
    clip_by_norm,
    grpo_loss,
    make_gradient,
    make_logp,
    make_optimizer,
    make_update,
    step_weight,
    update,
    values,
)

spec = importlib.util.spec_from_file_location("toy", pathlib.Path(__file__).parents[1] / "flow" / "toy.py")
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)

GUIDANCE = Guidance(4.0, 2.0, (0.0, 0.6))
STEPS, TOKENS, P, G = 6, 10, 8, 4
SIZES = np.array([40, 64, 96, 128] * 2)


def add(adapter, frozen):
    return jax.tree.map(jnp.add, frozen, adapter)


def policy(adapter, frozen, x, t, cond):
    return toy.velocity(add(adapter, frozen), x, t, cond)


def reference(frozen, x, t, cond):
    return toy.velocity(frozen, x, t, cond)


FROZEN = toy.params()
ADAPTER = jax.tree.map(lambda a: 0.1 * a, toy.params(7))
PLANS = {
    "full": full_plan(np.random.default_rng(2), STEPS, 0.7, 0.6),
    "window": window_plan(
        np.random.default_rng(3), 0.7, SDEWindow(2, (0, 4)), groups=P, guided=guided_steps(STEPS, GUIDANCE)
    ),
}


@jax.jit
def sample(adapter, noise, times, mask, branches, plan):
    velocity = lambda x, t, cond: policy(adapter, FROZEN, x, t, cond)
    noise = replay_noise(noise)
    return rollout(velocity, branches, noise(-1), times, mask, guidance=GUIDANCE, plan=plan, noise=noise)[1]


@functools.cache
def make_batch(recipe="full", off_policy=True):
    times = time_grid(SIZES, STEPS, 168)
    mask = np.arange(TOKENS) < np.array([10, 6, 8, 4] * 2)[:, None]
    noise = np.random.default_rng(3).normal(size=(STEPS + 1, P, G, TOKENS, toy.CHANNELS)).astype(np.float32)
    branches = Branches(*(toy.conditioning(P, seed) for seed in range(3)))
    trajectory = sample(ADAPTER, noise, times, mask, branches, PLANS[recipe])
    rng = np.random.default_rng(4)
    advantage = rng.normal(size=(P, G)).astype(np.float32)
    valid = rng.random((P, G)) > 0.2
    if off_policy:
        trajectory = trajectory._replace(logp=trajectory.logp + 3e-4 * rng.normal(size=trajectory.logp.shape))
    return Batch(trajectory, branches, advantage, valid, step_weight(trajectory.std))


def objective(**changes):
    return Objective(**({"kl_weight": 0.04, "kl_form": "reference", "guidance": GUIDANCE} | changes))


@functools.cache
def compiled(spec):
    return jax.jit(make_gradient(policy, reference, spec))


def gradient_of(batch, spec):
    return compiled(spec)(ADAPTER, FROZEN, batch)


def plain_loss(adapter, batch, spec):
    """The same loss by a Python loop over steps, all samples at once, straight from the formulas."""
    t, total = batch.trajectory, 0.0
    for s in range(t.logp.shape[-1]):
        x, after = t.latents[:, :, s, 0], t.latents[:, :, s, 1]
        a, b, scale = (jnp.asarray(v) for v in (t.times[:, s, 0], t.times[:, s, 1], t.sigma[:, s]))
        time = jnp.broadcast_to(a[:, None], (P, G))
        nets = [lambda *z: policy(adapter, FROZEN, *z), lambda *z: reference(FROZEN, *z)]
        on = spec.guidance is not None and bool(np.asarray(t.guided)[s])
        vs = [guided(n, x, time, batch.branches, GUIDANCE) if on else n(x, time, batch.branches.full) for n in nets]
        mean, mean_ref = (sde.step_mean(x, v, a, b, scale) for v in vs)
        logp = sde.log_prob(after, mean, sde.step_std(a, b, scale), t.mask)
        loss, _ = grpo_loss(
            logp[..., None],
            t.logp[..., s : s + 1],
            batch.advantage,
            batch.valid,
            batch.weight[:, s : s + 1],
            clip=spec.clip,
        )
        square = jnp.where(t.mask[:, None, :, None], jnp.square(mean - mean_ref), 0).sum((-2, -1)) / toy.CHANNELS
        w = jnp.asarray(batch.valid, jnp.float32)
        inverse = jnp.broadcast_to(1 / (2 * scale**2)[:, None], w.shape)
        if spec.kl_form == "reference":
            kl = (square * w).sum() / w.sum() / t.mask.sum(-1).max() * (inverse * w).sum() / w.sum()
        else:
            kl = (square * inverse / t.mask.sum(-1)[:, None] * w).sum() / w.sum()
        total = total + loss.value() + spec.kl_weight * kl
    return total / t.logp.shape[-1]


def assert_close(got, want, limit=1e-5):
    largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(want))
    worst = max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)))
    assert worst <= limit * largest, f"largest error {worst} of values up to {largest}"


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [("full", {}), ("full", {"kl_form": "sample"}), ("window", {"kl_weight": 0.0}), ("window", {"guidance": None})],
)
def test_gradient_equals_plain_differentiation(recipe, changes):
    batch, spec = make_batch(recipe), objective(**changes)
    grads, metrics = gradient_of(batch, spec)
    loss, want = jax.jit(jax.value_and_grad(lambda a: plain_loss(a, batch, spec)))(ADAPTER)
    assert_close(grads, want)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert metrics["ratio"].count == batch.valid.sum() * batch.trajectory.logp.shape[-1]


@pytest.mark.parametrize("micro", [(2, 2), (1, 4), (8, 1)])
def test_micro_batches_do_not_change_the_result(micro):
    batch = make_batch()
    grads, metrics = gradient_of(batch, objective())
    cut, parts = gradient_of(batch, objective(micro=micro))
    assert_close(cut, grads)
    for name, value in values(metrics).items():
        np.testing.assert_allclose(values(parts)[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_micro_batches_must_divide():
    with pytest.raises(InputError, match="do not divide"):
        gradient_of(make_batch(), objective(micro=(3, 1)))


def test_flat_batch_equals_groups():
    batch = make_batch()
    grads, _ = gradient_of(batch, objective())
    t = batch.trajectory
    rows = lambda a: jnp.repeat(jnp.asarray(a), G, axis=0)
    join = lambda a: jnp.asarray(a).reshape(P * G, *a.shape[2:])
    flat = Batch(
        t._replace(
            latents=join(t.latents), mask=rows(t.mask), times=rows(t.times), sigma=rows(t.sigma), logp=join(t.logp)
        ),
        jax.tree.map(rows, batch.branches),
        join(batch.advantage),
        join(batch.valid),
        rows(batch.weight),
    )
    assert_close(gradient_of(flat, objective())[0], grads)
    assert_close(gradient_of(flat, objective(micro=(4, 1)))[0], grads)


def test_eight_devices_equal_one():
    batch, spec = make_batch(), objective(micro=(1, 2))
    step = make_update(policy, reference, make_optimizer(4e-4), spec)
    state = TrainState.create(ADAPTER, make_optimizer(4e-4))
    one, metrics = jax.jit(step)(state, FROZEN, batch)
    mesh = make_mesh()
    place = lambda axes: lambda a: jax.device_put(a, jax.NamedSharding(mesh, axes))
    spread, copy = place(jax.P("data")), place(jax.P())
    sharded = jax.tree.map(spread, batch._replace(trajectory=None))
    sharded = sharded._replace(
        trajectory=jax.tree.map(spread, batch.trajectory._replace(guided=None))._replace(
            guided=copy(batch.trajectory.guided)
        )
    )
    eight, others = jax.jit(step)(*jax.tree.map(copy, (state, FROZEN)), sharded)
    assert_close(eight.opt[1][0].mu, one.opt[1][0].mu)
    np.testing.assert_allclose(values(others)["loss"], values(metrics)["loss"], rtol=1e-5)
    np.testing.assert_allclose(others["grad_norm"], metrics["grad_norm"], rtol=1e-5)


@pytest.mark.parametrize("recipe", ["full", "window"])
def test_first_ratio_is_one(recipe):
    batch = make_batch(recipe, off_policy=False)
    _, metrics = gradient_of(batch, objective())
    assert metrics["ratio_deviation"].value() < 1e-6 and metrics["clip_fraction"].value() == 0
    recomputed = jax.jit(make_logp(policy, objective(micro=(2, 2))))(ADAPTER, FROZEN, batch)
    np.testing.assert_allclose(recomputed, batch.trajectory.logp, rtol=0, atol=1e-6)
    _, metrics = gradient_of(batch._replace(trajectory=batch.trajectory._replace(logp=recomputed)), objective())
    assert metrics["ratio_deviation"].value() < 1e-6


def test_equal_rewards_leave_only_the_kl():
    batch = make_batch()._replace(advantage=np.zeros((P, G), np.float32))
    grads, _ = gradient_of(batch, objective(kl_weight=0.0))
    assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_times_of_another_sample_are_caught(monkeypatch):
    """Every size has its own times: with the first sample's for everyone, the ratio is far from 1."""
    batch, piece = make_batch(off_policy=False), update._Split.piece

    def first_for_all(self, index):
        p = piece(self, index)
        return p._replace(times=jnp.broadcast_to(p.times[:1], p.times.shape))

    monkeypatch.setattr(update._Split, "piece", first_for_all)
    _, metrics = jax.jit(make_gradient(policy, reference, objective()))(ADAPTER, FROZEN, batch)
    assert metrics["ratio_deviation"].value() > 1e-3


def test_summed_log_prob_is_caught(monkeypatch):
    batch = make_batch(off_policy=False)
    mean = sde.masked_mean
    monkeypatch.setattr(
        sde,
        "masked_mean",
        lambda a, mask: mean(a, mask) * sde.spread(jnp.asarray(mask).sum(-1), a.shape[:-2]) * a.shape[-1],
    )
    _, metrics = jax.jit(make_gradient(policy, reference, objective()))(ADAPTER, FROZEN, batch)
    assert metrics["ratio_deviation"].value() > 0.1


def test_invalid_sample_changes_nothing():
    batch = make_batch()
    grads, metrics = gradient_of(batch, objective())
    advantage = np.where(batch.valid, batch.advantage, 100.0).astype(np.float32)
    latents = jnp.where(batch.valid[..., None, None, None, None], batch.trajectory.latents, 5.0)
    other = batch._replace(advantage=advantage, trajectory=batch.trajectory._replace(latents=latents))
    again, same = gradient_of(other, objective())
    assert_close(again, grads, 1e-6)
    np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=1e-6)
    counted, _ = gradient_of(batch._replace(valid=np.ones((P, G), bool), advantage=advantage), objective())
    with pytest.raises(AssertionError, match="largest error"):
        assert_close(counted, grads)


@pytest.mark.parametrize("norm", [0.3, 5.0])
def test_clipping_as_in_torch(norm):
    grads = {"a": jnp.array([3.0, 4.0]) * norm / 5}
    got, _ = clip_by_norm(1.0).update(grads, optax.EmptyState())
    np.testing.assert_allclose(got["a"], np.array([3.0, 4.0]) * norm / 5 * min(1, 1 / (norm + 1e-6)), rtol=1e-6)


def test_update_moves_and_counts():
    optimizer = make_optimizer(1e-3)
    state = TrainState.create(ADAPTER, optimizer)
    new, metrics = jax.jit(make_update(policy, reference, optimizer, objective()))(state, FROZEN, make_batch())
    assert new.step == 1 and metrics["finite"] and metrics["update_norm"] > 0
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(ADAPTER)))


def test_non_finite_loss_keeps_the_state():
    batch, optimizer = make_batch(), make_optimizer(1e-3)
    at = tuple(np.argwhere(batch.valid)[0])
    broken = batch._replace(trajectory=batch.trajectory._replace(logp=batch.trajectory.logp.at[at].set(jnp.nan)))
    state = TrainState.create(ADAPTER, optimizer)
    new, metrics = jax.jit(make_update(policy, reference, optimizer, objective()))(state, FROZEN, broken)
    assert not metrics["finite"] and metrics["update_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, new, state)


def test_kl_without_a_reference_is_refused():
    with pytest.raises(InputError, match="no reference model"):
        make_gradient(policy, None, objective())


def test_memory_does_not_grow_with_steps():
    """The backward pass of one step is gone before the next begins."""
    batch = make_batch()
    peak = []
    for times in (1, 4):
        steps = np.tile(np.arange(2), times)
        many = batch._replace(trajectory=batch.trajectory.take(steps), weight=batch.weight[:, steps])
        program = compiled(objective()).lower(ADAPTER, FROZEN, many).compile()
        peak.append(program.memory_analysis().temp_size_in_bytes)
    assert peak[1] < 1.3 * peak[0]
