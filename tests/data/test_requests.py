import json

import numpy as np
import pytest

from spatialreward_jax.data import requests
from spatialreward_jax.errors import InputError
from spatialreward_jax.io import images


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        images.write_png(tmp_path / "images" / f"{name}.png", rng.integers(0, 256, (32, 48, 3), dtype=np.uint8))
    return tmp_path


def _write(folder, *rows):
    path = folder / "data.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def _row(**changes):
    row = {"instruction": "make it red", "input_images": ["images/a.png"], "task_type": "color_alter"}
    return {**row, "meta_data": json.dumps({"instruction": "turn the ball red"})} | changes


def test_jsonl_layout(folder):
    absolute = str(folder / "images" / "b.png")
    path = _write(
        folder, _row(), "", _row(input_images=["images/a.png", absolute], target_img_size=[64, 32], meta_data=None)
    )
    first, second = requests.read_requests(path)
    assert first.images == (folder / "images" / "a.png",) and first.reward_instruction == "turn the ball red"
    assert first.target_size is None and first.where == f"{path}:1"
    assert second.target_size == (32, 64) and second.reward_instruction == "make it red" and second.where == f"{path}:3"
    assert first.key != second.key and 0 <= first.key < 2**31


def test_keys_do_not_depend_on_where_the_data_lies(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("moved")
    images.write_png(other / "images" / "a.png", np.zeros((32, 32, 3), np.uint8))
    keys = [requests.read_requests(_write(place, _row()))[0].key for place in (folder, other)]
    assert keys[0] == keys[1]


def test_task_filter(folder):
    path = _write(folder, _row(), _row(task_type="text_change"), _row(task_type=None), _row(task_type="style"))
    kept = requests.read_requests(path, tasks=requests.KEPT_TASKS)
    assert [r.task_type for r in kept] == ["color_alter", "", "style"]
    assert len(requests.read_requests(path)) == 4
    with pytest.raises(InputError, match=r"no edit request; task types there: text_change; kept: style"):
        requests.read_requests(_write(folder, _row(task_type="text_change")), tasks=("style",))


def test_folder_with_sidecars(folder):
    place = folder / "images"
    (place / "a.txt").write_text("make it red\n\n make it blue \n")
    with pytest.raises(InputError, match=r"b\.png: no readable b\.txt"):
        requests.read_requests(place)
    (place / "b.txt").write_text("remove it")
    got = requests.read_requests(place)
    assert [(r.instruction, r.images[0].name) for r in got] == [
        ("make it red", "a.png"), ("make it blue", "a.png"), ("remove it", "b.png"),
    ]  # fmt: skip
    assert got[1].where == f"{place / 'a.txt'}:3"
    (place / "b.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"b\.txt:1: empty instruction"):
        requests.read_requests(place)


def test_folder_with_index(folder):
    (folder / "instructions.jsonl").write_text(json.dumps(_row()))
    assert len(requests.read_requests(folder)) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (_row(instruction="  "), "empty instruction"),
        (_row(instruction=None), "instruction must be text, got nothing"),
        (_row(input_images=[]), "input_images must be a list"),
        (_row(input_images="images/a.png"), "input_images must be a list"),
        (_row(input_images=["images/none.png"]), "does not exist"),
        (_row(meta_data="{oops"), "meta_data is no JSON string"),
        (_row(meta_data="[1]"), "meta_data must hold a JSON object"),
        (_row(meta_data='{"instruction": ""}'), "meta_data: empty instruction"),
        (_row(target_img_size=[8, 512]), "target_img_size"),
        ("{oops", "not one JSON object a line"),
        ("[1]", "must be a JSON object, got list"),
    ],
)
def test_bad_rows_name_file_and_line(folder, bad, message):
    path = _write(folder, _row(), bad)
    with pytest.raises(InputError, match=message) as caught:
        requests.read_requests(path)
    assert str(caught.value).startswith(f"{path}:2: ") and len(str(caught.value).splitlines()) == 1


def test_all_bad_rows_are_counted(folder):
    with pytest.raises(InputError, match=r":1: .*\(2 more bad rows\)"):
        requests.read_requests(_write(folder, *[_row(instruction="")] * 3))


def test_truncated_pixels_are_found_by_decoding(folder):
    data = (folder / "images" / "a.png").read_bytes()
    (folder / "images" / "a.png").write_bytes(data[: len(data) // 2])
    path = _write(folder, _row())
    with pytest.raises(InputError, match=r"data\.jsonl:1: image .*a\.png is broken"):
        requests.read_requests(path)
    assert len(requests.read_requests(path, check="header")) == 1


def test_thin_image_and_missing_data(folder):
    images.write_png(folder / "images" / "a.png", np.zeros((8, 300, 3), np.uint8))
    with pytest.raises(InputError, match=r":1: .*a\.png: .*too thin"):
        requests.read_requests(_write(folder, _row()), check="header")
    for path in ("", folder / "none.jsonl"):
        with pytest.raises(InputError, match="does not exist"):
            requests.read_requests(path)
    with pytest.raises(InputError, match=r"neither instructions\.jsonl nor images"):
        requests.read_requests(folder)
    with pytest.raises(InputError, match="holds no edit request"):
        requests.read_requests(_write(folder))
