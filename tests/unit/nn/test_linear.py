import jax
import jax.numpy as jnp
import numpy as np

from owl3_jax.nn.linear import Linear
from owl3_jax.nn.norms import RMSNorm
from owl3_jax.nn.rope import rope
from tests.tiny import COMPUTE


def test_linear_sums_over_the_dims_that_the_output_lacks():
    layer = Linear("bte,ehd->bthd", (5, 3, 2), ("embed", "heads", "head_dim"), COMPUTE)
    x = jax.random.normal(jax.random.key(0), (2, 7, 5))
    params = jax.tree.map(lambda p: p + 0.5, layer.init(jax.random.key(1), x))
    kernel, bias = params["params"]["kernel"].value, params["params"]["bias"].value
    assert bias.shape == (3, 2)
    expected = np.asarray(x) @ np.asarray(kernel).reshape(5, 6) + np.asarray(bias).reshape(6)
    np.testing.assert_allclose(layer.apply(params, x).reshape(2, 7, 6), expected, atol=1e-6)


def test_linear_starts_with_variance_of_one_over_fan_in():
    for equation, shape in [("be,ef->bf", (97, 401)), ("bhd,hde->be", (7, 13, 401)), ("mbe,mef->mbf", (3, 97, 401))]:
        axes = tuple("abcd"[: len(shape)])
        x = jnp.zeros((3, *([2] if equation[0] == "m" else []), *(shape[1:2] if equation[0] == "m" else shape[:-1])))
        kernel = Linear(equation, shape, axes, COMPUTE, use_bias=False).init(jax.random.key(0), x)["params"]["kernel"].value
        fan_in = np.prod(shape[1:2] if equation[0] == "m" else shape[:-1])
        np.testing.assert_allclose(kernel.std(), fan_in**-0.5, rtol=0.03)


def test_rms_norm_is_computed_in_float32_and_keeps_the_dtype():
    x = (1000 * jax.random.normal(jax.random.key(0), (3, 7))).astype(jnp.bfloat16)
    norm = RMSNorm((7,), ("norm",), 1e-6, COMPUTE)
    y = norm.apply(norm.init(jax.random.key(1), x), x)
    wide = np.asarray(x, np.float64)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, float), wide / np.sqrt((wide**2).mean(-1, keepdims=True)), rtol=2**-8)


def test_rope_rotates_pairs_of_halves_by_position():
    x = jax.random.normal(jax.random.key(0), (5, 3, 6))
    positions = jnp.array([0, 1, 2, 11, 997])
    y = rope(x, positions[:, None], 1e4)
    pairs = np.asarray(x[..., :3] + 1j * np.asarray(x[..., 3:]))
    angles = np.asarray(positions)[:, None, None] * 1e4 ** (-np.arange(3) / 3)
    rotated = pairs * np.exp(1j * angles)
    np.testing.assert_allclose(y, np.concatenate([rotated.real, rotated.imag], -1), atol=2e-4)
    np.testing.assert_array_equal(y[0], x[0])
