"""An editor's own edits of EditWorld requests, kept by RL runs, as lessons for a judge.

Rendered candidates fail in known ways; an editor in training fails in its own. A judge that is to reward it must have
seen such pictures: here the oracle says what a perfect judge would have answered about them.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from spatialreward_jax.data.editworld.observed import Observed, observe
from spatialreward_jax.data.editworld.oracle import Oracle
from spatialreward_jax.data.requests import FOLDER_INDEX, EditRequest, read_requests
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import image_size, read_image
from spatialreward_jax.reward.types import Edit


class OwnEdits:
    """Edits with the pictures: index -> (what was observed, source, edited); read when first asked for, and kept."""

    def __init__(self, workdirs: Sequence[str]):
        """workdirs: of RL runs on EditWorld with `keep_edits`. Raises InputError for others."""
        self._edits: list[tuple[Oracle, EditRequest]] = []
        for workdir in map(pathlib.Path, workdirs):
            phases = sorted(workdir.glob(f"edits/*/{FOLDER_INDEX}"))
            requests = workdir / "data" / FOLDER_INDEX
            if not phases or not requests.is_file():
                raise InputError(
                    f"{workdir} holds no edits of an RL run on EditWorld: name the workdir of one with "
                    "--config.keep_edits=True"
                )
            oracle = Oracle.from_requests(requests)
            for phase in phases:
                self._edits += [(oracle, row) for row in read_requests(str(phase), check="header", outputs=True)]
        self._sides = [image_size(request.output)[0] for _, request in self._edits]
        self._kept: dict[int, tuple[Observed, np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._edits)

    def side(self, index: int) -> int:
        """Pixels of a side of the row's pictures."""
        return self._sides[index]

    def __getitem__(self, index: int) -> tuple[Observed, np.ndarray, np.ndarray]:
        if index not in self._kept:
            oracle, request = self._edits[index]
            source, edited = read_image(request.images[0]), read_image(request.output)
            sample = oracle.truth(Edit(source, edited, request.instruction))
            self._kept[index] = observe(edited, sample), source, edited
        return self._kept[index]
