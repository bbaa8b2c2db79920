"""A router weighs heads token by token, in float32 at least, and its parts can be switched on one by one."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from rankfold.adapter.balance import BalanceSpec
from rankfold.adapter.router import RouterSpec
from rankfold.errors import SpecError
from rankfold.presets.graph_moe import RecurrentRouterSpec
from tests.support.tolerance import assert_close
from tests.support.type_checks import unchecked_types

HEADS, FEATURES = 5, 7
SUMMED = [{}, {"top_k": 2}, {"top_k": 1}, {"top_k": 5}, {"temperature": 0.3}, {"top_k": 3, "rounds": 3}]
OTHERS = [{"top_k": 2, "weights": weights} for weights in ("probability", "straight_through")]
EVERY_KIND = pytest.mark.parametrize(
    "fields", [*SUMMED, *OTHERS, {"bias": True}, {"jitter": 0.4, "top_k": 2}, {"initial": "normal"}], ids=str
)
BALANCE = BalanceSpec(kind="switch", coefficient=0.5)


def make_router(heads=HEADS, features=FEATURES, *, dtype=torch.float64, **fields):
    """A router whose scores are far enough apart to tell heads."""
    router = (RecurrentRouterSpec if "rounds" in fields else RouterSpec)(**fields).build(heads, features)
    router.reset(seed=0, name="layer.router")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        router.weight.copy_(torch.randn(heads, features, generator=generator))
        if router.bias is not None:
            router.bias.copy_(torch.randn(heads, generator=generator))
    return router.to(dtype)


def tokens(*batch, dtype=torch.float64, features=FEATURES):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*batch, features, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("fields", SUMMED, ids=str)
@given(batch=st.lists(st.integers(1, 3), max_size=3))
def test_weights_are_shares(fields, batch):
    weights = make_router(**fields)(tokens(*batch))
    assert weights.shape == (*batch, HEADS)
    assert (weights >= 0).all()
    assert_close(weights.sum(dim=-1), torch.ones(batch, dtype=torch.float64))


def test_router_is_a_softmax_of_a_linear_map():
    router, x = make_router(bias=True), tokens(2, 3)
    expected = torch.softmax(functional.linear(x, router.weight, router.bias), dim=-1)
    assert_close(router(x).detach(), expected.detach())


@pytest.mark.parametrize("top_k", range(1, HEADS + 1))
@pytest.mark.parametrize("weights", ["renormalized", "probability", "straight_through"])
def test_top_k_keeps_the_heads_of_the_largest_probabilities(top_k, weights):
    x = tokens(4, 3)
    probabilities = make_router()(x)
    found = make_router(top_k=top_k, weights=weights)(x)
    chosen = probabilities >= probabilities.sort(dim=-1, descending=True).values[..., top_k - 1 : top_k]
    assert torch.equal(found > 0, chosen)
    kept = torch.where(chosen, probabilities, 0.0)
    expected = {
        "renormalized": kept / kept.sum(dim=-1, keepdim=True),
        "probability": kept,
        "straight_through": chosen.double(),
    }
    assert_close(found.detach(), expected[weights].detach())


@pytest.mark.parametrize("top_k", [1, 2, HEADS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_straight_through_is_one_with_the_probabilitys_gradient(top_k, dtype):
    x, factors = tokens(4, 3, dtype=dtype), tokens(4, 3, dtype=dtype, features=HEADS)
    ones, probability = (
        make_router(top_k=top_k, weights=weights, dtype=dtype)
        for weights in ("straight_through", "probability")
    )
    weights = ones(x)
    assert set(weights.unique().tolist()) <= {0.0, 1.0}
    assert (weights.sum(dim=-1) == top_k).all()
    (weights * factors).sum().backward()
    (probability(x) * factors).sum().backward()
    assert_close(ones.weight.grad, probability.weight.grad)


@given(temperature=st.floats(0.1, 10.0))
def test_temperature_divides_the_scores(temperature):
    router, x = make_router(temperature=temperature), tokens(3)
    assert_close(router(x).detach(), torch.softmax(x @ router.weight.T / temperature, dim=-1).detach())


def test_low_temperature_sharpens():
    largest = [make_router(temperature=t)(tokens(20)).amax(dim=-1).mean() for t in (0.1, 1.0, 10.0)]
    assert all(sharp > flat for sharp, flat in pairwise(largest))


def test_jitter_acts_in_training_only_and_within_its_bounds():
    torch.manual_seed(0)
    router, plain, x = make_router(jitter=0.2), make_router(), torch.eye(FEATURES, dtype=torch.float64)
    assert torch.equal(router.eval()(x), plain(x))
    router.train()
    seen = [(router(x), router(x)) for _ in range(20)]
    assert all(not torch.equal(one, other) for one, other in seen)
    with torch.no_grad():
        router.weight.zero_()
        router.weight[0] = 1.0
    # Of a unit vector, the first score is its one feature times the noise; the others are zero.
    scores = [row for _ in range(50) for row in torch.logit(router(x)[:, 0]) + torch.log(torch.tensor(4.0))]
    assert 0.8 <= min(scores) < 0.85
    assert 1.15 < max(scores) <= 1.2


def test_further_rounds_think_again():
    x = tokens(6, 3)
    one, three = make_router(top_k=2), make_router(top_k=2, rounds=3)
    assert not torch.allclose(one(x), three(x))
    assert sum(p.numel() for p in three.parameters()) == three.spec.parameter_count(HEADS, FEATURES)
    assert (
        sum(p.numel() for p in one.parameters())
        == one.spec.parameter_count(HEADS, FEATURES)
        == HEADS * FEATURES
    )


def test_rounds_read_a_single_token_as_they_read_a_batch():
    router, x = make_router(rounds=2), tokens(3)
    assert_close(router(x[0]).detach(), router(x)[0].detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fields", [{}, {"top_k": 2, "rounds": 2}], ids=str)
def test_softmax_of_a_low_precision_router_is_float32(dtype, fields):
    router = make_router(dtype=dtype, balance=BALANCE, **fields).train()
    weights = router(tokens(4, 3, dtype=dtype))
    decision = router.take_decision()
    assert weights.dtype == dtype
    assert decision.probabilities.dtype == torch.float32
    total = decision.probabilities.sum(dim=-1)
    assert_close(total, torch.ones(4, 3))


@pytest.mark.parametrize("fields", [{}, {"top_k": 2, "rounds": 2}], ids=str)
def test_softmax_under_autocast_is_float32(fields):
    router = make_router(dtype=torch.float32, balance=BALANCE, **fields).train()
    with torch.autocast("cpu", torch.bfloat16):
        code = functional.linear(tokens(4, 3, dtype=torch.float32), torch.eye(FEATURES))
        weights = router(code)
    assert code.dtype == weights.dtype == torch.bfloat16
    assert router.take_decision().probabilities.dtype == torch.float32


def test_softmax_of_float64_stays_float64():
    router = make_router(balance=BALANCE).train()
    assert router(tokens(2)).dtype == torch.float64
    assert router.take_decision().probabilities.dtype == torch.float64


@EVERY_KIND
@pytest.mark.parametrize("training", [True, False])
def test_no_gate_depends_on_another_sample_of_the_batch(fields, training):
    router = make_router(balance=BALANCE, **fields).train(training)
    x = tokens(4, 3).requires_grad_()
    weights = router(x)
    for sample in range(4):
        factors = tokens(3, features=HEADS)
        [gradient] = torch.autograd.grad((weights[sample] * factors).sum(), x, retain_graph=True)
        others = [other for other in range(4) if other != sample]
        assert gradient[sample].any() or fields == {"top_k": 1}, "renormalised, one of one is 1"
        assert not gradient[others].any()


@EVERY_KIND
def test_a_token_gets_the_same_gates_in_any_company(fields):
    router, x = make_router(**fields).eval(), tokens(4, 3)
    together = router(x)
    other = x.clone()
    other[1:] = x[1:].flip(0) * 3
    assert_close(router(other)[0].detach(), together[0].detach())
    assert_close(router(x[:1, 1:2]).detach(), together[:1, 1:2].detach())


def test_decision_is_kept_for_a_balance_loss_in_training_only_and_once():
    x = tokens(2, 3)
    silent, router = make_router(top_k=2).train(), make_router(top_k=2, balance=BALANCE).train()
    silent(x)
    assert silent.take_decision() is None
    with torch.no_grad():
        router(x)
    assert not router.take_decision().probabilities.requires_grad
    router.eval()(x)
    assert router.take_decision() is None
    router.train()(x)
    decision = router.take_decision()
    assert router.take_decision() is None
    assert decision.probabilities.requires_grad
    assert not decision.chosen.requires_grad
    assert torch.equal(decision.chosen.sum(dim=-1), torch.full((2, 3), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda router: pickle.loads(pickle.dumps(router))])
def test_router_survives_a_copy_between_forward_pass_and_loss(twin_of):
    router = make_router(top_k=2, rounds=2, bias=True, balance=BALANCE).train()
    x = tokens(2, 3)
    weights = router(x)
    twin = twin_of(router)
    assert twin.take_decision() is None
    assert torch.equal(twin(x), weights)


def test_router_starts_by_seed_and_name():
    def start(initial, seed=0, name="a"):
        router = RecurrentRouterSpec(initial=initial, bias=True).build(64, 96)
        router.reset(seed=seed, name=name)
        assert not router.bias.any()
        return router

    for initial, spread in (("kaiming", (3 * 96) ** -0.5), ("normal", 0.02)):
        one = start(initial)
        assert one.weight.square().mean().sqrt().item() == pytest.approx(spread, rel=0.03)
        assert torch.equal(one.weight, start(initial).weight)
        assert not torch.equal(one.weight, start(initial, seed=1).weight)
        assert not torch.equal(one.weight, start(initial, name="b").weight)
    assert not start("zeros").weight.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reads": "inputs"}, r"unknown router reads 'inputs'\. Did you mean 'input'\?"),
        ({"scope": "block"}, r"unknown router scope 'block'"),
        ({"initial": "lecun"}, r"unknown router initial 'lecun'"),
        ({"weights": "softmax"}, r"unknown router weights 'softmax'"),
        ({"top_k": 0}, "top_k=0 chooses no head; give at least 1, or none for all heads"),
        ({"temperature": 0.0}, "temperature=0.0 is not above 0; give 1 for a plain softmax"),
        ({"temperature": float("nan")}, "temperature=nan is not above 0"),
        ({"jitter": 1.0}, "jitter=1.0 is not a share; give one from 0 up to 1"),
        ({"jitter": -0.1}, "jitter=-0.1 is not a share"),
        ({"scope": "mlp", "reads": "code"}, "a router of scope 'mlp' cannot read the code"),
        (
            {"scope": "experts", "weights": "probability", "top_k": 2},
            "weights='probability' of experts do not sum to 1, as their sum needs; use 'renormalized'",
        ),
        (
            {"weights": "straight_through"},
            "weights='straight_through' are those of chosen heads, but all heads count; give top_k",
        ),
    ],
)
def test_router_names_the_wrong_value_and_the_remedy(fields, message):
    with unchecked_types(), pytest.raises(SpecError, match=message):
        RouterSpec(**fields)


def test_router_refuses_to_choose_more_heads_than_there_are():
    with pytest.raises(SpecError, match="top_k=3 is more than the 2 heads; give at most 2"):
        RouterSpec(top_k=3).build(2, 4)


def test_router_reports_its_size():
    assert "5 heads, 7 features" in repr(make_router())
