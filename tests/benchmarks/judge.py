"""Times the judge's net: vision features, prefill and decoding of batched prompts with two images each.

    python tests/benchmarks/judge.py --json=judge.json
    python tests/benchmarks/judge.py --size=embedded --side=64
    python tests/benchmarks/judge.py --reference=transformers

With `--reference=transformers` (needs torch beside transformers) the same weights run in its Qwen3-VL in the same
rounds, and features, logits and greedy tokens are compared. Prefill includes the vision tower, on both sides; a
prompt's images are its own here, so that no side saves work by sharing them. See `editor.py` for the report; decoding
also has `tokens_per_s`, and its roofline counts the weights and the cache that each token must read.
"""

import pathlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import common
import flops
import jax
import jax.numpy as jnp
import nets
import numpy as np
from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.errors import InputError
from spatialreward_jax.models import qwen3_vl
from spatialreward_jax.reward.loading import JudgeNet, load_judge

IMAGES = 2
"""Images of a prompt: source and edit."""


def define_flags() -> None:
    """The program's flags."""
    common.define_flags()
    flags.DEFINE_enum("reference", "", ["", "transformers"], "What runs in torch beside our net.")
    flags.DEFINE_string("size", "512", "'embedded', or the decoder's width: a multiple of 128.")
    flags.DEFINE_integer("layers", 8, "Of the decoder.", lower_bound=1)
    flags.DEFINE_integer("side", 256, "Side in pixels of every image, a multiple of 32.", lower_bound=32)
    flags.DEFINE_integer("text", 128, "Text tokens of a prompt.", lower_bound=4)
    flags.DEFINE_integer("new", 32, "Decoded tokens.", lower_bound=2)
    flags.DEFINE_integer("batch", 4, "Prompts at a time.", lower_bound=1)


class Problem(NamedTuple):
    """A judge and its prompts: `images` of all prompts, token rows, packed arrays, number of new tokens."""

    net: JudgeNet
    images: list[np.ndarray]
    grid: tuple[int, int]
    rows: list[list[int]]
    patches: Any
    prompt: qwen3_vl.Prompt
    new: int


def pose(folder: pathlib.Path, given: flags.FlagValues) -> Problem:
    """Net and random prompts."""
    net = load_judge(folder, dtype="float32")
    vision, rng = net.config.vision, np.random.default_rng(given.seed)
    unit = vision.patch * vision.merge
    if given.side % unit:
        raise InputError(f"--side={given.side}: use a multiple of {unit}")
    grid = (given.side // vision.patch,) * 2
    count, total = grid[0] * grid[1], given.batch * IMAGES
    images = [rng.uniform(-1, 1, (count, vision.patch_size)).astype(np.float32) for _ in range(total)]
    special = min(net.config.image_token, *net.eos) - 16
    words = lambda n: rng.integers(1, special, n).tolist()
    shown = [net.config.image_token] * (count // vision.merge**2)
    rows = [[*words(2), *shown, *words(2), *shown, *words(given.text - 4)] for _ in range(given.batch)]
    grids = [grid] * total
    packed = qwen3_vl.pack_images(images, grids, count, side=vision.side, merge=vision.merge)
    prompt = qwen3_vl.pack_prompts(
        rows,
        [list(range(b * IMAGES, (b + 1) * IMAGES)) for b in range(given.batch)],
        grids,
        length=len(rows[0]),
        patches=count,
        image_token=net.config.image_token,
        merge=vision.merge,
    )
    return Problem(
        net, images, grid, rows, jax.tree.map(jnp.asarray, packed), jax.tree.map(jnp.asarray, prompt), given.new
    )


def programs(p: Problem) -> dict[str, Callable[[], Any]]:
    """Our programs; each returns arrays. Decoding is greedy and never stops early, `new` - 1 steps after prefill."""
    net, slots = p.net, p.prompt.tokens.shape[1] + p.new

    @jax.jit
    def vision(base, patches, grid):
        return net.merge(None, base).images(patches, grid)

    @jax.jit
    def prefill(base, patches, grid, prompt):
        model = net.merge(None, base)
        hidden, cache = model.prefill(prompt, model.images(patches, grid), slots)
        return model.logits(hidden), cache

    @jax.jit
    def decode(base, logits, cache):
        def one(carry, _):
            token, cache = carry
            logits, cache = net.merge(None, base).next_logits(token, cache)
            token = jnp.argmax(logits, -1).astype(jnp.int32)
            return (token, cache), token

        first = jnp.argmax(logits, -1).astype(jnp.int32)
        _, tokens = jax.lax.scan(one, (first, cache), length=p.new - 1)
        return jnp.concatenate([first[None], tokens]).T

    ready = prefill(net.base, *p.patches, p.prompt)
    return {
        "vision": lambda: vision(net.base, *p.patches),
        "prefill": lambda: prefill(net.base, *p.patches, p.prompt)[0],
        "decode": lambda: decode(net.base, *ready),
    }


def work(p: Problem) -> dict[str, common.Work]:
    """What each program must do. Decoding reads all weights and the used part of the cache for every token."""
    config, (batch, length) = p.net.config, p.prompt.tokens.shape
    t, steps = config.text, p.new - 1
    vision = flops.qwen3_vision(config, p.grid[0] * p.grid[1]) * len(p.images)
    cache = 2 * t.layers * t.kv_heads * t.head_dim * (length + steps / 2)
    return {
        "vision": common.Work(vision),
        "prefill": common.Work(vision + batch * flops.qwen3_text(config, length)),
        "decode": common.Work(
            steps * batch * flops.qwen3_text(config, 1, int(length + steps / 2)),
            bytes=4 * steps * (flops.qwen3_weights(config) + batch * cache),
        ),
    }


def references(p: Problem, folder: pathlib.Path) -> dict[str, Callable[[], Any]]:
    """The same work in transformers; each returns NumPy arrays."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    kinds = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder, **kinds).eval()
    pixels = torch.from_numpy(np.concatenate(p.images))
    grids = torch.tensor([[1, *p.grid]] * len(p.images))
    ids = torch.tensor(p.rows)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
        "image_grid_thw": grids,
        "mm_token_type_ids": (ids == p.net.config.image_token).int(),
    }

    def vision():
        out = model.model.get_image_features(pixels, grids)
        return np.concatenate([x.numpy() for x in getattr(out, "pooler_output", out[0])])

    def prefill():
        return model(**inputs, use_cache=True, logits_to_keep=1)

    ready = torch.no_grad()(prefill)()

    def decode():
        cache, tokens = ready.past_key_values, [ready.logits[:, -1].argmax(-1)]
        if extra := cache.get_seq_length() - ids.shape[1]:  # what the run before wrote
            cache.crop(-extra)
        for step in range(p.new - 1):
            position = torch.from_numpy(np.array(p.prompt.delta)) + ids.shape[1] + step
            out = model(
                input_ids=tokens[-1][:, None],
                attention_mask=torch.ones(len(ids), ids.shape[1] + step + 1, dtype=torch.long),
                position_ids=position[None, :, None].expand(3, -1, 1),
                past_key_values=cache,
                use_cache=True,
            )
            tokens.append(out.logits[:, -1].argmax(-1))
        return torch.stack(tokens, 1).numpy()

    runs = {"vision": vision, "prefill": lambda: prefill().logits[:, -1].numpy(), "decode": decode}
    return {name: torch.no_grad()(run) for name, run in runs.items()}


def compare(ours: dict[str, Callable], theirs: dict[str, Callable]) -> dict[str, Any]:
    """Largest differences, and the share of equal greedy tokens."""
    features = np.asarray(ours["vision"]().main)
    tokens, want = np.asarray(ours["decode"]()), theirs["decode"]()
    return {
        "vision": common.apart(features.reshape(-1, features.shape[-1]), theirs["vision"]()),
        "prefill": common.apart(ours["prefill"](), theirs["prefill"]()),
        "decode": {"equal_tokens": float((tokens == want).mean())},
    }


def main(_argv: Sequence[str]) -> None:
    """Command line, see the module."""
    given = flags.FLAGS
    common.limit_threads(given.threads)
    config, torch = nets.judge_config(given.size, given.layers), None
    if given.reference:
        import torch

        torch.set_num_threads(given.threads)
    report = common.environment(given, ("transformers", "torch") if given.reference else ())
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        nets.write_judge(folder, config, given.seed)
        problem = pose(folder, given)
        ours = programs(problem)
        theirs = references(problem, folder) if given.reference else {}
    named = {f"{name}/torch": lambda run=run: run() is None for name, run in theirs.items()}
    text = problem.net.config.text
    layer = (problem.prompt.tokens.size, text.dim, text.mlp)
    seconds = common.interleaved({**common.probes(torch, layer), **ours, **named}, given.rounds)
    machine, needed = common.Machine.of(seconds, layer), work(problem)
    rows = {name: common.row(seconds, name, needed[name], machine) for name in ours}
    tokens = {"prefill": problem.prompt.tokens.size, "decode": given.batch * (given.new - 1)}
    for name, number in tokens.items():
        rows[name]["tokens_per_s"] = round(number / statistics.median(seconds[name]), 1)
    report |= {
        "config": config,
        "parameters": nets.count(problem.net.base),
        "shapes": {
            "images": [len(problem.images), *problem.images[0].shape],
            "prompts": problem.prompt.tokens.shape,
            "new_tokens": given.new,
        },
        "machine": machine.report(),
        "rows": rows,
    }
    if given.reference:
        report["compared"] = compare(ours, theirs)
    common.write(report, given.json)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
