"""Sums of the compiler's estimates, of a module written by hand."""

import pytest

from owl3_jax.hlo import Instruction, parse, source_lines
from owl3_jax.tpu.chips import CHIPS, Chip
from owl3_jax.tpu.clock import Clock, by_part, read_clock

CHIP = Chip(flops=1e6, hbm=1e3, ici=400.0, dcn=1.0, clock=100.0, links=4, cores=1, topology="")


def cycles(count: int) -> str:
    return f'backend_config={{"window_config":{{"estimated_cycles":"{count}"}}}}'


MODULE = f"""\
HloModule jit_step, is_scheduled=true

FileNames
1 "model.py"

FunctionNames
1 "step"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=12 end_line=12 column=0 end_column=0}}
2 {{file_name_id=1 function_name_id=1 line=30 end_line=30 column=0 end_column=0}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=1}}

%product (p: f32[4,4]) -> f32[4,4] {{
  %p = f32[4,4]{{1}} parameter(0)
  ROOT %dot.1 = f32[4,4]{{1}} dot(%p, %p), {cycles(7)}
}}

%moved (p: f32[4,4]) -> f32[4,4] {{
  %p.1 = f32[4,4]{{1}} parameter(0)
  %pad.1 = f32[4,4]{{1}} pad(%p.1)
  ROOT %nested = f32[4,4]{{1}} fusion(%pad.1), calls=%copied
}}

%copied (p: f32[4,4]) -> f32[4,4] {{
  %p.2 = f32[4,4]{{1}} parameter(0)
  ROOT %copy.1 = f32[4,4]{{1}} copy(%p.2)
}}

%plain (p: f32[4,4]) -> f32[4,4] {{
  ROOT %add.1 = f32[4,4]{{1}} add(%p.3, %p.3), {cycles(100)}
}}

%hyper (p: f32[4,4]) -> f32[4,4] {{
  ROOT %add.2 = f32[4,4]{{1}} add(%p.4, %p.4), {cycles(900)}
}}

%condition (s: s32[]) -> pred[] {{
  ROOT %less = pred[] compare(%s, %s)
}}

%body (s: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {{
  %fusion.1 = f32[4,4]{{1}} fusion(%s), calls=%product, metadata={{op_name="step/mlp/dot" stack_frame_id=2}}, {cycles(1000)}
  %fusion.2 = f32[4,4]{{1}} fusion(%s), kind=kLoop, calls=%moved, {cycles(10)}
  ROOT %conditional.1 = f32[4,4]{{1}} conditional(%s), branch_computations={{%plain, %hyper}}, metadata={{op_name="x/cond"}}
}}

ENTRY %main (x: f32[4,4]) -> f32[4,4] {{
  %collective-permute-start.1 = (f32[50]{{0}}, f32[50]{{0}}) collective-permute-start(%x), source_target_pairs={{{{0,1}}}}
  %copy-start.1 = (f32[750]{{0}}, f32[750]{{0}}, u32[]) copy-start(%x)
  %add.3 = f32[4,4]{{1}} add(%x, %x), {cycles(150)}
  %collective-permute-done.1 = f32[50]{{0}} collective-permute-done(%collective-permute-start.1)
  %copy-done.1 = f32[750]{{0}} copy-done(%copy-start.1)
  %while.1 = (s32[], f32[4,4]) while(%x), condition=%condition, body=%body, backend_config={{"known_trip_count":{{"n":"3"}}}}
  ROOT %all-reduce.1 = f32[100]{{0}} all-reduce(%x), replica_groups={{{{0,1}}}}, to_apply=%add
}}
"""


def clock(shares: object = None) -> Clock:
    return read_clock(parse(MODULE), CHIP, *([shares] if shares else []))  # type: ignore[arg-type]  # a function or nothing


def seconds(clock: Clock) -> dict[str, float]:
    return {item.instruction.name: item.seconds for item in clock.items}


def test_loops_branches_and_what_runs_in_the_background_by_hand() -> None:
    """At 100 cycles a second. A link sends 100 bytes a second: the permutation takes 2 s, 1.5 s of them beside an addition. The
    copy of 3,000 bytes takes 3 s of memory traffic, of which it is waited for until the end: 3 - 1.5 - 0.5 s."""
    found = seconds(clock(lambda conditional: [0.75, 0.25]))
    assert found == pytest.approx(
        {
            "add.3": 1.5,
            "collective-permute-done.1": 0.5,
            "copy-done.1": 1.0,
            "fusion.1": 3 * 10.0,
            "fusion.2": 3 * 0.1,
            "add.1": 3 * 0.75 * 1.0,
            "add.2": 3 * 0.25 * 9.0,
            "all-reduce.1": 2 * 400 / 2 / 200,  # both directions of an axis
        }
    )


def test_kinds_and_parts() -> None:
    found = clock(lambda conditional: [0.75, 0.25])
    kinds = {"products": 30.0, "copies": 0.3 + 1.0, "element-wise": 1.5 + 2.25 + 6.75, "collectives": 0.5 + 2.0, "kernels": 0.0}
    assert found.by_kind() == pytest.approx(kinds)
    assert found.seconds == pytest.approx(sum(kinds.values()))
    parts = by_part(found, lambda line: ("mlp", "forward") if "mlp" in line.op_name else ("other", ""))
    assert parts["mlp"] == pytest.approx({"forward": 30.0}) and list(parts) == ["mlp", "other"]
    assert [item.instruction.name for item in found.dearest(2)] == ["fusion.1", "add.2"]
    assert found.dearest(1)[0].times == 3


def test_of_unknown_branches_the_longest_counts_and_they_are_counted() -> None:
    found = clock()
    assert found.unknown == 1 and "add.1" not in seconds(found) and seconds(found)["add.2"] == pytest.approx(27.0)


def test_instructions_know_their_line() -> None:
    lines = source_lines(MODULE)
    (product,) = (line for line in parse(MODULE).computations["body"] if line.name == "fusion.1")
    assert lines[product.frame] == "model.py:30" and lines[1] == "model.py:12"


KERNEL = """\
ENTRY %main (x: f32[4,4]) -> f32[4,4] {
  ROOT %splash_mha_fwd_residuals.1 = (bf16[16,1024,72]{2,1,0}) custom-call(%x), custom_call_target="tpu_custom_call", \
operand_layout_constraints={s32[1,2,2]{2,1,0}, bf16[16,1024,72]{2,1,0}, bf16[2,4096,72]{2,1,0}, bf16[2,4096,72]{2,1,0}}, \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"use_fused_bwd_kernel\\": false}"
}}, metadata={op_name="jit(f)/hyper_attention/pallas_call" stack_frame_id=4}
}
"""


@pytest.mark.parametrize(
    ("chip", "expected"),
    [
        (CHIPS["v5e"]._replace(clock=1e12), 2 * 2 * 128 * 16 * 1024 * 4096 / 197e12),  # products, the heads padded to 128
        (CHIPS["v5e"]._replace(clock=1e9), 14 * 16 * 1024 * 4096 / (8 * 128 * 4 * 1e9)),  # what the vector unit does
        (CHIPS["v5e"]._replace(hbm=1e6), (2 * 2 * 16 * 1024 * 72 + 2 * 2 * 2 * 4096 * 72 + 4 * 4) / 1e6),  # traffic
    ],
)
def test_a_kernel_takes_as_long_as_what_it_has_most_of(chip: Chip, expected: float) -> None:
    (item,) = read_clock(parse(KERNEL), chip).items
    assert item.kind == "kernels" and item.seconds == pytest.approx(expected)
    assert item.instruction.op_name.endswith("pallas_call")  # though it has line breaks


def test_a_device_of_a_chip_with_two_has_half_of_it() -> None:
    whole, half = CHIPS["tpu7x"], CHIPS["tpu7x"].of_one_device
    assert (half.flops, half.hbm, half.vector) == (whole.flops / 2, whole.hbm / 2, whole.vector / 2)
    assert CHIPS["v5p"].of_one_device == CHIPS["v5p"]


def test_an_instruction_without_a_frame_has_none() -> None:
    assert Instruction("a", "f32[]", "add", "%b)").frame == 0
