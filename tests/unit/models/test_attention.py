import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.models.attention import attend, image_visibility, merge, text_visibility


def ints(*rows: str) -> jax.Array:
    return jnp.array([[int(cell) for cell in row.split()] for row in rows], jnp.int32)


def seen(mask: jax.Array) -> list[str]:
    return ["".join("01"[int(cell)] for cell in row) for row in np.asarray(mask)]


def test_text_visibility_of_packed_and_padded_row():
    positions, segments = ints("0 1 0 1 2 0"), ints("1 1 2 2 2 0")
    mask = text_visibility(positions, segments, positions, segments)
    assert seen(mask[0]) == ["100000", "110000", "001000", "001100", "001110", "000000"]


def test_text_visibility_of_new_text_over_a_cache_with_gaps():
    # A prompt of two tokens, padded to four slots, then two generated ones: the gap is never seen.
    key_positions, key_segments = ints("0 1 0 0 2 3"), ints("1 1 0 0 1 1")
    mask = text_visibility(ints("2 3"), ints("1 1"), key_positions, key_segments)
    assert seen(mask[0]) == ["110010", "110011"]


@pytest.mark.parametrize(
    ("inclusive", "rows"),
    [
        (False, ["00", "00", "10", "10", "11"]),
        (True, ["00", "10", "10", "11", "11"]),
    ],
)
def test_image_visibility_is_strict_or_inclusive(inclusive, rows):
    mask = image_visibility(ints("0 1 2 3 4"), ints("1 1 1 1 1"), ints("1 3"), ints("1 1"), inclusive=inclusive)
    assert seen(mask[0]) == rows


def test_image_visibility_of_packed_and_padded_row():
    # Two samples: one with images at 0 and 1, a text-only one, one with an image at 0; then padding of text and images.
    positions, segments = ints("0 1 2 0 1 0 1 0"), ints("1 1 1 2 2 3 3 0")
    mask = image_visibility(positions, segments, ints("0 1 0 0"), ints("1 1 3 0"), inclusive=False)
    assert seen(mask[0]) == ["0000", "1000", "1100", "0000", "0000", "0000", "0010", "0000"]


def naive_attention(q, k, v, visible):
    """Per head and position, in numpy float64."""
    B, H, T, D = q.shape
    out, lse = np.zeros(q.shape), np.full((B, H, T), -np.inf)
    for b, h, t in np.ndindex(B, H, T):
        keys = np.flatnonzero(visible[b, t])
        if keys.size:
            head = h // (H // k.shape[1])
            scores = k[b, head, keys].astype(float) @ q[b, h, t].astype(float) / np.sqrt(D)
            lse[b, h, t] = np.log(np.exp(scores).sum())
            out[b, h, t] = np.exp(scores - lse[b, h, t]) @ v[b, head, keys]
    return out, lse


def random_attention(seed, T=7, C=11, H=6, K=3, D=5):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=(2, *shape)).astype(np.float32)
    visible = rng.random((2, T, C)) < 0.5
    visible[0, 3] = False  # a position that sees nothing
    return draw(H, T, D), draw(K, C, D), draw(K, C, D), visible


def test_attend_equals_definition_and_is_zero_where_nothing_is_seen():
    q, k, v, visible = random_attention(0)
    out, lse = attend(*map(jnp.asarray, (q, k, v, visible)))
    expected_out, expected_lse = naive_attention(q, k, v, visible)
    np.testing.assert_allclose(out, expected_out, atol=2e-6)
    some = np.isfinite(expected_lse)
    np.testing.assert_allclose(np.asarray(lse)[some], expected_lse[some], atol=2e-6)
    assert np.all(np.asarray(lse)[~some] < -1e29)
    assert np.all(np.asarray(out)[0, :, 3] == 0)


def test_merge_of_two_parts_equals_attention_over_all_keys():
    q, k, v, visible = random_attention(1)
    visible[1, 2, :4] = False  # sees only the second part
    q, k, v, visible = map(jnp.asarray, (q, k, v, visible))
    whole = attend(q, k, v, visible)
    parts = [attend(q, k[:, :, part], v[:, :, part], visible[:, :, part]) for part in (slice(0, 4), slice(4, 11))]
    merged = merge(*parts[0], *parts[1])
    np.testing.assert_allclose(merged[0], whole[0], atol=1e-6)
    np.testing.assert_allclose(merged[1], whole[1], rtol=1e-6)


def test_gradients_stay_finite_where_nothing_is_seen():
    q, k, v, _ = map(jnp.asarray, random_attention(2))
    nothing = jnp.zeros((2, 7, 11), bool)
    grads = jax.grad(lambda *x: jnp.sum(attend(*x, nothing)[0] ** 2), argnums=(0, 1, 2))(q, k, v)
    assert all(np.all(np.asarray(g) == 0) for g in grads)
