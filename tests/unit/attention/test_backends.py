"""Splash's kernels, interpreted on the CPU, against plain XLA; merging."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.attention.backends import choose_backend, splash, splash_blocks, xla
from owl3_jax.attention.inputs import BlockInputs, OutputGradient
from owl3_jax.attention.parts import MASKED, merge
from owl3_jax.attention.visibility import Visibility, visibility
from tests.tolerances import KERNEL_BFLOAT16, KERNEL_FLOAT32

TEXT_OF_SAMPLE = (70, 50)  # two packed samples, then padding up to T
T, B = 137, 2


def packed_text() -> tuple[jax.Array, jax.Array]:
    """Positions and segments of B equal rows."""
    positions = np.concatenate([np.arange(n) for n in (*TEXT_OF_SAMPLE, T - sum(TEXT_OF_SAMPLE))])
    segments = np.repeat([1, 2, 0], [*TEXT_OF_SAMPLE, T - sum(TEXT_OF_SAMPLE)])
    return tuple(jnp.asarray(x, jnp.int32)[None].repeat(B, 0) for x in (positions, segments))


def over_text() -> Visibility:
    return visibility(*packed_text(), *packed_text())


def over_images(tokens: int) -> Visibility:
    """The first row's samples have one and two images, the second row's text sees none of its three."""
    positions = jnp.array([[9, 5, 30, 0], [99, 60, 60, 0]], jnp.int32)
    segments = jnp.array([[1, 2, 2, 0], [1, 2, 2, 0]], jnp.int32)
    return visibility(*packed_text(), positions, segments, inclusive=False).over_tokens(tokens * positions.shape[1])


class Case(NamedTuple):
    heads: int
    key_heads: int
    head_size: int
    visible: Visibility | None
    keys: int


CASES = {
    "text of 7B": Case(7, 1, 128, over_text(), T),
    "images of 1B": Case(6, 2, 64, over_images(41), 4 * 41),
    "images of two blocks": Case(2, 1, 128, over_images(331), 4 * 331),
    "vision": Case(2, 2, 72, None, 131),
}


def vectors(case: Case, dtype):
    keys = jax.random.split(jax.random.key(0), 5)
    draw = lambda i, *shape: jax.random.normal(keys[i], (B, *shape), jnp.float32).astype(dtype)
    queries, d_out = (draw(i, case.heads, T, case.head_size) for i in (0, 1))
    k, v = (draw(i, case.key_heads, case.keys, case.head_size) for i in (2, 3))
    return queries, k, v, d_out, jax.random.normal(keys[4], (B, case.heads, T))


@jax.jit(static_argnums=0)
def gradients(backend, q, k, v, visible, d_out, d_lse):
    """Output and log-sum-exp, then the gradients of q, k and v through both."""
    inputs = BlockInputs(q, k, v, visible)
    chosen = choose_backend(backend, inputs)
    out, lse = chosen.attend(inputs)
    shift = d_lse - jnp.sum(out * d_out.astype(jnp.float32), axis=-1)
    return out, lse, *chosen.gradients(inputs, OutputGradient(lse, shift, d_out))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_plain_xla(name, dtype):
    case = CASES[name]
    q, k, v, d_out, d_lse = vectors(case, jnp.dtype(dtype))
    sees = np.ones((B, T), bool) if case.visible is None else np.asarray(case.visible.sees)
    kernel, plain = (gradients(backend, q, k, v, case.visible, d_out, d_lse) for backend in ("pallas", "xla"))
    assert [x.dtype for x in kernel] == [x.dtype for x in plain]
    # Of the log-sum-exp of nothing only the size matters.
    kernel, plain = ((out, jnp.where(sees[:, None], lse, 0), *grads) for out, lse, *grads in (kernel, plain))
    tolerance = KERNEL_FLOAT32 if dtype == "float32" else KERNEL_BFLOAT16
    for part, *pair in zip(("out", "lse", "d_q", "d_k", "d_v"), kernel, plain, strict=True):
        a, b = (np.asarray(x.astype(jnp.float32)) for x in pair)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max() > 0, part
    by_position = lambda x: np.moveaxis(np.asarray(x), 2, 1)
    assert not np.any(by_position(kernel[0])[~sees]), "output where nothing is seen"
    assert not np.any(by_position(kernel[2])[~sees]), "gradient where nothing is seen"


@pytest.mark.parametrize("backend", ["pallas", "xla"])
def test_padding_among_the_keys_changes_nothing(backend):
    """As the vision encoder's on TPUs: further queries and keys, of which only the queries' results are left out."""
    case, padding = CASES["vision"], 29
    q, k, v, d_out, d_lse = vectors(case, jnp.float32)
    whole = gradients(backend, q, k, v, None, d_out, d_lse)
    junk = lambda x: jnp.concatenate([x, 100 + x[:, :, :padding]], axis=2)

    @jax.jit
    def padded(q, k, v):
        inputs = BlockInputs(q, k, v, None, real_tokens=case.keys)
        chosen = choose_backend(backend, inputs)
        out, lse = chosen.attend(inputs)
        return out, lse, *chosen.gradients(inputs, OutputGradient(lse, d_lse - jnp.sum(out * d_out, axis=-1), d_out))

    *found, d_k, d_v = padded(q, junk(k), junk(v))
    assert d_k.shape[2] == d_v.shape[2] == case.keys + padding
    assert not np.any(d_k[:, :, case.keys :]) and not np.any(d_v[:, :, case.keys :])
    for a, b in zip((*found, d_k[:, :, : case.keys], d_v[:, :, : case.keys]), whole, strict=True):
        assert np.abs(a - b).max() <= KERNEL_FLOAT32 * np.abs(b).max() > 0


@pytest.mark.parametrize("name", ["vision", "images of 1B"])
def test_the_output_is_the_same_without_the_log_sum_exp(name):
    case = CASES[name]
    q, k, v, *_ = vectors(case, jnp.float32)
    out = lambda **options: choose_backend("pallas", inputs := BlockInputs(q, k, v, case.visible, **options)).attend(inputs).out
    whole = out()
    assert np.abs(out(reads_lse=False) - whole).max() <= KERNEL_FLOAT32 * np.abs(whole).max()


def test_a_row_that_sees_no_image_has_no_gradient():
    visible = over_images(41)
    assert visible.sees.any(axis=1).tolist() == [True, False]
    q, k, v, d_out, d_lse = vectors(CASES["images of 1B"], jnp.float32)
    _, lse, *grads = gradients("pallas", q, k, v, visible, d_out, d_lse)
    assert all(not np.any(np.asarray(g)[1]) for g in grads)
    assert np.all(np.asarray(lse)[1] == MASKED)


def test_only_blocks_that_may_be_seen_are_computed(monkeypatch):
    """Two rows of three samples, of 300 tokens and of 200 to 400, over their own text in blocks of 256 keys."""
    monkeypatch.setattr(splash_blocks, "_QUERIES", (256,))
    monkeypatch.setattr(splash_blocks, "_KEYS", (256,))
    rows = [(300, 300, 300), (200, 400, 300)]
    positions = jnp.asarray([np.concatenate([np.arange(size) for size in row]) for row in rows], jnp.int32)
    segments = jnp.asarray([np.repeat([1, 2, 3], row) for row in rows], jnp.int32)
    visible = visibility(positions, segments, positions, segments)
    blocks = splash_blocks.Blocks.of(900, 900, visible)
    seen = np.pad(np.asarray(visible.dense()), ((0, 0), (0, 124), (0, 124))).reshape(2, 4, 256, 4, 256).any(axis=(2, 4))
    np.testing.assert_array_equal(blocks.needed, seen)
    assert seen[0].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(
        splash_blocks._read(jnp.asarray(seen[0]), 1), [[0] * 4, [0, 1, 1, 1], [1, 1, 2, 2], [2, 2, 2, 3]]
    )
    for by_keys in (False, True):
        info = blocks.mask_info(by_keys=by_keys)
        # Where a block is computed, the one that is read is the one of that number in the same row.
        table = info.data_next[0].T if by_keys else info.data_next[0]
        computed = info.block_mask[0].T if by_keys else info.block_mask[0]
        row, block = np.divmod(np.arange(8), 4)
        for line in range(8):
            expected = seen[row[line], :, block[line]] if by_keys else seen[row[line], block[line]]
            np.testing.assert_array_equal(computed[line], expected)
            np.testing.assert_array_equal(table[line][expected], 4 * row[line] + np.flatnonzero(expected))
            assert (np.asarray(table[line]) // 4 == row[line]).all()
    limits, ids, key_ids = (np.asarray(x) for x in (blocks.limits, blocks.segment_ids.q, blocks.segment_ids.kv))
    whole = (ids[:, None] == key_ids) & (np.arange(2048) < limits[:, None])
    apart = whole.reshape(2, 1024, 2, 1024)
    np.testing.assert_array_equal(apart[[0, 1], :900, [0, 1], :900], visible.dense())
    assert apart.sum() == np.asarray(visible.dense()).sum()  # no row sees another one, nor padding


@pytest.mark.parametrize("most", [1, 2, 3, 4, 16])
def test_rows_may_be_one_sequence(monkeypatch, most):
    """Four rows with different samples: as many calls of the kernel as `most` needs give what plain XLA gives."""
    monkeypatch.setattr(splash, "_LSE_BYTES", most * 4 * 256 * 128 * 4)
    ids = jnp.asarray([[1] * 150, [1] * 70 + [2] * 80, [2] * 30 + [1] * 90 + [0] * 30, [0] * 150], jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(150), ids.shape)
    visible = visibility(positions, ids, positions, ids)
    keys = jax.random.split(jax.random.key(0), 5)
    q, d_out = (jax.random.normal(key, (4, 4, 150, 8)) for key in keys[:2])
    k, v = (jax.random.normal(key, (4, 2, 150, 8)) for key in keys[2:4])
    d_lse = jnp.zeros((4, 4, 150))
    found, wanted = (gradients(backend, q, k, v, visible, d_out, d_lse) for backend in ("pallas", "xla"))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=KERNEL_FLOAT32 * np.abs(b[np.abs(b) < 1e29]).max())


@pytest.mark.parametrize(
    ("size", "blocks"), [(1, (128, 128)), (729, (384, 768)), (4096, (512, 1024)), (7 * 729, (512, 1024)), (600, (384, 768))]
)
def test_blocks_are_large_and_pad_little(size, blocks):
    assert splash_blocks.Blocks.sizes(size, size) == blocks


@pytest.mark.parametrize("backend", ["auto", "pallas"])
@pytest.mark.parametrize("visible", [None, Visibility(*[jnp.zeros((0, 150), jnp.int32)] * 3)])
def test_no_rows_at_all(backend, visible):
    """The vision encoder of a batch without images."""
    q = jnp.zeros((0, 2, 150, 8))
    found = gradients(backend, q, q, q, visible, q, q[..., 0])
    assert [x.shape for x in found] == [q.shape, q.shape[:3], q.shape, q.shape, q.shape]


def test_few_positions_do_not_use_the_kernel():
    def traced(T, backend):
        inputs = BlockInputs(jnp.zeros((1, 2, T, 8)), *[jnp.zeros((1, 1, 300, 8))] * 2, None)
        return str(jax.make_jaxpr(choose_backend(backend, inputs).attend)(inputs))

    assert "pallas_call" not in traced(127, "auto")
    assert "pallas_call" in traced(128, "auto")
    assert "pallas_call" not in traced(128, "xla")
    assert "pallas_call" in traced(1, "pallas")


def test_merge_of_two_parts_equals_attention_over_all_keys():
    q, k, v, *_ = vectors(CASES["images of 1B"], jnp.float32)
    visible = over_images(41)
    whole = xla.attend(BlockInputs(q, k, v, visible))
    parts = [
        xla.attend(BlockInputs(q, k[:, :, start:stop], v[:, :, start:stop], visible.part(start, stop - start)))
        for start, stop in ((0, 100), (100, 4 * 41))
    ]
    merged = merge(*parts)
    np.testing.assert_allclose(merged[0], whole[0], atol=1e-6)
    np.testing.assert_allclose(merged[1], whole[1], rtol=1e-6)
