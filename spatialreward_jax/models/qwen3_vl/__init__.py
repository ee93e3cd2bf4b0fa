"""Qwen3-VL (dense): vision tower with DeepStack, text decoder with interleaved M-RoPE, KV cache, weight table."""

from spatialreward_jax.models.qwen3_vl.cache import KVCache, empty_cache
from spatialreward_jax.models.qwen3_vl.config import Qwen3VLConfig, VisionConfig
from spatialreward_jax.models.qwen3_vl.model import Qwen3VL, mrope_axes
from spatialreward_jax.models.qwen3_vl.positions import (
    Grid,
    Prompt,
    VisionGrid,
    cut_prompts,
    merge_order,
    mrope_positions,
    pack_images,
    pack_prompts,
    vision_grid,
)
from spatialreward_jax.models.qwen3_vl.vision import VisionFeatures, VisionTower, initial_positions
from spatialreward_jax.models.qwen3_vl.weights import SHARDING, entries, ignored

__all__ = [
    "SHARDING",
    "Grid",
    "KVCache",
    "Prompt",
    "Qwen3VL",
    "Qwen3VLConfig",
    "VisionConfig",
    "VisionFeatures",
    "VisionGrid",
    "VisionTower",
    "cut_prompts",
    "empty_cache",
    "entries",
    "ignored",
    "initial_positions",
    "merge_order",
    "mrope_axes",
    "mrope_positions",
    "pack_images",
    "pack_prompts",
    "vision_grid",
]
