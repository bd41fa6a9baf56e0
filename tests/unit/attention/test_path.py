"""The path from hyper attention to a matrix product is the one that docs/model.md lists, and goes one way."""

import dataclasses
import itertools
import re
import sys
from pathlib import Path
from types import FrameType

import jax
import jax.numpy as jnp

import owl3_jax
from owl3_jax.attention.parts import Part
from owl3_jax.attention.visibility import visibility
from owl3_jax.models.hyper import Fusion, ImageCache, hyper_attention
from tests.tiny import COMPUTE

PACKAGE = Path(owl3_jax.__file__).parent
PAGE = PACKAGE.parent / "docs/model.md"
B, T, I, L, H, K, D, M = 2, 5, 3, 7, 6, 3, 11, 2
MOST_FILES = 5


def step_of(frame: FrameType) -> tuple[str, str] | None:
    """File and function of a frame of this package, by its path in it."""
    file = Path(frame.f_code.co_filename)
    return (str(file.relative_to(PACKAGE)), frame.f_code.co_name) if file.is_relative_to(PACKAGE) else None


def walked(images_per_chunk: int) -> list[list[tuple[str, str]]]:
    """For each einsum of a call of `hyper_attention`, the functions of this package from there to it."""
    stacks = []

    def trace(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "einsum":
            steps, caller = [], frame.f_back
            while caller is not None and not (steps and steps[-1][1] == "hyper_attention"):
                steps += [step] if (step := step_of(caller)) else []
                caller = caller.f_back
            stacks.append(steps[::-1])

    compute = dataclasses.replace(COMPUTE, images_per_chunk=images_per_chunk)
    keys = jax.random.split(jax.random.key(0), 4)
    q, out = (jax.random.normal(key, (B, H, T, D)) for key in keys[:2])
    cache = ImageCache(*(jax.random.normal(key, (M, B, K, I, L, D)) for key in keys[2:]))
    positions, ones = jnp.arange(T)[None].repeat(B, 0), jnp.ones((B, T), jnp.int32)
    visible = visibility(positions, ones, jnp.arange(I)[None].repeat(B, 0), jnp.ones((B, I), jnp.int32))
    sys.settrace(trace)
    try:
        hyper_attention(jnp.int32(1), q, Part(out, out[..., 0]), Fusion((cache,), visible, ()), compute)
    finally:
        sys.settrace(None)
    return stacks


def documented() -> list[tuple[str, list[str]]]:
    """Each file of the page's path, with the functions that are called in it."""
    listed = PAGE.read_text().partition("<!-- path -->")[2].partition("<!-- end -->")[0]
    rows = re.findall(r"^\d\. \[`[^`]*`\]\(\.\./owl3_jax/([^)]*)\): (.*)$", listed, re.MULTILINE)
    return [(file, re.findall(r"`(\w+)`", functions)) for file, functions in rows]


def test_the_page_lists_the_path_and_no_call_goes_back_up():
    stacks = [stack for images in (2, I) for stack in walked(images) if stack[0] == ("models/hyper.py", "hyper_attention")]
    assert stacks, "no einsum was reached"
    called: dict[str, set[str]] = {}
    for stack in stacks:
        files = [file for file, _ in itertools.groupby(stack, key=lambda step: step[0])]
        assert len(set(files)) == len(files), f"a call goes back up: {files}"
        for file, name in stack:
            called.setdefault(file, set()).add(name)
    # The table is asked for the backend and returns it, so that it is not on the stack.
    shown = {file: set(functions) for file, functions in documented() if file != "attention/backends/__init__.py"}
    assert {file: names - {"<lambda>"} for file, names in called.items()} == shown
    assert list(called) == list(shown)
    assert len(documented()) <= MOST_FILES
    assert [name for _, names in documented() for name in names if name.startswith("choose")] == ["choose_backend"]
