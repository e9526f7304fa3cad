"""Who says which mechanisms a clip shows: its annotation, the words of its caption, or a language model.

Labels are a prior of the router and decide which residuals a clip has to answer; they are never a target. A caption
that names nothing has no labels, and the router decides alone. The language model is asked twice, as in the paper:
rewrite the prompt as a description of the physics, then name the mechanisms in it (`physexperts.LanguageModel`).

References: PILA (Wang et al., 2026), data section and Figs. 8-9 (prompt templates, text not available).
"""

import zlib
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from physexperts import MECHANISMS, Labels, LanguageModel, LocalModel, Server, from_text, random_labels
from pila.config import Parser

__all__ = ["language_model", "multi_hot", "read_caption", "shuffle"]


def read_caption(caption: str, *, how: Literal["none", "keywords", "llm"], parser: Parser) -> Labels:
    """Name the mechanisms of a caption."""
    if how == "none":
        return Labels()
    return from_text(caption) if how == "keywords" else language_model(parser).parse(caption)


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


def language_model(parser: Parser) -> LanguageModel:
    """The model of a recipe, one for the whole run; ValueError when none is configured."""
    return _language_model(parser.model_dump_json())


@cache
def _language_model(settings: str) -> LanguageModel:
    parser = Parser.model_validate_json(settings)
    if parser.local:
        chat = LocalModel(parser.local)
    elif parser.base_url and parser.model:
        chat = Server(parser.base_url, parser.model, key_variable=parser.key_variable, timeout_s=parser.timeout_s)
    else:
        raise ValueError(
            "expected parser.base_url and parser.model, or parser.local, to read prompts with a language model, got "
            "none; set them, or use keywords (sampling.labels=keywords, data.fallback=keywords)"
        )
    return LanguageModel(chat, refine=parser.refine, cache=parser.cache, fallback=parser.fallback == "keywords")
