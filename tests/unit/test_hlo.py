"""Collectives are read from the text of a compiled module, loops by their trips."""

import pytest

from owl3_jax.hlo import arrays, open_loops, parse
from owl3_jax.tpu.collectives import Collective, collectives, group_size
from owl3_jax.tpu.traffic import bytes_made

# Shortened from what libtpu writes.
MODULE = """\
HloModule jit_step, is_scheduled=true

%all-reduce-scatter.1 (input: bf16[64,32]) -> bf16[16,32] {
  %input = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.10 = bf16[64,32]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=5, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %dynamic-slice.24 = bf16[16,32]{1,0} dynamic-slice(%all-reduce.10, %c), dynamic_slice_sizes={16,32}
}

%start (p: bf16[8,32]) -> (bf16[8,32], u32[]) {
  %p = bf16[8,32]{1,0} parameter(0)
  %all-gather.1 = bf16[32,32]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=9, replica_groups=mesh['a'=4] {'a'}, frontend_attributes={chain_id="9"}
  ROOT %custom-call.1 = (bf16[8,32]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%goes_on (p.1: bf16[8,32]) -> bf16[32,32] {
  %p.1 = bf16[8,32]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[32,32]{1,0} all-gather(%p.1), channel_id=9, replica_groups=mesh['a'=4] {'a'}, frontend_attributes={chain_id="9"}
}

%condition (state: (s32[], bf16[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(24), metadata={op_name="while/cond/lt"}
  %state = (s32[]{:T(128)}, bf16[8]{0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %bound), direction=LT, metadata={op_name="lt"}
}

%body (state.1: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %all-reduce.3 = (f32[4]{0}, f32[]{:T(128)}) all-reduce(%x, %y), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %fusion.1 = bf16[16,32]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %fusion.2 = (bf16[8,32]{1,0}, u32[]{:S(2)}) fusion(%w), kind=kCustom, calls=%start
  %fusion.3 = bf16[32,32]{1,0} fusion(%w), kind=kOutput, calls=%goes_on
  ROOT %conditional.1 = (bf16[8]{0}) conditional(%which, %a, %b), branch_computations={%plain, %branch}
}

%branch (b: bf16[8]) -> bf16[8] {
  ROOT %all-to-all = bf16[8]{0} all-to-all(%b), channel_id=2, replica_groups={{0,1},{2,3}}, dimensions={0}
}

%unknown (s: (s32[], s32[])) -> pred[] {
  ROOT %lt.2 = pred[] compare(%written, %limit), direction=LT
}

%decode_body (s.1: (s32[], s32[])) -> (s32[], s32[]) {
  %send.3 = (bf16[64,8]{1,0}, u32[], token[]) send(%g, %t), is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
}

ENTRY %main (p0: bf16[8]) -> bf16[8] {
  %while.1 = (s32[]{:T(128)}, bf16[8]{0}) while(%tuple.1), condition=%condition, body=%body
  %while.2 = (s32[], s32[]) while(%tuple.2), condition=%unknown, body=%decode_body
  %while.3 = (s32[], s32[]) while(%tuple.3), condition=%unknown, body=%twice, backend_config={"known_trip_count":{"n":"2"}}
}

%twice (s.2: (s32[], s32[])) -> (s32[], s32[]) {
  %collective-permute-start = (bf16[3]{0}, bf16[3]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501


def test_collectives_are_counted_by_kind_and_trips():
    assert collectives(parse(MODULE)) == [
        Collective("reduce-scatter", "ICI", False, 24, 24 * 64 * 32 * 2 * 3 / 4),
        Collective("all-gather", "ICI", False, 24, 24 * 32 * 32 * 2 * 3 / 4),
        Collective("all-reduce", "DCN", False, 1, 64 * 8 * 2),
        Collective("all-reduce", "ICI", False, 24, 24 * 2 * (4 + 1) * 4 * 3 / 4),
        Collective("all-to-all", "ICI", True, 24, 24 * 8 * 2 / 2),
        Collective("collective-permute", "ICI", False, 2, 2 * 3 * 2),
    ]


def test_a_loop_whose_bound_is_no_constant_is_open():
    assert open_loops(parse(MODULE)) == 1


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}, dimensions={0}", 3),
        ("replica_groups=[4,8]<=[2,16]T(1,0), dimensions={0}", 8),
        ("replica_groups=mesh['a'=2,'b'=5] {'b'}, use_global_device_ids=true", 5),
        ("replica_groups=mesh['a'=2,'b'=5] {'a','b'}", 10),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_group_sizes(attributes, size):
    assert group_size(attributes) == size


def test_arrays_of_a_shape():
    shape = "(bf16[4,8]{1,0:T(8,128)(2,1)}, /*index=5*/f32[]{:T(128)}, pred[3]{0}, s4[6]{0}, f8e4m3fn[5]{0}, token[])"
    assert [array.bytes for array in arrays(shape)] == [64, 4, 3, 3, 5, 0]
    assert str(arrays(shape)[0]) == "bf16[4,8]"


def test_arrays_in_hbm_are_counted_by_trips():
    """Not counted: arrays in VMEM, operations in the background, branches, slices written in place."""
    text = """\
%fused (p: f32[8]) -> f32[8] {
  ROOT %add.1 = f32[8]{0} add(%p, %p)
}

%writes (p.1: f32[24,8]) -> f32[24,8] {
  ROOT %dynamic-update-slice.1 = f32[24,8]{1,0} dynamic-update-slice(%p.1, %x, %i)
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = (f32[8]{0:T(128)}, f32[5]{0:T(128)S(1)}) fusion(%a), kind=kLoop, calls=%fused
  %fusion.2 = f32[24,8]{1,0} fusion(%stack), kind=kLoop, calls=%writes
  %copy-start.1 = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%b)
  ROOT %conditional.1 = (f32[9]{0}) conditional(%which, %a, %b), branch_computations={%branch, %branch}
}

%branch (b: f32[9]) -> f32[9] {
  ROOT %negate = f32[9]{0} negate(%b)
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]{0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  ROOT %exponential = bf16[6]{0} exponential(%p0)
}
"""
    assert bytes_made(parse(text)) == 7 * 8 * 4 + 6 * 2


def test_operations_of_sparse_cores_are_counted_once():
    text = """\
%called (q: bf16[64]) -> bf16[16] {
  ROOT %reduce-scatter.5 = bf16[16]{0} reduce-scatter(%q), channel_id=3, replica_groups=mesh['a'=4] {'a'}, to_apply=%add
}

%async (p: bf16[64]) -> bf16[16] {
  ROOT %custom-call = bf16[16]{0} custom-call(%p), custom_call_target="TODO", called_computations={%called}
}, execution_thread="sparsecore"

ENTRY %main (p0: bf16[64]) -> bf16[16] {
  %call-start = ((), (), s32[8192]{0}) async-start(), async_execution_thread="sparsecore", calls=%async
  %call-update = ((bf16[64]{0}), bf16[16]{0}, s32[8192]{0}) async-update(%call-start, %p0)
  ROOT %call-done = bf16[16]{0} async-done(%call-update)
}
"""
    assert collectives(parse(text)) == [Collective("reduce-scatter", "ICI", False, 1, 16 * 2 * 3)]
    assert bytes_made(parse(text)) == 16 * 2
