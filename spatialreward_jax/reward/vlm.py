"""The Qwen3-VL judge as an `Answerer`: questions to arrays, through the engine, and back to text."""

import concurrent.futures
import dataclasses
import functools
import os
import zlib
from collections.abc import Sequence

import numpy as np

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import make_sampler
from spatialreward_jax.mesh import place_whole
from spatialreward_jax.reward.answer_grammar import VERSION, AnswerTables
from spatialreward_jax.reward.batching import LIMITS, Length, Limits, plan
from spatialreward_jax.reward.engine import Asked, Engine
from spatialreward_jax.reward.loading import JudgeNet
from spatialreward_jax.reward.processor import Patches, Processor, image_key
from spatialreward_jax.reward.protocol import Question, Reply
from spatialreward_jax.reward.types import SCORE_MODES

_NOT_FINITE = "the net gave numbers that are not finite: its weights or its precision are broken"


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are decoded. temperature 0 is greedy (the official setting), where the other rules change nothing.

    Attributes:
        max_new_tokens: an answer that has not ended by then is cut off. seed: of sampled decoding; the draws of an
            answer follow from it and from its question alone, pixels included: edits of one request that drew alike
            would share the errors of their draws, which a group could not average. The n-th answer to a question has
            the draws of seed + n.
        constrained: answers follow `reward.answer_grammar`, so that each can be read; False is the official behaviour.
        score_mode: one of `SCORE_MODES`.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 0.9
    top_k: int = 20
    repetition_penalty: float = 1.0
    seed: int = 0
    constrained: bool = False
    score_mode: str = "answered"

    @property
    def name(self) -> str:
        """As recorded with a score."""
        draw = (
            "greedy" if self.temperature == 0 else f"t{self.temperature:g} p{self.top_p:g} k{self.top_k} s{self.seed}"
        )
        penalty = "" if self.repetition_penalty == 1 else f" r{self.repetition_penalty:g}"
        grammar = f" grammar{VERSION}" if self.constrained else ""
        expected = " expected" if self.score_mode == "expected" else ""
        return f"{draw}{penalty} max{self.max_new_tokens}{grammar}{expected}"

    def sampler(self):
        """The rules for `generate`. Raises InputError for choices that cannot be."""
        if self.score_mode not in SCORE_MODES:
            raise InputError(f"score mode {self.score_mode!r} is unknown: choose one of {', '.join(SCORE_MODES)}")
        if self.score_mode == "expected" and not self.constrained:
            raise InputError("score mode expected needs constrained answers: only there is it known where scores stand")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens {self.max_new_tokens}: use a positive number")
        return make_sampler(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
        )


class VLM:
    """Answers questions with a Qwen3-VL net.

    Attributes:
        model, revision, pixel_policy, decoding: its share of a score's identity.
        engine: what runs on the devices; its `shapes` name the programs compiled so far.
    """

    def __init__(self, net: JudgeNet, processor: Processor, decoding: Decoding, *, model: str, limits: Limits = LIMITS):
        """Raises InputError where processor and net do not belong together."""
        vision = net.config.vision
        ours = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
        if ours != (vision.patch, vision.merge, vision.frames):
            raise InputError(
                f"preprocessor_config.json has patch, merge, frames {ours}, config.json "
                f"{(vision.patch, vision.merge, vision.frames)}: they must agree"
            )
        if processor.image_pad != net.config.image_token or len(processor.tokenizer) > net.config.text.vocab:
            raise InputError(
                f"tokenizer (image token {processor.image_pad}, {len(processor.tokenizer)} entries) and config.json "
                f"(image token {net.config.image_token}, vocabulary {net.config.text.vocab}) do not belong together"
            )
        self.processor, self.limits = processor, limits
        self.model, self.revision = model, net.revision
        self.pixel_policy, self.decoding = processor.policy.name, decoding.name
        self._seed, sampler, grammar = decoding.seed, decoding.sampler(), None
        if decoding.constrained:
            grammar = AnswerTables.compile(
                processor.tokenizer,
                vocab=net.config.text.vocab,
                eos=net.eos,
                max_new=decoding.max_new_tokens,
                place=functools.partial(place_whole, net.mesh),
            )
        self.engine = Engine(
            net,
            sampler=sampler,
            max_new=decoding.max_new_tokens,
            limits=limits,
            grammar=grammar,
            expected=decoding.score_mode == "expected",
        )

    @property
    def net(self) -> JudgeNet:
        """Who answers; another one of the same sizes may take its place, as while a judge is trained."""
        return self.engine.net

    @net.setter
    def net(self, net: JudgeNet) -> None:
        """Puts another net in its place."""
        self.engine.net = net

    def check(self, question: Question) -> None:
        """Raises InputError for a question whose text or images do not fit, or whose answers have no grammar."""
        if self.engine.grammar is not None:
            self.engine.grammar.nodes([question.stream])
        self._tokens(question, [self.processor.grid(*image.shape[:2]) for image in question.images])

    def answer(self, questions: Sequence[Question]) -> list[Reply]:
        """One reply per question, in order. Raises InputError, before compiling, for one that does not fit."""
        if not questions:
            return []
        asked, images = self.arrays(questions)
        lengths = [Length(len(q.tokens), q.begin, (q.tokens[: q.begin].tobytes(), q.images[:-1])) for q in asked]
        sizes = [len(image.values) for image in images]
        passes = plan(lengths, [q.images for q in asked], sizes, self.limits, lanes=self.engine.lanes)
        found = {}
        for one in passes:
            found |= self.engine.answer(one, asked, images)
        replies = []
        for row, question in enumerate(questions):
            one = found[row]
            text = question.opening + self.processor.decode(one.ids)
            replies.append(Reply(text, one.finished, one.expected, _NOT_FINITE if one.broken else ""))
        return replies

    def arrays(self, questions: Sequence[Question]) -> tuple[list[Asked], list[Patches]]:
        """Tokens and patches; every different image once, by its pixels."""
        given = {id(image): image for question in questions for image in question.images}
        keys = {number: image_key(image) for number, image in given.items()}
        different = {keys[number]: image for number, image in given.items()}
        row = {key: number for number, key in enumerate(different)}
        with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            patches = list(pool.map(self.processor.patches, different.values()))
        asked = []
        for question in questions:
            shown = [keys[id(image)] for image in question.images]
            tokens = self._tokens(question, [patches[row[key]].grid for key in shown])
            start = self._seed + question.draw & 0xFFFFFFFF
            seed = zlib.crc32("".join(shown).encode(), zlib.crc32(tokens.tobytes(), start))
            last = len(patches[row[shown[-1]]].values) // self.processor.merge_size**2
            begin = int(np.flatnonzero(tokens == self.processor.image_pad)[-1]) + 1 - last
            asked.append(Asked(tokens, tuple(row[key] for key in shown), begin, seed, question.stream))
        return asked, patches

    def _tokens(self, question: Question, grids: Sequence[tuple[int, int]]) -> np.ndarray:
        if question.opening and self.engine.grammar is not None:
            raise InputError("an answer that is begun for the judge cannot be constrained: ask for free answers")
        tokens = self.processor.tokens(question.text, grids)
        opening = self.processor.tokenizer(question.opening, add_special_tokens=False)["input_ids"]
        tokens = np.concatenate([tokens, np.asarray(opening, np.int32)])
        if len(tokens) > self.limits.prompt:
            raise InputError(
                f"a question makes {len(tokens)} tokens, more than {self.limits.prompt}: use smaller images, a "
                "pixel policy with a lower limit, or a shorter instruction"
            )
        return tokens
