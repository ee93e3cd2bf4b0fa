"""Edit requests in, batches of P prompts out: shuffled, sharded, decoded in threads, resumable at any batch."""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from spatialreward_jax import processes
from spatialreward_jax.data.requests import EditRequest
from spatialreward_jax.errors import InputError
from spatialreward_jax.io import images


@dataclasses.dataclass(frozen=True)
class EditBatch:
    """P prompts on the host, sizes ragged; `spatialreward_jax.data.buckets` pads them.

    Attributes:
        requests: the P requests.
        sources: per request its source images, uint8 [h, w, 3] at the editor's size.
        target_sizes: per request (height, width) of the edit: the only source's size, else the size asked for.
    """

    requests: tuple[EditRequest, ...]
    sources: tuple[tuple[np.ndarray, ...], ...]
    target_sizes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def keys(self) -> np.ndarray:
        """int32 [P], each request's number to fold into random keys."""
        return np.array([request.key for request in self.requests], np.int32)


@dataclasses.dataclass(frozen=True)
class EditorSize:
    """How source images are resized (see `images.editor_size`), and the target size if nothing else says it."""

    max_pixels: int = 262144
    max_side: int = 2048
    multiple: int = 16
    default: tuple[int, int] = (512, 512)

    def target(self, request: EditRequest, sources: Sequence[np.ndarray]) -> tuple[int, int]:
        """(height, width) of the edit. Source of the rule: EditScore, `omnigen2_train_dataset.py`."""
        if len(sources) == 1:
            return sources[0].shape[:2]
        height, width = request.target_size or self.default
        return images.editor_size(
            height, width, max_pixels=self.max_pixels, max_side=max(height, width), multiple=self.multiple
        )


def load_batch(requests: Sequence[EditRequest], size: EditorSize) -> EditBatch:
    """Decodes and resizes the images of some requests. Raises InputError naming the row."""
    sources, targets = [], []
    for request in requests:
        try:
            arrays = tuple(
                images.resize_for_editor(images.read_image(path), size.max_pixels, size.max_side, size.multiple)
                for path in request.images
            )
            sources.append(arrays)
            targets.append(size.target(request, arrays))
        except InputError as error:
            raise InputError(f"{request.where}: {error}") from error
    return EditBatch(tuple(requests), tuple(sources), tuple(targets))


def whole(batch: EditBatch) -> EditBatch:
    """The rows of all processes, in their order, given each process's own; all must call."""
    parts = processes.gather(batch)
    columns = zip(*((part.requests, part.sources, part.target_sizes) for part in parts))
    return batch if len(parts) == 1 else EditBatch(*(sum(column, ()) for column in columns))


def batches(
    requests: Sequence[EditRequest],
    prompts: int,
    *,
    seed: int,
    size: EditorSize,
    process: tuple[int, int] = (0, 1),
    threads: int = 2,
) -> grain.DatasetIterator:
    """Endless iterator over `EditBatch`es, decoded ahead in threads.

    Every epoch is a new permutation of seed and epoch; a batch never crosses an epoch, so its prompts are distinct
    (the rest of an epoch, fewer than `prompts` rows, is dropped). The position is a number of batches: it means the
    same on any number of processes.

    Args:
        requests: all requests, the same in every process.
        prompts: P, prompts of one batch over all processes.
        seed: of the shuffle.
        size: how images are resized.
        process: (index, count) of this process, which gets its contiguous P / count rows of every batch.
        threads: batches decoded at the same time.

    Returns:
        iterator with `get_state()` and `set_state(state)` (a JSON-able dict), as grain's.

    Raises:
        InputError: fewer requests than prompts, or prompts that do not divide over the processes.
    """
    index, count = process
    if prompts % count:
        raise InputError(f"{prompts} prompts do not divide over {count} processes: use a multiple of {count}")
    if not 0 < prompts <= len(requests):
        raise InputError(f"a batch of {prompts} prompts needs as many requests, the data holds {len(requests)}")
    share = prompts // count
    whole = len(requests) // prompts * prompts
    rows = grain.MapDataset.source(list(requests)).seed(seed).shuffle().slice(slice(0, whole)).repeat()
    own = rows.batch(prompts, batch_fn=tuple).map(lambda batch: batch[index * share : (index + 1) * share])
    decoded = own.map(lambda batch: load_batch(batch, size))
    return iter(decoded.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)))
