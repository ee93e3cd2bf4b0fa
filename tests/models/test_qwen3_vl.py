"""Qwen3-VL against the PyTorch reference, its properties, and that the parity tests would notice known mistakes."""

import copy
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import answers, begin, generate, make_sampler
from spatialreward_jax.io.weights import CheckpointFiles, check_table, flatten, load_params, save_params
from spatialreward_jax.mesh import make_mesh, shardings
from spatialreward_jax.models import qwen3_vl
from spatialreward_jax.models.lora import LoRASpec, add_lora, merge, split
from spatialreward_jax.models.qwen3_vl import model as model_module
from spatialreward_jax.models.qwen3_vl import vision as vision_module

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
TOLERANCE = 1e-5  # of max(1, largest value); the goldens ask for 2e-4
END, PAD = (2028, 2026), 2026
COUNTS = (48, 60)  # patches of the two images


def error(a, b):
    """Largest difference in units of max(1, largest value of b)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max() / max(1.0, np.abs(b).max())


@pytest.fixture(scope="module")
def arrays():
    return dict(np.load(GOLDENS / "qwen3_vl.npz"))


@pytest.fixture(scope="module")
def raw_config():
    return json.loads((GOLDENS / "spatialreward" / "config.json").read_text())


@pytest.fixture(scope="module")
def config(raw_config):
    return qwen3_vl.Qwen3VLConfig.from_dict(raw_config)


@pytest.fixture(scope="module")
def loaded(config):
    """(graph, params) of the reference checkpoint."""
    graph, state = nnx.split(nnx.eval_shape(lambda: qwen3_vl.Qwen3VL(config, rngs=nnx.Rngs(0))))
    files = CheckpointFiles.open(GOLDENS / "spatialreward")
    return graph, load_params(files, qwen3_vl.entries(config), nnx.to_pure_dict(state))


@pytest.fixture(scope="module")
def images(arrays):
    """The flattened patches of both images, and their grids."""
    grids = [tuple(int(s) for s in grid[1:]) for grid in arrays["single_image_grid_thw"]]
    return np.split(arrays["single_pixel_values"], [COUNTS[0]]), grids


def pack(config, images, rows, shown, *, order=(0, 1), patches=64, length=80, image_rows=None):
    """-> (patches, grid, prompt) for token rows that show these images (indices into `order`)."""
    flat, grids = [images[0][i] for i in order], [images[1][i] for i in order]
    packed, grid = qwen3_vl.pack_images(flat, grids, patches, side=config.vision.side, rows=image_rows)
    prompt = qwen3_vl.pack_prompts(rows, shown, grids, length=length, patches=patches, image_token=config.image_token)
    return packed, grid, prompt


@functools.partial(jax.jit, static_argnums=0)
def forward(graph, params, patches, grid, prompt):
    """-> (last hidden of vision, features, logits) of the full forward."""
    return run(nnx.merge(graph, params), patches, grid, prompt)


def run(model, patches, grid, prompt):
    features = model.images(patches, grid)
    hidden = model(prompt.tokens, prompt.image_index, prompt.positions, features)
    return model.vision.hidden(patches, grid)[0], features, model.logits(hidden)


@functools.partial(jax.jit, static_argnums=(0, 5))
def prefill(graph, params, patches, grid, prompt, slots):
    model = nnx.merge(graph, params)
    hidden, cache = model.prefill(prompt, model.images(patches, grid), slots)
    return model.logits(hidden), cache


@functools.partial(jax.jit, static_argnums=(0, 3), donate_argnums=2)
def decode(graph, params, state, eos):
    step = lambda params, token, cache: nnx.merge(graph, params).next_logits(token, cache)
    state = generate(step, params, state, sampler=make_sampler(), eos=eos, pad=PAD)
    return answers(state, eos), state


def batch_rows(arrays):
    return [ids[mask > 0] for ids, mask in zip(arrays["batch_input_ids"], arrays["batch_attention_mask"])]


def real(rows, counts):
    """The real rows of padded [I, P, ...], one after another."""
    return np.concatenate([np.asarray(row)[:count] for row, count in zip(rows, counts)])


@pytest.fixture(scope="module")
def single(config, images, arrays):
    return pack(config, images, [arrays["single_input_ids"][0]], [[0, 1]])


@pytest.fixture(scope="module")
def outputs(loaded, single):
    return forward(*loaded, *single)


def test_vision_matches_reference(outputs, arrays):
    last, features, _ = outputs
    tokens = [count // 4 for count in COUNTS]
    assert error(real(last, COUNTS), arrays["vision_last_hidden"]) < TOLERANCE
    assert error(real(features.main, tokens), arrays["vision_output"]) < TOLERANCE
    for k in range(2):
        assert error(real(features.deep[k], tokens), arrays[f"deepstack_{k}"]) < TOLERANCE


def test_logits_match_reference(outputs, arrays):
    assert error(outputs[2][:, :71], arrays["single_logits"]) < TOLERANCE


@pytest.mark.parametrize("name", ["single", "batch"])
def test_positions_match_reference(config, images, arrays, name):
    rows = [ids[m > 0] for ids, m in zip(arrays[f"{name}_input_ids"], arrays[f"{name}_attention_mask"])]
    prompt = pack(config, images, rows, [[0, 1], [1]][: len(rows)])[2]
    for b, mask in enumerate(arrays[f"{name}_attention_mask"]):
        want = arrays[f"{name}_position_ids"][:, b, mask > 0]
        np.testing.assert_array_equal(prompt.positions[:, b, : len(rows[b])], want)
    np.testing.assert_array_equal(prompt.delta, arrays[f"{name}_rope_deltas"][:, 0])


@pytest.mark.slow
def test_gradients_match_reference(config, loaded, images, arrays):
    graph, params = loaded
    rows = np.concatenate([arrays["single_input_ids"][0], arrays["single_generated"][0]])
    patches, grid, prompt = pack(config, images, [rows], [[0, 1]], length=103)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        model = nnx.merge(graph, params)
        hidden = model(prompt.tokens, prompt.image_index, prompt.positions, model.images(patches, grid))
        logp = model.log_probs(hidden[:, 70:-1], jnp.asarray(prompt.tokens[:, 71:]), chunk=10)
        return -logp.mean(), logp

    (value, logp), grads = loss(params)
    assert error(logp, arrays["single_logprobs"]) < TOLERANCE
    assert error(value, arrays["single_ce"]) < TOLERANCE
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(grads).items()}
    norm = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in leaves.values()))
    assert abs(norm / arrays["single_grad_norm"] - 1) < 1e-5
    moved = 0
    for entry in qwen3_vl.entries(config):
        leaf = leaves[entry.target]
        layout = entry.bind(leaf.shape)
        for layer in range(len(leaf) if entry.stacked else 1):
            tensor = layout.save(leaf[layer] if entry.stacked else leaf)
            moved += bool(np.any(tensor))
            if (name := f"grad/{entry.name(layer)}") in arrays:
                assert error(tensor, arrays[name]) < TOLERANCE, name
    assert moved == arrays["n_params_with_grad"]


@pytest.fixture(scope="module")
def batch(config, images, arrays):
    return pack(config, images, batch_rows(arrays), [[0, 1], [1]])


@pytest.mark.parametrize("ending", [False, True])
def test_greedy_decoding_matches_reference(loaded, batch, arrays, ending):
    logits, cache = prefill(*loaded, *batch, 112)
    assert error(logits, arrays["batch_last_logits"]) < TOLERANCE
    prompt = batch[2]
    seeds = np.arange(2)
    state = begin(logits, cache, prompt.tokens, prompt.length, seeds, sampler=make_sampler(), max_new=32, pad=PAD)
    answer, _ = decode(*loaded, state, (int(arrays["early_eos"]),) if ending else END)
    if ending:
        want = arrays["batch_generated_early_eos"]
        np.testing.assert_array_equal(answer.tokens[:, : want.shape[1]], want)
        np.testing.assert_array_equal(answer.tokens[:, want.shape[1] :], PAD)
        np.testing.assert_array_equal(answer.length, [25, 6])
        assert answer.finished.all()
    else:
        np.testing.assert_array_equal(answer.tokens, arrays["batch_generated"])
        np.testing.assert_array_equal(answer.tokens[:1], arrays["single_generated"])
        assert error(answer.raw_logp, arrays["batch_logprobs"]) < TOLERANCE
        assert not answer.finished.any()


def dropped_deepstack(monkeypatch):
    monkeypatch.setattr(model_module, "_add_deep", lambda x, deep, layer: x)


def one_dimensional_rope(monkeypatch):
    monkeypatch.setattr(model_module, "mrope_axes", lambda section, n: np.zeros(n, np.int32))


def blocked_rope(monkeypatch):
    axes = lambda section, n: np.repeat(np.arange(3, dtype=np.int32), section)
    monkeypatch.setattr(model_module, "mrope_axes", axes)


def tanh_in_merger(monkeypatch):
    monkeypatch.setattr(vision_module, "merger_gelu", functools.partial(jax.nn.gelu, approximate=True))


@pytest.mark.parametrize("fault", [dropped_deepstack, one_dimensional_rope, blocked_rope, tanh_in_merger])
def test_parity_notices(monkeypatch, loaded, single, arrays, fault):
    graph, params = loaded
    fault(monkeypatch)
    logits = jax.jit(lambda params, *args: run(nnx.merge(graph, params), *args)[2])(params, *single)
    assert error(logits[:, :71], arrays["single_logits"]) > 2e-4  # what the goldens allow


def test_buckets_change_nothing(config, loaded, images, arrays, outputs):
    patches, grid, prompt = pack(
        config, images, [arrays["single_input_ids"][0]], [[0, 1]], patches=96, length=128, image_rows=3
    )
    patches = np.where(grid.valid[..., None], patches, 7.0).astype(np.float32)  # padding must not be read
    _, features, logits = forward(*loaded, patches, grid, prompt)
    assert error(logits[:, :71], outputs[2][:, :71]) < TOLERANCE
    tokens = [count // 4 for count in COUNTS]
    assert error(real(features.main, tokens), real(outputs[1].main, tokens)) < TOLERANCE


def test_rows_of_a_batch_do_not_mix(loaded, batch, single, arrays):
    """A prompt gives the same logits alone and beside another; prompts share the features of an image."""
    together = forward(*loaded, *batch)[2]
    assert error(together[:1, :71], arrays["single_logits"]) < TOLERANCE
    assert error(together[1, batch[2].length[1] - 1], arrays["batch_last_logits"][1]) < TOLERANCE


def test_order_of_image_rows_is_free(config, loaded, images, arrays, outputs):
    swapped = pack(config, images, [arrays["single_input_ids"][0]], [[1, 0]], order=(1, 0))
    assert error(forward(*loaded, *swapped)[2][:, :71], outputs[2][:, :71]) < TOLERANCE


def test_order_of_images_in_the_prompt_matters(config, loaded, images, arrays, outputs):
    ids, start, stop, image = arrays["single_input_ids"][0], [2035], [2036], [2038]
    ids = np.concatenate([ids[:4], start, image * 15, stop, start, image * 12, stop, ids[35:]])
    other = pack(config, images, [ids], [[1, 0]])
    assert error(forward(*loaded, *other)[2][:, 70], outputs[2][:, 70]) > 1e-2


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (3, 1)])
def test_cache_equals_full_forward(config, loaded, images, arrays, chunks):
    graph, params = loaded
    rows = [np.concatenate([r, g[:4]]) for r, g in zip(batch_rows(arrays), arrays["batch_generated"])]
    full = pack(config, images, rows, [[0, 1], [1]])
    want = forward(graph, params, *full)[2]
    start = pack(config, images, batch_rows(arrays), [[0, 1], [1]])
    _, cache = prefill(graph, params, *start, 112)
    extend = jax.jit(lambda params, tokens, cache: nnx.merge(graph, params).extend(tokens, cache))
    at, got = 0, []
    for size in chunks:
        hidden, cache = extend(params, arrays["batch_generated"][:, at : at + size].astype(np.int32), cache)
        got.append(nnx.merge(graph, params).logits(hidden))
        at += size
    got = jnp.concatenate(got, axis=1)
    for b, length in enumerate(start[2].length):
        assert error(got[b], want[b, length : length + 4]) < TOLERANCE
    np.testing.assert_array_equal(cache.length, start[2].length + 4)


def test_rows_are_read_into_a_cache_that_is_in_use(config, loaded, images, arrays):
    """Prompts behind beginnings, read into some slots, go on as whole ones do; the other slots keep what they hold."""
    graph, params = loaded
    patches, grid, prompt = pack(config, images, batch_rows(arrays), [[0, 1], [1]])
    run = jax.jit(lambda params, call, *args: call(nnx.merge(graph, params), *args), static_argnums=1)
    features = run(params, lambda model, *given: model.images(*given), patches, grid)
    slots = prompt.tokens.shape[1] + 8
    want, whole = run(params, lambda model, p, f: model.prefill(p, f, slots), prompt, features)
    begins = [21, 5]  # behind the first image, behind the first words
    start = qwen3_vl.cut_prompts(prompt, [0, 0], begins, 24)
    rest = qwen3_vl.cut_prompts(prompt, begins, prompt.length, int(max(prompt.length - begins)) + 3)

    def read(model, start, rest, features):
        before = model.prefill(start, features, 24)[1]
        cache = qwen3_vl.empty_cache(config.text, 4, slots, jnp.float32)
        cache = cache.replace(k=cache.k + 1, length=cache.length + 7)
        which, rows = jnp.array([1, 0, 0]), jnp.array([2, 0, 4])  # the last one has no place
        order = lambda x, axis=0: jnp.take(x, which, axis)
        some = rest.replace(**{n: order(getattr(rest, n), int(n == "positions")) for n in vars(rest)})
        return model.admit(some, features, cache, rows, (before, which))

    hidden, cache = run(params, read, start, rest, features)
    assert error(hidden[:2], want[::-1]) < TOLERANCE
    for slot, row in ((2, 1), (0, 0)):
        real = slice(0, int(prompt.length[row]))
        assert error(cache.k[:, slot, real], whole.k[:, row, real]) < TOLERANCE
        assert error(cache.v[:, slot, real], whole.v[:, row, real]) < TOLERANCE
        assert (cache.length[slot], cache.delta[slot]) == (whole.length[row], whole.delta[row])
    assert (cache.k[:, 1] == 1).all() and (cache.k[:, 3] == 1).all() and cache.length[3] == 7
    with pytest.raises(InputError, match="longer than its bucket"):
        qwen3_vl.cut_prompts(prompt, [0, 0], begins, 20)


def test_text_alone(config, loaded):
    graph, params = loaded
    rows = [[5, 6, 7, 8], [9, 10]]
    prompt = qwen3_vl.pack_prompts(rows, [[], []], [], length=8, patches=64, image_token=config.image_token)
    model = nnx.merge(graph, params)
    hidden = model(prompt.tokens, prompt.image_index, prompt.positions, None)
    last, _ = model.prefill(prompt, None, 8)
    assert error(last, np.stack([hidden[0, 3], hidden[1, 1]])) < TOLERANCE
    with pytest.raises(InputError, match="too small"):
        model.prefill(prompt, None, 7)


@pytest.mark.slow
def test_decoding_on_a_mesh(loaded, batch, arrays):
    graph, params = loaded
    mesh = make_mesh(data=2, fsdp=1, tensor=2, devices=jax.devices()[:4])
    placed = jax.device_put(params, shardings(params, qwen3_vl.SHARDING, mesh))
    tokens, length = batch[2].tokens, batch[2].length
    with jax.set_mesh(mesh):
        logits, cache = prefill(graph, placed, *batch, 112)
        state = begin(logits, cache, tokens, length, np.arange(2), sampler=make_sampler(), max_new=32, pad=PAD)
        answer, _ = decode(graph, placed, state, END)
    np.testing.assert_array_equal(answer.tokens, arrays["batch_generated"])


@pytest.mark.slow
def test_lora_starts_at_the_base_and_learns(config, loaded, single, outputs):
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv", "linear_fc1")
    spec = LoRASpec(rank=2, alpha=4, targets=targets)

    def make():
        model = qwen3_vl.Qwen3VL(config, rngs=nnx.Rngs(0))
        add_lora(model, qwen3_vl.entries(config), spec, nnx.Rngs(1))
        return model

    graphs, adapters, _ = split(nnx.eval_shape(make))
    fill = lambda path, leaf: jnp.full(leaf.shape, 0.0 if path[-1].key == "b" else 0.1)
    adapters = jax.tree_util.tree_map_with_path(fill, adapters)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def loss(adapters):
        logits = run(merge(graphs, adapters, loaded[1]), *single)[2]
        return jnp.square(logits).mean(), logits

    grads, logits = loss(adapters)
    assert error(logits[:, :71], outputs[2][:, :71]) < TOLERANCE
    moved = {name for name, leaf in flatten(grads).items() if np.any(leaf)}
    assert moved == {name for name in flatten(adapters) if name.endswith(".b")}


def test_without_deepstack(raw_config):
    """A config without taps has no DeepStack mergers and still runs."""
    config = qwen3_vl.Qwen3VLConfig.from_dict(edit(raw_config, "vision_config.deepstack_visual_indexes", []))
    graph, state = nnx.split(nnx.eval_shape(lambda: qwen3_vl.Qwen3VL(config, rngs=nnx.Rngs(0))))
    tensors = CheckpointFiles.open(GOLDENS / "spatialreward").shapes()
    tensors = {name: shape for name, shape in tensors.items() if "deepstack" not in name}
    check_table(tensors, qwen3_vl.entries(config), nnx.to_pure_dict(state))
    grid = qwen3_vl.vision_grid([(4, 4)], 16, side=8)
    prompt = qwen3_vl.pack_prompts([[2038] * 4], [[0]], [(4, 4)], length=8, patches=16, image_token=2038)
    out = jax.eval_shape(functools.partial(forward, graph), state, np.zeros((1, 16, 1536), np.float32), grid, prompt)
    assert out[2].shape == (1, 8, 2080)


def test_bfloat16_stays_close(config, loaded, single, outputs):
    model = nnx.eval_shape(lambda: qwen3_vl.Qwen3VL(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    _, features, logits = forward(nnx.split(model)[0], loaded[1], *single)
    assert features.main.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert error(logits[:, :71], outputs[2][:, :71]) < 0.05


def test_weights_survive_a_round_trip(tmp_path, config, loaded):
    save_params(tmp_path, loaded[1], qwen3_vl.entries(config), max_shard_bytes=2**20)
    before, after = (CheckpointFiles.open(f) for f in (GOLDENS / "spatialreward", tmp_path))
    assert len(set(after.files.values())) > 1 and before.files.keys() == after.files.keys()
    for name in before.files:
        np.testing.assert_array_equal(before.slice(name)[:], after.slice(name)[:])


def test_published_8b_names_and_shapes():
    published = json.loads((GOLDENS / "published" / "qwen3_vl_8b.json").read_text())
    config = qwen3_vl.Qwen3VLConfig.from_dict(published["config"])
    state = nnx.state(nnx.eval_shape(lambda: qwen3_vl.Qwen3VL(config, rngs=nnx.Rngs(0))))
    params = nnx.to_pure_dict(state)
    check_table(published["tensors"], qwen3_vl.entries(config), params)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == published["parameters"]
    shardings(params, qwen3_vl.SHARDING, make_mesh(data=1, fsdp=4, tensor=2))


def test_tied_head(raw_config, loaded):
    raw = copy.deepcopy(raw_config) | {"tie_word_embeddings": True}
    config = qwen3_vl.Qwen3VLConfig.from_dict(raw)
    graph, state = nnx.split(nnx.eval_shape(lambda: qwen3_vl.Qwen3VL(config, rngs=nnx.Rngs(0))))
    abstract = nnx.to_pure_dict(state)
    tensors = CheckpointFiles.open(GOLDENS / "spatialreward").shapes()
    check_table(tensors, qwen3_vl.entries(config), abstract, ignore=qwen3_vl.ignored(config))
    shardings(abstract, qwen3_vl.SHARDING, make_mesh(data=2, fsdp=2, tensor=2))
    params = {name: tree for name, tree in loaded[1].items() if name != "head"}
    logits = nnx.merge(graph, params).logits(jnp.ones((1, 1, config.text.dim)))
    np.testing.assert_allclose(logits[0, 0], params["embed"]["table"].sum(-1), rtol=1e-4, atol=1e-5)


def edit(raw, path, value):
    raw = copy.deepcopy(raw)
    *parents, last = path.split(".")
    node = functools.reduce(lambda d, k: d[k], parents, raw)
    node[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_type", "qwen3_vl_moe", "mixture of experts"),
        ("text_config.num_experts", 128, "mixture of experts"),
        ("model_type", "qwen2_5_vl", "is not Qwen3-VL"),
        ("text_config.hidden_act", "gelu", "hidden_act"),
        ("text_config.rope_scaling.rope_type", "yarn", "rotary type 'yarn'"),
        ("vision_config.deepstack_visual_indexes", [1, 9], "deepstack_visual_indexes"),
        ("vision_config.deepstack_visual_indexes", [2, 1], "rising"),
        ("vision_config.out_hidden_size", 32, "out_hidden_size 32"),
        ("text_config.num_key_value_heads", 3, "no multiple of 3"),
    ],
)
def test_other_nets_are_refused(raw_config, path, value, message):
    with pytest.raises(InputError, match=message):
        qwen3_vl.Qwen3VLConfig.from_dict(edit(raw_config, path, value))


def test_rotary_settings_of_transformers_5(raw_config, config):
    raw = copy.deepcopy(raw_config)
    text = raw["text_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    assert qwen3_vl.Qwen3VLConfig.from_dict(raw) == config


def test_bad_prompts_are_refused(config):
    pack = functools.partial(qwen3_vl.pack_prompts, length=8, patches=64, image_token=2038)
    with pytest.raises(InputError, match="3 image tokens, its 1 images make 4"):
        pack([[1, 2038, 2038, 2038]], [[0]], [(4, 4)])
    with pytest.raises(InputError, match="more than the 8 of its bucket"):
        pack([range(9)], [[]], [])
    with pytest.raises(InputError, match="more than its bucket of 16"):
        qwen3_vl.vision_grid([(4, 6)], 16, side=8)
    with pytest.raises(InputError, match="multiples of 2"):
        qwen3_vl.vision_grid([(3, 4)], 16, side=8)
    with pytest.raises(InputError, match="2 images are more than the 1"):
        qwen3_vl.vision_grid([(2, 2)] * 2, 16, side=8, rows=1)
    with pytest.raises(InputError, match="3 patches, its grid 2 x 2 wants 4"):
        qwen3_vl.pack_images([np.zeros((3, 8))], [(2, 2)], 16, side=8)


def test_neighbouring_images_are_told_apart():
    positions, delta = qwen3_vl.mrope_positions([True, True, True, False], [(2, 4), (2, 2)])
    np.testing.assert_array_equal(positions, [[0, 0, 2, 3], [0, 0, 2, 3], [0, 1, 2, 3]])
    assert delta == 0
