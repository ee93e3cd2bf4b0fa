"""The accelerator's benchmark at a small size, so that it runs when there is one."""

import json
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_rates_are_those_of_the_shapes(tmp_path):
    script = pathlib.Path(__file__).with_name("judge_8b.py")
    sizes = (
        "--size=embedded",
        "--dtype=float32",
        "--prompt=32",
        "--new=33",
        "--batches=2",
        "--rounds=1",
        "--threads=1",
    )
    flags = (*sizes, "--quantize=int8", "--memory_gb_per_s=1e6", f"--json={tmp_path / 'out.json'}")
    done = subprocess.run([sys.executable, str(script), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    (row,) = report["rows"].values()
    seconds, passes = row["decode_ms_all"][0] / 1e3, 32
    assert row["decode_tokens_per_s"] == pytest.approx(2 * passes / seconds, rel=0.1)
    blocks, head = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384), 4 * 128 * 2048
    cache = 2 * 4 * 2 * 32 * 2 * (32 + passes / 2) * 4
    assert row["gb_per_s"] == pytest.approx((blocks + head + cache) * passes / seconds / 1e9, rel=0.1)
    assert report["memory_gb_per_s"]["used"] == 1e6 and report["quantize"] == "int8"
