"""Attention to pages is attention to the same images in a cache of each row's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.attention.attend import attend
from owl3_jax.attention.inputs import IMAGES, TEXT, Plan
from owl3_jax.attention.pages import PagedKeys, Pages, PageTable
from owl3_jax.attention.parts import MASKED
from owl3_jax.attention.visibility import Visibility, visibility
from owl3_jax.nn.quantized import Quantized, quantize
from owl3_jax.nn.rope import rope, turns_back
from tests.tolerances import MODULE

B, I, L, K, G, M, P, THETA = 3, 5, 24, 2, 3, 2, 7, 10_000.0

PLACES = jnp.array([[3, 90, 700, 2000, 30_000], [40_000, 40_010, 0, 0, 0], [0, 0, 0, 0, 0]])  # of the images of each row


def case(T: int, D: int = 16, real_tokens: int = L):
    """Rows that share pages at other positions; the second sees its first two images, and the last none."""
    keys = jax.random.split(jax.random.key(T), 3)
    pages = Pages(*(jax.random.normal(key, (M, P, K, L, D)) for key in keys[:2]))
    segments = jnp.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    table = PageTable(
        jnp.array([[4, 0, 2, 6, 1], [0, 4, 3, 3, 3], [5, 5, 5, 5, 5]]),
        segments * real_tokens,
    )
    ends = jnp.array([30_000 + T, 40_100, 9])[:, None]
    positions = ends - T + 1 + jnp.arange(T)
    q = rope(jax.random.normal(keys[2], (B, K * G, T, D)), positions[:, None], THETA)
    return q, pages, table, visibility(positions, jnp.ones((B, T), jnp.int32), PLACES, segments)


def from_own_caches(q, pages, table, visible, plan, layer):
    read = lambda x: jnp.moveaxis(x[:, table.pages], 3, 2)  # [M, B, K, I, L, D]
    rotated = rope(read(pages.keys), PLACES[None, :, None, :, None], THETA)
    return attend(q, [(rotated, read(pages.values))], visible, plan, layer)


@pytest.mark.parametrize(
    ("T", "backend", "D", "images_per_chunk", "real_tokens"),
    [
        (1, "xla", 16, None, 19),
        (4, "xla", 16, 2, None),
        (4, "auto", 16, 1, 19),
        (1, "auto", 16, 2, 19),
        (1, "pallas", 16, None, 19),
        (1, "pallas", 128, None, None),
    ],
)
def test_pages_are_caches_that_rows_share(T, backend, D, images_per_chunk, real_tokens):
    q, pages, table, visible = case(T, D, real_tokens or L)
    plan = Plan(IMAGES, backend, images_per_chunk, real_tokens)
    paged = jax.jit(
        lambda layer: attend(
            q, PagedKeys(pages, table, turns_back(PLACES[..., None], q.shape[-1], THETA)), visible, plan, layer
        )
    )
    own = jax.jit(lambda layer: from_own_caches(q, pages, table, visible, plan._replace(backend="xla"), layer))
    for layer in range(M):
        found, wanted = paged(layer), own(layer)
        assert found.out.dtype == q.dtype and found.lse.dtype == jnp.float32
        np.testing.assert_allclose(found.out, wanted.out, atol=MODULE)
        np.testing.assert_allclose(found.lse[:2], wanted.lse[:2], atol=MODULE)
        assert not np.any(found.out[2]) and np.all(found.lse[2] <= MASKED / 2)


def test_turning_back_is_exact_far_from_the_first_position():
    """Also where an angle of 40,000 radians is rounded to 0.002: both ways round it alike."""
    q, pages, table, visible = case(1)
    plan = Plan(IMAGES, "xla")
    found = attend(q, PagedKeys(pages, table, turns_back(PLACES[..., None], q.shape[-1], THETA)), visible, plan, 1)
    wanted = from_own_caches(q, pages, table, visible, plan, 1)
    moved = from_own_caches(rope(q, jnp.ones((B, 1, 1), jnp.int32), THETA), pages, table, visible, plan, 1)
    error, step = np.abs(found.out - wanted.out).max(), np.abs(moved.out - wanted.out).max()
    assert error < 1e-4 * step  # a position more or less changes ten thousand times as much


def test_int8_pages():
    q, pages, table, visible = case(1)
    small = Pages(*(Quantized(*quantize(x, (x.ndim - 1,))) for x in pages))
    found = attend(q, PagedKeys(small, table, turns_back(PLACES[..., None], q.shape[-1], THETA)), visible, Plan(IMAGES, "auto"))
    whole = attend(q, PagedKeys(pages, table, turns_back(PLACES[..., None], q.shape[-1], THETA)), visible, Plan(IMAGES, "auto"))
    error = np.abs(found.out - whole.out).max()
    assert 0 < error < 0.02  # measured 0.006


def test_unseen_pages_are_not_read():
    """What a row does not see may hold anything."""
    q, pages, table, visible = case(1)
    shown = np.unique(np.asarray(table.pages)[[0, 1], :][np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)])
    others = [page for page in range(P) if page not in shown]
    broken = Pages(*(x.at[:, np.array(others)].set(jnp.nan) for x in pages))
    for backend in ("xla", "pallas"):
        found = attend(
            q, PagedKeys(broken, table, turns_back(PLACES[..., None], q.shape[-1], THETA)), visible, Plan(IMAGES, backend)
        )
        whole = attend(
            q, PagedKeys(pages, table, turns_back(PLACES[..., None], q.shape[-1], THETA)), visible, Plan(IMAGES, backend)
        )
        np.testing.assert_array_equal(found.out[:2], whole.out[:2])


@pytest.mark.parametrize("backend", ["auto", "pallas"])
@pytest.mark.parametrize("T", [1, 4])
def test_rows_without_images(T, backend):
    q, pages, table, visible = case(T)
    none = PagedKeys(pages, jax.tree.map(lambda x: x[:, :0], table), turns_back(PLACES[:, :0, None], 16, THETA))
    found = attend(q, none, visible._replace(key_segment_ids=visible.key_segment_ids[:, :0]), Plan(IMAGES, backend))
    assert not np.any(found.out) and np.all(found.lse == MASKED)


@pytest.mark.parametrize(("T", "backend"), [(1, "xla"), (1, "pallas"), (4, "xla"), (4, "auto")])
def test_pages_of_text_may_be_half_empty(T, backend):
    """What is behind a row's last token, or in a page that it does not show, may hold anything."""
    q, pages, table, _ = case(T)
    table = table._replace(tokens=jnp.array([[L, L, L, 5, 0], [L, 7, 0, 0, 0], [0, 0, 0, 0, 0]]))
    segments = jnp.array([1, 1, 0])[:, None] * jnp.ones((1, T), jnp.int32)
    visible = Visibility(jnp.array([4, 2, 0])[:, None] * segments, segments, jnp.ones((B, I), jnp.int32))
    found = attend(q, PagedKeys(pages, table, None), visible, Plan(TEXT, backend, 2), 1)
    for row, shown in enumerate([[4, 0, 2, 6], [0, 4]]):
        own = [jnp.concatenate([x[1, page] for page in shown], axis=1) for x in pages]
        ends = int(table.tokens[row].sum())
        block = tuple(x[None, None, :, :ends, None] for x in own)
        wanted = attend(q[row : row + 1], [block], None, Plan(TEXT, "xla"))
        np.testing.assert_allclose(found.out[row : row + 1], wanted.out, atol=MODULE)
        np.testing.assert_allclose(found.lse[row : row + 1], wanted.lse, atol=MODULE)
    assert not np.any(found.out[2])
    behind = np.ones((P, L), bool)
    behind[[4, 0, 2]], behind[6, :5] = False, False
    broken = Pages(*(jnp.where(behind[None, :, None, :, None], jnp.nan, x) for x in pages))
    row = jax.tree.map(lambda x: x[:1], (q, table, visible))
    again = attend(row[0], PagedKeys(broken, row[1], None), row[2], Plan(TEXT, backend, 2), 1)
    np.testing.assert_array_equal(again.out, found.out[:1])
