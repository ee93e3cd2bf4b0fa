"""Losses of Flow-GRPO (arXiv 2505.05470): the clipped surrogate, weights of the steps, and two forms of the KL term."""

import jax.numpy as jnp

from spatialreward_jax.errors import InputError
from spatialreward_jax.flow.sde import spread
from spatialreward_jax.rl.metrics import Mean, Peak

KL_FORMS = ("sample", "reference")


def grpo_loss(logp, old_logp, advantage, valid, weight, *, clip):
    """Clipped surrogate -> (`Mean` of the weighted loss, metrics). All float32.

    logp, old_logp [..., S]; advantage [...]; valid [...] bool; weight [prefix..., S] multiplies each loss. clip
    (low, high): the importance ratio is held within 1 - low .. 1 + high, against the gain alone. The metrics are
    unweighted `Mean`s over valid samples and steps: `policy_loss`, `loss_unclipped`, `loss_clipped`,
    `clip_fraction`, `approx_kl` = -log ratio, `ratio`, `ratio_positive` and `ratio_negative` (by the advantage's
    sign), `positive` and `negative` (shares), `ratio_above`, `ratio_below` (shares above and below 1), and the `Peak`
    `ratio_deviation` = max |ratio - 1|.
    """
    log_ratio = logp - old_logp
    ratio, a = jnp.exp(log_ratio), jnp.broadcast_to(advantage[..., None], logp.shape)
    use = jnp.broadcast_to(valid[..., None], logp.shape)
    plain, kept = -a * ratio, -a * jnp.clip(ratio, 1 - clip[0], 1 + clip[1])
    worse = jnp.maximum(plain, kept)
    mean = lambda x: Mean.of(x, use)
    metrics = {
        "policy_loss": mean(worse),
        "loss_unclipped": mean(plain),
        "loss_clipped": mean(kept),
        "clip_fraction": mean((kept > plain).astype(jnp.float32)),
        "approx_kl": mean(-log_ratio),
        "ratio": mean(ratio),
        "ratio_positive": Mean.of(ratio, use & (a > 0)),
        "ratio_negative": Mean.of(ratio, use & (a < 0)),
        "positive": mean((a > 0).astype(jnp.float32)),
        "negative": mean((a < 0).astype(jnp.float32)),
        "ratio_above": mean((ratio > 1).astype(jnp.float32)),
        "ratio_below": mean((ratio < 1).astype(jnp.float32)),
        "ratio_deviation": Peak.of(jnp.abs(ratio - 1), use),
    }
    return mean(worse * spread(weight, advantage.shape, 1)), metrics


def step_weight(std):
    """Weight of each trained step, S * sigma_i sqrt(dt_i) / mean over the steps of the same -> shape of std [..., S].

    std [P, S]: each sample's own (`Trajectory.std`). The framework's form, with the first sample's times for everyone,
    is `step_weight(std[:1])`.
    """
    return std.shape[-1] * std / std.mean(-1, keepdims=True)


def kl_scale(form: str, sigma, mask, valid, channels: int):
    """What a squared distance between two means counts in the KL term -> [P, S] float32.

    KL = sum over valid samples of |mean - mean_ref|^2 (summed over elements) * kl_scale / number of valid samples.
    sigma [P, S]; mask [P, T] bool; valid [P, G] or [P] bool.
    "sample": mean square over the sample's real elements / (2 sigma^2), each sample's own.
    "reference": the framework's broadcasting: (mean over samples of the mean square over elements, padded to the
    longest sample) * (mean over samples of 1 / (2 sigma^2)). Both agree when all samples have one size.
    Raises InputError for another form.
    """
    if form not in KL_FORMS:
        raise InputError(f"KL form {form!r} is unknown; choose one of {', '.join(KL_FORMS)}")
    inverse, tokens = 1 / (2 * jnp.square(sigma)), jnp.maximum(mask.sum(-1), 1)
    if form == "sample":
        return inverse / (tokens * channels)[..., None]
    share = valid.reshape(valid.shape[0], -1).astype(jnp.float32).sum(-1)
    mean = jnp.einsum("p,ps->s", share, inverse) / jnp.maximum(share.sum(), 1)
    return jnp.broadcast_to(mean / (tokens.max() * channels), sigma.shape)
