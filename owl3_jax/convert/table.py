"""THE table: official tensor name <-> our parameter, with the layout change between them.

A `{layer}` in an official name is a row of our stacked parameter: decoder and encoder layers counted
from zero, and for hyper layers the decoder layer that the row belongs to. A name is thus read in both
directions: as a pattern for a checkpoint's tensors, and as the name to give a row. PyTorch keeps linear
weights as [out, in]; our kernels are [*in, *out] with a dim for heads. Layout changes are views, and every
function here works on shapes alone, so that all of it serves abstract checkpoints too.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Shaped

from owl3_jax.config import Form, ModelConfig
from owl3_jax.params import Params

Layout = Literal["same", "vector", "linear", "linear_from_heads", "convolution"]

EMBEDDING = "language_model.model.embed_tokens.weight"
TIED_HEAD = "language_model.lm_head.weight"  # a tied checkpoint may have it too, as a copy of the embedding
VOCABULARY = (EMBEDDING, TIED_HEAD)  # a row for each word


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table."""

    official: str
    path: str  # of our parameter, "/" between levels
    layout: Layout = "vector"
    forms: tuple[Form, ...] = ("gated", "static", "joint")

    @property
    def stacked(self) -> bool:
        """Whether the first dim of our parameter counts layers."""
        return "{layer}" in self.official


_TEXT = "language_model.model.layers.{layer}"
_VISION = "vision_model.encoder.layers.{layer}"


def _decoder_layer() -> Iterator[Entry]:
    yield Entry(f"{_TEXT}.input_layernorm.weight", "language_model/input_layernorm/scale")
    yield Entry(f"{_TEXT}.post_attention_layernorm.weight", "language_model/layers/post_attention_layernorm/scale")
    for name in ("q_proj", "k_proj", "v_proj"):
        yield Entry(f"{_TEXT}.self_attn.{name}.weight", f"language_model/layers/self_attn/{name}/kernel", "linear")
        yield Entry(f"{_TEXT}.self_attn.{name}.bias", f"language_model/layers/self_attn/{name}/bias")
    yield Entry(f"{_TEXT}.self_attn.o_proj.weight", "language_model/layers/self_attn/o_proj/kernel", "linear_from_heads")
    for name in ("gate_proj", "up_proj", "down_proj"):
        yield Entry(f"{_TEXT}.mlp.{name}.weight", f"language_model/layers/mlp/{name}/kernel", "linear")


def _hyper_layer() -> Iterator[Entry]:
    ours = "language_model/hyper_layers"
    yield Entry(f"{_TEXT}.self_attn.v_kv_proj.weight", f"{ours}/v_kv_proj/kernel", "linear")
    yield Entry(f"{_TEXT}.self_attn.v_kv_proj.bias", f"{ours}/v_kv_proj/bias")
    yield Entry(f"{_TEXT}.self_attn.gate_proj.0.weight", f"{ours}/gate_proj/kernel", "linear", forms=("gated",))
    yield Entry(f"{_TEXT}.self_attn.gate_proj.0.bias", f"{ours}/gate_proj/bias", forms=("gated",))
    yield Entry(f"{_TEXT}.self_attn.gate", f"{ours}/gate", forms=("static",))


def _encoder_layer() -> Iterator[Entry]:
    ours = "vision_model/layers"
    for name in ("layer_norm1", "layer_norm2"):
        yield Entry(f"{_VISION}.{name}.weight", f"{ours}/{name}/scale")
        yield Entry(f"{_VISION}.{name}.bias", f"{ours}/{name}/bias")
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        layout: Layout = "linear_from_heads" if name == "out_proj" else "linear"
        yield Entry(f"{_VISION}.self_attn.{name}.weight", f"{ours}/self_attn/{name}/kernel", layout)
        yield Entry(f"{_VISION}.self_attn.{name}.bias", f"{ours}/self_attn/{name}/bias")
    for name in ("fc1", "fc2"):
        yield Entry(f"{_VISION}.mlp.{name}.weight", f"{ours}/mlp/{name}/kernel", "linear")
        yield Entry(f"{_VISION}.mlp.{name}.bias", f"{ours}/mlp/{name}/bias")


def _projector() -> Iterator[Entry]:
    linear: tuple[Form, ...] = ("gated", "static")
    mlp: tuple[Form, ...] = ("joint",)
    for official, ours, forms in (("", "linear", linear), (".0", "0", mlp), (".2", "2", mlp)):
        yield Entry(f"vision2text_model{official}.weight", f"vision2text_model/{ours}/kernel", "linear", forms)
        yield Entry(f"vision2text_model{official}.bias", f"vision2text_model/{ours}/bias", forms=forms)


TABLE: tuple[Entry, ...] = (
    Entry(EMBEDDING, "language_model/embed_tokens", "same"),
    *_decoder_layer(),
    *_hyper_layer(),
    Entry("language_model.model.norm.weight", "language_model/norm/scale"),
    Entry(TIED_HEAD, "language_model/lm_head", "same"),
    Entry("vision_model.embeddings.patch_embedding.weight", "vision_model/embeddings/patch_embedding/kernel", "convolution"),
    Entry("vision_model.embeddings.patch_embedding.bias", "vision_model/embeddings/patch_embedding/bias"),
    Entry("vision_model.embeddings.position_embedding.weight", "vision_model/embeddings/position_embedding", "same"),
    *_encoder_layer(),
    *_projector(),
)

# In a checkpoint, but never read by the model; `{last}` is SigLIP's last block.
_UNUSED = (
    r"vision_model\.encoder\.layers\.{last}\..+",
    r"vision_model\.post_layernorm\.(weight|bias)",
    r"vision_model\.head\..+",
    r"vision_model\.embeddings\.position_ids",  # a buffer of older versions: 0, 1, 2, ...
    r"language_model\..*rotary_emb[^.]*\.inv_freq",  # a buffer that RoPE computes itself
)


def entries_for(config: ModelConfig) -> tuple[Entry, ...]:
    """The rows of the table that a model of this config has."""
    return tuple(e for e in TABLE if config.form in e.forms and not (e.official == TIED_HEAD and config.tie_word_embeddings))


def rows_of(entry: Entry, config: ModelConfig) -> tuple[int | None, ...]:
    """The layer number of each row of a stacked parameter; (None,) when it is not stacked."""
    if not entry.stacked:
        return (None,)
    if entry.path.startswith("vision_model"):
        return tuple(range(config.vision.num_used_layers))
    if entry.path.startswith("language_model/hyper_layers"):
        return config.hyper_layer_indices
    return tuple(range(config.num_hidden_layers))


def official_names(entry: Entry, config: ModelConfig) -> tuple[str, ...]:
    """The official tensors that make up a parameter, in the order of its rows."""
    return tuple(entry.official.format(layer=layer) for layer in rows_of(entry, config))


def is_unused(name: str, config: ModelConfig) -> bool:
    """Whether official checkpoints hold a tensor of this name that the model never reads."""
    last = str(config.vision.num_hidden_layers - 1)
    return any(re.fullmatch(pattern.replace("{last}", last), name) for pattern in _UNUSED)


class Names(NamedTuple):
    """The tensor names of a checkpoint, sorted by what the table says of them."""

    missing: tuple[str, ...]
    unmapped: tuple[str, ...]
    unused: tuple[str, ...]
    tied_head: bool  # whether a tied checkpoint has a copy of the embedding as `lm_head.weight`


def sort_names(names: Iterable[str], config: ModelConfig) -> Names:
    """Compares the tensor names of a checkpoint with the table."""
    there = set(names)
    wanted = {name for entry in entries_for(config) for name in official_names(entry, config)}
    others = there - wanted
    tied_head = {TIED_HEAD} & others if config.tie_word_embeddings else set()
    unused = {name for name in others if is_unused(name, config)}
    return Names(
        missing=tuple(sorted(wanted - there)),
        unmapped=tuple(sorted(others - unused - tied_head)),
        unused=tuple(sorted(unused)),
        tied_head=bool(tied_head),
    )


def row_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one row of our parameter of shape `shape`."""
    return shape[1:] if entry.stacked else shape


def official_shape(entry: Entry, row: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the official tensor for one row, of shape `row`, of our parameter."""
    match entry.layout:
        case "same":
            return row
        case "vector":
            return (math.prod(row),)
        case "linear":
            return math.prod(row[1:]), row[0]
        case "linear_from_heads":
            return row[2], row[0] * row[1]
        case "convolution":
            return row[3], row[2], row[0], row[1]


def from_official(entry: Entry, tensor: Shaped[np.ndarray, "..."], row: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
    """One row of our parameter, of shape `row`, as a view of the official tensor."""
    match entry.layout:
        case "convolution":
            return tensor.transpose(2, 3, 1, 0)
        case "linear" | "linear_from_heads":
            return tensor.T.reshape(row)
        case _:
            return tensor.reshape(row)


def to_official(entry: Entry, row: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The official tensor from one row of our parameter: undoes `from_official`."""
    shape = official_shape(entry, row.shape)
    match entry.layout:
        case "convolution":
            return row.transpose(3, 2, 0, 1)
        case "linear" | "linear_from_heads":
            return row.reshape(shape[::-1]).T
        case _:
            return row.reshape(shape)


def parameter_to_official(
    entry: Entry, value: Shaped[np.ndarray, "..."], config: ModelConfig
) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
    """Names and views of the official tensors that make up one of our parameters."""
    names = official_names(entry, config)
    for name, row in zip(names, value if entry.stacked else [value], strict=True):
        yield name, to_official(entry, row)


def params_to_official(params: Params, config: ModelConfig) -> dict[str, Shaped[np.ndarray, "..."]]:
    """A tree of parameters (or of their gradients) as official tensors by name, on the host."""
    flat = flatten_dict(params, sep="/")
    return dict(
        named for entry in entries_for(config) for named in parameter_to_official(entry, np.asarray(flat[entry.path]), config)
    )
