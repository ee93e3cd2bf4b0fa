"""Arguments of a run's programs as shapes and shardings, padded to the buckets that the run itself uses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatialreward_jax.editor.encode import TOKENS
from spatialreward_jax.editor.nets import EditorNets
from spatialreward_jax.editor.prompts import LENGTHS
from spatialreward_jax.flow import Branches, StepPlan, Trajectory
from spatialreward_jax.mesh import batch_sharding
from spatialreward_jax.models.omnigen2 import Conditioning
from spatialreward_jax.recipes.grpo_settings import Settings
from spatialreward_jax.rl import Batch

KEY = jax.eval_shape(lambda: jax.random.key(0)).dtype
"""Of random keys."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What every edit request of the plan looks like.

    Attributes:
      height, width: pixels of source and edit. references: source images.
      text, negative: tokens of the instruction's and of the negative prompt.
      semantic, quality: prompt tokens of the judge's two questions. answer: tokens of each of its answers.
      padded: lengths rounded up to the run's buckets; False counts real tokens alone.
    """

    height: int = 512
    width: int = 512
    references: int = 1
    text: int = 100
    negative: int = 20
    semantic: int = 900
    quality: int = 430
    answer: int = 300
    padded: bool = True

    def tokens(self, nets: EditorNets) -> int:
        """Tokens of the packed edit; a reference has as many."""
        tokens = self.height * self.width // nets.multiple**2
        return TOKENS.fit(tokens) if self.padded else tokens

    def text_tokens(self) -> tuple[int, int]:
        """Lengths of (instruction, negative) rows."""
        return tuple(LENGTHS.fit(n) if self.padded else n for n in (self.text, self.negative))


def array(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """A shape with its leading axis split over the batch axes, as `mesh.place_batch` places arrays."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, shape[0]))


def branches(nets: EditorNets, request: Request, prompts: int) -> Branches:
    """Conditioning of P prompts, as `editor.encode.encode` makes it."""
    config, mesh = nets.transformer.config, nets.mesh
    text, negative = (
        (
            array(mesh, (prompts, length, config.text_feat_dim), nets.dtype),
            array(mesh, (prompts, length), jnp.bool_),
        )
        for length in request.text_tokens()
    )
    tokens, sizes = request.tokens(nets), (prompts, request.references)
    full = Conditioning(
        *text,
        array(mesh, (*sizes, tokens, config.token_channels), jnp.float32),
        array(mesh, (*sizes, 2), jnp.int32),
        array(mesh, (prompts, 2), jnp.int32),
    )
    ref = full.with_text(*negative)
    empty = (prompts, 0, tokens, config.token_channels)
    uncond = ref.replace(refs=array(mesh, empty, jnp.float32), ref_sizes=array(mesh, (prompts, 0, 2), jnp.int32))
    return Branches(full, ref, uncond)


def rollout_arguments(nets: EditorNets, settings: Settings, request: Request, prompts: int, group: int) -> tuple:
    """Arguments of `Programs.rollout` after the parameters: branches, mask, times, keys, plan."""
    mesh = nets.mesh
    plan = dataclasses.replace(settings, prompts=prompts).plan(np.random.default_rng(0))
    whole = NamedSharding(mesh, PartitionSpec())
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
    return (
        branches(nets, request, prompts),
        array(mesh, (prompts, request.tokens(nets)), jnp.bool_),
        array(mesh, (prompts, settings.sampler_steps + 1), jnp.float32),
        array(mesh, (prompts, group), KEY),
        StepPlan(*map(shape, plan)),
    )


def update_batch(
    nets: EditorNets, settings: Settings, request: Request, shares: tuple[int, int], trajectory: Trajectory
) -> Batch:
    """The data of one update.

    Args:
      nets, settings, request: of the run.
      shares: (prompts, group) of the update.
      trajectory: shapes of the whole phase, with the shardings that the rollout gives them.
    """
    prompts, group = shares
    mesh = nets.mesh
    whole = lambda x: NamedSharding(mesh, PartitionSpec())

    def cut(x):
        where = x.sharding or whole(x)
        shape = (prompts, *x.shape[1:])
        try:
            where.shard_shape(shape)
        except ValueError:
            where = whole(x)
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=where)

    taken = Trajectory(*(x if name == "guided" else cut(x) for name, x in trajectory._asdict().items()))
    steps = trajectory.sigma.shape[-1]
    return Batch(
        taken,
        branches(nets, request, prompts),
        advantage=array(mesh, (prompts, group), jnp.float32),
        valid=array(mesh, (prompts, group), jnp.bool_),
        weight=array(mesh, (prompts, steps), jnp.float32),
    )
