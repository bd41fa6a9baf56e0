"""AdamW with linear warm-up, cosine decay and clipping by global norm."""

import jax
import optax

from owl3_jax.config import OptimizerConfig
from owl3_jax.params import Params

# Weight decay is for matrices: not for norms, biases and the learned gate vector.
DECAYED = ("kernel", "embed_tokens", "lm_head", "position_embedding")


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear from zero to the peak over `warmup_steps`, then a cosine to `end_learning_rate` at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(steps, config.warmup_steps + 1),
        end_value=config.end_learning_rate,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer for a run of `steps` steps."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_is_decayed,
        ),
    )


def _is_decayed(params: Params) -> Params:
    decayed: Params = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)
    return decayed
