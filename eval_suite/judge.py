"""A language model as judge behind any OpenAI-compatible endpoint; every answer that can be read is kept, so that a
score can be made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from pydantic import AfterValidator, NonNegativeFloat, NonNegativeInt, PositiveInt
from urllib3.exceptions import HTTPError, InvalidHeader

from factory import files, terminal
from factory.errors import UserError
from factory.plain import shown
from factory.registry import Params

SECONDS = 120  # of silence, and the longest wait that an endpoint may ask for
TRIES_MORE = 5  # times that MM-Vet's evaluator asks again for an answer it cannot read
LARGEST = 4 << 20  # bytes of one reply
DRY = "the judge's requests were printed, none was sent (dry_run)"
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, *range(520, 525), 529)
KEY_NAME = re.compile(r"([A-Z][A-Z0-9_]*_)?(API|JUDGE)_(KEY|TOKEN)")


def _plain_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if not whole or any(c.isspace() or not c.isprintable() for c in url):
        raise ValueError("should be an address such as https://HOST/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("should hold no user, password or query: a key belongs in the variable that key_env names")
    return url


def _names_a_key(name: str) -> str:
    if not KEY_NAME.fullmatch(name):
        raise ValueError(
            "should be the name of a variable that ends in API_KEY, API_TOKEN, JUDGE_KEY or JUDGE_TOKEN; no other is"
            " sent to an endpoint"
        )
    return name


class Price(Params):
    """What a million tokens cost, read and written, in a currency.

    ``input`` tokens are read, ``output`` tokens written; ``currency`` is a name.
    """

    input: NonNegativeFloat
    output: NonNegativeFloat
    currency: str = "USD"


class JudgeParams(Params):
    """``url`` as in http://host/v1; the key is read from the environment variable ``key_env``; ``cache`` is a JSONL
    file. ``at_once`` requests are under way together, each tried ``retries`` times more where the endpoint is busy.
    ``price`` turns tokens into money; ``dry_run`` prints the requests and sends none.

    ``model`` is the judge's name there, asked at ``temperature`` for at most ``max_tokens``.
    """

    url: Annotated[str, AfterValidator(_plain_address)]
    model: str
    key_env: Annotated[str, AfterValidator(_names_a_key)] = "OPENAI_API_KEY"
    cache: str = "runs/judge.jsonl"
    temperature: float = 0.0
    max_tokens: PositiveInt = 16
    at_once: PositiveInt = 4
    retries: NonNegativeInt = 5
    price: Price | None = None
    dry_run: bool = False


class Judge:
    """Asks a model and remembers what it said: the same question is never sent twice once its answer could be read.

    ``readable`` tells whether an answer can be; one that cannot is asked for again up to five times, with ``again``
    after the prompt and a temperature that rises (as MM-Vet's evaluator does), and is never kept.
    """

    def __init__(
        self, params: JudgeParams, readable: Callable[[str], bool] = lambda text: True, again: str = ""
    ) -> None:
        self.params, self.path = params, Path(params.cache).expanduser()
        self.readable, self.again = readable, again
        rows = files.read_log(self.path) if self.path.is_file() else []
        kept = [(row.get("key"), row.get("text")) for row in rows if isinstance(row, dict)]
        self.known = {key: text for key, text in kept if isinstance(text, str)}
        self.heard: dict[str, str | None] = {}
        self.spent = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self.lock = threading.Lock()
        self.pool = _pool(params)

    def consult(self, prompts: Iterable[str]) -> None:
        """Ask all ``prompts``, several at once, for ``ask`` to find the answers. What it cost is printed; a dry run
        prints the requests instead. Raises ``UserError`` as ``ask`` does.
        """
        todo = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.heard]
        if self.params.dry_run:
            for body in (self._body(prompt, 0) for prompt in todo):
                if self._key(body, 0) not in self.known:
                    told = json.dumps({"url": self._address, "body": body}, ensure_ascii=False)
                    print("".join(c if shown(c) == c else json.dumps(c)[1:-1] for c in told))
            return
        before, stopped = dict(self.spent), threading.Event()

        def one(prompt: str) -> None:
            try:
                if not stopped.is_set():
                    self.ask(prompt)
            except BaseException:
                stopped.set()
                raise

        with ThreadPoolExecutor(self.params.at_once) as pool:
            try:
                for _ in pool.map(one, todo):
                    pass
            finally:
                stopped.set()
        if todo:
            terminal.console().print(self._told(todo, before), markup=False, highlight=False, soft_wrap=True)

    def ask(self, prompt: str) -> str | None:
        """The judge's answer; None where none could be read. Raises ``UserError`` where the endpoint cannot be reached
        or refuses.
        """
        if prompt not in self.heard:
            self.heard[prompt] = self._asked(prompt)
        return self.heard[prompt]

    def _asked(self, prompt: str) -> str | None:
        for attempt in range(1 + TRIES_MORE):
            body = self._body(prompt, attempt)
            key = self._key(body, attempt)
            text = self.known.get(key)
            if text is not None and self.readable(text):
                return text
            text = self._send(body)
            if text is not None and self.readable(text):
                self._keep({"key": key, "model": self.params.model, "text": text, "prompt": prompt})
                return text
        return None

    def _body(self, prompt: str, attempt: int) -> dict[str, Any]:
        p = self.params
        return {
            "model": p.model,
            "temperature": p.temperature + 0.5 * max(0, attempt - 1),
            "max_tokens": p.max_tokens,
            "messages": [{"role": "user", "content": prompt + (self.again if attempt else "")}],
        }

    def _key(self, body: dict[str, Any], attempt: int) -> str:
        return hashlib.sha256(json.dumps([self.params.url, attempt, body], sort_keys=True).encode()).hexdigest()[:32]

    def _keep(self, row: dict[str, str]) -> None:
        with self.lock:
            self.known[row["key"]] = row["text"]
            files.make_folder(self.path.parent)
            files.append_jsonl(self.path, row)

    @property
    def _address(self) -> str:
        return f"{self.params.url.rstrip('/')}/chat/completions"

    def _send(self, body: dict[str, Any]) -> str | None:
        """The text of one reply, None where it holds none (a filter, a refusal)."""
        headers = {"Content-Type": "application/json", **self._authorization()}
        try:
            reply = self.pool.request(
                "POST", self._address, body=json.dumps(body), headers=headers, redirect=False, preload_content=False
            )
            data = reply.read(LARGEST)
            reply.release_conn()
        except HTTPError as error:
            raise self._unusable(f"{type(error).__name__}: {error}".splitlines()[0][:200]) from None
        if 300 <= reply.status < 400:
            raise self._unusable("it sends us to another address, which would get the key; give that address as url")
        if reply.status != 200:
            raise self._unusable(f"it answers {reply.status} {reply.reason or ''}".strip())
        try:
            told = json.loads(data)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise self._unusable("it answers with what is no JSON object; is it an OpenAI-compatible endpoint?")
        self._count(told.get("usage"))
        return _text(told)

    def _authorization(self) -> dict[str, str]:
        """Raises ``UserError`` for a key that cannot be sent, without showing it."""
        key = os.environ.get(self.params.key_env, "").strip()
        if not key:
            return {}
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"judge: the variable {self.params.key_env} holds what cannot be a key (odd characters)")
        return {"Authorization": f"Bearer {key}"}

    def _unusable(self, why: str) -> UserError:
        return UserError(
            f"judge {self._address}: no usable answer ({why}); answers so far are kept in {self.path}, start again to"
            " go on"
        )

    def _count(self, usage: Any) -> None:
        with self.lock:
            self.spent["requests"] += 1
            for name in ("prompt_tokens", "completion_tokens"):
                number = usage.get(name) if isinstance(usage, dict) else None
                self.spent[name] += max(number, 0) if isinstance(number, int) else 0

    def _told(self, prompts: list[str], before: dict[str, int]) -> str:
        sent, read, written = (self.spent[name] - before[name] for name in self.spent)
        line = f"judge {self.params.model}: {len(prompts):,} answers, {sent:,} requests"
        line += f", {read:,} tokens read and {written:,} written" if read or written else ", tokens not told"
        if (price := self.params.price) and (read or written):
            line += f", {(read * price.input + written * price.output) / 1e6:.4f} {price.currency}"
        lost = sum(self.heard[prompt] is None for prompt in prompts)
        return line + (f"; {lost:,} could not be read and are asked again at the next start" if lost else "")


def _text(told: dict[str, Any]) -> str | None:
    match told.get("choices"):
        case [{"message": {"content": str(text)}}, *_]:
            return text
    return None


class _Patient(urllib3.Retry):
    """Waits by its own rule where an endpoint asks for a pause in words that say none."""

    def parse_retry_after(self, retry_after: str) -> float:
        try:
            return super().parse_retry_after(retry_after)
        except InvalidHeader:
            return 0


def _pool(params: JudgeParams) -> urllib3.PoolManager:
    """Connections to the endpoint alone: no redirects, and a pause that grows (or that the endpoint asks for) where it
    is busy.
    """
    retries = _Patient(
        total=params.retries,
        connect=1,
        redirect=False,
        status_forcelist=BUSY,
        allowed_methods=None,
        backoff_factor=0.5,
        backoff_max=SECONDS,
        retry_after_max=SECONDS,
        raise_on_status=False,
    )
    options: dict[str, Any] = {
        "retries": retries,
        "timeout": urllib3.Timeout(connect=10, read=SECONDS),
        "maxsize": params.at_once,
    }
    address = urlsplit(params.url)
    proxy = getproxies().get(address.scheme)
    if proxy and not proxy_bypass(address.hostname or ""):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)
