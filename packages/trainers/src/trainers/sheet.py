"""A plan as people read it: three tables and what they rest on, at 120 columns."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from . import gpus
from .dryrun import Work
from .fleet import Cell
from .plan import Plan
from .ramps import Ramp
from .stage import Stage

__all__ = ["show", "stages"]

GIB = 2**30


def show(plan: Plan, console: Console, fleet: Sequence[Cell] = ()) -> None:
    """Print the work of a step by kind, the memory of one GPU by part, and what each GPU makes of it, or what one to
    eight of them do (`fleet`).
    """
    job, held = plan.job, plan.rows[0].footprint
    console.print(f"{job.name}: {job.shape}, {job.tokens:,} tokens a clip", style="bold")
    console.print(f"\none micro-batch of {job.batch}, counted by a dry run at the real size")
    console.print(_steps(plan))
    console.print(f"\nmemory of one GPU under {_engine(plan)} in the fullest step ({job.fullest(job.batch).name})")
    console.print(_memory(plan))
    if held.host:
        console.print(f"and {_gib(held.host)} GiB of the host's memory for each process")
    if fleet:
        _fleet(plan, fleet, console)
        return
    console.print(f"\nwhat a GPU makes of it: seconds of a micro-batch of {job.batch}, hours of {job.steps:,} steps")
    console.print(_gpus(plan))
    console.print(f"seconds: {_basis(plan)}; hours with {_exchanges(plan)}; reading and saving are not in them")
    console.print(
        f"batch {job.batch} x accumulate {job.accumulate} x processes {plan.processes} = {plan.effective_batch} clips, "
        f"{job.tokens * plan.effective_batch:,} tokens a step"
    )
    _cache(plan, console)
    if job.reported:
        console.print(job.reported)


def stages(plan: Iterable[Stage]) -> Table:
    """Say in a row a stage its steps, batch, groups with their learning rates, and ramps."""
    table = Table("stage", "steps", "batch", "groups (learning rate)", "ramps")
    for stage in plan:
        rates = ", ".join(f"{name} {stage.optim.lr * factor:g}" for name, factor in stage.groups.items())
        late = ", ".join(f"{name} from step {step}" for name, step in stage.unfreeze.items())
        ramps = ", ".join(
            f"{name} to {ramp.end:g} by {ramp.to_step}" if isinstance(ramp, Ramp) else f"{name} to {ramp.end:g}"
            for name, ramp in stage.ramps.items()
        )
        batch = f"{stage.batch_size} x {stage.accumulate}"
        table.add_row(stage.name, str(stage.length.steps), batch, "; ".join(filter(None, (rates, late))), ramps)
    return table


def _steps(plan: Plan) -> Table:
    job = plan.job
    table = Table("kind of step")
    columns = ["steps", "kept for backward", "at the fullest", "TFLOP half", "TFLOP float32", "other kernels move"]
    checkpointed = any(kind.checkpointed for kind in job.kinds)
    for column in columns + ["checkpointed: kept", "at the fullest"] * checkpointed:
        table.add_column(column, justify="right")
    for kind in job.kinds:
        work = kind.at(job.batch)
        row = [f"{kind.steps:,}", f"{_gib(work.kept)} GiB", f"{_gib(work.peak)} GiB", *_products(work)]
        row.append(f"{work.traffic / 1e9:,.1f} GB")
        if kind.checkpointed:
            spared = kind.at(job.batch, checkpointed=True)
            row += [f"{_gib(spared.kept)} GiB", f"{_gib(spared.peak)} GiB"]
        table.add_row(kind.name, *row)
    return table


def _memory(plan: Plan) -> Table:
    table = Table("part")
    table.add_column("GiB", justify="right")
    parts = plan.rows[0].footprint.parts
    for name, size in parts.items():
        if size:
            cache_only = name.removeprefix("frozen: ") in plan.job.making and name.startswith("frozen: ")
            table.add_row(f"{name} (serves the cache alone)" if cache_only else name, _gib(size))
    table.add_section()
    table.add_row("together", _gib(sum(parts.values())))
    return table


def _gpus(plan: Plan) -> Table:
    table = Table("GPU")
    for column in (
        "usable GiB",
        "free",
        "largest micro-batch",
        *(f"s {kind.name}" for kind in plan.job.kinds),
        "hours",
    ):
        table.add_column(column, justify="right")
    for row in plan.rows:
        seconds = [_seconds(s) for s in row.seconds.values()]
        free = f"{(row.usable - row.footprint.total) / GIB:.1f}" if row.fits else "does not fit"
        largest = str(row.largest_batch) if row.largest_batch else "none"
        hours = f"{row.hours:,.1f}" if row.fits else "-"
        table.add_row(
            row.gpu, f"{row.usable / GIB:.1f}", free, largest, *seconds, hours, style=None if row.fits else "dim"
        )
    return table


def _fleet(plan: Plan, fleet: Sequence[Cell], console: Console) -> None:
    job = plan.job
    clips = job.batch * job.accumulate
    console.print(
        f"\none to eight GPUs: the same {job.steps:,} steps of {clips} clip{'s' * (clips > 1)}, "
        f"{job.steps * clips:,} clips seen"
    )
    table = Table("GPUs", "engine", "batch x accumulate")
    for column in ("GiB of one", "free", "largest micro-batch", "hours", "of it exchange", "cache hours"):
        table.add_column(column, justify="right")
    for before, cell in zip((None, *fleet), fleet, strict=False):
        row, held = cell.row, cell.row.footprint.total
        if before is not None and before.row.gpu != row.gpu:
            table.add_section()
        apart = "" if cell.clips == clips else f" ({cell.clips} clips)"
        spent = job.steps * row.exchange / 3600
        table.add_row(
            f"{cell.gpus} x {row.gpu}",
            cell.engine,
            f"{cell.batch} x {cell.accumulate}{apart}",
            f"{held / GIB:.1f}",
            f"{(row.usable - held) / GIB:.1f}" if row.fits else "does not fit",
            str(row.largest_batch) if row.largest_batch else "none",
            f"{row.hours:,.1f}" if row.fits else "-",
            f"{spent:,.1f}" if row.fits else "-",
            "-" if row.cache_hours is None else f"{row.cache_hours:,.1f}",
            style=None if row.fits else "dim",
        )
    console.print(table)
    console.print(
        f"seconds: {_basis(plan)}; exchange is what GPUs and host send in a step, as if nothing ran beside it; reading "
        "and saving are not in the hours"
    )
    shown = {cell.row.gpu for cell in fleet}
    others = [gpu.name for gpu in gpus.known() if gpu.name not in shown]
    console.print(f"--gpu takes others: {', '.join(others)}")
    _cache(plan, console, hours=False)
    if job.reported:
        console.print(job.reported)


def _exchanges(plan: Plan) -> str:
    most = max(plan.job.steps * row.exchange / 3600 for row in plan.rows)
    return f"what is exchanged (at most {most:,.1f} h)" if most else "nothing to exchange"


def _cache(plan: Plan, console: Console, *, hours: bool = True) -> None:
    artefacts = plan.job.artefacts
    if not artefacts:
        return
    each = ", ".join(f"{a.name} {_size(a.bytes_each)}{f' ({a.note})' if a.note else ''}" for a in artefacts)
    clips = max(a.items for a in artefacts)
    console.print(f"cache on disk: {_size(plan.cache_bytes)} for {clips:,} clips; of each {each}")
    works = [a.work.peak for a in artefacts if a.work is not None]
    if works:
        held = sum(plan.job.making.values()) + max(works)
        each = ", ".join(f"{row.gpu} {row.cache_hours:.1f}" for row in plan.rows if row.cache_hours is not None)
        console.print(f"making it holds {_gib(held)} GiB of a GPU" + (f" and takes hours: {each}" if hours else ""))


def _engine(plan: Plan) -> str:
    if plan.engine == "one":
        return "one process"
    return f"{plan.engine} in {plan.processes} processes"


def _basis(plan: Plan) -> str:
    said: dict[str, list[str]] = {}
    for row in plan.rows:
        alike = len(set(row.basis.values())) == 1
        for kind, text in row.basis.items():
            where = row.gpu if alike else f"{row.gpu} {kind}"
            if where not in said.setdefault(text, []):
                said[text].append(where)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{', '.join(where)}: {text}" for text, where in said.items())


def _products(work: Work) -> tuple[str, str]:
    half = sum(n for kind, n in work.flops.items() if "16" in kind)
    return _tera(half), _tera(sum(work.flops.values()) - half)


def _tera(flops: int) -> str:
    return f"{flops / 1e12:.3g}" if flops else "-"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size >= GIB / 100 else f"{size / GIB:.5f}"


def _size(size: int) -> str:
    """
    >>> _size(8_388_608), _size(3_000_000_000)
    ('8.39 MB', '3.00 GB')
    """
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"


def _seconds(s: float) -> str:
    return f"{s:.2f}" if s >= 0.1 else f"{s:.5f}"
