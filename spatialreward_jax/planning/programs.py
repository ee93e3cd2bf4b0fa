"""The programs of one phase of the main job, as the run itself jits them, with the arguments that it gives them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spatialreward_jax.editor import encode as editor_encode
from spatialreward_jax.editor.nets import EditorNets
from spatialreward_jax.models import qwen3_vl
from spatialreward_jax.planning import inputs
from spatialreward_jax.planning.flops import DEFAULT, Counting
from spatialreward_jax.planning.nets import placed, whole
from spatialreward_jax.planning.recipe_cost import guided_share
from spatialreward_jax.recipes.flow_grpo import Programs
from spatialreward_jax.recipes.grpo_settings import Settings
from spatialreward_jax.reward.batching import Limits, plan
from spatialreward_jax.reward.loading import JudgeNet
from spatialreward_jax.reward.vlm import VLM, Decoding
from spatialreward_jax.rl import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """What is planned: nets, settings and requests of one run.

    Attributes:
      nets, judge: abstract nets on the mesh. settings: of the recipe. request: what every request looks like.
      decoding: of the judge. limits: of its batches.
    """

    nets: EditorNets
    judge: JudgeNet
    settings: Settings
    request: inputs.Request
    decoding: Decoding
    limits: Limits

    @property
    def weights(self) -> dict[str, Any]:
        """What lies on the devices in all phases, by name."""
        nets = self.nets
        return {
            "editor": nets.transformer.params,
            "adapters": nets.adapters or {},
            "text tower": nets.text.params,
            "autoencoder": nets.vae.params,
            "judge": self.judge.base,
        }

    def mesh_of(self, program: "Program") -> jax.sharding.Mesh:
        """Where a program runs: the judge's devices are laid out in their own way."""
        return self.judge.mesh if "judge" in program.uses else self.nets.mesh


@dataclasses.dataclass(frozen=True)
class Program:
    """One jitted function.

    Attributes:
      name: what it does.
      fn: the jitted function. args: its arguments as shapes with shardings.
      uses: names of `Run.weights` among the arguments; all others lie beside it.
      runs: executions in a phase.
      counting: for the FLOP counter; its `trips` hold for loops in the compiled program too.
      optimizer: the optimiser's state among the arguments, or None.
      cache: the key-value cache among the temporaries, or None.
    """

    name: str
    fn: Any
    args: tuple
    uses: tuple[str, ...]
    runs: float
    counting: Counting = DEFAULT
    optimizer: Any = None
    cache: Any = None


Outputs = Mapping[str, Any]
"""Results of the programs compiled so far, as shapes with the shardings that the compiler chose."""

Maker = Callable[[Run, Programs, Outputs], Program]


def programs(run: Run, names: tuple[str, ...], compiled: Callable[[Program], Any]) -> Iterator[Any]:
    """Makes the named programs (of `MAKERS`, in their order) and yields `compiled(program)` for each.

    `compiled` returns (anything, outputs of the program as shapes with shardings); programs further on take these as
    arguments, as in the run.
    """
    jitted, outputs = Programs(run.nets, run.settings), {}
    for name in MAKERS:
        if name in names:
            result, outputs[name] = compiled(MAKERS[name](run, jitted, outputs))
            yield result


def _encode_text(run: Run, jitted: Programs, outputs: Outputs) -> Program:
    prompts, length = run.settings.prompts, run.request.text_tokens()[0]
    rows = [inputs.array(run.nets.mesh, (prompts, length), dtype) for dtype in (jnp.int32, jnp.bool_)]
    net = run.nets.text
    return Program("encode_text", editor_encode.text_features, (net.graph, net.params, *rows), ("text tower",), 1)


def _encode_images(run: Run, jitted: Programs, outputs: Outputs) -> Program:
    request, net = run.request, run.nets.vae
    images = run.settings.prompts * request.references
    count = editor_encode.image_batch(run.nets.mesh, (request.height, request.width), images)
    pixels = inputs.array(run.nets.mesh, (count, request.height, request.width, 3), jnp.uint8)
    keys = jax.ShapeDtypeStruct((count,), inputs.KEY, sharding=whole(run.nets.mesh))
    args = (net.graph, net.params, pixels, keys)
    return Program("encode_images", editor_encode.latents_of_images, args, ("autoencoder",), -(-images // count))


def _rollout(run: Run, jitted: Programs, outputs: Outputs) -> Program:
    nets, settings = run.nets, run.settings
    prompts = settings.sample_prompts or settings.prompts
    args = inputs.rollout_arguments(nets, settings, run.request, prompts, settings.group)
    params = nets.transformer.params if nets.adapters is None else nets.adapters
    runs = settings.prompts / prompts
    return Program("rollout", jitted.rollout, (params, jitted.frozen, *args), ("editor", "adapters"), runs)


def _decode_images(run: Run, jitted: Programs, outputs: Outputs) -> Program:
    net, request = run.nets.vae, run.request
    images = run.settings.prompts * run.settings.group
    count = editor_encode.image_batch(run.nets.mesh, (request.height, request.width), images)
    sides = (request.height // net.config.downscale, request.width // net.config.downscale)
    latents = inputs.array(run.nets.mesh, (count, *sides, net.config.latent_channels), jnp.float32)
    args = (net.graph, net.params, latents)
    return Program("decode_images", editor_encode.images_of_latents, args, ("autoencoder",), -(-images // count))


def _judge(run: Run) -> tuple[VLM, Any, tuple[int, int]]:
    """The judge's jitted functions, its largest pass, and how many (encode, answer) programs a phase runs."""
    request, settings, vision = run.request, run.settings, run.judge.config.vision
    side = vision.patch * vision.merge
    patches = (request.height // side) * (request.width // side) * vision.merge**2
    sources = settings.prompts * request.references
    shown, lengths = [], []
    for edit in range(settings.prompts * settings.group):
        own = [edit // settings.group * request.references + n for n in range(request.references)]
        shown += [[*own, sources + edit], [sources + edit]]
        lengths += [request.semantic, request.quality]
    images = sources + settings.prompts * settings.group
    passes = plan(lengths, shown, [patches] * images, run.limits)
    vlm = VLM(run.judge, _Reader(run.judge), run.decoding, model="planned", limits=run.limits)
    encodes = sum(-(-len(one.images) // one.rows) for one in passes)
    return vlm, max(passes, key=lambda one: one.slots), (encodes, sum(len(one.batches) for one in passes))


def _judge_encode(run: Run, jitted: Programs, outputs: Outputs) -> Program:
    vlm, one, (runs, _) = _judge(run)
    net, config, mesh = run.judge, run.judge.config, run.judge.mesh
    grid = qwen3_vl.VisionGrid(
        *(
            inputs.array(mesh, (one.rows, one.patches, *last), dtype)
            for last, dtype in (((4,), jnp.int32), ((4,), jnp.float32), ((2,), jnp.int32), ((), jnp.bool_))
        )
    )
    patches = inputs.array(mesh, (one.rows, one.patches, config.vision.patch_size), jnp.float32)
    args = (net.adapters, net.base, _features(run, one), (patches, grid), np.int32(0))
    return Program("judge_encode", vlm._encode, args, ("judge",), runs)


def _judge_answer(run: Run, jitted: Programs, outputs: Outputs) -> Program:
    vlm, one, (_, runs) = _judge(run)
    net, mesh = run.judge, run.judge.mesh
    batch = max(one.batches, key=lambda batch: batch.rows * batch.length)
    rows, length = batch.rows, batch.length
    prompt = qwen3_vl.Prompt(
        tokens=inputs.array(mesh, (rows, length), jnp.int32),
        image_index=inputs.array(mesh, (rows, length), jnp.int32),
        positions=inputs.array(mesh, (3, rows, length), jnp.int32),
        length=inputs.array(mesh, (rows,), jnp.int32),
        delta=inputs.array(mesh, (rows,), jnp.int32),
    )
    features = outputs.get("judge_encode", _features(run, one))
    seeds, active = (inputs.array(mesh, (rows,), dtype) for dtype in (jnp.uint32, jnp.bool_))
    slots = length + run.decoding.max_new_tokens
    cache = jax.eval_shape(lambda: qwen3_vl.empty_cache(net.config.text, rows, slots, net.dtype))
    return Program(
        "judge_answer",
        vlm._answer,
        (net.adapters, net.base, features, prompt, seeds, active),
        ("judge",),
        runs,
        Counting(trips=run.request.answer),
        cache=(cache.k, cache.v),
    )


def _features(run: Run, one: Any) -> qwen3_vl.VisionFeatures:
    """The table of image features, empty: laid out as the compiler likes."""
    config = run.judge.config
    shape = (one.slots, one.patches // config.vision.merge**2, config.text.dim)
    return qwen3_vl.VisionFeatures(
        jax.ShapeDtypeStruct(shape, run.judge.dtype),
        jax.ShapeDtypeStruct((len(config.vision.taps), *shape), run.judge.dtype),
    )


@dataclasses.dataclass(frozen=True)
class _Reader:
    """What `VLM` wants to know of a processor, without a tokenizer: nothing is read."""

    net: JudgeNet
    tokenizer: tuple = ()

    @property
    def patch_size(self) -> int:
        return self.net.config.vision.patch

    @property
    def merge_size(self) -> int:
        return self.net.config.vision.merge

    @property
    def temporal_patch_size(self) -> int:
        return self.net.config.vision.frames

    @property
    def image_pad(self) -> int:
        return self.net.config.image_token

    @property
    def policy(self) -> Any:
        return dataclasses.make_dataclass("Policy", ["name"])("planned")


def _training(run: Run, jitted: Programs, outputs: Outputs) -> tuple[TrainState, Any]:
    """State and batch of one update."""
    nets, settings = run.nets, run.settings
    params = nets.transformer.params if nets.adapters is None else nets.adapters
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), params)
    where = whole(nets.mesh)
    state = jax.eval_shape(lambda p: TrainState.create(p, jitted.optimizer), params)
    by_shape = {x.shape: x.sharding for x in jax.tree.leaves(params)}  # moments lie as their parameters
    state = placed(state, jax.tree.map(lambda x: by_shape.get(x.shape, where), state))
    trajectory = outputs["rollout"][1] if "rollout" in outputs else _trajectory(run, jitted)
    shares = (settings.prompts // settings.updates_per_phase, settings.group)
    return state, inputs.update_batch(nets, settings, run.request, shares, trajectory)


def _trajectory(run: Run, jitted: Programs) -> Any:
    """Shapes of a rollout that was not compiled, split over prompts."""
    program = _rollout(run, jitted, {})
    shapes = jax.eval_shape(program.fn, *program.args)[1]
    return jax.tree.map(lambda x: inputs.array(run.nets.mesh, x.shape, x.dtype), shapes)


def _update(run: Run, jitted: Programs, outputs: Outputs) -> Program:
    state, batch = _training(run, jitted, outputs)
    return Program(
        "update",
        jitted.update,
        (state, jitted.frozen, batch),
        ("editor", "adapters"),
        run.settings.updates_per_phase,
        Counting(heavy=guided_share(run.settings)),
        optimizer=state.opt,
    )


MAKERS: dict[str, Maker] = {
    "encode_text": _encode_text,
    "encode_images": _encode_images,
    "rollout": _rollout,
    "decode_images": _decode_images,
    "judge_encode": _judge_encode,
    "judge_answer": _judge_answer,
    "update": _update,
}
"""Programs in the order in which a phase runs them."""
