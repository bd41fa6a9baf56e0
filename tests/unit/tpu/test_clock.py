"""Sums of the compiler's estimates, of a module written by hand."""

import pytest

from owl3_jax.hlo import Instruction, parse, source_lines
from owl3_jax.tpu.chips import CHIPS, Chip
from owl3_jax.tpu.clock import Clock, Shares, by_part, no_shares, read_clock
from owl3_jax.tpu.compiled import branch_shares

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


def clock(shares: Shares = no_shares) -> Clock:
    return read_clock(parse(MODULE), CHIP, shares)


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


def clock_of(entry: str, computations: str = "") -> dict[str, float]:
    """Seconds by instruction of a program with these lines."""
    return seconds(read_clock(parse(f"{computations}\nENTRY %main (x: f32[4]) -> f32[4] {{\n{entry}\n}}\n"), CHIP))


PERMUTES = """\
  %one = (f32[50]{0}, f32[50]{0}) collective-permute-start(%x), source_target_pairs={{0,1},{1,2}}
  %two = (f32[50]{0}, f32[50]{0}) collective-permute-start(%x), source_target_pairs={PAIRS}
  %one.done = f32[50]{0} collective-permute-done(%one)
  %two.done = f32[50]{0} collective-permute-done(%two)"""


@pytest.mark.parametrize(("pairs", "second"), [("{{1,0},{2,1}}", None), ("{{0,1},{1,2}}", 2.0)])
def test_permutations_wait_for_each_other_if_they_take_the_same_links(pairs: str, second: float | None) -> None:
    expected = {"one.done": 2.0} | ({"two.done": second} if second else {})
    assert clock_of(PERMUTES.replace("{PAIRS}", pairs)) == pytest.approx(expected)


def test_what_goes_to_another_slice_takes_the_time_of_that_network() -> None:
    sent = 'frontend_attributes={_x="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}'
    found = clock_of(f"""\
  %recv = (f32[5]{{0}}, u32[], token[]) recv(%x)
  %send = (f32[5]{{0}}, u32[], token[]) send(%x, %x), {sent}
  %add = f32[4]{{0}} add(%x, %x), {cycles(500)}
  %recv.done = (f32[5]{{0}}, token[]) recv-done(%recv)
  %send.done = token[] send-done(%send)""")
    assert found == pytest.approx({"add": 5.0, "recv.done": 15.0})  # 20 bytes at one byte a second


def test_a_fusion_that_only_communicates_counts_as_that() -> None:
    computation = """\
%all-reduce-scatter.1 (p: f32[100]) -> f32[50] {
  %p = f32[100]{0} parameter(0)
  %all-reduce = f32[100]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
  ROOT %part = f32[50]{0} dynamic-slice(%all-reduce, %p)
}"""
    found = clock_of("  %fusion.9 = f32[50]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1", computation)
    assert found == pytest.approx({"fusion.9": 400 / 2 / 200})  # half of what is scattered, over two links


def test_of_an_update_in_the_background_only_what_is_new_is_moved() -> None:
    computation = """\
%update (p: f32[4000], q: f32[250]) -> f32[4000] {
  %p = f32[4000]{0} parameter(0)
  %q = f32[250]{0} parameter(1)
  ROOT %updated = f32[4000]{0} dynamic-update-slice(%p, %q, %p)
}"""
    found = clock_of(
        """\
  %begun = ((f32[4000]{0}, f32[250]{0}), f32[4000]{0}, s32[]) async-start(%x), calls=%update
  %done = f32[4000]{0} async-done(%begun)""",
        computation,
    )
    assert found == pytest.approx({"done": 1.0})


def test_a_copy_to_the_host_is_slower() -> None:
    (copied,) = clock_of("""\
  %begun = (f32[4000000]{0:S(5)}, f32[4000000]{0}, u32[]) copy-start(%x)
  %done = f32[4000000]{0:S(5)} copy-done(%begun)""").values()
    assert copied == pytest.approx(16e6 / 16e9)


OPERANDS = "s32[1,8,4]{2,1,0}, bf16[14,4096,64]{2,1,0}, bf16[2,4096,64]{2,1,0}, bf16[2,4096,64]{2,1,0}"
TEXT_KERNEL = f"""\
  ROOT %splash_mha_dq_segmented_no_residuals.5 = (bf16[14,4096,64]{{2,1,0}}) custom-call(%x), \
custom_call_target="tpu_custom_call", operand_layout_constraints={{{OPERANDS}}}, metadata={{op_name="SCOPE/pallas_call"}}"""


@pytest.mark.parametrize(("scope", "share"), [("self_attn", 20 / 32), ("self_attn/hyper_attention", 1.0)])
def test_blocks_of_text_that_order_hides_do_not_count(scope: str, share: float) -> None:
    """Of 8 x 4 blocks of 512 positions and 1,024 keys, rows need 1, 1, 2, 2, 3, 3, 4 and 4."""
    text = f"ENTRY %main (x: f32[4]) -> f32[4] {{\n{TEXT_KERNEL.replace('SCOPE', scope)}\n}}\n"
    (item,) = read_clock(parse(text), CHIPS["v5e"]._replace(clock=1e12)).items
    assert item.seconds == pytest.approx(share * 3 * 2 * 128 * 14 * 4096 * 4096 / 197e12)


@pytest.mark.parametrize(("name", "table"), [("dq", "32,4"), ("dkv", "8,16"), ("fwd", "32,4")])
def test_rows_in_one_call_do_not_see_each_other(name: str, table: str) -> None:
    """Four rows as one sequence take four times what one of them takes."""
    one = TEXT_KERNEL.replace("splash_mha_dq", f"splash_mha_{name}").replace("SCOPE", "self_attn/1_rows")
    four = one.replace("4096,64", "16384,64").replace("s32[1,8,4]", f"s32[1,{table}]").replace("1_rows", "4_rows")
    times = []
    for kernel in (one, four):
        (item,) = read_clock(parse(f"ENTRY %main (x: f32[4]) -> f32[4] {{\n{kernel}\n}}\n"), CHIPS["v5e"]).items
        times.append(item.seconds)
    assert times[1] == pytest.approx(4 * times[0])


IN_LAYERS = "jit(f)/while/body/layers/decoder_layer/self_attn/hyper_attention"


def test_branches_of_layers_count_by_the_share_of_hyper_layers() -> None:
    rest = f'%x), branch_computations={{%a, %b}}, metadata={{op_name="{IN_LAYERS}/cond"}}'
    assert branch_shares(0.25, Instruction("c", "f32[]", "conditional", rest)) == [0.75, 0.25]
    by_truth = rest.replace("branch_computations={%a, %b}", "true_computation=%b, false_computation=%a")
    assert branch_shares(0.25, Instruction("c", "f32[]", "conditional", by_truth)) == [0.25, 0.75]


def test_other_branches_are_not_known() -> None:
    inner = f'%x), branch_computations={{%a, %b, %c}}, metadata={{op_name="{IN_LAYERS}/cond/branch_1_fun/while/body/cond"}}'
    assert branch_shares(0.25, Instruction("c", "f32[]", "conditional", inner)) is None
