"""Slices by name, and what is said where they cannot be."""

import importlib.util
import sys

import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.planning.topology import CHIPS, GIB, Topology


def test_names_and_numbers():
    slice_ = Topology.parse("v5p:2x2x4")
    assert (slice_.kind, slice_.shape, slice_.chips) == ("v5p", (2, 2, 4), 16)
    assert Topology.parse("v6e:4x4").chip.memory == 32 * GIB and Topology.parse("v5e:4x8").chips == 32
    for chip in CHIPS.values():  # a slice of more FLOPs than 100 per byte, else a unit is wrong
        assert 100 < chip.flops / chip.bandwidth < 1000 and chip.link < chip.bandwidth


@pytest.mark.parametrize(
    ("name", "message"),
    [("v7:2x2", "unknown"), ("v6e", "unknown"), ("v6e:2x2x2", "2 axes"), ("v4:4x4", "3 axes"), ("v6e:0x4", "2 axes")],
)
def test_wrong_names(name, message):
    with pytest.raises(InputError, match=message):
        Topology.parse(name)


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(InputError, match=r"spatialreward_jax\[tpu\]"):
        Topology.parse("v6e:2x2").devices()


@pytest.mark.tpu_compile
@pytest.mark.parametrize("name", ["v6e:2x4", "v5e:4x8", "v5p:2x2x2", "v4:2x2x2", "v6e:1x1"])
def test_devices(name):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the `tpu` extra is not installed")
    topology = Topology.parse(name)
    assert len(topology.devices()) == topology.chips
