"""The judge's attention, traced through its decoder, against attention written out by hand; the picture of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.attention_maps import AttentionProbe, cited_spans, save_attention
from spatialreward_jax.io.images import read_image
from spatialreward_jax.kernels import reference
from spatialreward_jax.models.qwen3_vl import pack_images, pack_prompts
from spatialreward_jax.reward.judge import FunctionAnswerer, RewardModel
from spatialreward_jax.reward.loading import load_judge
from spatialreward_jax.reward.processor import Processor
from spatialreward_jax.reward.protocol import Question, read_answers
from spatialreward_jax.reward.types import Edit
from spatialreward_jax.reward.vlm import VLM, Decoding

ANSWER = json.dumps(
    {
        "edit_region": [{"id": 0, "label": "cup", "bbox_2d": [100, 200, 600, 700]}],
        "reasoning": "<|bbox_0|> is red now. <|global|> Good.",
        "score": [20, 21],
    }
)


@pytest.fixture(scope="module")
def judge(goldens):
    folder = goldens / "spatialreward"
    return VLM(load_judge(folder), Processor(folder), Decoding(max_new_tokens=8), model="golden")


@pytest.fixture(scope="module")
def question(goldens):
    golden = np.load(goldens / "qwen3_vl.npz")
    return Question((golden["image_0"], golden["image_1"]), "Judge the edit.", "sc")


@pytest.fixture(scope="module")
def boxes(question):
    return read_answers(ANSWER, ANSWER, question.images[-1].shape[:2]).regions


def dense(judge, question, answer):
    """Attention weights [L, N, T, T] of question and answer, and the token of each image patch."""
    net, processor = judge.net, judge.processor
    images = [processor.patches(image) for image in question.images]
    grids = [image.grid for image in images]
    asked = processor.tokens(question.text, grids)
    written = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    tokens = np.concatenate([asked, written])
    size = max(len(image.values) for image in images)
    prompt = pack_prompts(
        [tokens], [[0, 1]], grids, length=len(tokens), patches=size, image_token=net.config.image_token
    )
    packed = pack_images([i.values for i in images], grids, size, side=net.config.vision.side)
    causal = jnp.arange(len(tokens))[None]

    def attend(q, k, v):
        weights, _ = reference.probabilities(q, k, positions=causal)
        return reference.attention(q, k, v, positions=causal), weights[0]

    model = net.merge(net.adapters, net.base)
    run = jax.jit(lambda p: model.read(p.tokens, p.image_index, p.positions, model.images(*packed), attend)[1])
    return np.asarray(run(prompt)), prompt.image_index[0], size // 4, len(asked)


def test_maps_equal_attention_written_out(judge, question, boxes):
    maps = AttentionProbe(judge)(question, ANSWER, boxes)
    weights, index, per_image, asked = dense(judge, question, ANSWER)
    assert maps.sets == ("answer", "box 0", "global")
    assert maps.regions == ("source 0", "edited", "box 0 edited", "box 0 source 0")
    for number, image in enumerate(maps.images):
        mine = (index >= 0) & (index // per_image == number)
        expected = weights[:, :, asked:, mine].mean(axis=2)
        np.testing.assert_allclose(image[:, :, 0].reshape(expected.shape), expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(maps.mass[:, :, 0, number], expected.sum(axis=-1), rtol=0, atol=1e-5)
        share = weights[:, :, asked:, mine]
        share = share / share.sum(axis=-1, keepdims=True)
        entropy = -(share * np.log(share)).sum(axis=-1).mean(axis=2)
        np.testing.assert_allclose(maps.token_entropy[:, :, 0, number], entropy, rtol=0, atol=1e-4)
    assert (maps.mass[:, :, :, 2] <= maps.mass[:, :, :, 1] + 1e-6).all()
    left, top, right, bottom = boxes[0].box
    rows, columns = maps.images[1].shape[-2:]
    height, width = question.images[1].shape[:2]
    box = maps.images[1][
        ...,
        int(top / height * rows) : int(np.ceil(bottom / height * rows)),
        int(left / width * columns) : int(np.ceil(right / width * columns)),
    ]
    np.testing.assert_allclose(maps.mass[..., 2], box.sum(axis=(-2, -1)), rtol=0, atol=1e-5)
    found = maps.diagnosis()
    assert found.source_entropy.shape == (weights.shape[0], judge.net.config.text.kv_heads)
    assert (found.source_mass + found.edited_mass < 1).all()


def test_answers_of_similar_length_share_a_program(judge, question, boxes):
    probe = AttentionProbe(judge)
    probe(question, ANSWER, boxes)
    probe(question, ANSWER.replace("Good", "Quite good"))
    assert probe._trace._cache_size() == 1


def test_spans_of_citations():
    spans = cited_spans(ANSWER)
    cut = {name: [ANSWER[a:b] for a, b in found] for name, found in spans.items()}
    assert cut == {"answer": [ANSWER], "box 0": ["<|bbox_0|> is red now. "], "global": ["<|global|> Good."]}
    assert cited_spans("no boxes") == {"answer": [(0, 8)]}
    twice = cited_spans('"<|bbox_1|> a \\" b <|bbox_2|> c <|bbox_1|> d", "score"')
    assert [len(twice[name]) for name in ("box 1", "box 2")] == [2, 1]


def test_the_picture_and_its_numbers(judge, question, boxes, tmp_path):
    model = RewardModel(judge)
    score = read_answers(ANSWER, "nothing", question.images[1].shape[:2])
    edit = Edit(question.images[0], question.images[1], "paint the cup red")
    found = save_attention(tmp_path / "maps.png", model, edit, score).diagnosis()
    assert json.dumps(found.to_json()) and 0 < found.edited_mass.mean() < 1
    picture = read_image(tmp_path / "maps.png")
    assert picture.shape[0] > 3 * 224 and picture.std() > 10


def test_what_cannot_be_shown_is_said(judge, question, tmp_path):
    with pytest.raises(InputError, match="answer is empty"):
        AttentionProbe(judge)(question, "")
    other = RewardModel(FunctionAnswerer(lambda question: ANSWER))
    edit = Edit(*question.images, "paint the cup red")
    with pytest.raises(InputError, match="Qwen3-VL judges only, not for FunctionAnswerer"):
        save_attention(tmp_path / "x.png", other, edit, other.score([edit])[0])
