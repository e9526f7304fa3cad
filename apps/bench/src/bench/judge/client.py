"""Two judges: a model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, hosted), or one on this machine.

A judge answers a question about frames with text, or raises `NoAnswer`. What a second try may cure (no connection, a
time-out, status 408, 409, 429 or 5xx) is tried again by the client library with growing pauses; the rest is not. The
server's key comes from an environment variable, and is cut out of whatever is said about a failure.
"""

import os
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bench.judge.frames import as_urls
from bench.judge.questions import SYSTEM, Question


class NoAnswer(RuntimeError):
    """The judge was not reached or said nothing."""


@runtime_checkable
class Judge(Protocol):
    """Whoever answers; `name` and `settings` go into the result."""

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What the answers depend on."""
        ...

    def ask(self, question: Question, frames: Sequence[np.ndarray]) -> str:
        """Answer, or raise `NoAnswer`."""
        ...


@dataclass(frozen=True)
class Server:
    """A model behind POST {base_url}/chat/completions that takes images.

    One question takes at most (retries + 1) * timeout_s and the pauses between.
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 120.0
    retries: int = 4
    max_tokens: int = 64
    quality: int = 90

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"expected a server such as http://localhost:8000/v1, got {self.base_url!r}")
        if "@" in parts.netloc:
            raise ValueError(
                f"expected a server without a password in its address; put the key into ${self.key_variable}"
            )
        if not self.model:
            raise ValueError("expected the name of a model (--model), got an empty one")
        if self.timeout_s <= 0 or self.retries < 0 or self.max_tokens < 1:
            raise ValueError(f"expected a time-out above 0, retries >= 0 and max_tokens >= 1, got {self}")

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model

    @property
    def settings(self) -> dict[str, Any]:
        """Temperature and length of the answers; the server's address is nobody's business."""
        return {"served": True, "temperature": 0, "max_tokens": self.max_tokens, "jpeg_quality": self.quality}

    @cached_property
    def _client(self) -> Any:
        from openai import OpenAI

        key = os.environ.get(self.key_variable) or "none"  # a local server wants no key, the library wants one
        return OpenAI(base_url=self.base_url, api_key=key, timeout=self.timeout_s, max_retries=self.retries)

    def ask(self, question: Question, frames: Sequence[np.ndarray]) -> str:
        """Answer at temperature 0."""
        import openai

        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in as_urls(frames, self.quality)]
        messages: list[Any] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": [*pictures, {"type": "text", "text": question.text}]},
        ]
        try:
            reply = self._client.chat.completions.create(
                model=self.model, messages=messages, temperature=0, max_tokens=self.max_tokens
            )
            said = reply.choices[0].message.content
        except openai.OpenAIError as error:
            raise NoAnswer(self._clean(f"{type(error).__name__}: {error}")) from None
        except (AttributeError, IndexError, TypeError) as error:
            raise NoAnswer(f"a reply without choices[0].message.content ({type(error).__name__})") from None
        if not isinstance(said, str) or not said.strip():
            raise NoAnswer("an empty answer")
        return said

    def _clean(self, words: str) -> str:
        key = os.environ.get(self.key_variable)
        return " ".join((words.replace(key, "[key]") if key else words).split())[:300]


@dataclass(frozen=True)
class LocalModel:
    """A vision-language model of transformers (Qwen2.5-VL, LLaVA-OneVision, InternVL, ...), greedy.

    Safetensors only, and no code of the model's folder is run. It loads with the first question.
    """

    path: str
    device: str = "cpu"
    max_tokens: int = 64

    @property
    def name(self) -> str:
        """Name of the model: the last part of its folder or hub id."""
        return Path(self.path).name

    @property
    def settings(self) -> dict[str, Any]:
        """Kind of decoding and length of the answers."""
        return {"served": False, "temperature": 0, "max_tokens": self.max_tokens}

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            processor = AutoProcessor.from_pretrained(self.path, trust_remote_code=False)
        except ImportError as error:
            lack = " ".join(str(error).split())[:160]
            raise ValueError(
                f"a judge on this machine needs transformers, and most models torchvision: pip install transformers "
                f"torchvision (or name a --server). {lack}"
            ) from None
        model: Any = AutoModelForImageTextToText.from_pretrained(
            self.path, use_safetensors=True, trust_remote_code=False, dtype="auto"
        )
        return processor, model.to(self.device).eval()

    def ask(self, question: Question, frames: Sequence[np.ndarray]) -> str:
        """Answer greedily."""
        import torch

        processor, model = self._loaded
        pictures: list[Any] = [{"type": "image"} for _ in frames]
        messages = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": [*pictures, {"type": "text", "text": question.text}]},
        ]
        words = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(text=[words], images=list(frames), return_tensors="pt").to(self.device)
        start = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=self.max_tokens)
        said = str(processor.batch_decode(out[:, start:], skip_special_tokens=True)[0])
        if not said.strip():
            raise NoAnswer("an empty answer")
        return said
