"""What an adapter of the velocity sees and does in every family's stock pipeline, against formulas written out here."""

from contextlib import contextmanager
from functools import wraps

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from PIL import Image
from torch import nn

from backbones import attach, tiny_families

MODES = ("conditional", "after_guidance", "per_branch")
CASES = (*tiny_families.FAMILIES, "wan22_ti2v_image", "wan21_t2v_euler")
GAIN, WEIGHT, G = 0.4, 0.1, 3.0


class Probe(nn.Module):
    """D = GAIN v + WEIGHT, and a diary."""

    kind = "probe"

    def __init__(self, **attributes):
        super().__init__()
        self.diary = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def prepare(self, prompts, text):
        self.prompts = prompts

    def correction(self, x_s, v, sigma, text):
        self.diary.append((x_s, v, sigma, text))
        return GAIN * v + WEIGHT

    def groups(self):
        return {"probe": self}


def build(name):
    pipe = tiny_families.family(name.removesuffix("_image").removesuffix("_euler"))
    if name.endswith("_image"):
        pipe = WanImageToVideoPipeline(**pipe.components, expand_timesteps=True)
        pipe.set_progress_bar_config(disable=True)
    if name.endswith("_euler"):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return pipe


@contextmanager
def watched(pipe, attached):
    """Note the model's own outputs by call, and what the stock scheduler's step gets."""
    kind = getattr(type(pipe.scheduler), "_stock", type(pipe.scheduler))
    stock, correct, raw, guided = kind.step, attached.correct, [], []

    @wraps(stock)
    def step(self, model_output, *args, **kwargs):
        guided.append(model_output.clone())
        return stock(self, model_output, *args, **kwargs)

    def noted(model, arguments, output, physics):
        raw.append((model, arguments, output))
        return correct(model, arguments, output, physics)

    kind.step, attached.correct = step, noted
    try:
        yield raw, guided
    finally:
        kind.step = stock
        del attached.correct


def sample(pipe, **changes):
    settings = {"prompt": ["a red ball", "the cube falls"], "num_inference_steps": 3, "guidance_scale": G}
    settings |= {"height": 32, "width": 32, "num_frames": 9, "output_type": "latent"}
    if "ImageToVideo" in type(pipe).__name__:
        settings |= {"image": Image.new("RGB", (32, 32), (200, 60, 30)), "prompt": ["a red ball"]}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return pipe(**(settings | {"generator": generator} | changes)).frames


def levels(pipe, name, timestep, step):
    """a, s of the step (x_t = a x0 + s eps) and the flow level of it."""
    if "cog" not in name:
        sigma = pipe.scheduler.sigmas[step]
        return 1 - sigma, sigma, sigma
    alpha_bar = pipe.scheduler.alphas_cumprod.double()[timestep.flatten()[0].long()]
    a, s = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    return a, s, s / (a + s)


def steps_of(pipe, name, raw):
    """Give, step by step: x_t, the conditional and unconditional native outputs, a, s, sigma and the mask of noise."""
    if "cog" in name:
        for i, (_, arguments, out) in enumerate(raw):
            u, c = out.chunk(2)
            x = arguments["hidden_states"].chunk(2)[1][:, :, : out.shape[2]]
            yield x, c, u, *levels(pipe, name, arguments["timestep"], i), 1.0
        return
    for i in range(0, len(raw), 2):
        (_, arguments, c), (_, _, u) = raw[i : i + 2]
        mask = torch.ones_like(c[:, :1])
        if name.endswith("_image"):
            mask[:, :, 0] = 0
        yield (
            arguments["hidden_states"][:, : c.shape[1]],
            c,
            u,
            *levels(pipe, name, arguments["timestep"], i // 2),
            mask,
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_every_step_is_corrected_by_the_formula_of_its_mode(name, mode):
    """In flow space u: conditional u_g + D(u_c), after guidance u_g + D(u_g), per branch D_u + g (D_c - D_u)."""
    pipe, probe = build(name), Probe()
    with attach(pipe, probe, mode=mode) as attached, watched(pipe, attached) as (raw, guided):
        sample(pipe)
    steps = list(steps_of(pipe, name, raw))
    assert len(steps) == len(guided) == 3
    for (x_t, c, u, a, s, _, mask), found in zip(steps, guided, strict=True):
        v = "cog" in name

        def flow(out, x_t=x_t, a=a, s=s, v=v):
            return (a + s) * out + (s - a) * x_t if v else out

        u_c, u_u, u_g, u_found = flow(c), flow(u), flow(u + G * (c - u)), flow(found)
        d_c, d_u, d_g = ((GAIN * z * mask + WEIGHT) * mask for z in (u_c, u_u, u_g))
        delta = {"conditional": d_c, "after_guidance": d_g, "per_branch": d_u + G * (d_c - d_u)}[mode]
        torch.testing.assert_close(u_found, u_g + delta, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_what_an_adapter_sees_is_flow_whatever_the_model_predicts(name):
    """sigma is exact, and x_s - sigma v is the x0 that the model's own prediction stands for."""
    pipe, probe = build(name), Probe()
    with attach(pipe, probe) as attached, watched(pipe, attached) as (raw, _):
        sample(pipe)
    for (x_t, c, _, a, s, sigma, mask), (x_s, v, level, text) in zip(
        steps_of(pipe, name, raw), probe.diary, strict=True
    ):
        torch.testing.assert_close(level, sigma.expand(len(level)), atol=1e-6, rtol=0)
        native = x_t.transpose(1, 2) if "cog" in name else x_t
        out = c.transpose(1, 2) if "cog" in name else c
        x0 = a * native - s * out if "cog" in name else native - sigma * out * mask
        torch.testing.assert_close(x_s - sigma * v, x0, atol=2e-5, rtol=1e-4)
        assert text.branch == "cond"
        assert text.mask.sum(1).tolist() == [len(p.split()) + 1 for p in probe.prompts]
        assert x_s.shape[1] == out.shape[1] == c.shape[2 if "cog" in name else 1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["wan22_a14b", "cogvideox_2b"])
def test_without_guidance_every_mode_is_the_same(name, mode):
    pipe = build(name)
    with attach(pipe, Probe(), mode="per_branch"):
        expected = sample(pipe, guidance_scale=1.0)
    with attach(pipe, Probe(), mode=mode):
        torch.testing.assert_close(sample(pipe, guidance_scale=1.0), expected, atol=2e-5, rtol=1e-4)


def test_a_negative_prompt_is_told_apart_in_a_batched_call():
    pipe, probe = build("cogvideox_5b"), Probe()
    with attach(pipe, probe, mode="per_branch"):
        sample(pipe, negative_prompt=["blue", "the blue cube rolls"], num_inference_steps=1)
    seen = {text.branch: text.mask.sum(1).tolist() for _, _, _, text in probe.diary}
    assert seen == {"uncond": [2, 5], "cond": [4, 4]}


@pytest.mark.parametrize("name", ["wan22_a14b", "wan22_i2v_a14b"])
@pytest.mark.parametrize(
    ("experts", "sigma_range"),
    [("both", (0.0, 1.0)), ("both", (0.95, 1.0)), ("both", (0.0, 0.7)), ("high", (0.6, 1.0)), ("low", (0.0, 0.98))],
)
def test_an_adapter_corrects_the_chosen_experts_inside_its_range_and_nowhere_else(name, experts, sigma_range):
    pipe, probe, border = build(name), Probe(sigma_range=sigma_range), 0.9 if "i2v" in name else 0.875
    stock = [type(m) for m in (pipe.transformer, pipe.transformer_2)]
    with attach(pipe, probe, experts=experts):
        sample(pipe, num_inference_steps=8)
    sigmas = pipe.scheduler.sigmas[:8].tolist()
    side = {"both": lambda _: True, "high": lambda s: s >= border, "low": lambda s: s < border}[experts]
    expected = [s for s in sigmas if sigma_range[0] <= s <= sigma_range[1] and side(s)]
    assert 0 < len(expected) <= 8
    assert [d[2][0].item() for d in probe.diary] == pytest.approx(expected)
    assert [type(m) for m in (pipe.transformer, pipe.transformer_2)] == stock


def test_outside_its_range_an_adapter_leaves_every_bit_and_each_row_of_a_batch_has_its_own_level():
    pipe = build("wan21_t2v")
    model = pipe.transformer
    x = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    timestep, text = torch.tensor([300.0, 800.0]), torch.zeros(2, 512, 32)
    with torch.no_grad():
        plain = model(x, timestep, text).sample
        with attach(pipe, Probe(sigma_range=(0.5, 1.0))):
            found = model(x, timestep, text).sample
    assert torch.equal(found[0], plain[0])
    torch.testing.assert_close(found[1], plain[1] * (1 + GAIN) + WEIGHT)


@pytest.mark.parametrize(
    ("experts", "sigma_range", "sentence"),
    [
        ("high", (0.0, 0.5), "high-noise expert of WanPipeline works in .0.875, 1.0.: .*experts='low'"),
        ("low", (0.9, 1.0), "low-noise expert of WanPipeline works in .0.0, 0.875.: .*experts='high'"),
        ("both", (0.7, 0.2), "0 <= low < high <= 1, got .0.7, 0.2."),
        ("both", (0.0, 1000.0), "0 <= low < high <= 1"),
    ],
)
def test_a_range_that_meets_no_chosen_expert_is_refused(experts, sigma_range, sentence):
    with pytest.raises(ValueError, match=sentence):
        attach(build("wan22_a14b"), Probe(sigma_range=sigma_range), experts=experts)


def test_per_call_inputs_reach_an_adapter_that_takes_them():
    class Pushed(Probe):
        """Reads a force from the pipeline's own argument."""

        def correction(self, x_s, v, sigma, text, physics):
            self.diary.append(physics)
            return torch.full_like(v, physics.get("force", 0.0))

    for name in ("wan21_i2v", "wan22_ti2v", "cogvideox_2b"):
        for mode in MODES:
            pipe, probe = build(name), Pushed()
            with attach(pipe, probe, mode=mode) as attached:
                plain = sample(pipe)
                pushed = sample(pipe, attention_kwargs={"physics": {"force": 0.5}})
                with attached.off():
                    assert torch.equal(sample(pipe, attention_kwargs={"physics": {"force": 0.5}}), plain)
            assert probe.diary[-1] == {"force": 0.5}
            assert not torch.equal(plain, pushed)
