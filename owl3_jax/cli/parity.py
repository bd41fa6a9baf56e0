"""Checks that this model computes the same numbers as another implementation.

Against recorded cases (a .npz file, described in `owl3_jax.convert.cases`):

    owl3 parity --checkpoint tests/golden/tiny-241101 --cases tests/golden/tiny-241101.npz

    case    tensor              difference    scale
    case3   image_embeds           3.8e-06     8.84  ok
    case3   logits                 2.9e-06     4.23  ok  KL 1.7e-13, top ten share 10.0
    case3   greedy                                   ok  12 of 12 tokens
    11 of 11 agree within 0.0001

Against the official PyTorch model, on the inputs of such a file or on images and prompts of your own. transformers loads it
with the code stored with its weights, so this runs that code; it needs torch and the versions that the code requires:

    owl3 parity --checkpoint DIR --cases FILE.npz --against-official DIR
    owl3 parity --checkpoint DIR --images a.jpg b.jpg --prompts "What differs?" --against-official DIR

Every prompt gets all images, placed before its text if it has no `<|image|>`. `--save-cases FILE.npz` saves the official
model's outputs, for later comparisons without torch.

Logits are also compared as distributions of the next token: KL divergence in nats and how many of the ten likeliest
tokens are shared, both averaged over positions. Exits with 1 when a difference exceeds `--atol` or a greedy token differs.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Int

from owl3_jax.config import ComputeConfig, DType, Form, ModelConfig
from owl3_jax.convert.cases import Case, Outputs, check_cases, pad_cases, read_cases, write_cases
from owl3_jax.convert.comparison import Row, compare
from owl3_jax.convert.load import load_params
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.inference import buckets, programs
from owl3_jax.inference.batched import batched
from owl3_jax.inference.choose import SamplingOps, SamplingRows
from owl3_jax.inference.context import Context, NewImages
from owl3_jax.inference.prompt_sizes import PromptSize, choose_batch_sizes, smallest_fit
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.models.owl3 import Owl3
from owl3_jax.models.siglip import normalize_pixels
from owl3_jax.processing.processor import Processor

_FORWARD_SHAPES = 2  # sizes that cases are padded to
_GREEDY_ROWS = 8  # cases that are continued together


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compares this model with another implementation."""

    checkpoint: Path  # official, converted or training run's directory
    cases: Path | None = None  # .npz file of prompts and images with the expected outputs
    prompts: tuple[str, ...] = ()  # user messages, instead of cases
    images: tuple[Path, ...] = ()  # images for every prompt
    crop: bool = False  # see images in crops too
    against_official: Path | None = None  # a directory with official weights and code, instead of what the cases expect
    save_cases: Path | None = None  # where to write the official model's outputs
    atol: float = 1e-4  # largest absolute difference that agrees
    dtype: DType = "float32"  # dtype to compute in
    max_new_tokens: int = 12  # tokens of greedy decoding with --against-official

    def __post_init__(self) -> None:
        if bool(self.cases) == bool(self.prompts):
            raise ValueError("give either --cases FILE.npz or --prompts TEXT..., with --images to go with the prompts")
        if self.images and not self.prompts:
            raise ValueError("--images go with --prompts; cases have their own")
        if (self.prompts or self.save_cases) and not self.against_official:
            raise ValueError("only --cases has outputs to compare with; --prompts and --save-cases need --against-official DIR")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table and exits with 1 when something differs."""
    flags = tyro.cli(Flags, args=argv, prog="owl3 parity")
    try:
        rows = list(check(flags))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    failed = sum(not row.agrees for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} agree within {flags.atol:g}")
    sys.exit(1 if failed else 0)


def check(flags: Flags) -> Iterator[Row]:
    """Compares case by case, printing each row as soon as it is known."""
    config = load_config(flags.checkpoint)
    cases = read_cases(flags.cases, config.vision.image_size) if flags.cases else make_cases(flags)
    check_cases(cases, config)
    ours = OurModel(flags.checkpoint, config, flags.dtype)
    if flags.against_official:
        official = OfficialModel(flags.against_official, config.form, flags.dtype)
        cases = [case._replace(expected=official.run(case, flags.max_new_tokens)) for case in cases]
    if flags.save_cases:
        write_cases(flags.save_cases, cases)
    print(f"{'case':<8}{'tensor':<18}{'difference':>12}{'scale':>9}")
    for case, found in ours.run(cases):
        for row in compare(case.name, case.expected, found, flags.atol):
            mark = "ok" if row.agrees else "DIFFERS"
            print(f"{row.case:<8}{row.tensor:<18}{row.difference:>12}{row.scale:>9}  {mark}  {row.note}".rstrip(), flush=True)
            yield row


def make_cases(flags: Flags) -> list[Case]:
    """A case with all images for each prompt, as the checkpoint's own processor makes it; nothing is expected of it yet."""
    processor, cases = Processor.from_pretrained(flags.checkpoint), []
    for number, prompt in enumerate(flags.prompts, start=1):
        sample = processor(prompt, flags.images, crop=flags.crop)
        pixels = np.array(normalize_pixels(jnp.asarray(sample.pixel_values)))
        cases.append(Case(f"prompt{number}", sample.input_ids, sample.image_starts, pixels, {}))
    return cases


class OurModel:
    """This project's model. Cases share programs, each of which is compiled once: on small models that is most of the time."""

    def __init__(self, checkpoint: Path, config: ModelConfig, dtype: DType) -> None:
        jax.config.update("jax_default_matmul_precision", "highest")  # accelerators would round float32 products
        compute = ComputeConfig(dtype=dtype)
        self._runtime = Runtime(config, compute, jax.tree.map(jnp.asarray, load_params(checkpoint, config)))
        model = Owl3(config, compute, collect_hidden_states=True)
        self._apply = jax.jit(lambda params, batch: model.apply({"params": params}, batch))

    def run(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Outputs]]:
        """Each case with all that it can expect."""
        wanted = [len(case.expected.get("greedy", ())) for case in cases]
        greedy = [tokens for group in batched(cases, _GREEDY_ROWS) for tokens in self._greedy(group, max(wanted))]
        tokens_per_image = self._runtime.config.vision.tokens_per_image
        sizes = [_size(case) for case in cases]
        batches = choose_batch_sizes(sizes, shapes=_FORWARD_SHAPES, images_per_batch=1, tokens_per_image=tokens_per_image)
        for case, size, count, tokens in zip(cases, sizes, wanted, greedy, strict=True):
            found = self._forward(case, smallest_fit(size, batches).row)
            yield case, found | ({"greedy": tokens[:count]} if count else {})

    def _forward(self, case: Case, row: PromptSize) -> Outputs:
        """All that one pass gives, from a row of this size."""
        T, I = _size(case)
        outputs = jax.device_get(self._apply(self._runtime.params, pad_cases([case], tokens=row.tokens, images=row.images)))
        found = {"image_embeds": outputs.image_features[0, :I], "hidden_states": outputs.hidden_states[:, 0, :T]}
        return {name: value.astype(np.float32) for name, value in found.items()} | {"logits": outputs.logits[0, :T]}

    def _greedy(self, cases: Sequence[Case], max_new_tokens: int) -> Int[np.ndarray, "B A"]:
        """The likeliest continuations, which no stop id ends, by the programs that `Engine` runs; this needs no tokenizer."""
        if not max_new_tokens:
            return np.zeros((len(cases), 0), np.int32)
        row = functools.reduce(PromptSize.union, map(_size, cases))
        slots = buckets.prefill_slots(row.tokens)
        context = Context.empty(self._runtime, len(cases), images=row.images, tokens=slots, new_tokens=max_new_tokens)
        context.add_images([NewImages(i, case.image_starts.tolist(), case.pixel_values) for i, case in enumerate(cases)])
        context.add_text([case.input_ids.tolist() for case in cases])
        sampling = [Sampling(max_new_tokens=max_new_tokens)] * len(cases)
        limits, no_stop_ids = jnp.full(len(cases), max_new_tokens, jnp.int32), jnp.zeros(0, jnp.int32)
        settings, ops = programs.Settings(SamplingRows.of(sampling), limits, no_stop_ids), SamplingOps.of(sampling)
        state = context.begin(settings, ops, capacity=max_new_tokens)
        return np.asarray(context.decode(state, settings, ops, max_new_tokens).answer)


def _size(case: Case) -> PromptSize:
    return PromptSize(len(case.input_ids), len(case.image_starts))


class OfficialModel:
    """The official PyTorch model, on exactly the inputs that ours gets."""

    def __init__(self, directory: Path, form: Form, dtype: DType) -> None:
        import torch
        from transformers import AutoModel

        self._torch, self._form = torch, form
        options = {"torch_dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}  # attention as its authors run it
        self._model = AutoModel.from_pretrained(directory, trust_remote_code=True, **options).eval()

    def run(self, case: Case, max_new_tokens: int) -> Outputs:
        """The official model's outputs, as a case expects them; greedy decoding may stop early."""
        torch, to_numpy = self._torch, lambda tensor: tensor.float().numpy()
        # Any: torch is not imported here, and its tensors and lists of them pass side by side.
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(case.input_ids.astype(np.int64))[None]}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])  # otherwise the id 0, which is "!", is masked
        inputs["media_offset"] = self._media_offset(case)
        with torch.no_grad():
            if len(case.image_starts):
                inputs["image_embeds"] = self._model.forward_image(torch.from_numpy(case.pixel_values.transpose(0, 3, 1, 2)))
            outputs = self._model.language_model(**inputs, output_hidden_states=True)
            answer = self._model.language_model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0
            )
        found = {name: to_numpy(inputs[name]) for name in ("image_embeds",) if name in inputs}
        found["hidden_states"] = np.stack([to_numpy(state[0]) for state in outputs.hidden_states])
        return found | {"logits": to_numpy(outputs.logits[0]), "greedy": answer[0, len(case.input_ids) :].numpy()}

    def _media_offset(self, case: Case) -> Any:  # Any: a tensor of torch, or a list of them
        """Positions of the images: their starts (joint form), or for each position [0, images that start before it]."""
        torch, starts = self._torch, case.image_starts.astype(np.int64)
        if self._form == "joint":
            return [torch.from_numpy(starts)]
        before = (np.arange(len(case.input_ids))[:, None] > starts).sum(axis=1)
        counts = before if len(starts) else np.full(len(case.input_ids), -1_000_000)
        return torch.from_numpy(np.stack([np.zeros_like(counts), counts], axis=1))[None]
