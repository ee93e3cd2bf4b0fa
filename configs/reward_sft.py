"""Supervised training of the judge.

The embedded judge from scratch on EditWorld: first its eyes (every shape of a picture), then every change between two
and the judge's own questions, then its verdicts, then with the edits of the editor that it is to reward, which an RL
run under the oracle kept:

    python -m spatialreward_jax.train --config=configs/reward_sft.py:perception --workdir=DIR/perception
    python -m spatialreward_jax.train --config=configs/reward_sft.py --workdir=DIR/pairs \\
        --config.judge=DIR/perception/judge
    python -m spatialreward_jax.train --config=configs/reward_sft.py:verdicts --workdir=DIR/verdicts \\
        --config.judge=DIR/pairs/judge
    python -m spatialreward_jax.train --config=configs/grpo.py --workdir=DIR/edits --config.keep_edits=True \\
        --config.seed=11 --config.steps=64 --config.rewards.judge=0 --config.rewards.oracle=1 \\
        --config.eval.heldout=0 --config.eval.prompts=0
    python -m spatialreward_jax.train --config=configs/reward_sft.py:own_edits --workdir=DIR/own \\
        --config.judge=DIR/verdicts/judge "--config.data.editworld.own_edits=('DIR/edits',)"

Last, twice, with the edits of runs that it rewarded itself (four and three quarter hours of two CPU cores in all):

    python -m spatialreward_jax.train --config=configs/grpo.py --workdir=DIR/edits12 --config.keep_edits=True \\
        --config.seed=12 --config.steps=40 --config.judge.model=DIR/own/judge \\
        --config.eval.heldout=0 --config.eval.prompts=0
    python -m spatialreward_jax.train --config=configs/reward_sft.py:judged_edits_brief --workdir=DIR/brief \\
        --config.judge=DIR/own/judge "--config.data.editworld.own_edits=('DIR/edits', 'DIR/edits12')"
    for seed in 13 14 15 16; do
        python -m spatialreward_jax.train --config=configs/grpo.py --workdir=DIR/edits$seed --config.keep_edits=True \\
            --config.seed=$seed --config.steps=32 --config.judge.model=DIR/brief/judge \\
            --config.eval.heldout=0 --config.eval.prompts=0
    done
    python -m spatialreward_jax.train --config=configs/reward_sft.py:judged_edits --workdir=DIR/judged \\
        --config.judge=DIR/brief/judge "--config.data.editworld.own_edits=('DIR/edits', 'DIR/edits12', \\
        'DIR/edits13', 'DIR/edits14', 'DIR/edits15', 'DIR/edits16')"

Published sizes with LoRA, on chats with images (jsonl with `messages` and `images`; the layout is described in
spatialreward_jax/data/chat_rows.py):

    python -m spatialreward_jax.train --config=configs/reward_sft.py:published --workdir=DIR --mesh=-1,8,1 \\
        --config.judge=QWEN3_VL_FOLDER --config.data.path=train.jsonl --config.data.heldout=validation.jsonl \\
        --config.steps=TEN_EPOCHS

Presets: `embedded` (default) and the other stages `perception`, `verdicts`, `own_edits`, `judged_edits_brief` and
`judged_edits`; and `published` (arXiv 2602.07458: rank 32, alpha 64, cosine from 1e-4). Any field can be set on the
command line: --config.lora.rank=0 trains all parameters.
"""

from ml_collections import ConfigDict

EDITWORLD = {
    "judge": "embedded",
    "dtype": "float32",
    "templates": "compact",
    "pixels": "eval",
    "max_new_tokens": 128,
    "steps": 1500,
    "batch": 64,
    "accumulate": 1,
    "lr": 1e-3,
    "muon_lr": 1e-2,
    "warmup": 20,
    "betas": (0.9, 0.95),
    "weight_decay": 0.01,
    "lora": {"rank": 0},
    "data": {"path": "editworld"},
    "checkpoint_every": 250,
    "eval_every": 500,
}

# Eyes learn from large batches of one picture each: in small ones, or with pairs among them, they stay at the prior for
# thousands of updates. Muon takes them further in 500 updates than AdamW did in 2600: to the kinds of shapes.
PERCEPTION = {"mixture": {"grounding": 1.0, "changes": 0.0, "consistency": 0.0, "quality": 0.0}, "sides": (64,)}

# By then boxes are good; whether what was done is what was asked is learnt where they often differ, in small pictures.
VERDICTS = {
    "edits": 60000,
    "mixture": {"grounding": 0.02, "changes": 0.03, "consistency": 0.88, "quality": 0.07},
    "failures": {
        **{"perfect": 1.2, "unchanged": 0.4, "wrong_object": 3.0, "wrong_attribute": 2.0, "partial": 0.7},
        **{"over_edit": 0.8, "wrong_place": 1.5, "artifact": 0.6, "mixture": 1.2},
    },
}

# A judge that is to reward an editor must have seen how that one fails: edits that an RL run kept, told by the oracle.
OWN = {
    "mixture": {
        **{"grounding": 0.03, "changes": 0.05, "consistency": 0.64, "quality": 0.06},
        **{"own_consistency": 0.18, "own_quality": 0.04},
    },
    "failures": VERDICTS["failures"],
    "edits": 60000,
}

# An editor that follows a judge comes to err where that judge is wrong, which no edit of another run shows.
JUDGED_BRIEF = OWN | {
    "mixture": {
        **{"grounding": 0.02, "changes": 0.02, "consistency": 0.46, "quality": 0.06},
        **{"own_consistency": 0.38, "own_quality": 0.06},
    },
}
JUDGED = OWN | {
    "mixture": {
        **{"grounding": 0.02, "changes": 0.02, "consistency": 0.4, "quality": 0.04},
        **{"own_consistency": 0.46, "own_quality": 0.06},
    },
}

LATER = EDITWORLD | {"lr": 9e-4, "muon_lr": 9e-3, "warmup": 10}

PRESETS = {  # what runs where; everything else below is the published recipe
    "embedded": EDITWORLD,
    "perception": EDITWORLD
    | {
        "scratch": True,
        "steps": 800,
        "data": EDITWORLD["data"] | {"editworld": PERCEPTION},
        "eval": {"edits": 0},
    },
    "verdicts": LATER | {"steps": 1250, "data": EDITWORLD["data"] | {"editworld": VERDICTS}},
    "own_edits": LATER | {"steps": 3400, "data": EDITWORLD["data"] | {"editworld": OWN}},
    "judged_edits_brief": LATER
    | {"steps": 480, "lr": 5e-4, "muon_lr": 5e-3, "data": EDITWORLD["data"] | {"editworld": JUDGED_BRIEF}},
    "judged_edits": LATER | {"steps": 1300, "data": EDITWORLD["data"] | {"editworld": JUDGED}},
    "published": {},
}


def get_config(preset="embedded"):
    """The config of a preset."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    config = ConfigDict()
    config.preset = preset
    config.task = "reward_sft"
    config.seed = 42

    # ---- the run: one step is one optimiser update
    config.steps = 20000  # 260K samples x 10 epochs over 8 devices
    config.checkpoint_every = 500
    config.keep_checkpoints = 3
    config.eval_every = 1000
    config.resume = ""  # workdir of another run to go on from

    # ---- model: a folder in the Qwen3-VL layout
    config.judge = ""
    config.adapter = ""  # PEFT adapter to start from, whose rank, alpha and targets then hold; "": a new one
    config.scratch = False  # draw the weights from the seed instead of reading them
    config.dtype = "bfloat16"  # of the computation and of what is not trained; trained parameters are float32
    config.export_dtype = "bfloat16"
    config.lora = ConfigDict({"rank": 32, "alpha": 64.0, "dropout": 0.05})  # rank 0 trains all parameters
    config.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    # ---- data: a batch holds rows of one length bucket
    config.data = ConfigDict()
    config.data.path = ""  # .jsonl of chats, or "editworld"
    config.data.heldout = ""  # likewise, for the evaluations; "" is none (EditWorld: its validation split)
    config.data.max_tokens = 8192  # of a chat of a .jsonl, images included; longer ones are refused
    config.data.threads = 4
    config.pixels = "sft"  # pixel policy: eval, server, sft, rl
    config.templates = "default"  # wording of EditWorld's questions, stored with the judge
    config.max_new_tokens = 512  # of an answer, stored with the judge
    config.data.editworld = ConfigDict({"edits": 8192, "candidates": 2})  # candidates: of each edit
    config.data.editworld.sides = (64, 64, 64, 96)  # pixels of the pictures, each as often as it stands here
    # shares of the lessons: every shape of a picture, every change between two, the judge's two questions; and these
    # two about an editor's own edits
    config.data.editworld.mixture = ConfigDict({"grounding": 0.15, "changes": 0.3, "consistency": 0.35, "quality": 0.2})
    config.data.editworld.mixture.update({"own_consistency": 0.0, "own_quality": 0.0})
    config.data.editworld.own_edits = ()  # workdirs of RL runs on EditWorld with keep_edits
    # weights of what is wrong with the candidates of the training split
    failures = ("perfect", "unchanged", "wrong_object", "wrong_attribute", "partial", "over_edit", "wrong_place")
    config.data.editworld.failures = ConfigDict(dict.fromkeys((*failures, "artifact", "mixture"), 1.0))
    config.data.editworld.boxes = True  # answers name regions
    config.data.editworld.cited = True  # and the reasoning cites them

    # ---- update
    config.batch = 64  # 8 devices x 8
    config.accumulate = 2  # micro-batches of an update
    config.lr = 1e-4
    config.muon_lr = 0.0  # above 0: kernels train by Muon at this peak rate, the rest by AdamW at `lr`
    config.schedule = "cosine"  # or constant
    config.warmup = 0.1  # below 1: share of all steps; else steps
    config.betas = (0.9, 0.999)
    config.weight_decay = 0.0
    config.max_grad_norm = 1.0

    # ---- evaluation: `batches` held-out batches of each kind; EditWorld: decodes `edits` pairs, `grounding` pictures
    config.eval = ConfigDict({"batches": 2, "edits": 32, "grounding": 32})

    config.update(PRESETS[preset])
    return config
