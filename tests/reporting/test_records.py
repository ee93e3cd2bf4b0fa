import pathlib

import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.reporting.records import METRICS, Records, read_curves, read_pictures

PICTURE = np.zeros((2, 3, 3), np.uint8)


def write(workdir, start, steps):
    records = Records(workdir, start)
    for step in steps:
        records.numbers(step, {"reward": step / 10, "eval/loss": float(step)})
        records.picture(step, "preview/edits", PICTURE)
    return records


def test_numbers_and_pictures_come_back(tmp_path):
    write(tmp_path, 0, (1, 2))
    assert read_curves(tmp_path) == {"reward": [(1, 0.1), (2, 0.2)], "eval/loss": [(1, 1.0), (2, 2.0)]}
    ((name, found),) = read_pictures(tmp_path).items()
    assert name == "preview.edits" and [step for step, _ in found] == [1, 2]


def test_a_resumed_run_drops_what_it_does_again(tmp_path):
    write(tmp_path, 0, (1, 2, 3))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "rew')  # killed while writing
    write(tmp_path, 2, (3,))
    assert read_curves(tmp_path)["reward"] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    write(tmp_path, 1, ())
    assert [step for step, _ in read_pictures(tmp_path)["preview.edits"]] == [1]
    write(tmp_path, 0, ())
    assert read_curves(tmp_path) == {} == read_pictures(tmp_path), "a run from the start begins anew"


def test_no_space_is_said_once_and_the_run_goes_on(tmp_path, monkeypatch):
    said = []
    records = Records(tmp_path, say=said.append)

    def full(line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "_append", full)
    records.numbers(1, {"reward": 0.0})
    records.numbers(2, {"reward": 0.0})
    assert len(said) == 1 and "No space left on device" in said[0]


def test_half_a_line_and_a_picture_that_cannot_be_written_do_not_end_the_run(tmp_path, monkeypatch):
    said = []
    records = Records(tmp_path, say=said.append)
    records.numbers(1, {"reward": 0.1})
    whole, opened = (tmp_path / "metrics.jsonl").read_text(), pathlib.Path.open

    def full(path, *args, **kwargs):
        with opened(path, *args, **kwargs) as file:
            file.write('{"step": 2, "re')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", full)
        records.numbers(2, {"reward": 0.2})
    assert (tmp_path / "metrics.jsonl").read_text() == whole
    (tmp_path / "pictures").write_text("a file where the folder should be")
    records.picture(2, "preview/edits", np.zeros((2, 2, 3), np.uint8))
    records.numbers(3, {"reward": 0.3})
    assert len(said) == 1 and read_curves(tmp_path) == {"reward": [(1, 0.1), (3, 0.3)]}


def test_a_folder_without_a_record_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no metrics\.jsonl"):
        read_curves(tmp_path)
