"""Laws of adapters on parameters: every expert has the adapter that a layer of its own would have."""

import copy
import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rankfold
from rankfold import BasisSpec, DenseSpec, DiagonalSpec, RelaySpec, SeededSpec, SpecError, SvdSpec
from rankfold.adapter.module import adapters_in
from rankfold.factors import LowRankSpec
from tests.laws.law import law
from tests.support.tolerance import assert_close
from tests.support.toys import toy_sizes_allowed

EXPERTS, WIDTH, INNER = 3, 5, 7
PARAMETERS = ["experts.up", "experts.down", "gate.weight"]


class Gate(nn.Module):
    """A router as transformers has it: a matrix in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T).softmax(dim=-1)


class Experts(nn.Module):
    """Experts in two stacks; in the second block their matrices are transposed, as in gpt-oss."""

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        up, down = torch.randn(EXPERTS, INNER, WIDTH), torch.randn(EXPERTS, WIDTH, INNER)
        self.up = nn.Parameter(up.mT.contiguous() if transposed else up)
        self.down = nn.Parameter(down.mT.contiguous() if transposed else down)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for expert in range(EXPERTS):
            up, down = self.up[expert], self.down[expert]
            if self.is_transposed:
                up, down = up.T, down.T
            total = total + gates[..., expert, None] * (torch.tanh(x @ up.T) @ down.T)
        return total


class Block(nn.Module):
    """A layer, a gate and experts, with skips around them."""

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.gate = Gate()
        self.experts = Experts(transposed=transposed)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.query(x))
        return x + self.experts(x, self.gate(x))


class ToyMoe(nn.Module):
    """Two blocks, which may be recomputed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(transposed=False), Block(transposed=True)])
        self.checkpoints = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpoints else block(x)
        return x


def toy_moe(dtype: torch.dtype = torch.float64) -> ToyMoe:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ToyMoe().to(dtype).eval()


def inputs(rows: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, 6, WIDTH, generator=torch.Generator().manual_seed(1), dtype=dtype)


def on_experts(config: rankfold.RankfoldConfig, **changes) -> rankfold.RankfoldConfig:
    """Return the configuration with the experts and the gates as targets, beside one layer."""
    changes = {"target_modules": ["query"], "target_parameters": list(PARAMETERS), "dropout": 0.0, **changes}
    return dataclasses.replace(config, **changes)


def adapted(config: rankfold.RankfoldConfig, *, name: str = "default", base: nn.Module | None = None):
    with toy_sizes_allowed():
        return peft.get_peft_model(base or toy_moe(), config, adapter_name=name).eval()


def is_refused(config: rankfold.RankfoldConfig) -> bool:
    """Whether a parameter cannot have this adapter: gates and singular vectors need what it has not."""
    routed = config.router is not None and config.heads_in != "mlp"
    return routed or any(isinstance(side, SvdSpec | BasisSpec) for side in (config.down, config.up))


def for_experts(check):
    """Return the check for configurations that parameters can have; the others are refused by name."""

    def check_experts(config: rankfold.RankfoldConfig) -> None:
        if config.router is not None and config.heads_in == "mlp":
            return  # heads for an MLP that is not there are refused in tests/integration
        config = on_experts(config)
        if is_refused(config):
            with pytest.raises(SpecError, match=r"parameter|experts'? .*"):
                adapted(config)
            return
        check(config)

    check_experts.__doc__ = check.__doc__
    return check_experts


def reference(model: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a plain base whose weights are W + s U C V, written out for each expert."""
    values = dict(toy_moe().named_parameters())
    for path, _, adapter in adapters_in(model):
        path = path.removeprefix("base_model.model.")
        name = path.replace("target_parameters.", "") if "target_parameters" in path else f"{path}.weight"
        weight = values[name]
        matrices = weight if weight.ndim == 3 else weight[None]
        transposed = adapter.geometry.transposed
        changed = []
        for expert, matrix in enumerate(matrices):
            factors = [adapter.up(), None if adapter.core is None else adapter.core(), adapter.down()]
            up, core, down = (
                factor[expert] if factor is not None and factor.ndim == 3 else factor for factor in factors
            )
            scale = 1.0 if adapter.scale is None else adapter.scale().reshape(-1)[expert]
            down = down.double() if core is None else core.double() @ down.double()
            delta = adapter.scaling * scale * (up.double() @ down)
            changed.append(matrix + (delta.T if transposed else delta))
        values[name] = torch.stack(changed).reshape(weight.shape)
    return torch.func.functional_call(toy_moe(), values, (x,))


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(trained, torch.autograd.grad(output.square().sum(), list(trained.values())), strict=True))


def _values_and_gradients_are_those_of_the_written_out_experts(config: rankfold.RankfoldConfig) -> None:
    """In float64 the output and every gradient equal those of a base with W + s U C V for each expert."""
    model, x = adapted(config), inputs()
    output = model(x)
    assert_close(output, reference(model, x))
    assert not torch.allclose(output, toy_moe()(x))
    found = gradients(model, output)
    for name, expected in gradients(model, reference(model, x)).items():
        assert_close(found[name], expected)
        assert found[name].count_nonzero() > 0, name


def _it_comes_and_goes_without_a_trace(config: rankfold.RankfoldConfig) -> None:
    """Disabling, merging, copying and unloading behave as on layers, bit for bit where layers do."""
    model, x = adapted(config), inputs()
    before, plain = model(x), toy_moe()(x)
    with model.disable_adapter():
        assert torch.equal(model(x), plain)
    model.merge_adapter()
    assert_close(model(x), before)
    model.unmerge_adapter()
    assert torch.equal(model(x), before)
    assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(model)))(x), before)
    base = copy.deepcopy(model).unload()
    assert torch.equal(base(x), plain)
    assert list(base.state_dict()) == list(toy_moe().state_dict())
    assert_close(model.merge_and_unload()(x), before)


def _a_saved_adapter_gives_the_same_output(tmp_path_factory):
    def check(config: rankfold.RankfoldConfig) -> None:
        folder = tmp_path_factory.mktemp("adapter")
        model, x = adapted(config), inputs()
        model.save_pretrained(folder)
        with toy_sizes_allowed():
            again = peft.PeftModel.from_pretrained(toy_moe(), folder, adapter_name="other").eval()
        assert torch.equal(again(x), model(x))
        assert rankfold.count_parameters(again).stored == rankfold.count_parameters(model).stored

    return check


def _fresh_ones_change_nothing_and_checkpointing_changes_no_gradient(config: rankfold.RankfoldConfig) -> None:
    """A fresh adapter leaves the output as it is; recomputed blocks give the same gradients."""
    fresh, x = adapted(dataclasses.replace(config, init_weights=True)), inputs()
    assert_close(fresh(x), toy_moe()(x))
    model = adapted(config)
    plain = gradients(model, model(x))
    model.base_model.model.checkpoints = True
    for name, gradient in gradients(model, model(x)).items():
        assert torch.equal(gradient, plain[name])


test_values_and_gradients_are_those_of_the_written_out_experts = law(
    for_experts(_values_and_gradients_are_those_of_the_written_out_experts), init_weights=False
)
test_it_comes_and_goes_without_a_trace = law(
    for_experts(_it_comes_and_goes_without_a_trace), init_weights=False
)
test_fresh_and_checkpointed = law(
    for_experts(_fresh_ones_change_nothing_and_checkpointing_changes_no_gradient),
    init_weights=False,
    examples=10,
)


@pytest.mark.parametrize("case", ["lora", "relayed_lora", "share_lora", "tlora", "tlora_plus", "effilora"])
def test_a_saved_adapter_gives_the_same_output(case, tmp_path_factory):
    check = for_experts(_a_saved_adapter_gives_the_same_output(tmp_path_factory))
    check(rankfold.config(case, r=2, init_weights=False, target_modules=["query"]))


SPECS = [
    DenseSpec(),
    DenseSpec("islam"),
    RelaySpec(2),
    RelaySpec(2, map="permuted"),
    SeededSpec("lecun"),
    LowRankSpec(2, initial="kaiming"),
    DiagonalSpec("ones"),
]


@given(st.sampled_from(SPECS), st.integers(1, 4), st.integers(1, 6), st.integers(0, 9))
def test_each_expert_starts_as_a_factor_of_its_own_name(spec, experts, size, seed):
    rows, cols = (size, size) if isinstance(spec, DiagonalSpec) else (size, size + 1)
    stack = spec.build(rows, cols, experts)
    stack.reset(seed=seed, name="blocks.0.up")
    for expert in range(experts):
        single = spec.build(rows, cols)
        single.reset(seed=seed, name=f"blocks.0.up.{expert}")
        assert_close(stack()[expert], single())
    counted = sum(parameter.numel() for parameter in stack.parameters())
    assert counted == experts * spec.parameter_count(rows, cols)


def test_adapters_of_different_parameters_live_side_by_side():
    x = inputs()
    configs = {
        "both": on_experts(rankfold.config("lora", r=2, init_weights=False)),
        "one": on_experts(
            rankfold.config("relayed_lora", r=2, k=1, init_weights=False), target_parameters=["experts.down"]
        ),
        "layers": on_experts(rankfold.config("lora", r=2, init_weights=False), target_parameters=[]),
    }
    alone = {name: adapted(config, name=name)(x) for name, config in configs.items()}
    model = adapted(configs["both"], name="both")
    with toy_sizes_allowed():
        for name in ("one", "layers"):
            model.add_adapter(name, copy.deepcopy(configs[name]))
    for name in ("one", "both", "layers", "one"):
        model.set_adapter(name)
        assert torch.equal(model(x), alone[name])
    model.delete_adapter("both")
    model.set_adapter("one")
    assert torch.equal(model(x), alone["one"])
    model.base_model.set_adapter(["one", "layers"])
    assert not torch.equal(model(x), alone["one"])


def test_threads_do_not_see_each_others_changes():
    model, x = adapted(on_experts(rankfold.config("lora", r=2, init_weights=False))), inputs(1)
    expected = model(x)
    with ThreadPoolExecutor(8) as pool, torch.no_grad():
        assert all(torch.equal(answer, expected) for answer in pool.map(lambda _: model(x), range(200)))


def test_rows_with_adapters_of_their_own_are_refused():
    model = adapted(on_experts(rankfold.config("lora", r=2)))
    with pytest.raises(ValueError, match=r"'default' has `target_parameters`.*one adapter at a time"):
        model(inputs(2), adapter_names=["default", "__base__"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_parameter_keeps_the_dtype_of_the_base(dtype):
    config = on_experts(rankfold.config("lora", r=2, init_weights=False))
    model = adapted(config, base=toy_moe(dtype))
    x = inputs(dtype=dtype)
    assert model(x).dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.usefixtures("unchecked_shapes")
def test_the_compiler_takes_it():
    torch.compiler.reset()
    model, x = adapted(on_experts(rankfold.config("relayed_lora", r=2, k=1, init_weights=False))), inputs()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), model(x))
    for name, gradient in gradients(compiled, compiled(x)).items():
        assert_close(gradient, gradients(model, model(x))[name.removeprefix("_orig_mod.")])


REFUSED = {
    "unknown": ({"target_parameters": ["experts.dwn"]}, r"'experts.dwn'. Did you mean 'experts.down'"),
    "a_layer": ({"target_parameters": ["query"]}, r"'query' is a module.*target_modules"),
    "vector": ({"target_parameters": ["query.bias"], "target_modules": []}, r"one matrix, or one for each"),
    "weight_of_a_layer": ({"target_parameters": ["query.weight"]}, r"not both"),
    "dropout": ({"dropout": 0.1}, r"dropout=0.1 cannot act on '0.gate.weight'.*dropout=0"),
    "a_text": ({"target_parameters": "experts.up"}, r"target_parameters='experts.up'.*as a list"),
    "a_parameter_as_a_layer": (
        {"target_modules": ["down"], "target_parameters": None},
        r"'down' is a parameter.*target_parameters=\['experts.down'\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_parameters_are_refused_and_the_model_left_as_it_was(case):
    changes, message = REFUSED[case]
    base = toy_moe()
    state, types = list(base.state_dict()), [type(module) for module in base.modules()]
    with pytest.raises(SpecError, match=message):
        adapted(on_experts(rankfold.config("lora", r=2), **changes), base=base)
    assert (list(base.state_dict()), [type(module) for module in base.modules()]) == (state, types)


def test_blocks_patterns_and_exclusions_hold_for_parameters():
    config = on_experts(
        rankfold.config("lora", r=2),
        target_modules=[],
        layers_to_transform=[1],
        layers_pattern="blocks",
        exclude_modules=["gate.weight"],
        rank_pattern={"experts.down": 3},
    )
    model = adapted(config)
    ranks = {path.rpartition("model.")[2]: adapter.down.rows for path, _, adapter in adapters_in(model)}
    assert ranks == {
        "blocks.1.experts.target_parameters.up": 2,
        "blocks.1.experts.target_parameters.down": 3,
    }
