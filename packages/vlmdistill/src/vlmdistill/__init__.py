"""What a vision-language model looks at, as a target for the routing of a video generator."""

from importlib.metadata import version

from vlmdistill.clips import Clip
from vlmdistill.crossattention import word_maps
from vlmdistill.localisation import Bar, Localisation, bar, localise, macro, random_router
from vlmdistill.losses import map_alignment
from vlmdistill.overlay import overlay
from vlmdistill.questions import NEUTRAL, PLACELESS, VOCABULARIES, question
from vlmdistill.reader import Reader
from vlmdistill.targets import Contrast, Targets, contrast, pack, regrid, stack, token_targets, unpack
from vlmdistill.tiny import tiny
from vlmdistill.vlm import Look, Vlm, annotate, load, wrap

__all__ = [
    "NEUTRAL",
    "PLACELESS",
    "VOCABULARIES",
    "Bar",
    "Clip",
    "Contrast",
    "Localisation",
    "Look",
    "Reader",
    "Targets",
    "Vlm",
    "__version__",
    "annotate",
    "bar",
    "contrast",
    "load",
    "localise",
    "macro",
    "map_alignment",
    "overlay",
    "pack",
    "question",
    "random_router",
    "regrid",
    "stack",
    "tiny",
    "token_targets",
    "unpack",
    "word_maps",
    "wrap",
]
__version__ = version("vlmdistill")
