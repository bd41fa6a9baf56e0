"""The real programs on abstract arguments: shapes, dtypes and shardings instead of arrays."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from owl3_jax.attention.pages import Pages, PageTable
from owl3_jax.batch import AnyArray
from owl3_jax.config import ComputeConfig, Config, ModelConfig, Remat
from owl3_jax.flops import Work, forward_flops, image_cache_flops, train_flops
from owl3_jax.inference import buckets, paged_programs, programs
from owl3_jax.inference.caches import empty_images, empty_text
from owl3_jax.inference.choose import SamplingOps, SamplingRows
from owl3_jax.inference.jitted import Jitted
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.models.qwen2 import Images, PageSlots, Text, TextCache
from owl3_jax.params import Params
from owl3_jax.sharding import batch_sharding, devices_along, param_shardings
from owl3_jax.tpu.images import Rows
from owl3_jax.training.frozen import trained_patterns
from owl3_jax.training.step import abstract_state, example_batch, make_train_step

Name = Literal["train", "encode", "store", "prefill", "decode", "serve-step"]
Lower = Callable[[], jax.stages.Lowered]
Tree = TypeVar("Tree")

NEW_TOKENS = 256  # room for an answer
_TOKENS_PER_IMAGE, _OTHER_TOKENS = 5, 40  # of a prompt: placeholders as the released tokenizers write them, and a question


class Program(NamedTuple):
    """A program that can be compiled, and what is known about it beforehand."""

    name: Name
    what: str  # one execution in words
    lower: Lower
    flops: int  # of the model, over all devices
    computed: int  # including what is computed again to save memory
    held: Mapping[str, object]  # trees of abstract arrays that are in memory while it runs, by what they are
    rewrites: bool  # donated arguments are overwritten as a whole, not in a few places
    remat: Remat = "none"
    microbatches: int = 1
    rows: Rows | None = None  # of a train step
    looked_up: object = None  # among `held`, a table of which a few rows are read
    hyper_share: float = 0.0  # of the decoder's layers


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Size of a prompt, which is repeated in as many rows as the mesh needs."""

    images: int
    tokens: int

    @classmethod
    def with_images(cls, images: int) -> "Prompt":
        """A question about this many images."""
        return cls(images, _OTHER_TOKENS + _TOKENS_PER_IMAGE * images)

    def as_text(self, config: ModelConfig) -> "Prompt":
        """The same prompt for a model that has image tokens in the text, as LLaVA does."""
        return Prompt(0, _OTHER_TOKENS + config.vision.tokens_per_image * self.images)


def train(config: Config, mesh: Mesh) -> Program:
    """The train step of a run."""
    state, data = abstract_state(config, mesh), config.data
    rows = batch_sharding(mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), example_batch(config))
    work = Work.of_rows(config.model, data.rows, data.tokens_per_row, data.images_per_row)
    held = {"parameters": state.params, "optimizer": state.opt_state, "batch": batch}
    lower = lambda: make_train_step(config, mesh).lower(state, batch)
    flops = functools.partial(train_flops, config.model, work, trained_patterns(config))
    remat, parts = config.compute.remat, config.train.microbatches
    shape = f"{data.rows} rows x ({data.tokens_per_row} tokens, {data.images_per_row} images)"
    what = f"a step of {shape}, remat {remat}, {parts} {'microbatch' if parts == 1 else 'microbatches'}"
    return Program(
        "train",
        what,
        lower,
        flops(),
        flops(remat),
        held,
        True,
        remat,
        parts,
        Rows.of(config, mesh),
        hyper_share=_hyper_share(config.model),
    )


class Inference:
    """The programs that answer a prompt."""

    def __init__(self, config: Config, mesh: Mesh, prompt: Prompt) -> None:
        tokens = buckets.prefill_slots(prompt.tokens)
        self.prompt, self.runtime = prompt, _runtime(config, mesh, tokens + NEW_TOKENS)
        self.rows = self.runtime.rows(1)
        slots, blocks, few = buckets.text_slots(tokens), self.runtime.image_blocks(prompt.images), self.runtime.devices
        self.text: TextCache = self._cache(empty_text, slots, min(slots, few))
        self.images: Images = self._cache(empty_images, blocks, tuple(min(block, few) for block in blocks))

    def program(self, name: Name) -> Program:
        """One of `encode`, `store`, `prefill` and `decode`."""
        builds = {"encode": self._encode, "store": self._store, "prefill": self._prefill, "decode": self._decode}
        lower, what, flops = builds[name]()
        held = {"parameters": self.runtime.params, "text cache": self.text, "image cache": self.images.blocks}
        text = self.runtime.params["language_model"]
        table = text["embed_tokens"] if "lm_head" in text and name in ("prefill", "decode") else None
        hyper_share = _hyper_share(self.runtime.config)
        return Program(name, what, lower, flops, flops, held, False, looked_up=table, hyper_share=hyper_share)

    def _encode(self) -> tuple[Lower, str, int]:
        images, side = self.runtime.vision_batch_size, self.runtime.config.vision.image_size
        pixels = jax.ShapeDtypeStruct((images, side, side, 3), jnp.uint8)
        config = self.runtime.config
        flops = forward_flops(config, Work(0, images, 0, 0, 0)) - image_cache_flops(config, images)
        return self._lower(programs.encode, pixels), f"{images} images", flops

    def _store(self) -> tuple[Lower, str, int]:
        config, images = self.runtime.config, self.runtime.vision_batch_size
        shape = (images, config.vision.tokens_per_image, config.hidden_size)
        features = jax.ShapeDtypeStruct(shape, self.runtime.compute.dtype)
        places = programs.Places(*[_ids(images)] * 3)
        lower = self._lower(programs.store, self.images.blocks[0], features, places)
        return lower, f"{images} images", image_cache_flops(config, images)

    def _prefill(self) -> tuple[Lower, str, int]:
        length = min(buckets.PREFILL_CHUNK, buckets.prefill_slots(self.prompt.tokens))
        text = Text(*[_ids(self.rows, length)] * 3)
        arguments = (text, self.images, self.text, self._hidden_states())
        lower = self._lower(programs.prefill, *arguments, positions=length, rows=self.rows)
        return lower, f"the last {length} of {self._described()}", self._flops(length, outputs=0)

    def _decode(self) -> tuple[Lower, str, int]:
        samplings = [Sampling(max_new_tokens=NEW_TOKENS)] * self.rows
        limits = jnp.full(self.rows, NEW_TOKENS, jnp.int32)
        settings = jax.eval_shape(lambda: programs.Settings(SamplingRows.of(samplings), limits, jnp.zeros(2, jnp.int32)))
        ops, state = SamplingOps.of(samplings), self._decoding(settings, SamplingOps.of(samplings))
        lower = self._lower(programs.decode, state, self.images, self.text, settings, _ids(), ops=ops, rows=self.rows)
        return lower, f"one token after {self._described()}", self._flops(1, outputs=1)

    def _decoding(self, settings: programs.Settings, ops: SamplingOps) -> programs.Decoding:
        arguments = (self._hidden_states(), _ids(self.rows), _ids(self.rows, 0), settings)
        state: programs.Decoding = self.runtime.run_model(programs.begin.eval_shape, *arguments, ops=ops, capacity=NEW_TOKENS)
        return state

    def _hidden_states(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.rows, self.runtime.config.hidden_size), self.runtime.compute.dtype)

    def _lower(
        self,
        program: Jitted[..., object],
        *arguments: object,
        positions: int = 1,
        rows: int = 1,
        **options: object,
    ) -> Lower:
        return lambda: self.runtime.run_model(program.lower, *arguments, positions=positions, rows=rows, **options)

    # Any: a cache of text or images, which jax's type of a lowered program does not know.
    def _cache(self, empty: jax.stages.Wrapped, slots: int | tuple[int, ...], few: int | tuple[int, ...]) -> Any:
        """The abstract cache that `empty` makes, sharded as one of `few` slots is: that one compiles whatever the size."""
        config, compute = self.runtime.config, self.runtime.compute
        small, wanted = (self.runtime.run(empty.lower, config, compute, self.rows, number) for number in (few, slots))
        return _place(wanted.out_info, small.compile().output_shardings)

    def _flops(self, tokens: int, outputs: int) -> int:
        """Operations of the last `tokens` positions of the prompt, in all rows."""
        seen = tokens * self.prompt.images * self.runtime.config.vision.tokens_per_image
        pairs = tokens * self.prompt.tokens - tokens * (tokens - 1) // 2
        return self.rows * forward_flops(self.runtime.config, Work(tokens, 0, pairs, seen, outputs))

    def _described(self) -> str:
        rows = f", in {self.rows} rows" if self.rows > 1 else ""
        return f"{self.prompt.tokens} tokens with {self.prompt.images} images{rows}"


def serve_step(config: Config, mesh: Mesh, prompt: Prompt, rows: int) -> Program:
    """A step of a server: one token of each of `rows` answers to prompts of this size, no two of which show the same image."""
    runtime, tokens_per_page = _runtime(config, mesh, prompt.tokens + NEW_TOKENS), buckets.TPU_TEXT_PAGE
    each = -(-(prompt.tokens + NEW_TOKENS) // tokens_per_page)
    over = devices_along("page", mesh)
    pages = lambda number: -(-number // over) * over
    text = _pool(runtime, paged_programs.empty_text_pages, pages(rows * each), over, tokens_per_page)
    images = _pool(runtime, paged_programs.empty_image_pages, pages(rows * prompt.images), over)
    table = lambda width: PageTable(*[_ids(rows, width)] * 2)
    width = buckets.bucket(prompt.images, steps=1)
    slots = PageSlots(*[_ids(rows, 1)] * 2)
    described = paged_programs.Rows(table(buckets.bucket(each, steps=1)), slots, table(width), _ids(rows, width))
    arguments = (text, images, Text(*[_ids(rows, 1)] * 3), described)
    lower = lambda: runtime.run_paged(paged_programs.read.lower, *arguments, positions=1, rows=rows)
    seen = prompt.images * runtime.config.vision.tokens_per_image
    flops = rows * forward_flops(runtime.config, Work(1, 0, prompt.tokens, seen, 1))
    what = f"a token of {rows} answers, each after {prompt.tokens} tokens with {prompt.images} images of its own"
    held = {"parameters": runtime.params, "pages of text": text, "pages of images": images}
    weights = runtime.params["language_model"]
    table_of_words = weights["embed_tokens"] if "lm_head" in weights else None
    share = _hyper_share(runtime.config)
    return Program("serve-step", what, lower, flops, flops, held, False, looked_up=table_of_words, hyper_share=share)


def _pool(runtime: Runtime, empty: jax.stages.Wrapped, pages: int, few: int, *sizes: int) -> Pages:
    """The abstract pool that `empty` makes, sharded as one of `few` pages is: that one compiles whatever the size."""
    lowered = lambda number: runtime.run(empty.lower, runtime.config, runtime.compute, number, *sizes)
    pool: Pages = _place(lowered(pages).out_info, lowered(few).compile().output_shardings)
    return pool


def _runtime(config: Config, mesh: Mesh, positions: int) -> Runtime:
    """Abstract parameters in `compute.dtype` for at least so many positions, as `from_pretrained` puts them on a mesh."""
    # A prompt with image tokens in its text may need more positions; no parameter depends on their number.
    model = dataclasses.replace(config.model, max_position_embeddings=max(config.model.max_position_embeddings, positions))
    vocab_multiple, dtype = devices_along("vocab", mesh), config.compute.dtype
    compute = config.compute.without_quantization()
    compute = dataclasses.replace(compute, param_dtype=dtype, vocab_multiple=vocab_multiple, remat="none")
    return Runtime(model, compute, _abstract_params(model, compute, mesh), mesh)


def _hyper_share(config: ModelConfig) -> float:
    return len(config.hyper_layers) / config.num_hidden_layers


def _abstract_params(config: ModelConfig, compute: ComputeConfig, mesh: Mesh) -> Params:
    boxed = abstract_params(config, compute)
    params: Params = _place(nn.unbox(boxed), param_shardings(boxed, mesh))
    return params


def _place(tree: Tree, shardings: object) -> Tree:
    """The same abstract arrays with these shardings."""
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    placed: Tree = jax.tree.map(place, tree, shardings)
    return placed


def _ids(*shape: int) -> AnyArray:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
