"""Scores of text over images, and gathered images, are recognised by the shapes in a module."""

import pytest

from owl3_jax.hlo import Array, parse
from owl3_jax.tpu.images import Rows, image_facts

ROWS = Rows(positions=64, images=3, image_tokens=16, width=40, features=Array("bf16", (12, 16, 40)))


def module(*shapes: str):
    lines = "\n".join(f"  %add.{number} = {shape} add(%p, %q)" for number, shape in enumerate(shapes))
    gathered = """\
  %all-gather.1 = bf16[40,70]{1,0} all-gather(%w), metadata={op_name="jit(step)/closed_call/layers/mlp/up_proj/mul"}
  %all-gather.3 = f32[16,40]{1,0} all-gather(%positions), dimensions={1}
  %all-gather-start.2 = (bf16[1,16,40]{2,1,0}, bf16[3,16,40]{2,1,0}) all-gather-start(%features), dimensions={0}
"""
    return parse(f"ENTRY %main (p: f32[2]) -> f32[2] {{\n{lines}\n{gathered}}}\n")


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ("f32[2,5,64,48]{3,2,1,0:T(8,128)}", True),  # all image tokens in one dim
        ("(f32[7]{0}, pred[54,64]{1,0})", True),  # padded to blocks of a kernel
        ("f32[64,3,16]{2,1,0}", True),  # images and their tokens in two dims
        ("f32[64,16]{1,0}", False),  # of one image
        ("f32[64,55]{1,0}", False),
        ("f32[48,63]{1,0}", False),
        ("f32[3,16,40]{2,1,0}", False),
    ],
)
def test_scores_have_positions_and_image_tokens(shape, found):
    assert bool(image_facts(module("f32[64]{0}", shape), ROWS).scores) == found


def test_positions_that_see_positions_are_no_scores_of_images():
    """Also where a row has about as many of them as image tokens."""
    rows = ROWS._replace(positions=17, images=1)
    assert image_facts(module("pred[17,17]{1,0}"), rows).scores is None
    assert image_facts(module("pred[17,16]{1,0}"), rows).scores


def test_the_largest_are_told():
    facts = image_facts(module("f32[64,48]{1,0}", "f32[2,64,48]{2,1,0}", "bf16[2,64,48]{2,1,0}"), ROWS)
    assert str(facts.scores) == "f32[2,64,48]"
    assert (str(facts.largest.array), facts.largest.name) == ("bf16[40,70]", "layers/mlp/up_proj/mul")
    assert (str(facts.of_images.array), facts.of_images.name) == ("bf16[3,16,40]", "")
    assert facts.features.bytes == 12 * 16 * 40 * 2


def test_sums_gather_too():
    text = (
        "ENTRY %main (p: f32[2]) -> f32[2] {\n  %all-reduce.1 = (f32[2]{0}, bf16[4,3,16,40]{3,2,1,0}) all-reduce(%x, %y)\n}\n"
    )
    facts = image_facts(parse(text), ROWS)
    assert facts.largest == facts.of_images and str(facts.largest.array) == "bf16[4,3,16,40]"
