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
from jaxtyping import Shaped

from owl3_jax.batch import AnyArray
from owl3_jax.config import Config, ConfigError, ModelConfig, ProcessorConfig, field_differences
from owl3_jax.convert.load import load_params
from owl3_jax.convert.parts import load_parts
from owl3_jax.convert.peft import open_peft
from owl3_jax.convert.stored import open_stored
from owl3_jax.formats.bundled import find_checkpoint
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.nn.linear import LORA, is_adapter
from owl3_jax.params import Params
from owl3_jax.processing.processor import Processor
from owl3_jax.processing.tokenizer_files import has_tokenizer
from owl3_jax.sharding import param_shardings, use_mesh
from owl3_jax.training.frozen import DTypes, holds_all, saved_paths, split_params, trained_paths
from owl3_jax.training.lora import KERNEL, abstract_run_params, initial_adapters
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
    adapter = str(Path(start.adapter).absolute()) if start.adapter else None
    config = dataclasses.replace(config, start=dataclasses.replace(start, checkpoint=str(directory), adapter=adapter))
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


def base_params(config: Config, mesh: Mesh) -> Params:
    """The parameters that a run's checkpoints do not hold, read from where the run has started; often none."""
    if holds_all(config):
        return {}
    params = _read_params(config, mesh)
    return {} if params is None else split_params(params, saved_paths(config))[1]


def stored_dtypes(workdir: Path, step: int) -> DTypes:
    """The dtype of each parameter in a checkpoint of a run. Raises CheckpointError when that cannot be read."""
    return {path: parameter.dtype for path, parameter in open_stored(workdir, step=step).parameters.items()}


def _read_params(config: Config, mesh: Mesh) -> Params | None:
    start, convert, multiple = config.start, _DtypeOf(config), config.compute.vocab_multiple
    if start.checkpoint is not None:
        directory = find_checkpoint(start.checkpoint)
        merged = Path(start.adapter) if start.adapter and not config.lora.rank else None
        return load_params(directory, config.model, mesh, vocab_multiple=multiple, convert=convert, adapter=merged)
    if start.vision is not None and start.language is not None:
        key = jax.random.key(config.train.seed)
        vision, language = Path(start.vision), Path(start.language)
        return load_parts(vision, language, config.model, mesh, key=key, vocab_multiple=multiple, convert=convert)
    return None


def _with_adapters(params: Params, config: Config, mesh: Mesh) -> Params:
    """The parameters, and adapters of those matrices that get some: fresh ones, or those of `start.adapter`."""
    shardings = flatten_dict(param_shardings(abstract_run_params(config), mesh), sep="/")
    adapters = {path: sharding for path, sharding in shardings.items() if is_adapter(path)}
    with use_mesh(mesh):
        key, _ = jax.random.split(jax.random.key(config.train.seed))
        fresh = jax.jit(lambda key: initial_adapters(config, key), out_shardings=adapters)(key)
    given = _given_adapters(config, {path: x.shape for path, x in fresh.items()})
    placed = {path: jax.make_array_from_callback(x.shape, adapters[path], x.__getitem__) for path, x in given.items()}
    return unflatten_dict(flatten_dict(params, sep="/") | fresh | placed, sep="/")


def _given_adapters(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """What `start.adapter` has, by path, in the shapes of the run's adapters.

    Raises ConfigError when the run has no adapters of its matrices, or others of another rank.
    """
    if config.start.adapter is None or not config.lora.rank:
        return {}
    found = {}
    problems = []
    for path, adapter in open_peft(Path(config.start.adapter), config.model).items():
        place = path.removesuffix(KERNEL)
        if f"{place}/lora_a" not in shapes:
            problems.append(f"lora.target does not match {place}")
            continue
        try:
            factors = adapter.factors()
        except ValueError as error:
            problems.append(str(error))
            continue
        if (rank := factors.a.shape[-1]) != config.lora.rank:
            problems.append(f"{place}: rank {rank}, but lora.rank is {config.lora.rank}")
            continue
        for name, value in zip(LORA, factors, strict=False):
            found[f"{place}/{name}"] = value.reshape(shapes[f"{place}/{name}"])
    if problems:
        raise ConfigError(f"start.adapter {config.start.adapter} does not fit: " + "; ".join(problems))
    return {path: value.astype(config.compute.param_dtype) for path, value in found.items()}


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
