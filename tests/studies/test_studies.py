"""Studies with a stand-in for the programs, and the real arms' flags against the real configs and programs."""

import ast
import dataclasses
import functools
import importlib.util
import json
import pathlib
import re
import types

import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.recipes.grpo_settings import decoding_of
from spatialreward_jax.studies import (
    STUDIES,
    Arm,
    Quotient,
    Study,
    Value,
    cells,
    claim,
    interval,
    read_cell,
    run_cell,
    seeds_of,
    study_table,
)

ROOT = pathlib.Path(__file__).parents[2]
QUALITY = {"good": 0.8, "bad": 0.5}


def arm(name):
    def commands(place):
        return [
            ["train", f"--workdir={place.folder / 'train'}", f"--config.quality={QUALITY[name] + place.seed / 100}"]
        ]

    values = {"quality": Value("train/summary.json", ("quality",)), "gap": Value("train/summary.json", ("a", "b", 1))}
    values |= {"two": Value("train/summary.json", ("list", 1)), "half": Quotient("quality", ("two",))}
    values["thirty"] = Quotient("quality", ("two",), times=60)
    return Arm(commands, values, minutes=1)


@pytest.fixture
def toy(monkeypatch):
    """A study of two arms whose program writes its summary at once; yields what was run."""
    study = Study("Is good better?", {name: arm(name) for name in QUALITY})
    monkeypatch.setattr(cells, "write_rankings", lambda *args: None)
    monkeypatch.setitem(STUDIES, "toy", study)
    ran = []

    def program(command):
        words = dict(word[2:].split("=", 1) for word in command if word.startswith("--"))
        ran.append(words)
        folder = pathlib.Path(words["workdir"])
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(
            json.dumps({"quality": float(words["config.quality"]), "a": {}, "list": [1, 2]})
        )
        return types.SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(cells.subprocess, "Popen", program)
    return ran


def test_a_cell_runs_once_and_is_kept(toy, tmp_path):
    first = run_cell(tmp_path, "toy", "good", 0, say=lambda line: None)
    assert first.values == {"quality": 0.8, "gap": None, "two": 2, "half": 0.4, "thirty": 24}
    assert run_cell(tmp_path, "toy", "good", 0) == first == read_cell(tmp_path, "toy", "good", 0)
    assert len(toy) == 1
    assert read_cell(tmp_path, "toy", "good", 1) is None


def test_what_cells_share_runs_once(toy, tmp_path, monkeypatch):
    shared = lambda place: [
        (place.root / "eyes/summary.json", ["train", f"--workdir={place.root / 'eyes'}", "--config.quality=1"])
    ]
    arms = {name: dataclasses.replace(arm(name), shared=shared) for name in QUALITY}
    monkeypatch.setitem(STUDIES, "toy", Study("Is good better?", arms))
    cells_run = [run_cell(tmp_path, "toy", name, 0, say=lambda line: None) for name in QUALITY]
    assert [pathlib.Path(words["workdir"]).name for words in toy] == ["eyes"] + ["train"] * len(QUALITY)
    assert all(len(cell.commands) == len(cell.seconds) == 1 for cell in cells_run), "the budget is the arm's own"


def test_numbers_of_other_commands_are_refused(toy, tmp_path, monkeypatch):
    run_cell(tmp_path, "toy", "good", 0, say=lambda line: None)
    monkeypatch.setitem(QUALITY, "good", 0.9)
    with pytest.raises(InputError, match="other commands than today's"):
        read_cell(tmp_path, "toy", "good", 0)


def test_a_workdir_can_be_moved(toy, tmp_path):
    before = run_cell(tmp_path / "here", "toy", "good", 0, say=lambda line: None)
    (tmp_path / "here").rename(tmp_path / "there")
    assert read_cell(tmp_path / "there", "toy", "good", 0) == before
    assert "--workdir=WORKDIR/toy/good/seed0/train" in before.commands[0]


def test_a_workdir_keeps_to_the_configs_and_weights_it_began_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "configs/grpo.py"
    config.parent.mkdir()
    config.write_text("STEPS = 3\n")
    claim(tmp_path / "studies")
    config.write_text("STEPS = 3  # of a run\n")
    claim(tmp_path / "studies")
    config.write_text("STEPS = 4\n")
    with pytest.raises(InputError, match="give a new workdir"):
        claim(tmp_path / "studies")
    claim(tmp_path / "others")
    (tmp_path / "unmarked/boxes/cited/seed0").mkdir(parents=True)
    (tmp_path / "unmarked/boxes/cited/seed0/cell.json").touch()
    with pytest.raises(InputError, match="give a new workdir"):
        claim(tmp_path / "unmarked")


def test_seconds_of_interrupted_attempts_count(toy, tmp_path):
    (tmp_path / "toy/good/seed0").mkdir(parents=True)
    (tmp_path / "toy/good/seed0/seconds0").write_text("30.5")
    assert run_cell(tmp_path, "toy", "good", 0, say=lambda line: None).seconds[0] >= 30.5


def test_seeds_that_were_run(toy, tmp_path):
    assert seeds_of(tmp_path, "toy") == set()
    for name, seed in (("good", 3), ("bad", 3), ("bad", 10)):
        run_cell(tmp_path, "toy", name, seed, say=lambda line: None)
    assert seeds_of(tmp_path, "toy") == {3, 10}


def test_cells_that_an_arm_needs_run_first(toy, tmp_path, monkeypatch):
    last = dataclasses.replace(arm("good"), needs=(("toy", "bad"),))
    monkeypatch.setitem(STUDIES, "later", Study("And then?", {"good": last}))
    run_cell(tmp_path, "later", "good", 1, say=lambda line: None)
    assert read_cell(tmp_path, "toy", "bad", 1) and read_cell(tmp_path, "toy", "good", 1) is None
    run_cell(tmp_path, "later", "good", 1, say=lambda line: None)
    assert len(toy) == 2


def test_rewards_are_judges_of_the_study_of_boxes(tmp_path):
    for name in ("cited", "none"):
        reward = STUDIES["reward"].arms[name]
        (needed,) = reward.needs
        training, _ = STUDIES[needed[0]].arms[needed[1]].commands(cells.place_of(tmp_path, *needed, 1))
        (workdir,) = (word.removeprefix("--workdir=") for word in training if word.startswith("--workdir="))
        (words,) = reward.commands(cells.place_of(tmp_path, "reward", name, 1))
        assert f"--config.judge.model={workdir}/judge" in words


def test_a_failed_command_names_the_cell_and_keeps_nothing(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(cells.subprocess, "Popen", lambda command: types.SimpleNamespace(wait=lambda: 3))
    with pytest.raises(InputError, match=r"toy/bad/seed2: status 3"):
        run_cell(tmp_path, "toy", "bad", 2, say=lambda line: None)
    assert read_cell(tmp_path, "toy", "bad", 2) is None


def test_ctrl_c_waits_until_the_program_has_saved(toy, tmp_path, monkeypatch):
    ends = [KeyboardInterrupt, 0]

    def wait():
        end = ends.pop(0)
        if end is KeyboardInterrupt:
            raise end
        return end

    monkeypatch.setattr(cells.subprocess, "Popen", lambda command: types.SimpleNamespace(wait=wait))
    with pytest.raises(KeyboardInterrupt):
        run_cell(tmp_path, "toy", "good", 0, say=lambda line: None)
    assert not ends and read_cell(tmp_path, "toy", "good", 0) is None


def test_unknown_names(tmp_path):
    with pytest.raises(InputError, match="choose one of boxes"):
        run_cell(tmp_path, "nothing", "a", 0)
    with pytest.raises(InputError, match="has no arm 'a': choose one of cited, uncited, none"):
        run_cell(tmp_path, "boxes", "a", 0)


def test_the_table_has_intervals_pairs_seeds_and_shows_what_was_not_run(toy, tmp_path):
    empty = study_table(tmp_path, "toy", [0, 1])
    assert empty.count("not run |") == 12 and not re.search(r"\d\.\d{3}", empty)
    for name, seed in (("good", 0), ("good", 1), ("bad", 0), ("bad", 1), ("bad", 2)):
        run_cell(tmp_path, "toy", name, seed, say=lambda line: None)
    text = study_table(tmp_path, "toy", [0, 1, 2])
    mean, low, high = interval([0.80, 0.81])
    assert f"| good | 0, 1 | {mean:.3f} ({low:.3f} to {high:.3f}) | - | 2.000" in text
    assert "| bad | 0, 1 | -0.300 (-0.300 to -0.300) | - | +0.000" in text, "seed 2 has no partner"
    assert re.findall(r"--arm=(\w+) --seeds=(\d)", text) == [("good", "2")]


def test_small_numbers_are_shown(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(QUALITY, "good", 4.125e-5)
    run_cell(tmp_path, "toy", "good", 0, say=lambda line: None)
    assert "| good | 0 | 4.1e-05 | - | 2.000 | 2.1e-05 |" in study_table(tmp_path, "toy", [0])


def test_intervals_are_students():
    mean, low, high = interval([1.0, 2.0, 4.0])
    half = 4.302653 * np.std([1, 2, 4], ddof=1) / np.sqrt(3)
    assert (mean, low, high) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half), rel=1e-6)
    assert np.isnan(interval([1.0])[1])


@pytest.mark.parametrize("study, name", [(study, name) for study, found in STUDIES.items() for name in found.arms])
def test_the_flags_of_every_arm_exist(study, name, tmp_path):
    place = cells.place_of(tmp_path, study, name, 1)
    found = STUDIES[study].arms[name]
    for program, *words in [*(words for _, words in found.shared(place)), *found.commands(place)]:
        source = (ROOT / f"spatialreward_jax/{program.replace('.', '/')}.py").read_text()
        if "judge_flags.define(" in source:
            source += (ROOT / "spatialreward_jax/judge_flags.py").read_text()
        given = [word.removeprefix("--").split("=")[0] for word in words]
        assert len(set(given)) == len(given)
        for flag in given:
            if not flag.startswith("config."):
                assert re.search(rf'"{flag}"', source), flag
        if program == "train":
            path = next(word for word in words if word.startswith("--config=")).removeprefix("--config=").split(":")[0]
            spec = importlib.util.spec_from_file_location("config", ROOT / path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            config = module.get_config()
            for flag, value in (word.removeprefix("--").split("=") for word in words if word.startswith("--config.")):
                *folders, key = flag.split(".")[1:]
                section = functools.reduce(getattr, folders, config)
                assert key in section, flag
                section[key] = value if isinstance(section[key], str) else ast.literal_eval(value)
            if config.task == "flow_grpo":
                decoding_of(config.judge).sampler()  # refuses what does not go together
