"""A released checkpoint as one object: `owl3_jax.from_pretrained`."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from owl3_jax.config import ComputeConfig, ConfigError, DType, ModelConfig, parse_dtype
from owl3_jax.convert.load import load_params
from owl3_jax.formats.bundled import find_checkpoint
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.inference.engine import Engine, forward
from owl3_jax.inference.feature_cache import FeatureCache
from owl3_jax.inference.quantize import weight_quantizer
from owl3_jax.inference.runtime import Runtime, usual_vision_batch
from owl3_jax.inference.sampling import Sampling, Value
from owl3_jax.inference.session import Session
from owl3_jax.models.qwen2 import unstack_layers
from owl3_jax.params import Params
from owl3_jax.processing.processor import Prepared, Processor, Sample
from owl3_jax.sharding import devices_along

FEATURE_CACHE_BYTES = 2**29  # 200 images of the 1B in float32, 100 of the 7B in bfloat16


def from_pretrained(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: object = None,
    weight_dtype: Literal["int8"] | None = None,
    cache_dtype: Literal["int8"] | None = None,
    vision_batch_size: int | None = None,
    feature_cache_bytes: int = FEATURE_CACHE_BYTES,
    feature_cache_folder: Path | None = None,
    adapter: str | Path | None = None,
) -> "Owl3Checkpoint":
    """Loads a checkpoint, ready to answer.

    Args:
        path: a Hugging Face directory, a converted one, a training run's workdir, or the name of a checkpoint that ships with
            the package (`owl3_jax.formats.bundled`).
        mesh: where to put the parameters, sharded by the rules (`owl3_jax.sharding.make_mesh`); one device by default.
        dtype: of parameters and activations, by any of its common names (`owl3_jax.config.parse_dtype`); the checkpoint's own
            by default.
        weight_dtype: "int8" keeps matrices in a quarter of float32's memory, half of bfloat16's; docs/inference.md shows the
            cost.
        cache_dtype: "int8" does so with the keys and values of text and images.
        vision_batch_size: images that the vision tower takes at once; for each device 2 on a CPU, 8 elsewhere.
        feature_cache_bytes: features of images that were seen before, kept across calls; 0 turns this off.
        feature_cache_folder: where features go that outgrow this; they are forgotten by default.
        adapter: a PEFT directory with LoRA matrices of this model, which are merged.

    Raises:
        CheckpointError: the directory does not hold a model, or not all of it; it lists everything that is wrong.
        ValueError: its tokenizer or processor.json is damaged, or does not fit the model.
        ConfigError: an unsupported `dtype`, `weight_dtype` or `cache_dtype`.
    """
    wanted = parse_dtype(dtype)
    on_cpu = jax.default_backend() == "cpu"
    compute = ComputeConfig(
        scan_layers=not on_cpu,
        vocab_multiple=devices_along("vocab", mesh) if mesh else 1,
        weight_dtype=weight_dtype,
        cache_dtype=cache_dtype,
    )
    directory = find_checkpoint(path)
    config, load_processor = load_config(directory), _processor_loader(directory)
    convert = weight_quantizer(config) if weight_dtype else None
    params = load_params(
        directory,
        config,
        mesh,
        dtype=wanted,
        vocab_multiple=compute.vocab_multiple,
        convert=convert,
        adapter=Path(adapter) if adapter is not None else None,
    )
    computed = wanted or _dtype_of(params)
    # Written-out layers read their weights in place, which doubles the speed of decoding on a CPU.
    params = jax.tree.map(jax.numpy.asarray, unstack_layers(params) if on_cpu else params)
    runtime = Runtime(
        config,
        dataclasses.replace(compute, dtype=computed, param_dtype=computed),
        params,
        mesh,
        vision_batch_size or usual_vision_batch(mesh),
        FeatureCache(feature_cache_bytes, feature_cache_folder),
    )
    return Owl3Checkpoint(runtime, load_processor)


@dataclasses.dataclass(frozen=True)
class Owl3Checkpoint:
    """A model with its processor. `engine` answers batches, `session` conversations."""

    runtime: Runtime
    load_processor: Callable[[], Processor]  # raises FileNotFoundError without a tokenizer: there are still logits

    @functools.cached_property
    def processor(self) -> Processor:
        """The checkpoint's processor. Raises FileNotFoundError when the directory has no tokenizer."""
        return self.load_processor()

    # Any: fields of Processor have different types.
    def with_processor(self, **changes: Any) -> "Owl3Checkpoint":
        """The same model with some fields of its processor replaced, e.g. `crop=False`."""
        return dataclasses.replace(self, load_processor=lambda: dataclasses.replace(self.processor, **changes))

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return self.runtime.config

    @property
    def params(self) -> Params:
        """The parameters on their devices, as `Owl3(config, runtime.compute)` takes them."""
        return self.runtime.params

    @functools.cached_property
    def engine(self) -> Engine:
        """Answers many prompts together."""
        return Engine(self.runtime, self.processor.tokenizer)

    def session(self) -> Session:
        """A new conversation that keeps its caches from turn to turn."""
        return Session(self.runtime, self.processor)

    def logits(self, sample: Sample | Prepared) -> Float32[np.ndarray, "T V"]:
        """Logits of the token after each position of a sample. Its images go through at once.

        Raises ValueError when the model has fewer positions.
        """
        return forward(self.runtime, sample)

    def generate(
        self,
        messages: object,
        images: object = None,
        videos: object = None,
        *,
        crop: bool | None = None,
        sampling: Sampling | None = None,
        **options: Value,
    ) -> str | list[str]:
        """The answer to one prompt, stripped; a list of them when `n` is above 1.

        Args:
            messages, images, videos, crop: as `Processor.__call__` takes them.
            sampling: how to choose tokens; greedy by default.
            options: fields of `Sampling` by name, e.g. `max_new_tokens=100, temperature=0.7`.

        Raises:
            ConfigError: an unknown or impossible option; or `logprobs`, which only the answers of `engine.generate` have.
            ValueError: malformed messages, media that cannot be read, a prompt that is too long.
        """
        chosen = (sampling or Sampling()).with_options(**options)
        if chosen.logprobs:
            raise ConfigError(
                "generate gives texts without log-probabilities; the answers of "
                "owl.engine.generate([owl.processor.prepare(messages, images, videos)], sampling) have them"
            )
        prompt = self.processor.prepare(messages, images, videos, crop)
        texts = [answer.text.strip() for answer in self.engine.generate([prompt], chosen)[0]]
        return texts if chosen.n > 1 else texts[0]

    def stream(
        self,
        messages: object,
        images: object = None,
        videos: object = None,
        *,
        crop: bool | None = None,
        sampling: Sampling | None = None,
        **options: Value,
    ) -> Iterator[str]:
        """As `generate`, in pieces as they are decoded; only one answer can be streamed."""
        chosen = (sampling or Sampling()).with_options(**options)
        return self.engine.stream(self.processor.prepare(messages, images, videos, crop), chosen)


def _processor_loader(directory: Path) -> Callable[[], Processor]:
    """Loads the processor now, so that one that does not fit the model is an error before the weights are read.

    What it returns raises FileNotFoundError when there is no tokenizer: logits need none.
    """
    try:
        processor = Processor.from_pretrained(directory)
    except FileNotFoundError:
        return functools.partial(Processor.from_pretrained, directory)
    return lambda: processor


def _dtype_of(params: Params) -> DType:
    """The checkpoint's own dtype if the model can compute in it, else float32."""
    name = params["language_model"]["norm"]["scale"].dtype.name  # never quantised
    return name if name in get_args(DType) else "float32"
