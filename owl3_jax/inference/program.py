"""A jitted function, compiled with the options of the devices that it runs on."""

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import jax

from owl3_jax.compiler_options import answering_options

P = ParamSpec("P")
R = TypeVar("R")


class Program(Generic[P, R]):
    """As `jax.jit`, with `owl3_jax.compiler_options.answering_options` of the mesh in force."""

    def __init__(self, function: Callable[P, R], **options: Any) -> None:  # Any: as jax types them
        """`options` are those of `jax.jit`."""
        self._function, self._options = function, options
        self._jitted: dict[tuple[tuple[str, str], ...], jax.stages.Wrapped] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self._chosen()(*args, **kwargs)
        return result

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> jax.stages.Lowered:
        """As `jax.jit(...).lower`; shapes can be given for arrays."""
        return self._chosen().lower(*args, **kwargs)

    def eval_shape(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """As `jax.jit(...).eval_shape`: what a call would return, as shapes."""
        jitted: Any = self._chosen()  # Any: jax types no `eval_shape`
        shapes: R = jitted.eval_shape(*args, **kwargs)
        return shapes

    def _chosen(self) -> jax.stages.Wrapped:
        compiler_options = answering_options()
        key = tuple(sorted(compiler_options.items()))
        if key not in self._jitted:
            self._jitted[key] = jax.jit(self._function, compiler_options=compiler_options, **self._options)
        return self._jitted[key]
