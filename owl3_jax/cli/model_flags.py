"""The command line of subcommands that load a model, and the model that it asks for."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jax
import tyro
from jax.sharding import Mesh

import owl3_jax
from owl3_jax.config import Form, FrameRule, MeshConfig, parse_dtype
from owl3_jax.formats.bundled import find_checkpoint
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.host.command_line import exit_with_usage_error
from owl3_jax.host.compilation_cache import use_compilation_cache
from owl3_jax.inference.memory import explain_out_of_memory
from owl3_jax.inference.sampling import Sampling
from owl3_jax.sharding import make_mesh

SamplingName = Literal["greedy", "evaluation", "chat", "beam"]
Flags = TypeVar("Flags")

_ONE_DEVICE = MeshConfig(data=1)
_CROPS = tyro.conf.create_mutex_group(required=False)
_Switch = tyro.conf.FlagCreatePairsOff


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """Which model, where, and what it sees of images and videos."""

    checkpoint: Path  # official, converted or training run's directory; or "digits", which ships with the package
    adapter: Path | None = None  # PEFT directory with LoRA matrices, which are merged
    dtype: str = "auto"  # dtype to compute in: bfloat16, float32; auto: the checkpoint's own
    weight_dtype: Literal["int8"] | None = None  # matrices in int8
    cache_dtype: Literal["int8"] | None = None  # cached keys and values in int8
    mesh: MeshConfig = _ONE_DEVICE
    crop: Annotated[bool, _CROPS, _Switch] = False  # see images in crops too; by default as the checkpoint was trained
    no_crop: Annotated[bool, _CROPS, _Switch] = False  # see images whole
    max_frames: int | None = None  # most frames of a video; the checkpoint's own number by default
    frame_rule: FrameRule | None = None  # which frames: about one a second, or the middles of equal parts

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"--max-frames must be at least 1, got {self.max_frames}")
        parse_dtype(self.dtype)  # a wrong one is an error of the command line


@dataclasses.dataclass(frozen=True)
class SamplingFlags:
    """Where the sampling options that are not given come from."""

    # named settings; single options replace theirs. The repetition penalties of "chat" and "beam" are 7B-240728's alone
    sampling: SamplingName | None = None
    generation_config: Annotated[bool, _Switch] = False  # take the checkpoint's generation_config.json instead


def parse(
    flags_type: type[Flags], *, sampling: SamplingName, argv: Sequence[str] | None = None, prog: str | None = None
) -> tuple[Flags, Sampling]:
    """The subcommand's own flags, and how tokens are chosen.

    Args:
        flags_type: a dataclass; each field is a flag, its comment the help text, its docstring the subcommand's.
        sampling: the named settings that are the default.
        argv: the arguments, without the subcommand's name; those of the process if None.
        prog: the command's name in its help; the script's by default.

    A wrong command line prints what was wrong and exits with code 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        default = _default_sampling(argv, sampling)
        assemble = _assembler(flags_type, SamplingFlags(sampling), default)
        return tyro.cli(assemble, args=argv, description=flags_type.__doc__, prog=prog)
    except (ValueError, OSError) as error:
        exit_with_usage_error(error)


def _assembler(
    flags_type: type[Flags], default_source: SamplingFlags, default: Sampling
) -> Callable[..., tuple[Flags, Sampling]]:
    """What tyro builds the command line from."""

    def assemble(
        flags: Annotated[flags_type, tyro.conf.arg(name="")],
        source: Annotated[SamplingFlags, tyro.conf.arg(name="")] = default_source,
        options: Annotated[Sampling, tyro.conf.arg(name="")] = default,
    ) -> Any:  # Any: tyro looks for the value of a type variable here, and warns
        del source  # it gave the defaults of `options`
        return flags, options

    return assemble


def load_model(flags: ModelFlags) -> owl3_jax.Owl3Checkpoint:
    """The checkpoint on its devices, with a processor that follows the flags.

    Raises OutOfMemory, and what `from_pretrained` raises.
    """
    use_compilation_cache()
    with explain_out_of_memory("the weights need less with --dtype bfloat16, --weight-dtype int8, or a mesh of more devices"):
        owl = owl3_jax.from_pretrained(
            flags.checkpoint,
            mesh=mesh_of(flags.mesh),
            dtype=flags.dtype,
            weight_dtype=flags.weight_dtype,
            cache_dtype=flags.cache_dtype,
            adapter=flags.adapter,
        )
    video = owl.processor.video_sampling
    video = dataclasses.replace(video, max_frames=flags.max_frames or video.max_frames, rule=flags.frame_rule or video.rule)
    return owl.with_processor(video_sampling=video, crop=flags.crop or (owl.processor.crop and not flags.no_crop))


def mesh_of(config: MeshConfig) -> Mesh | None:
    """A mesh over the first devices, or over all where an axis takes what is left; None for a single device."""
    if config == _ONE_DEVICE:
        return None
    devices = None if -1 in config.axes else jax.devices()[: config.slices * math.prod(config.axes)]
    return make_mesh(config, devices)


def _default_sampling(argv: Sequence[str], name: SamplingName) -> Sampling:
    """The settings that `--sampling` or `--generation-config` names: the defaults of all options, so read before them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, nargs="?")
    parser.add_argument("--sampling", nargs="?")
    parser.add_argument("--generation-config", "--generation_config", action="store_true")
    given = parser.parse_known_args(argv)[0]
    if not given.generation_config or not given.checkpoint:
        return Sampling.named(given.sampling or name, _form(given.checkpoint))
    if given.sampling:
        raise ValueError("give either --sampling or --generation-config: both set all options")
    return Sampling.from_generation_config(given.checkpoint)


def _form(checkpoint: Path | None) -> Form | None:
    """The form of a checkpoint's hyper attention; None where it cannot be read, of which loading says more."""
    try:
        return load_config(find_checkpoint(checkpoint)).form if checkpoint else None
    except (ValueError, OSError):
        return None
