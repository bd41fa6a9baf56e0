"""Image tokens from the encoder's width to the decoder's (official name `vision2text_model`)."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from owl3_jax.config import ComputeConfig, ModelConfig
from owl3_jax.nn.linear import Linear


class Projector(nn.Module):
    """One linear map; in the joint form linear, exact (erf) GELU, linear (official `.0` and `.2`)."""

    config: ModelConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "X L Ev"]) -> Float[Array, "X L E"]:
        if self.config.form != "joint":
            return self._linear(x, "vision_embed", "linear")
        x = self._linear(x, "vision_embed", "0")
        return self._linear(jax.nn.gelu(x, approximate=False), "projector_hidden", "2")

    def _linear(self, x: Float[Array, "X L F"], axis: str, name: str) -> Float[Array, "X L E"]:
        shape = (x.shape[-1], self.config.hidden_size)
        return Linear("xlf,fe->xle", shape, (axis, "embed"), self.compute, name=name)(x)
