"""Strict answers or no number; the official rules case by case; corrupted answers in bulk."""

import json
import random

import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.parsing import MODES, parse
from spatialreward_jax.reward.types import NEUTRAL

SC = {
    "edit_region": [{"id": 0, "label": "red hat", "bbox_2d": [10, 20, 300, 400]}],
    "reasoning": "<|bbox_0|> A red hat sits well. <|global|> Done.",
    "score": [21, 17.5],
}
PQ = {"reasoning": "Natural light.", "score": [20, 15]}


def strict(answer, regions=True):
    return parse(answer if isinstance(answer, str) else json.dumps(answer), "strict", regions=regions)


def test_strict_reads_a_well_formed_answer():
    parsed = strict(SC)
    assert parsed.scores == (21, 17.5) and parsed.error == ""
    assert parsed.regions[0].bbox_2d == (10, 20, 300, 400)
    assert parsed.reasoning == SC["reasoning"]
    assert strict("```json\n" + json.dumps(SC, indent=2) + "\n```").scores == (21, 17.5)
    assert strict(PQ, regions=False).scores == (20, 15)
    assert strict(SC | {"edit_region": []}).regions == ()


def test_adversarial_answers_are_read_in_time():
    """Each of these once took longer with every further piece, up to days."""
    numbers = ",".join(["20"] * 60)
    assert parse(f'{{"score": [{numbers} }}', "bench", regions=False).rule == "neutral"
    assert parse(f'{{"score": [{numbers}], }}', "bench", regions=False).scores == (20, 20)
    assert parse("<think>" * 10_000, "bench", regions=False).rule == "neutral"
    thought = '<think>{"score": [1, 1]}</think>{"score": [5, 6]}'
    assert parse(thought, "bench", regions=False).scores == (5, 6)


def test_lone_surrogates_become_question_marks():
    answer = json.dumps(SC).replace("red hat", "red \\ud83d hat")
    for mode in MODES:
        parsed = parse(answer, mode, regions=True)
        assert "A red ? hat" in parsed.reasoning and parsed.scores == (21, 17.5)
        assert [region.label for region in parsed.regions] == ["red ? hat"] * (mode != "no_regions")


def test_a_judge_without_regions_is_read_as_strictly():
    plain = {name: value for name, value in SC.items() if name != "edit_region"}
    assert strict(plain).scores is None
    assert parse(json.dumps(plain), "no_regions", regions=True).scores == (21, 17.5)
    assert parse(json.dumps(plain) + " Done.", "no_regions", regions=True).scores is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "empty"),
        ("Score: 20 and 15", "not one JSON object"),
        (json.dumps(SC) + " Done.", "Extra data"),
        (json.dumps(SC) + json.dumps(SC), "Extra data"),
        (json.dumps([SC]), "list"),
        (json.dumps(SC)[:-1], "not one JSON object"),
        (SC | {"score": [26, 3]}, "0..25"),
        (SC | {"score": [-1, 3]}, "0..25"),
        (SC | {"score": [20]}, "two numbers"),
        (SC | {"score": [20, 1, 2]}, "two numbers"),
        (SC | {"score": 20}, "two numbers"),
        (SC | {"score": ["20", 3]}, "two numbers"),
        (SC | {"score": [True, 3]}, "two numbers"),
        (SC | {"score": [float("nan"), 3]}, "NaN"),
        ('{"edit_region": [], "reasoning": "", "score": [1e999, 3]}', "two numbers"),
        ('{"edit_region": [], "reasoning": "", "score": [1, 2], "score": [3, 4]}', "twice"),
        ('{"edit_region": [], "reasoning": "", "score": [%s, 2]}' % ("9" * 5000), "unreadable"),
        ("[" * 100_000, "unreadable"),
        ({k: v for k, v in SC.items() if k != "edit_region"}, "edit_region"),
        ({k: v for k, v in SC.items() if k != "reasoning"}, "reasoning"),
        (SC | {"edit_region": [{"id": 0, "label": "x", "bbox_2d": [1, 2, 3]}]}, "four numbers"),
        (SC | {"edit_region": [{"id": 0, "label": "x", "bbox_2d": [1, 2, 3, None]}]}, "four numbers"),
        (SC | {"edit_region": SC["edit_region"] * 2}, "different ids"),
    ],
)
def test_strict_refuses(answer, why):
    parsed = strict(answer)
    assert parsed.scores is None
    assert why in parsed.error and "\n" not in parsed.error


def test_server_equals_the_official_rules(goldens):
    cases = json.loads((goldens / "reward.json").read_text())["cases"]
    assert len(cases) == 45
    for case in cases:
        for stream in ("sc", "pq"):
            parsed = parse(case[f"{stream}_text"], "server", regions=stream == "sc")
            assert list(parsed.found) == case[f"{stream}_parsed"], case["note"]
            assert list(parsed.scores) == case[f"{stream}_scores"], case["note"]
            assert parsed.rule == case[f"{stream}_rule"], case["note"]


@pytest.mark.parametrize(
    ("text", "scores", "rule"),
    [
        ('<think>{"score": [1, 2]}</think>{"score": [20, 10]}', (20, 10), "json"),
        ('{"score": [20, 10] /* of 25 */}', (20, 10), "pattern"),
        ('{"reasoning": "it\'s", "score": [3.5, 4],}', (3.5, 4), "pattern"),
        ('{"score": [7],}', (12.5, 12.5), "neutral"),
        ('{"score": [7]}', (7, 7), "json"),
        ('{"score": 7}', (7, 7), "json"),
        ('{"score": []}', (12.5, 12.5), "json"),
        ("{}", (12.5, 12.5), "json"),
        ('{"score": [40, -3, 1]}', (40, -3), "json"),
        ("Score: 20 and 15", (12.5, 12.5), "neutral"),
        ("} 12 {", (12.5, 12.5), "neutral"),
        ("", (12.5, 12.5), "neutral"),
        (
            '{"edit_region": [{"id": 0, "label": "b", "bbox_2d": [5, 6, 7, 8]}], "reasoning": "cut',
            (12.5, 12.5),
            "neutral",
        ),
    ],
)
def test_bench_rules(text, scores, rule):
    parsed = parse(text, "bench", regions=True)
    assert (parsed.scores, parsed.rule) == (scores, rule)


@pytest.mark.parametrize("mode", ["server", "bench"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "null", '"high"', "{}"])
def test_official_rules_never_yield_a_number_that_is_none(mode, value):
    parsed = parse(f'{{"reasoning": "r", "score": [{value}, {value}]}}', mode, regions=False)
    assert parsed.scores is None or parsed.scores == (12.5, 12.5)


def test_lenient_modes_keep_readable_regions():
    text = json.dumps(SC | {"edit_region": [*SC["edit_region"], {"id": 1}, "x"]})
    for mode in ("server", "bench"):
        parsed = parse(text, mode, regions=True)
        assert [region.label for region in parsed.regions] == ["red hat"]
        assert len(parsed.warnings) == 2


def corrupted(text, rng):
    """Truncates, deletes, doubles, swaps or overwrites characters."""
    kind = rng.randrange(5)
    i, j = sorted((rng.randrange(len(text)), rng.randrange(len(text))))
    if kind == 0:
        return text[:j]
    if kind == 1:
        return text[:i] + text[j:]
    if kind == 2:
        return text[:j] + text[i:]
    if kind == 3:
        return text[:i] + rng.choice('{}[]",:0123456789.-eE\\ \n\x00é<|') + text[i + 1 :]
    return text[:i] + text[j] + text[i:j] + text[j:]


def test_ten_thousand_corrupted_answers():
    """No crash in any mode; a strict number only where a plain JSON reader finds that very number in range."""
    rng = random.Random(0)
    valid = 0
    for n in range(10_000):
        text = json.dumps(SC if n % 2 else PQ, indent=None if n % 3 else 1)
        for _ in range(rng.randint(1, 3)):
            text = corrupted(text, rng) or "{"
        for mode in MODES:
            parsed = parse(text, mode, regions=bool(n % 2))
            assert (parsed.scores is None) == bool(parsed.error)
            assert parsed.scores is None or list(parsed.scores).count(NEUTRAL) >= parsed.neutral
            if mode == "strict" and parsed.scores is not None:
                valid += 1
                answer = json.loads(text)
                assert list(parsed.scores) == answer["score"] and isinstance(answer["reasoning"], str)
                assert all(0 <= score <= 25 for score in answer["score"]) and len(answer["score"]) == 2
    assert 0 < valid < 5_000


@pytest.mark.parametrize(
    ("mode", "text", "neutral"),
    [
        ("strict", "", 0),
        ("server", "", 2),
        ("server", '{"score": [7]}', 1),
        ("server", '{"score": [7, 12.5]}', 0),
        ("server", "{7 of 25}", 0),
        ("bench", "Score: 20 and 15", 2),
        ("bench", "{}", 2),
        ("bench", '{"score": []}', 2),
        ("bench", '{"score": [7]}', 0),  # the official program takes it twice
        ("bench", '{"score": [7],}', 2),
        ("bench", '{"score": [3, 4],}', 0),
    ],
)
def test_numbers_that_no_answer_gave_are_counted(mode, text, neutral):
    parsed = parse(text, mode, regions=False)
    assert parsed.neutral == neutral
    if parsed.scores:
        assert neutral == 0 or parsed.scores[-1] == NEUTRAL


def test_every_truncation_is_invalid():
    text = json.dumps(SC)
    assert all(strict(text[:n]).scores is None for n in range(len(text)))


def test_unknown_mode():
    with pytest.raises(InputError, match="choose one of strict, server, bench"):
        parse("", "loose", regions=True)
