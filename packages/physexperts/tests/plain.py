"""What the type-checking hook of the tests would hide: compiled modules, and errors a user sees without the hook.

Started by test_plain.py as a process of its own.
"""

import copy

import torch
from torch.utils.checkpoint import checkpoint

from physexperts import (
    GLUExperts,
    Keywords,
    LabelPriorRouter,
    LinearExperts,
    Mixture,
    RouterStats,
    TokenTopKRouter,
    from_text,
    multi_hot,
    relative_alignment,
    route,
    score,
)

LAWS = []


def law(function):
    LAWS.append(function)
    return function


def same(mixture, x, tolerance=0.0, **options):
    """Compiled without a graph break, the mixture has the values and gradients of eager."""
    leaves = (x, *mixture.parameters())

    def run(module):
        mixed = module(x)
        loss = mixed.delta.square().sum() + sum(mixed.losses.values())
        return mixed.delta.detach(), *torch.autograd.grad(loss, leaves)

    torch._dynamo.reset()
    want, got = run(mixture), run(torch.compile(mixture, fullgraph=True, **options))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def mixture(run, kind=GLUExperts):
    torch.manual_seed(0)
    experts = kind(6, *((16, 24) if kind is GLUExperts else (16,)), implementation=run)
    return Mixture(TokenTopKRouter(16, 6, 2), experts)


@law
def compiled_experts_equal_eager():
    x = torch.randn(2, 20, 16, requires_grad=True)
    traced = {"grouped_mm"} if torch.__version__ >= "2.15" else set()  # older ones trace that kernel in bf16 alone
    for run in ("loop", "dense", *traced):
        same(mixture(run), x, 1e-6, backend="aot_eager")


@law
def compiled_statistics_count():
    module = mixture("loop")
    torch.compile(module, fullgraph=True, backend="aot_eager")(torch.randn(2, 20, 16))
    assert module.stats.read().rows == 40


@law
def a_compiled_checkpoint_equals_eager():
    experts, router = GLUExperts(4, 16, 8), TokenTopKRouter(16, 4, 2)
    x = torch.randn(20, 16, requires_grad=True)

    def block(x):
        return experts.mix(x, router(x))

    def kept(x):
        return checkpoint(block, x, use_reentrant=False)

    want = torch.autograd.grad(block(x).square().sum(), x)
    got = torch.autograd.grad(torch.compile(kept, fullgraph=True, backend="aot_eager")(x).square().sum(), x)
    torch.testing.assert_close(got, want)


@law
def a_checkpointed_compiled_mixture_counts_once():
    module, x = mixture("loop"), torch.randn(20, 16, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    checkpoint(lambda x: compiled(x).delta, x, use_reentrant=False).square().sum().backward()
    assert module.stats.read().rows == 20, module.stats.read().rows


@law
def inductor_equals_eager():
    experts, index = LinearExperts(6, 16), torch.randint(6, (20, 2))
    leaves = torch.randn(20, 16, requires_grad=True), torch.rand(20, 2, requires_grad=True)

    def run(function):
        out = function(leaves[0], index, leaves[1])
        return out.detach(), *torch.autograd.grad(out.square().sum(), (*leaves, experts.weight))

    torch._dynamo.reset()
    for a, b in zip(run(torch.compile(experts, fullgraph=True)), run(experts), strict=True):
        torch.testing.assert_close(a, b)


@law
def a_copied_module_runs():
    module = mixture("auto")
    copy.deepcopy(module)(torch.randn(3, 16))


@law
def users_read_what_was_expected():
    cases = {
        "expected implementation": lambda: LinearExperts(4, 8, implementation="fastest"),
        "one decision a token": lambda: LinearExperts(4, 8)(
            torch.zeros(2, 8), torch.zeros(3, 1).long(), torch.ones(3, 1)
        ),
        "labels of shape": lambda: LabelPriorRouter(5, 4, 2)(torch.zeros(1, 5), torch.zeros(1, 3)),
        "prior add or mask": lambda: LabelPriorRouter(5, 4, 2, prior="hard"),
        "bool mask of shape (2, 3)": lambda: route(torch.zeros(2, 3, 4), 1, mask=torch.ones(3, dtype=torch.bool)),
        "expected a bool mask": lambda: route(torch.zeros(2, 4), 1, mask=torch.ones(2)),
        "`allowed` as bool that broadcasts to (2, 4)": lambda: route(torch.zeros(2, 4), 1, allowed=torch.ones(2, 4)),
        "got torch.bool of shape (2, 3)": lambda: route(torch.zeros(2, 4), 1, allowed=torch.ones(2, 3).bool()),
        "expected a bias of shape (4,)": lambda: route(torch.zeros(2, 4), 1, bias=torch.ones(1)),
        "at least one expert": lambda: route(torch.zeros(2, 0), 0),
        "positive temperature": lambda: LabelPriorRouter(5, 4, 2, temperature=0.0),
        "got -1.0": lambda: TokenTopKRouter(5, 4, 2, temperature=-1.0),
        "sigmoid, got 'tanh'": lambda: TokenTopKRouter(5, 4, 2, score="tanh"),
        "counts of 4 experts": lambda: TokenTopKRouter(5, 4, 2, expert_bias=True).update_bias(torch.ones(3)),
        "init zero or uniform, got 'Zero'": lambda: LinearExperts(4, 8, init="Zero"),
        "init zero or uniform, got 'none'": lambda: GLUExperts(4, 8, 8, init="none"),
        "floating-point tokens": lambda: LinearExperts(4, 8)(
            torch.zeros(2, 8).long(), torch.zeros(2, 1).long(), torch.ones(2, 1)
        ),
        "whole expert numbers": lambda: LinearExperts(4, 8)(torch.zeros(2, 8), torch.zeros(2, 1), torch.ones(2, 1)),
        "label numbers in 0..3, got 1.5": lambda: multi_hot([[1.5]], 4),
        "a routing over 5 experts": lambda: RouterStats(5).update(route(torch.zeros(2, 4), 1)),
        "a caption as text, got NoneType": lambda: from_text(None),
        "unknown mechanism 'heat'": lambda: score(Keywords(), [("fire", ["heat"])]),
        "expected score": lambda: route(torch.zeros(4), 1, score="tanh"),
        "distance square or abs": lambda: relative_alignment(torch.ones(2, 2), torch.ones(2, 2), distance="cosine"),
        "one row of outputs": lambda: relative_alignment(torch.ones(2, 2), torch.ones(3, 2)),
    }
    for expected, mistake in cases.items():
        try:
            mistake()
        except ValueError as error:
            said = str(error)
        else:
            said = "nothing"
        assert expected in said, (expected, said)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for run in LAWS:
        run()
        print("holds", run.__name__, flush=True)
