"""All views of a survey, by as many processes as wanted.

Each view is kept as soon as it is measured (see `measure`): a run that was stopped goes on where it stopped, and the
same bytes give the same numbers. Memory is that of a few frames a process, whatever the number of clips.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from bench.physics_iq.layout import Survey, View, official_name
from bench.physics_iq.measure import Masks, Measured, Setting, measure
from trainers import show

__all__ = ["run", "setting_of"]


def run(
    found: Survey, *, cache: Path, masks: Masks = "exact", workers: int = 1, quiet: bool = False
) -> dict[View, Measured]:
    """Measure every view of a survey, in its order.

    `masks` "mp4v" cuts them from a lossy video as the official script does. `cache` is the folder of what was measured
    before. ValueError for problems of the survey, or for files that turn out damaged; what was measured until then is
    kept.
    """
    if found.problems:
        raise ValueError("\n".join(["the folders cannot be scored:", *map(str, found.problems)]))
    setting = setting_of(found, masks)
    measured: dict[View, Measured] = {}
    failed: list[str] = []
    with show.bar("physics-iq", len(found.views), quiet=quiet) as bar:
        for view, outcome in _outcomes(found.views, setting, cache, workers):
            if isinstance(outcome, Measured):
                measured[view] = outcome
            else:
                failed.append(f"{official_name(view)}: {outcome}")
            bar.update(len(measured) + len(failed), official_name(view))
    if failed:
        raise ValueError("\n".join(["the folders cannot be scored:", *failed]))
    return {view: measured[view] for view in found.views}


def setting_of(found: Survey, masks: Masks) -> Setting:
    """Give how the clips of a survey are read."""
    return Setting(found.fps, found.frames, found.filmed, masks)


def _outcomes(
    views: Sequence[View], setting: Setting, cache: Path, workers: int
) -> Iterator[tuple[View, Measured | str]]:
    if workers == 1:
        for view in views:
            try:
                yield view, measure(view.take_1, view.take_2, view.generated, setting, cache)
            except (ValueError, OSError) as error:
                yield view, str(error)
        return
    context = multiprocessing.get_context("spawn")  # forked OpenCV and torch threads hang
    pool = ProcessPoolExecutor(min(workers, len(views)), context)
    try:
        jobs = {pool.submit(measure, view.take_1, view.take_2, view.generated, setting, cache): view for view in views}
        for job in as_completed(jobs):
            error = job.exception()
            if isinstance(error, BrokenProcessPool):
                raise ValueError(
                    f"a process was ended from outside, most likely for its memory: take fewer than {workers} workers; "
                    f"the same command goes on where it stopped"
                ) from error
            if error is not None and not isinstance(error, ValueError | OSError):
                raise error
            yield jobs[job], job.result() if error is None else str(error)
    finally:
        pool.shutdown(cancel_futures=True)
