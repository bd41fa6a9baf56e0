"""What a fresh run starts from, and the model and processor that come with it.

In this order: a run's own last checkpoint (`owl3_jax.training.checkpoint`); `start.checkpoint`, or `start.vision` with
`start.language`; random values.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from owl3_jax.batch import AnyArray
from owl3_jax.config import Config, ConfigError, ModelConfig, ProcessorConfig, field_differences
from owl3_jax.convert.load import load_params
from owl3_jax.convert.parts import load_parts
from owl3_jax.convert.stored import open_stored
from owl3_jax.formats.bundled import find_checkpoint
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.nn.linear import is_adapter
from owl3_jax.params import Params
from owl3_jax.processing.processor import Processor
from owl3_jax.processing.tokenizer_files import has_tokenizer
from owl3_jax.sharding import param_shardings, use_mesh
from owl3_jax.training.frozen import DTypes, trained_paths
from owl3_jax.training.lora import abstract_run_params, initial_adapters
from owl3_jax.training.step import TrainState, init_state, state_from


def resolve_start(config: Config) -> Config:
    """The config with what it takes from the checkpoint that it starts from: with `start.inherit` model and processor.

    Otherwise the tokenizer alone, if the checkpoint (or `start.language`) has one.

    Raises:
        ConfigError: the checkpoint's model differs from the config's, with all differences; or `start.inherit` without one.
        CheckpointError: a directory is not a checkpoint.
    """
    start = config.start
    if start.checkpoint is None:
        if start.inherit:
            raise ConfigError("this config takes its model from a checkpoint: give --config.start.checkpoint DIR")
        return _with_tokenizer_of(config, start.language)
    directory = find_checkpoint(start.checkpoint).absolute()
    config = dataclasses.replace(config, start=dataclasses.replace(start, checkpoint=str(directory)))
    model = load_config(directory)
    if start.inherit:
        return dataclasses.replace(config, model=model, processor=_processor_of(directory))
    _require_same_model(directory, model, config.model)
    return _with_tokenizer_of(config, str(directory))


def start_state(config: Config, mesh: Mesh) -> TrainState:
    """The state of a fresh run. Parameters are read one after the other, each straight into its shards.

    Trained ones are kept in `compute.param_dtype`, frozen ones in `train.frozen_dtype`, or as they are.
    """
    params = _read_params(config, mesh)
    return init_state(config, mesh) if params is None else state_from(config, mesh, _with_adapters(params, config, mesh))


def stored_dtypes(workdir: Path) -> DTypes:
    """The dtype of each parameter in the last checkpoint of a run."""
    return {path: parameter.dtype for path, parameter in open_stored(workdir).parameters.items()}


def _read_params(config: Config, mesh: Mesh) -> Params | None:
    start, convert, multiple = config.start, _DtypeOf(config), config.compute.vocab_multiple
    if start.checkpoint is not None:
        directory = find_checkpoint(start.checkpoint)
        return load_params(directory, config.model, mesh, vocab_multiple=multiple, convert=convert)
    if start.vision is not None and start.language is not None:
        key = jax.random.key(config.train.seed)
        vision, language = Path(start.vision), Path(start.language)
        return load_parts(vision, language, config.model, mesh, key=key, vocab_multiple=multiple, convert=convert)
    return None


def _with_adapters(params: Params, config: Config, mesh: Mesh) -> Params:
    """The parameters, and fresh adapters of those matrices that get some."""
    shardings = flatten_dict(param_shardings(abstract_run_params(config), mesh), sep="/")
    adapters = {path: sharding for path, sharding in shardings.items() if is_adapter(path)}
    with use_mesh(mesh):
        key, _ = jax.random.split(jax.random.key(config.train.seed))
        fresh = jax.jit(lambda key: initial_adapters(config, key), out_shardings=adapters)(key)
    return unflatten_dict(flatten_dict(params, sep="/") | fresh, sep="/")


class _DtypeOf:
    """Casts a parameter as soon as it is read."""

    def __init__(self, config: Config) -> None:
        self._trained = trained_paths(config)
        self._master, self._frozen = config.compute.param_dtype, config.train.frozen_dtype

    def __call__(self, path: str, value: AnyArray) -> Mapping[str, AnyArray]:
        dtype = self._master if path in self._trained else self._frozen
        return {path: value if dtype is None else value.astype(np.dtype(dtype))}


def _require_same_model(directory: Path, saved: ModelConfig, wanted: ModelConfig) -> None:
    if differences := field_differences(saved, wanted, "model"):
        listed = "\n  ".join(differences)
        raise ConfigError(
            f"start.checkpoint {directory} is of another model; use its settings, or start.inherit=True to take them from "
            f"there:\n  {listed}"
        )


def _with_tokenizer_of(config: Config, directory: str | None) -> Config:
    if directory is None or not has_tokenizer(Path(directory)):
        return config
    return dataclasses.replace(config, processor=dataclasses.replace(config.processor, tokenizer=directory))


def _processor_of(directory: Path) -> ProcessorConfig:
    try:
        found = Processor.from_pretrained(directory)
    except FileNotFoundError as error:
        raise ConfigError(f"start.checkpoint {directory} has no tokenizer: copy tokenizer.json into it ({error})") from error
    sampling = found.video_sampling
    return ProcessorConfig(
        str(directory), found.style, found.media_style, found.crop, sampling.max_frames, frame_rule=sampling.rule
    )
