"""Laws of PILA's plan: the real model is counted without its weights, and what is counted is what a step allocates."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from backbones.sizes import bytes_of, weightless
from pila.config import load_recipe
from pila.plan import described, work_of
from pila.timing import RAMPS, kinds, random_batch
from pila.train import Trainer, fresh
from trainers.dryrun import DryRun
from trainers.timing import at_end


def test_a_step_of_the_real_size_is_counted_without_a_weight():
    recipe = load_recipe("wan2.1-1.3b")
    backbone = weightless(recipe.backbone, dtype=torch.bfloat16)
    assert described(recipe, backbone) == "81 x 480 x 832 -> latent 16 x 21 x 60 x 104, bfloat16"
    assert all(p.is_meta for p in backbone.transformer.parameters())
    assert bytes_of(backbone.transformer) == pytest.approx(2 * 1.419e9, rel=0.01)
    work = work_of(recipe, 1, only=("couple",))["couple"]
    n, text, d, f = 32_760, 512, 1536, 8960  # tokens, text, width, feed-forward
    block = 2 * d * d * (6 * n + 2 * text) + 4 * n * d * f + 4 * n * n * d + 4 * n * text * d
    assert work.flops["bfloat16"] == pytest.approx(30 * block, rel=0.001)  # the frozen forward alone: no backward in it
    state = 32 * 21 * 60 * 104 * 4  # the bank of fields
    assert work.kept > 10 * state
    assert work.peak < 5 * 2**30


@pytest.mark.parametrize("kind", ["observe", "couple"])
def test_what_is_counted_is_what_a_step_of_the_tiny_recipe_allocates(backbone, make_recipe, kind):
    recipe = make_recipe("batch=2", "network.width=16")
    counted, real = (run(recipe, backbone, kind) for run in (dry, allocated))
    # kernels of convolutions take scratch space, and the tracker rounds every tensor up to 512 bytes
    assert 0.85 < counted / real < 1.3


def dry(recipe, backbone, kind):
    adapter, clone = fresh(recipe, backbone), backbone_copy(backbone)
    with DryRun() as run:
        run.weights(clone.transformer, adapter)
        steps = kinds(Trainer(recipe, adapter, clone), random_batch(recipe, clone, recipe.batch))
        return run.step(lambda: steps[kind](at_end(kind, 0, RAMPS)), adapter.parameters()).peak


def backbone_copy(backbone):
    import copy

    clone = copy.copy(backbone)
    clone.pipe = copy.copy(backbone.pipe)
    clone.pipe.transformer = copy.deepcopy(backbone.pipe.transformer).requires_grad_(False)
    return clone


def allocated(recipe, backbone, kind):
    adapter = fresh(recipe, backbone)
    steps = kinds(Trainer(recipe, adapter, backbone), random_batch(recipe, backbone, recipe.batch))

    def step():
        terms = steps[kind](at_end(kind, 0, RAMPS))
        sum(t for name, t in terms.items() if not name.startswith("log/")).backward()

    step()  # gradients are there from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    now = peak = 0
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
