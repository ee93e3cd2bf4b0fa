"""Slots that are refilled and beginnings that are read once: programs are fewer, answers are the same."""

import dataclasses

import numpy as np
import pytest

from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.reward import engine as engine_module
from spatialreward_jax.reward.batching import Limits
from spatialreward_jax.reward.loading import load_judge
from spatialreward_jax.reward.processor import Processor
from spatialreward_jax.reward.protocol import Question
from spatialreward_jax.reward.vlm import VLM, Decoding

ENDS = tuple(range(0, 2080, 13))
"""So many tokens end an answer that answers of random weights have many lengths."""

MODES = {
    "greedy": Decoding(max_new_tokens=24),
    "sampled": Decoding(max_new_tokens=24, temperature=1.0, repetition_penalty=1.1, seed=3),
    "constrained": Decoding(max_new_tokens=44, constrained=True, score_mode="expected"),
}


@pytest.fixture(scope="module")
def asked():
    """Two sources with three edits each: SC asks about both, PQ about the edit.

    The seed is one without a tie: with 0 two likeliest tokens of an answer are 8e-6 apart, which rounding decides.
    """
    rng = np.random.default_rng(4)
    picture = lambda height, width: rng.integers(0, 256, (height, width, 3), np.uint8)
    questions = []
    for height, width in ((224, 256), (256, 224)):
        source = picture(height, width)
        for edit in range(3):
            edited = picture(64, 96 - 32 * edit)
            questions.append(Question((source, edited), f"Did it get {'very ' * edit}red?", "sc"))
            questions.append(Question((edited,), "Is it good?", "pq"))
    return questions


def engine_of(goldens, decoding, limits, mesh=None):
    folder = goldens / "spatialreward"
    net = load_judge(folder, mesh=mesh)
    if not decoding.constrained:
        net = dataclasses.replace(net, eos=ENDS)
    return VLM(net, Processor(folder), decoding, model="golden", limits=limits)


def counted(judge, monkeypatch):
    """-> what `start`, `admit` and `decode` are called for: rows of each call."""
    calls = {"start": [], "admit": [], "decode": []}

    def spy(name, call):
        def run(*args):
            calls[name].append(len(args[-1].tokens) if name == "start" else args)
            return call(*args)

        return run

    for name in calls:
        monkeypatch.setattr(judge.engine, name, spy(name, getattr(judge.engine, name)))
    return calls


def close(a, b):
    assert [(reply.text, reply.complete) for reply in a] == [(reply.text, reply.complete) for reply in b]
    for one, other in zip(a, b):
        assert (one.expected is None) == (other.expected is None)
        if one.expected:
            np.testing.assert_allclose(one.expected, other.expected, atol=1e-4)


@pytest.fixture
def one_lane(monkeypatch):
    monkeypatch.setitem(engine_module.LANES, "cpu", 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sampled", "constrained"])
def test_refilled_slots_and_shared_beginnings_change_no_answer(goldens, asked, mode, one_lane, monkeypatch):
    """Three slots for twelve questions, beginnings read once, against all questions at a time, each read whole."""
    want = engine_of(goldens, MODES[mode], Limits(batch=16, beginnings=0)).answer(asked)
    judge = engine_of(goldens, MODES[mode], Limits(batch=3, beginnings=2))
    calls = counted(judge, monkeypatch)
    close(judge.answer(asked), want)
    assert calls["start"] == [2]  # both sources at a time, once
    assert 5 <= len(calls["decode"]) <= 12 and len(calls["admit"]) > len(asked) // 3
    assert len(set(want)) == len(want)
    judge.answer(asked[::-1])
    shapes, jitted = judge.engine.shapes, {name: getattr(judge.engine, name) for name in ("encode", "empty")}
    assert {kind for kind, *_ in shapes} == {"encode", "empty", "start", "admit", "decode"}
    for name, call in jitted.items():
        assert call._cache_size() == sum(kind == name for kind, *_ in shapes)


def test_refill_saves_passes(goldens, asked, one_lane):
    """Three slots need fewer passes than batches of three that wait for their longest answer; programs are bounded."""
    judge = engine_of(goldens, MODES["greedy"], Limits(batch=3))
    engine = judge.engine
    want = judge.answer(asked)
    together, engine.passes = engine.passes, 0
    parts = [judge.answer(asked[start : start + 3]) for start in range(0, len(asked), 3)]
    close([reply for part in parts for reply in part], want)
    assert together < engine.passes
    before = set(engine.shapes)
    judge.answer(asked[::-1])
    assert {kind for kind, *_ in engine.shapes - before} <= {"admit"}  # other counts of free slots at most
    for name in ("encode", "empty", "start", "admit", "decode"):
        assert getattr(engine, name)._cache_size() == sum(kind == name for kind, *_ in engine.shapes)


@pytest.mark.slow
def test_two_lanes_answer_the_same_and_compile_each_program_once(goldens, asked):
    want = engine_of(goldens, MODES["sampled"], Limits(batch=16)).answer(asked)
    judge = engine_of(goldens, MODES["sampled"], Limits(batch=3))
    assert judge.engine.lanes == 2
    close(judge.answer(asked), want)
    for name in ("encode", "empty", "start", "admit", "decode"):
        assert getattr(judge.engine, name)._cache_size() == sum(kind == name for kind, *_ in judge.engine.shapes)
    assert engine_of(goldens, MODES["sampled"], Limits(batch=3), make_mesh(4, 1, 2)).engine.lanes == 1


@pytest.mark.slow
def test_a_mesh_of_eight_answers_the_same(goldens, asked):
    want = engine_of(goldens, MODES["greedy"], Limits(batch=16)).answer(asked)
    judge = engine_of(goldens, MODES["greedy"], Limits(batch=4), make_mesh(4, 1, 2))
    close(judge.answer(asked), want)
    for name in ("start", "admit", "decode"):
        assert getattr(judge.engine, name)._cache_size() == sum(kind == name for kind, *_ in judge.engine.shapes)
