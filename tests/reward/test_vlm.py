"""The whole answering path against the reference's greedy generation, and what batching must not change."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.peft import LoRASpec, write_peft
from spatialreward_jax.io.pretrained import resolve
from spatialreward_jax.io.weights import flatten, unflatten
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.models.lora import add_lora, split
from spatialreward_jax.models.qwen3_vl import Qwen3VL, entries
from spatialreward_jax.reward.batching import Limits
from spatialreward_jax.reward.loading import fingerprint, for_serving, load_judge
from spatialreward_jax.reward.processor import Processor
from spatialreward_jax.reward.protocol import Question, read_answers
from spatialreward_jax.reward.vlm import VLM, Decoding

SMALL = Limits(batch=4)


@pytest.fixture(scope="module")
def folder(goldens):
    return goldens / "spatialreward"


@pytest.fixture(scope="module")
def golden(goldens):
    return np.load(goldens / "qwen3_vl.npz")


@pytest.fixture(scope="module")
def asked(golden):
    images = golden["image_0"], golden["image_1"]
    return [
        Question(images, str(golden["prompt_two"]), "sc"),
        Question(images[1:], str(golden["prompt_one"]), "pq"),
    ]


def vlm(folder, decoding, limits=SMALL, mesh=None, adapter=None):
    net = load_judge(folder, mesh=mesh, adapter=adapter, serving=True)
    return VLM(net, Processor(folder), decoding, model="golden", limits=limits)


@pytest.fixture(scope="module")
def greedy(folder):
    return vlm(folder, Decoding(max_new_tokens=32))


def text(answerer, ids):
    ids = [int(i) for i in ids]
    ends = [n for n, i in enumerate(ids) if i in answerer.net.eos]
    return answerer.processor.decode(ids[: ends[0]] if ends else ids)


def test_greedy_answers_equal_the_reference(golden, asked, greedy):
    replies = greedy.answer(asked)
    assert [reply.text for reply in replies] == [text(greedy, row) for row in golden["batch_generated"]]
    assert not any(reply.complete for reply in replies)  # 32 tokens were too few for it


def test_an_answer_depends_on_its_question_alone(asked, greedy):
    alone = [greedy.answer([question])[0] for question in asked]
    assert greedy.answer([asked[1], asked[0], asked[1]]) == [alone[1], alone[0], alone[1]]


def test_a_net_without_finite_numbers_gives_no_answer(folder, asked):
    """Under a grammar its answers can still be read, and would be believed."""
    answerer = vlm(folder, Decoding(max_new_tokens=400, constrained=True, score_mode="expected"))
    answerer.net = dataclasses.replace(answerer.net, base=jax.tree.map(lambda x: x * np.nan, answerer.net.base))
    for reply in answerer.answer(asked):
        assert "not finite" in reply.failure
        assert not read_answers(reply, "", (8, 8)).valid


def test_an_opening_is_read_after_the_question_and_kept(asked, greedy, folder):
    opened = dataclasses.replace(asked[0], opening='{"edit_region":[')
    plain, begun = (greedy.arrays([question])[0][0] for question in (asked[0], opened))
    more = greedy.processor.tokenizer(opened.opening, add_special_tokens=False)["input_ids"]
    assert begun.tokens.tolist() == [*plain.tokens.tolist(), *more] and begun.begin == plain.begin
    assert greedy.answer([opened])[0].text.startswith(opened.opening)
    with pytest.raises(InputError, match="cannot be constrained"):
        vlm(folder, Decoding(max_new_tokens=64, constrained=True)).check(opened)


def test_every_image_is_encoded_once(asked, greedy, monkeypatch):
    rows = []
    encode = greedy.engine.encode

    def counted(adapters, base, table, images, start):
        rows.append(len(images[0]))
        return encode(adapters, base, table, images, start)

    monkeypatch.setattr(greedy.engine, "encode", counted)
    greedy.answer(asked * 2)
    assert rows == [2]


def test_compilations_are_bounded_by_buckets(asked, greedy):
    greedy.answer(asked)
    before = set(greedy.engine.shapes)
    for _ in range(2):
        greedy.answer(asked[::-1])
    assert greedy.engine.shapes == before


@pytest.mark.slow
def test_sampled_answers_ignore_their_neighbours(folder, asked):
    sampled = vlm(folder, Decoding(max_new_tokens=8, temperature=1.0, top_k=50, repetition_penalty=1.1, seed=3))
    pair = [asked[1], Question(asked[0].images[:1], "Rate the image.", "pq")]  # of one length bucket, so in one batch
    both = sampled.answer(pair)
    assert sampled.answer(pair[::-1]) == both[::-1] and sampled.answer(pair[1:]) == both[1:]
    assert both[0] != both[1] and len(sampled.engine.shapes) == 2 * 4  # two sizes of four programs
    assert sampled.decoding == "t1 p0.9 k50 s3 r1.1 max8"


@pytest.mark.slow
def test_the_next_answer_to_a_question_is_the_next_seeds(folder, asked):
    answers = {
        (seed, draw): vlm(folder, Decoding(max_new_tokens=8, temperature=1.0, seed=seed)).answer(
            [dataclasses.replace(asked[1], draw=draw)]
        )
        for seed, draw in ((3, 0), (3, 1), (4, 0))
    }
    assert answers[3, 1] == answers[4, 0] != answers[3, 0]


@pytest.mark.slow
def test_adapter(folder, asked, greedy, tmp_path):
    """An adapter with B = 0 changes nothing but the identity; one that is not zero changes answers."""
    config = greedy.net.config
    spec, table = LoRASpec(2, 4.0, ("q_proj", "down_proj")), entries(config)

    def adapted():
        net = Qwen3VL(config, rngs=nnx.Rngs(0))
        add_lora(net, table, spec, nnx.Rngs(0))
        return net

    shapes = flatten(split(nnx.eval_shape(adapted))[1])
    adapters = {name: np.full(leaf.shape, 0.5, np.float32) for name, leaf in shapes.items()}
    write_peft(tmp_path / "one", unflatten(adapters), spec, table)
    without = {name: leaf * (not name.endswith(".b")) for name, leaf in adapters.items()}
    write_peft(tmp_path / "zero", unflatten(without), spec, table)
    zero, one = (vlm(folder, Decoding(max_new_tokens=32), adapter=tmp_path / name) for name in ("zero", "one"))
    assert zero.answer(asked[1:]) == greedy.answer(asked[1:]) != one.answer(asked[1:])
    assert len({zero.revision, one.revision, greedy.revision}) == 3
    with pytest.raises(InputError, match="is no adapter for this net"):
        load_judge(resolve("embedded", "judge"), adapter=tmp_path / "one")


@pytest.mark.slow
def test_mesh_of_eight_gives_the_same_answers(folder, asked, greedy):
    spread = vlm(folder, Decoding(max_new_tokens=32), SMALL, make_mesh(2, 2, 2))
    assert dict(spread.net.mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}, "two key heads"
    assert spread.answer(asked * 2) == greedy.answer(asked * 2)


def test_another_net_takes_its_place(asked, greedy):
    """As while a judge is trained: the programs stay, the answers are the new net's."""
    net, before, programs = greedy.net, greedy.answer(asked[1:]), set(greedy.engine.shapes)
    greedy.net = dataclasses.replace(net, base=net.base | {"head": {"table": -net.base["head"]["table"]}})
    other = greedy.answer(asked[1:])
    greedy.net = net
    assert other != before == greedy.answer(asked[1:]) and greedy.engine.shapes == programs


def test_a_net_in_training_is_laid_out_for_decoding(folder, greedy):
    assert for_serving(greedy.net) is greedy.net
    laid = for_serving(load_judge(folder, mesh=make_mesh(2, 2, 2)))
    assert dict(laid.mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    kernel = laid.base["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (*kernel.shape[:2], kernel.shape[2] // 2)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(laid.base), jax.device_get(greedy.net.base))


def test_refused_before_compilation(folder, asked, tmp_path):
    small = vlm(folder, Decoding(), Limits(prompt=40))
    with pytest.raises(InputError, match="makes 71 tokens, more than 40"):
        small.answer(asked)
    with pytest.raises(InputError, match="more than 40"):
        small.check(asked[0])
    small.check(Question(asked[1].images, "ok", "pq"))
    assert not small.engine.shapes
    with pytest.raises(InputError, match="temperature"):
        Decoding(temperature=-1.0).sampler()
    with pytest.raises(InputError, match="max_new_tokens"):
        Decoding(max_new_tokens=0).sampler()
    for name in folder.iterdir():
        shutil.copy(name, tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"patch_size": 14}))
    with pytest.raises(InputError, match="must agree"):
        vlm(tmp_path, Decoding())


def test_bad_folders(folder, tmp_path):
    with pytest.raises(InputError, match=r"config.json is missing"):
        load_judge(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="not Qwen3-VL"):
        load_judge(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    shutil.copy(folder / "generation_config.json", tmp_path)
    with pytest.raises(InputError, match=r"model.safetensors"):
        load_judge(tmp_path)
    with pytest.raises(InputError, match="is no adapter"):
        load_judge(folder, adapter=tmp_path)


def test_fingerprint(tmp_path):
    one, two = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    one.write_bytes(bytes(100_000))
    two.write_bytes(b"x")
    mark = fingerprint([two, one])
    assert mark == fingerprint([one, two]) and len(mark) == 12
    one.write_bytes(bytes(50_001) + b"\1" + bytes(49_998))
    assert fingerprint([one, two]) != mark, "every byte of a small file"
    size = {"whole": 50_000, "every": 20_000}
    mark = fingerprint([one, two], **size)
    one.write_bytes(bytes(60_000) + b"\1" + bytes(39_999))
    assert fingerprint([one, two], **size) != mark, "a page of each stretch of a large one"
