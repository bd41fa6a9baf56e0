"""Where the time of training steps goes: traces of chosen steps, and the model's parts in them.

A trace says when each instruction of the compiled step ran; the text of the compiled step says which operation of the model an
instruction comes from, with the named scopes around it. Instructions run inside each other (a loop and what it repeats) and
beside each other (on several threads or streams). So each moment is given to the innermost instruction of each line of the
trace, and in equal parts to the lines that are busy at that moment: the times of all parts, and that in which nothing ran, add
up to the time of the steps.
"""

import functools
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from owl3_jax.config import ConfigError, TrainConfig
from owl3_jax.hlo import Instruction, Module, called, parse
from owl3_jax.training.step import TrainState

FORWARD, BACKWARD, RECOMPUTED = "forward", "backward", "recomputed"
LARGEST = 10  # parts in the table
_FIRST, _COUNT = 5, 3  # steps that are profiled by default: the first ones after a start are slower

# Parts by the scopes that lead to them, of which the first ones that are found count. Decoder layers and encoder blocks have
# scopes of their own, because a scan may move operations out of those around it.
_PARTS = (
    ("vision_model/embeddings", "vision_model", "embeddings"),
    ("vision_model/layers/norms", "encoder_block", "layer_norm1"),
    ("vision_model/layers/norms", "encoder_block", "layer_norm2"),
    ("vision_model/layers/self_attn", "encoder_block", "self_attn"),
    ("vision_model/layers/mlp", "encoder_block", "mlp"),
    ("vision_model", "encoder_block"),
    ("vision_model", "siglip"),
    ("projector", "projector"),
    ("language_model/image_cache", "image_cache"),
    ("language_model/embed_tokens", "language_model", "embed_tokens"),
    ("language_model/layers/norms", "decoder_layer", "input_layernorm"),
    ("language_model/layers/norms", "decoder_layer", "post_attention_layernorm"),
    ("language_model/layers/hyper_attention", "decoder_layer", "hyper_attention"),
    ("language_model/layers/self_attn", "decoder_layer", "self_attn"),
    ("language_model/layers/mlp", "decoder_layer", "mlp"),
    ("language_model/norm", "language_model", "norm"),
    ("language_model", "decoder_layer"),
    ("language_model", "language_model"),
    ("lm_head", "lm_head"),
    ("loss", "loss"),
    ("augmentation", "augmentation"),
    ("gradient_sum", "gradient_sum"),
    ("gradient_clip", "gradient_clip"),
    ("optimizer", "optimizer"),
    ("moving_average", "moving_average"),
    ("metrics", "metrics"),
)
_NOT_DIFFERENTIATED = ("augmentation", "gradient_sum", "gradient_clip", "optimizer", "moving_average", "metrics")

_WORD = re.compile(r"[\w.]+")
_INSTRUCTION = re.compile(r"%?([\w.\-]+)")  # at the beginning of an event's name, which may be the whole instruction
_ACCELERATOR = re.compile(r"/device:(?:TPU|GPU):\d+")


class Part(NamedTuple):
    """A part of the model, in one of its passes."""

    name: str
    direction: str  # FORWARD, BACKWARD, RECOMPUTED (forward again, for the backward pass); empty where there are none


OTHER = Part("other", "")  # what no scope names: copies between parts, masks, sums of metrics


class Event(NamedTuple):
    """An instruction that ran once. Times are in nanoseconds."""

    device: str
    line: str  # the thread or stream of the device that ran it
    instruction: str  # its name in the text of the compiled step; empty if it is of another program
    start: float
    end: float
    op_name: str = ""  # as `Instruction.op_name`, if the trace knows it


class Row(NamedTuple):
    """A line of the table. Times are seconds of a step."""

    name: str
    seconds: float
    share: float  # of the step
    by_direction: Mapping[str, float]


@functools.cache
def part_of(op_name: str) -> Part | None:
    """The part that an operation belongs to, by its scopes; None if they name no part.

    The loss computes its gradients in the forward pass, while the logits are there.
    """
    words = _WORD.findall(op_name)
    name = next((name for name, *scopes in _PARTS if _in_order(scopes, words)), None)
    if name is None:
        return None
    if name in _NOT_DIFFERENTIATED:
        return Part(name, "")
    if "rematted_computation" in words:
        return Part(name, RECOMPUTED)
    return Part(name, BACKWARD if "transpose(" in op_name else FORWARD)


def parts_of(module: Module) -> Mapping[str, Part]:
    """The part of each instruction of a compiled step, by the instruction's name; instructions of no part are left out.

    An instruction without a known part takes that of what it fuses, or else of what calls it: copies in the body of a loop
    belong to the loop.
    """
    parts: dict[str, Part] = {}
    stack: list[tuple[str, Part | None]] = [(module.entry, None)]
    seen: set[str] = set()
    while stack:
        computation, caller = stack.pop()
        if computation in seen:
            continue
        seen.add(computation)
        for instruction in module.computations.get(computation, ()):
            part = part_of(instruction.op_name) or _fused_part(module, instruction) or caller
            if part is not None:
                parts[instruction.name] = part
            stack += [(name, part) for name in called(instruction)]
    return parts


def times_by_part(events: Iterable[Event], parts: Mapping[str, Part]) -> Mapping[Part, float]:
    """The seconds in which each part ran, as the mean over devices. They do not overlap; OTHER has what is of no part."""
    by_device: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_device[event.device].append(event)
    times: dict[Part, float] = defaultdict(float)
    for of_device in by_device.values():
        for part, total in _device_times(of_device, parts).items():
            times[part] += total
    return {part: total / len(by_device) / 1e9 for part, total in times.items()}


def table_rows(times: Mapping[Part, float], seconds: float, steps: int, largest: int = LARGEST) -> list[Row]:
    """The largest parts, the sum of the smaller ones, other, and idle: what is left of the `seconds` that all steps took."""
    of_parts: dict[str, dict[str, float]] = defaultdict(dict)
    for part, total in times.items():
        of_parts[part.name][part.direction] = total
    other = sum(of_parts.pop(OTHER.name, {}).values(), start=0.0)
    ranked = sorted(of_parts.items(), key=lambda item: -sum(item[1].values()))
    busy = sum(times.values(), start=0.0)
    whole = max(seconds, busy)

    def row(name: str, by_direction: Mapping[str, float]) -> Row:
        total = sum(by_direction.values(), start=0.0)
        return Row(name, total / steps, total / whole, {key: value / steps for key, value in by_direction.items() if key})

    smaller: dict[str, float] = defaultdict(float)
    for _, by_direction in ranked[largest:]:
        for direction, total in by_direction.items():
            smaller[direction] += total
    rows = [row(name, by_direction) for name, by_direction in ranked[:largest]]
    rows += [row(f"{len(ranked) - largest} smaller parts", smaller)] if smaller else []
    return [*rows, row("other", {"": other}), row("idle", {"": whole - busy})]


def format_table(rows: Sequence[Row]) -> list[str]:
    """The rows as lines of text, with the whole step as the last one."""
    directions = (FORWARD, BACKWARD, RECOMPUTED)
    total = Row("step", sum(row.seconds for row in rows), sum(row.share for row in rows), {})
    cells = [["part", "ms a step", "share", *directions]]
    for row in [*rows, total]:
        split = (f"{row.by_direction[name] * 1e3:.1f}" if row.by_direction.get(name) else "" for name in directions)
        cells.append([row.name, f"{row.seconds * 1e3:.1f}", f"{row.share:.1%}", *split])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in cells]


def read_events(trace: Path, module: str) -> Iterator[Event]:
    """The instructions that ran, from a file `*.xplane.pb` of jax.profiler; `module` is the name of the compiled step.

    Where there are accelerators, those of the host's own programs are left out. On CPUs, threads that help with parts of an
    instruction have no events of their own: what they do counts for the thread that waits for them.
    """
    planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
    accelerators = [plane for plane in planes if _ACCELERATOR.fullmatch(plane.name)]
    for plane in accelerators or [plane for plane in planes if plane.name == "/host:CPU"]:
        lines = list(plane.lines)
        # A TPU has lines of whole steps and modules too, a GPU a line for each stream.
        of_operations = [line for line in lines if line.name == "XLA Ops"]
        of_streams = [line for line in lines if line.name.startswith("Stream")]
        for number, line in enumerate(of_operations or of_streams or lines):
            for event in line.events:
                stats = dict(event.stats)
                if not event.duration_ns or not (accelerators or "hlo_op" in stats):
                    continue
                found = _INSTRUCTION.match(str(stats.get("hlo_op", event.name)))
                is_ours = not module or str(stats.get("hlo_module", module)) == module
                yield Event(
                    device=f"{plane.name} {stats.get('device_ordinal', 0)}",
                    line=f"{number} {line.name}",
                    instruction=found[1] if found and is_ours else "",
                    start=event.start_ns,
                    end=event.start_ns + event.duration_ns,
                    op_name=str(stats.get("tf_op", "")) if is_ours else "",
                )


def steps_to_profile(config: TrainConfig, done: int, wanted: bool) -> range:
    """The steps to trace of a run that goes on after `done` steps; none if they are done already.

    They are `train.profile_steps`; without these, if a profile is `wanted`, three soon after the start, but never the first
    one. Raises ConfigError when too few steps are left for that.
    """
    if config.profile_steps is not None:
        chosen = config.profiled
        return range(max(chosen.start, done + 1), min(chosen.stop, config.steps + 1))
    if not wanted:
        return range(0)
    if config.steps - done < 2:
        raise ConfigError(
            f"--profile needs at least 2 steps, of which the first is not profiled; train.steps={config.steps} leaves "
            f"{max(config.steps - done, 0)} after step {done}: raise it"
        )
    stop = min(done + _FIRST + _COUNT, config.steps + 1)
    return range(max(done + 2, stop - _COUNT), stop)


class Profiler:
    """Traces a range of steps with jax.profiler. A context manager; leaving it ends a trace that is still running.

    Each process traces its own devices. Traces can be opened in TensorBoard, XProf and Perfetto.
    """

    def __init__(self, steps: range, directory: Path, say: Callable[[str], None], *, table: bool = False) -> None:
        """`directory` is for the traces, those of several processes each in its own folder; `table` is for `report`."""
        several = jax.process_count() > 1
        self._steps, self._say, self._table = steps, say, table
        self._directory = directory / f"process_{jax.process_index()}" if several else directory
        self._began: float | None = None  # of the trace that is running
        self._seconds: float | None = None  # that all steps took together
        self._annotation: jax.profiler.StepTraceAnnotation | None = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._began is not None:
            self._stop()

    def before(self, step: int, state: TrainState) -> None:
        """To be called before each step, with the state that it takes; waits for the device before the first one."""
        if step not in self._steps:
            return
        if step == self._steps.start:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # an event for each call of a Python function slows down reading data
            jax.profiler.start_trace(self._directory, profiler_options=options)
            self._began = time.monotonic()
        self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._annotation.__enter__()

    def after(self, step: int, state: TrainState) -> None:
        """To be called after each step, with the state that it returns; waits for the device after the last one."""
        if self._began is None:
            return
        last = step == self._steps[-1]
        if last:
            jax.block_until_ready(state)
            self._seconds = time.monotonic() - self._began
        self._end_annotation()
        if last:
            self._stop()

    def report(self, train_step: object) -> None:
        """Says where the time of the profiled steps went, if a table was asked for; to be called at the end.

        `train_step` is the compiled step, whose text knows the parts; without a text, a GPU's or TPU's trace may know them.
        """
        if not self._table:
            return
        if self._seconds is None:
            self._say("the steps to profile were done before, or the run ended before they were done: there is no table")
            return
        trace = max(self._directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        text = _text_of(train_step)
        if text is None:
            self._say("the compiled step has no text, so that parts are known only where the trace names them")
        module = parse(text or "")
        times = times_by_part(read_events(trace, module.name), parts_of(module))
        count = len(self._steps)
        self._say(f"where the time of {_name_of(self._steps)} went, as the mean:")
        for line in format_table(table_rows(times, self._seconds, count)):
            self._say(line)

    def _end_annotation(self) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None

    def _stop(self) -> None:
        self._end_annotation()
        self._began = None
        jax.profiler.stop_trace()
        self._say(f"profile of {_name_of(self._steps)} saved in {self._directory}: open it with TensorBoard, XProf or Perfetto")


def _name_of(steps: range) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def _text_of(train_step: object) -> str | None:
    """The text of a compiled step, if its executable still has one."""
    if not isinstance(train_step, jax.stages.Compiled):
        return None
    text: str | None = train_step.as_text()
    return text


def _in_order(scopes: Sequence[str], words: Sequence[str]) -> bool:
    rest = iter(words)
    return all(scope in rest for scope in scopes)


def _fused_part(module: Module, instruction: Instruction) -> Part | None:
    """The part of the last operation of a fusion that has one."""
    if instruction.opcode != "fusion":
        return None
    inside = (line for name in called(instruction) for line in reversed(module.computations.get(name, ())))
    return next((part for line in inside if (part := part_of(line.op_name))), None)


class _Stretch(NamedTuple):
    """Time in which one line does nothing but this."""

    start: float
    end: float
    event: Event


def _innermost(events: Iterable[Event]) -> Iterator[_Stretch]:
    """What one line does at each moment: the innermost of the events that contain it."""
    open_events: list[Event] = []
    now = 0.0

    def until(moment: float) -> Iterator[_Stretch]:
        nonlocal now
        if open_events and moment > now:
            yield _Stretch(now, moment, open_events[-1])
        now = max(now, moment)

    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        while open_events and open_events[-1].end <= event.start:
            yield from until(open_events[-1].end)
            open_events.pop()
        yield from until(event.start)
        open_events.append(event)
    while open_events:
        yield from until(open_events[-1].end)
        open_events.pop()


def _device_times(events: Iterable[Event], parts: Mapping[str, Part]) -> Mapping[Part, float]:
    """Nanoseconds of each part on one device, each moment shared equally by the lines that are busy then."""
    by_line: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_line[event.line].append(event)
    changes: list[tuple[float, int, Part]] = []  # when a part starts (1) or ends (-1) on a line
    for of_line in by_line.values():
        for start, end, event in _innermost(of_line):
            part = parts.get(event.instruction) or part_of(event.op_name) or OTHER
            changes += [(start, 1, part), (end, -1, part)]
    times: dict[Part, float] = defaultdict(float)
    busy: Counter[Part] = Counter()
    lines, now = 0, 0.0
    for moment, change, part in sorted(changes):
        if lines and moment > now:
            for name, count in busy.items():
                times[name] += (moment - now) * count / lines
        now, lines = moment, lines + change
        busy[part] += change
        if not busy[part]:
            del busy[part]
    return times
