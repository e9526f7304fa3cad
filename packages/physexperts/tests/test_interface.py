"""Both directions of the bridge to transformers' experts."""

from types import SimpleNamespace

import pytest
import torch

from physexperts import GLUExperts, interface, route

moe = pytest.importorskip("transformers.integrations.moe", reason="transformers is not installed")


def theirs(name, **facts):
    """A class of experts as transformers' models have them."""
    gated, bias = facts.get("has_gate", True), facts.get("has_bias", False)
    transposed = facts.get("is_transposed", False)

    @moe.use_experts_implementation(**facts)
    class Experts(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.num_experts = 5
            up = (16 if gated else 8, 4)
            shape = lambda o, i: (5, i, o) if transposed else (5, o, i)  # noqa: E731
            first = torch.nn.Parameter(torch.randn(shape(*up)))
            setattr(self, "gate_up_proj" if gated else "up_proj", first)
            self.down_proj = torch.nn.Parameter(torch.randn(shape(4, 8)))
            if bias:
                bias_name = "gate_up_proj_bias" if gated else "up_proj_bias"
                setattr(self, bias_name, torch.nn.Parameter(torch.randn(5, up[0])))
                self.down_proj_bias = torch.nn.Parameter(torch.randn(5, 4))
            self.act_fn = torch.nn.functional.silu

        def forward(self, hidden_states, top_k_index, top_k_weights):
            raise AssertionError("the eager way was not asked for")

    torch.manual_seed(0)
    return Experts(SimpleNamespace(_experts_implementation=name))


@pytest.mark.parametrize("has_gate", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_transposed", [True, False])
def test_their_models_run_by_this_package_with_the_same_values_and_gradients(has_gate, has_bias, is_transposed):
    interface.register()
    interface.register()
    facts = {"has_gate": has_gate, "has_bias": has_bias, "is_transposed": is_transposed}
    routing = route(torch.randn(20, 5), 2)
    x, seed = torch.randn(20, 4), torch.randn(20, 4)
    results = []
    for name in ("grouped_mm", interface.NAME):
        experts, leaf = theirs(name, **facts), x.clone().requires_grad_()
        out = experts(leaf, routing.indices, routing.weights)
        results.append((out.detach(), *torch.autograd.grad(out, (leaf, *experts.parameters()), seed)))
    for ours, others in zip(*results, strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-5, atol=1e-5)


def test_experts_of_other_ranks_are_skipped():
    interface.register()
    experts = theirs(interface.NAME)
    experts._is_expert_parallel = True
    x, index = torch.randn(3, 4), torch.tensor([[0, 5], [5, 5], [2, 7]])
    out = experts(x, index, torch.full((3, 2), 0.5))
    assert out.isfinite().all()
    assert (out[1] == 0).all()


@pytest.mark.parametrize("name", ["grouped_mm", "batched_mm"])
def test_gated_experts_run_by_their_kernels(name):
    experts, routing, x = GLUExperts(5, 8, 12), route(torch.randn(20, 5), 2), torch.randn(4, 5, 8)
    want = experts(x, routing.indices.view(4, 5, 2), routing.weights.view(4, 5, 2))
    interface.use(experts, name)
    torch.testing.assert_close(experts(x, routing.indices.view(4, 5, 2), routing.weights.view(4, 5, 2)), want)
    assert len(experts.state_dict()) == 2


def test_a_kernel_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="one of transformers' experts"):
        interface.use(GLUExperts(2, 8, 8), "warp_drive")
