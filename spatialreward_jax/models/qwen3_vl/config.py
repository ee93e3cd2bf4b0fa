"""Sizes of a Qwen3-VL net, read from the `config.json` of its checkpoint."""

import dataclasses
import math
from typing import Any

from spatialreward_jax.errors import InputError
from spatialreward_jax.models.qwen_layers import DecoderConfig, rope


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower."""

    dim: int
    mlp: int
    layers: int
    heads: int
    channels: int
    patch: int
    """Side of a square patch in pixels."""
    frames: int
    """Frames in a patch; a still image is repeated."""
    merge: int
    """A square of merge x merge patches becomes one token of the text decoder."""
    side: int
    """Side of the square table of learned positions."""
    taps: tuple[int, ...]
    """Blocks (from 0) whose outputs become DeepStack features, the k-th for decoder layer k."""
    out_dim: int

    @property
    def patch_size(self) -> int:
        """Numbers in a flattened patch, ordered (channel, frame, row, column)."""
        return self.channels * self.frames * self.patch**2


@dataclasses.dataclass(frozen=True)
class Qwen3VLConfig:
    """Sizes of the whole net."""

    text: DecoderConfig
    vision: VisionConfig
    mrope_section: tuple[int, int, int]
    """Rotary frequencies that belong to the time, row and column position."""
    tied: bool
    """Whether the head is the embedding table."""
    image_token: int
    """Token id that stands once for every merged image patch."""

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "Qwen3VLConfig":
        """Reads a Hugging Face `config.json`.

        Raises:
          InputError: it is of another architecture, of a mixture of experts, or asks for what the net does not do.
        """
        _check_family(config)
        text, vision = config["text_config"], config["vision_config"]
        decoder = DecoderConfig.from_dict(text, qkv_bias=False, qk_norm=True)
        settings = rope(text)
        section = tuple(settings.get("mrope_section", (24, 20, 20)))
        if not settings.get("mrope_interleaved", True):
            raise InputError("mrope_interleaved false is not Qwen3-VL: use a checkpoint of that family")
        if len(section) != 3 or max(section[1], section[2]) * 3 > decoder.head_dim // 2 + 2:
            raise InputError(f"mrope_section {list(section)} does not fit head_dim {decoder.head_dim}")
        return cls(
            text=decoder,
            vision=_vision(vision, decoder),
            mrope_section=section,
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            image_token=config.get("image_token_id", 151655),
        )


def _check_family(config):
    kind = config.get("model_type", "qwen3_vl")
    text = config.get("text_config", {})
    if "moe" in kind or "moe" in text.get("model_type", "") or text.get("num_experts"):
        raise InputError(
            f"model_type {kind!r} is a mixture of experts, which is not supported: use a dense size (2B, 4B, 8B, 32B)"
        )
    if kind != "qwen3_vl":
        raise InputError(f"model_type {kind!r} is not Qwen3-VL: use a checkpoint of model_type 'qwen3_vl'")
    for name in ("text_config", "vision_config"):
        if name not in config:
            raise InputError(f"the config has no {name!r}: use the config.json of a Qwen3-VL checkpoint")
    if text.get("attention_bias"):
        raise InputError("attention_bias true in text_config is not Qwen3-VL: use a checkpoint of that family")


def _vision(v, decoder):
    try:
        config = VisionConfig(
            dim=v["hidden_size"],
            mlp=v["intermediate_size"],
            layers=v["depth"],
            heads=v["num_heads"],
            channels=v.get("in_channels", 3),
            patch=v["patch_size"],
            frames=v["temporal_patch_size"],
            merge=v["spatial_merge_size"],
            side=math.isqrt(v["num_position_embeddings"]),
            taps=tuple(v["deepstack_visual_indexes"]),
            out_dim=v["out_hidden_size"],
        )
    except KeyError as missing:
        raise InputError(f"vision_config has no {missing}: use the config.json of the checkpoint") from None
    if v.get("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise InputError(
            f"hidden_act {v['hidden_act']!r} of vision_config is not supported; only 'gelu_pytorch_tanh' is"
        )
    if config.side**2 != v["num_position_embeddings"]:
        raise InputError(f"num_position_embeddings {v['num_position_embeddings']} is no square number")
    if config.dim % (4 * config.heads):
        raise InputError(f"vision hidden_size {config.dim} is no multiple of 4 x {config.heads} heads")
    if config.out_dim != decoder.dim:
        raise InputError(f"vision out_hidden_size {config.out_dim} differs from the text hidden_size {decoder.dim}")
    if list(config.taps) != sorted(set(config.taps) & set(range(config.layers))):
        raise InputError(
            f"deepstack_visual_indexes {list(config.taps)} are not rising numbers of {config.layers} blocks"
        )
    if len(config.taps) > decoder.layers:
        raise InputError(
            f"{len(config.taps)} DeepStack features need as many decoder layers, there are {decoder.layers}"
        )
    return config
