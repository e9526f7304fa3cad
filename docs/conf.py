"""The documentation's site: `uv run sphinx-build -W -c docs . build/site`, then open `build/site/index.html`.

Sphinx reads the whole repository, not `docs/` alone, so that a relative link between Markdown files means the same on a
code host and on the site, and the READMEs of packages and apps are pages where they lie. Nothing is fetched.
"""

from pathlib import Path

from sphinx.application import Sphinx

project = "phys-toolkit"
author = "the project's contributors"
html_title = "Physically plausible video generation"

root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**.md",
    "benchmarks/**.md",
    "apps/*/*.md",
    "packages/*/*.md",
    "packages/backbones/src/backbones/weights/*/README.md",
    "apps/bench/src/bench/data/README.md",
]
exclude_patterns = [".*", "**/__pycache__", "**/tests", "build", "dist", "runs", "outputs", "bench-demo"]

extensions = ["myst_parser"]
myst_heading_anchors = 4
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
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
    "docs/pila": ["apps/pila/README", "apps/pila/CHANGELOG"],
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
    "benchmarks/README": ["benchmarks/gpu/QUEUE", "benchmarks/slow"],
}


def pages_below(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the hidden toctree of `BELOW` to a page's text."""
    if page in BELOW:
        entries = "".join(f"/{below}\n" for below in BELOW[page])
        source[0] += f"\n```{{toctree}}\n:hidden:\n\n{entries}```\n"


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
    app.connect("build-finished", front_door)
