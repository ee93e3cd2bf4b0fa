"""Every golden file that is small enough to be kept here, through its check."""

import json
import shutil

import numpy as np
import pytest

from spatialreward_jax.evaluation.golden_checks import Goldens, check_file
from spatialreward_jax.io.weights import CheckpointFiles, save_params
from spatialreward_jax.models import autoencoder_kl as kl


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_encoder.npz", "sampler.npz", "grpo.npz", "qwen3_vl.npz", "reward.json"])
def test_goldens(goldens, name):
    rows = check_file(Goldens(goldens), name)
    assert [row for row in rows if not row.ok] == []
    assert any(row.status == "compared" for row in rows)


@pytest.mark.slow
def test_sharded_checkpoints(goldens, tmp_path):
    """The same weights in several files give the same table."""
    source = Goldens(goldens).autoencoder
    folder = tmp_path / "omnigen2" / "vae"
    folder.mkdir(parents=True)
    for name in ("goldens.json", "vae.npz"):
        shutil.copy(goldens / name, tmp_path)
    shutil.copy(goldens / "omnigen2" / "vae" / "config.json", folder)
    save_params(folder, source.params, kl.entries(source.config), stem=kl.STEM, max_shard_bytes=400_000)
    assert len(set(CheckpointFiles.open(folder, kl.STEM).files.values())) > 2
    assert all(row.ok for row in check_file(Goldens(tmp_path), "vae.npz"))


@pytest.mark.slow
def test_lost_alpha_is_noticed(goldens, tmp_path):
    """An adapter at scale 1 instead of alpha / rank = 2 must not pass."""
    shutil.copytree(goldens / "lora", tmp_path / "lora")
    shutil.copytree(goldens / "omnigen2" / "transformer", tmp_path / "omnigen2" / "transformer")
    shutil.copy(goldens / "goldens.json", tmp_path)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": config["r"]}))
    with np.load(goldens / "omnigen2_transformer.npz") as arrays:
        np.savez(tmp_path / "omnigen2_transformer.npz", **{n: arrays[n] for n in arrays.files if n.startswith("a_")})
    rows = check_file(Goldens(tmp_path), "omnigen2_transformer.npz")
    assert {row.array for row in rows if not row.ok} == {"a_velocity_lora_0", "a_velocity_lora_1"}
