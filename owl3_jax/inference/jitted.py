"""A jitted function, compiled with the options of the devices that it runs on."""

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import jax

from owl3_jax.compiler_options import answering_options

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class Jitted(Generic[P, R_co]):
    """As `jax.jit`, with `owl3_jax.compiler_options.answering_options` of the mesh in force."""

    def __init__(self, function: Callable[P, R_co], **options: Any) -> None:  # Any: as jax types them
        """`options` are those of `jax.jit`."""
        functools.update_wrapper(self, function)
        self._function, self._options = function, options
        self._by_compiler_options: dict[tuple[tuple[str, str], ...], Any] = {}  # Any: jax types no `eval_shape`

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        result: R_co = self._chosen()(*args, **kwargs)
        return result

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> jax.stages.Lowered:
        """As `jax.jit(...).lower`; shapes can be given for arrays."""
        lowered: jax.stages.Lowered = self._chosen().lower(*args, **kwargs)
        return lowered

    def eval_shape(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """As `jax.jit(...).eval_shape`: what a call would return, as shapes."""
        shapes: R_co = self._chosen().eval_shape(*args, **kwargs)
        return shapes

    def cache_size(self) -> int:
        """How often a call has compiled it."""
        return sum(int(jitted._cache_size()) for jitted in self._by_compiler_options.values())

    def _chosen(self) -> Any:  # Any: as above
        compiler_options = answering_options()
        key = tuple(sorted(compiler_options.items()))
        if key not in self._by_compiler_options:
            jitted = jax.jit(self._function, compiler_options=compiler_options, **self._options)
            self._by_compiler_options[key] = jitted
        return self._by_compiler_options[key]
