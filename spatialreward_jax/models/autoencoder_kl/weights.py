"""Checkpoint names of the autoencoder, and how its parameters lie on a mesh."""

from spatialreward_jax.io.weights import Entry
from spatialreward_jax.models.autoencoder_kl.config import AutoencoderConfig

STEM = "diffusion_pytorch_model"
"""File stem of the weights in diffusers folders."""

SHARDING = ((r".", ()),)
"""Replicated: 84 million parameters in all; images are split over the batch axes."""


def _affine(source: str, target: str, kind: str = "scale", layout: str | None = None) -> list[Entry]:
    return [Entry(f"{source}.weight", f"{target}.{kind}", layout), Entry(f"{source}.bias", f"{target}.bias")]


def _conv(source: str, target: str) -> list[Entry]:
    return _affine(source, target, "kernel", "O I p q -> p q I O")


def _res(source: str, target: str, shortcut: bool = False) -> list[Entry]:
    rows = _affine(f"{source}.norm1", f"{target}.norm1") + _affine(f"{source}.norm2", f"{target}.norm2")
    rows += _conv(f"{source}.conv1", f"{target}.conv1") + _conv(f"{source}.conv2", f"{target}.conv2")
    return rows + (_conv(f"{source}.conv_shortcut", f"{target}.shortcut") if shortcut else [])


def _mid(side: str) -> list[Entry]:
    source, target = f"{side}.mid_block", f"{side}.mid"
    rows = _res(f"{source}.resnets.0", f"{target}.res1") + _res(f"{source}.resnets.1", f"{target}.res2")
    attention = f"{source}.attentions.0"
    rows += _affine(f"{attention}.group_norm", f"{target}.attn.norm")
    for name, ours in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out")):
        rows += _affine(f"{attention}.{name}", f"{target}.attn.{ours}", "kernel", "O I -> I O")
    return rows


def _side(side: str, widths: tuple[int, ...], blocks: int) -> list[Entry]:
    levels, resample = ("down_blocks", "downsamplers") if side == "encoder" else ("up_blocks", "upsamplers")
    rows = _conv(f"{side}.conv_in", f"{side}.conv_in") + _mid(side)
    for level, (before, width) in enumerate(zip((widths[0], *widths), widths)):
        source, target = f"{side}.{levels}.{level}", f"{side}.levels.{level}"
        for block in range(blocks):
            shortcut = block == 0 and before != width
            rows += _res(f"{source}.resnets.{block}", f"{target}.blocks.{block}", shortcut)
        if level < len(widths) - 1:
            rows += _conv(f"{source}.{resample}.0.conv", f"{target}.conv")
    return rows + _affine(f"{side}.conv_norm_out", f"{side}.norm_out") + _conv(f"{side}.conv_out", f"{side}.conv_out")


def entries(config: AutoencoderConfig) -> tuple[Entry, ...]:
    """Every tensor of the checkpoint <-> every parameter."""
    widths, blocks = config.block_out_channels, config.layers_per_block
    rows = _side("encoder", widths, blocks) + _side("decoder", widths[::-1], blocks + 1)
    rows += _conv("quant_conv", "quant_conv") if config.use_quant_conv else []
    rows += _conv("post_quant_conv", "post_quant_conv") if config.use_post_quant_conv else []
    return tuple(rows)
