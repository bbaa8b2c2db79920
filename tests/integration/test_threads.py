"""Threads that share a model: rows get their own adapter, and changes under another thread are refused."""

import threading

import pytest
import torch
from torch import nn

import rankfold
from rankfold import ThreadError
from tests.integration.models import METHODS, adapted, config_of, ids, scores

NAMES = ("first", "second", "__base__")


def two_adapters(method="lora", **options):
    model = adapted(config_of(method, **options), adapter_name="first")
    model.add_adapter("second", config_of(method, seed=7, **options))
    return model.eval()


def in_thread(work):
    """Run in another thread and return its result or its error."""
    results = []

    def run():
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize("method", METHODS)
def test_threads_with_different_rows_get_their_own_adapters(method):
    model = two_adapters(method)
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["second"].bias.add_(1.0)
    expected = {name: scores(model, adapter_names=[name] * 6) for name in NAMES}
    start = threading.Barrier(len(NAMES))
    wrong = []

    def work(name):
        start.wait()
        for _ in range(15):
            output = scores(model, adapter_names=[name] * 6)
            wrong.extend([name] * (not torch.allclose(output, expected[name], atol=1e-6)))

    threads = [threading.Thread(target=work, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_row_adapters_of_one_thread_are_not_those_of_a_call_without():
    model = two_adapters()
    plain = scores(model)
    during = []

    class Stop(nn.Module):
        def forward(self, x):
            if not during:
                during.append(None)
                during.append(in_thread(lambda: scores(model)))
            return x

    layer = model.base_model.model.bert.encoder.layer[1]
    layer.register_forward_pre_hook(lambda module, args: (Stop()(args[0]), *args[1:]))
    mixed = scores(model, adapter_names=["second"] * 6)
    assert torch.equal(during[1], plain)
    assert not torch.equal(mixed, plain)


CHANGES = {
    "activate": lambda model: model.set_adapter("second"),
    "disable": lambda model: model.base_model.disable_adapter_layers(),
    "merge": lambda model: model.merge_adapter(),
    "delete": lambda model: model.delete_adapter("second"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_during_the_pass_of_another_thread_is_refused_on_either_side(change):
    model = two_adapters(task_type=None)
    before, answers = scores(model), []

    def interrupt(_module, _args):
        answers.append(in_thread(lambda: CHANGES[change](model)))

    hook = model.base_model.model.bert.encoder.layer[0].register_forward_pre_hook(interrupt)
    with pytest.raises(ThreadError, match="another thread changed"):
        scores(model)
    assert isinstance(answers[0], ThreadError)
    assert "while another thread runs" in str(answers[0])
    hook.remove()
    model.base_model.enable_adapter_layers()
    model.set_adapter("first")
    assert torch.equal(scores(model), before)


@pytest.mark.parametrize("change", ["rescale", "hotswap"])
def test_rescaling_and_hotswapping_during_the_pass_of_another_thread_are_refused(change, tmp_path):
    model = two_adapters(task_type=None)
    model.save_pretrained(tmp_path)
    before, answers = scores(model), []

    def work():
        if change == "hotswap":
            return rankfold.hotswap_adapter(model, tmp_path / "second", "second")
        with rankfold.rescale_adapter_scale(model, 0.5):
            return None

    layer = model.base_model.model.bert.encoder.layer[0]
    hook = layer.register_forward_pre_hook(lambda *_: answers.append(in_thread(work)))
    with pytest.raises(ThreadError, match="another thread changed"):
        scores(model)
    assert isinstance(answers[0], ThreadError)
    hook.remove()
    assert in_thread(work) is None
    assert torch.equal(scores(model), before)


def test_rescaling_of_two_threads_at_once_is_refused():
    model = two_adapters()

    def work():
        with rankfold.rescale_adapter_scale(model, 0.0):
            pass

    with rankfold.rescale_adapter_scale(model, 0.5):
        assert isinstance(in_thread(work), ThreadError)
    assert in_thread(work) is None


def test_pass_under_the_choice_of_another_thread_is_refused():
    model = two_adapters()
    model.set_adapter("first")
    mine = scores(model)
    assert in_thread(lambda: model.set_adapter("second")) is None
    with pytest.raises(ThreadError, match="activated second since this thread chose"):
        scores(model)
    model.set_adapter("first")
    assert torch.equal(scores(model), mine)
    assert in_thread(lambda: model.set_adapter("first")) is None
    assert torch.equal(scores(model), mine)


def test_pass_while_another_thread_has_the_adapters_disabled_is_refused():
    model = two_adapters()
    with model.disable_adapter():
        answer = in_thread(lambda: scores(model))
    assert isinstance(answer, ThreadError)
    assert "disabled the adapters" in str(answer)
    assert torch.equal(in_thread(lambda: scores(model)), scores(model))


def test_thread_without_a_choice_follows_the_model():
    model = two_adapters()
    model.set_adapter("second")
    assert torch.equal(in_thread(lambda: scores(model)), scores(model))


def test_threads_that_take_turns_are_right():
    model = two_adapters()
    model.set_adapter("second")
    second = scores(model)
    model.set_adapter("first")
    first = scores(model)
    lock, wrong = threading.Lock(), []

    def work(name, expected):
        for _ in range(10):
            with lock:
                model.set_adapter(name)
                if not torch.equal(scores(model), expected):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=args) for args in (("first", first), ("second", second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_interrupted_pass_of_this_thread_does_not_block_it():
    model = two_adapters()
    with pytest.raises(IndexError):
        model(input_ids=ids() + 10_000)
    model.set_adapter("second")
    in_thread(lambda: model.set_adapter("second"))
