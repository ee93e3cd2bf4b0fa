"""A grammar over bytes, compiled for one tokenizer into arrays that stay on the device.

Why not a grammar library: the decoding loop is one program without a return to the host until the answers are done.
llguidance (MIT, no dependencies) and outlines-core make masks on the host, one step at a time: a round trip and a
transfer of [B, V] bits per token, and neither holds ordered boxes or ids that exist, which are no context-free matter;
xgrammar moreover requires torch. The answers need one small automaton, which is walked here once for every token.

For each node the walk gives the tokens that may come next, as one bit each, and the node behind them. Tokens that lead
from every node to the same place form a class, so that the transitions are a small table [nodes, classes]; rows of bits
that are equal are stored once. A token may run across any part of the text but the border of a number: there, as in
every tokenizer that splits digits from their surroundings, a new token begins, and arithmetic on the registers tells
which digits may follow. No string is lost by that.
"""

import json
from typing import Any, NamedTuple

import jax
import numpy as np

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate.grammar import Grammar

LONGEST = 64
"""Tokens with more bytes (long runs of spaces) are not used."""

_FAR = 1 << 20
_TEXT = 20  # a node with more edges is inside free text


class Tables(NamedTuple):
    """K nodes, C classes of tokens, V tokens, W = ceil(V / 32), U different rows of bits, Q numbers, D digit tokens."""

    rows: jax.Array
    """uint32 [U, W], bit v % 32 of word v // 32: token v may come. Row 0 is empty."""
    free: jax.Array
    """int32 [K], row of what the grammar allows."""
    closing: jax.Array
    """int32 [K], row of the tokens that are on a shortest way to the end."""
    token_class: jax.Array
    """int32 [V], class 0: no token of any text."""
    step: jax.Array
    """int32 [K, C], node behind a token, -1 where it may not come."""
    guard: jax.Array
    """int32 [K, C], see `Grammar.guards`."""
    guarded: jax.Array
    """int32 [G], tokens with a guard anywhere."""
    full: jax.Array
    """int32 [], see `Grammar.full`."""
    room: jax.Array
    """int32 [K], tokens that must be left for all of `free` to be safe: any token, then a shortest way to the end."""
    reserve: jax.Array
    """int32 [K], tokens of a shortest way to the end, the end token included, numbers at their longest."""
    bound: jax.Array
    """int32 [K], see `Grammar.bound`."""
    forced: jax.Array
    """int32 [K], the token that must come, -1 where there is a choice of text or of tokens."""
    number: jax.Array
    """int32 [K], number that stands here, -1 for none."""
    fields: jax.Array
    """int32 [Q, 7]: node behind, then low, high, low_from, high_from, store, scored."""
    digits: jax.Array
    """int32 [D], tokens of digits alone."""
    value: jax.Array
    """int32 [V], value of a digit token, -1 otherwise."""
    width: jax.Array
    """int32 [V], its number of digits."""
    spelled: jax.Array
    """int32 [N], first token of each integer as the tokenizer writes it."""


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """Bytes of each token of a `transformers` fast tokenizer; added tokens are left out, they are never part of text.

    Raises:
      InputError: the tokenizer works neither on bytes nor with a fall-back to bytes.
    """
    decoder = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    added = set(tokenizer.added_tokens_decoder)
    vocab = {i: token for token, i in tokenizer.get_vocab().items() if i not in added}
    if "ByteLevel" in decoder:
        table = _byte_letters()
        known = {i: token for i, token in vocab.items() if all(c in table for c in token)}
        return {i: bytes(table[c] for c in token) for i, token in known.items() if token}
    if "ByteFallback" in decoder:
        return {i: _fallback_bytes(token) for i, token in vocab.items() if token}
    raise InputError("constrained answers need a tokenizer over bytes (decoder ByteLevel or ByteFallback)")


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with: printable Latin-1 as it is, the rest from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(rest)}


def _fallback_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def compile_grammar(grammar: Grammar, tokenizer: Any, *, vocab: int, eos: tuple[int, ...]) -> Tables:
    """Tables (NumPy arrays) for a grammar and a tokenizer.

    Args:
      grammar: complete.
      tokenizer: a `transformers` fast tokenizer.
      vocab: V, width of the net's logits.
      eos: tokens that may end the text.

    Raises:
      InputError: the tokenizer lacks a byte that the grammar needs, or is no byte-level one.
    """
    tokens = {i: text for i, text in token_bytes(tokenizer).items() if i < vocab and len(text) <= LONGEST}
    walks = _walk(grammar, tokens)
    for node, (ids, _, _) in enumerate(walks):
        if not len(ids) and node not in grammar.numbers and node not in grammar.ends:
            raise InputError("the tokenizer has no token for a byte that constrained answers need")
    token_class, count = _classes(walks, vocab)
    step = np.full((len(walks), count), -1, np.int32)
    guard = np.zeros((len(walks), count), np.int32)
    guarded = set()
    for node, (ids, nodes, guards) in enumerate(walks):
        step[node, token_class[ids]] = nodes
        guard[node, token_class[ids]] = guards
        guarded.update(ids[guards != 0].tolist())
    value, width = _digit_tokens(tokens, vocab)
    if set(range(10)) - set(value[width == 1].tolist()):
        raise InputError("the tokenizer has no token for a digit: constrained answers need all ten")
    sure = np.array(grammar.sure)[:, None]
    forced = _forced(grammar, tokenizer, tokens, step, token_class, eos)
    reserve = _reserve(grammar, np.where((guard < 0) | (guard > sure), -1, step), forced, token_class)
    behind = np.where(step >= 0, reserve[step], -1)
    rows, free, closing = _rows(grammar, walks, reserve, vocab, eos)
    number, fields = _fields(grammar)
    most = max([0, *(field.high for field, _ in grammar.numbers.values())])
    return Tables(
        rows=rows,
        free=free,
        closing=closing,
        token_class=token_class,
        step=step,
        guard=guard,
        guarded=np.array(sorted(guarded), np.int32),
        full=np.int32(grammar.full),
        room=(1 + behind.max(axis=1)).astype(np.int32),
        reserve=reserve,
        bound=np.array(grammar.bound, np.int32),
        forced=forced,
        number=number,
        fields=fields,
        digits=np.flatnonzero(width).astype(np.int32),
        value=value,
        width=width,
        spelled=_spelled(tokenizer, most, value, width),
    )


def _walk(grammar: Grammar, tokens: dict[int, bytes]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each node: tokens that may come (sorted), the node behind each, its guard."""
    dead = len(grammar.edges)
    delta = np.full((dead + 1, 256), dead, np.int32)
    guards = np.zeros((dead + 1, 256), np.int32)
    for node, edges in enumerate(grammar.edges):
        for byte, target in edges.items():
            delta[node, byte] = target
            guards[node, byte] = grammar.guards.get((node, byte), 0)
    ids = np.array(sorted(tokens), np.int32)
    length = np.array([len(tokens[i]) for i in ids])
    text = np.zeros((len(ids), max(length)), np.uint8)
    for row, i in enumerate(ids):
        text[row, : length[row]] = np.frombuffer(tokens[i], np.uint8)
    starting = [np.flatnonzero(text[:, 0] == byte) for byte in range(256)]
    none = np.zeros(0, np.int64)
    walks = []
    for node, edges in enumerate(grammar.edges):
        rows = np.sort(np.concatenate([none, *(starting[byte] for byte in edges)]))
        at, need, full = np.full(len(rows), node), np.zeros(len(rows), np.int32), np.zeros(len(rows), bool)
        for place in range(text.shape[1]):
            more = np.flatnonzero((length[rows] > place) & (at < dead))
            if not len(more):
                break
            byte = text[rows[more], place]
            met = guards[at[more], byte]
            need[more], full[more] = np.maximum(need[more], met), full[more] | (met < 0)
            at[more] = delta[at[more], byte]
        alive = at < dead
        walks.append((ids[rows[alive]], at[alive].astype(np.int32), np.where(full, -1, need)[alive]))
    return walks


def _classes(walks, vocab: int) -> tuple[np.ndarray, int]:
    """(class of each token, number of classes): equal classes lead from every node to the same node and guard."""
    code = np.zeros(vocab, np.uint64)
    salt = np.random.default_rng(0)
    for ids, nodes, guards in walks:
        mix = salt.integers(1, 1 << 63, 2, np.uint64) | np.uint64(1)
        code[ids] += (nodes + 1).astype(np.uint64) * mix[0] + (guards + 1).astype(np.uint64) * mix[1]
    different, token_class = np.unique(code, return_inverse=True)  # code 0, tokens that are never met, comes first
    missing = int(different[0] != 0)
    return (token_class.reshape(-1) + missing).astype(np.int32), len(different) + missing


def _reserve(grammar: Grammar, sure: np.ndarray, forced: np.ndarray, token_class: np.ndarray) -> np.ndarray:
    """Tokens of a shortest way from each node to the end.

    `sure`: transitions whose guard is fulfilled for certain. Where a token is forced, the way leads over that token.
    """
    far = np.full(len(sure) + 1, _FAR, np.int32)  # the last entry stands for transitions that are not there
    ends, must = sorted(grammar.ends), np.flatnonzero(forced >= 0)
    must = must[~np.isin(must, ends)]
    far[ends] = 1
    while True:
        new = np.minimum(far[:-1], 1 + far[sure].min(axis=1, initial=_FAR))
        new[must] = 1 + far[sure[must, token_class[forced[must]]]]
        for node, (number, after) in grammar.numbers.items():
            new[node] = number.digits + far[after]
        new = np.minimum(new, _FAR)
        if (new == far[:-1]).all():
            return new
        far[:-1] = new


def _rows(grammar: Grammar, walks, reserve: np.ndarray, vocab: int, eos: tuple[int, ...]):
    """(different rows of bits, row of the free and of the closing tokens of each node)."""
    words = -(-vocab // 32)
    packed, index = [np.zeros(words, np.uint32)], {bytes(4 * words): 0}

    def row(ids: np.ndarray) -> int:
        bits = np.zeros(32 * words, np.uint8)
        bits[ids] = 1
        new = np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)
        if new.tobytes() not in index:
            index[new.tobytes()] = len(packed)
            packed.append(new)
        return index[new.tobytes()]

    free, closing = np.zeros(len(walks), np.int32), np.zeros(len(walks), np.int32)
    for node, (ids, nodes, guards) in enumerate(walks):
        if node in grammar.ends:
            free[node] = closing[node] = row(np.array(eos))
            continue
        safe = (guards >= 0) & (guards <= grammar.sure[node])
        free[node], closing[node] = row(ids), row(ids[(reserve[nodes] < reserve[node]) & safe])
    return np.stack(packed), free, closing


def _fields(grammar: Grammar) -> tuple[np.ndarray, np.ndarray]:
    number = np.full(len(grammar.edges), -1, np.int32)
    fields = []
    for node, (field, after) in grammar.numbers.items():
        number[node] = len(fields)
        fields.append((after, field.low, field.high, field.low_from, field.high_from, field.store, field.scored))
    return number, np.array(fields or np.zeros((1, 7)), np.int32)


def _digit_tokens(tokens: dict[int, bytes], vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """(value, width) int32 [V] of tokens of one to four digits; width 0 for others."""
    value, width = np.full(vocab, -1, np.int32), np.zeros(vocab, np.int32)
    for i, text in tokens.items():
        if text.isdigit() and len(text) <= 4:
            value[i], width[i] = int(text), len(text)
    return value, width


def _spelled(tokenizer: Any, most: int, value: np.ndarray, width: np.ndarray) -> np.ndarray:
    """First token of each of 0..most; its first digit where the tokenizer writes it otherwise."""
    digit = {int(value[i]): i for i in np.flatnonzero(width == 1)}
    first = np.zeros(most + 1, np.int32)
    for number in range(most + 1):
        token = tokenizer.encode(str(number), add_special_tokens=False)[0]
        begins = token < len(width) and width[token] and str(number).startswith(str(value[token]))
        first[number] = token if begins else digit[int(str(number)[0])]
    return first


def _forced(grammar: Grammar, tokenizer: Any, tokens: dict[int, bytes], step, token_class, eos) -> np.ndarray:
    """The token that must come, where the tokenizer would write it there whatever follows.

    A stretch of text that must come is more than a token that must: the net may be used to a token that runs on behind
    the stretch, and out of its context a text is cut into other tokens.
    """
    forced = np.full(len(step), -1, np.int32)
    for node, before in enumerate(_contexts(grammar)):
        stretch, here = _stretch(grammar, node)
        if node in grammar.ends:
            forced[node] = eos[0]
        elif stretch and (before + stretch).isascii():
            sealed = here in grammar.numbers or here in grammar.ends  # no token runs across this border
            behind = {b""} if sealed else _behind(grammar, here)
            written = [_written(tokenizer, tokens, before, stretch + more) for more in {b"", *behind}]
            first = {ids[0] if ids else -1 for ids in written}
            short = not sealed and len(_written(tokenizer, tokens, before, stretch)) < 2
            token = -1 if short or len(first) > 1 else first.pop()
            if token >= 0 and step[node, token_class[token]] >= 0:
                forced[node] = token
    return forced


def _written(tokenizer: Any, tokens: dict[int, bytes], before: bytes, text: bytes) -> list[int]:
    """Tokens of `text` behind `before` as the tokenizer writes them together; none if one runs across the border."""
    place = 0
    ids = tokenizer.encode((before + text).decode(), add_special_tokens=False)
    for number, token in enumerate(ids):
        if place == len(before):
            return ids[number:]
        if token not in tokens:
            return []
        place += len(tokens[token])
    return []


def _contexts(grammar: Grammar) -> list[bytes]:
    """A text that leads to each node, from the free text or number before it on."""
    contexts: list[bytes | None] = [None] * len(grammar.edges)
    behind = {node for edges in grammar.edges for node in edges.values()}
    behind |= {after for _, after in grammar.numbers.values()}
    queue = [node for node in range(len(grammar.edges)) if node not in behind]
    for node in queue:
        contexts[node] = b""
    for node in queue:  # grows while it is walked
        before = b"a" if len(grammar.edges[node]) > _TEXT else contexts[node]
        ways = [(before + bytes([byte]), then) for byte, then in grammar.edges[node].items()]
        ways += [(b"0", grammar.numbers[node][1])] if node in grammar.numbers else []
        for text, then in ways:
            if contexts[then] is None:
                contexts[then] = text
                queue.append(then)
    return [context or b"" for context in contexts]


def _stretch(grammar: Grammar, node: int) -> tuple[bytes, int]:
    """(bytes that must come, node behind them); none at a number."""
    stretch = bytearray()
    while node not in grammar.numbers and node not in grammar.ends and len(grammar.edges[node]) == 1:
        ((byte, node),) = grammar.edges[node].items()
        stretch.append(byte)
    return bytes(stretch), node


def _behind(grammar: Grammar, node: int) -> set[bytes]:
    """How the text may go on behind a stretch; a few letters stand for free text."""
    edges = grammar.edges[node]
    some = [byte for byte in edges if len(edges) <= _TEXT or byte in b"aA0 .<("]
    return {bytes([byte]) + _stretch(grammar, edges[byte])[0] for byte in some}
