"""The programs of one phase of the main job, as the run itself jits them, with the arguments that it gives them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from spatialreward_jax.editor import encode as editor_encode
from spatialreward_jax.editor.nets import EditorNets
from spatialreward_jax.mesh import batch_sharding
from spatialreward_jax.models import qwen3_vl
from spatialreward_jax.planning import inputs
from spatialreward_jax.planning.flops import DEFAULT, Counting
from spatialreward_jax.planning.nets import placed, whole
from spatialreward_jax.planning.recipe_cost import guided_share
from spatialreward_jax.recipes.flow_grpo import Programs
from spatialreward_jax.recipes.grpo_settings import Settings
from spatialreward_jax.reward import batching
from spatialreward_jax.reward.engine import Engine
from spatialreward_jax.reward.loading import JudgeNet
from spatialreward_jax.reward.vlm import VLM, Decoding
from spatialreward_jax.rl import TrainState

WORDS = 8
"""Tokens that stand before the first image of a judge's prompt, and between two."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What is planned: nets, settings and requests of one run.

    Attributes:
      nets, judge: abstract nets on the mesh. settings: of the recipe. request: what every request looks like.
      decoding: of the judge. limits: of its batches. ensemble: answers to each of its questions.
    """

    nets: EditorNets
    judge: JudgeNet
    settings: Settings
    request: inputs.Request
    decoding: Decoding
    limits: batching.Limits
    ensemble: int = 1

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
      cache: the key-value cache among the arguments, or None.
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


def _judge(run: Run) -> tuple[Engine, batching.Pass, dict[str, int]]:
    """The judge's jitted functions, its largest pass, and how often a phase runs each."""
    request, settings, vision = run.request, run.settings, run.judge.config.vision
    side = vision.patch * vision.merge
    tokens = (request.height // side) * (request.width // side)
    sources = settings.prompts * request.references
    begin = min(request.references * tokens + WORDS, request.semantic - 1)
    shown, lengths = [], []
    for edit in range(settings.prompts * settings.group):
        prompt = edit // settings.group
        own = [prompt * request.references + n for n in range(request.references)]
        shown += [[*own, sources + edit], [sources + edit]] * run.ensemble
        asked = [batching.Length(request.semantic, begin, prompt), batching.Length(request.quality)]
        lengths += asked * run.ensemble
    images = sources + settings.prompts * settings.group
    passes = batching.plan(lengths, shown, [tokens * vision.merge**2] * images, run.limits)
    vlm = VLM(run.judge, _Reader(run.judge), run.decoding, model="planned", limits=run.limits)
    runs = [one for each in passes for one in each.runs]
    parts = [part for one in runs for part in one.parts]
    counts = {
        "encode": sum(-(-len(one.images) // one.rows) for one in passes),
        "start": len({id(part.beginnings) for part in parts if part.beginnings}),
        "admit": sum(-(-len(part.questions) // part.rows) for part in parts),
        "decode": sum(-(-sum(len(part.questions) for part in one.parts) // one.rows) for one in runs),
    }
    return vlm.engine, max(passes, key=lambda one: one.slots), counts


def _judge_encode(run: Run, jitted: Programs, outputs: Outputs) -> Program:
    engine, one, counts = _judge(run)
    net, config, mesh = run.judge, run.judge.config, run.judge.mesh
    grid = qwen3_vl.VisionGrid(
        *(
            inputs.array(mesh, (one.rows, one.patches, *last), dtype)
            for last, dtype in (((4,), jnp.int32), ((4,), jnp.float32), ((2,), jnp.int32), ((), jnp.bool_))
        )
    )
    patches = inputs.array(mesh, (one.rows, one.patches, config.vision.patch_size), jnp.float32)
    args = (net.adapters, net.base, _features(run, one), (patches, grid), np.int32(0))
    return Program("judge_encode", engine.encode, args, ("judge",), counts["encode"])


def _judge_start(run: Run, jitted: Programs, outputs: Outputs) -> Program:
    """Beginnings that several prompts share; runs 0 times where none is shared."""
    engine, one, counts = _judge(run)
    shared = [part.beginnings for each in one.runs for part in each.parts if part.beginnings]
    wanted = max(shared, key=lambda some: some.rows * some.length, default=batching.Beginnings((), 1, 16))
    features = outputs.get("judge_encode", _features(run, one))
    prompt = _prompt(run, wanted.rows, wanted.length)
    args = (run.judge.adapters, run.judge.base, features, prompt)
    return Program("judge_start", engine.start, args, ("judge",), counts["start"])


def _judge_admit(run: Run, jitted: Programs, outputs: Outputs) -> Program:
    """As many prompts as are read into slots at a time."""
    engine, one, counts = _judge(run)
    slots, part = _largest(one)
    mesh, rows = run.judge.mesh, min(part.rows, slots.rows)
    state, known = _state(run, engine, slots), None
    if part.beginnings:
        cache = jax.eval_shape(lambda: _cache(run, part.beginnings.rows, part.beginnings.length))
        known = outputs.get("judge_start", _laid_out(run, cache))
    numbers = {name: inputs.array(mesh, (rows,), jnp.int32) for name in ("length", "rows", "nodes")}
    given = numbers | {
        "prompt": _prompt(run, rows, part.length),
        "words": inputs.array(mesh, (rows, slots.length), jnp.int32),
        "seeds": inputs.array(mesh, (rows,), jnp.uint32),
        "which": inputs.array(mesh, (rows,), jnp.int32) if known else None,
    }
    features = outputs.get("judge_encode", _features(run, one))
    args = (run.judge.adapters, run.judge.base, features, state, known, given)
    held = (state.cache.k, state.cache.v)
    return Program("judge_admit", engine.admit, args, ("judge",), counts["admit"], cache=held)


def _judge_answer(run: Run, jitted: Programs, outputs: Outputs) -> Program:
    engine, one, counts = _judge(run)
    state = outputs.get("judge_admit") or _state(run, engine, _largest(one)[0])
    return Program(
        "judge_answer",
        engine.decode,
        (run.judge.adapters, run.judge.base, state, np.int32(1), None),
        ("judge",),
        counts["decode"],
        Counting(trips=run.request.answer),
        cache=(state.cache.k, state.cache.v),
    )


def _largest(one: batching.Pass) -> tuple[batching.Run, batching.Part]:
    """The run with the largest cache, and its part with the most tokens at a time."""
    run = max(one.runs, key=lambda run: run.rows * run.length)
    return run, max(run.parts, key=lambda part: part.rows * part.length)


def _prompt(run: Run, rows: int, length: int) -> qwen3_vl.Prompt:
    mesh = run.judge.mesh
    return qwen3_vl.Prompt(
        tokens=inputs.array(mesh, (rows, length), jnp.int32),
        image_index=inputs.array(mesh, (rows, length), jnp.int32),
        positions=inputs.array(mesh, (3, rows, length), jnp.int32),
        length=inputs.array(mesh, (rows,), jnp.int32),
        delta=inputs.array(mesh, (rows,), jnp.int32),
    )


def _cache(run: Run, rows: int, slots: int) -> qwen3_vl.KVCache:
    return qwen3_vl.empty_cache(run.judge.config.text, rows, slots, run.judge.dtype)


def _state(run: Run, engine: Engine, slots: batching.Run) -> Any:
    """A decoding state as the engine lays it out."""
    room = slots.length + run.decoding.max_new_tokens
    return _laid_out(run, jax.eval_shape(engine.empty, slots.rows, room))


def _laid_out(run: Run, tree: Any) -> Any:
    """Shapes on the judge's mesh: rows over batch axes, caches [L, B, S, K, H] over heads too, where they divide."""
    mesh = run.judge.mesh

    def lay(x):
        if x.ndim != 5:
            where = batch_sharding(mesh, x.shape[0]) if x.ndim else whole(mesh)
        else:
            rows = batch_sharding(mesh, x.shape[1]).spec
            heads = "tensor" if x.shape[3] % mesh.shape["tensor"] == 0 else None
            where = NamedSharding(mesh, PartitionSpec(None, rows[0] if rows else None, None, heads))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(lay, tree)


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
    "judge_start": _judge_start,
    "judge_admit": _judge_admit,
    "judge_answer": _judge_answer,
    "update": _update,
}
"""Programs in the order in which a phase runs them."""
