"""Where a judge looks while it writes its answer: attention of cited regions to both images, in every layer.

The judge reads question and answer once more; in each layer the region-attention kernel adds up the attention of the
answer's tokens, grouped by the region that they speak of. Nothing of size tokens x tokens is held.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.diagnostics import Diagnosis, diagnose, head_groups
from spatialreward_jax.generate import bucket
from spatialreward_jax.io.images import write_png
from spatialreward_jax.kernels.attention import attention_with_lse
from spatialreward_jax.kernels.region_attention import RegionAttention, region_attention
from spatialreward_jax.models.qwen3_vl import Prompt, Qwen3VL, VisionFeatures, pack_images, pack_prompts
from spatialreward_jax.reporting.heatmaps import attention_picture
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.protocol import Question, questions, read_edits
from spatialreward_jax.reward.types import Edit, Region, Score
from spatialreward_jax.reward.vlm import VLM

ANSWER = "answer"
"""Name of the query set that holds every token of the answer."""

_MARKER = re.compile(r"<\|(?:bbox_(\d{1,9})|(global))\|>")
_ROWS = 8
"""Query sets and regions come in multiples of this, so that few programs are compiled."""


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention of one answer, all float32.

    Attributes:
      sets: names of the Q query sets: `answer`, then `box 0`, ..., `global` as the answer cites them.
      images: for each image [L, N, Q, rows, columns], mean attention of a set's tokens to each merged patch; the edited
        image last.
      regions: names of the R regions: `source 0`, ..., `edited`, then every box as `box 0 edited`, `box 0 source 0`.
      mass: [L, N, Q, R], mean attention of a set's tokens to each region.
      token_entropy: [L, N, Q, R], mean over a set's tokens of each one's own entropy within the region, in nats.
      groups: key heads of the judge.
    """

    sets: tuple[str, ...]
    images: tuple[np.ndarray, ...]
    regions: tuple[str, ...]
    mass: np.ndarray
    token_entropy: np.ndarray
    groups: int

    def diagnosis(self, name: str = ANSWER) -> Diagnosis:
        """`diagnose` for one query set."""
        return diagnose(self.grouped(name), self.groups)

    def grouped(self, name: str = ANSWER) -> list[np.ndarray]:
        """One query set's maps, means over the heads of a group: [L, K, rows, columns] of each image, float32."""
        which = self.sets.index(name)
        return [head_groups(image[:, :, which], self.groups).astype(np.float32) for image in self.images]


def trace(
    model: Qwen3VL,
    prompt: Prompt,
    features: VisionFeatures | None,
    queries: jax.Array,
    query_sets: jax.Array,
    regions: jax.Array,
) -> RegionAttention:
    """Region attention in every layer of one full forward pass; pure, for use under jit.

    Args:
      model: the judge.
      prompt: question and answer, B rows of T tokens.
      features: of the images.
      queries: int32 [B, U], the tokens whose attention is wanted.
      query_sets: float32 [B, Q, U], weight of each of them in each set.
      regions: bool [B, R, T], tokens of each region.

    Returns:
      `RegionAttention` whose arrays lead with L (and have U for T).
    """
    causal = jnp.broadcast_to(jnp.arange(prompt.tokens.shape[1]), prompt.tokens.shape)

    def attend(q, k, v):
        mixed, lse = attention_with_lse(q, k, v, positions=causal)
        chosen = jnp.take_along_axis(q, queries[:, :, None, None], axis=1)
        lse = jnp.take_along_axis(lse, queries[:, None], axis=2)
        return mixed, region_attention(chosen, k, query_sets, regions, positions=queries, lse=lse)

    return model.read(prompt.tokens, prompt.image_index, prompt.positions, features, attend)[1]


def cited_spans(text: str) -> dict[str, list[tuple[int, int]]]:
    """Character spans of an answer by what they speak of: from a marker to the next one, or to the end of the string.

    Returns:
      {"answer": whole text, "box 0": spans from `<|bbox_0|>` on, ..., "global": likewise}, in order of citation.
    """
    spans = {ANSWER: [(0, len(text))]}
    markers = list(_MARKER.finditer(text))
    for marker, after in zip(markers, [*markers[1:], None]):
        stop = after.start() if after else len(text)
        quote = re.compile(r'(?<!\\)"').search(
            text, marker.end(), stop
        )  # the JSON string that holds the reasoning ends
        name = f"box {int(marker[1])}" if marker[1] else "global"
        spans.setdefault(name, []).append((marker.start(), quote.start() if quote else stop))
    return spans


class AttentionProbe:
    """Finds `AttentionMaps` of a judge's answers; keeps its compiled programs, one per bucket of shapes."""

    def __init__(self, judge: VLM):
        self.judge = judge
        self._trace = jax.jit(self._traced)

    def _traced(self, adapters, base, patches, grid, prompt, queries, query_sets, regions):
        model = self.judge.net.merge(adapters, base)
        return trace(model, prompt, model.images(patches, grid), queries, query_sets, regions)

    def __call__(self, question: Question, answer: str, boxes: Sequence[Region] = ()) -> AttentionMaps:
        """Maps of an answer to a question.

        Args:
          question: as it was asked; its last image is the edited one.
          answer: the judge's text.
          boxes: regions whose attention is summed up too; their boxes are in pixels of the edited image.

        Raises:
          InputError: the answer is empty, or question and answer are longer than the judge's limit.
        """
        judge, config = self.judge, self.judge.net.config
        merge = config.vision.merge
        images = [judge.processor.patches(image) for image in question.images]
        asked = judge.processor.tokens(question.text, [image.grid for image in images])
        written, sets = _query_sets(judge.processor.tokenizer, answer)
        tokens = np.concatenate([asked, written])
        length = bucket(len(tokens), most=judge.limits.prompt)
        patches = bucket(max(len(image.values) for image in images))
        prompt = pack_prompts(
            [tokens],
            [range(len(images))],
            [image.grid for image in images],
            length=length,
            patches=patches,
            image_token=config.image_token,
            merge=merge,
        )
        packed = pack_images(
            [image.values for image in images],
            [image.grid for image in images],
            patches,
            side=config.vision.side,
            merge=merge,
        )
        grids = [(rows // merge, columns // merge) for rows, columns in (image.grid for image in images)]
        names, regions = _regions(prompt.image_index[0], patches // merge**2, grids, boxes, question.images[-1].shape)
        queries = np.zeros((1, bucket(len(written))), np.int32)
        queries[0, : len(written)] = np.arange(len(asked), len(tokens))
        weights = _padded(np.stack(list(sets.values())), queries.shape[1])
        with jax.set_mesh(judge.net.mesh):
            found = self._trace(
                judge.net.adapters, judge.net.base, *packed, prompt, queries, weights, _padded(regions, length)
            )
        found = jax.device_get(found)
        return _maps(found, weights, tuple(sets), names, regions, grids, config.text.kv_heads)


def probe_of(model: RewardModel) -> AttentionProbe:
    """A probe of whoever answers for a reward model. Raises InputError unless it is a net of ours."""
    if not isinstance(model.answerer, VLM):
        raise InputError(f"attention can be shown for Qwen3-VL judges only, not for {type(model.answerer).__name__}")
    return AttentionProbe(model.answerer)


def save_attention(
    path: str | os.PathLike, model: RewardModel, edit: Edit, score: Score, *, probe: AttentionProbe | None = None
) -> AttentionMaps:
    """Writes a PNG of where the judge looked while it wrote its SC answer, and returns the maps that it shows.

    Args:
      path: of the picture: a row for each cited region, the images beside each other with the boxes.
      model: that gave the score.
      edit, score: as scored. Invalid scores are fine as long as there is an answer.
      probe: `probe_of(model)`, to keep its compiled programs over several edits.

    Raises:
      InputError: the judge is no net of ours, or it gave no answer.
    """
    probe = probe or probe_of(model)
    read = read_edits([edit])[0]
    question, _ = questions(read, model.templates)
    maps = probe(question, score.raw_sc, score.regions)
    write_png(path, attention_picture(question.images, maps.sets, _pictures(maps), score.regions))
    return maps


def _pictures(maps):
    """[Q, rows, columns] per image: means over layers and heads."""
    return [image.mean(axis=(0, 1)) for image in maps.images]


def _query_sets(tokenizer, answer):
    """Answer -> its token ids [U] and {name: weights [U] that sum to 1}."""
    found = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    offsets = np.asarray(found["offset_mapping"], int).reshape(-1, 2)
    if not len(offsets):
        raise InputError("the judge's answer is empty: there is no attention to show")
    sets = {}
    for name, spans in cited_spans(answer).items():
        member = np.zeros(len(offsets), bool)
        for start, stop in spans:
            member |= (offsets[:, 0] < stop) & (offsets[:, 1] > start)
        if member.any():
            sets[name] = (member / member.sum()).astype(np.float32)
    return np.asarray(found["input_ids"], np.int32), sets


def _regions(index, per_image, grids, boxes, size):
    """Names and bool [R, T]: every image, then every box on the edited image and on each source."""
    owner = np.where(index >= 0, index // per_image, -1)
    titles = [*(f"source {i}" for i in range(len(grids) - 1)), "edited"]
    names, rows = list(titles), [owner == i for i in range(len(grids))]
    for box in boxes:
        for i in (len(grids) - 1, *range(len(grids) - 1)):
            inside = _inside(box, grids[i], size).reshape(-1)
            row = np.zeros(len(index), bool)
            row[owner == i] = inside[index[owner == i] - i * per_image]
            names.append(f"box {box.id} {titles[i]}")
            rows.append(row)
    return tuple(names), np.stack(rows)


def _inside(box, grid, size):
    """bool [rows, columns]: merged patches that a box in pixels of an image of `size` (height, width, ...) touches."""
    left, top, right, bottom = box.box
    (rows, columns), (height, width) = grid, size[:2]
    row, column = np.arange(rows)[:, None], np.arange(columns)[None]
    down = (row + 1 > top / height * rows) & (row < bottom / height * rows)
    return down & (column + 1 > left / width * columns) & (column < right / width * columns)


def _padded(x, length):
    """[rows, n] -> [1, multiple of _ROWS, length]."""
    rows = -(-len(x) // _ROWS) * _ROWS
    return np.pad(x, ((0, rows - len(x)), (0, length - x.shape[1])))[None]


def _maps(found, weights, sets, names, regions, grids, groups):
    """Device results of one row as `AttentionMaps`."""
    count = len(sets)
    images = []
    for grid, member in zip(grids, regions):
        part = found.key_mass[:, 0, :, :count][..., np.flatnonzero(member)]
        images.append(part.reshape(*part.shape[:3], *grid))
    mean = lambda x: np.einsum("qu,lnur->lnqr", weights[0, :count], x[:, 0, :, :, : len(names)])
    return AttentionMaps(sets, tuple(images), names, mean(found.mass), mean(found.entropy), groups)
