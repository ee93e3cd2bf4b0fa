"""What is compared: studies, their arms, the commands of an arm, and where its numbers stand afterwards.

An arm is a list of this package's own programs with flags, so that any cell can be run by hand too.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

JUDGE_STEPS = 200
"""Updates with which an arm teaches the judge's questions; one that takes longer than its minutes is warned of."""

RL_STEPS = 12
"""Phases of an RL run; likewise."""

RECIPES = ("parity", "window")
"""In the order in which `plan --flops_only` lists them."""

RANKINGS = 128
"""Rankings of each size (2, 3 and 4 edits) of the test split."""

HELDOUT = 256
"""Held-out edits whose truth is compared before and after RL."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a cell works. root: of all studies. folder: of the cell. rankings: test rankings, others for each seed."""

    root: pathlib.Path
    folder: pathlib.Path
    rankings: pathlib.Path
    seed: int


@dataclasses.dataclass(frozen=True)
class Value:
    """A number that a command leaves behind: keys (of objects) and places (in lists) of a JSON file in its folder."""

    file: str
    keys: tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Quotient:
    """`times` one column over the product of others, all of which stand before it."""

    over: str
    under: tuple[str, ...]
    times: float = 1.0


@dataclasses.dataclass(frozen=True)
class Arm:
    """commands: of a place, each the words behind `python -m spatialreward_jax.`; minutes: their budget.

    values: column -> where its number stands; a number that is absent (no region without boxes) leaves a gap.
    needs: (study, arm) of cells that are run first, at the same seed; they have budgets of their own.
    shared: of a place, what several cells begin with and the first of them runs: (the last file it writes, words).
    """

    commands: Callable[[Place], list[list[str]]]
    values: Mapping[str, Value | Quotient]
    minutes: float
    needs: Sequence[tuple[str, str]] = ()
    shared: Callable[[Place], list[tuple[pathlib.Path, list[str]]]] = lambda place: []


@dataclasses.dataclass(frozen=True)
class Study:
    """title: the question. arms: by name; the first is what the others are compared with."""

    title: str
    arms: Mapping[str, Arm]


def judge_folder(root: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
    """The judge that an arm of the study "boxes" trained."""
    return root / "boxes" / arm / f"seed{seed}" / "train" / "judge"


def _on(place: Place, out: pathlib.Path | None = None) -> list[str]:
    return ["--bench=editworld", f"--data={place.rankings}", f"--out={out or place.folder / 'evaluation'}"]


_RESULTS = "evaluation/results.json"
_RANKING_VALUES = {
    "pairs": Value(_RESULTS, ("tables", "by size", "2pair", "correct")),
    "3-way": Value(_RESULTS, ("tables", "by size", "3pair", "correct")),
    "4-way": Value(_RESULTS, ("tables", "by size", "4pair", "correct")),
    "all ranks": Value(_RESULTS, ("figures", "accuracy", "value")),
    "valid rankings": Value(_RESULTS, ("counts", "ok")),
}
_REGION_VALUES = {
    "region IoU": Value(_RESULTS, ("regions", "union_iou")),
    "box precision": Value(_RESULTS, ("regions", "precision_at_50")),
    "boundary precision": Value(_RESULTS, ("regions", "boundary_precision")),
}


def _judge_arm(boxes: bool, cited: bool) -> Arm:
    """The embedded judge taught to answer this way; from nothing, minutes bring no judge to ranking.

    It had learnt cited answers for hours: where the others rank worse, the way is worse, or was not yet learnt.
    """

    def commands(place: Place) -> list[list[str]]:
        world = "--config.data.editworld"
        training = ["train", "--config=configs/reward_sft.py:verdicts", f"--workdir={place.folder / 'train'}"]
        training += [f"--config.seed={place.seed}", f"--config.steps={JUDGE_STEPS}"]
        training += [f"--config.eval.{what}=0" for what in ("batches", "edits", "grounding")]
        training += [f"{world}.boxes={boxes}", f"{world}.cited={cited}"]
        training += [f"{world}.mixture.grounding=0.0", f"{world}.mixture.changes=0.0"]
        parsing = "--parsing=strict" if boxes else "--parsing=no_regions"
        return [training, ["evaluate", f"--model={place.folder / 'train/judge'}", parsing, *_on(place)]]

    return Arm(commands, _RANKING_VALUES | (_REGION_VALUES if boxes else {}), minutes=20)


def _aggregation_arm(kind: str) -> Arm:
    """The judge answers once for a seed; the arms read its numbers."""
    answered = lambda place: place.root / "answers" / f"seed{place.seed}"

    def shared(place: Place) -> list[tuple[pathlib.Path, list[str]]]:
        judge = ("--model=embedded", "--constrained", "--score_mode=expected")
        words = ["evaluate", *judge, *_on(place, answered(place))]
        return [(answered(place) / "results.json", words)]

    def commands(place: Place) -> list[list[str]]:
        reading = (f"--answers={answered(place) / 'answers.jsonl'}", f"--aggregation={kind}", f"--seed={place.seed}")
        return [["evaluate", *reading, *_on(place)]]

    return Arm(commands, _RANKING_VALUES | _REGION_VALUES, minutes=5, shared=shared)


def _box_error_arm(error: float) -> Arm:
    def commands(place: Place) -> list[list[str]]:
        named = f"--error={error}", f"--seed={place.seed}", f"--out={place.folder}"
        return [["studies.box_errors", "--model=embedded", *named]]

    columns = ("bias", "deviation", "changed", "right_exact", "right_wrong")
    return Arm(commands, {name.replace("_", ", "): Value("box_errors.json", (name,)) for name in columns}, minutes=5)


_SUMMARY = "train/summary.json"
_RL_VALUES = {
    "oracle before": Value(_SUMMARY, ("oracle_before",)),
    "oracle after": Value(_SUMMARY, ("oracle_after",)),
    "gain": Value(_SUMMARY, ("oracle_gain",)),
    "reward before": Value(_SUMMARY, ("heldout_reward_before",)),
    "reward after": Value(_SUMMARY, ("heldout_reward_after",)),
    "judge before": Value(_SUMMARY, ("heldout_judge_before",)),
    "judge after": Value(_SUMMARY, ("heldout_judge_after",)),
    "success before": Value(_SUMMARY, ("heldout_success_before",)),
    "success after": Value(_SUMMARY, ("heldout_success_after",)),
    "kept before": Value(_SUMMARY, ("heldout_no_overedit_before",)),
    "kept after": Value(_SUMMARY, ("heldout_no_overedit_after",)),
    "changed outside before": Value(_SUMMARY, ("heldout_outside_change_before",)),
    "changed outside after": Value(_SUMMARY, ("heldout_outside_change_after",)),
    "seconds": Value(_SUMMARY, ("seconds",)),
}


def _rl_arm(flags: Callable[[Place], Sequence[str]]) -> Arm:
    def commands(place: Place) -> list[list[str]]:
        training = ["train", "--config=configs/grpo.py", f"--workdir={place.folder / 'train'}"]
        training += [f"--config.seed={place.seed}", f"--config.steps={RL_STEPS}", f"--config.eval.heldout={HELDOUT}"]
        return [[*training, *flags(place)]]

    return Arm(commands, _RL_VALUES, minutes=6)


def _rewards(judge: float = 0.0, oracle: float = 0.0) -> list[str]:
    return [f"--config.rewards.{name}={w}" for name, w in (("judge", judge), ("guards", 0.0), ("oracle", oracle))]


def _recipe_arm(recipe: str) -> Arm:
    """The figures of `_rl_arm`, and what they cost. The truth rewards, so that no judge's errors are in between."""
    arm = _rl_arm(lambda place: [f"--config.recipe={recipe}", *_rewards(oracle=1.0)])

    def commands(place: Place) -> list[list[str]]:
        flops = ["plan", "--config=configs/grpo.py", "--flops_only", f"--json={place.folder / 'flops.json'}"]
        return [*arm.commands(place), flops]

    costs = {
        "phases": Value(_SUMMARY, ("steps",)),
        "images of a phase": Value(_SUMMARY, ("images_per_step",)),
        "TFLOP of an image": Value("flops.json", ("recipes", RECIPES.index(recipe), "tflop_per_image")),
        "gain per TFLOP": Quotient("gain", ("phases", "images of a phase", "TFLOP of an image")),
        "gain per minute": Quotient("gain", ("seconds",), times=60),
    }
    return dataclasses.replace(arm, commands=commands, values=arm.values | costs)


def _judged_arm(judge: str, parsing: str) -> Arm:
    """RL with a judge of the study "boxes". The grammar knows no answers without boxes, so none is held to it."""
    flags = [*_rewards(judge=1.0), "--config.judge.constrained=False", "--config.judge.score_mode=answered"]
    flags.append(f"--config.judge.parsing={parsing}")
    arm = _rl_arm(lambda place: [*flags, f"--config.judge.model={judge_folder(place.root, judge, place.seed)}"])
    return dataclasses.replace(arm, needs=(("boxes", judge),))


STUDIES: Mapping[str, Study] = {
    "boxes": Study(
        "Does a judge rank better when it names regions, and when its reasoning cites them?",
        {"cited": _judge_arm(True, True), "uncited": _judge_arm(True, False), "none": _judge_arm(False, False)},
    ),
    "aggregation": Study(
        "Which aggregation of the four scores ranks best?",
        {"weighted": _aggregation_arm("weighted"), "min": _aggregation_arm("min"), "mean": _aggregation_arm("mean")},
    ),
    "box_errors": Study(
        "What do wrong boxes do to the reward?",
        {f"{round(100 * error)}%": _box_error_arm(error) for error in (0.05, 0.15, 0.3)},
    ),
    "reward": Study(
        "What does the editor learn from the judge with boxes, the judge without, and the truth itself?",
        {
            "cited": _judged_arm("cited", "strict"),
            "none": _judged_arm("none", "no_regions"),
            "oracle": _rl_arm(lambda place: _rewards(oracle=1.0)),
        },
    ),
    "recipe": Study(
        "What do the parity and the window recipe gain for the same number of phases, for their time and their FLOPs?",
        {name: _recipe_arm(name) for name in RECIPES},
    ),
    "reward_aggregation": Study(
        "Which aggregation is the best reward?",
        {
            kind: _rl_arm(lambda place, kind=kind: [*_rewards(judge=1.0), f"--config.judge.aggregate={kind}"])
            for kind in ("weighted", "min", "mean")
        },
    ),
}  # fmt: skip
