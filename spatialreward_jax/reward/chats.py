"""Chats with images, as a judge is taught with them."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Turn:
    """role: system, user or assistant. parts: texts, and None where an image stands."""

    role: str
    parts: tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class ChatRow:
    """turns: of one chat, the last one an answer. images: uint8 [H, W, 3] each, in the order in which they stand."""

    turns: tuple[Turn, ...]
    images: tuple[np.ndarray, ...]
