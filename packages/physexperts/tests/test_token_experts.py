"""Token-level experts against one token at a time in fp64, and the traps of grouped products."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from physexperts import GLUExperts, LinearExperts, Mixture, SoftRouter, TokenTopKRouter, execution, route

RUNS = ("loop", "grouped_mm", "dense")


def answer(experts, e, token):
    """What expert e says to one token, in fp64."""
    if isinstance(experts, LinearExperts):
        bias = 0 if experts.bias is None else experts.bias[e].double()
        return experts.weight[e].double() @ token.double() + bias
    gate, up = (experts.gate_up_proj[e].double() @ token.double()).chunk(2)
    return experts.down_proj[e].double() @ (F.silu(gate) * up)


def reference(experts, tokens, index, weights):
    """Token by token, slot by slot; a slot of weight zero is not asked."""
    rows = []
    for token, chosen, gates in zip(tokens, index.tolist(), weights, strict=True):
        said = [g.double() * answer(experts, e, token) for e, g in zip(chosen, gates, strict=True) if g != 0]
        rows.append(sum(said) if said else token.new_zeros(len(token), dtype=torch.float64))
    return torch.stack(rows)


def routed(n, experts, k, seed=0, allowed=None):
    g = torch.Generator().manual_seed(seed)
    return route(torch.randn(n, experts, generator=g, dtype=torch.float64), k, allowed=allowed)


@pytest.mark.parametrize("kind", [LinearExperts, GLUExperts])
@pytest.mark.parametrize(
    ("experts", "k"), [(1, 1), (2, 1), (2, 2), (5, 3), (8, 2), (8, 8), (33, 2), (64, 1), (64, 5), (64, 64)]
)
def test_experts_equal_the_reference_token_by_token(kind, experts, k):
    torch.manual_seed(experts * 100 + k)
    width = (6,) if kind is LinearExperts else (6, 5)  # no width that any kernel likes
    module = kind(experts, *width).double()
    x, routing = torch.randn(9, 6, dtype=torch.float64), routed(9, experts, k)
    want = reference(module, x, routing.indices, routing.weights)
    torch.testing.assert_close(module(x, routing.indices, routing.weights), want, rtol=0, atol=1e-12)
    batched = module(x.view(3, 3, 6), routing.indices.view(3, 3, k), routing.weights.view(3, 3, k))
    torch.testing.assert_close(batched, want.view(3, 3, 6), rtol=0, atol=1e-12)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", [LinearExperts, GLUExperts])
def test_every_way_to_run_gives_the_reference_and_its_gradients(kind, run):
    # Masked tokens hold NaN, some pairs are dead, half of the experts are never asked.
    torch.manual_seed(1)
    module = kind(6, *((8,) if kind is LinearExperts else (8, 12)), implementation=run)
    allowed = torch.rand(20, 6) > 0.4
    allowed[:, 3:] = False
    routing = routed(20, 6, 3, allowed=allowed)
    weights = routing.weights.float()
    weights[4] = 0
    weights.requires_grad_()
    x = torch.randn(20, 8, requires_grad=True)
    want = reference(module, x, routing.indices, weights)
    leaves = (x, weights, *module.parameters())
    seed = torch.randn(20, 8)
    expected = torch.autograd.grad(want, leaves, seed.double())
    poisoned = x.detach().clone()
    poisoned[4] = float("nan")
    poisoned.requires_grad_()
    got = module(poisoned, routing.indices, weights)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert (got[4] == 0).all()
    grads = torch.autograd.grad(got, (poisoned, weights, *module.parameters()), seed)
    for grad, right in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, right, rtol=1e-4, atol=1e-5)
    assert all((grad[3:] == 0).all() for grad in grads[2:]), "an expert that nobody asked got a gradient"


@pytest.mark.parametrize("run", ["loop", "dense"])
def test_the_gradient_of_everything_is_right_and_so_is_the_second_derivative(run):
    module = GLUExperts(3, 2, 2, implementation=run).double()
    routing = routed(5, 3, 2)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    weights = routing.weights.clone().requires_grad_()
    up, down = (p.detach().clone().requires_grad_() for p in module.parameters())

    def answers(x, weights, up, down):
        parameters = {"gate_up_proj": up, "down_proj": down}
        return torch.func.functional_call(module, parameters, (x, routing.indices, weights))

    assert torch.autograd.gradcheck(answers, (x, weights, up, down))
    assert torch.autograd.gradgradcheck(answers, (x, weights, up, down))


def test_all_tokens_may_choose_the_same_expert():
    for run in RUNS:
        module = LinearExperts(4, 8, implementation=run)
        index, weights = torch.full((10, 1), 2), torch.ones(10, 1)
        x = torch.randn(10, 8)
        torch.testing.assert_close(module(x, index, weights), x @ module.weight[2].T)


@pytest.mark.parametrize("run", RUNS)
def test_an_empty_set_of_tokens_gives_an_empty_answer_and_zero_gradients(run):
    module = LinearExperts(4, 8, bias=True, implementation=run)
    x = torch.zeros(0, 8, requires_grad=True)
    out = module(x, torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2))
    assert out.shape == (0, 8)
    out.sum().backward()
    assert (module.weight.grad == 0).all()


@pytest.mark.parametrize("run", RUNS)
def test_tokens_that_ask_nobody_get_zeros(run):
    module = LinearExperts(4, 8, bias=True, implementation=run)
    x = torch.randn(3, 8)
    none = route(torch.randn(3, 4), 2, allowed=torch.zeros(3, 4, dtype=torch.bool))
    assert (module.mix(x, none) == 0).all()
    assert (module(x, torch.zeros(3, 0, dtype=torch.long), torch.zeros(3, 0)) == 0).all()


def test_permuting_the_experts_changes_nothing_but_their_numbers():
    module, order = GLUExperts(5, 8, 4).double(), torch.tensor([3, 0, 4, 1, 2])
    moved = GLUExperts(5, 8, 4).double()
    moved.load_state_dict({name: weight[order] for name, weight in module.state_dict().items()})
    x, logits = torch.randn(30, 8, dtype=torch.float64), torch.randn(30, 5, dtype=torch.float64)
    before, after = module.mix(x, route(logits, 2)), moved.mix(x, route(logits[:, order], 2))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)


def test_with_k_of_all_experts_a_softmax_is_the_soft_mixture():
    torch.manual_seed(0)
    experts, soft = LinearExperts(5, 8), SoftRouter(8, 5)
    x = torch.randn(30, 8)
    routing = soft(x)
    hard = route(routing.logits, 5)
    torch.testing.assert_close(experts.mix(x, hard), experts.mix(x, routing))
    everyone = torch.einsum("ne,eoi,ni->no", routing.probs, experts.weight, x)
    torch.testing.assert_close(experts.mix(x, hard), everyone)
    experts.implementation = "loop"
    torch.testing.assert_close(experts.mix(x, hard), everyone)


def test_nan_logits_reach_their_own_token_alone():
    router, experts = TokenTopKRouter(8, 4, 2), LinearExperts(4, 8)
    x = torch.randn(6, 8)
    x[2] = float("nan")
    out = experts.mix(x, router(x))
    assert out[2].isnan().all()
    assert out[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize("bad", [-1, 4, 1000])
def test_an_expert_that_does_not_exist_is_refused(bad):
    with pytest.raises(ValueError, match=r"expert numbers in 0\.\.3"):
        LinearExperts(4, 8)(torch.zeros(2, 8), torch.tensor([[0], [bad]]), torch.ones(2, 1))
    # A pair of weight zero asks nobody: its number is never looked at.
    LinearExperts(4, 8)(torch.zeros(2, 8), torch.tensor([[0], [bad]]), torch.tensor([[1.0], [0.0]]))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("bad", [-1, 4])
def test_a_slot_of_weight_zero_may_hold_any_number_and_gets_no_gradient(run, bad):
    torch.manual_seed(0)
    module = LinearExperts(4, 8, bias=True, implementation=run)
    torch.nn.init.normal_(module.bias)
    x, weights = torch.randn(2, 8), torch.tensor([[0.5, 0.0], [0.25, 0.75]], requires_grad=True)
    out = module(x, torch.tensor([[1, bad], [2, 3]]), weights)
    torch.testing.assert_close(out[0], 0.5 * (module.weight[1] @ x[0] + module.bias[1]))
    (grad,) = torch.autograd.grad(out.sum(), weights)
    assert grad[0, 1] == 0
    torch.testing.assert_close(grad[1, 1], (module.weight[3] @ x[1] + module.bias[3]).sum())
    with pytest.raises(ValueError, match=r"expert numbers in 0\.\.3"):
        module(x, torch.tensor([[1, 1], [2, bad]]), weights)


def test_wrong_shapes_are_refused_with_what_was_expected():
    experts = LinearExperts(4, 8)
    with pytest.raises(ValueError, match="tokens of 8 channels"):
        experts(torch.zeros(2, 7), torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1))
    with pytest.raises((ValueError, TypeError)):  # the shapes of the signature are checked in tests
        experts(torch.zeros(2, 8), torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1))
    with pytest.raises(ValueError, match="routing over 4 experts"):
        experts.mix(torch.zeros(2, 8), route(torch.zeros(2, 5), 1))
    with pytest.raises((ValueError, TypeError), match="implementation"):
        LinearExperts(4, 8, implementation="fastest")


# The traps of grouped products.


class _Behind(torch.autograd.Function):
    """Leave NaN in the rows behind the last group, in the value or in the gradient, as a GPU kernel may."""

    @staticmethod
    def forward(ctx, x, start, forward):
        ctx.start, ctx.here = start, not forward
        return torch.cat([x[:start], torch.full_like(x[start:], torch.nan)]) if forward else x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        if ctx.here:
            grad[ctx.start :] = torch.nan
        return grad, None, None


def test_rows_that_the_kernel_leaves_uninitialised_are_never_read(monkeypatch):
    kernel = F.grouped_mm

    def dirty(x, w, *, offs):
        end = int(offs[-1])
        clean = _Behind.apply(x, end, False)
        return _Behind.apply(kernel(clean, w, offs=offs), end, True)

    torch.manual_seed(0)
    module = GLUExperts(4, 8, 8, implementation="grouped_mm")
    x = torch.randn(12, 8, requires_grad=True)
    routing = routed(12, 4, 2, allowed=torch.rand(12, 4) > 0.5)
    weights = routing.weights.float().requires_grad_()
    want = torch.autograd.grad(module(x, routing.indices, weights).square().sum(), (x, weights, *module.parameters()))
    monkeypatch.setattr(execution.F, "grouped_mm", dirty)
    out = module(x, routing.indices, weights)
    assert out.isfinite().all()
    grads = torch.autograd.grad(out.square().sum(), (x, weights, *module.parameters()))
    for grad, right in zip(grads, want, strict=True):
        torch.testing.assert_close(grad, right)


def test_widths_that_are_no_whole_16_bytes_take_the_loop():
    weight = torch.randn(2, 6, 6)
    with pytest.raises(RuntimeError):  # torch's limit stands; when it falls, so may the loop
        F.grouped_mm(torch.randn(3, 6), weight, offs=torch.tensor([1, 3], dtype=torch.int32))
    with pytest.raises(ValueError, match="16 bytes"):
        LinearExperts(2, 6, implementation="grouped_mm")(
            torch.randn(3, 6), torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1)
        )
    with pytest.raises(ValueError, match="bf16, fp16 or fp32"):
        execution.choose("grouped_mm", torch.zeros(3, 8), torch.zeros(2, 8, 8, dtype=torch.float64), 1)
    assert execution.choose("auto", torch.zeros(3, 6), weight, 1) == "loop"


@pytest.mark.parametrize("run", RUNS)
def test_autocast_decides_the_dtype_as_for_a_linear_layer(run):
    module = LinearExperts(3, 8, implementation=run)
    x, routing = torch.randn(5, 8), routed(5, 3, 2)
    half = LinearExperts(3, 8, implementation=run).bfloat16()
    half.load_state_dict(module.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        inside = module.mix(x, routing)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, half.mix(x.bfloat16(), routing).float())
    torch.testing.assert_close(half.mix(x, routing), inside)  # fp32 tokens, bf16 weights
    assert not torch.equal(inside, module.mix(x, routing))


class Watch(TorchDispatchMode):
    """Remember every operator and the largest tensor that any of them made."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("kind", [LinearExperts, GLUExperts])
@pytest.mark.parametrize("run", ["loop", "grouped_mm"])
def test_nothing_grows_with_tokens_times_experts_times_channels(run, kind):
    n, c, experts, k = 100, 16, 64, 2
    module = kind(experts, c, *((c // 2,) if kind is GLUExperts else ()), implementation=run)
    router = TokenTopKRouter(c, experts, k)
    x = torch.randn(n, c, requires_grad=True)
    with Watch() as watch:
        module.mix(x, router(x)).sum().backward()
    assert watch.largest <= max((n * k + 1) * c, n * experts, experts * c * c)
    assert watch.largest < n * experts * c / 4


@pytest.mark.parametrize("run", ["loop", "grouped_mm"])
def test_no_sum_depends_on_the_order_in_which_threads_arrive(run):
    module, routing = GLUExperts(8, 16, 8, implementation=run), routed(50, 8, 2)
    x, weights = torch.randn(50, 16, requires_grad=True), routing.weights.float().requires_grad_()
    with Watch() as watch:
        module(x, routing.indices, weights).sum().backward()
    unordered = {"index_add", "index_add_", "scatter_add", "scatter_add_", "histc", "bincount", "cumsum"}
    assert not watch.names & (unordered | {"embedding_dense_backward", "scatter_reduce", "_index_put_impl_"})


def test_a_mixture_of_tokens_waits_for_no_device():
    # A meta tensor has no values: whatever asked the host for one would raise.
    dtype = torch.float32 if torch.__version__ >= "2.15" else torch.bfloat16  # older ones know no other meta kernel
    module = Mixture(TokenTopKRouter(16, 8, 2), GLUExperts(8, 16, 24, implementation="grouped_mm")).to("meta", dtype)
    x = torch.zeros(2, 10, 16, device="meta", dtype=dtype, requires_grad=True)
    mask = torch.ones(2, 10, dtype=torch.bool, device="meta")
    mixed = module(x, mask=mask)
    (mixed.delta.sum() + sum(mixed.losses.values())).backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient_and_counts_no_token_twice(reentrant):
    torch.manual_seed(0)
    mixture = Mixture(TokenTopKRouter(8, 4, 2), GLUExperts(4, 8, 8))
    x = torch.randn(10, 8, requires_grad=True)
    want = torch.autograd.grad(mixture(x).delta.square().sum(), (x, *mixture.parameters()))
    mixture.stats.reset()
    out = torch.utils.checkpoint.checkpoint(lambda x: mixture(x).delta, x, use_reentrant=reentrant)
    out.square().sum().backward()
    for leaf, right in zip((x, *mixture.parameters()), want, strict=True):
        torch.testing.assert_close(leaf.grad, right)
    assert mixture.stats.read().rows == 10


def test_no_token_is_dropped_however_uneven_the_load():
    module = LinearExperts(8, 4, implementation="loop")
    index = torch.zeros(1000, 1, dtype=torch.long)
    index[:3] = torch.tensor([[5], [7], [5]])
    x = torch.randn(1000, 4)
    want = torch.einsum("noi,ni->no", module.weight[index[:, 0]], x)
    torch.testing.assert_close(module(x, index, torch.ones(1000, 1)), want)
