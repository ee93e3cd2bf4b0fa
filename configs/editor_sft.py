"""Supervised training of the OmniGen2 editor.

The embedded editor from scratch on EditWorld, first its autoencoder (hours on two CPU cores in all, minutes on an
accelerator); without --config.editor the second command takes the shipped one, which the first made:

    python -m spatialreward_jax.train --config=configs/editor_sft.py:vae --workdir=DIR/vae
    python -m spatialreward_jax.train --config=configs/editor_sft.py --workdir=DIR/sft --config.editor=DIR/vae/editor

Published sizes, all parameters or LoRA, on rows of the official training layout (jsonl: `instruction`, `input_images`,
`output_image`):

    python -m spatialreward_jax.train --config=configs/editor_sft.py:published --workdir=DIR --mesh=-1,8,1 \\
        --config.editor=OMNIGEN2_FOLDER --config.data.path=edits.jsonl
    python -m spatialreward_jax.train --config=configs/editor_sft.py:lora --workdir=DIR \\
        --config.editor=OMNIGEN2_FOLDER --config.data.path=edits.jsonl

Presets: `embedded` (default), `vae` (its first stage), `published` (VectorSpaceLab/OmniGen2, options/ft.yml) and `lora`
(options/ft_lora.yml). Any field can be set on the command line.
"""

from ml_collections import ConfigDict

EDITWORLD = {
    "editor": "embedded",
    "dtype": "float32",
    "batch": 32,
    "schedule": "cosine",
    "warmup": 100,
    "weight_decay": 0.01,
    "data": {"path": "editworld", "input_pixels": (96 * 96,), "output_pixels": 96 * 96, "max_text_tokens": 128},
    "eval": {"batches": 4, "pictures": 8, "sampler_steps": 10, "text_guidance": 2.0, "image_guidance": 1.5},
}

PRESETS = {  # what runs where; everything else below is the official recipe
    "embedded": EDITWORLD
    | {
        "scratch": ("transformer", "mllm"),
        "train": ("transformer", "text"),
        "steps": 3000,
        "batch": 16,
        "lr": 1e-3,
        "checkpoint_every": 300,
        "eval_every": 900,
        "data": EDITWORLD["data"] | {"drop_text": 0.15, "dropped": ("default", "empty", "long")},
    },
    "vae": EDITWORLD
    | {
        "task": "editor_vae",
        "scratch": ("transformer", "vae", "mllm"),
        "steps": 1500,
        "batch": 8,
        "lr": 1e-3,
        "checkpoint_every": 250,
        "eval_every": 250,
    },
    "published": {},
    "lora": {"lora": {"rank": 8, "alpha": 8.0}},
}


def get_config(preset="embedded"):
    """The config of a preset."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    config = ConfigDict()
    config.preset = preset
    config.task = "editor_sft"  # editor_vae trains the autoencoder alone
    config.seed = 2233

    # ---- the run: one step is one optimiser update
    config.steps = 4000
    config.checkpoint_every = 500
    config.keep_checkpoints = 3
    config.eval_every = 500
    config.resume = ""  # workdir of another run to go on from

    # ---- model: a folder in the OmniGen2 layout
    config.editor = ""
    config.adapter = ""  # LoRA adapter to start from, whose rank, alpha and targets then hold; "": a new one
    config.adapter_alpha = 0.0  # of an adapter whose file does not carry it; 0: it does
    config.scratch = ()  # parts drawn from the seed instead of read: transformer, vae, mllm
    config.train = ("transformer",)  # "text" too trains the text tower
    config.dtype = "bfloat16"  # of the computation and of what is not trained; trained parameters are float32
    config.export_dtype = "bfloat16"
    config.lora = ConfigDict({"rank": 0, "alpha": 0.0})  # rank 0 trains all parameters
    config.lora.targets = ("to_q", "to_k", "to_v", "to_out.0")
    config.kl_weight = 1e-3  # of the autoencoder's training

    # ---- data
    config.data = ConfigDict()
    config.data.path = ""  # .jsonl with output_image (see spatialreward_jax/data/requests.py), or "editworld"
    config.data.heldout = ""  # likewise, for the evaluations; "" is none (EditWorld: its validation split)
    config.data.rows = 8192  # edits drawn from EditWorld
    config.data.check = "header"  # or "decode" every image before the start
    config.data.input_pixels = (1024**2, 1024**2, 768**2, 512**2)  # most pixels of a source, by their number
    config.data.output_pixels = 1024**2
    config.data.max_side = 2048
    config.data.max_text_tokens = 888
    config.data.drop_text = 1e-4  # share of edits trained without their text
    config.data.drop_references = 0.5  # of those, share trained without references too
    config.data.dropped = ("dropped",)  # turns that stand for no text: dropped, default, empty, long
    config.data.threads = 4

    # ---- update
    config.batch = 16
    config.accumulate = 1  # micro-batches of an update
    config.lr = 8e-7
    config.schedule = "constant"  # or cosine
    config.warmup = 500  # steps; below 1: share of all steps
    config.betas = (0.9, 0.95)
    config.weight_decay = 0.01
    config.max_grad_norm = 1.0

    # ---- evaluation on held-out rows: loss over `batches`, `pictures` edits by the deterministic sampler
    config.eval = ConfigDict({"batches": 4, "pictures": 4, "sampler_steps": 30, "negative": "default"})
    config.eval.text_guidance = 4.0
    config.eval.image_guidance = 2.0
    config.eval.base = 168

    config.update(PRESETS[preset])
    return config
