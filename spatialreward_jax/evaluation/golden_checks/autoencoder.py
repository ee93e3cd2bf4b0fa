"""vae.npz: encoding, posterior sample and decoding of image batches of several sizes."""

import jax

from spatialreward_jax.evaluation.golden_checks.case import Case
from spatialreward_jax.evaluation.golden_checks.nets import Goldens, channels_first, channels_last
from spatialreward_jax.models.autoencoder_kl import AutoencoderKL, sample_posterior


def check(case: Case, goldens: Goldens) -> None:
    """Checks every numbered image and latent of the file."""
    net = goldens.autoencoder
    want = goldens.settings["vae"]
    for key in ("scaling_factor", "shift_factor"):
        if getattr(net.config, key) != want[key]:
            case.fail("", f"{key} of the checkpoint is {getattr(net.config, key)}, goldens.json says {want[key]}")
    encode = jax.jit(lambda params, image: net.bind(params).encode(image))
    decode = jax.jit(lambda params, latent: _decode(net.bind(params), latent))
    for name in [n for n in case.names if n.startswith("image_")]:
        number = name.removeprefix("image_")
        mean, logvar = encode(net.params, channels_last(case.input(name)))
        case.compare(f"enc_mean_{number}", channels_first(mean))
        case.compare(f"enc_logvar_{number}", channels_first(logvar))
        raw = sample_posterior(mean, logvar, channels_last(case.input(f"posterior_noise_{number}")))
        case.compare(f"enc_latent_{number}", channels_first(net.bind(net.params).to_latent(raw)))
    for name in [n for n in case.names if n.startswith("latent_")]:
        image = decode(net.params, channels_last(case.input(name)))
        case.compare(f"decoded_{name.removeprefix('latent_')}", channels_first(image))


def _decode(model: AutoencoderKL, latent: jax.Array) -> jax.Array:
    return model.decode(model.from_latent(latent))
