"""AutoencoderKL in the FLUX.1 layout: convolutional encoder and decoder, [B, H, W, C] throughout, never tiled.

Source of the architecture: diffusers `autoencoder_kl.py`, `vae.py`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from spatialreward_jax.kernels.attention import attention
from spatialreward_jax.models.autoencoder_kl.config import AutoencoderConfig
from spatialreward_jax.models.layers import Conv, GroupNorm, Linear

EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


class ResBlock(nnx.Module):
    """Two normalised convolutions and a shortcut, [B, H, W, in] -> [B, H, W, out]."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.norm1 = GroupNorm(in_channels, groups, EPS, dtype=dtype)
        self.conv1 = Conv(in_channels, out_channels, 3, rngs=rngs, dtype=dtype)
        self.norm2 = GroupNorm(out_channels, groups, EPS, dtype=dtype)
        self.conv2 = Conv(out_channels, out_channels, 3, rngs=rngs, dtype=dtype)
        same = in_channels == out_channels
        self.shortcut = nnx.data(None) if same else Conv(in_channels, out_channels, 1, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nnx.Module):
    """Attention of one head over all positions, with a residual: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs, dtype=jnp.float32):
        linear = lambda: Linear(channels, channels, bias=True, rngs=rngs, dtype=dtype)
        self.norm = GroupNorm(channels, groups, EPS, dtype=dtype)
        self.q, self.k, self.v, self.out = linear(), linear(), linear(), linear()

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.norm(x).reshape(x.shape[0], -1, 1, x.shape[-1])  # B HW 1 C
        return x + self.out(attention(self.q(h), self.k(h), self.v(h))).reshape(x.shape)


class MidBlock(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.res1 = ResBlock(channels, channels, groups, rngs=rngs, dtype=dtype)
        self.attn = AttentionBlock(channels, groups, rngs=rngs, dtype=dtype)
        self.res2 = ResBlock(channels, channels, groups, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.res2(self.attn(self.res1(x)))


class Level(nnx.Module):
    """Residual blocks at one resolution, then `resample`: "down" halves the sides, "up" doubles, "none" keeps them."""

    def __init__(
        self, channels: tuple[int, int], blocks: int, groups: int, resample: str, *, rngs: nnx.Rngs, dtype=jnp.float32
    ):
        inputs, out = channels
        sizes = [(inputs, out)] + [(out, out)] * (blocks - 1)
        self.blocks = nnx.List([ResBlock(i, o, groups, rngs=rngs, dtype=dtype) for i, o in sizes])
        self.resample = resample
        # The reference pads a halving convolution at the bottom and on the right only.
        stride, padding = (2, ((0, 1), (0, 1))) if resample == "down" else (1, None)
        self.conv = (
            nnx.data(None)
            if resample == "none"
            else Conv(out, out, 3, stride=stride, padding=padding, rngs=rngs, dtype=dtype)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        if self.resample == "up":
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return x if self.conv is None else self.conv(x)


class Encoder(nnx.Module):
    """Image [B, H, W, 3] -> [B, H/8, W/8, 2 * latent channels]: mean and log-variance."""

    def __init__(self, c: AutoencoderConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        widths, groups, kinds = c.block_out_channels, c.norm_num_groups, dict(rngs=rngs, dtype=dtype)
        self.conv_in = Conv(c.in_channels, widths[0], 3, **kinds)
        pairs = list(zip((widths[0], *widths), widths))
        self.levels = nnx.List(
            [
                Level(pair, c.layers_per_block, groups, "none" if pair is pairs[-1] else "down", **kinds)
                for pair in pairs
            ]
        )
        self.mid = MidBlock(widths[-1], groups, **kinds)
        self.norm_out = GroupNorm(widths[-1], groups, EPS, dtype=dtype)
        self.conv_out = Conv(widths[-1], 2 * c.latent_channels, 3, **kinds)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid(x))))


class Decoder(nnx.Module):
    """Latent [B, h, w, latent channels] -> image [B, 8h, 8w, 3]."""

    def __init__(self, c: AutoencoderConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        widths, groups, kinds = c.block_out_channels[::-1], c.norm_num_groups, dict(rngs=rngs, dtype=dtype)
        self.conv_in = Conv(c.latent_channels, widths[0], 3, **kinds)
        self.mid = MidBlock(widths[0], groups, **kinds)
        pairs = list(zip((widths[0], *widths), widths))
        self.levels = nnx.List(
            [
                Level(pair, c.layers_per_block + 1, groups, "none" if pair is pairs[-1] else "up", **kinds)
                for pair in pairs
            ]
        )
        self.norm_out = GroupNorm(widths[-1], groups, EPS, dtype=dtype)
        self.conv_out = Conv(widths[-1], c.out_channels, 3, **kinds)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.mid(self.conv_in(x))
        for level in self.levels:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class AutoencoderKL(nnx.Module):
    """Images in -1..1 <-> 16-channel latents at an eighth of the sides.

    `encode` and `decode` speak the autoencoder's raw space; `to_latent` and `from_latent` convert it to and from the
    shifted and scaled space in which the editor works. Computes in the dtype of its input, norms and softmax in
    float32.
    """

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        c = config
        self.config = config
        self.encoder = Encoder(c, rngs=rngs, dtype=dtype)
        self.decoder = Decoder(c, rngs=rngs, dtype=dtype)
        pointwise = lambda channels: Conv(channels, channels, 1, rngs=rngs, dtype=dtype)
        self.quant_conv = pointwise(2 * c.latent_channels) if c.use_quant_conv else nnx.data(None)
        self.post_quant_conv = pointwise(c.latent_channels) if c.use_post_quant_conv else nnx.data(None)

    def encode(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, 3] in -1..1 -> mean and log-variance (clamped to -30..20), each [B, H/8, W/8, latent channels].

        Raises:
          ValueError: a side is no multiple of 8.
        """
        if any(side % self.config.downscale for side in image.shape[1:3]):
            raise ValueError(f"image sides {image.shape[1:3]} are no multiples of {self.config.downscale}")
        moments = self.encoder(image)
        moments = moments if self.quant_conv is None else self.quant_conv(moments)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, z: jax.Array) -> jax.Array:
        """Raw latent [B, h, w, latent channels] -> image [B, 8h, 8w, 3], about -1..1, not clamped."""
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def to_latent(self, z: jax.Array) -> jax.Array:
        """Raw latent -> (z - shift) * scale."""
        return (z - (self.config.shift_factor or 0.0)) * self.config.scaling_factor

    def from_latent(self, latent: jax.Array) -> jax.Array:
        """Undoes `to_latent`."""
        return latent / self.config.scaling_factor + (self.config.shift_factor or 0.0)


def sample_posterior(mean: jax.Array, logvar: jax.Array, noise: jax.Array) -> jax.Array:
    """mean + std * noise, in the raw space; all of one shape."""
    return mean + jnp.exp(0.5 * logvar) * noise
