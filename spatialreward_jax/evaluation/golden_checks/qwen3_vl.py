"""qwen3_vl.npz: prompts, vision features, logits, greedy decoding, log-probabilities and gradients of the judge."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spatialreward_jax.evaluation.golden_checks.case import Case
from spatialreward_jax.evaluation.golden_checks.nets import Goldens
from spatialreward_jax.generate import answers, begin, generate, make_sampler
from spatialreward_jax.io.weights import flatten
from spatialreward_jax.models import qwen3_vl
from spatialreward_jax.reward.loading import JudgeNet
from spatialreward_jax.reward.processor import Processor

GREEDY = make_sampler()
GRADIENT_RESULTS = ("single_logprobs", "single_ce", "single_grad_norm", "n_params_with_grad")


class Prompts(NamedTuple):
    """Token rows and the images that they show.

    Attributes:
      rows: token ids of each prompt.
      shown: for each prompt its images, as indices into `grids`.
      grids: (rows, columns) of every image in patches.
      patches: packed patches and their grid, as the vision tower takes them.
      bucket: patches to which every image is padded.
    """

    rows: list[np.ndarray]
    shown: list[list[int]]
    grids: list[tuple[int, int]]
    patches: tuple[Any, Any]
    bucket: int


def check(case: Case, goldens: Goldens) -> None:
    """Checks the single prompt, then the batch of two."""
    net, prompts = goldens.judge, read_prompts(case, goldens)
    check_inputs(case, net, prompts)
    check_forward(case, net, prompts)
    check_decoding(case, net, prompts)
    if any(name in GRADIENT_RESULTS or name.startswith("grad/") for name in case.names):
        check_gradients(case, net, prompts)  # files of large judges come without: they take twice the weights' memory


def read_prompts(case: Case, goldens: Goldens) -> Prompts:
    """The prompt that shows all images and the one that shows the last alone, through our own processor."""
    processor, vision = Processor(goldens.folder / "spatialreward"), goldens.judge.config.vision
    images = [processor.patches(case.input(name)) for name in case.numbered("image_")]
    grids = [image.grid for image in images]
    shown = [list(range(len(images))), [len(images) - 1]]
    texts = [str(case.input(name)) for name in ("prompt_two", "prompt_one")]
    for name, text, own in zip(("chat_two", "chat_one"), texts, shown):
        case.compare(name, np.array(processor.chat(text, len(own))))
    rows = [processor.tokens(text, [grids[i] for i in own]) for text, own in zip(texts, shown)]
    values = [image.values for image in images]
    case.compare("single_pixel_values", np.concatenate(values))
    bucket = max(len(v) for v in values)
    packed = qwen3_vl.pack_images(values, grids, bucket, side=vision.side, merge=vision.merge)
    return Prompts(rows, shown, grids, packed, bucket)


def pack(net: JudgeNet, prompts: Prompts, rows: list[np.ndarray], length: int = 0) -> qwen3_vl.Prompt:
    """The rows (the prompts, or their first ones with an answer behind) as the net takes them."""
    return qwen3_vl.pack_prompts(
        rows,
        prompts.shown[: len(rows)],
        prompts.grids,
        length=length or max(map(len, rows)),
        patches=prompts.bucket,
        image_token=net.config.image_token,
        merge=net.config.vision.merge,
    )


def check_inputs(case: Case, net: JudgeNet, prompts: Prompts) -> None:
    """Compares ids, masks, grids and rotary positions of both batches; the file pads on the left."""
    for name, count in (("single", 1), ("batch", len(prompts.rows))):
        packed = pack(net, prompts, prompts.rows[:count])
        shape = packed.tokens.shape
        ids, mask = np.full(shape, net.pad, np.int64), np.zeros(shape, np.int64)
        positions = np.zeros((3, *shape), np.int64)
        for b, size in enumerate(packed.length):
            ids[b, shape[1] - size :], mask[b, shape[1] - size :] = packed.tokens[b, :size], 1
            positions[:, b, shape[1] - size :] = packed.positions[:, b, :size]
        images = [(1, *prompts.grids[i]) for shown in prompts.shown[:count] for i in shown]
        case.compare(f"{name}_input_ids", ids)
        case.compare(f"{name}_attention_mask", mask)
        case.compare(f"{name}_image_grid_thw", np.array(images, np.int64))
        case.compare(f"{name}_position_ids", positions)
        case.compare(f"{name}_rope_deltas", packed.delta[:, None].astype(np.int64))


def check_forward(case: Case, net: JudgeNet, prompts: Prompts) -> None:
    """Compares the vision tower and the logits of the single prompt."""

    @jax.jit
    def run(params, patches, grid, prompt):
        model = net.merge(None, params)
        features = model.images(patches, grid)
        hidden = model(prompt.tokens, prompt.image_index, prompt.positions, features)
        return model.vision.hidden(patches, grid)[0], features, model.logits(hidden)

    last, features, logits = run(net.base, *prompts.patches, pack(net, prompts, prompts.rows[:1]))
    counts = [rows * columns for rows, columns in prompts.grids]
    merged = [count // net.config.vision.merge**2 for count in counts]
    real = lambda rows, sizes: np.concatenate([np.asarray(row)[:size] for row, size in zip(rows, sizes)])
    case.compare("vision_last_hidden", real(last, counts))
    case.compare("vision_output", real(features.main, merged))
    for k, deep in enumerate(features.deep):
        case.compare(f"deepstack_{k}", real(deep, merged))
    case.compare("single_logits", logits)


def check_decoding(case: Case, net: JudgeNet, prompts: Prompts) -> None:
    """Compares greedy answers with the cache, an early end, and log-probabilities under teacher forcing."""
    new = case.stored("batch_generated").shape[1]
    length = max(map(len, prompts.rows))

    @functools.partial(jax.jit, static_argnames="eos")
    def answer(params, patches, grid, prompt, eos):
        model = net.merge(None, params)
        hidden, cache = model.prefill(prompt, model.images(patches, grid), length + new)
        logits = model.logits(hidden)
        seeds = jnp.arange(len(prompts.rows))
        how = {"sampler": GREEDY, "pad": net.pad}
        state = begin(logits, cache, prompt.tokens, prompt.length, seeds, max_new=new, **how)
        step = lambda params, token, cache: net.merge(None, params).next_logits(token, cache)
        return logits, answers(generate(step, params, state, eos=eos, **how), eos)

    batch = pack(net, prompts, prompts.rows)
    logits, full = answer(net.base, *prompts.patches, batch, net.eos)
    case.compare("batch_last_logits", logits)
    case.compare("batch_generated", full.tokens)
    twice = prompts._replace(shown=prompts.shown[:1] * 2)
    alone = pack(net, twice, prompts.rows[:1] * 2)  # the same shapes: nothing is compiled again
    case.compare("single_generated", answer(net.base, *prompts.patches, alone, net.eos)[1].tokens[:1])
    early = answer(net.base, *prompts.patches, batch, (int(case.input("early_eos")),))[1]
    case.compare("batch_generated_early_eos", early.tokens[:, : int(early.length.max())])
    case.compare("batch_logprobs", answer_log_probs(net, prompts, np.asarray(full.tokens))(net.base))


def answer_log_probs(net: JudgeNet, prompts: Prompts, answers: np.ndarray):
    """-> logp(params) [B, new]: log-probabilities of the answers behind their prompts, in one forward pass."""
    rows = [np.concatenate([prompt, answer]) for prompt, answer in zip(prompts.rows, answers)]
    packed = pack(net, prompts, rows)
    spots = packed.length[:, None] - answers.shape[1] + np.arange(answers.shape[1])

    @jax.jit
    def logp(params):
        model = net.merge(None, params)
        hidden = model(packed.tokens, packed.image_index, packed.positions, model.images(*prompts.patches))
        before = jnp.take_along_axis(hidden, jnp.asarray(spots - 1)[..., None], axis=1)
        return model.log_probs(before, jnp.asarray(answers))

    return logp


def check_gradients(case: Case, net: JudgeNet, prompts: Prompts) -> None:
    """Compares log-probabilities, cross entropy and gradients of the stored answer to the single prompt."""
    one = prompts._replace(rows=prompts.rows[:1], shown=prompts.shown[:1])
    logp = answer_log_probs(net, one, case.stored("single_generated"))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        values = logp(params)
        return -values.mean(), values

    (value, values), grads = loss(net.base)
    case.compare("single_logprobs", values)
    case.compare("single_ce", value)
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(grads).items()}
    norm = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in leaves.values()))
    case.compare("single_grad_norm", norm)
    moved = 0
    for entry in qwen3_vl.entries(net.config):
        leaf = leaves[entry.target]
        layout = entry.bind(leaf.shape)
        for layer in range(len(leaf) if entry.stacked else 1):
            tensor = layout.save(leaf[layer] if entry.stacked else leaf)
            moved += bool(np.any(tensor))
            if f"grad/{entry.name(layer)}" in case:
                case.compare(f"grad/{entry.name(layer)}", tensor)
    case.compare("n_params_with_grad", np.int64(moved))
