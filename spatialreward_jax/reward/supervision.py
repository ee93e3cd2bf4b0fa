"""Chats with answers to training arrays: exactly the answers' tokens, each with its end token, are targets."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import bucket
from spatialreward_jax.models.qwen3_vl import Prompt, Qwen3VL, VisionGrid, pack_images, pack_prompts
from spatialreward_jax.reward.chats import ChatRow, Turn
from spatialreward_jax.reward.processor import Processor, patch_bucket
from spatialreward_jax.rl.metrics import Mean


class Chat(NamedTuple):
    """A tokenised chat: int32 [T], and bool [T], True at the tokens that an answer consists of (end token included)."""

    tokens: np.ndarray
    answer: np.ndarray


class AnswerBatch(NamedTuple):
    """B chats on the host or the devices.

    prompt: tokens, positions and image places, T tokens each. patches [I, P, C] and grid: of all images. at int32
    [B, A]: positions whose next token is a target; targets int32 [B, A]; weight float32 [B, A]: 1, and 0 on padding.
    """

    prompt: Prompt
    patches: jax.Array
    grid: VisionGrid
    at: jax.Array
    targets: jax.Array
    weight: jax.Array


def tokenize_chat(processor: Processor, turns: Sequence[Turn], grids: Sequence[tuple[int, int]]) -> Chat:
    """Tokenises a chat as decoding would meet it: what stands before an answer apart from the answer.

    Raises InputError when a text holds a reserved token, or the chat template rewrites earlier turns.
    """
    tokenizer = processor.tokenizer
    end = tokenizer.eos_token
    for turn in turns:
        for reserved in tokenizer.all_special_tokens:
            if any(part and reserved in part for part in turn.parts):
                raise InputError(f"the text holds {reserved}, which the tokenizer reserves: take it out")
    pieces: list[tuple[list[int], bool]] = []
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    done = ""
    for number, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        opened = tokenizer.apply_chat_template(
            [_message(t) for t in turns[:number]], tokenize=False, add_generation_prompt=True
        )
        if not opened.startswith(done):
            raise InputError("the chat template rewrites earlier turns: split the chat into single questions")
        answer = "".join(part for part in turn.parts if part) + end
        pieces += [(ids(opened[len(done) :]), False), (ids(answer), True)]
        done = opened + answer
    tokens = np.array([token for piece, _ in pieces for token in piece], np.int32)
    is_answer = np.array([flag for piece, flag in pieces for _ in piece], bool)
    repeats = processor.repeats(tokens, grids)
    return Chat(np.repeat(tokens, repeats), np.repeat(is_answer, repeats))


def _message(turn: Turn) -> dict:
    if turn.role == "user":
        content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in turn.parts]
        return {"role": "user", "content": content}
    return {"role": turn.role, "content": "".join(part for part in turn.parts if part)}


def targets_of(chat: Chat, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(at, targets, weight) of one chat, padded to `length`: the token at[i] + 1 is targets[i]."""
    where = np.flatnonzero(chat.answer)
    at, targets, weight = np.zeros(length, np.int32), np.zeros(length, np.int32), np.zeros(length, np.float32)
    at[: len(where)], targets[: len(where)], weight[: len(where)] = where - 1, chat.tokens[where], 1
    return at, targets, weight


def pack_chats(rows: Sequence[ChatRow], processor: Processor, *, side: int, least: int = 64) -> AnswerBatch:
    """Rows -> a batch of host arrays, lengths, answers and patches padded into buckets.

    The number of images is padded to a multiple of the number of rows. side: of the net's position table.
    Raises InputError as `tokenize_chat`.
    """
    chats, shown, patches = [], [], []
    for row in rows:
        own = [processor.patches(image) for image in row.images]
        shown.append(range(len(patches), len(patches) + len(own)))
        patches += own
        chats.append(tokenize_chat(processor, row.turns, [p.grid for p in own]))
    most = patch_bucket(max((len(p.values) for p in patches), default=1))
    count = -(-len(patches) // len(rows)) * len(rows)
    merge = processor.merge_size
    if not patches:
        raise InputError("a batch without any image: the judge is trained on images")
    values, grid = pack_images(
        [p.values for p in patches], [p.grid for p in patches], most, side=side, merge=merge, rows=count
    )
    prompt = pack_prompts(
        [chat.tokens for chat in chats],
        [list(indices) for indices in shown],
        [p.grid for p in patches],
        length=bucket(max(len(chat.tokens) for chat in chats), least=least, parts=4),
        patches=most,
        image_token=processor.image_pad,
        merge=merge,
    )
    answers = bucket(max(int(chat.answer.sum()) for chat in chats), least=min(least, 32))
    at, targets, weight = map(np.stack, zip(*(targets_of(chat, answers) for chat in chats)))
    return AnswerBatch(prompt, values, grid, at, targets, weight)


def answer_loss(model: Qwen3VL, batch: AnswerBatch) -> tuple[Mean, Mean]:
    """(mean cross-entropy of the answers' tokens in nats, share of them that the net finds likeliest)."""
    features = model.images(batch.patches, batch.grid)
    prompt = batch.prompt
    hidden = model(prompt.tokens, prompt.image_index, prompt.positions, features)
    hidden = jnp.take_along_axis(hidden, batch.at[..., None], axis=1)  # B A D
    logp, hit = model.judged(hidden, batch.targets)
    return Mean.of(-logp, batch.weight), Mean.of(hit.astype(jnp.float32), batch.weight)
