"""The reward model: edits in, scores out."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.pretrained import read_json, resolve
from spatialreward_jax.reward.aggregate import Aggregation
from spatialreward_jax.reward.batching import LIMITS, Limits
from spatialreward_jax.reward.ensemble import mean_score
from spatialreward_jax.reward.loading import load_judge
from spatialreward_jax.reward.parsing import MODES
from spatialreward_jax.reward.processor import Processor
from spatialreward_jax.reward.protocol import Answerer, Question, Reply, questions, read_answers, read_edits
from spatialreward_jax.reward.templates import Templates, load_templates
from spatialreward_jax.reward.types import Edit, Identity, Score
from spatialreward_jax.reward.vlm import VLM, Decoding

SETTINGS_FILE = "judge.json"
"""Optional file beside a judge's config.json: `templates` (the wording it was trained on) and `max_new_tokens`."""


class RewardModel:
    """Scores edits with any `Answerer`; the published judge is one of them.

    Attributes:
        answerer: who answers. templates: the wording. parsing: one of `parsing.MODES`. aggregation: the formula.
        ensemble: answers drawn for each question; an edit's score is their mean, see `reward.ensemble`.
    """

    def __init__(
        self,
        answerer: Answerer,
        *,
        templates: str | os.PathLike | Templates = "default",
        parsing: str = "strict",
        aggregation: str | Aggregation = "weighted",
        ensemble: int = 1,
    ):
        """Raises InputError for an unknown template set, parsing mode or aggregation, or an ensemble of none."""
        choices = _choices(templates, parsing, aggregation)
        self.answerer, self.parsing = answerer, parsing
        self.templates: Templates = choices["templates"]
        self.aggregation: Aggregation = choices["aggregation"]
        if ensemble < 1:
            raise InputError(f"ensemble {ensemble}: at least one answer is needed")
        self.ensemble = ensemble

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike = "embedded",
        *,
        adapter: str | os.PathLike | None = None,
        dtype: Any = None,
        mesh: jax.sharding.Mesh | None = None,
        pixel_policy: str = "eval",
        templates: str | os.PathLike | Templates | None = None,
        parsing: str = "strict",
        aggregation: str | Aggregation = "weighted",
        decoding: Decoding | None = None,
        limits: Limits = LIMITS,
        quantize: str | None = None,
        constrained: bool | None = None,
        score_mode: str | None = None,
        temperature: float | None = None,
        ensemble: int = 1,
    ) -> "RewardModel":
        """A judge of the Qwen3-VL family.

        Args:
            model: folder in Hugging Face layout, or `embedded`.
            adapter: PEFT folder to put on top.
            dtype: of parameters and activations; by default bfloat16 on accelerators, float32 on CPU.
            mesh: from `make_mesh`, laid out by `mesh.serving_mesh`; by default the first device alone.
            pixel_policy: eval, server, sft or rl, see `reward.pixels`.
            templates: shipped set or folder; by default what the judge's `judge.json` names, else `default`.
            parsing, aggregation: see `reward.parsing` and `reward.aggregate`.
            decoding: by default greedy, as many tokens as `judge.json` names, else 512.
            limits: largest shapes.
            quantize: "int8" keeps an 8B judge in 10.0 GB instead of 17.5 in bfloat16, see `reward.loading.load_judge`;
                the revision in the identity says so.
            constrained: whether answers follow `reward.answer_grammar`, so that each can be read; by default as in
                `decoding`, where False, the official behaviour, is the default.
            score_mode: "answered", or "expected" for the means of the scores' distributions; by default as in
                `decoding`.
            temperature: of the draws; by default as in `decoding`, where 0, greedy, is the default.
            ensemble: answers drawn for each question and averaged; more than one needs a temperature.

        Raises:
            InputError: whatever does not fit, in one line, before anything is compiled.
        """
        folder = resolve(model, "judge")
        settings = read_json(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).is_file() else {}
        if decoding is None:
            decoding = Decoding(max_new_tokens=settings.get("max_new_tokens", Decoding.max_new_tokens))
        given = {"constrained": constrained, "score_mode": score_mode, "temperature": temperature}
        decoding = dataclasses.replace(decoding, **{name: it for name, it in given.items() if it is not None})
        decoding.sampler()  # every choice is checked before weights are read, which takes minutes for large judges
        if ensemble > 1 and not decoding.temperature:
            raise InputError(
                f"ensemble {ensemble}: answers at temperature 0 are all the same, give a temperature above 0"
            )
        choices = _choices(templates or settings.get("templates", "default"), parsing, aggregation)
        processor = Processor(folder, pixel_policy)
        net = load_judge(folder, adapter=adapter, dtype=dtype, mesh=mesh, quantize=quantize, serving=True)
        return cls(VLM(net, processor, decoding, model=str(model), limits=limits), ensemble=ensemble, **choices)

    @property
    def identity(self) -> Identity:
        """What this model's scores carry."""
        return Identity(
            model=self.answerer.model,
            revision=self.answerer.revision,
            template=self.templates.id,
            pixel_policy=self.answerer.pixel_policy,
            parsing=self.parsing,
            aggregation=self.aggregation.name,
            decoding=self.answerer.decoding + (f" mean of {self.ensemble}" if self.ensemble > 1 else ""),
        )

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises InputError, naming the edit, for one that cannot be scored; nothing is compiled or run."""
        for row, edit in enumerate(edits):
            for question in questions(read_edits([edit], first=row)[0], self.templates):
                try:
                    self.answerer.check(question)
                except InputError as why:
                    raise InputError(f"edit {row}: {why}") from why

    def score(self, edits: Sequence[Edit]) -> list[Score]:
        """One score per edit, in order; `valid` False where no answer could be read.

        Raises InputError for an image or instruction that cannot be asked about, before anything is compiled.
        """
        read = read_edits(edits)
        rows = [edit for edit in read for _ in range(self.ensemble)]
        asked = [
            dataclasses.replace(question, draw=row % self.ensemble)
            for row, edit in enumerate(rows)
            for question in questions(edit, self.templates)
        ]
        replies = self.answerer.answer(asked)
        identity, scores = self.identity, []
        for row, edit in enumerate(rows):
            semantic, quality = replies[2 * row : 2 * row + 2]
            scores.append(
                read_answers(
                    semantic,
                    quality,
                    edit.edited.shape[:2],
                    parsing=self.parsing,
                    aggregation=self.aggregation,
                    identity=identity,
                )
            )
        return [mean_score(scores[row : row + self.ensemble]) for row in range(0, len(rows), self.ensemble)]


def _choices(templates: str | os.PathLike | Templates, parsing: str, aggregation: str | Aggregation) -> dict[str, Any]:
    """The three choices of a reward model, names resolved. Raises InputError for unknown ones."""
    if parsing not in MODES:
        raise InputError(f"parsing mode {parsing!r} is unknown: choose one of {', '.join(MODES)}")
    if not isinstance(templates, Templates):
        templates = load_templates(templates)
    if isinstance(aggregation, str):
        aggregation = Aggregation(aggregation, clamp=parsing != "bench")
    return {"templates": templates, "parsing": parsing, "aggregation": aggregation}


class FunctionAnswerer:
    """Any function from a `Question` to its answer text as an `Answerer`: a client of an endpoint, or given answers."""

    revision = ""
    pixel_policy = "native"

    def __init__(self, function: Callable[[Question], str], *, model: str = "function", decoding: str = "given"):
        self.function, self.model, self.decoding = function, model, decoding

    def check(self, question: Question) -> None:
        """Takes every question."""

    def answer(self, questions: Sequence[Question]) -> list[Reply]:
        """The function's texts, in order."""
        return [Reply(self.function(question)) for question in questions]
