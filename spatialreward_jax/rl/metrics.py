"""Metrics that stay (total, count) pairs until they are logged, so that micro-batches and masks never bias a mean."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Mean:
    """A mean in the making: total and count, float32 of any (equal) shape; leading axes may hold unsummed parts."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, x, weight) -> "Mean":
        """Weighted mean of x over all its elements; weight is broadcast to x, 0 excludes (even a NaN)."""
        weight = jnp.broadcast_to(weight, x.shape).astype(jnp.float32)
        return cls(jnp.where(weight > 0, x * weight, 0.0).sum(), weight.sum())

    def collapse(self) -> "Mean":
        """Sum all stacked parts."""
        return Mean(self.total.sum(), self.count.sum())

    def value(self):
        """total / count, or 0 where nothing was counted."""
        return jnp.where(self.count > 0, self.total / jnp.where(self.count > 0, self.count, 1), 0.0)


@flax.struct.dataclass
class Peak:
    """A maximum in the making: `top`, float32 and never negative; leading axes may hold parts."""

    top: jax.Array

    @classmethod
    def of(cls, x, where) -> "Peak":
        """Largest x where `where` (broadcast to x), at least 0."""
        return cls(jnp.where(where, x, 0.0).max(initial=0.0))

    def collapse(self) -> "Peak":
        """Maximum of all stacked parts."""
        return Peak(self.top.max(initial=0.0))

    def value(self):
        """The maximum."""
        return self.top


def is_metric(x) -> bool:
    """Whether x is a `Mean` or a `Peak` (to be used as `is_leaf`)."""
    return isinstance(x, Mean | Peak)


def collapse(metrics):
    """Join the stacked parts of every metric of a tree."""
    return jax.tree.map(lambda m: m.collapse(), metrics, is_leaf=is_metric)


def values(metrics):
    """Metrics of a tree as arrays; plain arrays pass."""
    return jax.tree.map(lambda m: m.value() if is_metric(m) else m, metrics, is_leaf=is_metric)
