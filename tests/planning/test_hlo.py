"""A module in the compiler's words: loops, collectives and bytes, counted by hand."""

import pytest

from spatialreward_jax.planning.collectives import collectives, summary
from spatialreward_jax.planning.hlo import Module, bytes_of, shapes
from spatialreward_jax.planning.traffic import largest_buffers, memory_traffic

TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=4

%sliced (p.0: bf16[8,256,1024], p.1: s32[]) -> bf16[1,256,1024] {
  %p.0 = bf16[8,256,1024]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice = bf16[1,256,1024]{2,1,0:T(8,128)(2,1)S(1)} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,256,1024}
}

%written (q.0: f32[8,64], q.1: f32[1,64], q.2: s32[]) -> f32[8,64] {
  %q.0 = f32[8,64]{1,0} parameter(0)
  %q.1 = f32[1,64]{1,0} parameter(1)
  %q.2 = s32[] parameter(2)
  ROOT %update = f32[8,64]{1,0} dynamic-update-slice(%q.0, %q.1, %q.2, %q.2)
}

%product (r.0: bf16[16,1024], r.1: bf16[1,1024,1024]) -> bf16[16,1024] {
  %r.0 = bf16[16,1024]{1,0} parameter(0)
  %r.1 = bf16[1,1024,1024]{2,1,0} parameter(1)
  ROOT %dot = bf16[16,1024]{1,0} convolution(%r.0, %r.1), dim_labels=bf_io->fb
}

%body (state: (s32[], bf16[16,1024], bf16[8,256,1024], f32[8,64], f32[1,64])) -> (s32[], bf16[16,1024], bf16[8,256,1024], f32[8,64], f32[1,64]) {
  %state = (s32[]{:T(128)}, bf16[16,1024]{1,0}, bf16[8,256,1024]{2,1,0}, f32[8,64]{1,0}, /*index=4*/f32[1,64]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[16,1024]{1,0} get-tuple-element(%state), index=1
  %w = bf16[8,256,1024]{2,1,0} get-tuple-element(%state), index=2
  %kept = f32[8,64]{1,0} get-tuple-element(%state), index=3
  %row = f32[1,64]{1,0} get-tuple-element(%state), index=4
  %piece = bf16[1,256,1024]{2,1,0:T(8,128)(2,1)S(1)} fusion(%w, %i), kind=kLoop, calls=%sliced
  %all-gather.4 = bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%piece), replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, dimensions={1}, metadata={op_name="jit(f)/while/body/dot_general"}
  %next = bf16[16,1024]{1,0} fusion(%x, %all-gather.4), kind=kOutput, calls=%product
  %saved = f32[8,64]{1,0} fusion(%kept, %row, %i), kind=kLoop, calls=%written
  ROOT %out = (s32[]{:T(128)}, bf16[16,1024]{1,0}, bf16[8,256,1024]{2,1,0}, f32[8,64]{1,0}, f32[1,64]{1,0}) tuple(%i, %next, %w, %saved, %row)
}

%until (state.1: (s32[], bf16[16,1024], bf16[8,256,1024], f32[8,64], f32[1,64])) -> pred[] {
  %eight = s32[]{:T(128)} constant(8)
  %state.1 = (s32[]{:T(128)}, bf16[16,1024]{1,0}, bf16[8,256,1024]{2,1,0}, f32[8,64]{1,0}, f32[1,64]{1,0}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%count, %eight), direction=LT
}

%open (s: (f32[])) -> pred[] {
  %s = (f32[]) parameter(0)
  %v = f32[] get-tuple-element(%s), index=0
  %nine = f32[] constant(9)
  %lt.1 = pred[] compare(%v, %nine), direction=LT
  ROOT %and = pred[] and(%lt.1, %lt.1)
}

%again (s.1: (f32[])) -> (f32[]) {
  %s.1 = (f32[]) parameter(0)
  %v.1 = f32[] get-tuple-element(%s.1), index=0
  %sum = f32[] all-reduce(%v.1), replica_groups=[2,4]<=[8], to_apply=%add, metadata={op_name="jit(f)/sum"}
  ROOT %t = (f32[]) tuple(%sum)
}

ENTRY %main_spmd (x.1: bf16[16,1024], w.1: bf16[8,256,1024], k.1: f32[8,64], r.9: f32[1,64], f.1: (f32[])) -> (f32[]) {
  %x.1 = bf16[16,1024]{1,0} parameter(0)
  %w.1 = bf16[8,256,1024]{2,1,0} parameter(1)
  %k.1 = f32[8,64]{1,0} parameter(2)
  %r.9 = f32[1,64]{1,0} parameter(3)
  %f.1 = (f32[]) parameter(4)
  %two = s32[]{:T(128)} constant(2)
  %start = s32[]{:T(128)} copy(%two)
  %init = (s32[]{:T(128)}, bf16[16,1024]{1,0}, bf16[8,256,1024]{2,1,0}, f32[8,64]{1,0}, f32[1,64]{1,0}) tuple(%start, %x.1, %w.1, %k.1, %r.9)
  %loop = (s32[]{:T(128)}, bf16[16,1024]{1,0}, bf16[8,256,1024]{2,1,0}, f32[8,64]{1,0}, f32[1,64]{1,0}) while(%init), condition=%until, body=%body
  ROOT %loop.1 = (f32[]) while(%f.1), condition=%open, body=%again
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def module():
    return Module(TEXT, trips=5)


def test_loops_are_multiplied_out(module):
    assert module.entry == "main_spmd"
    assert module.runs["body"] == 6  # counts from 2 to 8
    assert module.runs["again"] == 5  # as told
    assert "sliced" not in module.runs


def test_collectives(module):
    gather, reduce = collectives(module)
    assert (gather.kind, gather.group, gather.runs) == ("all-gather", 4, 6)
    assert gather.bytes == 2 * 1024 * 1024 * 3 / 4 and "dot_general" in gather.source
    assert (reduce.kind, reduce.group, reduce.runs, reduce.bytes) == ("all-reduce", 4, 5, 4 * 2 * 3 / 4)
    assert summary([gather, reduce])["all-gather"] == {"instructions": 1, "runs": 6, "bytes": gather.bytes * 6}


def test_traffic_counts_slices_and_updates_in_place(module):
    piece = 2 * 256 * 1024  # read from HBM into on-chip memory
    product = 2 * 2 * 16 * 1024  # x and the result; the gathered weights are on the chip
    saved = 4 * 64 + 4 * 64  # the new row read and written, the rest stays where it is
    loop, scalars = 6 * (piece + product + saved), 2 * 4 + 5 * 2 * 4
    assert abs(memory_traffic(module) - loop - scalars) < 200  # and a few counters


def test_buffers_and_shapes(module):
    first, second = largest_buffers(module, 2)  # the gathered weights are on the chip
    assert first == {"bytes": 2 * 16 * 1024, "shape": "bf16[16,1024]", "source": "next"}
    assert second["shape"] == "f32[8,64]"
    assert [bytes_of(s) for s in shapes("(s32[], bf16[2,3]{1,0:T(8,128)}, f8e4m3fn[5])")] == [4, 12, 5]
