"""A language model as judge behind any OpenAI-compatible endpoint; every answer is kept, so that a score can be made
again.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from pathlib import Path

from eval_suite.released import read_jsonl
from factory import files
from factory.errors import UserError
from factory.registry import Params

SECONDS = 120


class JudgeParams(Params):
    """``url`` as in http://host/v1; the key is read from the environment variable ``key_env``; ``cache`` is a JSONL
    file.
    """

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    cache: str = "runs/judge.jsonl"
    temperature: float = 0.0
    max_tokens: int = 16


class Judge:
    """Asks a model and remembers what it said: the same question is never sent twice."""

    def __init__(self, params: JudgeParams) -> None:
        self.params, self.path = params, Path(params.cache).expanduser()
        self.known = {row["key"]: row["text"] for row in read_jsonl(self.path)} if self.path.is_file() else {}

    def ask(self, prompt: str, repeat: int = 0) -> str:
        """The judge's answer. Raises ``UserError`` where the endpoint cannot be reached or refuses."""
        p = self.params
        body = {
            "model": p.model,
            "temperature": p.temperature,
            "max_tokens": p.max_tokens,
            "messages": [{"role": "user", "content": prompt}],
        }
        key = hashlib.sha256(json.dumps([p.url, repeat, body], sort_keys=True).encode()).hexdigest()[:32]
        if key not in self.known:
            self.known[key] = self._send(body)
            files.make_folder(self.path.parent)
            files.append_jsonl(self.path, {"key": key, "model": p.model, "text": self.known[key], "prompt": prompt})
        return self.known[key]

    def _send(self, body: dict) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.params.key_env):
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.params.url.rstrip('/')}/chat/completions"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=SECONDS
            ) as reply:
                return json.load(reply)["choices"][0]["message"]["content"]
        except (OSError, urllib.error.URLError, ValueError, KeyError, IndexError) as error:
            raise UserError(
                f"judge {url}: no usable answer ({error}); answers so far are kept in {self.path}, start again to go on"
            ) from error
