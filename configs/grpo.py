"""Flow-GRPO of the OmniGen2 editor with a reward model as judge.

    python -m spatialreward_jax.train --config=configs/grpo.py --workdir=DIR
    python -m spatialreward_jax.train --config=configs/grpo.py:omnigen2 --workdir=DIR \\
        --config.editor=OMNIGEN2_FOLDER --config.judge.model=SPATIALREWARD_FOLDER --config.data.path=rl_abs_9tasks.jsonl

Presets: `embedded` (default; small nets that come with the package, minutes on two CPU cores), `laptop` (for longer,
with guards and a falling learning rate) and `omnigen2` (published sizes and the published recipe; paths by flags). Any
field can be set on the command line: --config.lr=1e-4.
"""

from ml_collections import ConfigDict

KEPT_TASKS = (
    "background", "color_alter", "material_alter", "motion_change", "style",
    "subject_add", "subject_remove", "subject_replace", "tone_transfer",
)  # fmt: skip

EDITWORLD = {
    "steps": 20,
    "prompts": 8,
    "group": 8,
    "updates_per_phase": 8,  # one prompt each: so few edits teach more in more, smaller steps
    "checkpoint_every": 8,
    "eval_every": 0,
    "editor": "embedded",
    "dtype": "float32",
    "sampler": {"steps": 10, "text_guidance": 1.0, "image_guidance": 1.0},  # unguided: RL learns what guidance gives
    "kl_weight": 0.0,
    "lora": {"rank": 16, "alpha": 32.0},
    "lr": 2e-3,
    # What so small a judge says of an editor's blobs differs from draw to draw; the mean of four is nearer the truth.
    "judge": {
        **{"model": "embedded", "max_new_tokens": 128, "constrained": True, "score_mode": "expected"},
        **{"temperature": 1.0, "ensemble": 4},
    },
    "rewards": {"judge": 1.0, "guards": 0.0, "oracle": 0.0},  # the truth is logged beside it
    "data": {"path": "editworld", "max_pixels": 64 * 64, "tasks": (), "max_text_tokens": 128, "threads": 2},
    "eval": {"prompts": 4, "heldout": 256},
}

PRESETS = {  # what runs where; everything else below is the recipe
    "embedded": EDITWORLD,
    # At a constant rate nothing is gained after 20 phases (tests/benchmarks/RESULTS.md).
    "laptop": EDITWORLD
    | {"steps": 180, "lr": 1e-3, "schedule": "cosine", "eval_every": 60, "checkpoint_every": 20}
    | {"rewards": {"judge": 1.0, "guards": 0.5, "oracle": 0.0}},
    "omnigen2": {
        "micro": (3, 3),  # fits slices of 16 GB chips too, see spatialreward_jax/plan.py
        "judge": {"batch": 64},  # split over what `mesh.serving_mesh` leaves to rows
    },
}


def get_config(preset="embedded"):
    """The config of a preset."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    config = ConfigDict()
    config.preset = preset
    config.task = "flow_grpo"
    config.seed = 2233

    # ---- the run: one step is one phase (sample, score, `updates_per_phase` optimiser updates)
    config.steps = 500  # x 2 updates = the framework's 1000 optimiser steps
    config.checkpoint_every = 25  # phases; the framework's 50 optimiser steps
    config.keep_checkpoints = 3
    config.eval_every = 25
    config.resume = ""  # workdir of another run to go on from
    config.keep_edits = False  # write every scored edit and its rewards to WORKDIR/edits

    # ---- models: folders in the layout of the published repositories
    config.editor = ""  # OmniGen2 layout
    config.adapter = ""  # LoRA adapter to start from, whose rank, alpha and targets then hold; "": a new one
    config.adapter_alpha = 0.0  # of an adapter whose file does not carry it; 0: it does
    config.dtype = "bfloat16"  # of editor and text tower; the adapter, log-probabilities and the optimiser are float32
    config.judge = ConfigDict()
    config.judge.model = ""
    config.judge.adapter = ""  # PEFT folder, or "" for none
    config.judge.templates = ""  # imported official wording, or "" for the project's own
    config.judge.pixels = "rl"  # pixel policy: eval, server, sft, rl
    config.judge.parsing = "strict"  # strict, server, bench
    config.judge.aggregate = "weighted"  # weighted, min, mean
    config.judge.dtype = ""  # "" is bfloat16, on a CPU float32
    config.judge.quantize = ""  # "int8": weight-only, for chips that do not hold the judge beside the editor
    config.judge.max_new_tokens = 512
    config.judge.constrained = False  # readable answers only, by a grammar; False is the official behaviour
    config.judge.temperature = 0.0  # of its answers; 0 is greedy, the official setting
    config.judge.ensemble = 1  # answers drawn for each question and averaged; above 1 needs a temperature
    config.judge.score_mode = "answered"  # or "expected": the mean of each score's distribution; needs constrained
    config.judge.batch = 16  # answers decoded at a time
    # weights; a backend of weight 0 is logged, a judge of weight 0 in evaluations alone, or where guards count
    config.rewards = ConfigDict({"judge": 1.0, "guards": 0.0})

    # ---- data
    config.data = ConfigDict()
    config.data.path = ""  # .jsonl in the RL layout, a folder (see spatialreward_jax/data/requests.py), or "editworld"
    config.data.tasks = KEPT_TASKS  # () keeps all
    config.data.check = "decode"  # decode every image before the start, or "header"
    config.data.max_pixels = 512 * 512
    config.data.max_side = 2048
    config.data.default_size = (512, 512)  # (height, width) of edits with several sources that name none
    config.data.max_text_tokens = 888
    config.data.threads = 4

    # ---- sampling
    config.prompts = 48
    config.group = 12
    config.sampler = ConfigDict()
    config.sampler.steps = 20
    config.sampler.base = 168  # of the time shift
    config.sampler.text_guidance = 4.0
    config.sampler.image_guidance = 2.0
    config.sampler.guidance_range = (0.0, 0.6)
    config.sampler.sigma = 0.7  # noise scale; 0 is the ODE
    config.sampler.negative = "default"  # negative prompt: default, empty, long
    config.sample_prompts = 0  # prompts per rollout program, for memory; 0 is all

    # ---- update
    config.recipe = "parity"  # parity: a fraction of all steps; window: `window_steps` neighbouring ones are stochastic
    config.train_fraction = 0.6  # parity: 12 of 20 steps
    config.window_steps = 2
    config.window_span = (0.0, 0.6)  # window: lies within this part of the steps
    config.updates_per_phase = 2
    config.clip = (1e-4, 5e-4)
    config.advantage_clip = 5.0
    config.advantage_std = "group"  # group, or batch (the whole phase)
    config.kl_weight = 0.04
    config.kl_form = "reference"  # reference, or sample
    config.reweight_by_sigma = True
    config.guidance_in_training = True
    config.micro = (1, 1)  # micro-batches over an update's prompts and over the group, for memory
    config.lora = ConfigDict({"rank": 32, "alpha": 64.0})  # rank 0 trains all parameters
    config.lora.targets = ("to_q", "to_k", "to_v", "to_out.0")
    config.lr = 4e-4
    config.schedule = "constant"  # or cosine: `lr` falls to 0 at the last update
    config.betas = (0.9, 0.95)
    config.weight_decay = 0.01
    config.max_grad_norm = 1.0

    # ---- pictures and rewards at a fixed seed, with the deterministic sampler; prompts 0: none
    # heldout: EditWorld edits whose truth is compared before and after the run; 0: none
    config.eval = ConfigDict({"prompts": 4, "edits": 4, "heldout": 0})

    config.update(PRESETS[preset])
    return config
