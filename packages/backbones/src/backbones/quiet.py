"""Loading without bars for what loads in a moment."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

__all__ = ["no_weight_bars"]


@contextmanager
def no_weight_bars() -> Iterator[None]:
    """Hide the bars of transformers that count weights; its own `disable_progress_bar` would hide downloads, too."""
    hook = logging.set_tqdm_hook(lambda make, args, kwargs: make(*args, **(kwargs | {"disable": True})))
    try:
        yield
    finally:
        logging.set_tqdm_hook(hook)
