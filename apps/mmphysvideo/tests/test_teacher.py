"""The teacher: the base at its start, two streams that read each other, sampled beside a stock pipeline."""

from dataclasses import replace

import pytest
import torch

import backbones
from backbones import Text, attach, blocks_of, paths
from backbones.tiny_families import family
from mmphysvideo.config import load_recipe
from mmphysvideo.links import Links, Tasks
from mmphysvideo.streams import Stream
from mmphysvideo.teacher import Teacher
from mmphysvideo.weights import trainable

PROMPTS = ["a large blue ball is thrown to the left", "ink spreads in water"]


def twice(text):
    return Text(torch.cat([text.features] * 2), torch.cat([text.mask] * 2))


def ask(backbone, prompts):
    text = backbone.embed(prompts)
    shape = backbone.spec.latent.shape(9, 32, 32)
    g = torch.Generator().manual_seed(0)
    x, q = (torch.randn(len(prompts), *shape, generator=g) for _ in range(2))
    sigma = torch.tensor([0.3, 0.8])[: len(prompts)]
    if backbone.spec.prediction == "v":
        sigma = paths.level(backbone.pipe.scheduler.alphas_cumprod.double())[[300, 800]].float()[: len(prompts)]
    return x, q, sigma, text


@pytest.fixture(scope="module", params=["world", "wan21_t2v", "cogvideox_2b", "cogvideox_5b"])
def each(request, backbone):
    return backbone if request.param == "world" else backbones.wrap(family(request.param))


@pytest.mark.parametrize("tasks", ["time", "tokens"])
def test_a_fresh_teacher_is_the_base_on_the_same_rows_bit_for_bit(each, tasks):
    teacher = Teacher(load_recipe(None, [f"teacher.tasks={tasks}"]), each)
    x, q, sigma, text = ask(each, ["a ball", "a red ball"])
    with torch.no_grad():
        both = torch.cat(teacher.velocities(x, q, sigma, text.features))
        assert torch.equal(both, each.predict(torch.cat([x, q]), torch.cat([sigma] * 2), twice(text)))
        apart = torch.cat([each.predict(row, sigma, text) for row in (x, q)])
    assert float((both - apart).abs().max()) <= 1e-5 * float(apart.abs().max())


@pytest.mark.parametrize("place", [0, 3])
def test_features_of_a_fresh_teacher_are_what_the_base_s_block_gives(backbone, place):
    teacher = Teacher(load_recipe(None, []), backbone)
    x, q, sigma, text = ask(backbone, ["a ball", "a red ball"])
    given = []
    hook = backbone.transformer.blocks[place].register_forward_hook(lambda block, args, made: given.append(made))
    with torch.no_grad():
        backbone.predict(torch.cat([x, q]), torch.cat([sigma] * 2), twice(text))
    hook.remove()
    found = teacher.features(x, q, sigma, text.features, place=place)
    assert torch.equal(torch.cat(found), given[0])


@pytest.mark.parametrize("form", ["teacher.streams=separate", "teacher.form=channels"])
def test_other_forms_of_the_teacher_begin_as_the_base_too(backbone, form):
    teacher = Teacher(load_recipe(None, [form]), backbone)
    x, q, sigma, text = ask(backbone, ["a ball", "a spring"])
    with torch.no_grad():
        v, u = teacher.velocities(x, q, sigma, text.features)
        assert torch.equal(v, backbone.predict(x, sigma, text))
        if form == "teacher.streams=separate":
            assert torch.equal(u, backbone.predict(q, sigma, text))


def test_an_observed_beginning_is_clean_in_the_video_and_not_in_its_perception(backbone):
    teacher = Teacher(load_recipe(None, []), backbone)
    x, q, _, text = ask(backbone, ["a ball", "a spring"])
    sigma = torch.tensor([[0.0, 0.7, 0.7], [0.4, 0.4, 0.4]])
    with torch.no_grad():
        v, u = teacher.velocities(x, q, sigma, text.features)
        cells = sigma.repeat_interleave(16, 1)
        assert torch.allclose(v, backbone.predict(x, cells, text), atol=1e-5)
        assert torch.allclose(u, backbone.predict(q, torch.tensor([0.7, 0.4]), text), atol=1e-5)


def test_both_links_read_the_states_before_the_update():
    links = Links(3, 2, every=1, way="both")
    with torch.no_grad():
        for linear in (*links.to_rgb.values(), *links.to_perception.values()):
            linear.weight.copy_(torch.eye(3))
    r, q = torch.full((1, 2, 3), 1.0), torch.full((1, 2, 3), 10.0)
    rgb, perception = links(1, r, q)
    assert torch.equal(rgb, r + q)
    assert torch.equal(perception, q + r)


def test_links_sit_where_the_recipe_says_the_last_block_included():
    assert list(Links(3, 8, every=3, way="both").to_rgb) == ["1", "4", "7"]
    assert not any(True for _ in Links(3, 8, every=1, way="none").parameters())
    one = Links(3, 2, every=1, way="to_rgb")
    assert (len(one.to_rgb), len(one.to_perception)) == (2, 0)
    with pytest.raises(ValueError, match="of at most the 2 blocks of the backbone, got 3"):
        Links(3, 2, every=3, way="both")


@pytest.mark.parametrize(
    ("way", "moved"), [("both", (1, 1)), ("to_rgb", (1, 0)), ("to_perception", (0, 1)), ("none", (0, 0))]
)
def test_a_stream_feels_the_other_where_a_link_leads_to_it(backbone, stirred, way, moved):
    teacher = Teacher(load_recipe(None, [f"teacher.links.way={way}"]), backbone)
    stirred(teacher.links)
    x, q, sigma, text = ask(backbone, ["a ball", "a spring"])
    with torch.no_grad():
        v, u = teacher.velocities(x, q, sigma, text.features)
        v_other, _ = teacher.velocities(x, q + 1, sigma, text.features)
        _, u_other = teacher.velocities(x + 1, q, sigma, text.features)
    assert (not torch.equal(v, v_other), not torch.equal(u, u_other)) == tuple(map(bool, moved))


@pytest.mark.parametrize("tasks", ["time", "tokens"])
def test_a_task_embedding_moves_its_own_stream_alone(each, tasks):
    teacher = Teacher(load_recipe(None, [f"teacher.tasks={tasks}"]), each)
    x, q, sigma, text = ask(each, ["a ball", "a red ball"])
    with torch.no_grad():
        v, u = teacher.velocities(x, q, sigma, text.features)
        teacher.tasks.perception.add_(0.5)
        v2, u2 = teacher.velocities(x, q, sigma, text.features)
    assert torch.equal(v, v2)
    assert not torch.equal(u, u2)


def test_task_embeddings_meet_the_time_embedding_where_the_model_reads_it(backbone):
    stream = trainable(backbone, load_recipe(None, []).teacher.weights).stream
    x, _, sigma, text = ask(backbone, ["a ball", "a spring"])
    tokens = stream.begin(x, sigma, text.features)
    tasks = Tasks("time", 192)
    with torch.no_grad():
        tasks.rgb.add_(0.3)
        told = tasks(tokens, stream.stack, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert torch.allclose(told.temb[0], tokens.temb[0] + 0.3)
    assert not torch.equal(told.modulation[0], tokens.modulation[0])
    assert torch.equal(told.modulation[1], tokens.modulation[1])


def test_sampling_both_streams_leaves_the_video_of_a_fresh_teacher_as_it_was(each):
    size = {"frames": 9, "height": 32, "width": 32, "steps": 3, "guidance": 2.0}
    if each.id == "world":
        size["frames"] = 17
    noise = backbones.noise(each, [3], size["frames"], 32, 32)
    plain = backbones.sample(each, ["a ball"], noise=noise, **size)
    teacher = Teacher(load_recipe(None, []), each)
    with attach(each, teacher):
        both = backbones.sample(each, ["a ball"], noise=noise, **size)
    assert torch.allclose(both, plain, atol=1e-3)
    q = teacher.perception()
    assert q.shape == noise.shape
    assert bool(q.isfinite().all())
    assert blocks_of(each.transformer)  # detached: the stock class again


def test_the_perception_of_a_fresh_teacher_is_what_the_base_makes_of_its_noise(backbone):
    """Euler's step is the embedded scheduler's own, so q must be the base's sampling from q's first noise."""
    teacher = Teacher(load_recipe(None, []), backbone)
    size = {"steps": 4, "guidance": 1.5}
    first = {}
    honest = Teacher.open

    def watched(self, x, q, *args, **kwargs):
        first.setdefault("q", q.clone())
        return honest(self, x, q, *args, **kwargs)

    teacher.open = watched.__get__(teacher)
    noise = backbones.noise(backbone, [3])
    with attach(backbone, teacher):
        backbones.sample(backbone, ["a ball"], noise=noise, **size)
    film = backbone.decode(teacher.perception())
    wanted = backbones.sample(backbone, ["a ball"], noise=first["q"], **size)
    assert torch.allclose(film, wanted, atol=1e-4)
    assert not torch.equal(first["q"], noise)


def test_a_clip_has_the_same_perception_alone_and_in_a_batch(backbone, stirred):
    teacher = Teacher(load_recipe(None, []), backbone)
    stirred(teacher.links, teacher.tasks)
    found = []
    for seeds, prompts in (([3], PROMPTS[:1]), ([3, 4], PROMPTS)):
        with attach(backbone, teacher):
            noise = backbones.noise(backbone, seeds)
            backbones.sample(backbone, prompts, noise=noise, steps=2)
        found.append(teacher.perception()[0])
    assert torch.allclose(*found, atol=1e-4)
    with pytest.raises(ValueError, match="expected a sampling to have ended"):
        Teacher(load_recipe(None, []), backbone).perception()


def test_models_with_two_transformers_or_a_condition_are_refused():
    for name in ("wan22_a14b", "wan21_i2v"):
        with pytest.raises(ValueError, match="expected a text-to-video backbone with one transformer"):
            trainable(backbones.wrap(family(name)), load_recipe(None, []).teacher.weights)
    recipe = load_recipe(None, ["teacher.weights.targets=[none]"])
    with pytest.raises(ValueError, match="that a block has"):
        trainable(backbones.wrap(family("wan21_t2v")), recipe.teacher.weights)


def test_a_stream_of_a_family_whose_calls_are_not_known_is_refused(backbone, monkeypatch):
    stack = blocks_of(backbone.transformer)
    stack.spec = replace(stack.spec, latent_layout="bnc")  # as a family of another package may have
    monkeypatch.setattr("mmphysvideo.streams.blocks_of", lambda model: stack)
    stream, text = Stream(backbone, backbone.transformer), backbone.embed(["a ball"])
    with pytest.raises(ValueError, match="expected a Wan or a CogVideoX, got WanTransformer3DModel"):
        stream.begin(torch.zeros(1, *backbone.spec.latent.shape(17, 32, 32)), torch.tensor([0.5]), text.features)
