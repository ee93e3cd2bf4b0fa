import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from spatialreward_jax.errors import InputError
from spatialreward_jax.reporting import tensorboard


def _events(folder):
    """Events of all files: records of length, checksum, bytes, checksum."""
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            yield event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 12 + size + 4


def test_scalars_and_images_are_written(tmp_path):
    board = tensorboard.TensorBoard(tmp_path)
    board.scalars(3, {"reward": 0.25, "loss": np.float32(-1)})
    board.image(3, "grid", np.zeros((4, 6, 3), np.uint8))
    board.close()
    values = {v.tag: (e.step, v) for e in _events(tmp_path) for v in e.summary.value}
    assert values["reward"][0] == 3 and values["reward"][1].simple_value == 0.25
    assert values["loss"][1].simple_value == -1
    assert (values["grid"][1].image.height, values["grid"][1].image.width) == (4, 6)


def test_a_resumed_run_hides_what_was_logged_beyond(tmp_path):
    board = tensorboard.TensorBoard(tmp_path, start=7)
    board.close()
    assert any(e.session_log.status == 1 and e.step == 8 for e in _events(tmp_path))


def test_grid():
    red, small = np.full((4, 6, 3), 200, np.uint8), np.full((2, 3, 3), 9, np.uint8)
    grid = tensorboard.image_grid([[red, small], [small]], gap=1)
    assert grid.shape == (4 + 1 + 2, 6 + 1 + 3, 3)
    assert (grid[:4, :6] == 200).all() and (grid[:2, 7:] == 9).all() and (grid[5:, :3] == 9).all()
    assert (grid[5:, 3:] == 255).all() and (grid[4] == 255).all()
    with pytest.raises(InputError):
        tensorboard.image_grid([[]])


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write event files"):
        tensorboard.TensorBoard(tmp_path / "file")
