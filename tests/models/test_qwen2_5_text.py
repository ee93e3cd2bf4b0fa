"""OmniGen2's text encoder against the PyTorch reference."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.weights import CheckpointFiles, check_table, load_params
from spatialreward_jax.mesh import make_mesh, shardings
from spatialreward_jax.models import qwen2_5_text
from spatialreward_jax.models.qwen2_5_text import IGNORED, Qwen2_5Text, Qwen2_5TextConfig, entries

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def abstract(config, **options):
    graph, state = nnx.split(nnx.eval_shape(lambda: Qwen2_5Text(config, rngs=nnx.Rngs(0), **options)))
    return graph, nnx.to_pure_dict(state)


@pytest.fixture(scope="module")
def raw_config():
    return json.loads((GOLDENS / "omnigen2" / "mllm" / "config.json").read_text())


@pytest.fixture(scope="module")
def config(raw_config):
    return Qwen2_5TextConfig.from_dict(raw_config)


@pytest.fixture(scope="module")
def loaded(config):
    graph, params = abstract(config)
    files = CheckpointFiles.open(GOLDENS / "omnigen2" / "mllm")
    return graph, load_params(files, entries(config, files.files), params, ignore=IGNORED)


@pytest.fixture(scope="module")
def arrays():
    return dict(np.load(GOLDENS / "text_encoder.npz"))


@pytest.fixture(scope="module")
def tower(loaded):
    graph, params = loaded
    run = jax.jit(lambda params, tokens, mask: nnx.merge(graph, params)(tokens, mask))
    return lambda tokens, mask: run(params, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask, bool))


def test_hidden_states_match_reference(tower, arrays):
    mask = arrays["attention_mask"] > 0
    hidden = np.asarray(tower(arrays["input_ids"], mask))
    want = arrays["last_hidden_state"]
    assert np.abs(hidden - want)[mask].max() < 1e-5 * np.abs(want).max()
    assert not hidden[~mask].any()


def test_padding_and_neighbours_change_nothing(tower, arrays):
    ids, mask = arrays["input_ids"], arrays["attention_mask"] > 0
    together = np.asarray(tower(ids, mask))
    for row in (1, 3):
        length = int(mask[row].sum())
        wide = np.full((1, 64), 7, np.int32)
        wide[0, :length] = ids[row, :length]
        alone = np.asarray(tower(wide, np.arange(64)[None] < length))
        np.testing.assert_allclose(alone[0, :length], together[row, :length], atol=1e-5)


def test_published_3b_names_and_shapes():
    """The reference class's names (transformers 5), and the published files' own."""
    published = json.loads((GOLDENS / "published" / "qwen2_5_vl_3b.json").read_text())
    config = Qwen2_5TextConfig.from_dict(published["config"])
    params = abstract(config)[1]
    new = {name: tuple(shape) for name, shape in published["tensors"].items()}
    assert "model.language_model.norm.weight" in new
    old = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): shape
        for name, shape in new.items()
    }
    for tensors in (new, old):
        check_table(tensors, entries(config, tensors), params, ignore=IGNORED)
        text = [shape for name, shape in tensors.items() if "visual." not in name and name != "lm_head.weight"]
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(int(np.prod(shape)) for shape in text)
    shardings(params, qwen2_5_text.SHARDING, make_mesh(data=1, fsdp=4, tensor=2))


def test_missing_tensor_is_named(config):
    params = abstract(config)[1]
    tensors = dict(CheckpointFiles.open(GOLDENS / "omnigen2" / "mllm").shapes())
    del tensors["model.layers.1.self_attn.q_proj.bias"]
    with pytest.raises(InputError, match=r"1 tensors missing: model\.layers\.1\.self_attn\.q_proj\.bias"):
        check_table(tensors, entries(config, tensors), params, ignore=IGNORED)
    with pytest.raises(InputError, match="give the folder of a"):
        entries(config, ["x"])


def test_other_nets_are_refused(raw_config):
    with pytest.raises(InputError, match="'qwen3_vl' is not the text encoder"):
        Qwen2_5TextConfig.from_dict(raw_config | {"model_type": "qwen3_vl"})
    with pytest.raises(InputError, match="use_sliding_window"):
        Qwen2_5TextConfig.from_dict(raw_config | {"use_sliding_window": True})
    with pytest.raises(InputError, match="hidden_size"):
        Qwen2_5TextConfig.from_dict({key: value for key, value in raw_config.items() if key != "hidden_size"})


def test_text_fields_may_be_nested(raw_config, config):
    nested = {"model_type": "qwen2_5_vl", "text_config": raw_config | {"model_type": "qwen2_5_vl_text"}}
    assert Qwen2_5TextConfig.from_dict(nested) == config


def test_bfloat16(config, loaded, arrays, tower):
    graph, _ = abstract(config, dtype=jnp.bfloat16)
    ids, mask = jnp.asarray(arrays["input_ids"], jnp.int32), jnp.asarray(arrays["attention_mask"] > 0)
    hidden = jax.jit(lambda params, *args: nnx.merge(graph, params)(*args))(loaded[1], ids, mask)
    assert hidden.dtype == jnp.bfloat16
    want = tower(ids, mask)
    assert np.abs(np.asarray(hidden, np.float32) - want).max() < 0.05 * np.abs(want).max()
