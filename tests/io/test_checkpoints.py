import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def _state(mesh, seed, width=16):
    sharding, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    params = {"w": jax.device_put(jax.random.normal(jax.random.key(seed), (8, width)), sharding)}
    params["b"] = jax.device_put(jnp.full((3,), seed, jnp.bfloat16), whole)
    return {
        "params": params,
        "opt": optax.adam(1e-3).init(params),
        "key": jax.random.key(seed),
        "step": jnp.int32(seed),
    }


def _equal(a, b):
    raw = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(raw(x)), np.asarray(raw(y))), a, b)


def _saved(folder, mesh, steps, **options):
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(step, _state(mesh, step), {"data": {"next_index": step}})
    checkpoints.close()


def test_round_trip_with_shardings_keys_and_position(tmp_path, mesh):
    assert Checkpoints(tmp_path).restore(_state(mesh, 0)) is None
    _saved(tmp_path, mesh, (1, 2, 3, 4), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]
    got = Checkpoints(tmp_path).restore(_state(mesh, 0))
    assert got.step == 4 and got.run == {"data": {"next_index": 4}}
    _equal(got.state, _state(mesh, 4))
    assert got.state["params"]["w"].sharding.spec == P("data")
    assert isinstance(got.state["opt"][0], optax.ScaleByAdamState)


def test_state_may_be_donated_right_after_save(tmp_path, mesh):
    checkpoints, state = Checkpoints(tmp_path), _state(mesh, 5, width=40_000)
    want = np.asarray(state["params"]["w"])
    checkpoints.save(5, state, {})
    jax.jit(lambda x: x * 0, donate_argnums=0)(state["params"]["w"]).block_until_ready()
    checkpoints.close()
    np.testing.assert_array_equal(checkpoints.restore(_state(mesh, 0, width=40_000)).state["params"]["w"], want)


def _truncate_data(folder):
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def _truncate_record(folder):
    path = folder / "record" / "metadata"
    path.write_bytes(path.read_bytes()[:-5])


def _drop_state(folder):
    for path in (folder / "state").glob("*.ocdbt"):
        path.unlink()


@pytest.mark.parametrize("damage", [_truncate_data, _truncate_record, _drop_state])
def test_damaged_newest_is_skipped_with_a_warning(tmp_path, mesh, damage):
    _saved(tmp_path, mesh, (1, 2))
    damage(tmp_path / "2")
    said = []
    checkpoints = Checkpoints(tmp_path, say=said.append)
    got = checkpoints.restore(_state(mesh, 0))
    assert got.step == 1 and len(said) == 1 and "2 is damaged and skipped" in said[0] and "\n" not in said[0]
    _equal(got.state, _state(mesh, 1))
    checkpoints.save(2, _state(mesh, 2), {})
    checkpoints.close()
    assert Checkpoints(tmp_path).restore(_state(mesh, 0)).step == 2


def test_half_written_folder_is_not_seen(tmp_path, mesh):
    _saved(tmp_path, mesh, (1,))
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "2.orbax-checkpoint-tmp" / "part").write_text("x")
    assert Checkpoints(tmp_path).restore(_state(mesh, 0)).step == 1


def test_all_damaged_and_other_model_are_errors(tmp_path, mesh):
    _saved(tmp_path, mesh, (1,))
    with pytest.raises(
        InputError, match=r"of another model or optimizer: opt.* float32 \[8, 16\] there .*\[8, 4\] here"
    ):
        Checkpoints(tmp_path).restore(_state(mesh, 0, width=4))
    with pytest.raises(InputError, match=r"params\.b is bfloat16 \[3\] there and absent here"):
        Checkpoints(tmp_path).restore(_state(mesh, 0) | {"params": {"w": _state(mesh, 0)["params"]["w"]}})
    _drop_state(tmp_path / "1")
    for _ in range(2):  # nothing is put aside, so that a second start does not begin anew
        checkpoints = Checkpoints(tmp_path, say=lambda line: None)
        with pytest.raises(InputError, match="every checkpoint"):
            checkpoints.restore(_state(mesh, 0))
        assert checkpoints.steps() == [1]


def test_reading_another_run_changes_nothing(tmp_path, mesh):
    _saved(tmp_path, mesh, (1, 2))
    _truncate_data(tmp_path / "2")
    before = sorted(tmp_path.rglob("*"))
    assert Checkpoints(tmp_path, read_only=True, say=lambda line: None).restore(_state(mesh, 0)).step == 1
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="no checkpoints in"):
        Checkpoints(tmp_path / "none", read_only=True)


def test_no_space_is_reported_and_the_run_goes_on(tmp_path, mesh):
    said = []
    checkpoints = Checkpoints(tmp_path, say=said.append)
    checkpoints.save(1, _state(mesh, 1), {})
    assert checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        checkpoints.save(2, _state(mesh, 2, width=40_000), {})
        assert not checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(said) == 1 and "step 2 was not saved" in said[0] and "last whole checkpoint: step 1" in said[0]
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    checkpoints.save(3, _state(mesh, 3), {})
    checkpoints.close()
    assert checkpoints.saved == 3 and Checkpoints(tmp_path).restore(_state(mesh, 0)).step == 3
