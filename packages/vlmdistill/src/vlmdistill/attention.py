"""Rows of attention over chosen columns, read while a transformers model runs, at the cost of those rows alone.

    row = softmax(q_row K^T * scale + mask)[columns],   mean over heads,   for the last queries of chosen layers

A forward through SDPA never forms the heads x S x S matrix of attention, and `output_attentions=True` gives nothing
there; the eager path forms it. `reading` registers an attention function of its own with transformers
(AttentionInterface), gives it to the text part of one model, and takes both away at the end, whatever happened: the
forward stays SDPA, and beside it the wanted rows are computed from the same queries and keys, after rotary embedding
and with the cache, in float32, in blocks of bounded size. What surprises: the row that belongs to an answer's token is
the one that *predicted* it, the query of the token before; so rows are those of the last prompt token and of all
answer tokens but the last, in a forced pass as in generation with a cache.

References: transformers' AttentionInterface; ProPhy (Wang et al., 2025) for the use.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Heads", "Recorder", "reading", "select"]

Heads = Mapping[int, tuple[int, ...]]
"""Layers of the text part, and the heads of each that are averaged."""

_BLOCK = 2**22  # elements of a block of rows: 16 MiB in float32, below what one layer of a 7B model makes anyway


def select(
    model: Any, layers: Sequence[int] | None = None, heads: Sequence[int] | Mapping[int, Sequence[int]] | None = None
) -> dict[int, tuple[int, ...]]:
    """Name layers and heads: by default the middle third of the layers and all heads (our choice).

    `heads` are the same in all layers, or given by layer (then `layers` may be left out). ValueError for those that the
    model does not have.
    """
    config = model.config.get_text_config()
    count, width = config.num_hidden_layers, config.num_attention_heads
    if isinstance(heads, Mapping):
        if layers is not None and set(layers) != set(heads):
            raise ValueError(f"expected heads for the layers {sorted(layers)}, got heads of {sorted(heads)}")
        chosen = {int(layer): tuple(sorted(of)) for layer, of in sorted(heads.items())}
    else:
        default = range(count // 3, count - count // 3)
        chosen = {
            int(layer): tuple(range(width) if heads is None else sorted(heads))
            for layer in sorted(default if layers is None else layers)
        }
    if not chosen or not all(0 <= layer < count for layer in chosen):
        raise ValueError(f"expected layers from 0 to {count - 1}, at least one, got {sorted(chosen)}")
    for of in chosen.values():
        if not of or len(set(of)) != len(of) or not all(0 <= head < width for head in of):
            raise ValueError(f"expected different heads from 0 to {width - 1}, at least one, got {list(of)}")
    return chosen


class Recorder:
    """What `reading` collects: for each layer the rows of each sample, one after the other."""

    def __init__(self, chosen: Heads, columns: Sequence[Tensor], last: int) -> None:
        self.chosen, self.columns, self.last = chosen, columns, last
        self._furthest = max((int(column.max()) for column in columns if len(column)), default=-1)
        self._found: dict[int, list[list[Tensor]]] = {layer: [[] for _ in columns] for layer in chosen}

    def rows(self, sample: int) -> Float[Tensor, "l r n"]:
        """Rows of one sample over its columns, layers in order; a row sums to the share that these columns get."""
        if not all(self._found[layer][sample] for layer in self.chosen):
            raise ValueError("expected a forward of the model while its attention is read, got none")
        return torch.stack([torch.cat(self._found[layer][sample]) for layer in self.chosen])

    def record(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, *, scale: float) -> None:
        """Add the last rows of one call: query (b, H, q, d), key (b, H_kv, s, d), mask (b, 1, q, s) or causal."""
        heads, (b, _, q, d), s = self.chosen[layer], query.shape, key.shape[2]
        if b != len(self.columns) or s <= self._furthest:
            raise ValueError(
                f"expected a batch of {len(self.columns)} with all keys of the prompt, got {b} and {s} keys: "
                "several beams and caches that forget (a sliding window) cannot be read"
            )
        group, every = query.shape[1] // key.shape[1], len(heads) == query.shape[1]
        keys = (key if every else key[:, [head // group for head in heads]]).float()
        block = max(1, _BLOCK // (b * len(heads) * s))
        for start in range(q - min(q, self.last), q, block):
            rows = slice(start, min(start + block, q))
            queries = query[:, list(heads), rows].float()
            # the heads that share keys as rows of one product: repeated keys would be the largest thing here
            scores = queries.reshape(b, keys.shape[1], -1, d) @ keys.mT * scale
            scores = scores.view(b, len(heads), -1, s)
            if mask is not None and mask.dtype == torch.bool:
                scores.masked_fill_(~mask[:, :, rows, :s], -torch.inf)
            elif mask is not None:
                scores += mask[:, :, rows, :s]
            elif q > 1:  # as SDPA takes it: causal from the first key on, and one query alone sees all keys
                place = torch.arange(s, device=key.device)
                scores.masked_fill_(place > place[rows, None], -torch.inf)
            mean = scores.softmax(-1).mean(1)
            for i, column in enumerate(self.columns):
                self._found[layer][i].append(mean[i][:, column])


@contextmanager
def reading(model: Any, chosen: Heads, columns: Sequence[Tensor], *, last: int = 1) -> Iterator[Recorder]:
    """Read the `last` rows of every forward inside the block; the model is as before afterwards, also after an error.

    `columns` are the positions of the keys that are kept, one tensor a sample. Decoding with a cache adds one row
    a step.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    recorder = Recorder(chosen, columns, last)

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if module.layer_idx in chosen:
            scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
            recorder.record(module.layer_idx, query, key, attention_mask, scale=scale)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    config = model.config.get_text_config()
    name, before = f"vlmdistill_{id(recorder)}", config._attn_implementation
    # one name a reading: two models may be read at once. The text part alone: the vision tower keeps its own
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)
    try:
        config._attn_implementation = name
        yield recorder
    finally:
        config._attn_implementation = before
        AttentionInterface._global_mapping.pop(name)  # there is no public way to unregister
        AttentionMaskInterface._global_mapping.pop(name)
