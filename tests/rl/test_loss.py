"""The clipped surrogate, step weights and KL forms against stored values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.golden_checks import Case
from spatialreward_jax.evaluation.golden_checks.grpo import compare_loss
from spatialreward_jax.flow import sde
from spatialreward_jax.rl import Mean, Peak, collapse, grpo_loss, kl_scale, step_weight

CLIP = (1e-4, 5e-4)
SETTINGS = {"advantage_clip": 5.0, "clip": CLIP}


@pytest.mark.parametrize("case", range(4))
def test_loss_matches_reference(goldens, case):
    with np.load(goldens / "grpo.npz") as arrays:
        stored = {n: arrays[n] for n in arrays.files if n.startswith(f"ppo{case}_")}
    rows = Case("grpo.npz", stored, 1e-6)
    old, new, adv = (rows.input(f"ppo{case}_{k}") for k in ("old", "new", "adv"))
    compare_loss(rows, f"ppo{case}_", new, old, adv, SETTINGS)
    assert len(rows.rows) == 12 and [row for row in rows.finish() if not row.ok] == []


def test_invalid_samples_count_nowhere():
    old, new = np.array([0.1, 0.2, 0.3], np.float32), np.array([0.1001, np.nan, 0.31], np.float32)
    adv, valid = np.array([1.0, 3.0, -1.0], np.float32), np.array([True, False, True])
    one = np.ones((1, 1), np.float32)
    got = grpo_loss(new[:, None], old[:, None], adv, valid, one, clip=CLIP)
    want = grpo_loss(new[valid][:, None], old[valid][:, None], adv[valid], valid[valid], one, clip=CLIP)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)
    assert got[0].count == 2


def test_group_axis_and_own_weights():
    rng = np.random.default_rng(0)
    new, old = (0.01 * rng.normal(size=(2, 3, 4)).astype(np.float32) for _ in range(2))
    adv, valid = rng.normal(size=(2, 3)).astype(np.float32), np.ones((2, 3), bool)
    weight = rng.random((2, 4)).astype(np.float32)
    loss, _ = grpo_loss(new, old, adv, valid, weight, clip=CLIP)
    flat, _ = grpo_loss(
        new.reshape(6, 4), old.reshape(6, 4), adv.reshape(6), valid.reshape(6), weight.repeat(3, 0), clip=CLIP
    )
    np.testing.assert_allclose(loss.value(), flat.value(), rtol=1e-6)


def stored_std(arrays):
    t, i = arrays["timesteps"], arrays["train_timesteps"]
    a, b = t[:, i], t[:, i + 1]
    scale = sde.sigma(a, b, 0.7, i == 0)
    return scale, sde.step_std(a, b, scale)


def test_step_weight_matches_reference_with_the_first_samples_times(goldens):
    arrays = np.load(goldens / "grpo.npz")
    _, std = stored_std(arrays)
    np.testing.assert_allclose(std[0], arrays["sigma_sqrt_dt"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(step_weight(std[:1])[0], arrays["reweight_factor"], rtol=1e-5)
    own = step_weight(std)
    assert own.shape == (4, 4) and np.abs(own[2] - own[0]).max() > 1e-3
    np.testing.assert_allclose(own.mean(-1), 4, rtol=1e-6)


def kl_of(arrays, form, mask=None, valid=None):
    """KL at the stored timestep from the stored means."""
    apart = np.square(arrays["main_prev_sample_mean"] - arrays["main_prev_sample_mean_ref"]).sum((-2, -1))
    sigma = np.sqrt(arrays["main_sigma_squared"])[:, None]
    valid = np.ones(4, bool) if valid is None else valid
    scale = kl_scale(form, sigma, arrays["img_mask"] if mask is None else mask, valid, 64)
    return float((apart * scale[:, 0])[valid].sum() / valid.sum())


def test_kl_matches_reference(goldens):
    arrays = np.load(goldens / "grpo.npz")
    at = int(np.flatnonzero(arrays["train_timesteps"] == arrays["main_timestep"])[0])
    np.testing.assert_allclose(kl_of(arrays, "reference"), arrays["per_timestep_kl_loss"][at], rtol=1e-5)
    wide = np.pad(arrays["img_mask"], ((0, 0), (0, 9)))  # a larger bucket is no larger sample
    np.testing.assert_allclose(kl_of(arrays, "reference", wide), arrays["per_timestep_kl_loss"][at], rtol=1e-5)


def test_kl_of_each_sample_is_its_own(goldens):
    arrays = np.load(goldens / "grpo.npz")
    mask, apart = arrays["img_mask"], arrays["main_prev_sample_mean"] - arrays["main_prev_sample_mean_ref"]
    own = [np.square(a[m]).mean() / (2 * s) for a, m, s in zip(apart, mask, arrays["main_sigma_squared"])]
    np.testing.assert_allclose(kl_of(arrays, "sample"), np.mean(own), rtol=1e-5)
    same = np.array([True, True, False, False])  # one size: the forms agree
    pair = {**arrays, "img_mask": mask[:, :12]} | {
        k: arrays[k][:, :12] for k in ("main_prev_sample_mean", "main_prev_sample_mean_ref")
    }
    pair["img_mask"] = np.broadcast_to(mask[0, :12], (4, 12))
    np.testing.assert_allclose(kl_of(pair, "sample", valid=same), kl_of(pair, "reference", valid=same), rtol=1e-5)


def test_unknown_kl_form():
    with pytest.raises(InputError, match="sample, reference"):
        kl_scale("none", jnp.ones((1, 1)), jnp.ones((1, 1), bool), jnp.ones(1, bool), 64)


def test_metrics_in_parts_equal_the_whole():
    x, w = np.random.default_rng(0).normal(size=12).astype(np.float32), np.arange(12) % 3 > 0
    whole = {"m": Mean.of(x, w), "p": Peak.of(np.abs(x), w)}
    parts = [{"m": Mean.of(x[i::4], w[i::4]), "p": Peak.of(np.abs(x[i::4]), w[i::4])} for i in range(4)]
    joined = collapse(jax.tree.map(lambda *a: jnp.stack(a), *parts))
    for name in whole:
        np.testing.assert_allclose(joined[name].value(), whole[name].value(), rtol=1e-6, atol=1e-7)
    assert Mean.of(x, np.zeros(12)).value() == 0
