"""One step of the stochastic flow sampler: noise scale, mean, and log-probability.

Flow-GRPO (arXiv 2505.05470, eq. 8 and 9) with time 0 = noise, 1 = data. Everything is float32.
Times and scales lead with a prefix of the samples' axes ([P] for samples [P, G], [B] for [B]); see `spread`.
"""

import jax
import jax.numpy as jnp


def spread(a, lead: tuple[int, ...], trailing: int = 0):
    """Line up a [prefix of lead..., trailing axes] with arrays that lead with `lead`: singleton axes after the prefix.

    A [P, S] array (trailing 1) for samples [P, G] becomes [P, 1, S].
    """
    a = jnp.asarray(a)
    have = a.ndim - trailing
    return a.reshape(a.shape[:have] + (1,) * (len(lead) - have) + a.shape[have:])


def sigma(t, t_next, coef, first):
    """Noise scale sigma_t = coef * sqrt((1 - t) / t); the first step divides by t_next, since t is 0 there.

    t, t_next [...] in 0..1; coef [...] (0 for an ODE step); first: bool, whether this is step 0.
    """
    return coef * jnp.sqrt((1 - t) / jnp.where(first, t_next, t))


def step_std(t, t_next, scale):
    """Standard deviation sigma sqrt(dt) of a step's noise, shape of t."""
    return scale * jnp.sqrt(t_next - t)


def step_mean(x, v, t, t_next, scale):
    """Mean of the next state, float32. x, v [..., T, C]; t, t_next, scale [...] with a prefix of x's leading axes.

    x (1 - sigma^2 dt / (2 (1 - t))) + v (1 + sigma^2 t / (2 (1 - t))) dt
    """
    t, t_next, scale = (spread(a, x.shape) for a in (t, t_next, scale))
    dt, half = t_next - t, scale**2 / (2 * (1 - t))
    return x.astype(jnp.float32) * (1 - half * dt) + v.astype(jnp.float32) * (1 + half * t) * dt


def mean_slope(t, t_next, scale):
    """d mean / d velocity = (1 + sigma^2 t / (2 (1 - t))) dt, shape of t."""
    return (1 + scale**2 / (2 * (1 - t)) * t) * (t_next - t)


def masked_mean(a, mask):
    """Mean of a [..., T, C] over real tokens and all channels -> [...] float32. mask [prefix..., T] bool."""
    mask = spread(mask, a.shape[:-2], 1)[..., None]
    count = jnp.maximum(mask.sum((-2, -1)), 1) * a.shape[-1]
    return jnp.where(mask, a, 0).astype(jnp.float32).sum((-2, -1)) / count


def log_prob(x_next, mean, std, mask):
    """Log-probability of a step: the *mean* Gaussian log-density over real tokens and channels -> [...] float32.

    x_next, mean [..., T, C]; std [prefix...]; mask [prefix..., T] bool. The mean, not the sum, keeps the scale of the
    importance ratio independent of the image's size. A step without noise (std 0) has no density: its value is 0.
    """
    noisy = std > 0
    std = jnp.where(noisy, std, 1.0)
    wide = spread(std, x_next.shape)
    density = -jnp.square(x_next - mean) / (2 * wide**2) - jnp.log(wide) - 0.5 * jnp.log(2 * jnp.pi)
    lead = x_next.shape[:-2]
    return jnp.where(spread(noisy, lead), masked_mean(density, mask), 0.0)


def token_noise(keys, step, tokens: int, channels: int):
    """Standard normal noise of each sample at one step -> [..., tokens, channels] float32.

    keys [...]: one typed PRNG key per sample; step: int32, folded in. A sample's noise depends on its own key and the
    step alone: not on the batch, the devices, or `tokens` (real tokens come first, and the generator counts elements).
    """
    flat = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), (tokens, channels), jnp.float32))
    return flat(keys.reshape(-1)).reshape(*keys.shape, tokens, channels)
