"""The judge's programs on the devices: images encoded once, beginnings of prompts read once, slots that are refilled.

A run of questions goes through B slots of one key-value cache. `admit` reads waiting prompts into free slots; `decode`
is one loop that comes back when all slots are done, or when some are and questions wait: a long answer holds up no
other. Every process of a run calls the same programs in the same order, since only answers, which all see, decide.
On one CPU two runs go on at the same time, each in a thread: a small net's programs keep one core busy each.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from spatialreward_jax.generate import (
    Decode,
    Sampler,
    begin,
    generate,
    generate_constrained,
    insert,
    text_of,
    under_grammar,
)
from spatialreward_jax.mesh import BATCH, batch_sharding, constrain, on_host, put
from spatialreward_jax.models.qwen3_vl import (
    KVCache,
    Prompt,
    VisionFeatures,
    cut_prompts,
    empty_cache,
    pack_images,
    pack_prompts,
)
from spatialreward_jax.reward.answer_grammar import AnswerTables
from spatialreward_jax.reward.batching import Beginnings, Limits, Part, Pass, Run
from spatialreward_jax.reward.loading import JudgeNet
from spatialreward_jax.reward.processor import Patches

PASS = {"cpu": 16}
"""Tokens of all rows from which on a pass of the net is bound by arithmetic, by platform; elsewhere `PASS_ELSEWHERE`.
Up to there further tokens cost next to nothing, beyond it reading forced tokens in one pass saves nothing."""

PASS_ELSEWHERE = 256
"""Peak FLOP/s over bytes/s of memory, in bfloat16: 240 (v5e), 300 (H100), 560 (v6e)."""

LANES = {"cpu": 2}
"""Runs that go on at the same time in a mesh of one device, by platform; elsewhere one. Over several devices programs
meet, and must come in one order."""

REFILL = 4
"""Slots are refilled when a REFILL-th of them is free, and prompts are read in programs of all rows or that many: two
shapes for each length."""


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """A question as arrays.

    Attributes:
        tokens: prompt int32 [T]. images: that it shows, as indices. begin: tokens before its last image.
        seed: of its draws. stream: "sc" or "pq".
    """

    tokens: np.ndarray
    images: tuple[int, ...]
    begin: int
    seed: int
    stream: str


@dataclasses.dataclass(frozen=True)
class Answered:
    """Token ids of an answer without its end token; whether it has ended by one; means of its scores or None.

    broken: the net gave no finite numbers somewhere, so that what was chosen there means nothing.
    """

    ids: list[int]
    finished: bool
    expected: tuple[float, ...] | None
    broken: bool


@dataclasses.dataclass
class _Slots:
    """A run on its way: state on the devices, the question in each slot (None: free), parts that wait, beginnings."""

    state: Decode
    holds: list[int | None]
    waiting: list[tuple[Part, list[int]]]
    known: tuple[Beginnings, KVCache] | None = None

    @property
    def free(self) -> list[int]:
        return [slot for slot, question in enumerate(self.holds) if question is None]

    @property
    def left(self) -> int:
        return sum(len(places) for _, places in self.waiting)


class Engine:
    """Answers prompts with a Qwen3-VL net.

    Attributes:
        shapes: kinds and sizes of the programs compiled so far; one entry per compilation. Their number is bounded by
            the buckets of `batching`: it grows neither with the number of questions nor with the order they end in.
        passes: of the net over the slots of a run, after the prompts were read.
    """

    def __init__(
        self,
        net: JudgeNet,
        *,
        sampler: Sampler,
        max_new: int,
        limits: Limits,
        grammar: AnswerTables | None = None,
        expected: bool = False,
    ):
        """grammar: that answers follow, or None. expected: also the means of their scores, see `generate`."""
        self.net, self.limits, self.grammar, self.expected = net, limits, grammar, expected
        self.sampler, self.max_new, self.passes = sampler, max_new, 0
        self.shapes: set[tuple] = set()
        self._compiling: dict[tuple, threading.Lock] = {}
        self._largest: dict[int, int] = {}  # table of images, by their patches
        self.encode = jax.jit(self._encode, donate_argnums=2)
        self.empty = jax.jit(self._empty, static_argnums=(0, 1))
        self.start = jax.jit(self._start)
        self.admit = jax.jit(self._admit, donate_argnums=3)
        self.decode = jax.jit(self._decode, donate_argnums=2)

    @property
    def lanes(self) -> int:
        """Runs of a pass that go on at the same time."""
        return LANES.get(self.net.mesh.devices.flat[0].platform, 1) if self.net.mesh.size == 1 else 1

    def answer(self, one: Pass, asked: Sequence[Asked], images: Sequence[Patches]) -> dict[int, Answered]:
        """Answers of a pass by question. asked, images: all of them, those of other passes too."""
        with jax.set_mesh(self.net.mesh):
            features = self._features(one, images)
        prompts = functools.partial(self._prompts, one, asked, images)

        def answers(run: Run) -> tuple[dict[int, Answered], int]:
            with jax.set_mesh(self.net.mesh):  # a thread's own
                return self._run(run, prompts, asked, features)

        if self.lanes == 1 or len(one.runs) == 1:
            done = [answers(run) for run in one.runs]
        else:
            with concurrent.futures.ThreadPoolExecutor(self.lanes) as pool:
                done = list(pool.map(answers, one.runs))
        self.passes += sum(passes for _, passes in done)
        return {question: answer for found, _ in done for question, answer in found.items()}

    # ---------------------------------------------------------------------------------------------- on the host

    def _run(
        self, run: Run, prompts: Any, asked: Sequence[Asked], features: VisionFeatures
    ) -> tuple[dict[int, Answered], int]:
        """Lets the questions of a run through its slots; returns the passes, too.

        prompts: questions -> `Prompt`, see `_prompts`.
        """
        waiting = [(part, list(range(len(part.questions)))) for part in run.parts]
        with self._program("empty", run.rows, run.length):
            state = self.empty(run.rows, run.length + self.max_new)
        slots = _Slots(state, [None] * run.rows, waiting)
        refill = self.net.mesh.shape["data"] * self.net.mesh.shape["fsdp"]  # fewer prompts would leave devices idle
        found: dict[int, Answered] = {}
        while True:
            while slots.free and slots.left:
                self._fill(slots, run, prompts, asked, features)
            if all(question is None for question in slots.holds):
                break
            enough = min(max(refill, run.rows // REFILL), slots.left, run.rows) or run.rows
            tables = self.grammar and self.grammar.tables
            with self._program("decode", run.rows, run.length):
                slots.state = self.decode(self.net.adapters, self.net.base, slots.state, np.int32(enough), tables)
            found |= self._collect(slots)
        return found, int(on_host(slots.state.passes))

    def _fill(self, slots: _Slots, run: Run, prompts: Any, asked: Sequence[Asked], features: VisionFeatures) -> None:
        """Reads the questions that wait first into free slots."""
        part, places = slots.waiting[0]
        count = min(len(places), len(slots.free), part.rows)
        now, most = places[:count], min(part.rows, run.rows)
        few = -(-most // REFILL)
        rows = few if count <= few else most
        del places[:count]
        if not places:
            slots.waiting.pop(0)
        questions = [part.questions[place] for place in now]
        spare, free = [None] * (rows - count), slots.free[:count]
        starts = [asked[question].begin if part.beginnings else 0 for question in questions]
        prompt = prompts([*questions, *spare], starts, part.length)
        words = np.zeros((rows, run.length), np.int32)
        for row, question in enumerate(questions):
            words[row, : len(asked[question].tokens)] = asked[question].tokens
        known = self._known(slots, part.beginnings, prompts, asked, features)
        filled = lambda values, other, dtype=np.int32: np.array([*values, *[other] * len(spare)], dtype)
        nodes = self.grammar.nodes([asked[q].stream for q in questions]) if self.grammar else np.zeros(count, np.int32)
        given = {
            "prompt": prompt,
            "words": words,
            "length": filled([len(asked[q].tokens) for q in questions], 0),
            "rows": filled(free, run.rows),
            "seeds": filled([asked[q].seed for q in questions], 0, np.uint32),
            "nodes": filled(nodes, nodes[0]),
            "which": filled([part.which[place] for place in now], 0) if known else None,
        }
        table = (part.beginnings.rows, part.beginnings.length) if known else ()
        with self._program("admit", rows, part.length, *table, run.rows, run.length, *features.main.shape[:2]):
            slots.state = self.admit(
                self.net.adapters, self.net.base, features, slots.state, known, self._placed(given)
            )
        for slot, question in zip(free, questions):
            slots.holds[slot] = question

    def _known(self, slots: _Slots, wanted: Beginnings | None, prompts, asked, features) -> KVCache | None:
        """The cache of the beginnings that a part wants; read now unless the part before wanted the same ones."""
        if wanted is None:
            slots.known = None
        elif slots.known is None or slots.known[0] is not wanted:
            slots.known = None  # room for the new ones
            spare = [None] * (wanted.rows - len(wanted.questions))
            prompt = prompts([*wanted.questions, *spare], None, wanted.length)
            with self._program("start", wanted.rows, wanted.length, *features.main.shape[:2]):
                slots.known = wanted, self.start(self.net.adapters, self.net.base, features, self._placed(prompt))
        return slots.known and slots.known[1]

    def _prompts(
        self,
        one: Pass,
        asked: Sequence[Asked],
        images: Sequence[Patches],
        questions: Sequence[int | None],
        starts: Sequence[int] | None,
        length: int,
    ) -> Prompt:
        """Prompts from `starts` on, or (None) their beginnings, padded to `length`; question None only fills up."""
        where = {image: row for row, image in enumerate(one.images)}
        rows = [asked[question] for question in questions if question is not None]
        spare = len(questions) - len(rows)
        whole = pack_prompts(
            [row.tokens for row in rows] + [np.full(1, self.net.pad, np.int32)] * spare,
            [[where[image] for image in row.images] for row in rows] + [[]] * spare,
            [images[image].grid for image in one.images],
            length=max(len(row.tokens) for row in rows),
            patches=one.patches,
            image_token=self.net.config.image_token,
            merge=self.net.config.vision.merge,
        )
        stops = [len(row.tokens) if starts is not None else row.begin for row in rows]
        starts = [0] * len(rows) if starts is None else list(starts)
        return cut_prompts(whole, starts + [0] * spare, stops + [1] * spare, length)

    def _collect(self, slots: _Slots) -> dict[int, Answered]:
        """Answers of the slots that are done, which are free from then on."""
        state = slots.state
        means = state.grammar.expected if self.expected else None
        done, tokens, length, logp = (on_host(x) for x in (state.done, state.tokens, state.length, state.raw_logp))
        means, found = None if means is None else on_host(means), {}
        for slot, question in enumerate(slots.holds):
            if question is not None and done[slot]:
                ids = text_of(tokens[slot], length[slot], self.net.eos)
                expected = None if means is None else tuple(map(float, means[slot]))
                broken = not (np.isfinite(logp[slot]).all() and np.isfinite(expected or ()).all())
                found[question] = Answered(ids, bool(len(ids) < length[slot]), expected, broken)
                slots.holds[slot] = None
        return found

    def _features(self, one: Pass, images: Sequence[Patches]) -> VisionFeatures:
        """Encodes the images of a pass into one table [>= slots, P / merge^2, D], `rows` images at a time."""
        config, merged = self.net.config, one.patches // self.net.config.vision.merge**2
        width, dtype = config.text.dim, self.net.dtype
        # As large as any before it: a smaller table would be another shape of each program that reads one.
        slots = self._largest[one.patches] = max(one.slots, self._largest.get(one.patches, 0))
        table = VisionFeatures(
            jnp.zeros((slots, merged, width), dtype),
            jnp.zeros((len(config.vision.taps), slots, merged, width), dtype),
        )
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
            with self._program("encode", one.rows, one.patches, slots):
                table = self.encode(self.net.adapters, self.net.base, table, self._placed((patches, grid)), start)
        return table

    def _placed(self, tree: Any) -> Any:
        """Host arrays to the mesh, batches split where they divide. Positions [3, B, T] stay whole."""
        return jax.tree.map(lambda leaf: put(leaf, batch_sharding(self.net.mesh, leaf.shape[0])), tree)

    @contextlib.contextmanager
    def _program(self, kind: str, *shape: int) -> Iterator[None]:
        """Around a call: where it compiles a new program, a lane that wants the same one waits for it."""
        name = (kind, *shape)
        with contextlib.nullcontext() if name in self.shapes else self._compiling.setdefault(name, threading.Lock()):
            if name not in self.shapes:
                logging.info("judge: compiling program %d, %s %s", len(self.shapes) + 1, kind, shape)
            yield
            self.shapes.add(name)

    # ------------------------------------------------------------------------------------------- on the devices

    def _encode(self, adapters: Any, base: Any, table: VisionFeatures, images: tuple, start: jax.Array):
        """Writes the features of some images to a table from row `start` on."""
        new = self.net.merge(adapters, base).images(*images)
        main = jax.lax.dynamic_update_slice(table.main, new.main.astype(table.main.dtype), (start, 0, 0))
        deep = jax.lax.dynamic_update_slice(table.deep, new.deep.astype(table.deep.dtype), (0, start, 0, 0))
        return VisionFeatures(main, deep)

    def _empty(self, rows: int, slots: int) -> Decode:
        """A state whose rows are all free, with room for `slots` tokens each."""
        config = self.net.config.text
        cache = empty_cache(config, rows, slots, self.net.dtype)
        none = jnp.zeros((rows,), jnp.int32)
        logits = jnp.zeros((rows, config.vocab), jnp.float32)
        return _laid(self._begun(logits, cache, none[:, None], none, none, none, none > 0))

    def _start(self, adapters: Any, base: Any, features: VisionFeatures, prompt: Prompt) -> KVCache:
        """Reads beginnings of prompts."""
        return self.net.merge(adapters, base).prefill(prompt, features, prompt.tokens.shape[1])[1]

    def _admit(
        self, adapters: Any, base: Any, features: VisionFeatures, state: Decode, known: KVCache | None, given: dict
    ) -> Decode:
        """Reads prompts into rows of the state; rows beyond them are dropped."""
        model = self.net.merge(adapters, base)
        before = None if known is None else (known, given["which"])
        hidden, cache = model.admit(given["prompt"], features, state.cache, given["rows"], before)
        names = ("words", "length", "seeds", "nodes")
        new = self._begun(model.logits(hidden), None, *(given[name] for name in names), None)
        return _laid(insert(state, new, given["rows"], cache))

    def _begun(self, logits, cache, words, length, seeds, nodes, active) -> Decode:
        how = {"sampler": self.sampler, "max_new": self.max_new, "pad": self.net.pad}
        state = begin(logits, cache, words, length, seeds, active=active, **how)
        return under_grammar(state, nodes) if self.grammar else state

    def _decode(self, adapters: Any, base: Any, state: Decode, enough: jax.Array, tables: Any) -> Decode:
        """The decoding loop, until `enough` rows are done."""
        how = {"sampler": self.sampler, "eos": self.net.eos, "enough": enough}
        trees = (adapters, base)
        if tables is None:
            return _laid(generate(self._step, trees, state, pad=self.net.pad, **how))
        some = PASS.get(self.net.mesh.devices.flat[0].platform, PASS_ELSEWHERE) // state.done.shape[0]
        stride = max(1, min(self.limits.stride, some))
        how |= {"tables": tables, "expected": self.expected, "stride": stride}
        return _laid(generate_constrained(self._extend, trees, state, **how))

    def _step(self, trees: tuple, token: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """A `ModelStep`."""
        return self.net.merge(*trees).next_logits(token, cache)

    def _extend(self, trees: tuple, tokens: jax.Array, at: jax.Array, keep: jax.Array, cache: KVCache):
        """A `ModelExtend`; tokens that are not kept lie behind the cache's end, where the next ones overwrite them."""
        model = self.net.merge(*trees)
        hidden, new = model.extend(tokens, cache)
        last = jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0]
        return model.logits(last), new.replace(length=cache.length + keep)


def _laid(state: Decode) -> Decode:
    """The state laid out on the mesh in one way, so that a program takes what any other hands out."""
    rows = jax.tree.map(lambda x: constrain(x, BATCH) if x.ndim else x, state._replace(cache=None))
    cache = state.cache
    wide = lambda x: constrain(x, None, BATCH, None, "tensor")
    cache = KVCache(wide(cache.k), wide(cache.v), constrain(cache.length, BATCH), constrain(cache.delta, BATCH))
    return rows._replace(cache=cache)
