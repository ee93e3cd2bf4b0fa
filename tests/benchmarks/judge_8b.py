"""Times reading prompts and decoding with the judge at its published 8B size, random weights, on one accelerator.

    python tests/benchmarks/judge_8b.py --json=judge_8b.json                    (one GPU of 40 GB or more)
    python tests/benchmarks/judge_8b.py --quantize=int8 --batches=1,16          (24 GB)
    python tests/benchmarks/judge_8b.py --size=embedded --dtype=float32 --prompt=64 --new=8 --rounds=2   (anywhere)

The programs are those of `reward.engine`: `admit` reads all prompts, `decode` writes `--new` tokens for each. A row per
batch size:

    prefill_tokens_per_s, prefill_tflops      prompt tokens read; TFLOP/s of matrix products and attention
    decode_tokens_per_s, decode_ms_per_pass   tokens written by all rows; a pass of the net
    gb_per_s, roofline                        bytes that a pass must read (weights of the decoder and the head, the used
                                              part of the cache) per second, and that over the memory's rate

The memory's rate is the better of --memory_gb_per_s (4800 for an H200, 3350 for an H100 SXM) and what a copy of 1 GB
reaches here. Aim: 0.6 at batch 64.
"""

import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import common
import flops
import jax
import jax.numpy as jnp
import nets
import numpy as np
from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.generate import make_sampler
from spatialreward_jax.mesh import make_mesh, path_name, place_whole
from spatialreward_jax.models.qwen3_vl import VisionFeatures, pack_prompts
from spatialreward_jax.planning.nets import folder_of, judge_net
from spatialreward_jax.reward.batching import Limits
from spatialreward_jax.reward.engine import Engine
from spatialreward_jax.reward.loading import JudgeNet


def define_flags() -> None:
    """The program's flags."""
    common.define_flags()
    flags.DEFINE_string("size", "8b", "'8b', 'embedded', or the decoder's width: a multiple of 128.")
    flags.DEFINE_integer("layers", 0, "Cut the net to this depth; 0: as published.", lower_bound=0)
    flags.DEFINE_string("dtype", "bfloat16", "Of weights and activations.")
    flags.DEFINE_enum("quantize", None, ["int8"], "Weights of the linear layers in fewer bits.")
    flags.DEFINE_list("batches", ["1", "16", "64"], "Answers decoded together.")
    flags.DEFINE_integer("prompt", 1024, "Tokens of a prompt.", lower_bound=2)
    flags.DEFINE_integer("new", 128, "Tokens of an answer.", lower_bound=2)
    flags.DEFINE_float("memory_gb_per_s", 0.0, "Rate of the memory by its data sheet; 0: as measured.")


def random_net(given: flags.FlagValues) -> JudgeNet:
    """The judge with weights drawn on the device; no token ends an answer."""
    with tempfile.TemporaryDirectory() as path:
        folder = folder_of("published", "judge")
        if given.size != "8b":
            folder = pathlib.Path(path)
            (folder / "config.json").write_text(json.dumps(nets.judge_config(given.size, given.layers or 8)))
        mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
        net = judge_net(folder, mesh, dtype=given.dtype, quantize=given.quantize, layers=given.layers or None)

    def draw(path, leaf):
        if path_name(path).endswith(("scale", "bias")):
            fill = lambda key: jnp.full(leaf.shape, 0.01 if path_name(path).endswith("kernel_scale") else 1, leaf.dtype)
        elif jnp.issubdtype(leaf.dtype, jnp.integer):
            fill = lambda key: jax.random.randint(key, leaf.shape, -127, 128, leaf.dtype)
        else:
            fill = lambda key: 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)
        key = jax.random.fold_in(jax.random.key(given.seed), sum(path_name(path).encode()))
        return jax.jit(fill, out_shardings=leaf.sharding)(key)

    return dataclasses.replace(net, base=jax.tree_util.tree_map_with_path(draw, net.base), eos=())


def questions(net: JudgeNet, batch: int, prompt: int) -> tuple[VisionFeatures, dict[str, Any]]:
    """Arguments of `Engine.admit`: features that no prompt shows, and random prompts for all rows."""
    config, rng = net.config, np.random.default_rng(0)
    table = jnp.zeros((1, 16, config.text.dim), net.dtype)
    words = rng.integers(1, 1000, (batch, prompt), dtype=np.int32)
    packed = pack_prompts(words, [[]] * batch, [], length=prompt, patches=64, image_token=config.image_token)
    rows = np.arange(batch, dtype=np.int32)
    given = {"prompt": packed, "words": words, "length": packed.length, "rows": rows, "which": None}
    given |= {"seeds": rows.astype(np.uint32), "nodes": rows * 0}
    return VisionFeatures(table, jnp.zeros((len(config.vision.taps), *table.shape), net.dtype)), given


def measure(net: JudgeNet, batch: int, given: flags.FlagValues) -> dict[str, list[float]]:
    """Seconds of each round of `admit` and `decode`, after one that is not counted."""
    engine = Engine(net, sampler=make_sampler(), max_new=given.new, limits=Limits(batch=batch))
    seconds: dict[str, list[float]] = {"admit": [], "decode": []}
    with jax.set_mesh(net.mesh):
        features, asked = questions(net, batch, given.prompt)
        asked = place_whole(net.mesh, asked)
        for number in range(given.rounds + 1):
            state = jax.block_until_ready(engine.empty(batch, given.prompt + given.new))
            times = [time.perf_counter()]
            state = jax.block_until_ready(engine.admit(None, net.base, features, state, None, asked))
            times.append(time.perf_counter())
            state = jax.block_until_ready(engine.decode(None, net.base, state, np.int32(batch), None))
            times.append(time.perf_counter())
            if number:
                seconds["admit"].append(times[1] - times[0])
                seconds["decode"].append(times[2] - times[1])
        assert int(state.passes) == given.new - 1 and state.done.all()
    return seconds


def copied() -> float:
    """Bytes per second that a copy of 1 GB (64 MB on a CPU) moves, reading and writing counted."""
    size = 2**24 if jax.devices()[0].platform == "cpu" else 2**28
    double, held = jax.jit(lambda x: 2 * x, donate_argnums=0), [jnp.zeros(size, jnp.float32)]
    times = []
    for _ in range(8):
        start = time.perf_counter()
        held.append(jax.block_until_ready(double(held.pop())))
        times.append(time.perf_counter() - start)
    return 8 * size / statistics.median(times[1:])


def row(net: JudgeNet, batch: int, seconds: dict[str, list[float]], memory: float, given: flags.FlagValues) -> dict:
    """Rates of one batch size."""
    t, passes = net.config.text, given.new - 1
    admit, decode = (statistics.median(seconds[name]) for name in ("admit", "decode"))
    work = batch * flops.qwen3_text(net.config, given.prompt)
    cache = 2 * t.layers * t.kv_heads * t.head_dim * batch * (given.prompt + passes / 2) * net.dtype.itemsize
    head = t.dim * t.vocab * net.dtype.itemsize
    blocks = (flops.qwen3_weights(net.config) - t.dim * t.vocab) * (1 if given.quantize else net.dtype.itemsize)
    moved = (blocks + head + cache) * passes / decode
    return {
        "prefill_ms_all": [round(1e3 * s, 1) for s in seconds["admit"]],
        "prefill_tokens_per_s": round(batch * given.prompt / admit, 1),
        "prefill_tflops": round(work / admit / 1e12, 2),
        "decode_ms_all": [round(1e3 * s, 1) for s in seconds["decode"]],
        "decode_ms_per_pass": round(1e3 * decode / passes, 3),
        "decode_tokens_per_s": round(batch * passes / decode, 3),
        "gb_per_s": round(moved / 1e9, 3),
        "roofline": round(moved / memory, 3),
    }


def main(_argv: Sequence[str]) -> None:
    """Command line, see the module."""
    given = flags.FLAGS
    common.limit_threads(given.threads)
    report = common.environment(given, ())
    measured = copied()
    memory = max(measured, 1e9 * given.memory_gb_per_s)
    net = random_net(given)
    rows = {}
    for batch in map(int, given.batches):
        rows[str(batch)] = row(net, batch, measure(net, batch, given), memory, given)
    report |= {
        "device": jax.devices()[0].device_kind,
        "dtype": given.dtype,
        "quantize": given.quantize or "",
        "parameters": nets.count(net.base),
        "weights_gb": round(sum(leaf.nbytes for leaf in jax.tree.leaves(net.base)) / 1e9, 3),
        "prompt": given.prompt,
        "new": given.new,
        "memory_gb_per_s": {"copy": round(measured / 1e9, 1), "used": round(memory / 1e9, 1)},
        "rows": rows,
    }
    common.write(report, given.json)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
