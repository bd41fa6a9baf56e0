"""XLA's options for programs that run once: little time for optimising them. It imports no jax, which reads them."""

from jaxlib.version import __version_info__

_OPTIONS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if __version_info__ < (0, 11):  # of options that it does not know, XLA ends the process
    _OPTIONS.append("--xla_cpu_use_fusion_emitters=false")  # half of the time that compiling takes otherwise

FAST_TO_COMPILE = " ".join(_OPTIONS)
