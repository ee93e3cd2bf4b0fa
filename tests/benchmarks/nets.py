"""Nets of a chosen size with random weights, written as checkpoints in the published layout."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.pretrained import ASSETS, read_json
from spatialreward_jax.io.weights import save_params
from spatialreward_jax.models import autoencoder_kl, omnigen2, qwen2_5_text, qwen3_vl

HEAD = 120
"""Channels of a head of the published transformer; it has three query heads for one of keys."""


def editor_configs(size: str, layers: int) -> dict[str, dict[str, Any]]:
    """The three `config.json` of an editor.

    Args:
      size: "embedded", or the transformer's width, a multiple of 360 (the published net has 2520).
      layers: of the transformer; ignored for "embedded".

    Raises:
      InputError: no such size.
    """
    if size == "embedded":
        folder = ASSETS / "embedded" / "editor"
        return {part: read_json(folder / part / "config.json") for part in ("transformer", "vae", "mllm")}
    if not size.isdigit() or int(size) % (3 * HEAD) or not int(size):
        raise InputError(f"--size={size}: use 'embedded' or a width that is a multiple of {3 * HEAD}")
    configs = editor_configs("embedded", 0)
    heads, text = int(size) // HEAD, 512
    configs["transformer"] |= {
        "hidden_size": int(size),
        "num_layers": layers,
        "num_refiner_layers": 1,
        "num_attention_heads": heads,
        "num_kv_heads": heads // 3,
        "multiple_of": 256,
        "axes_dim_rope": [HEAD // 3] * 3,
        "axes_lens": [1024, 1024, 1024],
        "text_feat_dim": text,
    }
    configs["mllm"] |= {"hidden_size": text, "intermediate_size": 3 * text, "num_hidden_layers": 4}
    configs["mllm"] |= {"num_attention_heads": text // 64, "num_key_value_heads": text // 128}
    configs["mllm"]["rope_scaling"] = {"type": "default", "rope_type": "default", "mrope_section": [8, 12, 12]}
    blocks = [f"{kind}{way}2D" for kind, way in (("DownEncoderBlock", ""), ("UpDecoderBlock", ""))]
    configs["vae"] |= {"block_out_channels": [32, 64, 128, 128], "layers_per_block": 1}
    configs["vae"] |= {"down_block_types": [blocks[0]] * 4, "up_block_types": [blocks[1]] * 4}
    return configs


def layer_shape(transformer: dict[str, Any], samples: int, tokens: int) -> tuple[int, int, int]:
    """Rows, width and inner width of one feed-forward layer over `samples` samples of `tokens` tokens each."""
    config = omnigen2.OmniGen2Config.from_dict(transformer)
    return samples * tokens, config.hidden_size, config.mlp_dim


def judge_config(size: str, layers: int) -> dict[str, Any]:
    """`config.json` of a judge: "embedded", or the decoder's width, a multiple of 128.

    Raises:
      InputError: no such size.
    """
    config = read_json(ASSETS / "embedded" / "judge" / "config.json")
    if size == "embedded":
        return config
    if not size.isdigit() or int(size) % 128 or not int(size):
        raise InputError(f"--size={size}: use 'embedded' or a width that is a multiple of 128")
    width, vision = int(size), int(size) // 2
    config["text_config"] |= {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "head_dim": 64,
        "num_attention_heads": width // 64,
        "num_key_value_heads": max(1, width // 256),
        "num_hidden_layers": layers,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [12, 10, 10], "rope_type": "default"},
    }
    config["vision_config"] |= {
        "hidden_size": vision,
        "intermediate_size": 4 * vision,
        "num_heads": vision // 64,
        "depth": 6,
        "deepstack_visual_indexes": [1, 2, 3],
        "out_hidden_size": width,
        "patch_size": 16,
        "num_position_embeddings": 256,
    }
    return config


def random_params(build: Any, seed: int) -> dict:
    """Parameters from a seed with nothing at a special value: norm scales around 1, biases around 0."""
    params = jax.jit(lambda: nnx.to_pure_dict(nnx.state(build(nnx.Rngs(seed)))))()
    rng = np.random.default_rng(seed)

    def shake(path, leaf):
        name = str(getattr(path[-1], "key", path[-1]))
        size = 0.1 if name in ("scale", "bias") else 0.0
        return leaf + jnp.asarray(size * rng.normal(size=leaf.shape) if size else 0.0, leaf.dtype)

    return jax.tree_util.tree_map_with_path(shake, params)


def write_editor(folder: pathlib.Path, configs: dict[str, dict[str, Any]], seed: int, parts: tuple[str, ...]) -> None:
    """Writes `parts` of "transformer", "vae", "mllm" (and with "mllm" the embedded `processor`) under `folder`."""
    flow = omnigen2.OmniGen2Config.from_dict(configs["transformer"])
    image = autoencoder_kl.AutoencoderConfig.from_dict(configs["vae"])
    text = qwen2_5_text.Qwen2_5TextConfig.from_dict(configs["mllm"])
    makers = {
        "transformer": (lambda r: omnigen2.OmniGen2Transformer(flow, rngs=r), omnigen2.ENTRIES, omnigen2.STEM),
        "vae": (
            lambda r: autoencoder_kl.AutoencoderKL(image, rngs=r),
            autoencoder_kl.entries(image),
            autoencoder_kl.STEM,
        ),
        "mllm": (
            lambda r: qwen2_5_text.Qwen2_5Text(text, rngs=r),
            qwen2_5_text.entries(text, ["model.embed_tokens.weight"]),
            "model",
        ),
    }
    for part in parts:
        build, entries, stem = makers[part]
        save_params(folder / part, random_params(build, seed), entries, stem=stem)
        (folder / part / "config.json").write_text(json.dumps(configs[part]))
    if "mllm" in parts:
        (folder / "processor").symlink_to(ASSETS / "embedded" / "editor" / "processor", target_is_directory=True)


def write_judge(folder: pathlib.Path, config: dict[str, Any], seed: int) -> None:
    """Writes a judge's weights beside the embedded judge's tokenizer and settings."""
    sizes = qwen3_vl.Qwen3VLConfig.from_dict(config)
    build = lambda rngs: qwen3_vl.Qwen3VL(sizes, rngs=rngs)
    save_params(folder, random_params(build, seed), qwen3_vl.entries(sizes))
    (folder / "config.json").write_text(json.dumps(config))
    settings = (ASSETS / "embedded" / "judge" / "generation_config.json").read_text()
    (folder / "generation_config.json").write_text(settings)


def count(params: Any) -> int:
    """Numbers in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
