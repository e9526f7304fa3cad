"""Where a video generator's own attention puts the words of its prompt, to lay beside the maps of a language model.

    map[token, word] = softmax over the keys of  q_token K^T * scale,   at the key of the word,   mean over heads

This needs no generator's code: the attention modules are handed in (a Wan's `attn2`, a CogVideoX's joint `attn1`), and
while one of them runs, its calls of `scaled_dot_product_attention` are read, with queries and keys as they enter; the
output is untouched. Maps are averaged over heads, modules and calls. In a joint attention the words are the first keys
and the video the last queries: `first` says how many queries are words. The whole matrix is never formed; blocks of
rows are. To have ProPhy's picture, add 10 % noise to a latent (sigma .1) and predict once inside the block.

What surprises: fused kernels that bypass `scaled_dot_product_attention` (flash attention set as a backend) cannot be
read; that raises at the end rather than giving an empty map.

References: ProPhy (Wang et al., 2025), Fig. 4; DAAM (Tang et al., 2022) for maps of words from cross-attention.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["WordMaps", "word_maps"]

_BLOCK = 2**22  # elements of a block of rows, as in attention.py


class WordMaps(TorchFunctionMode):
    """What `word_maps` collects; `mean()` gives the maps."""

    def __init__(self, words: Sequence[int], first: int, keys: int | None) -> None:
        super().__init__()
        self.words, self.first, self.keys = list(words), first, keys
        self.inside = 0
        self._sum: Tensor | None = None
        self._calls = 0

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and self.inside:
            self._record(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _record(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        if self.keys is not None and key.shape[-2] != self.keys:
            return
        if is_causal or enable_gqa:
            raise ValueError(
                "expected attention of video over words, got a causal or grouped one: hand in other modules"
            )
        if max(self.words) >= key.shape[-2]:
            raise ValueError(f"expected words below the {key.shape[-2]} keys, got {max(self.words)}")
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        with torch.no_grad():
            rows = query[:, :, self.first :]
            if attn_mask is not None:
                full = attn_mask.expand(*attn_mask.shape[:-2], query.shape[-2], key.shape[-2])
                attn_mask = full[..., self.first :, :]
            keys, parts = key.float().mT, []
            block = max(1, _BLOCK // (query.shape[0] * query.shape[1] * key.shape[-2]))
            for start in range(0, rows.shape[2], block):
                scores = rows[:, :, start : start + block].float() @ keys * factor
                if attn_mask is not None:
                    mask = attn_mask[..., start : start + block, :]
                    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
                parts.append(scores.softmax(-1)[..., self.words].mean(1))
            found = torch.cat(parts, 1)
        if self._sum is not None and self._sum.shape != found.shape:
            raise ValueError(
                f"expected calls of one shape, got {tuple(self._sum.shape)} and {tuple(found.shape)}: give `keys`, the "
                "number of words' keys, or hand in fewer modules"
            )
        self._sum = found if self._sum is None else self._sum + found
        self._calls += 1

    def mean(self) -> Float[Tensor, "b n k"]:
        """Mean over all calls: a row for each token of the video (raster order), a column for each word."""
        if self._sum is None:
            raise ValueError(
                "expected an attention module to run through scaled_dot_product_attention, got no such call: run the "
                "model inside the block, with the native backend of attention"
            )
        return self._sum / self._calls


@contextmanager
def word_maps(
    modules: Sequence[nn.Module], words: Sequence[int], *, first: int = 0, keys: int | None = None
) -> Iterator[WordMaps]:
    """Read the attention over the keys `words` while the modules run; hooks are gone afterwards, also after an error.

    `first` is the first query that is video; `keys` skips calls with another number of keys, such as the picture's in
    an image-to-video Wan.

    >>> class Cross(nn.Module):
    ...     def forward(self, x, text):
    ...         return F.scaled_dot_product_attention(x[:, None], text[:, None], text[:, None])[:, 0]
    >>> cross = Cross()
    >>> with word_maps([cross], [0, 2]) as seen:
    ...     _ = cross(torch.randn(1, 6, 8), torch.randn(1, 3, 8))
    >>> seen.mean().shape
    torch.Size([1, 6, 2])
    """
    if not modules or not words or min(words) < 0:
        raise ValueError("expected at least one module and one word, places of words counted from 0")
    seen = WordMaps(words, first, keys)

    def enter(module: nn.Module, args: Any) -> None:
        seen.inside += 1

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        seen.inside -= 1

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(seen)
        yield seen
