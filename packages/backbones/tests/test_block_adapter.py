"""Adapters between blocks: the host's loop is the stack's own, and what they add is what an edit at that place adds."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from backbones import attach, blocks_of, lockstep, taps, tiny_families, wrap

NAMES = ("wan21_t2v", "wan22_ti2v", "cogvideox_5b")


class Deep(nn.Module):
    """Adds `weight` to the hidden states after block 1; subclasses change what they need."""

    kind, needs_blocks = "deep", True

    def __init__(self, weight=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.calls = []

    def prepare(self, prompts, text):
        self.prompts = prompts

    def begin(self, call, tokens, stack):
        self.calls.append(call)
        return 0

    def after_block(self, k, tokens, state, stack):
        return (replace(tokens, h=tokens.h + self.weight) if k == 1 else tokens), state + 1

    def groups(self):
        return {"deep": self}


def sample(pipe, **changes):
    settings = {"prompt": ["a red ball", "the cube falls"], "num_inference_steps": 2, "guidance_scale": 3.0}
    settings |= {"height": 32, "width": 32, "num_frames": 9, "output_type": "latent"}
    with torch.no_grad():
        return pipe(**(settings | {"generator": torch.Generator().manual_seed(0)} | changes)).frames


def a_call(pipe):
    """The arguments of the first forward that a pipeline makes."""
    calls = []
    hook = pipe.transformer.register_forward_pre_hook(lambda m, a, k: calls.append(k), with_kwargs=True)
    sample(pipe, num_inference_steps=1)
    hook.remove()
    return calls[0]


@pytest.mark.parametrize("name", NAMES)
def test_adding_after_a_block_is_an_edit_of_that_place(name):
    pipe = tiny_families.family(name, layers=3)
    arguments = a_call(pipe)
    with torch.no_grad():
        edited = taps.run(blocks_of(pipe.transformer), arguments, edit={"block.1": lambda h, _: h + 0.5}).output
        with attach(pipe, Deep(0.5)) as attached:
            pipe.encode_prompt(["a red ball", "the cube falls"])
            assert torch.equal(pipe.transformer(**arguments)[0], edited)
            with attached.off():
                assert not torch.equal(pipe.transformer(**arguments)[0], edited)
    assert attached.adapter.calls


@pytest.mark.parametrize("place", ["self_attention", "cross_attention"])
@pytest.mark.parametrize("name", NAMES)
def test_a_seam_of_an_adapter_is_the_stacks_seam(name, place):
    class Inside(Deep):
        """Adds inside block 1."""

        seams = (f"after_{place}",)

        def after_block(self, k, tokens, state, stack):
            return tokens, state

        def seam(self, k, x, tokens, state):
            assert tokens.h.shape == x.shape
            return x + self.weight if k == 1 else x

    setattr(Inside, f"after_{place}", Inside.seam)
    pipe = tiny_families.family(name, layers=3)
    arguments = a_call(pipe)
    with torch.no_grad():
        edited = taps.run(blocks_of(pipe.transformer), arguments, edit={f"block.1.{place}": lambda h, _: h + 0.5})
        with attach(pipe, Inside(0.5)):
            pipe.encode_prompt(["a red ball", "the cube falls"])
            assert torch.equal(pipe.transformer(**arguments)[0], edited.output)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_stream_in_lockstep_runs_beside_the_first(name):
    """With a zero link nothing changes, with a link the video does; the second state goes on from block to block."""

    class Two(Deep):
        """A second stream through a model of its own, linked at every block."""

        def __init__(self, other):
            super().__init__()
            self.other, self.ends = other, []

        def begin(self, call, tokens, stack):
            return replace(tokens, h=tokens.h.flip(1))

        def block(self, k, tokens, state, stack):
            def couple(a1, a2, s1, s2):
                return a1 + self.weight * a2, a2

            return lockstep(k, stack, tokens, blocks_of(self.other), state, couple)

        def after_block(self, k, tokens, state, stack):
            if k == len(stack) - 1:
                self.ends.append(state.h)
            return tokens, state

    pipe, other = tiny_families.family(name), tiny_families.family(name, seed=5).transformer
    plain = sample(pipe)
    adapter = Two(other)
    with attach(pipe, adapter):
        assert torch.equal(sample(pipe), plain)
        nn.init.constant_(adapter.weight, 0.5)
        assert not torch.equal(sample(pipe), plain)
    assert not torch.equal(adapter.ends[0], adapter.ends[-1])


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_reads_its_call_and_can_leave_something_for_the_pipelines_callback(name):
    class Leaves(Deep):
        """Leaves the last hidden state where the pipeline was given a dict."""

        def begin(self, call, tokens, stack):
            super().begin(call, tokens, stack)
            return call.physics

        def after_block(self, k, tokens, state, stack):
            state["h"] = tokens.h
            return tokens, state

    pipe, adapter, physics, found = tiny_families.family(name), Leaves(), {"force": 2.0}, []

    def callback(pipe, i, t, kwargs):
        found.append(physics.pop("h"))
        return {}

    with attach(pipe, adapter):
        sample(pipe, attention_kwargs={"physics": physics}, callback_on_step_end=callback)
    assert len(found) == 2
    assert all(c.physics is physics for c in adapter.calls)
    sides = [set(c.branch_rows) for c in adapter.calls]
    assert sides == ([{"uncond", "cond"}] * 2 if "cog" in name else [{"cond"}, {"uncond"}] * 2)
    assert adapter.calls[0].x_s.dtype == adapter.calls[0].sigma.dtype == torch.float32
    if "cog" not in name:
        assert adapter.calls[2].sigma.tolist() == pipe.scheduler.sigmas[1:2].expand(2).tolist()


def test_outside_its_range_an_adapter_of_the_hidden_states_is_not_asked():
    pipe = tiny_families.family("wan22_a14b")
    plain = sample(pipe, num_inference_steps=6)
    high, never = Deep(0.5), Deep(0.5)
    high.sigma_range, never.sigma_range = (0.875, 1.0), (0.0, 0.001)
    with attach(pipe, never):
        assert torch.equal(sample(pipe, num_inference_steps=6), plain)
    assert not never.calls
    with attach(pipe, high):
        assert not torch.equal(sample(pipe, num_inference_steps=6), plain)
        sigmas = pipe.scheduler.sigmas[:6]
        assert len(high.calls) == 2 * int((sigmas >= 0.875).sum()) < 12
        x, text = torch.zeros(2, 16, 3, 4, 4), torch.zeros(2, 512, 32)
        with pytest.raises(ValueError, match=r"adapter.s sigma_range .* or all outside, got .*split the batch"):
            pipe.transformer(x, torch.tensor([900.0, 100.0]), text)


@pytest.mark.parametrize("change", [lambda h: h[:, :-1], lambda h: h.double()])
def test_hidden_states_of_another_shape_or_dtype_are_refused(change):
    class Wrong(Deep):
        """Gives back what the next block cannot take."""

        def after_block(self, k, tokens, state, stack):
            return replace(tokens, h=change(tokens.h)), state

    pipe = tiny_families.family("wan21_t2v")
    with attach(pipe, Wrong()), pytest.raises(ValueError, match=r"expected hidden states .* after block 0, got"):
        sample(pipe)


def test_what_is_no_adapter_of_the_hidden_states_is_refused_by_what_it_lacks():
    class Half(nn.Module):
        """Says that it needs blocks and has nothing for them."""

        needs_blocks, kind = True, "half"

    class Misnamed(Deep):
        """Asks for a seam that is none."""

        seams = ("before_everything",)

    pipe = tiny_families.family("wan21_t2v")
    with pytest.raises(ValueError, match="`begin`, `after_block` and `groups`, got Half"):
        attach(pipe, Half())
    with pytest.raises(ValueError, match="seams among after_self_attention, after_cross_attention"):
        attach(pipe, Misnamed())
    assert "phys_attached" not in vars(pipe.transformer)


@pytest.mark.parametrize("name", NAMES)
def test_predict_is_the_frozen_models_voice_unless_the_adapter_is_asked_to_answer_there_with_gradients(name):
    class Turned(Deep):
        """Adds what a norm over channels does not take away again."""

        def after_block(self, k, tokens, state, stack):
            return replace(tokens, h=tokens.h + self.weight * tokens.h.roll(1, -1)), state

    backbone = wrap(tiny_families.family(name, layers=3), id=name)
    adapter = Turned(0.5)
    channels = backbone.spec.latent.channels
    x, sigma, text = torch.randn(1, channels, 3, 4, 4), torch.tensor([0.5]), backbone.embed(["a red ball"])
    with torch.no_grad():
        alone = backbone.predict(x, sigma, text)
        with attach(backbone, adapter):
            assert torch.equal(backbone.predict(x, sigma, text), alone)
    with attach(backbone, adapter, in_predict=True) as attached:
        answered = backbone.predict(x, sigma, text)
        assert not torch.allclose(answered, alone)
        answered.square().sum().backward()
        assert float(adapter.weight.grad) != 0
        with attached.off(), torch.no_grad():
            assert torch.equal(backbone.predict(x, sigma, text), alone)
    with torch.no_grad():
        assert torch.equal(backbone.predict(x, sigma, text), alone)
