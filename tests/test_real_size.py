"""Every real recipe without its weights: valid, built on the meta device with its adapter, optimizer and launch
configs, counted at its real size; and trained for a step or two at its real width, with two blocks of random weights.

One recipe of each method is `long` or quicker, the others are `slow`. The last results of the slow ones stand in
benchmarks/slow.md.
"""

import functools
import gc
import importlib
import importlib.util
import itertools
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import backbones
from backbones import attach, bundle, configs, tiny_families
from backbones.loading import save
from backbones.parked import idle
from backbones.sizes import bytes_of, stand_in, weightless
from trainers import InMemory, Optim, fleet, gpus, plan, weights
from trainers.dryrun import DryRun, Work

ROOT = Path(__file__).parents[1]
HOMES = sorted(path for path in ROOT.glob("apps/*/src/*/recipes") if path.parent.name != "world")
A14B = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
pytestmark = [
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),  # Wan's norms in float32, as on a GPU
    pytest.mark.filterwarnings("ignore:words outside the vocabulary"),
]


@dataclass(frozen=True)
class Case:
    """A recipe of an app, and the stage of it that a plan describes (MMPhysVideo has two trainings)."""

    app: str
    recipe: str
    stage: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.app, self.recipe, self.stage)))

    def of(self, module: str) -> Any:
        return importlib.import_module(f"{self.app}.{module}")

    def load(self, *sets: str) -> Any:
        return self.of("config").load_recipe(self.recipe, sets)

    @property
    def optim(self) -> Optim:
        recipe = self.load()
        return getattr(recipe, self.stage).optim if self.stage else recipe.optim


def _cases() -> list[Case]:
    found = []
    for home in HOMES:
        for path in sorted(home.glob("*.yaml")):
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
            if "rows" not in tree and tree.get("backbone", "world") != "world":
                stages = ("teacher", "student") if home.parent.name == "mmphysvideo" else ("",)
                found += [Case(home.parent.name, path.stem, stage) for stage in stages]
    return sorted(found, key=lambda case: case.load().backbone)  # those of one backbone behind one another


CASES = _cases()
QUICK = {"pila-wan2.1-1.3b", "prophy-wan2.1-1.3b", "phantom-wan2.2-ti2v-5b", "mmphysvideo-wan2.1-1.3b-student"}


def slow_unless(
    quick: Callable[[Case], bool], *, long: Callable[[Case], bool] = lambda _: False
) -> pytest.MarkDecorator:
    """Every case, those that take over ten seconds marked `long` or else `slow`."""
    params = [
        pytest.param(
            case, marks=[pytest.mark.long] if long(case) else [] if quick(case) else [pytest.mark.slow], id=str(case)
        )
        for case in CASES
    ]
    return pytest.mark.parametrize("case", params)


built = slow_unless(lambda case: case.stage != "teacher")  # a student is built beside its teacher
measured = slow_unless(lambda _: False, long=lambda case: str(case) in QUICK - {"phantom-wan2.2-ti2v-5b"})
widened = slow_unless(lambda case: case.app == "pila", long=lambda case: str(case) in QUICK and case.app != "pila")


def test_every_method_has_a_real_recipe_on_what_its_paper_ran():
    """methods.md of the papers: PILA on Wan2.1-1.3B (and its adapter on A14B, below), and so on."""
    ran = {
        "pila": {"wan2.1-1.3b"},
        "prophy": {"wan2.1-1.3b", "cogvideox-5b"},
        "phantom": {"wan2.2-ti2v-5b"},
        "mmphysvideo": {"wan2.1-1.3b", "cogvideox-2b", "cogvideox-5b"},
    }
    assert {app: {case.recipe for case in CASES if case.app == app} for app in ran} == ran


def described(case: Case, work: Callable[..., Mapping[str, Work]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `plan` plans with, its dry runs replaced."""
    stage = (case.stage,) if case.stage else ()
    with monkeypatch.context() as patch:
        patch.setattr(case.of("plan"), "work_of", work)
        return case.of("plan").describe(case.load(), *stage, clips=1000)


@built
def test_a_real_recipe_is_built_with_its_optimizer_as_the_plan_counts_it(case, monkeypatch):
    names = defaultdict(lambda: Work(kept=1, peak=2, flops={}, traffic=0))
    job = described(case, lambda *_, **__: names, monkeypatch)
    recipe, backbone = stand_in(case.load())
    groups = groups_of(case, recipe, backbone)
    assert all(p.is_meta for module in backbone.transformers for p in module.parameters())
    assert job.trained.groups == {name: sum(p.numel() for p in group.parameters()) for name, group in groups.items()}
    made = weights.Optimizer(groups, case.optim)
    assert sum(p.numel() for part in made.param_groups for p in part["params"]) == job.trained.parameters
    assert job.frozen["transformer"] == bytes_of(backbone.transformer)
    assert set(job.making) == set(idle(backbone))
    assert not set(job.making) & set(job.frozen)
    d = recipe.data
    assert job.shape.startswith(f"{d.frames} x {d.height} x {d.width} -> latent ")
    assert {a.items for a in job.artefacts} == {1000}


@functools.cache
def counted(case: Case) -> Mapping[str, Work]:
    """One clip, as the recipe checkpoints: a plan counts two sizes, with and without."""
    only = {"only": ("observe", "recover", "couple")} if case.app == "pila" else {}
    return case.of("plan").work_of(case.load(), 1, *((case.stage,) if case.stage else ()), **only)


@measured
def test_a_step_of_a_real_recipe_is_counted_at_its_real_size(case, monkeypatch):
    found = counted(case)
    job = described(case, lambda *_, **__: found, monkeypatch)
    parameters = sum(p.numel() for p in weightless(case.load().backbone).transformer.parameters())
    backward = case.app != "pila"  # its backbone's prediction is made without gradients
    for kind in job.kinds:
        work, half = kind.at(1), kind.at(1).flops["bfloat16"]
        assert 0 < work.kept <= work.peak < 40 * 2**30
        assert half > (2 if backward else 1) * 2 * parameters * 10_000  # every clip has more tokens
        assert work.traffic > 0
    chips = [gpus.named(name) for name in fleet.USUAL]
    table = fleet.cells(job, chips)
    assert [(cell.row.gpu, cell.gpus) for cell in table] == [(gpu.name, n) for gpu in chips for n in fleet.COUNTS]
    assert all(cell.row.fits for cell in table if cell.row.gpu in ("H100", "H200"))
    assert {cell.clips for cell in table} == {job.batch * job.accumulate}
    for before, after in itertools.pairwise(table):
        if before.row.gpu == after.row.gpu and before.row.fits:
            assert after.row.fits
            assert after.row.hours < before.row.hours


def groups_of(case: Case, recipe: Any, backbone: Any) -> dict[str, nn.Module]:
    """The trained groups of a recipe, on the meta device where they are as large as the backbone."""
    train = case.of("train")
    if case.app == "mmphysvideo":
        return case.of("timing").made(recipe, backbone, case.stage).groups()
    if case.app == "phantom":
        basis = case.of("latent").Basis(recipe.physics.channels, recipe.physics.channels)
        with torch.device("meta"):
            adapter = train.fresh(recipe.model_copy(update={"device": "meta"}), backbone, basis, None)
        return {"branch": adapter.branch}
    return train.fresh(recipe.model_copy(update={"device": "meta"}), backbone).groups()


def known_runs() -> Any:
    spec = importlib.util.spec_from_file_location("plan_known_runs", ROOT / "benchmarks" / "plan_known_runs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def table_of_known_runs(known: Any) -> list[dict[str, Any]]:
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    rows = []
    for line in page.partition(known.BEGIN)[2].partition(known.END)[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] != "run" and not cells[0].startswith("-"):
            (reported, unit), planned = cells[2].split(), float(cells[3].split()[0].replace(",", ""))
            row = {"run": cells[0], "gpu": cells[1], "reported": float(reported), "unit": unit, "planned": planned}
            rows.append(row | {"ratio": float(cells[4]), "within": cells[5], "source": cells[6]})
    return rows


def test_the_table_of_known_runs_is_whole_and_within_its_stated_error():
    known = known_runs()
    rows = table_of_known_runs(known)
    listed = [(run.name, run.gpu, run.reported, run.unit, run.source) for run in known.runs()]
    assert [(r["run"], r["gpu"], r["reported"], r["unit"], r["source"]) for r in rows] == listed
    assert {r["unit"] for r in rows} == {"h", "s", "GiB"}
    for row in rows:
        assert row["ratio"] == pytest.approx(row["planned"] / row["reported"], abs=0.01)
        assert abs(row["planned"] / row["reported"] - 1) <= known.WITHIN, row["run"]
        assert row["within"] == "yes"
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    assert known.table(rows).splitlines()[-1] in page  # the error that is stated is that of the rows
    assert f"**What a plan may be off by**: {100 * known.WITHIN:.0f} %" in page


def test_pila_s_forty_hours_are_planned_as_the_table_says(monkeypatch):
    known, found = known_runs(), counted(next(case for case in CASES if case.app == "pila"))
    monkeypatch.setattr("pila.plan.work_of", lambda *_, **__: found)
    planned = known.pila_hours()
    assert planned == pytest.approx(table_of_known_runs(known)[0]["planned"], rel=0.005)
    assert abs(planned / 40 - 1) <= known.WITHIN


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 17))
def test_every_known_run_is_planned_as_the_table_says(number):
    known = known_runs()
    planned = known.runs()[number].planned()
    assert planned == pytest.approx(table_of_known_runs(known)[number]["planned"], rel=0.006)


@pytest.mark.slow
def test_what_was_reported_not_to_fit_is_planned_not_to_fit():
    known, a100 = known_runs(), [gpus.named("A100-80GB")]
    kept, whole = known.lora("cogvideox-5b", rank=16, checkpointing=False), known.lora("cogvideox-5b", kind="full")
    assert not plan.make(kept.job, a100).rows[0].fits
    assert not plan.make(whole.job, a100).rows[0].fits


LAUNCH = sorted(path for home in HOMES for path in (home / "launch").glob("*.yaml"))
named = pytest.mark.parametrize("path", LAUNCH, ids=lambda path: f"{path.parents[2].name}-{path.stem}")


def test_every_method_has_a_launch_config():
    assert {path.parents[2].name for path in LAUNCH} == {home.parent.name for home in HOMES}


def real_recipe(path: Path) -> Any:
    """The first real recipe of the app that a launch config belongs to."""
    return next(case for case in CASES if case.app == path.parents[2].name)


@named
def test_a_launch_config_agrees_with_itself_and_leaves_the_rest_to_the_recipe(path):
    from accelerate.commands.config.config_args import load_config_from_file

    accelerate = load_config_from_file(str(path))
    assert accelerate.num_processes == 8
    assert accelerate.num_machines == 1
    assert accelerate.mixed_precision in (None, "no")  # a recipe says what computes in half precision
    beside = path.with_suffix(".json")
    if accelerate.distributed_type == "FSDP":
        assert not beside.exists()
        assert accelerate.fsdp_config["fsdp_version"] == 2
        return
    assert accelerate.distributed_type == "DEEPSPEED"
    zero = json.loads(beside.read_text(encoding="utf-8"))
    assert zero["zero_optimization"]["stage"] == int(path.stem.removeprefix("zero").partition("-")[0])
    offloaded = zero["zero_optimization"].get("offload_optimizer", {}).get("device", "none") == "cpu"
    assert offloaded == path.stem.endswith("offload")
    assert zero["train_micro_batch_size_per_gpu"] == "auto"
    assert not {"gradient_accumulation_steps", "gradient_clipping", "train_batch_size", "optimizer"} & zero.keys()
    if zero["bf16"]["enabled"]:
        assert real_recipe(path).load().dtype == "bfloat16"
    recipe = real_recipe(path).load()
    clips = recipe.batch * recipe.accumulate
    assert clips % accelerate.num_processes == 0, "eight GPUs share the clips of a step out"


@named
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="needs DeepSpeed: uv run --isolated --group engines pytest ...",
)
def test_deepspeed_takes_a_launch_config_with_what_the_recipe_adds(path):
    from deepspeed.runtime.config import DeepSpeedConfig

    if not path.with_suffix(".json").exists():
        return
    recipe = real_recipe(path).load()
    given = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    batch = {"train_micro_batch_size_per_gpu": recipe.batch, "gradient_accumulation_steps": recipe.accumulate}
    made = DeepSpeedConfig(given | batch)
    assert made.zero_config.stage == given["zero_optimization"]["stage"]
    assert made.train_batch_size == recipe.batch * recipe.accumulate
    assert made.bfloat16_config.enabled == given["bf16"]["enabled"]


def test_pila_trained_on_13b_corrects_both_experts_of_a14b_at_their_real_size():
    """The transfer of the paper, without weights: each expert answers its own noise levels, and both are corrected."""
    case = next(case for case in CASES if case.app == "pila")
    small, large = weightless(case.load().backbone), weightless(A14B, dtype=torch.bfloat16)
    assert small.latent_hash == large.latent_hash
    assert small.config_hash != large.config_hash
    assert large.sigma_ranges == ((0.875, 1.0), (0.0, 0.875))
    adapter = case.of("train").fresh(case.load("device=cpu"), small)
    asked = []
    for i, expert in enumerate(large.transformers):
        expert.register_forward_pre_hook(lambda *_, i=i: asked.append(i))
    d = case.load().data
    with DryRun() as dry, torch.no_grad(), attach(large, adapter, in_predict=True) as attached:
        dry.weights(*large.transformers, adapter)
        text = large.embed(["a ball"])
        attached.prepare(["a ball"], text)
        x = dry.tensor(1, *large.spec.latent.shape(d.frames, d.height, d.width))
        for sigma in (0.9, 0.5):
            v = large.predict(x, torch.tensor([sigma]), text)
            assert v.shape == x.shape
    assert asked == [0, 1]
    assert sum(p.numel() for p in large.transformer.parameters()) == 14_288_491_584


# At the real width: two blocks, random weights, few pixels, a CPU.

FAMILY = {
    "wan2.1-t2v-1.3b": "wan21_t2v",
    "wan2.2-ti2v-5b": "wan22_ti2v",
    "wan2.2-t2v-a14b": "wan22_a14b",
    "cogvideox-2b": "cogvideox_2b",
    "cogvideox-5b": "cogvideox_5b",
}
LAYERS = 2
SMALL = {
    "pila": [
        "observe.ranges=[[0.0,1.0]]",
        "observe.steps=1",
        "recover.phases=[wave]",
        "recover.steps=1",
        "couple.steps=2",
        "couple.physics_warmup=1",
        "couple.condition_warmup=1",
        "couple.mask_warmup=1",
        "couple.encoder_frozen=1",
    ],
    "prophy": ["steps=2", f"branch.blocks={LAYERS}"],
    "phantom": ["steps=2", "weight.ramp_steps=1", "physics.size=[64,64]", "condition.most_latents=2"],
    "mmphysvideo": [
        "teacher.steps=2",
        "student.steps=2",
        "teacher.links.every=1",
        "student.align.place=1",
        "student.align.teacher_place=1",
        "student.align.cells=[2,2]",
    ],
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Load a backbone of two blocks at its real width through `backbones.load`; one is on disk and in memory at a
    time.
    """
    held: dict[str, Any] = {}

    def load(hub: str) -> Any:
        if hub not in held:
            held.clear()
            gc.collect()
            name = next(name for name in configs.NAMES if configs.read(name)["hub"] == hub)
            folder = tmp_path_factory.mktemp(name)
            save(backbones.wrap(pipeline(name), id=hub), folder, id=hub)
            held[hub] = backbones.load(folder, dtype=torch.bfloat16)
            for file in folder.rglob("*.safetensors"):
                file.unlink()
        return held[hub]

    yield load
    held.clear()
    gc.collect()


def pipeline(name: str) -> Any:
    """The stock pipeline of a family with its real transformer cut to two blocks, and text features of its width."""
    pipe, about = tiny_families.family(FAMILY[name], layers=1), configs.read(name)
    text = type(pipe.text_encoder.config).from_dict(
        pipe.text_encoder.config.to_dict() | {"d_model": 4096, "d_ff": 16, "num_heads": 1}
    )
    torch.manual_seed(0)
    parts = dict(pipe.components) | {"text_encoder": type(pipe.text_encoder)(text).eval()}
    for part in ("transformer", "transformer_2"):
        if parts.get(part) is not None:
            parts[part] = type(parts[part])(**(about["transformer"] | {"num_layers": LAYERS})).bfloat16().eval()
    own = {key: pipe.config[key] for key in ("boundary_ratio", "expand_timesteps") if key in pipe.config}
    return type(pipe)(**parts, **own)


def clips_with_basis(case: Case, columns: Mapping[str, torch.Tensor], basis: Any) -> Any:
    """Columns as the clips that Phantom trains on, which have the basis of z beside them."""

    class Held(case.of("data").Clips):
        def __init__(self) -> None:
            self.basis, self.digest = basis, "noise"

        def __len__(self) -> int:
            return len(columns["latent"])

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {name: column[index] for name, column in columns.items()}

    return Held()


def values_of(groups: Mapping[str, nn.Module]) -> dict[str, list[torch.Tensor]]:
    """Some 4,000 values of every parameter: a step of AdamW moves each that has a gradient."""
    return {
        name: [p.detach().flatten()[:: max(1, p.numel() // 4096)].clone() for p in group.parameters()]
        for name, group in groups.items()
    }


def trained(case: Case, backbone: Any, out: Path) -> tuple[Any, dict[str, list[torch.Tensor]], Any]:
    """Train a recipe for a step or two; give what was trained, values of its groups at their start, and the result."""
    step = backbone.spec.latent.frame_step or backbone.spec.latent.stride[0]
    size = 64 if case.app != "mmphysvideo" or backbone.spec.latent.stride[1] > 8 else 32
    sets = ["device=cpu", "accumulate=1", "save_every=100", f"data.frames={1 + 4 * step}"]
    sets += [f"data.height={size}", f"data.width={size}", *SMALL[case.app]]
    sets += [f"{case.stage}.optim.weight_decay=0" if case.stage else "optim.weight_decay=0"]
    recipe, train, timing = case.load(*sets), case.of("train"), case.of("timing")
    columns = timing.random_batch(recipe, backbone, 2)
    if case.app == "phantom":
        basis = case.of("latent").Basis(recipe.physics.channels, recipe.physics.channels)
        data = clips_with_basis(case, columns, basis)
        start = values_of(train.fresh(recipe, backbone, basis, None).groups())
        model, result = train.train(recipe, backbone, None, data, out=out, quiet=True)
    elif case.app == "mmphysvideo":
        model = timing.made(recipe, backbone, case.stage)
        start = values_of(model.groups())
        result = train.train(recipe, backbone, model, InMemory(columns), out=out, quiet=True)
    else:
        start = values_of(train.fresh(recipe, backbone).groups())
        model, result = train.train(recipe, backbone, InMemory(columns), out=out, quiet=True)
    return model, start, result


@widened
def test_a_real_recipe_trains_at_its_real_width_and_its_bundle_comes_back(case, wide, tmp_path):
    backbone = wide(case.load().backbone)
    dims = backbone.transformer.config
    assert dims.num_attention_heads * dims.attention_head_dim in (1536, 1920, 3072)
    before = backbone.digest
    model, start, result = trained(case, backbone, tmp_path / "run")
    assert result.losses
    assert all(math.isfinite(value) for value in result.losses.values())
    groups = model.groups()
    values = values_of(groups)
    for name, group in groups.items():
        if next(group.parameters(), None) is None:
            continue  # a basis, which does not move
        moved = [not torch.equal(a, b) for a, b in zip(start[name], values[name], strict=True)]
        assert any(moved), f"nothing of {name} was changed by a step"
    back = bundle.load(tmp_path / "run" / "bundle")
    bundle.check(back, backbone)
    assert back.meta["backbone"]["backbone_digest"] == before  # after the training: no frozen weight has moved
    for name, tensors in back.tensors.items():
        own = groups[name].state_dict()
        assert all("partners." in key for key in own.keys() - tensors.keys())  # of ProPhy's training alone
        assert all(torch.equal(value, own[key]) for key, value in tensors.items())


@pytest.mark.slow
def test_an_adapter_of_13b_corrects_both_experts_of_a14b_at_their_real_width(wide):
    """Forward alone, as the paper transfers it: 5,120 wide, two blocks each."""
    case = next(case for case in CASES if case.app == "pila")
    recipe, backbone = case.load("device=cpu"), wide(A14B)
    adapter = case.of("train").fresh(recipe, weightless(recipe.backbone))
    with torch.no_grad():
        for p in adapter.decoder.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    x = torch.randn(1, *backbone.spec.latent.shape(17, 64, 64), generator=torch.Generator().manual_seed(0))
    text = backbone.embed(["a red ball"])
    assert [m.config.num_attention_heads * m.config.attention_head_dim for m in backbone.transformers] == [5120, 5120]
    with torch.no_grad():
        for sigma in (torch.tensor([0.9]), torch.tensor([0.5])):
            plain = backbone.predict(x, sigma, text)
            with attach(backbone, adapter, in_predict=True) as attached:
                attached.prepare(["a red ball"], text)
                corrected = backbone.predict(x, sigma, text)
            assert corrected.isfinite().all()
            assert not torch.equal(corrected, plain)
            assert torch.equal(backbone.predict(x, sigma, text), plain)
