"""A conversation with a checkpoint in the terminal.

    owl3 chat --checkpoint DIR

A line is a question, or a command:

    /image PATH   attach an image to the next question
    /video PATH   attach a video file, or a folder of frames
    /save PATH    write the conversation so far, as a line for `owl3 generate --jsonl`
    /reset        start over
    /help         list the commands
    /quit         leave, as Ctrl-D does

Images and videos go where the question has `<|image|>` and `<|video|>`, else before it, in the order they were attached. Ctrl-C
ends an answer and keeps what was said; while images are being read it drops the question. The next turn reads only what is
new. The tab key completes commands and paths.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from owl3_jax.cli.completion import use_completion
from owl3_jax.cli.conversation import COMMANDS, PATH_COMMANDS, Conversation
from owl3_jax.cli.model_flags import ModelFlags, load_model, parse
from owl3_jax.host.command_line import exit_with_usage_error
from owl3_jax.inference.memory import FAILURES


@dataclasses.dataclass(frozen=True)
class Flags:
    """A conversation about images and videos in the terminal. /help lists its commands."""

    model: Annotated[ModelFlags, tyro.conf.arg(name="")]


def main(argv: Sequence[str] | None = None) -> None:
    """Talks until the input ends."""
    flags, sampling = parse(Flags, sampling="chat", argv=argv, prog="owl3 chat")
    if (sampling.n, sampling.num_beams, sampling.logprobs) != (1, 1, False):
        exit_with_usage_error(ValueError("a conversation streams one answer: n and num_beams must be 1, logprobs off"))
    try:
        conversation = Conversation(load_model(flags.model), sampling)
    except FAILURES as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    talk(conversation)


def talk(conversation: Conversation) -> None:
    """Passes the lines of standard input to the conversation, until one of the two ends."""
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:
        use_completion(list(COMMANDS), PATH_COMMANDS)
        print("/help lists the commands")
    while not conversation.is_over:
        try:
            conversation.take(input(prompt).strip())
        except KeyboardInterrupt:  # at the prompt, or while a video is read; an answer handles it
            print("\nCtrl-D or /quit leaves")
        except UnicodeDecodeError as error:
            print(f"error: the line is not text: {error}")
        except EOFError:
            break
