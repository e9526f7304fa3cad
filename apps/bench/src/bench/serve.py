"""Runs in a folder, looked at in a browser: reports of results, and curves of trainings while they run.

A run is a folder with a `result.json` or a `log.jsonl` anywhere below the served one. The server listens on this
machine alone unless told otherwise, answers only to names of it (another site's page cannot reach it through a name
that was pointed here), reads and never writes, and gives out nothing but rendered pages and the numbers of logs: no
path leads out of the folder, and no file is sent as it is.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from bench import report, results
from bench.live import curves, read_log

HOME = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")
LOG = "log.jsonl"
DEEPEST = 6
"""Folders below the served one in which runs are looked for (our choice)."""
MOST_POINTS = 600
"""Points of a curve that are sent; of longer logs every n-th line (our choice)."""


@dataclass(frozen=True)
class Run:
    """A folder that holds something to look at, by its path below the served one."""

    place: str
    title: str
    has_result: bool
    has_log: bool
    changed: float


def application(root: Path, *, hosts: Sequence[str] = NAMES) -> Starlette:
    """Give the web application for a folder of runs.

    ValueError if there is no such folder.
    """
    if not root.is_dir():
        raise ValueError(f"expected a folder of runs, got {root}")
    root = root.resolve()
    pages: dict[tuple[str, float], str] = {}

    async def index(_: Request) -> Response:
        return _page("index.html.j2", runs=await run_in_threadpool(lambda: list(runs(root))), root=root.name)

    async def result(request: Request) -> Response:
        folder = inside(root, request.path_params["place"])
        key = (str(folder), (folder / results.FILE).stat().st_mtime if (folder / results.FILE).is_file() else 0.0)
        if key not in pages:
            try:
                page = await run_in_threadpool(report.render, [folder])
            except ValueError as error:
                raise HTTPException(422, str(error)) from None
            for old in [known for known in pages if known[0] == key[0]]:
                del pages[old]
            pages[key] = page
        return HTMLResponse(pages[key])

    async def training(request: Request) -> Response:
        folder = inside(root, request.path_params["place"])
        if not (folder / LOG).is_file():
            raise HTTPException(404, f"no {LOG} here")
        return _page("training.html.j2", place=request.path_params["place"])

    async def log(request: Request) -> Response:
        folder = inside(root, request.path_params["place"])
        lines = await run_in_threadpool(read_log, folder / LOG)
        kept = thinned(lines)
        last = {"step": lines[-1]["global_step"], "stage": lines[-1]["stage"]} if lines else None
        return JSONResponse({"lines": len(lines), "last": last, "charts": curves(kept)})

    async def failed(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _page("failed.html.j2", status=error.status_code, what=error.detail)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/result/{place:path}", result),
            Route("/training/{place:path}", training),
            Route("/log/{place:path}", log),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={HTTPException: failed},
    )


def inside(root: Path, place: str) -> Path:
    """Give the folder of a run; 404 for what is not there or not below the served folder, links followed."""
    if "\0" in place:
        raise HTTPException(404, "no such run")
    folder = (root / place.strip("/")).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise HTTPException(404, "no such run")
    return folder


def runs(root: Path) -> Iterator[Run]:
    """Find the runs below a folder, the last changed first; links that lead out of it are not followed."""
    found = []
    for folder in _folders(root, DEEPEST):
        files = [folder / name for name in (results.FILE, LOG) if (folder / name).is_file()]
        if not files:
            continue
        title = folder.name
        with suppress(ValueError, OSError, KeyError):
            title = json.loads((folder / results.FILE).read_text(encoding="utf-8"))["title"] or title
        names = {file.name for file in files}
        changed = max(file.stat().st_mtime for file in files)
        place = folder.relative_to(root).as_posix()
        found.append(Run(place, str(title), results.FILE in names, LOG in names, changed))
    yield from sorted(found, key=lambda run: -run.changed)


def thinned(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep every n-th line of a long log, and the last one.

    >>> len(thinned([{"step": i} for i in range(6001)]))
    547
    """
    every = -(-len(lines) // MOST_POINTS)
    return list(lines) if every <= 1 else [*lines[:-1:every], lines[-1]]


def serve(root: Path, *, host: str = HOME, port: int = 8765) -> None:
    """Serve a folder until stopped."""
    import uvicorn

    hosts = NAMES if host in NAMES else ["*"]
    uvicorn.run(application(root, hosts=hosts), host=host, port=port, log_level="warning")


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth:
        for below in sorted(folder.iterdir()):
            if below.is_dir() and not below.is_symlink() and not below.name.startswith("."):
                yield from _folders(below, depth - 1)


def _page(template: str, *, status: int = 200, **given: Any) -> Response:
    names = {"training.html.j2": ("chart.js", "training.js")}.get(template, ("chart.js",))
    script, policy = report.script(*names)
    page = (
        report.environment()
        .get_template(template)
        .render(css=report.asset("page.css"), script=script, script_hash=policy, status=status, **given)
    )
    return HTMLResponse(page, status_code=status)
