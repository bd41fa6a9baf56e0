"""Which steps are bad, by what came before them."""

import jax
import numpy as np
import pytest

from owl3_jax.training.guard import Guard

GOOD_STEPS = [(2.0 + 0.01 * number, 1.0) for number in range(30)]


def judged(steps: list[tuple[float, float]], spike: float | None) -> tuple[list[bool], Guard]:
    guard, verdicts = Guard.fresh(), []
    for loss, norm in steps:
        is_bad, guard = jax.jit(guard.judge.__func__, static_argnums=3)(guard, np.float32(loss), np.float32(norm), spike)
        verdicts.append(bool(is_bad))
    return verdicts, guard


@pytest.mark.parametrize("bad", [(np.nan, 1.0), (np.inf, 1.0), (2.0, np.nan), (2.0, np.inf)])
def test_what_is_not_finite_is_bad_from_the_first_step_on(bad):
    verdicts, guard = judged([bad, (2.0, 1.0), bad], None)
    assert verdicts == [True, False, True]
    assert (int(guard.good), int(guard.bad)) == (1, 2)
    assert (float(guard.loss), float(guard.grad_norm)) == (2.0, 1.0)


@pytest.mark.parametrize("high", [(7.0, 1.0), (2.0, 4.0)])  # above three times the mean of losses, or of norms
def test_a_spike_is_bad_once_there_are_means(high):
    verdicts, guard = judged([*GOOD_STEPS, high, (2.3, 1.0)], 3.0)
    assert verdicts == [False] * 30 + [True, False]
    assert float(guard.loss) == pytest.approx(np.mean([loss for loss, _ in GOOD_STEPS] + [2.3]), rel=1e-6)
    assert judged([high, *GOOD_STEPS], 3.0)[0] == [False] * 31, "nothing is known at first"
    assert judged([*GOOD_STEPS, high], None)[0] == [False] * 31, "nobody has asked for it"


def test_the_means_follow_a_slow_change():
    rising = [(2.0 * 1.02**number, 1.0) for number in range(400)]  # to 5,500
    assert not any(judged(rising, 4.0)[0])
