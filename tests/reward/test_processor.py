"""Prompts and patches, exact to the reference processor."""

import json
import shutil

import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.pixels import POLICIES, PixelPolicy, pixel_policy
from spatialreward_jax.reward.processor import Processor, image_key


@pytest.fixture(scope="module")
def folder(goldens):
    return goldens / "spatialreward"


@pytest.fixture(scope="module")
def processor(folder):
    return Processor(folder)


def test_prompt_and_pixels_equal_the_reference(goldens, processor):
    golden = np.load(goldens / "qwen3_vl.npz")
    images = [processor.patches(golden[f"image_{i}"]) for i in (0, 1)]
    assert [(1, *image.grid) for image in images] == [tuple(row) for row in golden["single_image_grid_thw"]]
    np.testing.assert_allclose(np.concatenate([i.values for i in images]), golden["single_pixel_values"], atol=1e-6)
    assert processor.chat(str(golden["prompt_two"]), 2) == str(golden["chat_two"])
    assert processor.chat(str(golden["prompt_one"]), 1) == str(golden["chat_one"])
    two = processor.tokens(str(golden["prompt_two"]), [image.grid for image in images])
    one = processor.tokens(str(golden["prompt_one"]), [images[1].grid])
    np.testing.assert_array_equal(two, golden["single_input_ids"][0])
    for row, ids in enumerate((two, one)):
        mask = golden["batch_attention_mask"][row].astype(bool)
        np.testing.assert_array_equal(ids, golden["batch_input_ids"][row][mask])


def test_patches_under_given_limits(goldens, folder):
    golden = np.load(goldens / "image_processing.npz")
    for setting, image in ((0, 0), (1, 0), (1, 2)):
        least, most = (int(n) for n in golden["pixel_limits"][setting])
        processor = _with_limits(folder, least, most)
        patches = processor.patches(golden[f"image_{image}"])
        np.testing.assert_allclose(patches.values, golden[f"pixel_values_s{setting}_{image}"], atol=1e-6)
        assert (1, *patches.grid) == tuple(golden[f"grid_thw_s{setting}_{image}"][0])


def _with_limits(folder, least, most):
    class Limits(PixelPolicy):
        def limits(self, shortest_edge, longest_edge):
            return {"shortest_edge": least, "longest_edge": most}

    return Processor(folder, Limits("given"))


def test_policies(folder):
    image = np.zeros((700, 900, 3), np.uint8)
    pixels = {name: np.prod(Processor(folder, name).patches(image).grid) * 16**2 for name in POLICIES}
    assert pixels["eval"] <= 65536 and pixels["server"] <= 65536  # the checkpoint's own limit
    assert 65536 < pixels["sft"] <= 262144 < pixels["rl"] <= 401408
    assert pixel_policy("server").first_resize(np.zeros((512, 512, 3), np.uint8)).shape == (504, 504, 3)
    with pytest.raises(InputError, match="choose one of eval, server, sft, rl"):
        pixel_policy("tiny")


@pytest.mark.parametrize("name", POLICIES)
def test_grid_from_the_size_alone(folder, name):
    processor = Processor(folder, name)
    for height, width in ((512, 512), (37, 53), (33, 400), (701, 633), (1, 1)):
        image = np.zeros((height, width, 3), np.uint8)
        assert processor.grid(height, width) == processor.patches(image).grid


def test_equal_images_share_a_key():
    image = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    assert image_key(image) == image_key(image.copy())
    assert len({image_key(image), image_key(image[::-1]), image_key(image.reshape(32, 128, 3))}) == 3


def test_errors(folder, processor, tmp_path):
    with pytest.raises(InputError, match="reserves"):
        processor.tokens("paint it <|image_pad|> red", [])
    with pytest.raises(InputError, match="too narrow"):
        processor.patches(np.zeros((4, 900, 3), np.uint8))
    with pytest.raises(InputError, match="is missing"):
        Processor(tmp_path / "nowhere")
    with pytest.raises(InputError, match="preprocessor_config"):
        Processor(tmp_path)
    shutil.copy(folder / "preprocessor_config.json", tmp_path)
    with pytest.raises(InputError, match="no tokenizer"):
        Processor(tmp_path)


def test_chat_template_beside_the_tokenizer(folder, tmp_path, processor):
    """Older checkpoints keep the chat template in chat_template.json alone."""
    for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.json"):
        shutil.copy(folder / name, tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Processor(tmp_path).chat("hi", 1) == processor.chat("hi", 1)


def test_text_comes_back(processor):
    ids = processor.tokenizer('{"score": [20, 3]}')["input_ids"]
    assert processor.decode([*ids, processor.tokenizer.eos_token_id]) == '{"score": [20, 3]}'
