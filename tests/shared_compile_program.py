"""The training program, for tests in several processes of one machine: the first process compiles for all of them.

JAX shares compiled programs under a key that contains each process's own view of the devices, which differs on CPU; the
view is left out here, for the processes of a test are alike.
"""

import jax
from jax._src import cache_key

from spatialreward_jax import cli, train


def share():
    """Has one process compile for all."""
    cache_key._hash_accelerator_config = lambda hash_obj, accelerators: None
    jax.config.update("jax_share_binary_between_hosts", True)


if __name__ == "__main__":
    share()
    train.define_flags()
    cli.run(train.main)
