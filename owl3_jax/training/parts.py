"""The parts of the model by name, wherever a config takes regexes of parameter paths."""

from collections.abc import Sequence

PARTS = {
    "vision": "vision_model/.*",
    "projector": "vision2text_model/.*",
    "hyper": "language_model/hyper_layers/.*",  # v_kv_proj and gates
    "language": "language_model/(?!hyper_layers/).*",
}


def patterns_of(names: Sequence[str]) -> tuple[str, ...]:
    """Regexes: those of parts that are named, and the others as they are."""
    return tuple(PARTS.get(name, name) for name in names)
