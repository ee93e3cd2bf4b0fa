"""Supervised training of a tiny editor and of its autoencoder."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialreward_jax import train
from spatialreward_jax.editor import load_nets
from spatialreward_jax.editor.velocity import velocity_fn
from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import sample_times
from spatialreward_jax.io.images import write_png
from spatialreward_jax.io.peft import read_adapter
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.models import omnigen2
from spatialreward_jax.models.omnigen2 import Conditioning
from spatialreward_jax.recipes import editor_sft, editor_vae
from spatialreward_jax.recipes.editor_settings import Settings

ROOT = pathlib.Path(__file__).parents[2]
ONE = make_mesh(devices=jax.devices()[:1])


def sft_config(preset="embedded", **changes):
    spec = importlib.util.spec_from_file_location("editor_sft", ROOT / "configs/editor_sft.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(preset)
    config.update(changes)
    return config


def tiny_config(goldens, preset="embedded", **changes):
    tiny = {"editor": str(goldens / "omnigen2"), "scratch": (), "steps": 4, "batch": 2, "warmup": 0}
    tiny |= {"export_dtype": "float32", "eval": {"batches": 0, "pictures": 0, "sampler_steps": 2}}
    return sft_config(preset, **(tiny | {"data": {"rows": 8, "threads": 1}} | changes))


@pytest.fixture(scope="module")
def small_edits(tmp_path_factory):
    """Four edits in files, targets of 6 patches in a bucket of 16."""
    folder, rng = tmp_path_factory.mktemp("edits"), np.random.default_rng(0)
    for name in "ab":
        write_png(folder / f"{name}.png", rng.integers(0, 256, (32, 48, 3), np.uint8))
    row = {"instruction": "Make it red.", "input_images": ["a.png"], "output_image": "b.png"}
    (folder / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 4))
    return {"path": str(folder / "rows.jsonl"), "heldout": str(folder / "rows.jsonl"), "threads": 1}


@pytest.fixture(scope="module")
def lora_task(goldens, small_edits, tmp_path_factory):
    config = tiny_config(goldens, lora={"rank": 2, "alpha": 4.0}, train=("transformer",), data=small_edits)
    return editor_sft.make_task(config, ONE, tmp_path_factory.mktemp("lora"))


@pytest.mark.slow
def test_lora_trains_adapters_alone_and_comes_back(lora_task):
    task = lora_task
    state = task.init(None)
    assert set(state.params) == {"adapters"} and set(task.frozen) == {"transformer", "text"}
    before = jax.device_get(task.frozen)
    state, metrics = task.step(state, next(task.batches()))
    assert float(metrics["grad_norm"]) > 0 and float(metrics["update_norm"]) > 0
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(task.frozen))
    task.export(state)
    spec, adapters = read_adapter(task.workdir / "adapter", omnigen2.ENTRIES, task.nets.transformer.params)
    assert (spec.rank, spec.alpha) == (2, 4.0)
    jax.tree.map(np.testing.assert_array_equal, adapters, jax.device_get(state.params["adapters"]))


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_last_bit(lora_task, tmp_path):
    final = []
    for workdir, stops in ((tmp_path / "whole", (4,)), (tmp_path / "parts", (2, 4))):
        for steps in stops:
            train.run(lora_task, train.Settings(steps, checkpoint_every=2), workdir, command="again")
        final.append((lora_task.workdir / "adapter/adapter_model.safetensors").read_bytes())
    assert final[0] == final[1]


@pytest.mark.slow
def test_loss_is_the_error_of_the_velocity_at_a_point_of_the_straight_path(lora_task):
    """Against the net called by hand, at the times and with the noise that the key gives; padding counts nothing."""
    task, nets = lora_task, lora_task.nets
    number, _, pairs = task.mixture[0]
    batch = editor_sft.encode_batch(nets, editor_sft.host_batch(task.settings, number, pairs), 128)
    real = int(batch.sizes[0].prod())
    assert real < batch.data.shape[1]
    batch = batch._replace(data=batch.data.at[:, real:].set(7.0))

    @jax.jit
    def both(batch, key):
        loss, halves = editor_sft.make_loss(nets)({"adapters": nets.adapters}, task.frozen, batch, key)
        for_time, for_noise = jax.random.split(key)
        t = sample_times(for_time, batch.sizes.prod(-1))
        noise = jax.random.normal(for_noise, batch.data.shape)
        x = (t[:, None, None] * batch.data + (1 - t)[:, None, None] * noise).at[:, real:].set(0)
        features = nnx.merge(nets.text.graph, nets.text.params)(batch.tokens, batch.mask)
        cond = Conditioning(features, batch.mask, batch.refs, batch.ref_sizes, batch.sizes)
        net = velocity_fn(nets.transformer.graph, nets.adapters, nets.transformer.params, jnp.float32)
        return loss, halves, net(x, t, cond) - (batch.data - noise)

    loss, halves, apart = both(batch, jax.random.key(5))
    error = np.square(np.asarray(apart))[:, :real]
    np.testing.assert_allclose(float(loss.value()), error.mean(), rtol=1e-5)
    assert float(loss.count) == error.size == float(sum(half.count for half in halves.values()))


def test_texts_and_references_are_left_out_together(goldens):
    settings = Settings.from_config(tiny_config(goldens, data={"drop_text": 0.5, "drop_references": 0.5}))
    pair = editor_sft.EditPair("Make it red.", (), np.zeros((16, 16, 3), np.uint8), 0)
    batch = editor_sft.host_batch(settings, 3, [pair] * 400)
    dropped = np.array([user == "" or "deformed" in user for _, user in batch.turns])
    assert 0.4 < dropped.mean() < 0.6 and 0.4 < (~batch.shown[dropped]).mean() < 0.6
    assert batch.shown[~dropped].all(), "references are never left out where the text stays"
    assert len({turn for turn in batch.turns}) == 4  # the instruction and three negatives
    again = editor_sft.host_batch(settings, 3, [pair] * 400)
    assert again.turns == batch.turns and (again.keys == batch.keys).all()
    assert editor_sft.host_batch(settings, 3, [pair] * 9, drop=False).shown.all()


def test_what_is_left_out_keeps_the_shapes(lora_task):
    task, (number, _, pairs) = lora_task, lora_task.mixture[0]
    host = editor_sft.host_batch(task.settings, number, pairs, drop=False)
    full = editor_sft.encode_batch(task.nets, host, 128)
    none = editor_sft.encode_batch(task.nets, host._replace(shown=np.zeros(len(pairs), bool)), 128)
    assert full.refs.shape == none.refs.shape and not np.asarray(none.refs).any()
    assert not np.asarray(none.ref_sizes).any() and np.asarray(full.ref_sizes).all()


@pytest.mark.slow
def test_transformer_and_text_tower_from_scratch_to_an_editor_that_loads(goldens, tmp_path):
    config = tiny_config(goldens, scratch=("transformer", "mllm"), lr=3e-3, steps=6, eval={"batches": 1, "pictures": 2})
    task = editor_sft.make_task(config, ONE, tmp_path)
    state = task.init(None)
    assert set(state.params) == {"transformer", "text"} and task.frozen == {}
    start = jax.device_get(state.params)
    summary = train.run(task, train.Settings(4), tmp_path, command="again")
    assert summary["heldout/loss"] > 0
    nets = load_nets(tmp_path / "editor", mesh=ONE)
    for name, before in start.items():
        after = jax.device_get(getattr(nets, name).params)
        moved = jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after))
        assert sum(m > 0 for m in moved) > 0.9 * len(moved), name
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(task.nets.vae.params), jax.device_get(nets.vae.params))


@pytest.mark.slow
def test_the_autoencoder_learns_and_its_latents_are_scaled(goldens, tmp_path):
    task = editor_vae.make_task(tiny_config(goldens, "vae", scratch=("vae",), steps=12, lr=2e-3), ONE, tmp_path)
    summary = train.run(task, train.Settings(12), tmp_path, command="again")
    assert summary["loss_last"] < summary["loss_first"]
    nets = load_nets(tmp_path / "editor", mesh=ONE)
    assert nets.vae.config.scaling_factor == summary["scaling_factor"] != 0.3611
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(task.nets.transformer.params),
        jax.device_get(nets.transformer.params),
    )
    written = json.loads((tmp_path / "editor/vae/config.json").read_text())
    assert written["shift_factor"] == summary["shift_factor"]


def test_autoencoder_loss_by_hand(goldens):
    nets = load_nets(goldens / "omnigen2", mesh=ONE)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    key = jax.random.key(1)
    wanted = images / np.float32(127.5) - 1

    @jax.jit
    def both(key):
        loss, parts = editor_vae.make_loss(nets.vae.graph, 0.5)({"vae": nets.vae.params}, {}, images, key)
        vae = nnx.merge(nets.vae.graph, nets.vae.params)
        mean, logvar = vae.encode(wanted)
        out = vae.decode(mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape))
        return loss, parts, mean, logvar, out

    loss, parts, mean, logvar, out = both(key)
    kl = 0.5 * np.mean(np.square(mean) + np.exp(logvar) - 1 - logvar)
    np.testing.assert_allclose(float(parts["kl"].value()), kl, rtol=1e-5)
    np.testing.assert_allclose(float(loss.value()), np.abs(out - wanted).mean() + 0.5 * kl, rtol=1e-5)
    assert float(loss.count) == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"editor": ""}, r"give --config\.editor"),
        ({"data": {"path": ""}}, r"give --config\.data\.path"),
        ({"scratch": ("text",)}, "name parts among transformer, vae, mllm"),
        ({"train": ("vae",)}, "name at least one of transformer, text"),
        ({"lora": {"rank": 2, "alpha": 2.0}}, "adapters are for the transformer alone"),
        ({"data": {"dropped": ("none",)}}, "choose one of"),
        ({"data": {"drop_text": 2.0}}, r"shares of 0\.\.1"),
        ({"data": {"threads": 0}}, r"data\.threads"),
        ({"data": {"input_pixels": ()}}, "at least one limit"),
        ({"lr": -1.0}, "both must be above 0"),
    ],
)
def test_settings_that_cannot_be_get_one_clear_line(goldens, changes, message):
    with pytest.raises(InputError, match=message):
        Settings.from_config(tiny_config(goldens, **changes))


def test_published_hyperparameters():
    config = sft_config("published")
    assert (config.lr, config.schedule, config.warmup, config.batch) == (8e-7, "constant", 500, 16)
    assert (config.data.drop_text, config.data.drop_references, config.lora.rank) == (1e-4, 0.5, 0)
    assert sft_config("lora").lora.rank == 8
    with pytest.raises(ValueError, match="choose one of embedded, vae, published, lora"):
        sft_config("laptop")
