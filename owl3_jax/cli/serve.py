"""Serves a checkpoint to many users: OpenAI's API, and a page to talk to it.

    pip install 'owl3_jax[serve]'
    owl3 serve --checkpoint DIR --port 8000

    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"model": "DIR", "messages": [{"role": "user", "content": "Hello"}]}'

The model goes by its directory's name. /ready answers 200 once requests are taken; / is the page, /docs describes the API.
SIGTERM and SIGINT let the answers under way finish.
"""

import sys
from collections.abc import Sequence

from owl3_jax.cli.model_flags import parse
from owl3_jax.cli.serve_flags import Flags
from owl3_jax.host.command_line import exit_with_usage_error
from owl3_jax.inference.memory import FAILURES


def main(argv: Sequence[str] | None = None) -> None:
    """Serves until a signal comes. Exits with 1 when it cannot start."""
    flags, sampling = parse(Flags, sampling="chat", argv=argv, prog="owl3 serve")
    if (sampling.n, sampling.num_beams, sampling.logprobs) != (1, 1, False):
        exit_with_usage_error(ValueError("requests say how many answers and log-probabilities they want; there are no beams"))
    from owl3_jax.cli.serving import serve  # needs the extra

    try:
        serve(flags, sampling)
    except FAILURES as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # while the model is loaded
        sys.exit(130)
