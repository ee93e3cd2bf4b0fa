"""The Qwen3-VL judge as an `Answerer`: images encoded once, prompts decoded in bucketed batches under jit."""

import concurrent.futures
import dataclasses
import functools
import os
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import begin, generate, generate_constrained, make_sampler, text_of
from spatialreward_jax.mesh import batch_sharding, on_host, place_whole, put
from spatialreward_jax.models.qwen3_vl import KVCache, Prompt, VisionFeatures, pack_images, pack_prompts
from spatialreward_jax.reward.answer_grammar import VERSION, AnswerTables
from spatialreward_jax.reward.batching import LIMITS, Batch, Limits, Pass, plan
from spatialreward_jax.reward.loading import JudgeNet
from spatialreward_jax.reward.processor import Patches, Processor, image_key
from spatialreward_jax.reward.protocol import Question, Reply

SCORE_MODES = ("answered", "expected")
"""Sub-scores are the numbers in the answer, or the means of the distribution that these were chosen from."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are decoded. temperature 0 is greedy (the official setting), where the other rules change nothing.

    Attributes:
        max_new_tokens: an answer that has not ended by then is cut off. seed: of sampled decoding; the draws of an
            answer follow from it and from its question alone.
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


@dataclasses.dataclass(frozen=True, eq=False)
class _Asked:
    """A question as arrays: prompt int32 [T], its images as indices, seed of its draws; its stream."""

    tokens: np.ndarray
    images: tuple[int, ...]
    seed: int
    stream: str


class VLM:
    """Answers questions with a Qwen3-VL net.

    Attributes:
        model, revision, pixel_policy, decoding: its share of a score's identity.
        shapes: kinds and sizes of the programs compiled so far; one entry per compilation.
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
        self.net, self.processor, self.limits = net, processor, limits
        self.model, self.revision = model, net.revision
        self.pixel_policy, self.decoding = processor.policy.name, decoding.name
        self._seed, self._max_new = decoding.seed, decoding.max_new_tokens
        self.shapes: set[tuple] = set()
        self._encode = jax.jit(self._encode_into, donate_argnums=2)
        self._answer = jax.jit(self._decode)
        self._sampler, self._expected = decoding.sampler(), decoding.score_mode == "expected"
        self._grammar = None
        if decoding.constrained:
            self._grammar = AnswerTables.compile(
                processor.tokenizer,
                vocab=net.config.text.vocab,
                eos=net.eos,
                max_new=decoding.max_new_tokens,
                place=functools.partial(place_whole, net.mesh),
            )

    def check(self, question: Question) -> None:
        """Raises InputError for a question whose text or images do not fit, or whose answers have no grammar."""
        if self._grammar is not None:
            self._grammar.nodes([question.stream])
        self._tokens(question.text, [self.processor.grid(*image.shape[:2]) for image in question.images])

    def answer(self, questions: Sequence[Question]) -> list[Reply]:
        """One reply per question, in order. Raises InputError, before compiling, for one that does not fit."""
        if not questions:
            return []
        asked, images = self._arrays(questions)
        lengths, sizes = [len(one.tokens) for one in asked], [len(image.values) for image in images]
        passes = plan(lengths, [one.images for one in asked], sizes, self.limits)
        replies: dict[int, Reply] = {}
        with jax.set_mesh(self.net.mesh):
            for one in passes:
                features = self._features(one, images)
                pending = [(batch, self._start(one, batch, asked, images, features)) for batch in one.batches]
                for batch, answer in pending:
                    replies |= self._read(batch, jax.tree.map(on_host, answer))
        return [replies[row] for row in range(len(questions))]

    def _arrays(self, questions: Sequence[Question]) -> tuple[list[_Asked], list[Patches]]:
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
            tokens = self._tokens(question.text, [patches[row[key]].grid for key in shown])
            seed = zlib.crc32("".join(shown).encode(), zlib.crc32(tokens.tobytes(), self._seed & 0xFFFFFFFF))
            asked.append(_Asked(tokens, tuple(row[key] for key in shown), seed, question.stream))
        return asked, patches

    def _tokens(self, text: str, grids: Sequence[tuple[int, int]]) -> np.ndarray:
        tokens = self.processor.tokens(text, grids)
        if len(tokens) > self.limits.prompt:
            raise InputError(
                f"a question makes {len(tokens)} tokens, more than {self.limits.prompt}: use smaller images, a "
                "pixel policy with a lower limit, or a shorter instruction"
            )
        return tokens

    def _features(self, one: Pass, images: Sequence[Patches]) -> VisionFeatures:
        """Encodes the images of a pass into one table [slots, P / merge^2, D], `rows` images at a time."""
        config, merged = self.net.config, one.patches // self.net.config.vision.merge**2
        width, dtype = config.text.dim, self.net.dtype
        table = VisionFeatures(
            jnp.zeros((one.slots, merged, width), dtype),
            jnp.zeros((len(config.vision.taps), one.slots, merged, width), dtype),
        )
        self._note("encode", one.rows, one.patches, one.slots)
        for start in range(0, one.slots, one.rows):
            part = [images[i] for i in one.images[start : start + one.rows]]
            if not part:
                break
            part += [part[0]] * (one.rows - len(part))
            patches, grid = pack_images(
                [p.values for p in part],
                [p.grid for p in part],
                one.patches,
                side=config.vision.side,
                merge=config.vision.merge,
            )
            table = self._encode(self.net.adapters, self.net.base, table, self._placed((patches, grid)), start)
        return table

    def _encode_into(self, adapters: Any, base: Any, table: VisionFeatures, images: tuple, start: jax.Array):
        """Writes the features of some images to a table from row `start` on."""
        new = self.net.merge(adapters, base).images(*images)
        main = jax.lax.dynamic_update_slice(table.main, new.main.astype(table.main.dtype), (start, 0, 0))
        deep = jax.lax.dynamic_update_slice(table.deep, new.deep.astype(table.deep.dtype), (0, start, 0, 0))
        return VisionFeatures(main, deep)

    def _start(self, one: Pass, batch: Batch, asked: Sequence[_Asked], images: Sequence[Patches], features):
        """Sends a batch off to be decoded; rows beyond its questions are done from the start."""
        where = {image: row for row, image in enumerate(one.images)}
        rows = [asked[q] for q in batch.questions]
        spare = batch.rows - len(rows)
        prompt = pack_prompts(
            [r.tokens for r in rows] + [np.full(1, self.net.pad, np.int32)] * spare,
            [[where[i] for i in r.images] for r in rows] + [[]] * spare,
            [images[i].grid for i in one.images],
            length=batch.length,
            patches=one.patches,
            image_token=self.net.config.image_token,
            merge=self.net.config.vision.merge,
        )
        seeds = np.array([r.seed for r in rows] + [0] * spare, np.uint32)
        active = np.arange(batch.rows) < len(rows)
        self._note("decode", batch.rows, batch.length, one.slots * one.patches)
        given = (prompt, seeds, active)
        if self._grammar is None:
            return self._answer(self.net.adapters, self.net.base, features, *self._placed(given))
        nodes = self._grammar.nodes([r.stream for r in rows] + ["pq"] * spare)
        given = self._placed((*given, nodes))
        return self._answer(self.net.adapters, self.net.base, features, *given, self._grammar.tables)

    def _decode(
        self, adapters, base, features: VisionFeatures, prompt: Prompt, seeds, active, nodes=None, tables=None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        """Prefill and the whole decoding loop in one program -> tokens, length, finished, expected scores."""
        model = self.net.merge(adapters, base)
        hidden, cache = model.prefill(prompt, features, prompt.tokens.shape[1] + self._max_new)
        state = begin(
            cache,
            prompt.tokens,
            prompt.length,
            seeds,
            sampler=self._sampler,
            vocab=self.net.config.text.vocab,
            max_new=self._max_new,
            pad=self.net.pad,
            active=active,
        )
        trees, first, how = (adapters, base), model.logits(hidden), {"sampler": self._sampler, "eos": self.net.eos}
        if tables is None:
            answer, _ = generate(self._step, trees, first, state, pad=self.net.pad, **how)
            return answer.tokens, answer.length, answer.finished, None
        out, _ = generate_constrained(
            self._extend, trees, first, state, tables=tables, nodes=nodes, expected=self._expected, **how
        )
        answer = out.answer
        return answer.tokens, answer.length, answer.finished, out.expected if self._expected else None

    def _step(self, trees: tuple, token: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """A `ModelStep`."""
        return self.net.merge(*trees).next_logits(token, cache)

    def _extend(self, trees: tuple, tokens: jax.Array, at: jax.Array, keep: jax.Array, cache: KVCache):
        """A `ModelExtend`; tokens that are not kept lie behind the cache's end, where the next ones overwrite them."""
        model = self.net.merge(*trees)
        hidden, new = model.extend(tokens, cache)
        last = jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0]
        return model.logits(last), new.replace(length=cache.length + keep)

    def _read(self, batch: Batch, answer: tuple[np.ndarray | None, ...]) -> dict[int, Reply]:
        tokens, length, finished, expected = answer
        replies = {}
        for row, question in enumerate(batch.questions):
            text = self.processor.decode(text_of(tokens[row], length[row], self.net.eos))
            means = None if expected is None else tuple(map(float, expected[row]))
            replies[question] = Reply(text, bool(finished[row]), means)
        return replies

    def _placed(self, tree: Any) -> Any:
        """Host arrays to the mesh, batches split where they divide. Positions [3, B, T] stay whole."""

        def place(leaf):
            return put(leaf, batch_sharding(self.net.mesh, leaf.shape[0]))

        return jax.tree.map(place, tree)

    def _note(self, kind: str, *shape: int) -> None:
        if (kind, *shape) not in self.shapes:
            self.shapes.add((kind, *shape))
            logging.info("judge: compiling program %d, %s %s", len(self.shapes), kind, shape)
