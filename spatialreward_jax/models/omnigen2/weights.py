"""Checkpoint names of the OmniGen2 transformer, and how its parameters lie on a mesh."""

from spatialreward_jax.io.weights import Entry

STEM = "diffusion_pytorch_model"
"""File stem of the weights in diffusers folders."""

_OUT_IN = "O I -> I O"


def _linear(source: str, target: str, layout: str = _OUT_IN, bias: str | None = None) -> tuple[Entry, ...]:
    return (Entry(f"{source}.weight", f"{target}.kernel", layout), Entry(f"{source}.bias", f"{target}.bias", bias))


def _block(source: str, target: str, *, modulated: bool) -> tuple[Entry, ...]:
    norm1 = "norm1.norm" if modulated else "norm1"
    rows = [
        ("attn.to_q.weight", "attn.q.kernel", "(N H) D -> D N H"),
        ("attn.to_k.weight", "attn.k.kernel", "(K H) D -> D K H"),
        ("attn.to_v.weight", "attn.v.kernel", "(K H) D -> D K H"),
        ("attn.to_out.0.weight", "attn.out.kernel", "D (N H) -> N H D"),
        ("attn.norm_q.weight", "attn.q_norm.scale", None),
        ("attn.norm_k.weight", "attn.k_norm.scale", None),
        ("feed_forward.linear_1.weight", "mlp.gate.kernel", _OUT_IN),
        ("feed_forward.linear_3.weight", "mlp.up.kernel", _OUT_IN),
        ("feed_forward.linear_2.weight", "mlp.down.kernel", _OUT_IN),
        (f"{norm1}.weight", "norm1.scale", None),
        ("norm2.weight", "norm2.scale", None),
        ("ffn_norm1.weight", "mlp_norm1.scale", None),
        ("ffn_norm2.weight", "mlp_norm2.scale", None),
    ]
    entries = [Entry(f"{source}.{{L}}.{s}", f"{target}.{t}", layout) for s, t, layout in rows]
    if modulated:
        entries += _linear(f"{source}.{{L}}.norm1.linear", f"{target}.modulation", "(m D) T -> T m D", "(m D) -> m D")
    return tuple(entries)


ENTRIES = (
    Entry("image_index_embedding", "index_embedding"),
    *_linear("x_embedder", "x_embedder"),
    *_linear("ref_image_patch_embedder", "ref_embedder"),
    *_linear("time_caption_embed.timestep_embedder.linear_1", "time.linear_1"),
    *_linear("time_caption_embed.timestep_embedder.linear_2", "time.linear_2"),
    Entry("time_caption_embed.caption_embedder.0.weight", "caption.norm.scale"),
    *_linear("time_caption_embed.caption_embedder.1", "caption.linear"),
    *_block("context_refiner", "context_refiner", modulated=False),
    *_block("noise_refiner", "noise_refiner", modulated=True),
    *_block("ref_image_refiner", "ref_refiner", modulated=True),
    *_block("layers", "layers", modulated=True),
    *_linear("norm_out.linear_1", "head.linear_1"),
    *_linear("norm_out.linear_2", "head.linear_2"),
)
"""Every tensor of the checkpoint <-> every parameter. `(m D)` splits the modulation into its four vectors."""

SHARDING = (
    # The published net has 21 heads over 7 key heads of 120 channels: neither 21 nor 7 divides over 2 or 4 devices,
    # and splitting the 120 channels would cost an all-reduce of the scores. So no weight of the attention is split
    # over `tensor`; the activations are, over tokens (`blocks.py`), which needs no divisor of the heads: each device
    # projects its own tokens and attends from them to the gathered keys and values (7 heads, a third of the queries'
    # bytes). The MLP, 72% of the multiplications, is split over its inner width (10240). The model width (2520 = 8 *
    # 315) goes to `fsdp`.
    (r"attn\.[qkv]\.kernel$", (None, "fsdp", None, None)),  # L D N H
    (r"attn\.out\.kernel$", (None, None, None, "fsdp")),  # L N H D
    (r"mlp\.(gate|up)\.kernel$", (None, "fsdp", "tensor")),  # L D F
    (r"mlp\.down\.kernel$", (None, "tensor", "fsdp")),  # L F D
    # A tenth of all weights for one vector per sample: split as far as it goes, the partial sums are tiny.
    (r"modulation\.kernel$", (None, "tensor", None, "fsdp")),  # L time 4 D
    (r"(x_embedder|ref_embedder|caption\.linear|time\.linear_\d|head\.linear_1)\.kernel$", (None, "fsdp")),  # in, out
    (r"head\.linear_2\.kernel$", ("fsdp",)),  # D C
    (r"(\.scale|\.bias|^index_embedding)$", ()),
    (r"\.lora\.", ()),  # 0.5% of the weights: replicated, so that gradients and the optimizer need no gathering
)
