"""Which tokens a judge is trained on, and the loss on them."""

import jax
import numpy as np
import pytest

from spatialreward_jax.data.chat_rows import question_row
from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.chats import ChatRow, Turn
from spatialreward_jax.reward.loading import load_judge
from spatialreward_jax.reward.processor import Processor
from spatialreward_jax.reward.supervision import answer_loss, pack_chats, targets_of, tokenize_chat

QUESTION, ANSWER = "What changed?", '{"score": [3, 4]}'


@pytest.fixture(scope="module")
def processor(goldens):
    return Processor(goldens / "spatialreward")


@pytest.fixture(scope="module")
def net(goldens):
    return load_judge(goldens / "spatialreward")


def image(seed, side=64):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def loss_of(net, processor, rows):
    batch = pack_chats(rows, processor, side=net.config.vision.side)
    return batch, *jax.jit(lambda b: answer_loss(net.merge(None, net.base), b))(batch)


def test_exactly_the_answer_and_its_end_are_targets(processor):
    grids = [(4, 4), (4, 6)]
    row = question_row([image(0)] * 2, QUESTION, ANSWER)
    chat = tokenize_chat(processor, row.turns, grids)
    prompt = processor.tokens(QUESTION, grids)
    np.testing.assert_array_equal(chat.tokens[: len(prompt)], prompt)  # what decoding is given
    assert processor.tokenizer.decode(chat.tokens[chat.answer]) == ANSWER + "<|im_end|>"
    np.testing.assert_array_equal(np.flatnonzero(chat.answer), np.arange(len(prompt), len(chat.tokens)))


def test_every_answer_of_a_longer_chat_counts(processor):
    turns = (
        Turn("system", ("Be brief.",)),
        Turn("user", (None, "First?")),
        Turn("assistant", ("One.",)),
        Turn("user", ("Second?",)),
        Turn("assistant", ("Two.",)),
    )
    chat = tokenize_chat(processor, turns, [(4, 4)])
    text = processor.tokenizer.decode(chat.tokens)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], chat.answer.astype(int), [0]]))).reshape(-1, 2)
    assert [processor.tokenizer.decode(chat.tokens[a:b]) for a, b in runs] == ["One.<|im_end|>", "Two.<|im_end|>"]
    assert "<|im_end|>\n<|im_start|>user\nSecond?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>" in text
    at, targets, weight = targets_of(chat, 32)
    real = weight > 0
    np.testing.assert_array_equal(chat.tokens[at[real] + 1], targets[real])
    assert weight.sum() == chat.answer.sum() and not weight[real.sum() :].any()


def test_reserved_tokens_are_refused(processor):
    for row in (question_row([], "a<|im_end|>b", "x"), question_row([], "ask", "<|image_pad|>")):
        with pytest.raises(InputError, match="the tokenizer reserves"):
            tokenize_chat(processor, row.turns, [])


def test_loss_is_the_mean_over_answer_tokens_of_the_full_forward(net, processor):
    rows = [question_row([image(1)], QUESTION, ANSWER), question_row([image(2)], "Why?", "So.")]
    batch, loss, hits = loss_of(net, processor, rows)
    model = net.merge(None, net.base)
    prompt, grid = batch.prompt, batch.grid
    features = model.images(batch.patches, grid)
    hidden = model(prompt.tokens, prompt.image_index, prompt.positions, features)
    logits = np.asarray(model.logits(hidden), np.float64)
    total, right, count = 0.0, 0, 0
    for number, row in enumerate(rows):
        chat = tokenize_chat(processor, row.turns, [(4, 4)])
        for place in np.flatnonzero(chat.answer):
            scores, target = logits[number, place - 1], chat.tokens[place]
            total += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[target]
            right += scores.argmax() == target
            count += 1
    assert float(loss.count) == count == batch.weight.sum()
    np.testing.assert_allclose(float(loss.total), total, rtol=1e-5)
    assert float(hits.total) == right


def test_padding_changes_nothing(net, processor):
    """A row alone, and beside a longer one with a larger image and more of them."""
    short = question_row([image(3)], QUESTION, ANSWER)
    long = ChatRow(question_row([image(4, 96), image(5, 96)], QUESTION * 40, ANSWER * 8).turns, (image(4, 96),) * 2)
    _, alone, _ = loss_of(net, processor, [short])
    _, other, _ = loss_of(net, processor, [long])
    batch, both, _ = loss_of(net, processor, [short, long])
    assert batch.prompt.tokens.shape[1] > 128 and batch.patches.shape[0] == 4  # three images, padded to four
    np.testing.assert_allclose(float(both.total), float(alone.total) + float(other.total), rtol=1e-5)
    assert float(both.count) == float(alone.count) + float(other.count)
