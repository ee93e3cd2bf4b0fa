"""TFLOP per image of a recipe, by tracing alone: no accelerator and no compiler."""

import dataclasses
import math
from typing import Any

import jax

from spatialreward_jax.editor.nets import EditorNets
from spatialreward_jax.flow import guided_steps
from spatialreward_jax.planning.flops import Counting, Flops, count_flops
from spatialreward_jax.planning.inputs import Request, rollout_arguments, update_batch
from spatialreward_jax.recipes.flow_grpo import Programs
from spatialreward_jax.recipes.grpo_settings import Settings
from spatialreward_jax.rl import TrainState

AIMS = {"parity": 2003.0, "window": 811.0}
"""TFLOP per image of 512 x 512 that each recipe may spend."""
AIM_SIDE = 512

ASSUMPTIONS = (
    "one square edit of data.max_pixels, one such reference, 100 text tokens, 20 of the negative prompt, no padding; "
    "LoRA, no weight gradients of the base; block inputs kept, layers computed again in the backward pass; text tower, "
    "autoencoder and judge left out; attention counted as all queries x all keys, backward as the seven products of "
    "the TPU kernels; parity: the expected number of guided steps among the drawn ones"
)


@dataclasses.dataclass(frozen=True)
class RecipeCost:
    """FLOPs per image.

    Attributes:
      recipe: "parity" or "window". side: of the edit in pixels. sampling: the rollout. training: the share of its
        update.
      logp: computing old log-probabilities again with the training program, which a run does only where its first
        phase finds the sampler's too far off; not part of the sum.
    """

    recipe: str
    side: int
    sampling: Flops
    training: Flops
    logp: Flops

    @property
    def tflop(self) -> float:
        """Sampling and training, TFLOP."""
        return (self.sampling + self.training).total / 1e12

    def to_json(self) -> dict[str, Any]:
        """As numbers in TFLOP."""
        kinds = lambda flops: {k: round(v / 1e12, 3) for k, v in dataclasses.asdict(flops).items() if v}
        part = lambda flops: {"tflop": round(flops.total / 1e12, 5), "by_kind": kinds(flops)}
        aim = AIMS[self.recipe] if self.side == AIM_SIDE else None
        return {
            "recipe": self.recipe,
            "side": self.side,
            "tflop_per_image": round(self.tflop, 2 if aim else 5),
            **({"aim": aim, "within_aim": self.tflop <= aim} if aim else {}),
            "sampling": part(self.sampling),
            "training": part(self.training),
            "if_old_logp_is_computed_again": part(self.logp),
        }


def of_recipe(settings: Settings, recipe: str) -> Settings:
    """The settings under a recipe; the window recipe of the aims trains without a KL term."""
    weight = settings.kl_weight if recipe == "parity" else 0.0
    return dataclasses.replace(settings, recipe=recipe, kl_weight=weight)


def recipe_cost(nets: EditorNets, settings: Settings) -> RecipeCost:
    """Counts the real rollout and update of one image under `ASSUMPTIONS`."""
    side = math.isqrt(settings.size.max_pixels)
    request = Request(side, side, padded=False)
    settings = dataclasses.replace(settings, prompts=1, micro=(1, 1), updates_per_phase=1)
    programs = Programs(nets, settings)
    params = nets.transformer.params if nets.adapters is None else nets.adapters
    arguments = rollout_arguments(nets, settings, request, 1, 1)
    state = jax.eval_shape(lambda p: TrainState.create(p, programs.optimizer), params)
    trajectory = jax.eval_shape(programs.rollout, params, programs.frozen, *arguments)[1]
    batch = update_batch(nets, settings, request, (1, 1), trajectory)
    counting = Counting(heavy=guided_share(settings))
    return RecipeCost(
        settings.recipe,
        side,
        sampling=count_flops(programs.rollout, params, programs.frozen, *arguments),
        training=count_flops(programs.update, state, programs.frozen, batch, counting=counting),
        logp=count_flops(programs.logp, params, programs.frozen, batch, counting=counting),
    )


def guided_share(settings: Settings) -> float:
    """Expected share of guided steps among those that are trained."""
    flags = guided_steps(settings.sampler_steps, settings.guidance if settings.guidance_in_training else None)
    if settings.recipe == "window":
        low, high = (round(x * settings.sampler_steps) for x in settings.window_span)
        flags = flags[low:high]
    return float(flags.mean())
