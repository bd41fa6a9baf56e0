"""What a table of differences says."""

import numpy as np

from owl3_jax.convert.comparison import Row, compare


def rows(expected: dict, found: dict) -> list[Row]:
    return list(compare("a", expected, found, atol=0.1))


def test_differences_per_tensor_and_layer():
    expected = {"image_embeds": np.array([[1.0, -2.0]]), "hidden_states": np.array([[[4.0]], [[5.0]]])}
    found = {"image_embeds": np.array([[1.0, -1.95]]), "hidden_states": np.array([[[4.0]], [[5.5]]])}
    assert rows(expected, found) == [
        Row("a", "image_embeds", "5.0e-02", "2.00", True),
        Row("a", "hidden_states 0", "0.0e+00", "4.00", True),
        Row("a", "hidden_states 1", "5.0e-01", "5.00", False),
    ]


def test_greedy_tokens_must_be_the_same():
    (row,) = rows({"greedy": np.array([1, 2, 3])}, {"greedy": np.array([1, 5, 3])})
    assert not row.agrees and row.note == "2 of 3 tokens"


def test_logits_are_compared_as_distributions_too():
    expected = np.log(np.array([[0.5, 0.25, 0.25]]))
    found = np.log(np.array([[0.25, 0.5, 0.25]]))
    (row,) = rows({"logits": expected}, {"logits": found})
    assert row.note == f"KL {0.5 * np.log(2) - 0.25 * np.log(2):.1e}, top ten share 3.0"


def test_nan_and_another_shape_never_agree():
    (nan,) = rows({"image_embeds": np.ones((1, 2))}, {"image_embeds": np.array([[1.0, np.nan]])})
    (shape,) = rows({"logits": np.ones((1, 2))}, {"logits": np.ones((1, 3))})
    assert not nan.agrees and not shape.agrees
    assert shape.note == "shape (1, 3), expected (1, 2)"


def test_another_number_of_layers_is_one_row_that_differs():
    (row,) = rows({"hidden_states": np.ones((3, 1, 2))}, {"hidden_states": np.ones((2, 1, 2))})
    assert not row.agrees and row.note == "shape (2, 1, 2), expected (3, 1, 2)"
