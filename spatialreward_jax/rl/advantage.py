"""Advantages from rewards, on the host in float64 (in float32 a constant group would explode)."""

from typing import NamedTuple

import numpy as np

from spatialreward_jax.errors import InputError

CONSTANT = 1e-6  # a group whose rewards spread no further than this teaches nothing
EPS = 1e-8
STDS = ("group", "batch")


class GroupStats(NamedTuple):
    """Statistics of the valid rewards of each group, [P] float64 (NaN where there is none); count [P] int."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    count: np.ndarray


def group_stats(reward, valid) -> GroupStats:
    """Statistics over the group axis. reward [P, G] float; valid [P, G] bool; std is the population's."""
    valid = np.asarray(valid, bool)
    reward = np.where(valid, np.asarray(reward, np.float64), 0.0)
    count = valid.sum(-1)
    some = np.where(count > 0, 1.0, np.nan)
    share = np.maximum(count, 1)
    mean = reward.sum(-1) / share * some
    spread = np.where(valid, reward - np.nan_to_num(mean)[..., None], 0.0)
    return GroupStats(
        np.where(valid, reward, np.inf).min(-1) * some,
        np.where(valid, reward, -np.inf).max(-1) * some,
        mean,
        np.sqrt((spread**2).sum(-1) / share) * some,
        count,
    )


def group_advantage(reward, valid, *, std: str = "group", clip: float = 5.0) -> np.ndarray:
    """(reward - mean of its group) / (std + 1e-8), clipped to +-clip -> [P, G] float32 (arXiv 2505.05470, eq. 3).

    reward [P, G]; valid [P, G] bool. std: "group", or "batch" for the standard deviation of all valid rewards.
    Exactly 0 in a group whose rewards lie within 1e-6 of each other or of which fewer than 2 are valid, and for
    invalid samples, which count in no statistic (their reward may be NaN).
    Raises InputError for other shapes, an unknown `std`, or a valid reward that is not finite.
    """
    if std not in STDS:
        raise InputError(f"advantage std {std!r} is unknown; choose {' or '.join(STDS)}")
    reward, valid = np.asarray(reward, np.float64), np.asarray(valid, bool)
    if reward.shape != valid.shape or reward.ndim != 2:
        raise InputError(f"rewards {reward.shape} and valid {valid.shape}: both must be [prompts, group]")
    if not np.isfinite(reward[valid]).all():
        raise InputError("a reward marked valid is not finite: mark such samples invalid")
    stats = group_stats(reward, valid)
    scale = stats.std if std == "group" else np.full(len(reward), reward[valid].std() if valid.any() else 0.0)
    teaches = (stats.count >= 2) & (np.nan_to_num(stats.high - stats.low) > CONSTANT)
    use = valid & teaches[:, None]
    centred = np.where(use, reward, 0.0) - np.where(teaches, stats.mean, 0.0)[:, None]
    advantage = centred / (np.where(teaches, scale, 1.0) + EPS)[:, None]
    return np.where(use, np.clip(advantage, -clip, clip), 0.0).astype(np.float32)


def reward_metrics(reward, valid) -> dict[str, float]:
    """Health of one phase's rewards: shares of invalid samples and of flat groups, mean and std of the valid ones.

    `reward_sem` is the standard error over groups, whose samples share a prompt: none below two groups. Where no sample
    is valid there is no `reward`, `reward_std` or `reward_group_std` either: nothing stands in for them.
    """
    valid = np.asarray(valid, bool)
    stats = group_stats(reward, valid)
    flat = (stats.count < 2) | (np.nan_to_num(stats.high - stats.low) <= CONSTANT)
    good = np.asarray(reward, np.float64)[valid]
    health = {"invalid_share": float(1 - valid.mean()), "zero_std_share": float(flat.mean())}
    if not good.size:
        return health
    means = {
        "reward": float(good.mean()),
        "reward_std": float(good.std()),
        "reward_group_std": float(np.nanmean(stats.std)),
    }
    groups = stats.mean[np.isfinite(stats.mean)]
    if len(groups) > 1:
        means["reward_sem"] = standard_error(groups)
    return means | health


def standard_error(values) -> float:
    """Of the mean of independent numbers [N], N at least 2."""
    values = np.asarray(values, np.float64)
    return float(values.std(ddof=1) / np.sqrt(len(values)))
