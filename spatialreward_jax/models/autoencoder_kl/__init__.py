"""The image autoencoder (FLUX.1 layout)."""

from spatialreward_jax.models.autoencoder_kl.config import AutoencoderConfig
from spatialreward_jax.models.autoencoder_kl.model import AutoencoderKL, sample_posterior
from spatialreward_jax.models.autoencoder_kl.weights import SHARDING, STEM, entries

__all__ = ["SHARDING", "STEM", "AutoencoderConfig", "AutoencoderKL", "entries", "sample_posterior"]
