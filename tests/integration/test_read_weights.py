"""Layers whose weight is read without calling them: their adapters act, learn and merge as if called."""

import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import MambaConfig, MambaForCausalLM, WavLMConfig, WavLMModel

from rankfold import NotExactError, RankfoldWarning
from tests.integration.models import FOLDABLE, METHODS, adapted, config_of, ids, learned, scores, t5
from tests.support.tolerance import assert_close

# The weight of torch's attention is a parameter and no layer, as the warning says; it is not adapted here.
pytestmark = pytest.mark.filterwarnings("ignore:.*numbers are in parameters:rankfold.RankfoldWarning")

WIDTH = 16


class Product(torch.autograd.Function):
    """A product whose gradients are written by hand, as of a fused kernel."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.flatten(0, -2).T @ x.flatten(0, -2)


def by_columns(x, weight):
    return torch.stack([x @ row for row in weight.unbind()], dim=-1)


READERS = {
    "called": None,
    "linear": functional.linear,
    "transposed": lambda x, weight: x @ weight.T,
    "scaled": lambda x, weight: functional.linear(x, weight * 2) / 2,
    "by_columns": by_columns,
    "kernel": Product.apply,
    "checkpointed": lambda x, weight: checkpoint(functional.linear, x, weight, use_reentrant=False),
}


class Reader(nn.Module):
    """Two layers: `query`, which is called or read as a reader does, and `value`, which is called."""

    def __init__(self, reader):
        super().__init__()
        self.query, self.value = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.reader = READERS[reader]

    def forward(self, x):
        read = self.query(x) if self.reader is None else self.reader(x, self.query.weight)
        return self.value(torch.tanh(read))


def reader_model(method, reader, **options):
    torch.manual_seed(0)
    options = {"target_modules": ["query", "value"], "task_type": None, **options}
    config = METHODS[method](init_weights=False, **options)
    # Of some presets the small tests' configuration names the layers of a BERT's MLP too.
    config.target_modules = {"query", "value"}
    return adapted(config, Reader(reader))


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: parameter.grad for name, parameter in learned(model).items()}


X = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("reader", list(READERS)[1:])
@pytest.mark.parametrize("method", FOLDABLE)
def test_adapter_on_a_layer_that_is_read_acts_and_learns_as_one_on_a_layer_that_is_called(method, reader):
    called, read = reader_model(method, "called"), reader_model(method, reader)
    with torch.no_grad():
        assert_close(read(X), called(X))
    expected = gradients(called, X)
    assert expected
    for name, gradient in gradients(read, X).items():
        assert_close(gradient, expected[name], what=name)
    with torch.no_grad():
        assert_close(read.merge_and_unload()(X), called(X))


@pytest.mark.parametrize("method", ["hydra_lora", "effilora", "mola"])
def test_reading_the_weight_under_a_router_is_refused_with_the_name_of_the_layer(method):
    with pytest.raises(NotExactError, match=r"'query' is read without calling .* exclude_modules"):
        reader_model(method, "linear")(X)


def test_weight_outside_of_a_pass_is_the_parameter_of_the_base():
    model = reader_model("lora", "linear")
    layer = model.base_model.model.query
    assert layer.weight is layer.base_layer.weight


def test_disabled_and_merged_layers_are_read_as_they_act():
    model, plain = reader_model("lora", "linear"), reader_model("lora", "linear").unload()
    with torch.no_grad():
        live = model(X)
        with model.disable_adapter():
            assert torch.equal(model(X), plain(X))
        model.merge_adapter()
        assert_close(model(X), live)
        model.unmerge_adapter()
        assert torch.equal(model(X), live)


def test_rows_of_different_adapters_cannot_read_one_weight():
    model = reader_model("lora", "linear")
    model.add_adapter("other", config_of("lora", seed=5, target_modules=["query"], task_type=None))
    with torch.no_grad():
        alone = model(X)
        assert torch.equal(model(X, adapter_names=["default"] * 3), alone)
        with pytest.raises(NotExactError, match=r"'query' is read .* call the model for each"):
            model(X, adapter_names=["default", "other", "__base__"])


def test_dropout_that_cannot_act_is_said():
    model = reader_model("lora", "linear", dropout=0.5).train()
    with pytest.warns(RankfoldWarning, match=r"'query' is read .* dropout .* no effect"):
        model(X)


def test_reading_the_type_of_a_weight_computes_nothing():
    # T5 asks for the dtype of this layer before it calls it.
    model = adapted(config_of("hydra_lora", target_modules=["wo"], task_type=None), t5())
    plain = scores(model, decoder_input_ids=ids(length=4))
    with model.disable_adapter():
        assert not torch.equal(plain, scores(model, decoder_input_ids=ids(length=4)))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("reader", ["called", "linear"])
def test_compiled_reader_gives_the_same_in_one_graph(reader):
    model = reader_model("relayed_lora", reader)
    compiled = torch.compile(model.base_model.model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(X), model(X))
    expected = gradients(model, X)
    model.zero_grad()
    compiled(X).square().sum().backward()
    for name, parameter in learned(model).items():
        assert_close(parameter.grad, expected[name], what=name)


@pytest.mark.usefixtures("unchecked_shapes")
def test_compiled_reader_under_a_router_is_refused():
    model = reader_model("hydra_lora", "linear")
    with pytest.raises(NotExactError, match="'query' is read"):
        torch.compile(model.base_model.model, backend="aot_eager")(X)


@pytest.mark.usefixtures("unchecked_shapes")
def test_compiled_model_may_read_the_type_of_a_weight_under_a_router():
    model = adapted(config_of("hydra_lora", target_modules=["wo"], task_type=None), t5()).base_model.model
    inputs = {"input_ids": ids(), "decoder_input_ids": ids(length=4)}
    with torch.no_grad():
        assert_close(torch.compile(model, backend="aot_eager")(**inputs).logits, model(**inputs).logits)


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2).eval()


MODES = {"with_gradients": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("targets", [["linear1"], ["linear2"], ["out_proj"], "all-linear"])
@pytest.mark.parametrize("method", ["lora", "relayed_lora", "tlora"])
def test_adapters_act_in_the_encoder_of_torch_in_every_mode(method, targets):
    model = adapted(config_of(method, target_modules=targets, task_type=None), encoder())
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 3:] = True
    outputs = {}
    for name, mode in MODES.items():
        with mode():
            outputs[name] = [model(X).clone(), model(X, src_key_padding_mask=mask)[:, :3].clone()]
    trained = model.train()(X).detach()
    with torch.no_grad():
        assert not torch.allclose(outputs["no_grad"][0], encoder()(X), atol=1e-3)
        merged = model.merge_and_unload().eval()
        expected = [merged(X), merged(X, src_key_padding_mask=mask)[:, :3]]
    assert_close(trained, expected[0])
    for output in outputs.values():
        for part, value in zip(output, expected, strict=True):
            assert_close(part, value)


def test_heads_act_in_the_encoder_of_torch_whose_fast_path_is_left():
    model = adapted(config_of("hydra_lora", target_modules=["linear1", "linear2"], task_type=None), encoder())
    with_gradients = model(X).detach()
    with torch.no_grad():
        assert_close(model(X), with_gradients)
        assert not torch.allclose(with_gradients, encoder()(X), atol=1e-3)


def mamba():
    torch.manual_seed(0)
    size = {"hidden_size": 8, "state_size": 4, "num_hidden_layers": 1, "vocab_size": 64, "time_step_rank": 2}
    return MambaForCausalLM(MambaConfig(**size)).eval(), {"input_ids": ids(2, 6)}, ["dt_proj"]


def wavlm():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    convolutions = {"conv_dim": (8,), "conv_stride": (4,), "conv_kernel": (8,), "num_feat_extract_layers": 1}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    model = WavLMModel(WavLMConfig(**size, **convolutions, **positions)).eval()
    return model, {"input_values": torch.randn(2, 100)}, ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.mark.parametrize("make", [mamba, wavlm])
def test_adapters_act_learn_and_merge_where_transformers_reads_weights(make):
    base, inputs, targets = make()
    with torch.no_grad():
        plain = base(**inputs)[0]
    model = adapted(config_of("lora", r=2, target_modules=targets, task_type=None), base)
    output = model(**inputs)[0]
    output.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in learned(model).values())
    assert not torch.equal(output, plain)
    with torch.no_grad():
        assert_close(model.merge_and_unload()(**inputs)[0], output)


class Offset(nn.Embedding):
    """As the positions of BART and OPT: reads rows other than those that it is given."""

    def forward(self, mask, past=0):
        return super().forward((mask.cumsum(1) + past).long())


class Standardised(nn.Conv2d):
    """As BiT's: with a weight of mean 0."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean(), bias)


class Padded(nn.Conv2d):
    """As TensorFlow's: pads at the end."""

    def forward(self, x):
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


class Tripled(nn.Linear):
    """A layer with a factor of its own."""

    def forward(self, x):
        return 3 * super().forward(x)


class Own(nn.Module):
    """Layers that do not compute as their types do."""

    def __init__(self):
        super().__init__()
        self.positions, self.tripled = Offset(8, WIDTH), Tripled(WIDTH, WIDTH)
        self.standardised, self.padded = Standardised(1, 2, 3), Padded(2, 1, 2)
        self.plain = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        hidden = self.tripled(self.positions(torch.ones(len(x), 5), past=1)) + self.plain(x)
        return self.padded(self.standardised(hidden[:, None]))


OWN = ["positions", "tripled", "standardised", "padded"]


@pytest.mark.parametrize("method", ["lora", "lora_fa", "tlora"])
def test_layers_that_compute_in_their_own_way_are_changed_as_merging_changes_them(method):
    torch.manual_seed(0)
    model = adapted(METHODS[method](init_weights=False, target_modules=OWN, task_type=None, r=1), Own())
    model(X).square().sum().backward()
    assert {key.split(".")[2] for key in learned(model)} == set(OWN)
    assert all(parameter.grad.abs().max() > 0 for parameter in learned(model).values())
    with torch.no_grad():
        live = model(X)
        with model.disable_adapter():
            assert not torch.allclose(model(X), live, atol=1e-3)
        assert_close(model.merge_and_unload()(X), live)


def test_heads_on_a_layer_that_computes_in_its_own_way_are_refused_by_name():
    model = adapted(config_of("hydra_lora", target_modules=["tripled", "plain"], task_type=None), Own())
    with pytest.raises(
        NotExactError, match=r"'tripled' is a Tripled, which reads its weight .* exclude_modules"
    ):
        model(X)


class Reused(nn.Module):
    """A model that calls its layers by other names, through lists and through attributes."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.calls, self.names = [self.first, torch.tanh], {"second": self.second}
        self.__dict__["alias"] = self.third
        self.pair = (self.alias, 2)
        self.again = nn.Sequential(self.first, nn.Tanh())

    def forward(self, x):
        for call in self.calls:
            x = call(x)
        return self.pair[0](self.names["second"](x)) + self.again(self.alias(x))


def reused():
    torch.manual_seed(0)
    return Reused()


def test_layers_have_their_adapters_wherever_the_model_holds_them(tmp_path):
    base = reused()
    names = set(base.state_dict())
    with torch.no_grad():
        plain = base(X)
    model = adapted(config_of("lora", target_modules=["first", "second", "third"], task_type=None), base)
    model(X).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in learned(model).values())
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 6
    with torch.no_grad():
        live = model(X)
        assert torch.equal(peft.PeftModel.from_pretrained(reused(), tmp_path)(X), live)
        assert not torch.allclose(live, plain, atol=1e-3)
        model.merge_adapter()
        assert_close(model(X), live)
        model.unmerge_adapter()
        assert torch.equal(model.unload()(X), plain)
    assert base.alias is base.third
    assert base.again[0] is base.first
    assert set(base.state_dict()) == names


class Partial(nn.Module):
    """A model that leaves one of its layers out."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.first(x)


class Discarding(Partial):
    """A model that computes what no loss depends on, as BERT's pooler."""

    def forward(self, x):
        self.pooled = self.second(x)
        return self.first(x)


@pytest.mark.parametrize("method", ["lora", "share_lora", "tlora"])
def test_layer_without_a_part_in_the_loss_is_named_after_the_first_backward_pass(method):
    config = METHODS[method](target_modules=["first", "second"], task_type=None, r=2)
    model = adapted(config, Discarding()).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (model(X) + model(X)).sum().backward()
    with pytest.warns(RankfoldWarning, match=r"1 adapted .* the loss of the first training step .*'second'"):
        model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X).sum().backward()
        model(X)


def test_layer_without_a_part_in_the_first_training_pass_is_named_once():
    model = adapted(config_of("lora", target_modules=["first", "second"], task_type=None), Partial())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X)
    with pytest.warns(RankfoldWarning, match=r"1 adapted layers took no part .*'second'.*exclude_modules"):
        model.train()(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X)
        reader_model("lora", "linear").train()(X)


def test_unused_layers_may_be_merged():
    model = adapted(config_of("lora", target_modules=["first", "second"], task_type=None), Partial())
    with torch.no_grad():
        live = model(X)
        assert_close(model.merge_and_unload()(X), live)
