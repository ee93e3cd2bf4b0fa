"""omnigen2_transformer.npz: velocities with and without adapter, and rotary position ids, for ragged batches."""

import jax
import numpy as np

from spatialreward_jax.evaluation.golden_checks.case import Case
from spatialreward_jax.evaluation.golden_checks.nets import Goldens
from spatialreward_jax.models.omnigen2 import Conditioning, pack_images, pack_references, rope, unpack
from spatialreward_jax.models.omnigen2.config import OmniGen2Config

SUFFIX = "_num_refs"


def check(case: Case, goldens: Goldens) -> None:
    """Checks every case (a, b, c, ...) of the file."""
    net = goldens.transformer
    plain = jax.jit(lambda base, *args: net.bind(base)(*args))
    adapted = jax.jit(lambda adapters, base, *args: goldens.adapted_transformer.bind(adapters, base)(*args))
    for prefix in [n.removesuffix(SUFFIX) for n in case.names if n.endswith(SUFFIX)]:
        x, t, cond = read_inputs(case, prefix, net.config)
        _compare_images(case, f"{prefix}_velocity", plain(net.params, x, t, cond), cond)
        case.compare(f"{prefix}_position_ids", joint_position_ids(cond, x.shape[1]))
        if f"{prefix}_velocity_lora_0" in case:
            with_lora = adapted(goldens.adapted_transformer.adapters, net.params, x, t, cond)
            _compare_images(case, f"{prefix}_velocity_lora", with_lora, cond)


def read_inputs(case: Case, prefix: str, config: OmniGen2Config) -> tuple[np.ndarray, np.ndarray, Conditioning]:
    """(packed targets [B, T, C], times [B], conditioning) of one case."""
    counts = case.input(prefix + SUFFIX)
    last = lambda name: np.moveaxis(case.input(name), 0, -1)
    targets = [last(f"{prefix}_latent_{i}") for i in range(len(counts))]
    references = [[last(f"{prefix}_ref_{i}_{j}") for j in range(n)] for i, n in enumerate(counts)]
    x, sizes = pack_images(targets, patch=config.patch_size)
    refs, ref_sizes = pack_references(references, channels=config.in_channels, patch=config.patch_size)
    text_mask = case.input(f"{prefix}_text_mask").astype(bool)
    cond = Conditioning(case.input(f"{prefix}_text"), text_mask, refs, ref_sizes, sizes)
    return x, case.input(f"{prefix}_timestep"), jax.tree.map(jax.numpy.asarray, cond)


def joint_position_ids(cond: Conditioning, tokens: int) -> np.ndarray:
    """int32 [B, longest real sequence, 3]: the ids of each sample's real tokens in a row, as in the reference."""
    ids, real = (np.asarray(p.joint()) for p in (rope.position_ids(cond, tokens), rope.masks(cond, tokens)))
    out = np.zeros((len(ids), real.sum(axis=1).max(), 3), np.int32)
    for row, values, keep in zip(out, ids, real):
        row[: keep.sum()] = values[keep]
    return out


def _compare_images(case: Case, name: str, tokens: jax.Array, cond: Conditioning) -> None:
    """Unpacks each sample to [C, h, w] and compares; padding must be exactly 0."""
    patch = int((tokens.shape[-1] / case.stored(f"{name}_0").shape[0]) ** 0.5)
    for i, (rows, columns) in enumerate(np.asarray(cond.target_size)):
        image = np.moveaxis(np.asarray(unpack(tokens[i], rows, columns, patch)), -1, 0)
        padded = bool(np.any(np.asarray(tokens[i, rows * columns :])))
        case.compare(f"{name}_{i}", np.full_like(image, np.nan) if padded else image)
