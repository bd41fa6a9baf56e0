"""Every private JAX function that this package calls, each checked before use.

JAX may change them in any release. Each is looked up when it is first needed; one that has gone, or lacks a parameter that is
passed to it, raises `PrivateJaxError` with the versions that are known to have it.
"""

import functools
import importlib
import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax

KNOWN_VERSIONS = ("0.10.2", "0.12.0.1")  # of jax, tried with all tests of tests/tpu and tests/unit/attention

PrivateFunction = Callable[..., Any]  # Any: what private functions take and return has no public type

_KERNELS = "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel"
_CLUSTERS = "jax._src.clusters.cloud_tpu_cluster"


class PrivateJaxError(RuntimeError):
    """This version of JAX does not have a private function that is needed."""


@functools.cache
def splash_forward() -> PrivateFunction:
    """Splash attention with a mask that is known at run time, and its log-sum-exp."""
    return _find(_KERNELS, "_splash_attention_forward", "mask_value", "is_mqa", "save_residuals", "mask_function", "interpret")


@functools.cache
def splash_gradient_of_queries() -> PrivateFunction:
    """The backward kernel for queries."""
    return _find(_KERNELS, "_splash_attention_bwd_dq", "bq", "bkv", "mask_info", "mask_function", "interpret")


@functools.cache
def splash_gradient_of_keys() -> PrivateFunction:
    """The backward kernel for keys and values."""
    return _find(_KERNELS, "_splash_attention_bwd_dkv", "bq", "bkv", "bkv_compute", "mask_info", "use_fused_bwd_kernel")


@functools.cache
def tpu_clusters() -> tuple[type[Any], ...]:  # Any: classes without a public base
    """What finds the hosts of a TPU pod: on GKE, on Compute Engine."""
    names = ("GkeTpuCluster", "GceTpuCluster")
    for name in names:
        _find(_CLUSTERS, f"{name}._get_worker_list_in_slice")  # for `hosts_of_slice`
    return tuple(_find(_CLUSTERS, name) for name in names)


def hosts_of_slice(cluster: type[Any]) -> list[str]:  # Any: one of `tpu_clusters`
    """The names of the hosts of this host's slice, in the order of their numbers."""
    hosts: list[str] = cluster._get_worker_list_in_slice()
    return hosts


def _find(module: str, name: str, *parameters: str) -> Any:  # Any: a function or a class
    try:
        found = operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise PrivateJaxError(f"{error}; {_remedy()}") from error
    missing = set(parameters) - set(inspect.signature(found).parameters)
    if missing:
        raise PrivateJaxError(f"{module}.{name} has no parameter {', '.join(sorted(missing))}; {_remedy()}")
    return found


def _remedy() -> str:
    return f"jax {jax.__version__} is installed, known to work are {', '.join(KNOWN_VERSIONS)}: install one of these"
