"""Eight fake CPU devices, float32 matmuls at full precision, and the reference arrays, for every test."""

import collections
import gc
import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile hundreds of small programs and run each a few times: cheap code generation makes them compile four times
# faster. Most of that comes from leaving out the fusion emitters and from generating a program's code in one piece. A
# test's own processes inherit the flags, and say how many devices they want behind them (the last word counts).
os.environ["CHEAP_CODE"] = (
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8{os.environ['CHEAP_CODE']}"
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest
from absl import flags

jax.config.update("jax_default_matmul_precision", "highest")


def pytest_configure(config):
    """What one test compiled, others need not: all processes of a run share a cache that ends with it."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return  # a worker, or a cache of the user's own
    folder = tempfile.TemporaryDirectory(prefix="compiled-")
    config.add_cleanup(folder.cleanup)
    for name, value in (("compilation_cache_dir", folder.name), ("persistent_cache_min_compile_time_secs", 0.5)):
        os.environ[f"JAX_{name.upper()}"] = str(value)
        jax.config.update(f"jax_{name}", value)


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first: a worker takes whole files, and is not to begin a long one at the end."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module", autouse=True)
def left_alone_by_the_collector():
    """What a file leaves behind, a million objects of traced programs, is not searched for garbage ever after."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def goldens() -> pathlib.Path:
    """Folder of reference checkpoints, inputs and outputs made by the PyTorch implementations."""
    return pathlib.Path(__file__).parent / "goldens"


ONE_DEVICE = "--xla_force_host_platform_device_count=1"


@pytest.fixture(scope="session")
def one_device() -> dict[str, str]:
    """Environment of a test's own process that has one device and the same bits."""
    return os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {ONE_DEVICE}"}


@pytest.fixture(scope="session")
def optimised() -> dict[str, str]:
    """Environment of a test's own process that runs for longer than it compiles: one device, code as users have it."""
    return os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS'].replace(os.environ['CHEAP_CODE'], '')} {ONE_DEVICE}"}


@pytest.fixture
def own_flags() -> None:
    """No flags of our programs are defined, as in a new process, so that the programs of two tests never meet."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        for flag in list(defined):
            own = module.startswith("spatialreward_jax.") or flag.name.split(".")[0] == "config"
            if own and flag.name in flags.FLAGS:
                delattr(flags.FLAGS, flag.name)
    flags.FLAGS.unparse_flags()
