"""Steps and log-probabilities against stored velocities and states, without any net."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.flow import sde
from spatialreward_jax.mesh import make_mesh


def replayed(arrays):
    """(next states [N, B, T, C], log-probs [N, B]) of the stored SDE trajectory from its velocities and noise."""
    x, v, t, mask = arrays["sde_latents"], arrays["sde_velocity"], arrays["sde_timesteps"], arrays["img_mask"]
    states, logps = [], []
    for i in range(len(v)):
        a, b = t[:, i], t[:, i + 1]
        scale = sde.sigma(a, b, 0.7, i == 0)
        mean, std = sde.step_mean(x[i], v[i], a, b, scale), sde.step_std(a, b, scale)
        after = (mean + sde.spread(std, mean.shape) * arrays["step_noise"][i]) * mask[..., None]
        states.append(after)
        logps.append(sde.log_prob(after, mean, std, mask))
    return np.stack(states), np.stack(logps)


def errors(arrays):
    states, logps = replayed(arrays)
    return np.abs(states - arrays["sde_latents"][1:]).max(), np.abs(logps - arrays["sde_log_probs"]).max()


def test_steps_match_reference(goldens):
    state, logp = errors(np.load(goldens / "sampler.npz"))
    assert state < 2e-5 and logp < 1e-5


def test_summed_log_prob_is_caught(goldens, monkeypatch):
    mean = sde.masked_mean
    total = lambda a, mask: mean(a, mask) * jnp.asarray(mask).sum(-1) * a.shape[-1]
    monkeypatch.setattr(sde, "masked_mean", total)
    _, logp = errors(np.load(goldens / "sampler.npz"))
    assert logp > 1


def test_ode_states_match_reference(goldens):
    arrays = np.load(goldens / "sampler.npz")
    dt = np.diff(arrays["ode_timesteps"]).T[..., None, None]
    got = arrays["ode_latents"][:-1] + arrays["ode_velocity"] * dt
    np.testing.assert_allclose(got, arrays["ode_latents"][1:], rtol=0, atol=1e-5)


def test_log_prob_ignores_padding_and_is_a_mean():
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    mean, std = np.zeros_like(x), np.array([0.5, 2.0], np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    got = sde.log_prob(np.where(mask[..., None], x, 1e6), mean, std, mask)
    wide = std[:, None, None]
    density = -0.5 * (x / wide) ** 2 - np.log(wide) - 0.5 * np.log(2 * np.pi)
    want = [density[0][mask[0]].mean(), density[1].mean()]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_step_without_noise_has_log_prob_zero_and_finite_gradients():
    x = jnp.ones((1, 2, 3))
    f = lambda m: sde.log_prob(x, m, jnp.zeros(1), jnp.ones((1, 2), bool)).sum()
    assert f(x * 2) == 0 and np.isfinite(jax.grad(f)(x * 2)).all()


@pytest.mark.parametrize("lead", [(3,), (3, 2)])
def test_noise_depends_on_its_own_key_and_step_alone(lead):
    keys = jax.random.split(jax.random.key(0), lead)
    whole = sde.token_noise(keys, 4, 6, 8)
    np.testing.assert_array_equal(sde.token_noise(keys[1:], 4, 6, 8), whole[1:])  # batch composition
    np.testing.assert_array_equal(sde.token_noise(keys, 4, 11, 8)[..., :6, :], whole)  # padding
    assert not np.allclose(sde.token_noise(keys, 5, 6, 8), whole)
    assert not np.allclose(whole[0], whole[1])


def test_noise_does_not_depend_on_devices():
    mesh = make_mesh()
    keys = jax.random.split(jax.random.key(0), 8)
    spread_keys = jax.device_put(keys, jax.NamedSharding(mesh, jax.P("data")))
    draw = jax.jit(lambda k: sde.token_noise(k, 2, 5, 8))
    np.testing.assert_array_equal(draw(spread_keys), draw(keys))
