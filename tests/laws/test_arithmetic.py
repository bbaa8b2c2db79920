"""Laws of the arithmetic of an adapter."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rankfold
from rankfold import NotExactError
from rankfold.adapter.module import adapters_in, hosts_in
from rankfold.factors import relay
from rankfold.train.auxiliary import auxiliary_loss
from tests.laws.law import law
from tests.support.tolerance import assert_close
from tests.support.toys import adapted, ids, toy


def _base_with_deltas(model: nn.Module) -> nn.Module:
    """Return the toy with every adapter's delta weight added to its own weights, and no adapter."""
    merged_base = toy()
    for path, host in hosts_in(model):
        layer = merged_base.get_submodule(path.removeprefix("base_model.model."))
        layer.weight.data += host.get_delta_weight("default")
    return merged_base


def _forward_agrees_with_the_materialised_weight(config: rankfold.RankfoldConfig) -> None:
    """The forward pass equals that of a base whose weights carry the adapters' delta weights.

    If a router weighs heads there is no such weight, and asking for one is refused.
    """
    model = adapted(config)
    if config.router is not None:
        with pytest.raises(NotExactError, match="gates depend on the input"):
            _base_with_deltas(model)
        return
    assert_close(model(ids()), _base_with_deltas(model)(ids()))
    assert not torch.equal(model(ids()), toy()(ids()))


def _a_fresh_adapter_changes_nothing(config: rankfold.RankfoldConfig) -> None:
    """Before training, the output is the base's, bit for bit."""
    assert torch.equal(adapted(config)(ids()), toy()(ids()))


def _disabled_equals_base(config: rankfold.RankfoldConfig) -> None:
    """With adapters disabled the output is the base's, bit for bit, and comes back when they are enabled."""
    model = adapted(config)
    before = model(ids())
    with model.disable_adapter():
        assert torch.equal(model(ids()), toy()(ids()))
    assert torch.equal(model(ids()), before)


def _merge_then_unmerge_restores(config: rankfold.RankfoldConfig) -> None:
    """Merging gives the same output, and unmerging restores the base weights bit for bit.

    If a router weighs heads, merging is refused and leaves every weight as it was.
    """
    model = adapted(config)
    before, state = model(ids()), copy.deepcopy(model.state_dict())
    if config.router is not None:
        for merge in (model.merge_adapter, model.merge_and_unload):
            with pytest.raises(NotExactError, match="'default' has"):
                merge()
        assert torch.equal(model(ids()), before)
        return
    model.merge_adapter()
    assert_close(model(ids()), before)
    model.unmerge_adapter()
    assert torch.equal(model(ids()), before)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert_close(model.merge_and_unload()(ids()), before)


def _only_what_is_declared_trainable_gets_a_gradient(config: rankfold.RankfoldConfig) -> None:
    """Every trained number of every adapter gets a gradient that is not zero, and nothing else gets one."""
    model = adapted(config).train()
    trained = {id(each): each for _, _, adapter in adapters_in(model) for each in adapter.parameters()}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.mul_(0.1)  # a large change saturates the toy's tanh: a gradient of exactly zero
    rows = ids(16)
    loss = model(rows).square().sum()
    (loss + auxiliary_loss(model, task_type=torch.arange(16) % 2)).backward()
    for name, parameter in model.named_parameters():
        if id(parameter) in trained:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def _a_mixed_batch_equals_one_adapter_at_a_time(config: rankfold.RankfoldConfig) -> None:
    """Rows under different adapters come out as they do in batches of one adapter."""
    model = adapted(config)
    other = rankfold.config("relayed_lora", r=2, k=1, target_modules=["query", "tokens"], init_weights=False)
    model.add_adapter("other", other)
    names = ["other", "default", "__base__", "default", "other"]
    rows = ids(len(names))
    expected: dict[str, Tensor] = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = model(rows)
    with model.disable_adapter():
        expected["__base__"] = model(rows)
    mixed_output = model.eval()(rows, adapter_names=names)
    for row, name in enumerate(names):
        assert_close(mixed_output[row], expected[name][row])


def _a_pass_of_another_thread_changes_nothing(config: rankfold.RankfoldConfig) -> None:
    """Two threads on one model each get their own output, wherever in the pass of one the other runs."""
    model = adapted(config)
    mine, their_ids = ids(seed=1), ids(seed=2)
    expected, theirs = model(mine), model(their_ids)
    apart = ThreadPoolExecutor(max_workers=1)
    is_nested, agreements = False, list[bool]()

    def run_the_other(*_: object) -> None:
        nonlocal is_nested
        if not is_nested:
            is_nested = True
            agreements.append(torch.equal(apart.submit(model, their_ids).result(), theirs))
            is_nested = False

    with apart:
        for _, host in hosts_in(model):
            host.register_forward_hook(run_the_other)
        assert torch.equal(model(mine), expected)
    assert agreements
    assert all(agreements)


def _a_dry_run_leaves_nothing_behind(config: rankfold.RankfoldConfig) -> None:
    """After a pass without values the model, and every other one, gives the same output as before."""
    model = adapted(config)
    expected = model(ids())
    # A copy has no frozen matrix yet, and without positions everything that can be kept is made in the pass.
    twin = copy.deepcopy(model)
    relay._cached_positions.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as dry:
        twin(dry.from_tensor(ids()))
    for each in (twin, model):
        output = each(ids())
        assert type(output) is Tensor
        assert torch.equal(output, expected)


def _the_plain_way(config: rankfold.RankfoldConfig) -> nn.Module:
    """Return the adapted toy, without the fast way through linear layers and without batches."""
    model = adapted(config)
    for _, host in hosts_in(model):
        host.base_layer.register_forward_hook(lambda *_: None)
    for module in model.modules():
        if isinstance(module, relay.Relay):
            module.materialiser = None
    return model


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def _gradients_of_gradients_are_those_of_the_plain_way(config: rankfold.RankfoldConfig) -> None:
    """Gradients can be differentiated again, by whatever way they came about."""

    def gradients(model: nn.Module) -> tuple[Tensor, ...]:
        trainable = list(_trainable(model).values())
        first = torch.autograd.grad(model(ids()).square().sum(), trainable, create_graph=True)
        slope = sum(each.square().sum() for each in first)
        return *first, *torch.autograd.grad(slope, trainable)

    for actual, expected in zip(gradients(adapted(config)), gradients(_the_plain_way(config)), strict=True):
        assert_close(actual.detach(), expected.detach())


def _transforms_of_functions_give_the_same_gradients(config: rankfold.RankfoldConfig) -> None:
    """`torch.func` differentiates a model backwards and forwards, with the gradients that autograd has."""
    model = adapted(config)
    trainable = _trainable(model)
    gradients = torch.autograd.grad(model(ids()).square().sum(), list(trainable.values()))
    values = {name: each.detach() for name, each in trainable.items()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, values, (ids(),)).square().sum()

    backwards = torch.func.grad(loss)(values)
    _, forwards = torch.func.jvp(loss, (values,), (values,))
    for name, expected in zip(values, gradients, strict=True):
        assert_close(backwards[name], expected)
    products = zip(values.values(), gradients, strict=True)
    assert_close(forwards, torch.stack([(value * gradient).sum() for value, gradient in products]).sum())


test_forward_agrees_with_the_materialised_weight = law(
    _forward_agrees_with_the_materialised_weight, init_weights=False
)
test_a_fresh_adapter_changes_nothing = law(_a_fresh_adapter_changes_nothing)
test_disabled_equals_base = law(_disabled_equals_base, init_weights=False)
test_merge_then_unmerge_restores = law(_merge_then_unmerge_restores, init_weights=False)
test_only_what_is_declared_trainable_gets_a_gradient = law(
    _only_what_is_declared_trainable_gets_a_gradient, init_weights=False
)
test_a_mixed_batch_equals_one_adapter_at_a_time = law(
    _a_mixed_batch_equals_one_adapter_at_a_time, init_weights=False
)
test_a_pass_of_another_thread_changes_nothing = law(
    _a_pass_of_another_thread_changes_nothing, init_weights=False, examples=10
)
test_a_dry_run_leaves_nothing_behind = law(_a_dry_run_leaves_nothing_behind, init_weights=False, examples=10)
test_gradients_of_gradients_are_those_of_the_plain_way = law(
    _gradients_of_gradients_are_those_of_the_plain_way, init_weights=False, examples=10
)
# Torch compiles what it needs for `jvp` in a way that it warns of itself.
test_transforms_of_functions_give_the_same_gradients = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated"
)(law(_transforms_of_functions_give_the_same_gradients, init_weights=False, examples=10))
