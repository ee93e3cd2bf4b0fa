"""Which rows each batch takes: by buckets within a source, by shares between sources; resumable at any batch.

Everything follows from a seed and the number of the batch, so that the position of a run is one number.
"""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from spatialreward_jax.errors import InputError


class Rows(Protocol):
    """Rows of one source. `keys`: for each row its bucket; a batch holds rows of one bucket only."""

    keys: Sequence[Hashable]

    def __getitem__(self, index: int) -> Any:
        """The row; the same one for the same index."""


def plan_epoch(keys: Sequence[Hashable], batch: int, seed: Sequence[int]) -> np.ndarray:
    """Row numbers int64 [batches, batch]: every row at most once, one bucket a batch, in random order.

    Within a bucket, what does not fill a batch is left out of this epoch.
    """
    rng, members = np.random.default_rng(list(seed)), {}
    for row in rng.permutation(len(keys)):
        members.setdefault(keys[row], []).append(row)
    whole = [rows[at : at + batch] for rows in members.values() for at in range(0, len(rows) - batch + 1, batch)]
    return np.array([whole[i] for i in rng.permutation(len(whole))], np.int64).reshape(-1, batch)


class Mixture:
    """Batch number -> (number, source's name, rows). A `grain` source of `count` batches.

    Args:
        sources: by name.
        shares: with which each source is drawn: any numbers of at least 0, not all of them 0.
        batch: rows of a batch.
        count: batches of the whole run.
        seed: of all draws.

    Raises:
        InputError: a share names no source, or no bucket of a source fills a batch.
    """

    def __init__(self, sources: Mapping[str, Rows], shares: Mapping[str, float], batch: int, count: int, seed: int):
        self.sources, self._batch, self._seed = dict(sources), batch, seed
        names = list(self.sources)
        if set(shares) - set(names) or min(shares.values()) < 0 or not sum(shares.values()):
            raise InputError(f"shares {dict(shares)}: give some of at least 0, not all 0, of {', '.join(names)}")
        self._per_epoch = {name: len(plan_epoch(source.keys, batch, (0,))) for name, source in self.sources.items()}
        used = {name for name, share in shares.items() if share > 0}
        for name in sorted(used):
            if not self._per_epoch[name]:
                raise InputError(
                    f"{name}: no bucket of its {len(self.sources[name].keys)} rows fills a batch of {batch}: use a "
                    "smaller batch or more rows"
                )
        draws = np.random.default_rng([seed, 1]).uniform(size=count)
        edges = np.cumsum([shares.get(name, 0.0) for name in names])
        chosen = np.minimum(np.searchsorted(edges / edges[-1], draws, side="right"), len(names) - 1)
        self._chosen = [names[i] for i in chosen]
        seen = dict.fromkeys(names, 0)
        self._ordinal = np.zeros(count, np.int64)
        for number, name in enumerate(self._chosen):
            self._ordinal[number] = seen[name]
            seen[name] += 1
        self._plan = functools.lru_cache(maxsize=2 * len(names))(self._make_plan)

    def _make_plan(self, name: str, epoch: int) -> np.ndarray:
        where = list(self.sources).index(name)
        return plan_epoch(self.sources[name].keys, self._batch, (self._seed, 2, where, epoch))

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, number: int) -> tuple[int, str, list[Any]]:
        name = self._chosen[number]
        epoch, at = divmod(int(self._ordinal[number]), self._per_epoch[name])
        return number, name, [self.sources[name][int(row)] for row in self._plan(name, epoch)[at]]


def mixed_batches(
    mixture: Mixture, load: Callable[[int, str, list[Any]], Any], *, accumulate: int = 1, threads: int = 2
) -> grain.DatasetIterator:
    """Iterator over tuples of `accumulate` loaded batches, made ahead in threads; its position can be stored.

    `load(number, name, rows)` makes a batch of host arrays.
    """
    batches = grain.MapDataset.source(mixture).map(lambda item: load(*item)).batch(accumulate, batch_fn=tuple)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)))
