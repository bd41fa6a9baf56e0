"""A judge behind any OpenAI-compatible URL, which scores open answers; what it said is kept, so that nothing is asked twice."""

import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from owl3_jax.evaluation.question import Answered, Judged
from owl3_jax.evaluation.task import Task

_NUMBER = re.compile(r"(?<![\d.,/-])(\d+(?:\.\d+)?|\.\d+)(?!\d|[.,/]\d|\s*/)")
_SECONDS = 120.0


class JudgeError(RuntimeError):
    """A judge that cannot be reached, or does not give a score."""


class Judge(NamedTuple):
    """Where it is. The environment variable OPENAI_API_KEY is sent as the key, if it is set."""

    url: str  # up to and with `/v1`
    model: str
    kept: Path  # what it has said: JSON Lines

    def score(self, task: Task, answered: Answered) -> Answered:
        """The answer with the judge's score, from 0 to 1. Raises JudgeError."""
        if task.judge_prompt is None or answered.error:
            return answered
        prompt = task.judge_prompt(answered.question, answered.answer)
        key = hashlib.blake2b(f"{self.model}\n{prompt}".encode(), digest_size=16).hexdigest()
        said = self._known().get(key)
        if said is None:
            said = self._ask(prompt)
            self.kept.parent.mkdir(parents=True, exist_ok=True)
            with self.kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "id": answered.question.id, "said": said}, ensure_ascii=False) + "\n")
        found = _NUMBER.findall(said)
        share = float(found[-1]) if found else -1.0
        if not 0 <= share <= 1:
            return answered._replace(judged=Judged(0.0, 0.0), error=f"the judge gave no score from 0 to 1, but {said[:80]!r}")
        return answered._replace(judged=Judged(share, share, answered.answer, said.strip()))

    def _known(self) -> dict[str, str]:
        known = {}
        for line in self.kept.read_text(encoding="utf-8").split("\n") if self.kept.exists() else ():
            try:
                record = json.loads(line)
                known[record["key"]] = record["said"]
            except (ValueError, TypeError, KeyError):  # a line that was cut off is asked again
                continue
        return known

    def _ask(self, prompt: str) -> str:
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as response:
                return str(json.load(response)["choices"][0]["message"]["content"])
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise JudgeError(
                f"the judge at {self.url} gave no answer: {error}; answers of before are kept in {self.kept}"
            ) from error
