"""The documentation's site: `uv run sphinx-build -W -c docs . build/site`, then open `build/site/index.html`.

Sphinx reads the whole repository, not `docs/` alone, so that a relative link between Markdown files means the same on a
code host and on the site, and the READMEs of packages and apps are pages where they lie. Nothing is fetched.
"""

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
import recipe_tables

project = "phys-toolkit"
author = "the project's contributors"
html_title = "Physically plausible video generation"

root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**.md",
    "benchmarks/**.md",
    "release/*.md",
    "apps/*/*.md",
    "packages/*/*.md",
    "packages/backbones/src/backbones/weights/*/README.md",
    "apps/bench/src/bench/data/README.md",
]
exclude_patterns = [".*", "**/__pycache__", "**/tests", "build", "dist", "runs", "outputs", "bench-demo"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
autosummary_generate = False
autodoc_default_options = {"members": True, "undoc-members": True, "exclude-members": "model_config, model_post_init"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
toc_object_entries = False  # a quarter of the build's time; each API page begins with a table of its names
smartquotes = False  # quotes in tables are those of values
default_role = "code"  # of `names` in docstrings
maximum_signature_line_length = 88
myst_heading_anchors = 4
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
linkcheck_ignore = [r"http://localhost"]
linkcheck_timeout = 30
linkcheck_retries = 2

# Pages below a page in the sidebar (docs/index.md lists the others): on a code host Markdown stays free of it.
BELOW = {
    "docs/physfields": [
        "packages/physfields/README",
        "docs/physfields-operators",
        "docs/physfields-residuals",
        "docs/physfields-exact",
        "docs/physfields-comparison",
        "packages/physfields/CHANGELOG",
    ],
    "docs/physexperts": ["packages/physexperts/README", "docs/labels", "packages/physexperts/CHANGELOG"],
    "docs/vlmdistill": ["packages/vlmdistill/README", "packages/vlmdistill/CHANGELOG"],
    "docs/physworld": ["packages/physworld/README", "packages/physworld/CHANGELOG"],
    "docs/backbones": [
        "packages/backbones/README",
        "packages/backbones/src/backbones/weights/world/README",
        "packages/backbones/src/backbones/weights/vjepa2-world/README",
        "packages/backbones/CHANGELOG",
    ],
    "docs/trainers": ["packages/trainers/README", "packages/trainers/CHANGELOG"],
    "docs/pila": ["apps/pila/README", "docs/pila-terms", "docs/pila-ablations", "apps/pila/CHANGELOG"],
    "docs/prophy": ["apps/prophy/README", "apps/prophy/CHANGELOG"],
    "docs/phantom": ["apps/phantom/README", "apps/phantom/CHANGELOG"],
    "docs/mmphysvideo": ["apps/mmphysvideo/README", "docs/mmphyspipe", "apps/mmphysvideo/CHANGELOG"],
    "docs/bench": [
        "apps/bench/README",
        "docs/bench-physics-iq",
        "docs/bench-benchmarks",
        "docs/bench-laws",
        "apps/bench/src/bench/data/README",
        "apps/bench/CHANGELOG",
    ],
    "apps/world/README": ["apps/world/CHANGELOG"],
    "docs/contributing/index": [f"docs/contributing/{name}" for name in ("backbone", "residual", "expert", "recipe")],
    "THIRD_PARTY_NOTICES": ["packages/*/THIRD_PARTY_NOTICES", "apps/*/THIRD_PARTY_NOTICES"],
    "CONTRIBUTING": ["release/README"],
    "benchmarks/README": ["benchmarks/gpu/QUEUE", "benchmarks/slow"],
}


def pages_below(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the hidden toctree of `BELOW` to a page's text."""
    if page in BELOW:
        entries = "".join(f"/{below}\n" for below in BELOW[page])
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{entries}```\n"


def recipe_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the tables of a recipe in the place of `<!-- recipe module:Class -->`, and those of its fields that are our
    choice in that of `<!-- choices module:Class -->`.
    """
    source[0] = re.sub(r"<!-- choices (\S+) -->", lambda found: recipe_tables.choices(found[1]), source[0])
    source[0] = re.sub(r"<!-- recipe (\S+) -->", lambda found: recipe_tables.page(found[1]), source[0])


def api_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the documentation of a package and of its public modules in the place of `<!-- api package -->`."""
    source[0] = re.sub(r"<!-- api (\S+) -->", lambda found: api(import_module(found[1])), source[0])


def api(module: ModuleType, above: tuple[object, ...] = ()) -> str:
    """A table of a module's names, then each of them, then its public modules. What `above` holds is left out."""
    own = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and name[0] != "_"
    ]
    public = {name: getattr(module, name) for name in getattr(module, "__all__", own) if name != "__version__"}
    modules = [value for value in public.values() if isinstance(value, ModuleType)]
    told = [name for name, value in public.items() if any(value is other for other in above)]
    left_out = ["__version__", *(name for name, value in public.items() if isinstance(value, ModuleType)), *told]
    names = "".join(f"   {name}\n" for name in public if name not in left_out)
    title, here = module.__name__, f".. currentmodule:: {module.__name__}"
    table = f"{here}\n\n.. autosummary::\n   :nosignatures:\n\n{names}" if names else ""
    body = f".. automodule:: {title}\n   :exclude-members: {', '.join(left_out)}"
    heading = f"## {title}\n\n" if above else ""
    below = "".join(api(one, tuple(public.values())) for one in modules)
    return f"{heading}```{{eval-rst}}\n{table}\n{body}\n```\n\n{below}"


def docstrings(app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring: stars and bars are themselves, four spaces are code, a doctest stays."""
    blocks = re.split(r"\n{2,}", "\n".join(lines))
    for i, block in enumerate(blocks):
        if block.startswith("    ") and (i == 0 or not blocks[i - 1].startswith("    ")):
            blocks[i] = f"::\n\n{block}"
        elif not block.lstrip().startswith((">>>", "    ")):
            block = re.sub(r"`[^`]+`(?=[\w(])", r"\g<0>\\ ", block)
            blocks[i] = re.sub(r"`[^`]+`|[|*]", lambda found: found[0] if len(found[0]) > 1 else f"\\{found[0]}", block)
    lines[:] = "\n\n".join(blocks).split("\n")


def front_door(app: Sphinx, error: Exception | None) -> None:
    """Write index.html, which leads to the first page: that page lies where its source does, in docs/."""
    if error is None and app.builder.name == "html":
        start = "docs/index.html"
        text = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={start}">'
        (Path(app.outdir) / "index.html").write_text(
            f'{text}<title>{html_title}</title><a href="{start}">{html_title}</a>\n', encoding="utf-8"
        )


def setup(app: Sphinx) -> None:
    """Register what this file adds to Sphinx."""
    app.connect("source-read", pages_below)
    app.connect("source-read", recipe_pages)
    app.connect("source-read", api_pages)
    app.connect("autodoc-process-docstring", docstrings)
    app.connect("build-finished", front_door)
