"""Names of pages of text: the same for the same beginning alone."""

from hypothesis import given
from hypothesis import strategies as st

from owl3_jax.serving.prefix import further_keys, image_places

TOKENS = list(range(100, 170))
STARTS, KEYS = [3, 33, 33, 64], [b"a", b"b", b"c", b"d"]


def keys(tokens=TOKENS, starts=STARTS, image_keys=KEYS, size=32):
    return further_keys([], tokens, image_places(starts, image_keys, size), size)


def test_only_full_pages_have_names():
    assert len(keys()) == 2 and len(keys(TOKENS[:31])) == 0 and len(keys(TOKENS[:64])) == 2


def test_names_go_on_where_others_ended():
    whole = keys(size=10)
    for known in range(len(whole) + 1):
        assert further_keys(whole[:known], TOKENS, image_places(STARTS, KEYS, 10), 10) == whole[known:]


def test_a_changed_token_changes_its_page_and_all_after_it():
    for at, same in ((0, 0), (31, 0), (32, 1), (63, 1), (64, 2)):
        changed = [*TOKENS[:at], 7, *TOKENS[at + 1 :]]
        found = keys(changed)
        assert [a == b for a, b in zip(found, keys(), strict=True)] == [page < same for page in range(2)]


def test_images_count_by_content_and_place():
    plain = keys()
    assert keys(image_keys=[b"x", *KEYS[1:]])[0] != plain[0]
    assert keys(starts=[4, 33, 33, 64])[0] != plain[0]
    swapped = keys(image_keys=[b"a", b"c", b"b", b"d"])
    assert swapped[0] == plain[0] and swapped[1] != plain[1]
    assert keys(starts=STARTS[:3], image_keys=KEYS[:3]) == plain  # the last one is after the last full page


@given(
    st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=3)), max_size=4),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
)
def test_different_pages_have_different_names(images, tokens):
    """Also where keys of images, joined, would be the same bytes."""
    images = sorted(images, key=lambda image: image[0])
    starts, image_keys = [start for start, _ in images], [key for _, key in images]
    reference = ([2, 3], [b"ab", b"c"], [1, 2, 3, 0, 1, 2])
    same = (starts, image_keys, tokens) == reference
    assert (keys(tokens, starts, image_keys, 6) == keys(reference[2], reference[0], reference[1], 6)) == same
    assert keys(tokens, [2, 3], [b"a", b"bc"], 6) != keys(tokens, [2, 3], [b"ab", b"c"], 6)
