"""The editor end to end on a tiny checkpoint in the published layout."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.editor import Editor, load_nets
from spatialreward_jax.editor.encode import check_positions, encode
from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import Guidance, SamplerPreset
from spatialreward_jax.mesh import make_mesh

FAST = SamplerPreset(3, Guidance(4.0, 2.0, (0.0, 0.6)), 168, 0.0, "default")


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def editor(goldens):
    return Editor.from_pretrained(goldens / "omnigen2", mesh=make_mesh(devices=jax.devices()[:1]))


def apart(a, b):
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def test_a_sample_depends_on_its_seed_and_number_alone(editor):
    three = editor.edit(picture(48, 64), "make it blue", num_samples=3, preset=FAST)
    one = editor.edit(picture(48, 64), "make it blue", num_samples=1, preset=FAST)
    other = editor.edit(picture(48, 64), "make it blue", num_samples=1, preset=FAST, seed=1)
    assert apart(three[0], one[0]) <= 1 < apart(three[0], three[1])
    assert apart(one[0], other[0]) > 1
    grouped = Editor(editor.nets, max_samples=2).edit(picture(48, 64), "make it blue", num_samples=3, preset=FAST)
    assert all(apart(a, b) <= 1 for a, b in zip(three, grouped, strict=True))


def test_eight_devices_give_the_same_edits(editor, goldens):
    spread = Editor.from_pretrained(goldens / "omnigen2", mesh=make_mesh(data=4, fsdp=2))
    here, there = (e.edit(picture(48, 64), "make it blue", num_samples=8, preset=FAST) for e in (editor, spread))
    assert all(apart(a, b) <= 1 for a, b in zip(here, there, strict=True))


def test_results_have_the_size_of_the_source_or_the_one_asked_for(editor):
    assert editor.edit(picture(50, 70), "make it blue", preset=FAST)[0].shape == (50, 70, 3)
    two = [picture(48, 64), picture(32, 48, 1)]
    assert editor.edit(two, "put the second into the first", size=(40, 48), preset=FAST)[0].shape == (40, 48, 3)
    with pytest.raises(InputError, match="give the result's size"):
        editor.edit(two, "put the second into the first", preset=FAST)


def test_requests_of_several_sizes_encode_as_they_do_alone(editor):
    images, targets = [picture(48, 64), picture(64, 32, 1)], [(48, 64), (64, 32)]
    keys = jax.random.split(jax.random.key(0), 2)
    both = encode(editor.nets, ["a", "b b b"], [[x] for x in images], targets, negative="default", keys=keys)
    for row in range(2):
        alone = encode(
            editor.nets, ["a", "b b b"][row : row + 1], [[images[row]]], targets[row : row + 1], negative="default",
            keys=keys[row : row + 1],
        )  # fmt: skip
        for name in ("text", "refs"):
            a, b = getattr(both.branches.full, name)[row], getattr(alone.branches.full, name)[0]
            size = tuple(min(x, y) for x, y in zip(a.shape, b.shape))
            cut = tuple(slice(s) for s in size)
            np.testing.assert_allclose(a[cut], b[cut], rtol=1e-4, atol=1e-4)
    assert both.branches.uncond.refs.shape[1] == 0, "the branch without references must not pay for them"


def test_an_adapter_changes_the_edit_and_one_for_another_net_is_refused(editor, goldens, tmp_path):
    plain = editor.edit(picture(48, 64), "make it blue", preset=FAST)[0]
    adapted = Editor.from_pretrained(goldens / "omnigen2", adapter=goldens / "lora", mesh=editor.nets.mesh)
    assert apart(adapted.edit(picture(48, 64), "make it blue", preset=FAST)[0], plain) > 1
    shutil.copytree(goldens / "lora", tmp_path / "lora")
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(InputError, match="use_dora"):
        Editor.from_pretrained(goldens / "omnigen2", adapter=tmp_path / "lora")


def test_new_adapters_leave_the_net_unchanged(goldens):
    from spatialreward_jax.io.peft import LoRASpec

    nets = load_nets(goldens / "omnigen2")
    nets.add_adapters(LoRASpec(2, 4, ("to_q",)), seed=0)
    leaves = jax.tree_util.tree_leaves_with_path(nets.adapters)
    assert all((jnp.abs(x).max() > 0) == ("'a'" in jax.tree_util.keystr(path)) for path, x in leaves)


@pytest.mark.parametrize(
    "call, message",
    [
        (dict(instruction=" "), "is empty: say what to change"),
        (dict(preset="fast"), "'fast' is unknown; choose one of"),
        (dict(num_samples=0), "use at least 1"),
        (dict(source="nowhere.png"), "nowhere.png"),
        (dict(source=picture(8, 8)), "too small"),
        (dict(instruction="zq " * 200), "64 positions: shorten"),
        (dict(source=[picture(32, 32)] * 6, size=(32, 32)), "references"),
    ],
)
def test_bad_requests_get_one_clear_line(editor, call, message):
    with pytest.raises(InputError, match=message) as error:
        editor.edit(**{"source": picture(32, 32), "instruction": "make it blue", "preset": FAST, **call})
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_architecture_is_refused(goldens, tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        Editor.from_pretrained(tmp_path / "nowhere")
    shutil.copytree(goldens / "omnigen2", tmp_path / "other")
    file = tmp_path / "other/transformer/config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"num_layers": config["num_layers"] + 1}))
    with pytest.raises(InputError, match="does not fit its config"):
        Editor.from_pretrained(tmp_path / "other")
    file.write_text(json.dumps(config | {"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(InputError, match="FluxTransformer2DModel"):
        Editor.from_pretrained(tmp_path / "other")


def test_images_beyond_the_rotary_tables_are_refused():
    config = types.SimpleNamespace(axes_lens=(1024, 8, 8))
    nets = types.SimpleNamespace(transformer=types.SimpleNamespace(config=config), multiple=16)
    check_positions(nets, np.array([[8, 8], [0, 0]]))
    with pytest.raises(InputError, match="up to 8 x 9 patches of 16 pixels, the editor has positions for 8 x 8"):
        check_positions(nets, np.array([[8, 8], [4, 9]]))
