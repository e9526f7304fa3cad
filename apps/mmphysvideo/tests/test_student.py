"""The student: taught by features of a frozen teacher, and afterwards the base's own graph with other weights."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import VideoMAEConfig, VideoMAEModel

import backbones
from backbones import attach, lora
from backbones.tiny_families import family
from mmphysvideo import export, relations
from mmphysvideo.config import load_recipe
from mmphysvideo.features import VideoMAEEncoder, encoder_of
from mmphysvideo.generate import sample
from mmphysvideo.student import Learner, Student
from mmphysvideo.teacher import Teacher
from mmphysvideo.weights import plain, trainable

FULL = ["student.weights.kind=full"]
SMALL = ["student.weights.rank=2", "student.align.hidden=8", "sampling.steps=2"]
PLAIN = [*SMALL, "student.align.source=none"]


class Trace(TorchDispatchMode):
    """Every operation that is dispatched, with the shapes that go in."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [
            tuple(a.shape) for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)
        ]
        self.ops.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


def traced(backbone, model):
    own, backbone.pipe.transformer = backbone.pipe.transformer, model
    shape = backbone.spec.latent.shape(9, 32, 32)
    x, text = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)), backbone.embed(["a ball"])
    try:
        with torch.no_grad(), Trace() as trace:
            out = backbone.predict(x, torch.tensor([0.9]), text)
    finally:
        backbone.pipe.transformer = own
    return trace.ops, out


def trained(backbone, stirred, sets):
    recipe = load_recipe(None, sets)
    learner = Learner(recipe, backbone)
    stirred(learner.weights)
    return recipe, learner, {name: value.clone() for name, value in learner.weights.state_dict().items()}


@pytest.mark.parametrize("name", ["world", "wan21_t2v", "cogvideox_2b"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_student_dispatches_the_base_s_operations_one_by_one(backbone, stirred, name, kind):
    own = backbone if name == "world" else backbones.wrap(family(name))
    recipe, learner, state = trained(own, stirred, [*PLAIN, f"student.weights.kind={kind}"])
    model = plain(own, recipe.student.weights, state)
    assert type(model) is type(own.transformer)
    assert set(model.state_dict()) == set(own.transformer.state_dict())
    base, before = traced(own, own.transformer)
    ops, after = traced(own, model)
    assert len(base) > 50
    assert ops == base
    assert not torch.equal(before, after)
    with torch.no_grad():  # and it says what was trained
        shape = own.spec.latent.shape(9, 32, 32)
        x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        v, _ = learner(x, torch.tensor([0.9]), own.embed(["a ball"]).features)
    assert torch.allclose(v, after, atol=1e-4)


def test_an_unmerged_lora_is_not_the_base_s_graph(backbone, stirred):
    _, learner, _ = trained(backbone, stirred, PLAIN)
    assert len(traced(backbone, learner.stream.model)[0]) > len(traced(backbone, backbone.transformer)[0])


def test_a_student_samples_alike_attached_and_in_the_pipeline_s_own_place(backbone, stirred):
    recipe, _, state = trained(backbone, stirred, PLAIN)
    student = Student(recipe, backbone, state)
    prompts, seeds = ["a ball"], [3]
    film = sample(backbone, student, prompts, seeds, recipe)
    noise = backbones.noise(backbone, seeds)
    with attach(backbone, student):
        attached = backbones.sample(backbone, prompts, noise=noise, steps=2, guidance=recipe.sampling.guidance)
    assert torch.equal(film, attached)
    assert not torch.equal(film, sample(backbone, None, prompts, seeds, recipe))


BLOCKED = ("backbones", "mmphysvideo", "trainers", "physworld", "physexperts", "vlmdistill", "physfields")
STOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Absent())
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file

def film(pipe):
    pipe.set_progress_bar_config(disable=True)
    given = dict(height=32, width=32, num_frames=9, num_inference_steps=2, guidance_scale=1.5, max_sequence_length=512)
    return pipe("a ball", latents=load_file("{home}/noise.safetensors")["x"], output_type="pt", **given).frames

torch.set_num_threads(1)  # as here: sums round by the number of threads
with torch.no_grad():
    model = WanTransformer3DModel.from_pretrained("{home}/weights", subfolder="transformer")
    for p in model.parameters():
        p.data = p.data.clone()  # sums round by where a file's weights begin in memory
    whole = film(WanPipeline.from_pretrained("{home}/base", transformer=model))
    pipe = WanPipeline.from_pretrained("{home}/base")
    pipe.load_lora_weights("{home}/lora")
    added = film(pipe)
save_file({{"whole": whole.contiguous(), "added": added.contiguous()}}, "{home}/films.safetensors")
"""


def test_stock_diffusers_loads_an_export_without_this_project_and_makes_the_same_video(stirred, tmp_path):
    family("wan21_t2v").save_pretrained(tmp_path / "base")
    own = backbones.load(tmp_path / "base")
    recipe, _, state = trained(own, stirred, [*PLAIN, "data.frames=9", "sampling.guidance=1.5"])
    export.write(recipe, own, state, tmp_path / "weights", "weights")
    export.write(recipe, own, state, tmp_path / "lora", "lora")
    assert str(tmp_path) not in (tmp_path / "weights" / "transformer" / "config.json").read_text()
    save_file({"x": backbones.noise(own, [3], 9)}, tmp_path / "noise.safetensors")
    script = STOCK.format(blocked=set(BLOCKED), home=tmp_path)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    films = {name: film.transpose(1, 2) * 2 - 1 for name, film in load_file(tmp_path / "films.safetensors").items()}
    wanted = sample(own, Student(recipe, own, state), ["a ball"], [3], recipe)
    assert torch.allclose(films["whole"], wanted, atol=1e-5)  # weights lie elsewhere in memory, and sums round by it
    assert torch.allclose(films["added"], wanted, atol=1e-3)  # a LoRA that is not merged rounds differently
    assert not torch.allclose(sample(own, None, ["a ball"], [3], recipe), wanted, atol=1e-2)


def test_full_weights_are_no_lora(backbone, stirred, tmp_path):
    recipe, _, state = trained(backbone, stirred, [*PLAIN, *FULL])
    with pytest.raises(ValueError, match="expected a student trained with LoRA for --form lora"):
        export.write(recipe, backbone, state, tmp_path, "lora")
    export.write(recipe, backbone, state, tmp_path, "weights")
    again = type(backbone.transformer).from_pretrained(tmp_path / "transformer")
    assert torch.equal(again.proj_out.weight, state["proj_out.weight"])


def test_training_in_full_leaves_the_backbone_s_own_tensors_alone(backbone):
    full = trainable(backbone, load_recipe(None, FULL).student.weights)
    shared = trainable(backbone, load_recipe(None, []).student.weights)
    own = backbone.transformer.proj_out.weight
    assert full.model.proj_out.weight.data_ptr() != own.data_ptr()
    assert shared.model.proj_out.weight.data_ptr() == own.data_ptr()  # no memory twice
    assert lora.state(shared.model)


def test_the_alignment_teaches_what_lies_before_its_place_and_never_the_teacher(backbone, stirred):
    recipe = load_recipe(None, [*SMALL, "student.align.place=1", "teacher.weights.rank=2"])
    teacher = Teacher(recipe, backbone)
    stirred(teacher.links, teacher.weights)
    learner = Learner(recipe, backbone, teacher)
    stirred(learner.weights)
    g = torch.Generator().manual_seed(0)
    x, q = (torch.randn(2, 16, 5, 8, 8, generator=g) for _ in range(2))
    sigma, text = torch.tensor([0.4, 0.9]), backbone.embed(["a ball", "a red ball"]).features
    _, kept = learner(x, sigma, text)
    learner.alignment(kept, x, q, sigma, text).backward()
    touched = {name for name, p in learner.weights.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {name.split("_")[1] for name in touched} == {"0", "1"}
    assert all(p.grad is None for p in teacher.parameters())
    assert all(bool(p.grad.any()) for p in learner.projector.parameters() if p.ndim > 1)


def test_each_choice_of_stream_and_kind_measures_what_it_says(backbone, stirred):
    x, q = (torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    sigma, text = torch.tensor([0.5]), backbone.embed(["a ball"]).features
    found = {}
    for choice in ("rgb", "perception", "both"):
        recipe = load_recipe(None, [*SMALL, f"student.align.stream={choice}", "teacher.weights.rank=2"])
        torch.manual_seed(0)
        teacher = Teacher(recipe, backbone)
        stirred(teacher.links)
        learner = Learner(recipe, backbone, teacher)
        _, kept = learner(x, sigma, text)
        found[choice] = float(learner.alignment(kept, x, q, sigma, text).detach())
        if choice == "perception":
            told = learner.projector(kept.h).detach()
            wanted = teacher.features(x, q, sigma, text, place=2)[1]
            alone = relations.relations(told, wanted, margin=0.1, rows=99)
            assert found[choice] == pytest.approx(float(alone), abs=1e-6)
    assert found["both"] == pytest.approx((found["rgb"] + found["perception"]) / 2, abs=1e-6)
    assert found["rgb"] != found["perception"]


@pytest.mark.parametrize(
    ("sets", "taught", "said"),
    [
        (["student.align.place=4"], True, "student.align.place among the blocks 0 to 3"),
        (["student.align.teacher_place=9"], True, "student.align.teacher_place among the blocks 0 to 3"),
        ([], False, "expected a teacher for student.align.source=teacher, got none"),
        (["student.align.source=none"], True, "expected no teacher for student.align.source=none"),
    ],
)
def test_what_cannot_be_aligned_is_refused(backbone, sets, taught, said):
    recipe = load_recipe(None, [*SMALL, "teacher.weights.rank=2", *sets])
    with pytest.raises(ValueError, match=said):
        Learner(recipe, backbone, Teacher(recipe, backbone) if taught else None)


def test_encoders_see_the_frames_behind_the_first_two_a_tubelet(tmp_path):
    video = torch.rand(2, 3, 17, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = encoder_of(load_recipe("videorepa").student.align, "cpu")(video)
    assert seen.shape[:4] == (2, 8, 4, 4)
    other = video.clone()
    other[:, :, 0] = 0
    assert torch.equal(encoder_of(load_recipe("videorepa").student.align, "cpu")(other), seen)
    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 8, "hidden_size": 16, "num_hidden_layers": 1}
    torch.manual_seed(0)
    VideoMAEModel(VideoMAEConfig(**sizes, num_attention_heads=2, intermediate_size=16)).save_pretrained(tmp_path)
    mae = encoder_of(
        load_recipe("videorepa", ["student.align.source=videomae", f"student.align.encoder={tmp_path}"]).student.align,
        "cpu",
    )
    assert mae(video).shape == (2, 8, 4, 4, 16)
    thirteen = mae(video[:, :, :13])  # windows of 8 of 12 frames: the second reaches back to frame 5
    assert thirteen.shape[1] == 6
    assert torch.allclose(thirteen[:, :2], mae(video)[:, :2], atol=1e-6)
    assert not torch.allclose(thirteen[:, 2:4], mae(video)[:, 2:4], atol=1e-6)
    with pytest.raises(ValueError, match="expected clips of 8 frames or more behind the first"):
        mae(video[:, :, :5])
    with pytest.raises(ValueError, match="expected a model for"):
        encoder_of(load_recipe("videorepa", ["student.align.source=videomae"]).student.align, "cpu")
    with pytest.raises(ValueError, match="expected a folder or hub id of a VideoMAE"):
        VideoMAEEncoder.load(str(tmp_path / "none"), device="cpu")
