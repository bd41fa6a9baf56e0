"""Every setting of a run, as frozen dataclasses that check themselves.

`ModelConfig` is the architecture (what a checkpoint fixes), `ComputeConfig` how it is computed
(dtypes, memory), `ProcessorConfig` what the model reads; the rest describes a training or evaluation
run. A file in `configs/` builds one `Config`; `owl3_jax.host.command_line` overrides single fields of it.
"""

import dataclasses
import math
import re
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast, get_args, runtime_checkable

Form = Literal["gated", "static", "joint"]
Remat = Literal["none", "dots", "minimal", "full", "offload"]
DType = Literal["float32", "bfloat16"]
AttentionBackend = Literal["auto", "xla", "pallas"]
ChatStyle = Literal["chatml", "plain"]
MediaStyle = Literal["words", "markers"]
FrameRule = Literal["per_second", "middle"]
TooLong = Literal["raise", "skip", "truncate"]
OptimizerName = Literal["adamw", "adafactor", "lion", "muon", "sgd"]
Schedule = Literal["cosine", "linear", "wsd", "constant"]
BadSteps = Literal["stop", "skip", "rewind"]
TrackerName = Literal["wandb", "mlflow"]

Json = Any  # Any: a JSON value, which is checked where it is read
JsonTree = dict[str, Json]


_DTYPES: dict[str, DType] = {
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
    **dict.fromkeys(("float32", "fp32", "f32", "float"), "float32"),
}


class ConfigError(ValueError):
    """A setting that cannot work, with the field's name and what would."""


def parse_dtype(value: object) -> DType | None:
    """The dtype that `value` means, or None for None and `"auto"`: the checkpoint's own.

    Args:
        value: a name in any of the common spellings (bfloat16, bf16; float32, fp32, f32, float), or a dtype or scalar type
            of numpy, JAX or PyTorch.

    Raises ConfigError for any other dtype, float16 among them.
    """
    if value is None:
        return None
    # Scalar types have a __name__; dtypes have none, but print as their name (PyTorch's with the package before it).
    text = value if isinstance(value, str) else str(getattr(value, "__name__", value))
    name = text.strip().lower().removeprefix("torch.")
    if name == "auto":
        return None
    if name not in _DTYPES:
        raise ConfigError(
            f"dtype {text[:40]!r} is not available; it must be bfloat16, float32 or auto. For 16 bits take bfloat16: it has "
            "the range of float32, while float16 ends at 65504"
        )
    return _DTYPES[name]


@runtime_checkable
class _Dataclass(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]


_T = TypeVar("_T")  # a dataclass


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{type(config).__name__}.{name} must be positive, got {value}")


def _is_regex(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """SigLIP (names as in config.json's `vision_config`)."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27  # as in the checkpoint; the last block is never used
    num_attention_heads: int = 16
    image_size: int = 384  # side of the squared image, pixels
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _require_positive(self, "hidden_size", "intermediate_size", "num_attention_heads", "patch_size")
        _require(self.num_hidden_layers >= 2, "vision.num_hidden_layers must be at least 2: the penultimate block is used")
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"vision.hidden_size {self.hidden_size} is not a multiple of vision.num_attention_heads {self.num_attention_heads}",
        )
        _require(self.image_size >= self.patch_size, "vision.image_size must hold at least one patch")

    @property
    def num_used_layers(self) -> int:
        """Blocks that are computed: the model takes the penultimate block's output."""
        return self.num_hidden_layers - 1

    @property
    def grid(self) -> int:
        """Patches along one side; pixels beyond the last whole patch are dropped."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_image(self) -> int:
        """L of the glossary."""
        return self.grid**2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture (names as in config.json; the form of hyper attention is ours to name)."""

    form: Form = "gated"
    vocab_size: int = 151851
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    hyper_layers: tuple[int, ...] = (1, 9, 17, 25)  # counted from ONE, as in config.json
    tie_word_embeddings: bool = False
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02  # standard deviation of the token embedding at initialisation
    vision: VisionConfig = VisionConfig()

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        _require_positive(self, "num_key_value_heads", "rope_theta", "max_position_embeddings", "initializer_range")
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}",
        )
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads {self.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {self.num_key_value_heads}",
        )
        _require(self.head_dim % 2 == 0, f"head size {self.head_dim} must be even for RoPE")
        layers = self.hyper_layers
        _require(len(layers) > 0, "hyper_layers is empty: without hyper attention no image is ever seen")
        _require(
            list(layers) == sorted(set(layers)) and layers[0] >= 1 and layers[-1] <= self.num_hidden_layers,
            f"hyper_layers {layers} must be increasing numbers from 1 to num_hidden_layers ({self.num_hidden_layers})",
        )
        _require(self.form in ("gated", "static", "joint"), f"form must be gated, static or joint, got {self.form!r}")

    @property
    def head_dim(self) -> int:
        """D of the glossary."""
        return self.hidden_size // self.num_attention_heads

    @property
    def hyper_layer_indices(self) -> tuple[int, ...]:
        """`hyper_layers` counted from zero."""
        return tuple(layer - 1 for layer in self.hyper_layers)

    @property
    def image_is_seen_by_its_own_token(self) -> bool:
        """Whether the placeholder's first token sees its image (`>=`) or only the later ones (`>`)."""
        return self.form == "joint"

    @property
    def image_rope_offset(self) -> int:
        """RoPE position of an image's keys, relative to the start of its placeholder."""
        return 0 if self.form == "joint" else 1


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the model is computed; changes no checkpoint."""

    dtype: DType = "bfloat16"  # activations
    param_dtype: DType = "float32"
    remat: Remat = "none"  # what a block keeps for its backward pass (`owl3_jax.nn.remat`)
    vocab_multiple: int = 1  # embedding and head get rows of zeros up to a multiple of this, for a mesh axis to divide them
    scan_layers: bool = True  # the decoder as one scan over stacked parameters, or written out
    attention: AttentionBackend = "auto"  # auto: the splash kernel on TPU, cuDNN for images on GPU; pallas: splash anywhere
    images_per_chunk: int = 16  # images whose attention scores are in memory at the same time
    text_per_chunk: int | None = None  # the same for tokens of text in pages; None: as many as those images have
    weight_dtype: Literal["int8"] | None = None  # of matrices in inference (`owl3_jax.inference.quantize`); None: param_dtype
    cache_dtype: Literal["int8"] | None = None  # of keys and values that inference keeps; None: dtype
    quantization: Literal["int8"] | None = None  # of the decoder's products in training (`owl3_jax.nn.int8_products`)

    def __post_init__(self) -> None:
        _require_positive(self, "images_per_chunk", "vocab_multiple")
        if self.text_per_chunk is not None:
            _require_positive(self, "text_per_chunk")
        for name in ("weight_dtype", "cache_dtype", "quantization"):
            value = getattr(self, name)
            _require(value in (None, "int8"), f"compute.{name} must be int8 or None, got {value!r}")
        inference = [name for name in ("weight_dtype", "cache_dtype") if getattr(self, name) is not None]
        _require(
            self.quantization is None or not inference,
            f"compute.quantization is for training, and compute.{' and compute.'.join(inference)} for inference: set one side "
            "to None",
        )

    def without_quantization(self) -> "ComputeConfig":
        """For all that is not training: what loads a checkpoint later computes it in `dtype` too."""
        return dataclasses.replace(self, quantization=None)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis, within a slice; one of them may be -1: all that are left."""

    data: int = -1  # rows
    fsdp: int = 1  # rows and parameters
    tensor: int = 1  # heads, MLP and vocabulary; it must divide the key/value heads
    context: int = 1  # text positions and images of a row
    slices: int = 1  # TPU slices, joined by a slower network: they share the data axis, so only gradients cross it
    shard_optimizer: bool = False  # its state over the devices that hold copies of a parameter (ZeRO-1)

    def __post_init__(self) -> None:
        _require(sum(size == -1 for size in self.axes) <= 1, f"at most one mesh axis can be -1, got {self}")
        _require(all(size == -1 or size > 0 for size in self.axes), f"mesh axes must be positive or -1, got {self}")
        _require_positive(self, "slices")

    @property
    def axes(self) -> tuple[int, int, int, int]:
        """Devices along data, fsdp, tensor and context, within a slice."""
        return self.data, self.fsdp, self.tensor, self.context


@dataclasses.dataclass(frozen=True)
class ProcessorConfig:
    """How conversations become samples for the model that is trained; processor.json and tokenizer.json record it.

    The side of an image is the model's, `model.vision.image_size`.
    """

    tokenizer: str = "digits"  # the embedded one; or the path of a tokenizer.json, or of a directory with tokenizer files
    style: ChatStyle = "chatml"  # plain: no roles and no system turn
    media_style: MediaStyle = "words"  # what crops and videos become in the text
    crop: bool = False  # whether images are seen in crops too
    max_frames: int = 16  # most frames of a video
    frame_rule: FrameRule = "per_second"  # which frames of a video: about one a second, or the middles of equal parts

    def __post_init__(self) -> None:
        _require(bool(self.tokenizer), "processor.tokenizer is empty; it must be digits, or the path of a tokenizer")
        _require_positive(self, "max_frames")
        for name, kind in (("style", ChatStyle), ("media_style", MediaStyle), ("frame_rule", FrameRule)):
            value, allowed = getattr(self, name), get_args(kind)
            _require(value in allowed, f"processor.{name} is {value!r}; it must be one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True)
class ColumnsConfig:
    """Names in the records of a source; those that are None are found among the usual ones."""

    messages: str | None = None  # messages, conversations
    role: str | None = None  # of a message: role, from
    content: str | None = None  # of a message: content, value
    images: str | None = None  # images, image
    videos: str | None = None  # videos, video
    system: str | None = None  # system: the system's text, beside the messages
    system_role: str | None = None  # system
    user_role: str | None = None  # user, human
    assistant_role: str | None = None  # assistant, gpt
    image_tag: str = "<image>"  # what stands for an image in the user's text; <|image|> does everywhere
    video_tag: str = "<video>"

    def __post_init__(self) -> None:
        _require(bool(self.image_tag) and bool(self.video_tag), "columns.image_tag and columns.video_tag must not be empty")
        _require(self.image_tag != self.video_tag, f"columns.image_tag and columns.video_tag are both {self.image_tag!r}")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where records come from, and how they are read; on the command line PATH or PATH:WEIGHT."""

    path: str  # a data set by name (digits, synthetic), or a file, folder or pattern, here or where fsspec reads
    weight: float | None = None  # its share of all samples, relative to the others'; by default by its number of records
    split: str = "train"  # of sources that have several
    media_root: str = ""  # where relative paths of media start; by default the folder of the file
    columns: ColumnsConfig = ColumnsConfig()
    system: str | None = None  # the system's text of conversations that have none
    crop: float | None = None  # share of its samples whose images are seen in crops too; None: as processor.crop says
    max_frames: int | None = None  # most frames of a video; None: processor.max_frames
    loss_weight: float = 1.0  # of its tokens

    def __post_init__(self) -> None:
        _require(bool(self.path), "data.sources: a path is empty")
        _require(
            self.weight is None or 0 < self.weight < math.inf,
            f"data.sources: the weight of {self.path} must be positive and finite",
        )
        _require(self.crop is None or 0 <= self.crop <= 1, f"data.sources: crop of {self.path} must be a share from 0 to 1")
        _require(self.max_frames is None or self.max_frames > 0, f"data.sources: max_frames of {self.path} must be positive")
        _require(0 <= self.loss_weight < math.inf, f"data.sources: loss_weight of {self.path} must be finite and not negative")

    @property
    def label(self) -> str:
        """Its name in messages and metrics."""
        return self.path if self.split == "train" else f"{self.path} ({self.split})"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """One batch: `rows` x (`tokens_per_row` tokens, `images_per_row` images)."""

    sources: tuple[SourceConfig, ...] = (SourceConfig("digits"),)  # their samples are mixed
    data_dir: str = "data"  # where named data sets are prepared
    rows: int = 16  # rows of a batch, over all hosts
    tokens_per_row: int = 512
    images_per_row: int = 12
    pack: bool = True  # several samples per row; otherwise one, padded
    pack_ahead: int = 8  # samples among which a row chooses those that fill it; more fill it better, and wait longer
    too_long: TooLong = "raise"  # a sample that does not fit a row ends the run, is skipped, or loses its last turns
    max_skipped: float = 0.1  # largest share of a source's samples that may be skipped before the run ends
    jpeg_draft: bool = False  # decode large JPEG files at a fraction of their size: faster, views differ by a few levels
    workers: int = 0  # processes that read and decode; 0: a thread of the training process
    prefetch: int = 4  # batches prepared ahead
    timeout: float = 600.0  # seconds after which a batch that has not come ends the run, with status 75; 0: never
    seed: int = 0

    def __post_init__(self) -> None:
        _require_positive(self, "rows", "tokens_per_row", "images_per_row", "pack_ahead", "prefetch")
        _require(bool(self.sources), "data.sources is empty: name at least one file, folder or data set")
        paths = [(source.path, source.split) for source in self.sources]
        _require(len(set(paths)) == len(paths), f"data.sources names the same source twice: {sorted(set(paths))}")
        _require(self.too_long in get_args(TooLong), f"data.too_long must be one of {', '.join(get_args(TooLong))}")
        _require(0 <= self.max_skipped <= 1, f"data.max_skipped must be a share from 0 to 1, got {self.max_skipped}")
        _require(self.workers >= 0, f"data.workers must not be negative, got {self.workers}")
        _require(0 <= self.timeout < math.inf, f"data.timeout must be a number of seconds, 0 for no limit, got {self.timeout}")


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """What a fresh run starts from: a checkpoint; a SigLIP and a Qwen2 (the paper's stage 1); none of them: random values."""

    checkpoint: str | None = None  # a Hugging Face directory, a converted one, or a run's workdir
    vision: str | None = None  # a SigLIP directory, together with `language`
    language: str | None = None  # a Qwen2 directory: its own key and value projections begin `v_kv_proj`
    adapter: str | None = None  # a PEFT directory: its LoRA goes on, if lora.rank is set; otherwise it is merged
    inherit: bool = False  # take model and processor from `checkpoint`; otherwise the model has to be the config's

    def __post_init__(self) -> None:
        _require(
            (self.vision is None) == (self.language is None), "start.vision and start.language are given together or not at all"
        )
        _require(self.checkpoint is None or self.vision is None, "start.checkpoint and start.vision exclude each other")
        _require(
            self.adapter is None or self.checkpoint is not None, "start.adapter needs start.checkpoint: the model it is of"
        )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685) of matrices, which are frozen themselves."""

    rank: int = 0  # 0: no adapters
    alpha: float = 16.0  # an adapter counts alpha / rank times
    target: tuple[str, ...] = ("language_model/layers/.*_proj",)  # regexes of matrices' paths; a part's name is all of its
    dropout: float = 0.0  # share of an adapter's inputs that are zero in training; not of `v_kv_proj` and the gates'
    rslora: bool = False  # alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732)

    def __post_init__(self) -> None:
        _require(self.rank >= 0, f"lora.rank must not be negative, got {self.rank}")
        _require(self.alpha > 0, f"lora.alpha must be positive, got {self.alpha}")
        _require(0 <= self.dropout < 1, f"lora.dropout must be in [0, 1), got {self.dropout}")
        _require(len(self.target) > 0, "lora.target is empty: name the matrices that get adapters")
        for pattern in self.target:
            _require(_is_regex(pattern), f"lora.target: {pattern!r} is not a regular expression")

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by; 0 without adapters."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank) if self.rank else 0.0


_OPTIMIZER_FIELDS = {  # which optimizers read a field that not all do
    "b1": ("adamw", "lion", "muon", "sgd"),
    "b2": ("adamw", "lion", "muon"),
    "eps": ("adamw",),
    "state_dtype": ("adamw", "lion", "muon", "sgd"),
}


@dataclasses.dataclass(frozen=True)
class GroupConfig:
    """Parameters with a learning rate and a weight decay of their own."""

    match: tuple[str, ...]  # parts (vision, projector, hyper, language) or regexes of whole paths; the first group counts
    learning_rate_scale: float = 1.0  # times the schedule's
    weight_decay: float | None = None  # None: optimizer.weight_decay

    def __post_init__(self) -> None:
        _require(bool(self.match), "optimizer.groups: match is empty")
        for pattern in self.match:
            _require(_is_regex(pattern), f"optimizer.groups: {pattern!r} is not a regular expression")
        _require(self.learning_rate_scale >= 0, "optimizer.groups: learning_rate_scale must not be negative")
        _require(self.weight_decay is None or self.weight_decay >= 0, "optimizer.groups: weight_decay must not be negative")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer of optax with linear warm-up and a schedule."""

    name: OptimizerName = "adamw"
    schedule: Schedule = "cosine"  # after the warm-up; wsd: constant, then linear over the last `decay_share`
    learning_rate: float = 2e-5  # peak
    end_learning_rate: float = 1e-7
    warmup_steps: int = 100
    decay_share: float = 0.1  # of wsd: share of all steps
    b1: float = 0.9  # of adamw and lion; of sgd and muon: momentum
    b2: float = 0.95  # of adamw and lion, and of the parameters that muon leaves to Adam
    eps: float = 1e-8  # of adamw
    weight_decay: float = 0.0  # on matrices only, not on norms, biases and gates
    clip_norm: float = 1.0
    state_dtype: DType | None = None  # of the first moment, or the momentum; None: as the parameters
    groups: tuple[GroupConfig, ...] = ()

    def __post_init__(self) -> None:
        for field, kind in (("name", OptimizerName), ("schedule", Schedule)):
            value, allowed = getattr(self, field), get_args(kind)
            _require(value in allowed, f"optimizer.{field} is {value!r}; it must be one of {', '.join(allowed)}")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for field, users in _OPTIMIZER_FIELDS.items():
            changed = getattr(self, field) != defaults[field]
            _require(not changed or self.name in users, f"optimizer.{field} is not read by {self.name}; leave it out")
        is_wsd = self.schedule == "wsd"
        _require(
            is_wsd or self.decay_share == defaults["decay_share"], "optimizer.decay_share is read by the schedule wsd alone"
        )
        _require(0 < self.decay_share <= 1, f"optimizer.decay_share must be in (0, 1], got {self.decay_share}")
        _require_positive(self, "learning_rate", "clip_norm", "eps")
        _require(0 <= self.end_learning_rate <= self.learning_rate, "optimizer.end_learning_rate must be in [0, learning_rate]")
        _require(self.warmup_steps >= 0, f"optimizer.warmup_steps must not be negative, got {self.warmup_steps}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of a run, and what it trains, logs and saves."""

    steps: int = 1000
    seed: int = 0  # random seed of parameters and augmentation
    trained: tuple[str, ...] = ()  # parts (vision, projector, hyper, language) or regexes of whole paths; all others are
    # frozen. None named: all parameters; with LoRA, the adapters alone
    frozen_dtype: DType | None = "bfloat16"  # dtype of frozen parameters; None: as in the checkpoint that the run starts from
    microbatches: int = 1  # parts of a batch that are computed one after the other
    z_loss: float = 0.0  # weight of log(Z)^2 in what is minimised, Z the sum that softmax divides by; 1e-4 is usual
    ema_decay: float | None = None  # of a moving average of the trained parameters, saved beside them; None: without
    loss_chunk: int = 512  # most text positions of a row whose logits are in memory at the same time
    shift_pixels: int = 0  # augmentation: each image moves by at most this many pixels
    log_every: int = 20  # steps
    checkpoint_every: int = 500  # steps
    checkpoints_to_keep: int = 2  # the last ones
    local_folder: str | None = None  # on each host's own disk: checkpoints for restarts on the same hosts, beside the others
    local_every: int | None = None  # steps
    keep_every: int | None = None  # steps; checkpoints at multiples of it are kept too
    keep_best: str | None = None  # a metric of the validation, such as heldout/loss; its best checkpoint is kept too
    # A step is bad whose loss or gradients are not finite, or are a spike. It changes no parameter; then the run stops, or
    # skips it, or goes back to the last checkpoint and leaves out the batches since.
    bad_steps: BadSteps = "stop"
    spike: float | None = None  # times their running mean that loss or gradient norm reach in a spike; None: nothing is one
    max_bad_steps: int = 20  # after more, the run stops
    trackers: tuple[TrackerName, ...] = ()  # services that get the metrics too: wandb, mlflow
    repeat_every: int | None = None  # steps after which one is computed twice: the same bits, or a device computes wrongly
    profile_steps: str | None = None  # steps that are traced into profile/ of the workdir: "10:13" are the steps 10, 11 and 12

    def __post_init__(self) -> None:
        _require_positive(self, "steps", "log_every", "checkpoint_every", "checkpoints_to_keep")
        _require_positive(self, "microbatches", "loss_chunk", "max_bad_steps")
        _require(
            (self.local_folder is None) == (self.local_every is None), "train.local_folder and train.local_every go together"
        )
        for name in ("local_every", "keep_every", "repeat_every"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"train.{name} must be positive, got {value}")
        _require(
            self.bad_steps in get_args(BadSteps),
            f"train.bad_steps is {self.bad_steps!r}; it must be one of {', '.join(get_args(BadSteps))}",
        )
        for name in self.trackers:
            _require(
                name in get_args(TrackerName), f"train.trackers: {name!r} is not one of {', '.join(get_args(TrackerName))}"
            )
        _require(self.spike is None or self.spike > 1, f"train.spike must be above 1, got {self.spike}")
        for pattern in self.trained:
            _require(_is_regex(pattern), f"train.trained: {pattern!r} is not a regular expression")
        _require(self.z_loss >= 0, f"train.z_loss must not be negative, got {self.z_loss}")
        _require(self.ema_decay is None or 0 <= self.ema_decay < 1, f"train.ema_decay must be in [0, 1), got {self.ema_decay}")
        _require(self.shift_pixels >= 0, f"train.shift_pixels must not be negative, got {self.shift_pixels}")
        if self.profile_steps is not None:
            self._check_profile_steps(self.profile_steps)

    @property
    def profiled(self) -> range:
        """The steps of `profile_steps`, counted from 1."""
        return range(*map(int, self.profile_steps.split(":"))) if self.profile_steps else range(0)

    def _check_profile_steps(self, steps: str) -> None:
        got = f"got {steps!r}"
        _require(
            re.fullmatch(r"\d+:\d+", steps, re.ASCII) is not None,
            f'train.profile_steps must be like "10:13", which is the steps 10, 11 and 12; {got}',
        )
        first, stop = self.profiled.start, self.profiled.stop
        _require(first >= 1, f"train.profile_steps: steps are counted from 1, {got}")
        _require(first < stop, f"train.profile_steps: the first number must be below the second, which is not profiled; {got}")
        _require(first <= self.steps, f"train.profile_steps begins after the last step, train.steps={self.steps}; {got}")


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """What a training run evaluates on its way, on its own mesh and parameters."""

    every: int | None = None  # steps; None: nothing
    sources: tuple[SourceConfig, ...] = ()  # held-out records, for heldout/loss
    batches: int = 8  # of them; always the same ones
    tasks: tuple[str, ...] = ()  # of `owl3 eval`, for eval/TASK/METRIC, with the settings of `eval`
    questions: int = 64  # a seeded sample of so many of each task
    data_root: str = "."  # where the tasks' files are
    ema: bool = False  # of the moving average (train.ema_decay), in place of the parameters of the last step

    def __post_init__(self) -> None:
        _require_positive(self, "batches", "questions")
        asked = bool(self.sources or self.tasks)
        _require(self.every is None or self.every > 0, f"validation.every must be positive, got {self.every}")
        _require(self.every is None or asked, "validation.every is set: name validation.sources or validation.tasks")
        _require(self.every is not None or not asked, "validation.sources and tasks need validation.every, in steps")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What `owl3 eval` asks."""

    tasks: tuple[str, ...] = ()  # names, patterns and groups, see owl3_jax.evaluation.tasks
    questions: int = 256  # of digits_exact, per number of images
    exact_match_images: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)  # of digits_exact
    distractor_questions: int = 0  # of Distractor Resistance, per number of images; 0: all, or 64 about digits
    distractor_images: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 200, 400)  # N of Distractor Resistance
    distractor_draws: int = 2  # sets of distractors per question
    needle_images: tuple[int, ...] = (1, 8, 32, 128)  # numbers of images of the task `needles`
    frames: tuple[int, ...] = ()  # of a video, in place of the benchmark's; several are asked one after the other
    crop: bool | None = None  # whether images are seen in crops too; None: as the released evaluation does
    max_new_tokens: int | None = None  # None: as the released evaluation, 100
    images_per_batch: int = 256  # bounds the memory of one generation batch
    rows_per_batch: int | None = None  # most prompts of a batch; None: as many as images_per_batch allows
    vision_batch_size: int | None = None  # images that are encoded together; None: as from_pretrained does
    batch_shapes: int = 5  # most shapes of batches; each is compiled once
    feature_cache_gb: float = 4.0  # features of images, kept in memory for further questions; the rest goes to the disk
    samples_shown: int = 8  # questions on the contact sheet
    seed: int = 0  # of all that is drawn

    def __post_init__(self) -> None:
        _require_positive(self, "questions", "distractor_draws", "images_per_batch", "batch_shapes", "samples_shown")
        _require(self.distractor_questions >= 0, "eval.distractor_questions must not be negative")
        _require(self.feature_cache_gb >= 0, "eval.feature_cache_gb must not be negative")
        for name in ("max_new_tokens", "rows_per_batch", "vision_batch_size"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"eval.{name} must be positive, got {value}")
        for name in ("exact_match_images", "distractor_images", "needle_images"):
            counts = getattr(self, name)
            _require(bool(counts) and min(counts) >= 1, f"eval.{name} must name image counts of at least 1, got {counts}")
        _require(all(count >= 1 for count in self.frames), f"eval.frames must be at least 1, got {self.frames}")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    model: ModelConfig = ModelConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    processor: ProcessorConfig = ProcessorConfig()
    data: DataConfig = DataConfig()
    start: StartConfig = StartConfig()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()
    eval: EvalConfig = EvalConfig()

    def __post_init__(self) -> None:
        averages = self.validation.ema and self.train.ema_decay is None
        _require(not averages, "validation.ema needs a moving average: set train.ema_decay")
        best = self.train.keep_best
        _require(best is None or self.validation.every is not None, "train.keep_best needs a validation: set validation.every")
        _require(
            best is None or best.startswith(("heldout/", "eval/")),
            f"train.keep_best is {best!r}; it must be a metric of the validation: heldout/loss, heldout/accuracy, or "
            "eval/TASK/METRIC",
        )
        _require(
            self.data.tokens_per_row <= self.model.max_position_embeddings,
            f"data.tokens_per_row {self.data.tokens_per_row} exceeds model.max_position_embeddings "
            f"{self.model.max_position_embeddings}",
        )
        # The layers of a run's checkpoints are stacked.
        _require(self.compute.scan_layers, "compute.scan_layers must be True in a run: False is for inference")
        # `from_pretrained` quantises what it has loaded; there is no training in int8.
        _require(self.compute.weight_dtype is None, "compute.weight_dtype must be None in a run: int8 is for from_pretrained")
        _require(self.compute.cache_dtype is None, "compute.cache_dtype must be None in a run: int8 is for from_pretrained")


def field_differences(saved: _Dataclass, wanted: _Dataclass, name: str) -> list[str]:
    """One line for each field that differs, such as `model.hidden_size: 64 there, 128 in this run` for the name `model`."""
    lines = []
    for field in dataclasses.fields(wanted):
        path, before, now = f"{name}.{field.name}", getattr(saved, field.name), getattr(wanted, field.name)
        if isinstance(now, _Dataclass):
            lines += field_differences(before, now, path)
        elif before != now:
            lines.append(f"{path}: {before!r} there, {now!r} in this run")
    return lines


def load_json_tree(cls: type[_T], tree: JsonTree) -> _T:
    """The dataclass `cls` from the plain dict that `dataclasses.asdict` and JSON made of it.

    A field that the dict lacks keeps its default: the dict may be older than the field.

    Raises ConfigError when a field is unknown or a value cannot work.
    """
    fields = {field.name: field for field in dataclasses.fields(cast(type[_Dataclass], cls))}
    unknown = sorted(set(tree) - set(fields))
    _require(not unknown, f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(fields)}")
    return cls(**{name: _from_json(fields[name].type, value) for name, value in tree.items()})


def _from_json(kind: object, value: object) -> object:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return load_json_tree(kind, cast(JsonTree, value))
    if isinstance(value, list | tuple):
        items = [item for item in get_args(kind) if isinstance(item, type) and dataclasses.is_dataclass(item)]
        return tuple(load_json_tree(items[0], item) if items else item for item in value)
    return value
