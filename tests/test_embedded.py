"""The nets that come with the package: their size, and that what is trained does its work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialreward_jax.data.editworld import render, sample_edit, write_rankings
from spatialreward_jax.editor import load_nets
from spatialreward_jax.evaluation import BENCHMARKS, evaluate
from spatialreward_jax.io.pretrained import ASSETS
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.vlm import Decoding

LIMIT = 12_000_000


def test_all_weights_together_are_small():
    files = list((ASSETS / "embedded").rglob("*.safetensors"))
    assert 0 < sum(file.stat().st_size for file in files) <= LIMIT


@pytest.mark.slow
def test_the_autoencoder_keeps_scenes_of_the_test_split():
    vae = load_nets("embedded", dtype="float32").vae
    model = nnx.merge(vae.graph, vae.params)
    scenes = [sample_edit("test", index).target for index in range(40)]
    images = np.stack([render(scene) for scene in scenes if scene.side == 64][:16]).astype(np.float32) / 127.5 - 1
    mean, _ = jax.jit(model.encode)(images)
    out = np.clip(jax.jit(model.decode)(mean), -1, 1)
    psnr = 10 * np.log10(4 / np.square(out - images).mean(axis=(1, 2, 3)))
    assert psnr.mean() > 24, "26.2 dB was measured on the validation split after training"
    latents = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    assert 0.7 < float(jnp.std(latents)) < 1.3, "the flow works at unit scale"


@pytest.mark.slow
def test_the_judge_orders_edits_of_the_test_split_and_finds_them(tmp_path):
    write_rankings(tmp_path / "rankings", "test", 40, sizes=(2,), seed=5)
    judge = RewardModel.from_pretrained("embedded", decoding=Decoding(constrained=True, score_mode="expected"))
    results = evaluate(BENCHMARKS["editworld"], tmp_path / "rankings", tmp_path / "out", judge, batch_size=64)
    assert results["counts"]["ok"] == 40, "every answer can be read"
    assert results["figures"]["accuracy"]["value"] > 0.7, "tests/benchmarks/RESULTS.md has it from more pairs"
    assert results["regions"]["union_iou"] > 0.75
