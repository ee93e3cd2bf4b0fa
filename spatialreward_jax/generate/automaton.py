"""Where rows stand in a grammar, on the device: which tokens may come, which must, and where they lead."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spatialreward_jax.generate.grammar import NOT_FULL, REGISTERS
from spatialreward_jax.generate.token_tables import Tables


class Place(NamedTuple):
    """Where B rows stand; all int32."""

    node: jax.Array
    """[B]."""
    value: jax.Array
    """[B], of the digits read so far of the number that stands here."""
    width: jax.Array
    """[B], how many these are."""
    taken: jax.Array
    """[B], tokens of the free text that the row is in."""
    registers: jax.Array
    """[B, REGISTERS]."""


def start(nodes: jax.Array) -> Place:
    """Before the first token; nodes int32 [B]."""
    zero = jnp.zeros_like(nodes)
    return Place(nodes, zero, zero, zero, jnp.zeros((nodes.shape[0], REGISTERS), jnp.int32))


class Field(NamedTuple):
    """The number that stands at each row; rows without one have `here` False."""

    here: jax.Array
    after: jax.Array
    low: jax.Array
    high: jax.Array
    store: jax.Array
    scored: jax.Array
    complete: jax.Array


def field_of(tables: Tables, place: Place) -> Field:
    """What the row's number may be; `complete`: the digits so far are a number in its range."""
    index = tables.number[place.node]
    after, low, high, low_from, high_from, store, scored = jnp.moveaxis(tables.fields[jnp.maximum(index, 0)], -1, 0)
    held = lambda at: jnp.take_along_axis(place.registers, jnp.maximum(at, 0)[:, None], axis=1)[:, 0]
    low = jnp.where(low_from >= 0, held(low_from), low)
    high = jnp.where(high_from >= 0, held(high_from), high)
    here = index >= 0
    complete = here & (place.width > 0) & (low <= place.value) & (place.value <= high)
    return Field(here, after, low, high, store, jnp.where(here, scored, -1), complete)


def digits_allowed(tables: Tables, place: Place, field: Field) -> jax.Array:
    """bool [B, D]: digit tokens that can go on with the row's number, whatever else stands there."""
    value, width = tables.value[tables.digits], tables.width[tables.digits]
    new = place.value[:, None] * 10**width + value
    starts_with_zero = (width > 1) & (value < 10 ** (width - 1))
    leading_zero = jnp.where(place.width[:, None] > 0, place.value[:, None] == 0, starts_with_zero)
    fits = jnp.zeros(new.shape, bool)
    for more in range(4):
        least, most = new * 10**more, new * 10**more + (10**more - 1)
        fits |= (least <= field.high[:, None]) & (most >= field.low[:, None]) & ((more == 0) | (new > 0))
    short = place.width[:, None] + width <= 4
    return field.here[:, None] & fits & short & ~leading_zero


def allowed(tables: Tables, place: Place, left: jax.Array) -> jax.Array:
    """bool [B, V]: tokens that may come, so that the text can still be completed.

    Args:
      tables: of the grammar.
      place: where the rows stand.
      left: int32 [B], tokens that may still be written, end token included; at least the node's `reserve`.
    """
    vocab = tables.token_class.shape[0]
    field = field_of(tables, place)
    node = jnp.where(field.here, field.after, place.node)
    bound = tables.bound[node]
    hurry = (left < tables.room[node]) | ((bound > 0) & (place.taken >= bound))
    row = jnp.where(hurry, tables.closing[node], tables.free[node])
    words = jnp.where((field.here & ~field.complete)[:, None], 0, tables.rows[row])
    bits = (words[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    mask = bits.reshape(len(node), -1)[:, :vocab] > 0
    guard = tables.guard[node[:, None], tables.token_class[tables.guarded]]
    count = place.registers[:, :1]
    is_open = jnp.where(guard == NOT_FULL, count < tables.full, count >= guard)
    mask = mask.at[:, tables.guarded].set(mask[:, tables.guarded] & is_open)
    return mask.at[:, tables.digits].set(mask[:, tables.digits] | digits_allowed(tables, place, field))


def forced(tables: Tables, place: Place) -> jax.Array:
    """int32 [B]: the token that must come, -1 where the net has a choice."""
    field = field_of(tables, place)
    ended = field.here & field.complete & ~digits_allowed(tables, place, field).any(axis=1)
    word = tables.forced[jnp.where(field.here, field.after, place.node)]
    first = tables.spelled[jnp.clip(field.low, 0, tables.spelled.shape[0] - 1)]
    lengths = jnp.where(field.low >= 1000, 4, jnp.where(field.low >= 100, 3, jnp.where(field.low >= 10, 2, 1)))
    rest = jnp.maximum(lengths - place.width - 1, 0)
    single = tables.digits[jnp.argmax(_is_digit(tables, (field.low // 10**rest) % 10), axis=1)]
    digit = jnp.where(place.width == 0, first, single)
    certain = field.here & (field.low == field.high) & ~field.complete
    return jnp.where(certain, digit, jnp.where(field.here & ~ended, -1, word))


def _is_digit(tables, digit):
    """bool [B, D]: the token of exactly this digit."""
    return (tables.width[tables.digits] == 1) & (tables.value[tables.digits] == digit[:, None])


def advance(tables: Tables, place: Place, token: jax.Array) -> Place:
    """Reads one allowed token of each row, int32 [B]. End tokens leave a row where it is."""
    field = field_of(tables, place)
    width = tables.width[token]
    more = field.here & (width > 0)
    node = jnp.where(field.here, field.after, place.node)
    step = tables.step[node, tables.token_class[token]]
    step = jnp.where(more | (step < 0), place.node, step)
    leaves = field.here & ~more
    store = leaves[:, None] & (field.store[:, None] == jnp.arange(REGISTERS))
    bounded = tables.bound[step] > 0
    return Place(
        node=step,
        value=jnp.where(more, place.value * 10**width + tables.value[token], 0),
        width=jnp.where(more, place.width + width, 0),
        taken=jnp.where(bounded, place.taken + (tables.bound[place.node] > 0), 0),
        registers=jnp.where(store, place.value[:, None] + 1, place.registers),
    )
