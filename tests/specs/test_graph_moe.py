"""GraphMoE here is an experiment after Tang et al., 2025: heads chosen in rounds, with a memory between."""

import pytest
import torch

import rankfold
from rankfold.errors import SpecError
from rankfold.presets.graph_moe import RecurrentRouterSpec
from tests.reference import effilora, graph_moe
from tests.specs import checks
from tests.specs.layers import adapted, adapters, example_input, sizes
from tests.specs.wide import wide_adapter


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(("heads", "top_k", "rounds"), [(4, 2, 3), (3, 2, 2), (2, 2, 4)])
def test_graph_moe_equals_its_formula(kind, heads, top_k, rounds):
    def forward(x, W, b, parts):
        gates = parts.trained("router.message_gates"), parts.trained("router.state_gates")
        return graph_moe.forward(
            x,
            W,
            b,
            parts.trained("down.weight"),
            parts.ups,
            W_g=parts.trained("router.weight"),
            nodes=parts.trained("router.nodes"),
            cell=gates,
            k=top_k,
            rounds=rounds,
            alpha=5.0,
        )

    checks.assert_layers_equal_reference(
        "graph_moe", kind, forward, r=3, heads=heads, top_k=top_k, rounds=rounds, alpha=5.0, dropout=0.0
    )


def test_graph_moe_with_all_heads_and_one_round_equals_effiloras_formula():
    def forward(x, W, b, parts):
        A, W_g = parts.trained("down.weight"), parts.trained("router.weight").T
        return effilora.forward(x, W, b, A, parts.ups, W_g, alpha=5.0)

    options = {"r": 3, "heads": 3, "top_k": 3, "rounds": 1, "alpha": 5.0, "dropout": 0.0}
    checks.assert_layers_equal_reference("graph_moe", "linear", forward, **options)


@pytest.mark.parametrize(("r", "heads", "rounds"), [(1, 2, 1), (2, 4, 2), (3, 3, 3)])
def test_graph_moe_counts_factors_router_and_memory(r, heads, rounds):
    model = adapted("graph_moe", r=r, heads=heads, rounds=rounds)
    checks.assert_counts(model, graph_moe.parameters(sizes(), r, heads, rounds))


def test_graph_moe_changes_nothing_at_the_start():
    assert checks.largest_change(adapted("graph_moe", r=2)) == 0


def test_graph_moe_trains_and_saves_factors_and_routers(tmp_path):
    checks.assert_trains_exactly(adapted("graph_moe", r=2), {"down", "up", "router"}, tmp_path)


def test_graph_moe_moves_only_the_up_factors_in_the_first_step():
    assert checks.roles_with_gradient(adapted("graph_moe", r=2)) == {"up.weight"}


def test_graph_moe_moves_all_parts_later():
    moved = checks.roles_with_gradient(adapted("graph_moe", r=3, dropout=0.0, init_weights=False))
    assert {name.split(".")[0] for name in moved} == {"down", "up", "router"}
    assert {"router.nodes", "router.message_gates", "router.state_gates"} <= moved


@pytest.mark.parametrize(("option", "value"), checks.every_value("graph_moe", heads=(2, 3), top_k=(1, 2)))
def test_graph_moe_runs_with_every_value_of_every_option(option, value):
    checks.assert_runs("graph_moe", option, value)


def test_graph_moe_further_rounds_change_what_is_chosen():
    """With one round the code decides alone; the memory must be able to change the gates."""
    model = adapted("graph_moe", r=3, dropout=0.0, init_weights=False)
    checks.randomise(model)
    before = model(example_input())
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.router.nodes.mul_(-1)
    assert any(not torch.allclose(a, b) for a, b in zip(before, model(example_input()), strict=True))


def test_graph_moe_defaults_are_documented_as_ours():
    adapter = wide_adapter("graph_moe")
    assert (adapter.down.rows, adapter.scaling, adapter.input_dropout.p) == (16, 2.0, 0.05)
    spec = adapter.router.spec
    assert (adapter.router.heads, spec.top_k, spec.rounds, spec.reads) == (4, 2, 3, "code")
    assert spec.balance is None


def test_graph_moe_memory_starts_as_a_linear_layer_and_the_nodes_close_to_one():
    memory = wide_adapter("graph_moe", r=64).router
    for gates in (memory.message_gates, memory.state_gates):
        assert checks.spread(gates) == pytest.approx((3 * 64) ** -0.5, rel=0.02)
    assert checks.spread(memory.nodes - 1) == pytest.approx((3 * 64) ** -0.5, rel=0.2)


def test_router_of_a_file_is_read_by_its_kind():
    router = rankfold.config("graph_moe", rounds=4).router
    saved = rankfold.config("graph_moe", rounds=4).to_dict()["router"]
    assert rankfold.RankfoldConfig(heads=4, router=saved).router == router
    # 0.1.0 wrote no kind, but the rounds of every router.
    saved.pop("kind")
    assert rankfold.RankfoldConfig(heads=4, router=dict(saved)).router == router
    plain = rankfold.RankfoldConfig(heads=4, router=saved | {"rounds": 1}).router
    assert (
        plain == rankfold.RouterSpec(reads="code", top_k=2) == rankfold.config("graph_moe", rounds=1).router
    )


@pytest.mark.parametrize(
    ("router", "message"),
    [
        ({"kind": "recurent"}, "unknown router 'recurent'. Did you mean 'recurrent'?"),
        ({"kind": "softmax", "rounds": 1}, "describes no router .*rounds"),
        ({"rounds": "many"}, "describes no router .*rounds"),
    ],
)
def test_router_of_a_damaged_file_is_refused(router, message):
    with pytest.raises(SpecError, match=message):
        rankfold.RankfoldConfig(heads=4, router=router)


@pytest.mark.parametrize(
    ("rounds", "message"), [(0, "rounds=0 never decides; give at least 1"), (1, "use a RouterSpec")]
)
def test_recurrent_router_decides_at_least_twice(rounds, message):
    with pytest.raises(SpecError, match=message):
        RecurrentRouterSpec(rounds=rounds)
