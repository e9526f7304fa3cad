"""Who says which mechanisms a clip shows: its annotation, the words of its caption, or a language model.

Labels are a prior of the router and decide which residuals a clip has to answer; they are never a target. A caption
that names nothing has no labels, and the router decides alone. The language model is asked twice, as in the paper:
rewrite the prompt as a description of the physics, then name the mechanisms in it; the wording of both questions is
ours.

References: PILA (Wang et al., 2026), data section and Figs. 8-9 (prompt templates, text not available).
"""

import json
import os
import urllib.error
import urllib.request
import zlib
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from physexperts import MECHANISMS, Labels, from_text, random_labels
from pila.config import Parser

__all__ = ["ask", "multi_hot", "read_caption", "shuffle"]

REWRITE = (
    "Rewrite this video prompt as one or two sentences that say which objects move or change, what they are made of "
    "and which physical processes are visible. Add nothing that the prompt does not imply. Answer with the sentences "
    "alone.\n\nPrompt: {prompt}"
)
NAME = (
    "Which of these physical mechanisms does the described video show? "
    f"{', '.join(MECHANISMS)}. "
    'Answer with JSON alone: {{"mechanisms": [...]}}, the most important first, an empty list if none is visible.\n\n'
    "Description: {description}"
)


def read_caption(caption: str, *, how: Literal["none", "keywords", "llm"], parser: Parser) -> Labels:
    """Name the mechanisms of a caption."""
    if how == "none":
        return Labels()
    return from_text(caption) if how == "keywords" else ask(caption, parser)


def multi_hot(
    captions: list[str], *, how: Literal["none", "keywords", "llm"], parser: Parser, shuffled: bool = False
) -> Float[Tensor, "b 8"]:
    """Labels of captions as rows of zeros and ones, in the order of `physexperts.MECHANISMS`.

    >>> multi_hot(["two balls collide"], how="keywords", parser=Parser())[0].nonzero().flatten().tolist()
    [0, 5]
    """
    rows = [read_caption(c, how=how, parser=parser).multi_hot for c in captions]
    if shuffled:
        rows = [shuffle(row, caption) for row, caption in zip(rows, captions, strict=True)]
    return torch.stack(rows) if rows else torch.zeros(0, len(MECHANISMS))


def shuffle(labels: Float[Tensor, "8"], key: str) -> Float[Tensor, "8"]:
    """As many labels as before on other mechanisms, always the same ones for the same key (ablation "random label")."""
    return random_labels(labels, torch.Generator().manual_seed(zlib.crc32(key.encode())))


def ask(caption: str, parser: Parser) -> Labels:
    """Ask an OpenAI-compatible server; ValueError when it is not configured, not there, or answers something else."""
    if not parser.base_url or not parser.model:
        raise ValueError(
            "expected parser.base_url and parser.model to read prompts with a language model, got none; "
            "set them, or use keywords (sampling.labels=keywords, data.fallback=keywords)"
        )
    description = _chat(REWRITE.format(prompt=caption), parser)
    answer = _chat(NAME.format(description=description), parser)
    try:
        names = json.loads(answer[answer.index("{") : answer.rindex("}") + 1])["mechanisms"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'expected {{"mechanisms": [...]}} from {parser.model}, got {answer[:200]!r}') from None
    return Labels.of(dict.fromkeys(names))


def _chat(content: str, parser: Parser) -> str:
    body = {"model": parser.model, "temperature": 0, "messages": [{"role": "user", "content": content}]}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(parser.key_variable):
        headers["Authorization"] = f"Bearer {key}"
    url = parser.base_url.rstrip("/") + "/chat/completions"
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"expected parser.base_url to begin with http:// or https://, got {parser.base_url!r}")
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=parser.timeout_s) as reply:
            return json.load(reply)["choices"][0]["message"]["content"]
    except (urllib.error.URLError, TimeoutError, KeyError, IndexError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a chat completion from {url}, got {error}; is the server running?") from None
