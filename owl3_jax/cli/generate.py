"""Answers a prompt, or a file of them, with a checkpoint.

    owl3 generate --checkpoint DIR --image a.jpg --image b.jpg --prompt "What differs?"
    owl3 generate --checkpoint DIR --video film.mp4 --prompt "What happens?" --max-frames 32
    owl3 generate --checkpoint DIR --jsonl requests.jsonl --out results.jsonl --batch-size 8

Images and videos go where the prompt has `<|image|>` and `<|video|>`, else before it, in the order of their flags. One answer
is printed as it is generated; several (`--n`), beams and log-probabilities when they are complete.

A line of requests.jsonl (relative paths in it start at its folder), and one of results.jsonl:

    {"id": "q1", "prompt": "What is this?", "images": ["cat.jpg"], "sampling": {"max_new_tokens": 20}}
    {"id": "q1", "answers": [{"text": "A cat.", "finish_reason": "stop", "tokens": 4}]}

A request may have `messages` in place of `prompt`, and `videos` as well as `images`; in a prompt without placeholders the
images come first. Without `id` a request is named by its line number. Prompts of similar size share a batch, so results are in
a different order. Run again, the command continues where it was stopped. A request that fails gets `error` in place of
`answers`, and the exit code is 1.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from owl3_jax.cli.model_flags import ModelFlags, load_model, parse
from owl3_jax.host.progress import SECONDS_BETWEEN_LINES, Progress, reading_images
from owl3_jax.inference.batcher import answer_requests
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.memory import FAILURES
from owl3_jax.inference.requests import Failure, Request, read_requests
from owl3_jax.inference.results import Record, Results
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.chat import IMAGE, VIDEO, with_placeholders
from owl3_jax.processing.processor import Prepared

_Repeated = tyro.conf.UseAppendAction[tuple[Path, ...]]


@dataclasses.dataclass(frozen=True)
class Flags:
    """Answers a prompt about images and videos, or a file of such requests."""

    model: Annotated[ModelFlags, tyro.conf.arg(name="")]
    prompt: str | None = None  # the question; <|image|> and <|video|> mark the places of images and videos
    images: Annotated[_Repeated, tyro.conf.arg(name="image")] = ()  # an image file
    videos: Annotated[_Repeated, tyro.conf.arg(name="video")] = ()  # a video file, or a folder of frames
    jsonl: Path | None = None  # requests, one per line, instead of a prompt
    out: Path | None = None  # where results of --jsonl are appended
    batch_size: int = 8  # most requests that are answered together
    fail_fast: bool = False  # stop at the first request that fails, instead of recording its error

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.jsonl is None):
            raise ValueError("give either --prompt TEXT, with --image and --video, or --jsonl FILE --out FILE")
        if (self.jsonl is None) != (self.out is None):
            raise ValueError("--jsonl FILE and --out FILE go together")
        if self.jsonl and (self.images or self.videos):
            raise ValueError("--image and --video go with --prompt; a line of --jsonl names its own")
        if self.jsonl and self.out and self.jsonl.resolve() == self.out.resolve():
            raise ValueError(f"--jsonl and --out are the same file {self.out}")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")


def main(argv: Sequence[str] | None = None) -> None:
    """Answers what the command line asks. Exits with 1 after a failure, with 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    flags, sampling = parse(Flags, sampling="greedy", argv=argv, prog="owl3 generate")
    try:
        if flags.jsonl and flags.out:
            answer_file(flags.jsonl, flags.out, flags, sampling)
        else:
            answer_prompt(flags, sampling, placeholders_of(argv))
    except FAILURES as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def answer_prompt(flags: Flags, sampling: Sampling, placeholders: Sequence[str]) -> None:
    """Prints the answer to the one prompt of the command line, whose images and videos were given in this order."""
    owl = load_model(flags.model)
    question = with_placeholders(flags.prompt or "", placeholders)
    prompt = owl.processor.prepare(question, flags.images, flags.videos)
    if sampling.n == sampling.num_beams == 1 and not sampling.logprobs:
        print_stream(owl.engine, prompt, sampling)
    else:
        print_answers(owl.engine, prompt, sampling)


def placeholders_of(argv: Sequence[str]) -> list[str]:
    """The placeholder of each image and video on the command line, in the order of their flags; parsed, these are two lists."""
    flags = {"--image": IMAGE, "--video": VIDEO}
    names = [word.partition("=")[0] for word in argv]
    return [flags[name] for name in names if name in flags]


def print_stream(engine: Engine, prompt: Prepared, sampling: Sampling) -> None:
    """The one answer, piece by piece. One that is interrupted ends its line too."""
    begun = False
    try:
        with reading_images() as bar:
            for piece in engine.stream(prompt, sampling, advance=bar.advance):
                print(piece, end="", flush=True)
                begun = True
    except FAILURES:
        print(end="\n" if begun else "")
        raise
    print()


def print_answers(engine: Engine, prompt: Prepared, sampling: Sampling) -> None:
    """All answers, numbered if there are several."""
    with reading_images() as bar:
        answers = engine.generate([prompt], sampling, advance=bar.advance)[0]
    for number, answer in enumerate(answers, start=1):
        print(f"[{number}] {answer.text.strip()}" if len(answers) > 1 else answer.text.strip())
        if answer.logprobs is not None:
            print(f"log-probability {sum(answer.logprobs):.3f} of {len(answer.ids)} tokens")


def answer_file(jsonl: Path, out: Path, flags: Flags, sampling: Sampling) -> None:
    """Appends the results that are not in the file `out` yet. Exits with 1 when any result in the file is an error."""
    requests, results = read_requests(jsonl, sampling), Results(out)
    waiting = results.waiting(requests)
    with _requests_bar(len(requests), len(requests) - len(waiting)) as bar:
        try:
            for records in answer_waiting(waiting, flags):
                results.append(records)
                bar.advance(len(records))
        except KeyboardInterrupt:
            bar.close()
            print(
                f"stopped with {bar.done} of {bar.total} results in {out}; the same command continues from there",
                file=sys.stderr,
            )
            sys.exit(130)
    if failed := results.failures(requests):
        sys.exit(f"error: {failed} of {len(requests)} requests failed, see {out}; delete their lines there to try them again")


def _requests_bar(total: int, done: int) -> Progress:
    line = "answered {done}/{total} {unit}s"
    return Progress(total, "request", done=done, file=sys.stderr, lines_every=SECONDS_BETWEEN_LINES, line=line)


def answer_waiting(waiting: Sequence[Request | Failure], flags: Flags) -> Iterator[list[Record]]:
    """Results of requests, a batch at a time. With --fail-fast, raises ValueError instead of giving one with an error."""
    if not waiting:
        return
    owl = load_model(flags.model)
    for records in answer_requests(owl.engine, owl.processor, waiting, flags.batch_size):
        failed = [record for record in records if "error" in record]
        if not flags.fail_fast or not failed:
            yield records
            continue
        yield [record for record in records if "error" not in record]
        raise ValueError(f"request {failed[0]['id']}: {failed[0]['error']}")
