"""THE table of backends, which compute attention over one block of keys on one device.

Programs for TPUs are also compiled on machines without one, so between platforms the choice is made when the program is
lowered, not by the devices that are present.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from owl3_jax.attention.backends import cached, cudnn, splash, xla
from owl3_jax.attention.backends.splash_blocks import SMALLEST_BLOCK
from owl3_jax.attention.inputs import BlockInputs, Gradients, OutputGradient
from owl3_jax.attention.parts import Part
from owl3_jax.config import AttentionBackend


class Backend(NamedTuple):
    """One way to compute a block, forward and backward."""

    attend: Callable[[BlockInputs], Part]
    gradients: Callable[[BlockInputs, OutputGradient], Gradients]


class Row(NamedTuple):
    """A row of the table."""

    setting: AttentionBackend  # `ComputeConfig.attention`
    takes: Callable[[BlockInputs], bool]
    on_tpu: Backend
    on_cpu: Backend
    elsewhere: Backend


def _has_few_positions(inputs: BlockInputs) -> bool:
    """As in decoding: most of the kernel's smallest block would be empty."""
    return inputs.q.shape[2] < SMALLEST_BLOCK


def _anything(inputs: BlockInputs) -> bool:
    return True


def _splash(interpret: bool) -> Backend:
    attend = functools.partial(splash.attend, interpret=interpret)
    return Backend(attend, functools.partial(splash.gradients, interpret=interpret))


XLA = Backend(xla.attend, xla.gradients)
SPLASH, INTERPRETED_SPLASH = _splash(interpret=False), _splash(interpret=True)
CACHED = Backend(cached.attend, xla.gradients)
CUDNN = Backend(cudnn.attend, cudnn.gradients)

# The first row that has the setting and takes the block counts.
TABLE = (
    Row("xla", _anything, XLA, XLA, XLA),
    Row("pallas", _anything, SPLASH, INTERPRETED_SPLASH, INTERPRETED_SPLASH),
    Row("auto", _has_few_positions, XLA, XLA, XLA),
    Row("auto", cudnn.takes, CUDNN, CUDNN, CUDNN),
    Row("auto", _anything, SPLASH, CACHED, XLA),
)


def choose_backend(setting: AttentionBackend, inputs: BlockInputs) -> Backend:
    """What computes this block, by `TABLE`; of no rows, as the vision encoder has without images, plain XLA."""
    if inputs.q.shape[0] == 0:
        return XLA
    row = next(row for row in TABLE if row.setting == setting and row.takes(inputs))
    return row.elsewhere if row.on_tpu is row.on_cpu is row.elsewhere else _by_platform(row)


def _by_platform(row: Row) -> Backend:
    tpu, cpu, default = row.on_tpu, row.on_cpu, row.elsewhere

    def attend(inputs: BlockInputs) -> Part:
        part: Part = jax.lax.platform_dependent(inputs, tpu=tpu.attend, cpu=cpu.attend, default=default.attend)
        return part

    def gradients(inputs: BlockInputs, given: OutputGradient) -> Gradients:
        found: Gradients = jax.lax.platform_dependent(
            inputs, given, tpu=tpu.gradients, cpu=cpu.gradients, default=default.gradients
        )
        return found

    return Backend(attend, gradients)
