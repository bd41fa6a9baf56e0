"""What is asked: the questions that come with the load generator, or those of a JSON Lines file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_QUESTIONS = (
    "Describe what you see.",
    "What do these pictures have in common?",
    "Which colours stand out?",
    "Is there a person? What is he or she doing?",
    "Where might this have been taken?",
    "What is in the foreground, and what behind it?",
    "Write a caption.",
    "Is it day or night? How can you tell?",
    "Which objects can be counted, and how many of each are there?",
    "What would you see if the camera turned to the left?",
    "Does anything look damaged, old or unusual?",
    "What is the weather like?",
    "Which picture differs most from the others, and why?",
    "What materials are the things made of?",
    "Tell a short story that ends with the last picture.",
    "Is there any writing? What does it say?",
    "How would you describe this to someone who cannot see it?",
    "What is the largest thing here?",
    "Which plants or animals are there?",
    "How is it lit?",
)
_WISHES = ("", " Answer in one sentence.", " Name at most three things.", " Give reasons.", " Start with the most certain.")
_FOLLOW_UPS = (
    "How sure are you of that?",
    "Say more about the first picture.",
    "And what is at the edges?",
    "What did you leave out?",
    "Sum up what you said so far.",
    "Now answer as for a child of six.",
)


class Prompts(NamedTuple):
    """Conversations' questions, one for each turn; asked in turn, again from the start where there are fewer."""

    scripts: Sequence[Sequence[str]]

    def script(self, number: int, turns: int) -> tuple[str, ...]:
        """The questions of a conversation: those of its script, then follow-up questions that fit any picture."""
        script = self.scripts[number % len(self.scripts)]
        follow_ups = (_FOLLOW_UPS[(number + turn) % len(_FOLLOW_UPS)] for turn in range(len(script), turns))
        return (*script[:turns], *follow_ups)


def builtin_prompts() -> Prompts:
    """Questions that fit any number of pictures; a hundred differ."""
    return Prompts([[question + wish] for wish in _WISHES for question in _QUESTIONS])


def read_prompts(path: Path) -> Prompts:
    """The questions of a file with lines {"prompt": "..."} or {"prompt": ["first turn", "second turn", ...]}.

    Blank lines are skipped. Raises OSError, and ValueError, which names the line, for anything else.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: {error.reason} at byte {error.start}") from error
    scripts = [_script(f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not scripts:
        raise ValueError(f"{path} has no prompts")
    return Prompts(scripts)


def _script(place: str, line: str) -> list[str]:
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: invalid JSON: {error}") from error
    prompt = tree.get("prompt") if isinstance(tree, dict) else None
    script = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(script, list) or not script or not all(isinstance(turn, str) and turn for turn in script):
        raise ValueError(f'{place} must be {{"prompt": "..."}}, or {{"prompt": [...]}} with the question of each turn')
    return script
