"""A conversation with a checkpoint in the terminal.

    python tools/chat.py --checkpoint DIR

A line is a question, or a command:

    /image PATH   attach an image to the next question
    /video PATH   attach a video file, or a folder of frames
    /save PATH    write the conversation so far, as a line that generate.py takes by --jsonl
    /reset        begin anew
    /help         list the commands
    /quit         leave, as Ctrl-D does

Images and videos stand where the question has `<|image|>` and `<|video|>`, else before it, in the order they were attached.
Ctrl-C ends an answer and keeps what was said; while images are read it forgets the question. The next turn reads only what
is new. The tab key completes commands and paths.
"""

import dataclasses
import sys
from typing import Annotated

import tyro

from owl3_jax.cli.completion import use_completion
from owl3_jax.cli.conversation import COMMANDS, PATH_COMMANDS, Conversation
from owl3_jax.cli.model_flags import FAILURES, ModelFlags, exit_with_usage_error, load_model, parse


@dataclasses.dataclass(frozen=True)
class Flags:
    """A conversation about images and videos in the terminal. /help lists its commands."""

    model: Annotated[ModelFlags, tyro.conf.arg(name="")]


def main() -> None:
    """Talks until the input ends."""
    flags, sampling = parse(Flags, sampling="chat")
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
    """Hands the lines of standard input to the conversation, until it is over or they are."""
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:
        use_completion(list(COMMANDS), PATH_COMMANDS)
        print("/help lists the commands")
    while not conversation.is_over:
        try:
            conversation.take(input(prompt).strip())
        except KeyboardInterrupt:  # at the prompt, or while a video is read; an answer ends by itself
            print("\nCtrl-D or /quit leaves")
        except UnicodeDecodeError as error:
            print(f"error: the line is no text: {error}")
        except EOFError:
            break


if __name__ == "__main__":
    main()
