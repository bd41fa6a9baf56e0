"""XLA's options for programs that run once: little time for optimising them. It imports no jax, which reads them.

Of options that it does not know XLA ends the process, and libtpu's does not know all that jaxlib's knows.
"""

from jaxlib.version import __version_info__

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
KNOWN_TO_TPUS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Compiling takes twice as long with its emitters for fusions.
FAST_TO_COMPILE = KNOWN_TO_TPUS + (" --xla_cpu_use_fusion_emitters=false" if __version_info__ < (0, 11) else "")
