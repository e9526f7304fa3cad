"""Laws of a plan: parts add up, engines share out what they say, measurements replace figures and say when they are
stretched."""

import io
import json
from dataclasses import asdict

import pytest
import torch
from rich.console import Console
from torch import nn

from trainers import Matrices, Optim, gpus, plan, sheet
from trainers.dryrun import Work
from trainers.footprint import ENGINES, Trained, footprint
from trainers.job import Artefact, Job, Kind

GIB = 2**30
P = 1_000_000_000
BIG = Trained({"adapter": P})
STEP = Work(kept=3 * GIB, peak=4 * GIB, flops={"bfloat16": 10**14}, traffic=10**11)


def work(batch: int, *, scale: float = 1.0) -> Work:
    kept, peak = scale * batch * GIB, scale * (batch * 1.5 + 0.5) * GIB
    return Work(round(kept), round(peak), {"bfloat16": batch * 10**14}, batch * 10**11)


KINDS = (
    Kind("observe", 900, {1: work(1, scale=0.5), 4: work(4, scale=0.5)}),
    Kind("couple", 100, {1: work(1), 4: work(4)}),
)


def job(**changes) -> Job:
    given = {
        "name": "a run",
        "shape": "17 x 32 x 32",
        "tokens": 100,
        "batch": 2,
        "accumulate": 4,
        "frozen": {"backbone": 10 * GIB},
        "trained": Trained({"adapter": 1000}),
        "kinds": KINDS,
        "artefacts": (Artefact("latents", 5_000_000, 1000, STEP),),
    }
    return Job(**(given | changes))


def parts(engine: str, processes: int = 8, trained: Trained = BIG) -> dict[str, float]:
    held = footprint(trained, STEP, frozen={"backbone": 2 * P}, engine=engine, processes=processes, loss=0.0)
    return {name: size / P for name, size in held.parts.items()} | {"host": held.host / P}


def test_one_process_holds_everything_and_the_parts_add_up():
    held = footprint(BIG, STEP, frozen={"backbone": 2 * P}, loss=0.1)
    assert held.total == sum(held.parts.values())
    lost = held.parts["lost by the allocator"]
    assert lost == pytest.approx(0.1 * (held.total - lost))
    one = parts("one", 1)
    assert (one["trained weights"], one["gradients"], one["optimizer's state"]) == (4, 4, 8)


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_models_lie_whole_on_every_gpu_whatever_the_engine(engine):
    assert parts(engine, 1 if engine == "one" else 8)["frozen: backbone"] == 2


def test_each_stage_of_zero_shares_out_one_thing_more():
    ddp, one, two, three = (parts(engine) for engine in ("ddp", "zero1", "zero2", "zero3"))
    assert (ddp["trained weights"], ddp["gradients"], ddp["optimizer's state"]) == (4, 4, 8)
    assert ddp["buckets and gathered weights"] == 4  # DDP's copy of the gradients
    assert (one["trained weights"], one["gradients"], one["optimizer's state"]) == (4, 4, 12 / 8)
    assert (two["trained weights"], two["gradients"], two["optimizer's state"]) == (4, 0.5, 12 / 8)
    assert (three["trained weights"], three["gradients"], three["optimizer's state"]) == (0.5, 0.5, 12 / 8)
    assert one["buckets and gathered weights"] == two["buckets and gathered weights"] == 2  # 5e8 values


def test_offload_moves_gradients_and_state_to_the_host():
    offloaded = parts("zero2-offload")
    assert (offloaded["gradients"], offloaded["optimizer's state"], offloaded["trained weights"]) == (0, 0, 4)
    assert offloaded["host"] == 12 / 8 + 0.5
    assert parts("zero3-offload")["trained weights"] == 0
    assert parts("zero2")["host"] == 0


def test_fsdp_gathers_its_largest_group_alone():
    held = parts("fsdp2", 4, Trained({"small": P // 4, "large": 3 * P // 4}))
    assert (held["trained weights"], held["gradients"], held["optimizer's state"]) == (1, 1, 2)
    assert held["buckets and gathered weights"] == 6


def test_optimizers_keep_what_they_keep():
    states = {
        "adamw": Trained({"a": 10_000}).state,
        "half": Trained({"a": 10_000}, bytes_a_value=2).state,
        "adamw8bit": Trained({"a": 10_000}, optimizer="adamw8bit", apart=8192).state,
        "muon": Trained({"a": 10_000}, optimizer="muon", apart=8192).state,
    }
    rest = 8 * (10_000 - 8192)
    assert states == {"adamw": 80_000, "half": 40_000, "adamw8bit": rest + 2 * (8192 + 4 * 32), "muon": rest + 4 * 8192}


def test_groups_are_counted_under_the_optimizer_of_their_stage():
    groups = {"a": nn.Linear(64, 64), "b": nn.Sequential(nn.Linear(64, 64, bias=False), nn.LayerNorm(64))}
    muon = Trained.of(groups, Optim(muon=Matrices(names=("b/*",))))
    assert (muon.optimizer, muon.apart, muon.groups) == ("muon", 4096, {"a": 4160, "b": 4224})
    eight = Trained.of(groups, Optim(kind="adamw8bit"))
    assert (eight.optimizer, eight.apart, eight.parameters) == ("adamw8bit", 8192, 8384)
    half = Trained.of({"a": nn.Linear(2, 2, device="meta", dtype=torch.bfloat16)}, Optim())
    assert (half.optimizer, half.bytes_a_value, half.state) == ("adamw", 2, 24)


def test_the_state_is_what_torch_keeps():
    group = nn.Linear(30, 40)
    optimizer = torch.optim.AdamW(group.parameters())
    group(torch.ones(1, 30)).sum().backward()
    optimizer.step()
    kept = sum(t.nbytes for state in optimizer.state.values() for name, t in state.items() if name != "step")
    assert Trained.of({"a": group}, Optim()).state == kept


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Trained({"a": 1}, optimizer="adam"), "did you mean 'adamw'"),
        (lambda: Trained({"a": 1}, optimizer="muon", apart=2), "at most 1 parameters"),
        (lambda: footprint(BIG, STEP, frozen={}, engine="zero4"), "did you mean 'zero"),
        (lambda: footprint(BIG, STEP, frozen={}, engine="one", processes=2), "use ddp"),
        (lambda: gpus.named("H1000"), "did you mean 'H100'"),
        (lambda: plan.make(job(), [gpus.named("H100")], efficiency=0.0), r"efficiency in \(0, 1\]"),
        (lambda: job(kinds=()), "expected kinds"),
        (lambda: job(kinds=(Kind("a", 1, {1: STEP}),)), "at two micro-batches"),
    ],
)
def test_what_cannot_be_planned_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_work_between_and_beyond_what_was_counted_lies_on_a_line():
    kind = Kind("a", 1, {1: work(1), 4: work(4)})
    assert kind.at(1) == work(1)
    for batch in (2, 3, 9):
        assert kind.at(batch) == work(batch)


def test_the_fullest_step_decides_and_the_largest_batch_just_fits():
    h100 = gpus.named("H100")
    row = plan.make(job(), [h100]).rows[0]
    assert row.footprint.parts["activations"] == 2 * GIB  # of couple, not of observe

    def total(batch: int) -> int:
        return plan.make(job(batch=batch), [h100]).rows[0].footprint.total

    assert total(row.largest_batch) <= h100.usable < total(row.largest_batch + 1)
    assert row.fits


def test_what_does_not_fit_says_so_and_what_never_will_has_no_batch():
    rtx = gpus.named("RTX-4090")
    assert not plan.make(job(batch=100), [rtx]).rows[0].fits
    assert plan.make(job(frozen={"backbone": 30 * GIB}), [rtx]).rows[0].largest_batch == 0


def test_hours_are_the_seconds_of_all_micro_batches():
    row = plan.make(job(), [gpus.named("A100-80GB")], efficiency=0.5).rows[0]
    second = 2e14 / (0.5 * 312e12) + 2e11 / (0.7 * 2039e9)
    assert row.seconds["couple"] == pytest.approx(second)
    assert row.hours == pytest.approx(1000 * 4 * second / 3600)
    assert plan.make(job(), [gpus.named("A100-80GB")], processes=8, engine="ddp").rows[0].cache_hours == pytest.approx(
        plan.make(job(), [gpus.named("A100-80GB")]).rows[0].cache_hours / 8
    )


def line(
    device: str = "NVIDIA H100 80GB HBM3", batch: int = 2, shape: str = "17 x 32 x 32", seconds: float = 0.5
) -> dict:
    figures = {"wall_s": seconds, "cpu_s": seconds, "peak_bytes": None, "work": asdict(work(batch))}
    return {"device_name": device, "shape": shape, "batch": batch, "seconds_a_step": {"couple": figures, "other": {}}}


def measured(tmp_path, *lines) -> list[plan.Measured]:
    path = tmp_path / "time.jsonl"
    path.write_text("\n".join(json.dumps(entry) for entry in lines))
    return plan.read_measured(path)


def test_a_measurement_of_the_same_is_used_as_it_is(tmp_path):
    made = plan.make(job(), [gpus.named("H100")], measured=measured(tmp_path, line())).rows[0]
    assert (made.seconds["couple"], made.basis["couple"]) == (0.5, "measured")
    assert made.basis["observe"].startswith("figures at 40%")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (line(batch=4), "another batch (4)"),
        (line(shape="9 x 32 x 32"), "another size (9 x 32 x 32)"),
        (line(device="NVIDIA A100-SXM4-80GB"), "another device (A100-80GB)"),
    ],
    ids=["batch", "size", "device"],
)
def test_any_other_measurement_is_scaled_by_the_work_and_said(tmp_path, found, said):
    h100 = gpus.named("H100")
    made = plan.make(job(), [h100], measured=measured(tmp_path, found)).rows[0]
    assert made.basis["couple"] == f"extrapolated from {said} by the work"
    device = gpus.find(found["device_name"])
    scale = plan.seconds_of("couple", work(2), h100, shape="", batch=2)[0]
    scale /= plan.seconds_of("couple", work(found["batch"]), device, shape="", batch=2)[0]
    assert made.seconds["couple"] == pytest.approx(0.5 * scale)


def test_the_nearest_measurement_is_taken_and_one_of_a_cpu_is_not(tmp_path):
    lines = [line(seconds=9.0, device="NVIDIA A100-SXM4-80GB"), line(seconds=7.0, batch=8), line(seconds=0.25)]
    made = plan.make(job(), [gpus.named("H100")], measured=measured(tmp_path, *lines)).rows[0]
    assert made.seconds["couple"] == 0.25
    cpu = plan.make(job(), [gpus.named("H100")], measured=measured(tmp_path, line(device="Xeon"))).rows[0]
    assert cpu.basis["couple"].startswith("figures")


def test_a_measured_peak_tells_what_the_allocator_loses(tmp_path):
    tensors = footprint(job().trained, work(2), frozen=job().frozen, loss=0.0).total
    entry = line()
    entry["seconds_a_step"]["couple"]["peak_bytes"] = round(1.2 * tensors)
    made = plan.make(job(), [gpus.named("H100")], measured=measured(tmp_path, entry))
    assert made.loss == pytest.approx(0.2, abs=1e-6)
    assert made.rows[0].footprint.total == pytest.approx(1.2 * tensors, rel=1e-6)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not JSON", '{"seconds_a_step": {"a": {"work": 3}}}', "\0\xff"])
def test_a_file_that_time_did_not_write_is_refused(tmp_path, text):
    (tmp_path / "x").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="time`"):
        plan.read_measured(tmp_path / "x")


def test_every_gpu_has_its_figures_and_a_source():
    names = {gpu.name for gpu in gpus.known()}
    assert names == {"A100-40GB", "A100-80GB", "H100", "H200", "L40S", "RTX-3090", "RTX-4090", "RTX-5090", "MI300X"}
    for gpu in gpus.known():
        assert gpu.source
        assert gpu.bfloat16 > gpu.tf32 >= gpu.float32 > 0
        assert 0.9 < gpu.usable / (gpu.memory_mib * 2**20) < 1
        assert gpus.find(f"NVIDIA {gpu.torch[0]}") == gpu
    assert gpus.find("NVIDIA A100-SXM4-80GB").name == "A100-80GB"
    assert gpus.find("Intel Xeon") is None


def test_float32_products_run_off_the_tensor_cores_and_convolutions_as_tf32():
    a100 = gpus.named("A100-80GB")
    assert a100.seconds({"float32": 195 * 10**11}, 0) == pytest.approx(1.0)
    assert a100.seconds({"float32 convolution": 156 * 10**12}, 0) == pytest.approx(1.0)
    assert a100.seconds({"bfloat16 convolution": 312 * 10**12}, 2039 * 10**9) == pytest.approx(2.0)


def test_the_sheet_fits_120_columns_and_names_every_part(tmp_path):
    made = plan.make(
        job(making={"backbone": GIB}, reported="a paper: 40 hours"),
        gpus.known(),
        engine="zero2-offload",
        processes=8,
        measured=measured(tmp_path, line()),
    )
    console = Console(width=120, record=True, file=io.StringIO())
    sheet.show(made, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 120
    words = " ".join(text.split())
    for said in (
        "frozen: backbone (serves the cache alone)",
        "5.00 GB for 1,000 clips",
        "2 x accumulate 4 x processes 8 = 64 clips",
        "H100 couple: measured",
        "A100-80GB couple",
        "extrapolated from another device (H100)",
        "a paper: 40 hours",
        "zero2-offload in 8 processes",
    ):
        assert said in words


def test_a_plan_as_json_holds_all_of_it():
    made = plan.make(job(), [gpus.named("H100")]).to_dict()
    assert json.loads(json.dumps(made)) == made
    assert (made["effective_batch"], made["tokens_a_step"], made["cache_bytes"]) == (8, 800, 5_000_000_000)
    assert made["rows"][0]["footprint"]["parts"]["frozen: backbone"] == 10 * GIB
