"""Published tensor names of Qwen3-VL <-> parameter paths, and how parameters lie on the mesh."""

from spatialreward_jax.io.weights import Entry
from spatialreward_jax.models.qwen3_vl.config import Qwen3VLConfig
from spatialreward_jax.models.qwen_layers import DECODER_SHARDING, decoder_entries

VISION = "model.visual."
TEXT = "model.language_model."


def entries(config: Qwen3VLConfig) -> tuple[Entry, ...]:
    """The whole table, in both directions."""
    head = () if config.tied else (Entry("lm_head.weight", "head.table"),)
    return (*_vision(config), *decoder_entries(TEXT, config.text), *head)


def ignored(config: Qwen3VLConfig) -> tuple[str, ...]:
    """Tensors that may stand in a checkpoint without being parameters: the copy of a tied head."""
    return (r"lm_head\.weight$",) if config.tied else ()


def _vision(config):
    v = config.vision
    block, heads = f"{VISION}blocks.{{L}}.", {"S": 3, "N": v.heads}
    rows = [
        Entry(
            f"{VISION}patch_embed.proj.weight",
            "vision.patch.kernel",
            "D c t p q -> (c t p q) D",
            {"c": v.channels, "t": v.frames, "p": v.patch, "q": v.patch},
        ),
        Entry(f"{VISION}patch_embed.proj.bias", "vision.patch.bias"),
        Entry(f"{VISION}pos_embed.weight", "vision.positions.table"),
        Entry(f"{block}attn.qkv.weight", "vision.blocks.qkv.kernel", "(S N H) D -> D S N H", heads),
        Entry(f"{block}attn.qkv.bias", "vision.blocks.qkv.bias", "(S N H) -> S N H", heads),
        Entry(f"{block}attn.proj.weight", "vision.blocks.proj.kernel", "D (N H) -> N H D"),
        Entry(f"{block}attn.proj.bias", "vision.blocks.proj.bias"),
        *_norm(f"{block}norm1", "vision.blocks.attn_norm"),
        *_norm(f"{block}norm2", "vision.blocks.mlp_norm"),
        *_mlp(f"{block}mlp.", "vision.blocks."),
    ]
    mergers = {f"{VISION}merger.": "vision.merger."}
    if v.taps:
        mergers[f"{VISION}deepstack_merger_list.{{L}}."] = "vision.deep_mergers."
    for source, target in mergers.items():
        rows += [*_norm(f"{source}norm", f"{target}norm"), *_mlp(source, target)]
    return rows


def _norm(source, target):
    return Entry(f"{source}.weight", f"{target}.scale"), Entry(f"{source}.bias", f"{target}.bias")


def _mlp(source, target):
    for name, ours in (("linear_fc1", "up"), ("linear_fc2", "down")):
        yield Entry(f"{source}{name}.weight", f"{target}{ours}.kernel", "O I -> I O")
        yield Entry(f"{source}{name}.bias", f"{target}{ours}.bias")


SHARDING = (
    *DECODER_SHARDING,
    (r"^head\.table$", ("tensor", "fsdp")),  # V D
    (r"\.kernel_scale$", ()),  # of kernels quantised to int8: a number per output channel
    (r"^vision\.patch\.kernel$", (None, "fsdp")),  # patch C
    (r"^vision\.positions\.table$", (None, "fsdp")),  # positions C
    (r"^vision\.blocks\.qkv\.kernel$", (None, "fsdp", None, "tensor", None)),  # L C 3 N H
    (r"^vision\.blocks\.qkv\.bias$", (None, None, "tensor", None)),  # L 3 N H
    (r"^vision\.blocks\.proj\.kernel$", (None, "tensor", None, "fsdp")),  # L N H C
    (r"^vision\.blocks\.up\.kernel$", (None, "fsdp", "tensor")),  # L C F
    (r"^vision\.blocks\.down\.kernel$", (None, "tensor", "fsdp")),  # L F C
    (r"^vision\.merger\.up\.kernel$", ("fsdp", "tensor")),  # 4C 4C
    (r"^vision\.merger\.down\.kernel$", ("tensor", "fsdp")),  # 4C D
    (r"^vision\.deep_mergers\.up\.kernel$", (None, "fsdp", "tensor")),  # K 4C 4C
    (r"^vision\.deep_mergers\.down\.kernel$", (None, "tensor", "fsdp")),  # K 4C D
    (r"^vision\.(patch|blocks\.(proj|up|down)|(merger|deep_mergers)\.(up|down))\.bias$", ()),
    (r"^vision\.(blocks\.(attn|mlp)_norm|(merger|deep_mergers)\.norm)\.(scale|bias)$", ()),
)
"""Path regex -> mesh axes, exactly one row per parameter."""
