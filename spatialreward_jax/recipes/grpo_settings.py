"""The config of `flow_grpo` as checked, frozen settings, and its reward."""

import dataclasses
import pathlib

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from spatialreward_jax import processes
from spatialreward_jax.data.editworld import write_requests
from spatialreward_jax.data.editworld.oracle import Oracle
from spatialreward_jax.data.pipeline import EditorSize
from spatialreward_jax.editor.prompts import MAX_TOKENS, negative_turn
from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import Guidance, SDEWindow, StepPlan, full_plan, guided_steps, window_plan
from spatialreward_jax.io.peft import LoRASpec
from spatialreward_jax.recipes.checks import check_adapter, check_dtype
from spatialreward_jax.recipes.optimizing import check_optimizer, learning_rate
from spatialreward_jax.reward.backends import Divided, GuardsBackend, JudgeBackend, WeightedReward
from spatialreward_jax.reward.batching import Limits
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.vlm import Decoding
from spatialreward_jax.rl import KL_FORMS, STDS, Objective

RECIPES = ("parity", "window")
EDITWORLD_REQUESTS = 256
"""Edit requests that are drawn for the data set "editworld"."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields of `configs/grpo.py`; those of `data`, `sampler`, `lora` and `eval` stand flat (see `from_config`)."""

    editor: str
    adapter: str
    adapter_alpha: float
    dtype: str
    seed: int
    steps: int
    prompts: int
    group: int
    sample_prompts: int
    recipe: str
    train_fraction: float
    window_steps: int
    window_span: tuple[float, float]
    updates_per_phase: int
    clip: tuple[float, float]
    advantage_clip: float
    advantage_std: str
    kl_weight: float
    kl_form: str
    reweight_by_sigma: bool
    guidance_in_training: bool
    micro: tuple[int, int]
    lr: float
    schedule: str
    betas: tuple[float, float]
    weight_decay: float
    max_grad_norm: float
    keep_edits: bool
    data: str
    heldout: str
    check: str
    tasks: tuple[str, ...]
    threads: int
    size: EditorSize
    max_text_tokens: int
    sampler_steps: int
    base: int
    sigma: float
    guidance: Guidance
    negative: str
    lora: LoRASpec | None
    eval_prompts: int
    eval_edits: int

    @classmethod
    def from_config(cls, config: ConfigDict, workdir: pathlib.Path) -> "Settings":
        """Reads and checks a config; only then EditWorld's pictures are written to `workdir/data`.

        Raises:
          InputError: a value that cannot be.
        """
        data, sampler, lora = config.data, config.sampler, config.lora
        names = [f.name for f in dataclasses.fields(cls)]
        settings = cls(
            **{name: config[name] for name in names[: names.index("data")]},
            data=data.path,
            heldout="",
            check=data.check,
            tasks=tuple(data.tasks),
            threads=data.threads,
            size=EditorSize(data.max_pixels, data.max_side, default=tuple(data.default_size)),
            max_text_tokens=data.max_text_tokens,
            sampler_steps=sampler.steps,
            base=sampler.base,
            sigma=sampler.sigma,
            guidance=Guidance(sampler.text_guidance, sampler.image_guidance, tuple(sampler.guidance_range)),
            negative=sampler.negative,
            lora=LoRASpec(lora.rank, lora.alpha, tuple(lora.targets)) if lora.rank else None,
            eval_prompts=config.eval.prompts,
            eval_edits=config.eval.edits,
        )
        settings._check()
        _check_data(config)
        if data.path == "editworld":
            settings = dataclasses.replace(
                settings, data=_written(workdir / "data", "train", EDITWORLD_REQUESTS, config)
            )
        if config.eval.heldout:
            heldout = _written(workdir / "heldout", "validation", config.eval.heldout, config)
            settings = dataclasses.replace(settings, heldout=heldout)
        return settings

    def _check(self) -> None:
        if not self.editor:
            raise InputError("no editor: give --config.editor=FOLDER in the OmniGen2 layout, or 'embedded'")
        if self.dtype:
            check_dtype("dtype", self.dtype)
        check_adapter(self.adapter, self.lora)
        if self.group < 2:
            raise InputError(f"group={self.group}: advantages compare the edits of a group, use at least 2")
        self._check_counts()
        if self.updates_per_phase < 1 or self.prompts % self.updates_per_phase:
            raise InputError(f"prompts={self.prompts} is no multiple of updates_per_phase={self.updates_per_phase}")
        if self.sample_prompts and self.prompts % self.sample_prompts:
            raise InputError(f"prompts={self.prompts} is no multiple of sample_prompts={self.sample_prompts}")
        if len(self.micro) != 2:
            raise InputError(
                f"micro={tuple(self.micro)}: give two numbers, parts of an update's prompts and of the group"
            )
        counts = (self.prompts // self.updates_per_phase, self.group)
        for count, parts, name in zip(counts, self.micro, ("prompts", "group")):
            if parts < 1 or count % parts:
                raise InputError(f"micro={self.micro}: {count} {name} of an update do not divide into {parts} parts")
        if self.advantage_std not in STDS:
            raise InputError(f"advantage_std={self.advantage_std!r} is unknown; choose one of {', '.join(STDS)}")
        if self.kl_form not in KL_FORMS:
            raise InputError(f"kl_form={self.kl_form!r} is unknown; choose one of {', '.join(KL_FORMS)}")
        check_optimizer(self.lr, self.schedule, self.betas, self.weight_decay, self.max_grad_norm)
        if not self.advantage_clip > 0 or not self.kl_weight >= 0:
            raise InputError(
                f"advantage_clip={self.advantage_clip} must be above 0, kl_weight={self.kl_weight} at least 0"
            )
        if self.recipe not in RECIPES:
            raise InputError(f"recipe {self.recipe!r} is unknown; choose one of {', '.join(RECIPES)}")
        if self.sigma <= 0:
            raise InputError(f"sampler.sigma={self.sigma}: RL needs stochastic steps, use a positive coefficient")
        if not 1 <= self.max_text_tokens <= MAX_TOKENS:
            raise InputError(f"max_text_tokens={self.max_text_tokens}: use 1 to {MAX_TOKENS}")
        if len(self.clip) != 2 or not 0 <= self.clip[0] < 1 or self.clip[1] < 0:
            raise InputError(f"clip={self.clip}: give (below, above), each at least 0 and the first below 1")
        negative_turn(self.negative)
        self.plan(np.random.default_rng(0))

    def _check_counts(self) -> None:
        """Raises InputError for a number that is too small to count anything."""
        for field, value, fewest in (
            ("prompts", self.prompts, 1),
            ("sample_prompts", self.sample_prompts, 0),
            ("data.threads", self.threads, 1),
            ("sampler.steps", self.sampler_steps, 1),
            ("sampler.base", self.base, 1),
            ("eval.prompts", self.eval_prompts, 0),
            ("eval.edits", self.eval_edits, 1),
        ):
            if value < fewest:
                raise InputError(f"{field}={value}: use at least {fewest}")

    def plan(self, rng: np.random.Generator) -> StepPlan:
        """Which steps of a phase are stochastic, and which are trained."""
        if self.recipe == "parity":
            return full_plan(rng, self.sampler_steps, self.sigma, self.train_fraction)
        low, high = (round(x * self.sampler_steps) for x in self.window_span)
        window = SDEWindow(self.window_steps, (low, high))
        guided = guided_steps(self.sampler_steps, self.guidance if self.guidance_in_training else None)
        return window_plan(rng, self.sigma, window, groups=self.prompts, guided=guided)

    def learning_rate(self) -> optax.Schedule:
        """The rate at each optimiser update of the run."""
        return learning_rate(self.lr, self.schedule, self.steps * self.updates_per_phase)

    def objective(self) -> Objective:
        """What an update minimises."""
        guidance = self.guidance if self.guidance_in_training else None
        return Objective(self.clip, self.kl_weight, self.kl_form, guidance, tuple(self.micro))


def _check_data(config: ConfigDict) -> None:
    """Raises InputError for data that the config cannot mean."""
    data, heldout = config.data, config.eval.heldout
    if not data.path:
        raise InputError("no data: give --config.data.path=FILE.jsonl, a folder of images, or 'editworld'")
    if heldout and (data.path != "editworld" or heldout < 2):
        raise InputError(
            f"eval.heldout={heldout}: at least 2 edits, whose truth --config.data.path=editworld alone has"
        )


def _written(folder: pathlib.Path, split: str, count: int, config: ConfigDict) -> str:
    """The path of EditWorld's requests of a split, which the first process writes where they are not there yet."""
    write = lambda: str(write_requests(folder, split, count, config.seed))
    processes.together(lambda: write() if processes.is_first() else None)
    return write()  # there already


def decoding_of(judge: ConfigDict) -> Decoding:
    """How the judge of a config writes; `Decoding.sampler` refuses what cannot be."""
    return Decoding(
        max_new_tokens=judge.max_new_tokens,
        temperature=judge.temperature,
        constrained=judge.constrained,
        score_mode=judge.score_mode,
    )


def make_reward(config: ConfigDict, mesh: jax.sharding.Mesh, requests: str) -> WeightedReward:
    """The weighted sum of the config's reward backends; the judge is loaded onto the mesh.

    Args:
      config: as in `configs/grpo.py`.
      mesh: the devices.
      requests: path of the edit requests, in which the oracle finds EditWorld's truth.

    Raises:
      InputError: an unknown backend, weights that cannot be, or a judge that does not load.
    """
    judge = config.judge

    def load_judge():
        if not judge.model:
            raise InputError("no judge: give --config.judge.model=FOLDER in the Qwen3-VL layout, or 'embedded'")
        return JudgeBackend(
            RewardModel.from_pretrained(
                judge.model,
                adapter=judge.adapter or None,
                dtype=judge.dtype or None,
                mesh=mesh,
                pixel_policy=judge.pixels,
                templates=judge.templates or None,
                parsing=judge.parsing,
                aggregation=judge.aggregate,
                decoding=decoding_of(judge),
                limits=Limits(batch=judge.batch),
                quantize=judge.quantize or None,
                ensemble=judge.ensemble,
            )
        )

    def make_guards():
        return Divided(GuardsBackend())

    def load_oracle():
        if config.data.path != "editworld":
            raise InputError("rewards.oracle knows the truth of --config.data.path=editworld alone: drop it")
        return Divided(Oracle.from_requests(requests))

    makers = {"judge": load_judge, "guards": make_guards, "oracle": load_oracle}
    weights = {name: float(weight) for name, weight in config.rewards.items()}
    unknown = sorted(set(weights) - set(makers))
    if unknown:
        raise InputError(f"reward backend {', '.join(unknown)} is unknown; choose among {', '.join(makers)}")
    # In the order of `makers`: the guards look outside the regions that the judge names.
    return WeightedReward({name: make() for name, make in makers.items() if name in weights}, weights)
