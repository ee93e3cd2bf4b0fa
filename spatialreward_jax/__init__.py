"""SpatialReward in JAX."""
