"""What a vision-language model looks at, as a target for the routing of a video generator."""

from importlib.metadata import version

__all__ = ["__version__"]
__version__ = version("vlmdistill")
