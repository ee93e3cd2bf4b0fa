"""The embedded tokenizer: reproducible, one token a coordinate, the chat templates of judge and editor."""

import json
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from spatialreward_jax.data import editworld
from spatialreward_jax.data.editworld import answers, tokenizer
from spatialreward_jax.data.editworld.candidates import random_candidate


@pytest.fixture(scope="module")
def judge():
    return AutoTokenizer.from_pretrained(tokenizer.ASSETS / "judge")


def test_ids(judge):
    assert len(judge) == tokenizer.ENTRIES
    first = tokenizer.ENTRIES - 22
    assert judge.convert_tokens_to_ids(list(tokenizer.SPECIAL)) == list(range(first, first + 14))
    assert judge.eos_token == "<|im_end|>" and judge.pad_token == "<|endoftext|>"


def test_every_number_is_one_token(judge):
    assert all(len(judge.encode(str(n))) == 1 for n in range(1001))
    assert len({judge.encode(str(n))[0] for n in range(1001)}) == 1001
    for box in ("[0,15,999,1000]", "[312, 101, 233, 12]"):
        tokens = judge.tokenize(box)
        assert [t for t in tokens if t.isdigit()] == box.strip("[]").replace(",", " ").split()


def test_answers_are_short_and_survive(judge):
    lengths = {0: [], 1: [], 2: [], 3: []}
    room = json.loads((tokenizer.ASSETS / "judge/judge.json").read_text())["max_new_tokens"]
    for index in range(120):
        candidate = random_candidate(editworld.sample_edit("test", index), np.random.default_rng(index))
        for answer in (answers.consistency_answer(candidate), answers.quality_answer(candidate)):
            assert judge.decode(judge.encode(answer)) == answer
        lengths[len(candidate.regions)].append(len(judge.encode(tokenizer.brief_answer(candidate))))
        assert len(judge.encode(answers.consistency_answer(candidate))) < room, "an end token is to fit too"
    assert [max(lengths[count]) <= limit for count, limit in enumerate((20, 42, 64, 84))] == [True] * 4


def test_any_text_survives(judge):
    text = "Ünïcode – 日本 😀 12345 007 3.14\n\n  don't {x}"
    assert judge.decode(judge.encode(text)) == text


@pytest.mark.parametrize(("folder", "golden"), [("judge", "spatialreward"), ("editor/processor", "omnigen2/processor")])
def test_templates_behave_like_the_published_layout(folder, golden, goldens):
    reference = json.loads((goldens / golden / "tokenizer_config.json").read_text())["chat_template"]
    ours = AutoTokenizer.from_pretrained(tokenizer.ASSETS / folder)
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What changed?"}]
    chats = (
        [{"role": "user", "content": parts}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": [{"type": "text", "text": ""}]}, {"role": "assistant", "content": "No."}],
    )
    for chat in chats:
        for opened in (False, True):
            options = {"tokenize": False, "add_generation_prompt": opened}
            expected = ours.apply_chat_template(chat, chat_template=reference, **options)
            assert ours.apply_chat_template(chat, **options) == expected


def test_model_type_beside_it_changes_nothing(judge, tmp_path):
    folder = shutil.copytree(tokenizer.ASSETS / "judge", tmp_path / "judge")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    text = '{"bbox_2d":[12,345,678,1000]}'
    assert AutoTokenizer.from_pretrained(folder).encode(text) == judge.encode(text)


@pytest.mark.slow
def test_training_reproduces_the_committed_file():
    committed = json.loads((tokenizer.ASSETS / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads(tokenizer.train().to_str()) == committed
