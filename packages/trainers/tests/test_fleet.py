"""Laws of a job on one to eight GPUs: the run sees the same, hours fall as the GPUs grow, exchange is counted."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from trainers import fleet, gpus, plan, sheet
from trainers.commands import show_plan
from trainers.dryrun import Work
from trainers.footprint import ENGINES, Trained, exchanged
from trainers.job import Artefact, Job, Kind

GIB = 2**30
A100, RTX = gpus.named("A100-80GB"), gpus.named("RTX-4090")


def job(*, batch=2, accumulate=4, held=1.0, parameters=1000) -> Job:
    works = {
        b: Work(round(held * b * GIB), round(held * b * GIB), {"bfloat16": b * 10**14}, b * 10**11) for b in (1, 2)
    }
    latents = Artefact("latents", 1000, 100, works[1])
    trained = Trained({"adapter": parameters})
    return Job("a run", "17 x 32 x 32", 10, batch, accumulate, {}, trained, (Kind("all", 100, works),), (latents,))


def test_every_line_sees_the_clips_of_the_recipe_and_hours_fall_with_the_gpus():
    found = fleet.cells(job(), [A100])
    assert [(c.gpus, c.batch, c.accumulate, c.engine) for c in found] == [
        (1, 2, 4, "one"), (2, 2, 2, "ddp"), (4, 2, 1, "ddp"), (8, 1, 1, "ddp"),
    ]  # fmt: skip
    assert {c.clips for c in found} == {8}
    one = found[0].row.hours
    assert [c.row.hours for c in found] == pytest.approx([one / c.gpus for c in found], rel=1e-3)
    assert found[0].row == plan.make(job(), [A100]).rows[0]


def test_more_gpus_than_clips_are_said():
    assert [c.clips for c in fleet.cells(job(batch=1, accumulate=3), [A100])] == [3, 4, 4, 8]


def test_a_micro_batch_that_does_not_fit_becomes_the_largest_that_does_and_divides():
    found = fleet.cells(job(batch=6, accumulate=1, held=5.0), [RTX], counts=(1,))[0]
    assert found.row.largest_batch == 4
    assert (found.batch, found.accumulate, found.row.fits) == (3, 2, True)


def test_the_engine_is_the_first_that_fits_or_the_one_that_was_said():
    large = job(parameters=1_500_000_000, held=0.1)  # 22 GiB in weights, gradients and moments
    (one, eight) = fleet.cells(large, [RTX], counts=(1, 8))
    assert (one.engine, eight.engine) == ("zero2-offload", "zero2")
    assert [c.engine for c in fleet.cells(large, [RTX], counts=(1, 8), engine="ddp")] == ["one", "ddp"]
    never = fleet.cells(job(held=100.0), [RTX], counts=(1,))[0]
    assert (never.engine, never.row.fits, never.row.largest_batch) == ("zero2-offload", False, 0)


def test_an_engine_sends_what_it_shares_out_and_gathers():
    trained = Trained({"a": 1000})  # 4,000 bytes
    sent = {e: exchanged(trained, engine=e, processes=4, accumulate=8) for e in ENGINES if e != "one"}
    ring = 3000
    assert {e: s for e, (s, _) in sent.items()} == {
        "ddp": 2 * ring, "zero1": 2 * ring, "zero2": 9 * ring, "zero2-offload": 9 * ring,
        "zero3": 24 * ring, "zero3-offload": 24 * ring, "fsdp2": 24 * ring,
    }  # fmt: skip
    assert {e: h for e, (_, h) in sent.items() if h} == {"zero2-offload": 9000, "zero3-offload": 9000}
    assert exchanged(trained, engine="one", processes=1, accumulate=8) == (0, 0)


def test_exchange_adds_to_the_hours_what_the_link_takes():
    large = replace(job(), trained=Trained({"adapter": 10**9}))
    row = plan.make(large, [RTX], engine="ddp", processes=2).rows[0]
    assert row.exchange == pytest.approx(4e9 / (32e9 * 0.7))  # 2 x half of 4 GB
    alone = plan.make(large, [RTX]).rows[0]
    assert alone.exchange == 0
    assert row.hours == pytest.approx(alone.hours + 100 * row.exchange / 3600)
    offloaded = plan.make(large, [RTX], engine="zero2-offload", processes=1).rows[0]
    assert offloaded.exchange == pytest.approx(5 * 4e9 / (32e9 * 0.7) + 0.25)


def test_the_table_fits_120_columns_and_holds_every_line():
    table = fleet.cells(job(), [RTX, A100])
    console = Console(width=120, record=True, file=io.StringIO())
    sheet.show(plan.make(job(), [RTX, A100]), console, table)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 120
    words = " ".join(" ".join(lines).split())
    for said in (
        "1 x RTX-4090",
        "8 x A100-80GB",
        "800 clips seen",
        "100 steps of 8 clips",
        "figures at 80% of the peak",
    ):
        assert said in words


def test_a_plan_without_processes_is_for_the_usual_gpus_one_to_eight_of_them(capsys):
    how = {"gpu": None, "engine": "", "processes": None, "measured": None, "efficiency": None, "as_json": True}
    show_plan(job, **how)
    found = json.loads(capsys.readouterr().out)["fleet"]
    assert [(cell["row"]["gpu"], cell["gpus"]) for cell in found] == [(g, n) for g in fleet.USUAL for n in fleet.COUNTS]
    show_plan(job, **how | {"processes": 1})
    said = json.loads(capsys.readouterr().out)
    assert said["fleet"] == []
    assert len(said["rows"]) == len(gpus.known())


def test_every_gpu_has_a_link_and_a_share_of_its_peak():
    assert all(0 < gpu.share < 1 and gpu.link >= 32 for gpu in gpus.known())
    assert {name: gpus.named(name).share for name in fleet.USUAL} == {
        "RTX-4090": 0.8, "A100-80GB": 0.55, "H100": 0.4, "H200": 0.4,
    }  # fmt: skip
