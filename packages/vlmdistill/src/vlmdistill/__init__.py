"""What a vision-language model looks at, as a target for the routing of a video generator."""

from importlib.metadata import version

from vlmdistill.losses import map_alignment
from vlmdistill.questions import NEUTRAL, PLACELESS, VOCABULARIES, question
from vlmdistill.targets import Contrast, Targets, contrast, pack, regrid, stack, token_targets, unpack

__all__ = [
    "NEUTRAL",
    "PLACELESS",
    "VOCABULARIES",
    "Contrast",
    "Targets",
    "__version__",
    "contrast",
    "map_alignment",
    "pack",
    "question",
    "regrid",
    "stack",
    "token_targets",
    "unpack",
]
__version__ = version("vlmdistill")
