"""What every text-to-video backbone must keep, as functions that a test of a new family calls.

Each law takes a backbone and the (frames, height, width) of a legal clip, small, and raises AssertionError where it
does not hold:

    @pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
    def test_a_law_of_the_contract_holds(law):
        law(MyBackbone(tiny_pipeline()), (9, 64, 96))

The pipeline should have random weights of every part (a gate of zeros hides what is behind it), a few tokens in each
direction of different number, and a scheduler as the published one. How image models read their image, and what a
family does with noise levels between its timesteps, are laws of that family and not here.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backbones.attached import MODES, attach
from backbones.block_copy import fresh_copy
from backbones.blocks import blocks_of
from backbones.contract import Backbone
from backbones.loading import load, save
from backbones.sampling import noise, sample
from backbones.stock import StockBackbone

__all__ = ["LAWS"]

Clip = tuple[int, int, int]

PROMPTS = ["a red ball", "the blue cube rolls left"]
STEPS = 3


def the_contract_is_whole(backbone: StockBackbone, clip: Clip) -> None:
    """Every word of the contract is there, and the spec agrees with itself."""
    latent = backbone.spec.latent
    assert isinstance(backbone, Backbone), "a word of backbones.contract.Backbone is missing"
    assert len(backbone.sigma_ranges) == len(backbone.transformers), "one range of noise levels a transformer"
    assert backbone.sigma_ranges[0][1] == 1.0, "sigma = 1 is noise and belongs to the first transformer"
    assert len(latent.mean) == len(latent.std) == latent.channels, "mean and std: one number a channel"
    assert backbone.spec.prediction in ("flow", "v")


def latents_have_the_shape_of_the_spec(backbone: StockBackbone, clip: Clip) -> None:
    """`encode` gives `spec.latent.shape`, `decode` the video's, within [-1, 1]; other frame counts are refused."""
    video = _video(clip)
    with torch.no_grad():
        latents = backbone.encode(video)
        assert tuple(latents.shape) == (2, *backbone.spec.latent.shape(*clip))
        assert backbone.decode(latents).shape == video.shape
        assert float(backbone.decode(1e3 * latents).abs().max()) <= 1, "decode clamps"
        assert len(backbone.spec.time.latent_times(clip[0])) == latents.shape[2], "one time a latent"
    assert _refused(backbone.encode, video[:, :, [*range(clip[0]), 0]]), "encode took a frame too many"
    assert _refused(backbone.encode, 2 * video), "encode took values of -2 to 2"


def latents_are_normalised_as_the_pipeline_does(backbone: StockBackbone, clip: Clip) -> None:
    """latent * std + mean is what the VAE gives (its posterior's mode, no draw) and what the pipeline has it decode."""
    latent, vae = backbone.spec.latent, backbone.pipe.vae
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (latent.mean, latent.std))
    video = _video(clip)
    with torch.no_grad():
        encoded = backbone.encode(video)[:, :, latent.lead :]
        raw = vae.encode(video.to(vae.dtype)).latent_dist.mode()
    torch.testing.assert_close(encoded * std + mean, raw)
    decoded: list[Tensor] = []
    sampled = _ask(backbone, clip, output="latent")
    with _spied(vae, "decode", lambda z, *_: decoded.append(z)):
        _ask(backbone, clip, output="pt")
    normalised = ((decoded[0] - mean) / std).flatten().sort().values
    if latent.lead == 0:  # of a lead-in the pipeline decodes less than it sampled
        torch.testing.assert_close(normalised, sampled.float().flatten().sort().values)  # whatever the layout


def text_is_the_pipelines(backbone: StockBackbone, clip: Clip) -> None:
    """`embed` gives the features of `encode_prompt` bit for bit, with a mask as long as each prompt."""
    text = backbone.embed(PROMPTS)
    assert tuple(text.features.shape) == (2, backbone.spec.text_length, backbone.spec.text_dim)
    with torch.no_grad():
        given = backbone.pipe.encode_prompt(
            PROMPTS, do_classifier_free_guidance=False, max_sequence_length=backbone.spec.text_length
        )
    stock, against = backbone.encoded(given)
    assert torch.equal(text.features, stock)
    assert against is None, "without guidance there are no features of negative prompts"
    first, second = text.mask.sum(1).tolist()
    assert 0 < first < second < backbone.spec.text_length, "a mask ends where its prompt does"
    again = backbone.text_of(PROMPTS, stock, "uncond")
    assert torch.equal(again.mask, text.mask)
    assert again.branch == "uncond"


def predict_repeats_what_the_pipeline_asks(backbone: StockBackbone, clip: Clip) -> None:
    """At every step of a sampling `predict` gives the velocity that the transformer gave there."""
    backbone.embed(PROMPTS)  # of a family that must be told its masks
    for model, arguments, output, branch in _calls(backbone, clip, guidance=1.0):
        asked = backbone.asked(model, arguments, output, sigma=None, branch=branch)
        at = asked.sigma
        if backbone.spec.prediction == "flow":  # a scheduler may round the level: what the model saw is its timestep
            at = asked.timestep.reshape(len(asked.timestep), -1)[:, 0].float() / 1000
        with torch.no_grad():
            again = backbone.predict(asked.x_s, at, asked.text)
        torch.testing.assert_close(again, asked.v, atol=1e-4, rtol=1e-4)


def calls_are_read_and_answered_in_flow_space(backbone: StockBackbone, clip: Clip) -> None:
    """`asked` finds x_s, sigma, text and the branches of a guided call; `answer` moves the flow velocity by delta."""
    text = {"cond": backbone.embed(PROMPTS), "uncond": backbone.embed(["", ""])}
    start, seen = noise(backbone, [1, 2], *clip), set[str]()
    levels: list[float] = []
    for model, arguments, output, branch in _calls(backbone, clip, guidance=3.0):
        asked = backbone.asked(model, arguments, output, sigma=None, branch=branch)
        assert asked.x_s.dtype == asked.v.dtype == asked.sigma.dtype == torch.float32
        assert asked.x_s.shape == asked.v.shape
        assert asked.branch_rows, "a pipeline's call belongs to a branch"
        if not levels:
            assert torch.equal(asked.part(next(iter(asked.branch_rows))).x_s, start), "the first x_s is the noise"
        levels.append(float(asked.sigma[0]))
        for side in asked.branch_rows:
            seen.add(side)
            part = asked.part(side)
            assert torch.equal(part.text.features, text[side].features.float()), f"text of the branch {side}"
            assert torch.equal(part.text.mask, text[side].mask), f"mask of the branch {side}"
        delta = torch.randn_like(asked.v)
        assert backbone.answer(asked, delta).shape == output.shape
        assert float(backbone.answer(asked, torch.zeros_like(delta)).abs().max()) == 0
        moved = backbone.velocity(asked, output + backbone.answer(asked, delta))
        torch.testing.assert_close(moved, asked.v + delta, atol=1e-5, rtol=1e-5)
    assert seen == {"cond", "uncond"}
    assert levels == sorted(levels, reverse=True), "sigma falls"
    assert levels[0] > 0.9, "the first step starts from noise"


def a_clip_is_the_same_alone_and_in_a_batch(backbone: StockBackbone, clip: Clip) -> None:
    """Noise belongs to a clip: its seed gives the same video in any batch."""
    both = _sample(backbone, clip, PROMPTS, seed=[1, 2])
    alone = _sample(backbone, clip, PROMPTS[1:], seed=2)
    assert tuple(both.shape) == (2, 3, *clip)
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)


def every_weight_stays(backbone: StockBackbone, clip: Clip) -> None:
    """Sampling changes no weight, and `frozen` notices one that changed."""
    with backbone.frozen():
        _sample(backbone, clip, PROMPTS[:1], seed=0)
        assert not any(p.requires_grad for m in backbone.transformers for p in m.parameters())
    weight = next(backbone.transformer.parameters())
    try:
        with backbone.frozen():
            weight.data.neg_()
    except RuntimeError:
        weight.data.neg_()
    else:
        raise AssertionError("frozen() let a changed weight pass")


def what_is_saved_is_loaded(backbone: StockBackbone, clip: Clip) -> None:
    """`save` and `load` give the same family, spec, weights and vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        again = load(save(backbone, folder, id=backbone.id))
    assert type(again) is type(backbone)
    assert (again.spec, again.config_hash, again.latent_hash, again.digest, again.text_digest) == (
        backbone.spec,
        backbone.config_hash,
        backbone.latent_hash,
        backbone.digest,
        backbone.text_digest,
    )


def blocks_are_the_stock_forward(backbone: StockBackbone, clip: Clip) -> None:
    """`begin`, `block(k)`, `end` give the bits of the stock forward, also through seams that change nothing, and also
    with a copy of a block in its place.
    """
    model, arguments, output, _ = next(iter(_calls(backbone, clip, guidance=3.0)))
    stack, passed = blocks_of(model), []

    def seam(x: Tensor, _: Any) -> Tensor:
        passed.append(x.shape)
        return x

    seams: dict[str, Any] = {"after_self_attention": seam, "after_cross_attention": seam}
    for given in ({}, seams):
        with torch.no_grad():
            s = stack.begin(**arguments)
            t, h, w = s.grid
            assert s.h.shape[1] == t * h * w, "h are the video tokens, and no others"
            for k in range(len(stack)):
                s = stack.block(k, s, **given)
            assert torch.equal(stack.end(s), output), f"with seams: {bool(given)}"
    assert len(passed) == 2 * len(stack), "each seam is passed once a block"
    with torch.no_grad():
        s = stack.begin(**arguments)
        copied = fresh_copy(stack.blocks[0], model.config)
        assert torch.equal(stack.block(0, s, module=copied).h, stack.block(0, s).h)
        assert {p.data_ptr() for p in copied.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())


def an_adapter_comes_and_goes_without_a_trace(backbone: StockBackbone, clip: Clip) -> None:
    """In every mode an adapter of zero changes no bit, another one changes the video, and detaching restores it."""
    plain, stock = _sample(backbone, clip, PROMPTS[:1], seed=1), type(backbone.transformer)
    for mode in MODES:
        for size in (0.0, 0.5):
            adapter = _Calm(size)
            with attach(backbone, adapter, mode=mode):
                video = _sample(backbone, clip, PROMPTS[:1], seed=1)
            assert torch.equal(video, plain) == (size == 0), f"mode {mode}, correction of {size} v"
            assert adapter.seen, f"mode {mode}: the adapter was never asked"
    assert type(backbone.transformer) is stock
    assert torch.equal(_sample(backbone, clip, PROMPTS[:1], seed=1), plain)


LAWS: tuple[Callable[[StockBackbone, Clip], None], ...] = (
    the_contract_is_whole,
    latents_have_the_shape_of_the_spec,
    latents_are_normalised_as_the_pipeline_does,
    text_is_the_pipelines,
    predict_repeats_what_the_pipeline_asks,
    calls_are_read_and_answered_in_flow_space,
    a_clip_is_the_same_alone_and_in_a_batch,
    every_weight_stays,
    what_is_saved_is_loaded,
    blocks_are_the_stock_forward,
    an_adapter_comes_and_goes_without_a_trace,
)
"""All of them, cheapest first."""


class _Calm(nn.Module):
    """An adapter that takes a share of the velocity off."""

    kind = "calm"

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size, self.seen = size, 0

    def prepare(self, prompts: list[str], text: Any) -> None:
        assert len(prompts) == len(text)

    def correction(self, x_s: Tensor, v: Tensor, sigma: Tensor, text: Any) -> Tensor:
        assert len(x_s) == len(sigma) == len(text)
        self.seen += 1
        return -self.size * v

    def groups(self) -> dict[str, nn.Module]:
        return {}


def _refused(function: Callable[[Tensor], Any], given: Tensor) -> bool:
    try:
        function(given)
    except ValueError:
        return True
    return False


def _video(clip: Clip) -> Tensor:
    return torch.rand(2, 3, *clip, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _sample(backbone: StockBackbone, clip: Clip, prompts: list[str], *, seed: Any, guidance: float = 2.0) -> Tensor:
    frames, height, width = clip
    given: dict[str, Any] = {"frames": frames, "height": height, "width": width, "steps": STEPS}
    return sample(backbone, prompts, seed=seed, guidance=guidance, **given)


def _ask(backbone: StockBackbone, clip: Clip, *, output: str) -> Tensor:
    """Call the pipeline for one clip."""
    given = backbone.start(noise(backbone, [1], *clip)) | {"num_inference_steps": STEPS, "guidance_scale": 1.0}
    given |= dict(zip(("num_frames", "height", "width"), clip, strict=True)) | {"output_type": output}
    return backbone.pipe(prompt=PROMPTS[:1], max_sequence_length=backbone.spec.text_length, **given).frames


@contextmanager
def _spied(thing: Any, name: str, see: Callable[..., Any]) -> Iterator[None]:
    """Show a method's arguments to `see` as long as the block lasts."""
    stock = getattr(thing, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        see(*args)
        return stock(*args, **kwargs)

    vars(thing)[name] = spy
    try:
        yield
    finally:
        del vars(thing)[name]


def _calls(
    backbone: StockBackbone, clip: Clip, *, guidance: float
) -> Iterator[tuple[nn.Module, dict[str, Any], Tensor, str]]:
    """Sample once and give the transformer's calls: module, arguments by name, output, and the branch's name.

    While they are given, the pipeline says what it said at that step.
    """
    made: list[tuple[Any, dict[str, Any], Tensor, str, Any]] = []
    names: list[str] = []

    def hook(model: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        made.append((model, kwargs, out[0], names[-1], getattr(backbone.pipe.scheduler, "step_index", None)))

    hooks = [m.register_forward_hook(hook, with_kwargs=True) for m in backbone.transformers]
    try:
        with ExitStack() as spies:
            for model in backbone.transformers:
                spies.enter_context(_spied(model, "cache_context", lambda name: names.append(name)))
            _sample(backbone, clip, PROMPTS, seed=[1, 2], guidance=guidance)
    finally:
        for one in hooks:
            one.remove()
    assert len(made) >= STEPS, "the pipeline asked its transformer"
    for model, kwargs, out, name, step in made:
        if step is not None:
            backbone.pipe.scheduler._step_index = step
        yield model, kwargs, out, name
