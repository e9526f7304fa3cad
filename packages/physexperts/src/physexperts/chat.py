"""Two ways to ask a language model: an OpenAI-compatible server over HTTP, or a transformers model on this machine.

A chat takes messages and, if the answer has to be JSON, a schema of one list of names,
{"properties": {KEY: {"items": {"enum": [...]}}}}; it returns text or raises `NoAnswer`. The server is *told* the schema
and may ignore it, so its answers still need checking; the local model *cannot* leave it: each token is chosen among
those that keep the answer valid.

Keys come from an environment variable when they are needed, and from nowhere else. They are cut out of whatever the
server sends back, so that neither an error message nor a cache can hold one; redirects are refused, since urllib would
carry the key along to another host.
"""

import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from typing import Any, Protocol, runtime_checkable

__all__ = ["Chat", "LocalModel", "NoAnswer", "Server"]

Message = dict[str, str]

_LARGEST = 4 * 2**20  # bytes of a reply that are read at most
_LONGEST_WAIT_S = 30.0  # that a server may ask for (Retry-After)


class NoAnswer(RuntimeError):
    """The model was not reached or sent nothing that can be used; the message says what came instead.

    >>> from physexperts import LanguageModel
    >>> class Mute:  # stands for a Server or a LocalModel
    ...     model = "mute"
    ...     def ask(self, messages, schema=None):
    ...         return ""
    >>> try:
    ...     LanguageModel(Mute(), fallback=False).parse("fire")
    ... except NoAnswer as error:
    ...     print(error)
    expected a description of 1 to 2000 characters from mute, got 0
    """


@runtime_checkable
class Chat(Protocol):
    """Anything that answers a list of messages: `model` names it in caches and warnings.

    >>> isinstance(Server("http://localhost:8000/v1", "qwen"), Chat), isinstance("qwen", Chat)
    (True, False)
    """

    @property
    def model(self) -> str:
        """Name of the model."""
        ...

    def ask(self, messages: Sequence[Message], schema: dict[str, Any] | None = None) -> str:
        """Answer with text, JSON of the schema if one is given; `NoAnswer` if that fails."""
        ...


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


@dataclass(frozen=True)
class Server:
    """A model behind POST {base_url}/chat/completions, as vLLM, llama.cpp, Ollama and hosted services speak it.

    One question takes at most (retries + 1) * (timeout_s + wait); the wait starts at `backoff_s` and doubles. What a
    second try may cure is tried again (no connection, timeout, 408, 429, 5xx, a broken reply), the rest is not.

    >>> Server("http://localhost:8000/v1", "qwen").url
    'http://localhost:8000/v1/chat/completions'
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 30.0
    retries: int = 2
    backoff_s: float = 0.5
    structured: bool = True  # send the schema as response_format; a few servers do not know it

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"expected base_url such as http://localhost:8000/v1, got {self.base_url!r}")
        if "@" in parts.netloc:
            raise ValueError(f"expected base_url without a password; put the key into ${self.key_variable}")
        if not self.model:
            raise ValueError("expected the name of a model, got an empty one")

    @property
    def url(self) -> str:
        """Where questions go."""
        return self.base_url.rstrip("/") + "/chat/completions"

    def ask(self, messages: Sequence[Message], schema: dict[str, Any] | None = None) -> str:
        """Answer at temperature 0."""
        body: dict[str, Any] = {"model": self.model, "temperature": 0, "messages": list(messages)}
        if schema is not None and self.structured:
            form = {"name": "labels", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        wait, trouble = self.backoff_s, ""
        for left in range(self.retries, -1, -1):
            try:
                return self._clean(_content(self._post(body)))
            except urllib.error.HTTPError as error:
                with error:
                    said = self._clean(error.read(500).decode(errors="replace"))
                trouble = f"status {error.code} ({' '.join(said.split())})"
                if error.code == 400 and schema is not None and self.structured:
                    trouble += "; if the server does not know response_format, set structured=False"
                if error.code not in (408, 429) and error.code < 500:
                    break
                asked_for = error.headers.get("Retry-After") or ""
                wait = max(wait, min(float(asked_for) if asked_for.isdecimal() else 0.0, _LONGEST_WAIT_S))
            except (OSError, HTTPException, ValueError, RecursionError) as error:
                trouble = self._clean(f"{type(error).__name__}: {error}")
            if left:
                time.sleep(wait)
                wait *= 2
        raise NoAnswer(f"expected a chat completion from {self.url}, got {trouble}; is the server running?")

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        deadline = time.monotonic() + self.timeout_s
        data = bytearray()
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout_s) as reply:
            while chunk := reply.read1(65536):  # the socket's timeout is for one read: a server may drip for ever
                data += chunk
                if len(data) > _LARGEST:
                    raise ValueError(f"more than {_LARGEST} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no whole reply within {self.timeout_s:g} s")
        return json.loads(data)

    def _clean(self, text: str) -> str:
        key = os.environ.get(self.key_variable)
        return text.replace(key, "[key]") if key else text


def _content(reply: Any) -> str:
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        raise ValueError("a reply without choices[0].message.content")
    return content


@dataclass(frozen=True)
class LocalModel:
    """A transformers model with a chat template, greedy; safetensors only, and no code from the model's folder is run.

    Needs transformers (`pip install transformers`). The model loads with the first question; a path without one is
    transformers' OSError, not `NoAnswer`: keywords never stand in for a misspelt path.

    >>> LocalModel("folder/of/a/model", max_tokens=64).model
    'folder/of/a/model'
    """

    path: str  # a folder or a hub id
    device: str = "cpu"
    max_tokens: int = 256  # of one answer

    @property
    def model(self) -> str:
        """Where the model came from."""
        return self.path

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise ImportError(
                "a local language model needs transformers: pip install transformers (or ask a Server, or use Keywords)"
            ) from None
        tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        network: Any = AutoModelForCausalLM.from_pretrained(self.path, use_safetensors=True, trust_remote_code=False)
        return tokenizer, network.to(self.device).eval()

    @cached_property
    def _tokens(self) -> dict[str, int]:
        """Tokens that are plain ASCII without blanks; these read the same in every kind of tokenizer."""
        vocabulary: dict[str, int] = self._loaded[0].get_vocab()
        special = set(self._loaded[0].all_special_tokens)
        plain = {t: i for t, i in vocabulary.items() if t and t.isascii() and t.isprintable() and " " not in t}
        return {t: i for t, i in plain.items() if t not in special}

    def ask(self, messages: Sequence[Message], schema: dict[str, Any] | None = None) -> str:
        """Answer; with a schema every answer is valid JSON of it, unless `max_tokens` cuts it off."""
        import torch

        tokenizer, network = self._loaded
        ids = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.device)
        start = ids["input_ids"].shape[1]
        rule: dict[str, Any] = {}
        if schema is not None:
            rule["prefix_allowed_tokens_fn"] = lambda _, row: self._allowed(row[start:].tolist(), schema)
        with torch.no_grad():
            out = network.generate(
                **ids, do_sample=False, max_new_tokens=self.max_tokens, pad_token_id=tokenizer.eos_token_id, **rule
            )
        row: list[int] = out[0, start:].tolist()
        return self._text(row) if schema is not None else str(tokenizer.decode(row, skip_special_tokens=True))

    def _text(self, row: Sequence[int]) -> str:
        names = self._loaded[0].convert_ids_to_tokens(list(row))
        special = set(self._loaded[0].all_special_tokens)
        return "".join(name for name in names if name not in special)

    def _allowed(self, row: Sequence[int], schema: dict[str, Any]) -> list[int]:
        """Tokens with which the answer so far is still the beginning of a valid one; at its end, the end."""
        rests = _continuations(self._text(row), schema)
        pieces = {rest[:n] for rest in rests for n in range(1, len(rest) + 1)}
        found = [self._tokens[piece] for piece in pieces if piece in self._tokens]
        return found or [self._loaded[0].eos_token_id]


def _continuations(text: str, schema: dict[str, Any]) -> list[str]:
    """How JSON of one list of different names may go on, up to the end of the next name; [] once it is whole.

    >>> schema = {"properties": {"a": {"items": {"enum": ["x", "y"]}}}}
    >>> _continuations('{"a":["x"', schema)
    [',"y"', ']}']
    """
    (key, value), *_ = schema["properties"].items()
    opening = f'{{"{key}":['
    if len(text) < len(opening):
        return [opening[len(text) :]]
    body = text[len(opening) :]
    whole: list[str] = re.findall(r'"([^"]*)"', body)
    rest = body[len(",".join(f'"{name}"' for name in whole)) :]  # an entry in the making, or the end
    comma = "," if whole else ""
    ways = [f'{comma}"{name}"' for name in value["items"]["enum"] if name not in whole] + ["]}"]
    return [way[len(rest) :] for way in ways if way.startswith(rest) and way != rest]
