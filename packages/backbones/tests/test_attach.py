"""Attaching: identity at the start, exactly + D in the guided velocity, and no trace after detaching."""

import copy
import inspect

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch import nn

from backbones import WanBackbone, attach, noise, sample, tiny

MODES = ("conditional", "after_guidance", "per_branch")
PROMPTS = ["a red ball", "a large blue ball is thrown"]
SIZE = {"frames": 5, "height": 16, "width": 16}


class Probe(nn.Module):
    """D = gain * v + weight, and a diary of what it was asked."""

    kind = "probe"

    def __init__(self, weight=0.0, gain=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.gain, self.diary, self.prompts = gain, [], []

    def prepare(self, prompts, text):
        self.prompts.append(list(prompts))

    def correction(self, x_s, v, sigma, text):
        self.diary.append((x_s, v, sigma, text))
        return self.gain * v + self.weight

    def groups(self):
        return {"probe": self}


def guided_velocities(backbone, call, guidance=3.0, steps=3):
    """Run `call` and give (sample, guided velocity) of each scheduler step."""
    scheduler, seen = backbone.pipe.scheduler, []
    stock = type(scheduler).step

    def step(model_output, t, latents, **kwargs):
        out = stock(scheduler, model_output, t, latents, **kwargs)
        velocity = (out[0] - latents) / (scheduler.sigmas[len(seen) + 1] - scheduler.sigmas[len(seen)])
        seen.append((latents, velocity))
        return out

    scheduler.step = step
    try:
        call(guidance, steps)
    finally:
        del scheduler.step
    return seen


@pytest.mark.parametrize("mode", MODES)
def test_an_adapter_that_gives_zero_changes_no_bit(backbone, mode, video):
    start, first = noise(backbone, [1, 2], 5, 16, 16), video[:2, :, 0, :16, :16]
    plain = sample(backbone, PROMPTS, noise=start, steps=3, **SIZE)
    kept = sample(backbone, PROMPTS, noise=start, steps=3, image=first, **SIZE)
    with attach(backbone, Probe(), mode=mode) as attached:
        assert torch.equal(sample(backbone, PROMPTS, noise=start, steps=3, **SIZE), plain)
        assert torch.equal(sample(backbone, PROMPTS, noise=start, steps=3, image=first, **SIZE), kept)
        assert attached.adapter.diary


@pytest.mark.parametrize("mode", MODES)
def test_an_adapter_that_gives_something_changes_the_video(backbone, mode):
    start = noise(backbone, [1, 2], 5, 16, 16)
    plain = sample(backbone, PROMPTS, noise=start, steps=3, **SIZE)
    with attach(backbone, Probe(0.3), mode=mode):
        assert not torch.equal(sample(backbone, PROMPTS, noise=start, steps=3, **SIZE), plain)


@pytest.mark.parametrize("mode", ["conditional", "after_guidance"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_constant_correction_shifts_the_guided_velocity_once(backbone, mode, guidance):
    start = noise(backbone, [1, 2], 5, 16, 16)

    def call(g, n):
        sample(backbone, PROMPTS, noise=start, steps=n, guidance=g, **SIZE)

    (_, plain), *_ = guided_velocities(backbone, call, guidance)
    with attach(backbone, Probe(0.25), mode=mode):
        (_, shifted), *_ = guided_velocities(backbone, call, guidance)
    torch.testing.assert_close(shifted - plain, torch.full_like(plain, 0.25), atol=2e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_follows_its_formula(backbone, mode):
    """With D = gain v + w: conditional v_g + D(v_c), after guidance v_g + D(v_g), per branch D_u + g (D_c - D_u)."""
    start, g, gain, w = noise(backbone, [1, 2], 5, 16, 16), 3.0, 0.5, 0.1
    sigma = torch.ones(2)
    with torch.no_grad():
        v_c = backbone.predict(start, sigma, backbone.embed(PROMPTS))
        v_u = backbone.predict(start, sigma, backbone.embed(["", ""]))
    v_g = v_u + g * (v_c - v_u)
    delta = {
        "conditional": gain * v_c + w,
        "after_guidance": gain * v_g + w,
        "per_branch": gain * v_u + w + g * gain * (v_c - v_u),
    }[mode]
    with attach(backbone, Probe(w, gain), mode=mode):
        (_, found), *_ = guided_velocities(
            backbone, lambda g, n: sample(backbone, PROMPTS, noise=start, steps=n, guidance=g, **SIZE), g
        )
    torch.testing.assert_close(found, v_g + delta, atol=2e-5, rtol=0)


def test_the_adapter_is_told_prompts_branch_and_noise_level(backbone):
    probe = Probe()
    with attach(backbone, probe, mode="per_branch"):
        sample(backbone, PROMPTS, seed=0, steps=2, guidance=2.0, **SIZE)
        sigmas = backbone.pipe.scheduler.sigmas[:2].tolist()
        backbone.pipe("a ball", num_videos_per_prompt=2, height=16, width=16, num_frames=5, num_inference_steps=1)
    assert probe.prompts == [PROMPTS, ["a ball", "a ball"]]
    assert [d[3].branch for d in probe.diary[:4]] == ["cond", "uncond", "cond", "uncond"]
    assert [d[2].tolist() for d in probe.diary[:4]] == [[s, s] for s in (sigmas[0], sigmas[0], sigmas[1], sigmas[1])]
    assert probe.diary[0][3].mask.sum(1).tolist() == [4, 7]


def test_a_conditional_correction_is_computed_once_a_step(backbone):
    probe = Probe()
    with attach(backbone, probe):
        sample(backbone, PROMPTS, seed=0, steps=3, guidance=2.0, **SIZE)
    assert [d[3].branch for d in probe.diary] == ["cond"] * 3


@pytest.mark.parametrize("mode", MODES)
def test_a_clean_prefix_is_neither_corrected_nor_read_as_noise(backbone, mode, video):
    probe, first = Probe(0.25), video[:1, :, 0, :16, :16]
    start = noise(backbone, [1], 5, 16, 16)
    with attach(backbone, probe, mode=mode):
        seen = guided_velocities(
            backbone,
            lambda g, n: sample(backbone, PROMPTS[:1], noise=start, image=first, steps=n, guidance=g, **SIZE),
        )
    plain = guided_velocities(
        backbone, lambda g, n: sample(backbone, PROMPTS[:1], noise=start, image=first, steps=n, guidance=g, **SIZE)
    )
    shift = seen[0][1] - plain[0][1]
    torch.testing.assert_close(shift[:, :, 0], torch.zeros_like(shift[:, :, 0]), atol=2e-5, rtol=0)
    torch.testing.assert_close(shift[:, :, 1:], torch.full_like(shift[:, :, 1:], 0.25), atol=2e-5, rtol=0)
    x_s, v, sigma, _ = probe.diary[0]
    prefix = backbone.encode(first[:, :, None])
    torch.testing.assert_close((x_s - sigma.view(-1, 1, 1, 1, 1) * v)[:, :, :1], prefix)


def test_detaching_restores_class_methods_and_every_bit(backbone):
    pipe, model = backbone.pipe, backbone.transformer
    sample(
        backbone, PROMPTS, seed=0, steps=1, **SIZE
    )  # the stock pipeline leaves a hook registry behind on its first call
    before = {k: v.clone() for k, v in model.state_dict().items()}
    classes, names = (type(model), type(pipe.scheduler)), (set(vars(model)), set(vars(pipe)))
    probe = Probe(0.1).train()
    attached = attach(pipe, probe, mode="after_guidance")
    assert isinstance(model, classes[0])
    assert not probe.training
    sample(backbone, PROMPTS, seed=0, steps=2, **SIZE)
    attached.detach()
    attached.detach()
    assert (type(model), type(pipe.scheduler)) == classes
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (set(vars(model)), set(vars(pipe))) == names
    assert probe.training


@pytest.mark.parametrize("mode", MODES)
def test_a_pipeline_that_broke_in_the_middle_samples_as_before(backbone, mode):
    class Breaks(Probe):
        """Raises at its third call when it is told to."""

        breaks = False

        def correction(self, x_s, v, sigma, text):
            if self.breaks and len(self.diary) == 2:
                raise KeyboardInterrupt
            return super().correction(x_s, v, sigma, text)

    start, probe = noise(backbone, [1, 2], 5, 16, 16), Breaks(0.2, 0.3)
    call = {"noise": start, "steps": 3, "guidance": 3.0, **SIZE}
    plain = sample(backbone, PROMPTS, **call)
    with attach(backbone, probe, mode=mode):
        whole = sample(backbone, PROMPTS, **call)
        probe.breaks, probe.diary = True, []
        with pytest.raises(KeyboardInterrupt):
            sample(backbone, PROMPTS[::-1], **call)
        probe.breaks = False
        x_s, text = start[:, :, :1], backbone.embed(PROMPTS)
        with torch.no_grad():  # no branch is left behind: a bare forward is corrected at once
            v = backbone.predict(x_s, torch.full((2,), 0.5), text)
            bare = backbone.transformer(x_s, torch.full((2, 4), 500.0), text.features).sample
        torch.testing.assert_close(bare, 1.3 * v + 0.2)
        assert torch.equal(sample(backbone, PROMPTS, **call), whole)
        probe.breaks, probe.diary = True, []
        with pytest.raises(KeyboardInterrupt):
            sample(backbone, PROMPTS, **call)
    assert torch.equal(sample(backbone, PROMPTS, **call), plain)


@pytest.mark.parametrize("mode", MODES)
def test_clips_of_one_batch_are_corrected_as_they_are_alone(backbone, mode):
    """Different prompts, several clips a prompt, a negative prompt: clip by clip the same as one at a time."""
    settings = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 3.0}
    settings |= {"max_sequence_length": backbone.spec.text_length, "output_type": "pt"}
    start = noise(backbone, [1, 2, 3, 4], 5, 16, 16)
    with attach(backbone, Probe(0.2, 0.3), mode=mode):
        many = backbone.pipe(PROMPTS, negative_prompt="blue", num_videos_per_prompt=2, latents=start, **settings).frames
        for i in range(4):
            one = backbone.pipe(PROMPTS[i // 2], negative_prompt="blue", latents=start[i : i + 1], **settings).frames
            torch.testing.assert_close(many[i : i + 1], one, atol=2e-5, rtol=0)


def test_a_scheduler_that_is_changed_after_attaching_is_refused_where_it_would_lose_the_correction(backbone):
    stock, kind = backbone.pipe.scheduler, type(backbone.pipe.scheduler)
    attached = attach(backbone, Probe(0.3), mode="after_guidance")
    backbone.pipe.scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3
    )
    with pytest.raises(RuntimeError, match="scheduler was changed"):
        sample(backbone, PROMPTS, seed=0, steps=2, **SIZE)
    attached.detach()
    assert type(stock) is kind
    assert not hasattr(stock, "phys_attached")
    assert "encode_prompt" not in vars(backbone.pipe)
    with attach(backbone, Probe(), mode="conditional"):
        backbone.pipe.scheduler = stock
        sample(backbone, PROMPTS, seed=0, steps=1, **SIZE)


def test_detaching_finds_the_model_that_it_was_attached_to(backbone):
    model, stock = backbone.transformer, type(backbone.transformer)
    attached = attach(backbone, Probe())
    backbone.pipe.transformer = tiny.transformer(16, layers=1)
    attached.detach()
    assert type(model) is stock
    assert "phys_adapters" not in model._modules
    assert "encode_prompt" not in vars(backbone.pipe)


def test_the_frozen_model_can_be_asked_while_an_adapter_is_attached(backbone):
    x_s, sigma, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([0.5]), backbone.embed(["a ball"])
    digest = backbone.digest
    with torch.no_grad():
        plain = backbone.predict(x_s, sigma, text)
        with attach(backbone, Probe(0.5)) as attached:
            assert torch.equal(backbone.predict(x_s, sigma, text), plain)
            bare = backbone.transformer(x_s, torch.full((1, 8), 500.0), text.features).sample
            torch.testing.assert_close(bare, plain + 0.5)
            with attached.off():
                assert torch.equal(backbone.transformer(x_s, torch.full((1, 8), 500.0), text.features).sample, plain)
            assert backbone.digest == digest


def test_gradients_reach_the_adapter_through_the_host(backbone):
    x_s, text = torch.randn(1, 16, 2, 4, 4), backbone.embed(["a ball"])
    probe = Probe(0.5)
    with backbone.frozen(), attach(backbone, probe):
        backbone.transformer(x_s, torch.full((1, 8), 500.0), text.features).sample.square().sum().backward()
        assert all(p.grad is None for n, p in backbone.transformer.named_parameters() if "phys_adapters" not in n)
    assert probe.weight.grad != 0


def test_a_half_precision_model_keeps_its_dtype_and_the_adapter_works_in_float32(vae):
    backbone = WanBackbone(tiny.pipeline(["a", "ball"], vae=vae, layers=1))
    backbone.transformer.to(torch.bfloat16)
    probe = Probe(0.5)
    with attach(backbone, probe):
        assert backbone.transformer.dtype == torch.bfloat16
        assert sample(backbone, ["a ball"], seed=0, steps=1, **SIZE).dtype == torch.float32
        assert all(t.dtype == torch.float32 for t in probe.diary[0][:3])
        assert probe.weight.dtype == torch.float32
        probe.to(torch.bfloat16)
        with pytest.raises(RuntimeError, match=r"adapter was cast to torch\.bfloat16"):
            sample(backbone, ["a ball"], seed=0, steps=1, **SIZE)


def test_forward_and_step_keep_the_signatures_that_pipelines_inspect(backbone):
    model, scheduler = backbone.transformer, backbone.pipe.scheduler
    forward, step = inspect.signature(type(model).forward), inspect.signature(scheduler.step)
    with attach(backbone, Probe(), mode="after_guidance"):
        assert inspect.signature(type(model).forward) == forward
        assert inspect.signature(scheduler.step) == step


def test_both_experts_of_a_split_model_are_corrected(vae):
    pipe = tiny.pipeline(["a", "ball"], vae=vae, layers=1)
    pipe.register_modules(transformer_2=tiny.transformer(16, layers=1))
    pipe.register_to_config(boundary_ratio=0.7)
    backbone, probe = WanBackbone(pipe), Probe()
    with attach(backbone, probe):
        sample(backbone, ["a ball"], seed=0, steps=4, guidance=2.0, **SIZE)
    assert len(probe.diary) == 4
    assert not any("phys_adapters" in k for m in backbone.transformers for k in m.state_dict())


def test_sigma_is_exact_under_a_scheduler_that_rounds_its_timesteps(backbone):
    stock = backbone.pipe.scheduler
    backbone.pipe.scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3
    )
    probe = Probe()
    with attach(backbone, probe, mode="after_guidance"):
        sample(backbone, PROMPTS, seed=0, steps=3, guidance=2.0, **SIZE)
        sigmas = backbone.pipe.scheduler.sigmas[:3].tolist()
    assert [d[2][0].item() for d in probe.diary] == sigmas
    backbone.pipe.scheduler = stock


def test_what_would_go_wrong_in_silence_is_refused(backbone):
    with pytest.raises(ValueError, match="a mode among"):
        attach(backbone, Probe(), mode="twice")
    with pytest.raises(ValueError, match="`correction` and `groups`, got Linear"):
        attach(backbone, nn.Linear(1, 1))
    with attach(backbone, Probe()):
        with pytest.raises(RuntimeError, match="attached to tiny already"):
            attach(backbone, Probe())
        with pytest.raises(RuntimeError, match=r"Call detach\(\) first"):
            backbone.pipe.save_pretrained("nowhere")
        with pytest.raises(RuntimeError, match=r"Call detach\(\) first"):
            backbone.transformer.save_pretrained("nowhere")
        features = backbone.embed(["a ball"]).features
        with pytest.raises(ValueError, match=r"Call attached.prepare\(prompts, text\) with 1 prompts first"):
            backbone.pipe(prompt_embeds=features, negative_prompt_embeds=features, height=16, width=16, num_frames=5)
    model = backbone.transformer
    model.forward = model.forward
    with pytest.raises(RuntimeError, match="Attach before"):
        attach(backbone, Probe())
    del model.forward


def test_a_transformer_that_is_changed_after_attaching_is_refused(backbone):
    pipe = backbone.pipe
    stock = pipe.transformer
    try:
        with attach(backbone, Probe()):
            pipe.transformer = copy.deepcopy(pipe.vae)
            with pytest.raises(RuntimeError, match="transformer was changed after attaching"):
                pipe.encode_prompt("a ball")
    finally:
        pipe.transformer = stock


@pytest.mark.parametrize("given", [0.5, (0.1, 0.2, 0.3), (0.9, 0.1)])
def test_what_is_no_range_of_noise_levels_is_refused(backbone, given):
    adapter = Probe()
    adapter.sigma_range = given
    with pytest.raises(ValueError, match=r"expected a sigma_range \(low, high\)"):
        attach(backbone, adapter)
