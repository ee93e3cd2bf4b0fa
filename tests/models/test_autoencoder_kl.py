"""The autoencoder: reference arrays, published sizes, config variants, and what must not depend on the batch."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialreward_jax import mesh as meshes
from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation import golden_checks
from spatialreward_jax.io.weights import CheckpointFiles, check_table, flatten, load_params, save_params
from spatialreward_jax.models import autoencoder_kl as kl

TINY = kl.AutoencoderConfig(
    block_out_channels=(8, 8, 16),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    use_quant_conv=False,
    use_post_quant_conv=False,
    scaling_factor=0.5,
    shift_factor=0.25,
)


def abstract(config):
    return nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: kl.AutoencoderKL(config, rngs=nnx.Rngs(0))))[1])


def published(goldens):
    file = json.loads((goldens / "published" / "flux_vae.json").read_text())
    return kl.AutoencoderConfig.from_dict(file["config"]), file["tensors"]


@pytest.mark.slow
def test_goldens(goldens):
    rows = golden_checks.check_file(golden_checks.Goldens(goldens), "vae.npz")
    assert [r for r in rows if not r.ok] == []
    assert {"enc_mean_0", "enc_logvar_1", "enc_latent_1", "decoded_0"} <= {r.array for r in rows if r.tolerance}


def test_table_maps_the_published_checkpoint(goldens):
    config, tensors = published(goldens)
    check_table(tensors, kl.entries(config), abstract(config))
    meshes.shardings(abstract(config), kl.SHARDING, meshes.make_mesh(fsdp=4, tensor=2))


def test_quant_convolutions_follow_the_config():
    config = dataclasses.replace(TINY, use_quant_conv=True, use_post_quant_conv=True)
    extra = set(flatten(abstract(config))) - set(flatten(abstract(TINY)))
    assert extra == {f"{p}quant_conv.{leaf}" for p in ("", "post_") for leaf in ("kernel", "bias")}
    assert {e.target for e in kl.entries(config)} == set(flatten(abstract(config)))


@pytest.fixture(scope="module")
def model():
    return kl.AutoencoderKL(TINY, rngs=nnx.Rngs(0))


def test_sizes_batches_and_scaling(model):
    graph, state = nnx.split(model)
    encode = jax.jit(lambda image: nnx.merge(graph, state).encode(image))
    image = jax.random.uniform(jax.random.key(0), (2, 12, 8, 3), minval=-1)
    mean, logvar = encode(image)
    assert mean.shape == logvar.shape == (2, 3, 2, 4)
    np.testing.assert_allclose(encode(image[:1])[0], mean[:1], atol=1e-5)
    np.testing.assert_allclose(model.to_latent(mean), (mean - 0.25) * 0.5, atol=1e-6)
    np.testing.assert_allclose(model.from_latent(model.to_latent(mean)), mean, atol=1e-6)
    with pytest.raises(ValueError, match="multiples of 4"):
        model.encode(image[:, :10])


def test_decoder_restores_the_size_in_the_input_dtype(model):
    decoded = jax.jit(model.decode)(jnp.zeros((1, 3, 2, 4), jnp.bfloat16))
    assert decoded.shape == (1, 12, 8, 3) and decoded.dtype == jnp.bfloat16


def test_posterior_sample():
    mean, logvar = jnp.full((1, 1, 1, 2), 3.0), jnp.log(jnp.full((1, 1, 1, 2), 4.0))
    np.testing.assert_allclose(kl.sample_posterior(mean, logvar, jnp.ones_like(mean)), 5.0, rtol=1e-6)


def test_export_is_bit_exact(goldens, tmp_path):
    folder = goldens / "omnigen2" / "vae"
    config = kl.AutoencoderConfig.from_dict(json.loads((folder / "config.json").read_text()))
    files = CheckpointFiles.open(folder, kl.STEM)
    save_params(tmp_path, load_params(files, kl.entries(config), abstract(config)), kl.entries(config), stem=kl.STEM)
    again = CheckpointFiles.open(tmp_path, kl.STEM)
    assert again.shapes() == files.shapes()
    assert all(np.array_equal(again.slice(n)[:], files.slice(n)[:]) for n in files.files)


def test_config_errors():
    good = {**dataclasses.asdict(TINY), "_class_name": "AutoencoderKL", "force_upcast": True}
    assert kl.AutoencoderConfig.from_dict(good) == TINY
    for change, message in (
        ({"_class_name": "AutoencoderDC"}, "AutoencoderDC"),
        ({"act_fn": "relu"}, "act_fn is 'relu'"),
        ({"norm_num_groups": 3}, "3 groups"),
        ({"down_block_types": ["AttnDownBlock2D"] * 3}, "down_block_types"),
        ({"tiles": 2}, "tiles"),
    ):
        with pytest.raises(InputError, match=message):
            kl.AutoencoderConfig.from_dict({**good, **change})
