import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.inference import memory
from owl3_jax.inference.memory import OutOfMemory, check_fits, explain_out_of_memory, free_bytes

GIB = 2**30


class Device:
    """One that reports its memory as a GPU or TPU does."""

    platform = "gpu"

    def __init__(self, stats):
        self._stats = stats

    def memory_stats(self):
        return self._stats


def test_what_fits_passes(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 4 * GIB)
    check_fits(4 * GIB, "the caches")
    check_fits(8 * GIB, "the caches", devices=2)


def test_what_does_not_fit_is_named_with_its_size(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 3 * GIB)
    with pytest.raises(OutOfMemory, match=r"the caches of 3 rows need 4\.5 GiB on each device, 3\.0 GiB are free; use fewer"):
        check_fits(9 * GIB, "the caches of 3 rows", devices=2)


def test_nothing_is_refused_where_no_one_knows_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    check_fits(2**60, "the caches")


def test_the_machines_memory_is_that_of_a_cpu():
    assert 2**20 < free_bytes() < 2**50


@pytest.mark.parametrize(("stats", "free"), [({"bytes_limit": 9, "bytes_in_use": 4}, 5), ({}, None), (None, None)])
def test_a_device_tells_its_own(monkeypatch, stats, free):
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(stats)])
    assert free_bytes() == free


@pytest.mark.parametrize("allocate", [jnp.zeros, np.ones])
def test_what_was_not_foreseen_says_what_happened_and_what_to_do(allocate):
    message = r"^memory ran out \(.*[aA]llocat.*\); use fewer images or rows, .*int8 caches"
    with pytest.raises(OutOfMemory, match=message), explain_out_of_memory():
        jax.block_until_ready(allocate(2**45))
    with pytest.raises(OutOfMemory, match=r"\); buy more$"), explain_out_of_memory("buy more"):
        jax.block_until_ready(allocate(2**45))


def test_other_errors_of_a_program_stay_what_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"), explain_out_of_memory():
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: a shape")
