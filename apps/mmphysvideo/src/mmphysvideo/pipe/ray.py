"""The same run as a Ray Data pipeline, for pools larger than one machine (extra `ray`).

Each actor has its own models and takes files through all stages; `out` must be a folder that every machine sees.
Results lie there as they would without Ray, so an actor that dies, or a run that is killed, loses the stage at hand and
no more, and the manifest is the same.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmphysvideo.pipe import manifest
from mmphysvideo.pipe.experts import crew_of
from mmphysvideo.pipe.settings import Settings
from mmphysvideo.pipe.stages import Source, process
from trainers import Skipped, show

__all__ = ["run_on_ray"]


def run_on_ray(
    sources: Iterable[Source],
    out: str | Path,
    settings: Settings,
    *,
    workers: int,
    skipped: Iterable[Skipped] = (),
    num_gpus: float | int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run with `workers` actors of `num_gpus` GPUs each; returns the manifest. ValueError without Ray.

    Ray is started on this machine unless `ray.init` was called or RAY_ADDRESS names a cluster.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("MMPhysPipe on Ray needs Ray Data: pip install 'mmphysvideo[ray]'") from None
    if workers < 1:
        raise ValueError(f"expected workers >= 1, got {workers}")
    out = Path(out).absolute()
    sources = sorted({s.id: s for s in sources}.values(), key=lambda s: s.id)
    if not ray.is_initialized():
        ray.init()
    numbers = ray.data.from_items([{"number": k} for k in range(len(sources))], override_num_blocks=len(sources) or 1)
    rows = numbers.map_batches(
        _Actor,
        fn_constructor_args=([(s.id, str(s.path.absolute()), s.caption) for s in sources], str(out), settings),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=num_gpus or None,
    )
    rows.context.enable_progress_bars = False  # there is one here
    with show.bar("pipe on Ray", len(sources), quiet=quiet) as bar:
        for done, row in enumerate(rows.iter_rows(), 1):
            bar.skip(row["there"])
            bar.update(done)
    return manifest.write(out, sources, list(skipped), settings, crew_of(settings))


class _Actor:
    """One process of the pool."""

    def __init__(self, sources: list[tuple[str, str, str]], out: str, settings: Settings) -> None:
        import cv2

        cv2.setNumThreads(1)
        self.sources = [Source(id_, Path(path), caption) for id_, path, caption in sources]
        self.out, self.settings, self.crew = Path(out), settings, crew_of(settings)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[Any]]:
        done = [process(self.sources[k], self.out, self.settings, self.crew) for k in block["number"]]
        return {"id": [outcome["id"] for outcome in done], "there": ["there" in outcome for outcome in done]}
