"""vLLM's resolver interface, by a small double of it: a name in the store becomes a folder of plain LoRA.

The double stands for the interface only; `benchmarks/vllm.py` asks vLLM itself.
"""

import asyncio
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import peft
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

import rankfold
from rankfold import AdapterStore, NotExactError, SpecError, StoreError
from rankfold.serve import vllm as plugin
from rankfold.serve.folded import FoldedCache
from rankfold.store.manifest import MANIFEST_NAME, Manifest, TaskManifest
from tests.support import vllm_double

BASE = "tiny/llama"
GROUP = "vllm.general_plugins"
WORDS = torch.arange(8).reshape(1, 8)


def base():
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)).eval()
    model.name_or_path = BASE
    return model


def saved(folder, config):
    peft.get_peft_model(base(), config).save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture
def store(tmp_path):
    with AdapterStore(tmp_path / "store.db") as opened:
        yield opened


@pytest.fixture
def vllm(root, tmp_path, monkeypatch):
    """The server of vLLM, after it loaded the plugin."""
    monkeypatch.setenv("RANKFOLD_STORE", str(tmp_path / "store.db"))
    monkeypatch.setenv("RANKFOLD_CACHE", str(tmp_path / "cache"))

    def start(middleware=plugin.StoreMiddleware, **options):
        registry = vllm_double.Registry()
        for name, module in vllm_double.modules(registry).items():
            monkeypatch.setitem(sys.modules, name, module)
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
        (entry,) = project["entry-points"][GROUP].items()
        EntryPoint(*entry, GROUP).load()()
        return vllm_double.Server(registry, BASE, middleware, **options)

    return start


def options(method, **values):
    return rankfold.config(
        method, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_weights=False, **values
    )


def folders(tmp_path):
    return {path.name for path in (tmp_path / "cache" / "vllm").iterdir() if path.name[0] != "."}


@pytest.mark.parametrize(
    "config",
    [
        options("relayed_lora"),
        options("tlora"),
        peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False),
    ],
    ids=["relayed_lora", "tlora", "peft:lora"],
)
def test_adapter_that_vllm_asks_for_lies_there_as_plain_lora(store, vllm, tmp_path, config):
    folder = saved(tmp_path / "adapter", config)
    store.put("customers/a", folder)
    request = vllm().ask("customers/a")
    assert request.lora_name == f"customers/a@{store.record('customers/a').digest}"
    assert peft.PeftConfig.from_pretrained(request.lora_path).peft_type == "LORA"
    expected = peft.PeftModel.from_pretrained(base(), folder).eval()(WORDS).logits
    plain = peft.PeftModel.from_pretrained(base(), request.lora_path).eval()(WORDS).logits
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-5)
    assert (expected - base()(WORDS).logits).abs().max() > 1e-3


def regressor(kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    config, model_class = {
        "bert": (BertConfig, BertForSequenceClassification),
        "llama": (LlamaConfig, LlamaForSequenceClassification),
    }[kind]
    model = model_class(config(**sizes, num_hidden_layers=2, num_labels=1, pad_token_id=0)).eval()
    model.name_or_path = BASE
    return model


@pytest.mark.parametrize(("kind", "mean"), [("bert", 250.0), ("llama", 0.0), ("llama", 250.0)])
def test_regression_answers_in_the_unit_of_its_labels_or_is_refused_by_name(
    store, vllm, tmp_path, kind, mean
):
    targets = {"bert": ["query"], "llama": ["q_proj"]}[kind]
    config = rankfold.config("tlora", target_modules=targets, task_type="SEQ_CLS", init_weights=False)
    model = peft.get_peft_model(regressor(kind), config)
    model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    settings = {"scale": {"mean": mean, "std": 90.0}}
    manifest = Manifest(TaskManifest("prices", "regression", settings=settings))
    (tmp_path / "a" / MANIFEST_NAME).write_bytes(manifest.to_json())
    store.put("a", tmp_path / "a")
    if kind == "llama" and mean:  # its head has no bias
        with pytest.warns(rankfold.RankfoldWarning, match="centred"):
            rankfold.export_lora(tmp_path / "a", tmp_path / "b")
        store.put("b", tmp_path / "b")
        for name in ("a", "b"):
            with pytest.raises(NotExactError, match=f"adapter '{name}' in the unit of its labels"):
                vllm().ask(name)
        return
    expected = 90.0 * model.eval()(WORDS).logits + mean
    plain = peft.PeftModel.from_pretrained(regressor(kind), vllm().ask("a").lora_path).eval()(WORDS).logits
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-3)


def test_adapter_is_folded_once_and_its_next_version_has_another_name_number_and_folder(
    store, vllm, tmp_path
):
    one, two = saved(tmp_path / "one", options("tlora")), saved(tmp_path / "two", options("relayed_lora"))
    store.put("a", one)
    server = vllm()
    first = server.ask("a")
    written = (Path(first.lora_path) / "adapter_config.json").stat().st_mtime_ns
    assert server.ask("a") == first
    assert (Path(first.lora_path) / "adapter_config.json").stat().st_mtime_ns == written
    assert vllm().ask("a").lora_path == first.lora_path  # of another server
    sys.modules["vllm.lora.resolver"].LoRAResolverRegistry = server.registry
    store.put("a", two, replace=True)
    second = server.ask("a")
    for value in ("lora_name", "lora_int_id", "lora_path"):
        assert getattr(second, value) != getattr(first, value)
    store.delete("a")
    with pytest.raises(LookupError):
        server.ask("a")
    assert Path(first.lora_path).is_dir()  # something that was broken off may yet read it


def test_request_under_way_keeps_the_adapter_that_it_began_with(store, vllm, tmp_path):
    one, two = saved(tmp_path / "one", options("tlora")), saved(tmp_path / "two", options("relayed_lora"))
    store.put("a", one)

    async def replace_meanwhile(server):
        server.pause = asyncio.Event()
        running = asyncio.create_task(server.complete("a"))
        await server.loading.wait()
        digest = store.record("a").digest
        store.put("a", two, replace=True)
        pause, server.pause = server.pause, None
        newer = await server.complete("a")
        pause.set()
        return digest, await running, newer

    digest, running, newer = asyncio.run(replace_meanwhile(vllm()))
    assert running.lora_name == f"a@{digest}"
    assert newer.lora_name == f"a@{store.record('a').digest}" != running.lora_name


def test_least_recently_used_folders_go_but_never_one_that_a_request_needs(
    store, vllm, tmp_path, monkeypatch
):
    monkeypatch.setenv("RANKFOLD_VLLM_BYTES", "1")
    monkeypatch.setattr(plugin, "_GRACE_SECONDS", 0)
    folder = saved(tmp_path / "adapter", options("tlora"))
    for name in "abc":
        store.put(name, folder)
    digests = {name: store.record(name).digest for name in "abc"}

    async def run(server):
        server.pause = asyncio.Event()
        running = asyncio.create_task(server.complete("a"))
        await server.loading.wait()
        server.pause.set()
        server.pause = None
        await server.complete("b")
        before = folders(tmp_path)
        await running
        await server.complete("c")
        await server.complete("c")
        return before

    server = vllm()
    assert digests["a"] in asyncio.run(run(server))
    store.put("d", folder)
    server.ask("d")
    assert folders(tmp_path) & set(digests.values()) <= {digests["c"]}
    assert set(server.lora_requests) == {"static", "d"}
    assert set(vllm().ask("a").lora_name) >= set("a@")


def test_folder_of_another_process_stays_until_that_dies(tmp_path):
    cache = FoldedCache(tmp_path, 0)
    lines = (
        "import sys, pathlib\nfrom rankfold.serve.folded import FoldedCache\n"
        "def write(folder):\n"
        "    for name in ('adapter_config.json', 'adapter_model.safetensors'):\n"
        "        (folder / name).write_text('x')\n"
        "    if sys.argv[2] == 'hang':\n"
        "        print('writing', flush=True)\n"
        "        input()\n"
        "FoldedCache(pathlib.Path(sys.argv[1]), 0).hold('theirs', write)\n"
        "print('held', flush=True)\ninput()\n"
    )

    def write(folder):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).write_text("x")

    for mode, whole in (("hold", True), ("hang", False)):
        command = [sys.executable, "-c", lines, str(tmp_path), mode]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            if whole:
                cache.hold("ours", write)
                assert (tmp_path / "theirs").is_dir()
            process.kill()
        assert (tmp_path / "theirs").is_dir() == whole
        cache.release("ours")
        cache.hold("others", write)
        assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == {"others"}
        assert not (tmp_path / ".draft").exists()


def test_unknown_name_and_other_base_are_left_to_other_resolvers(store, vllm, tmp_path):
    store.put("a", saved(tmp_path / "one", options("tlora")))
    server = vllm()
    server.base = "another/model"
    for name in "ab":
        with pytest.raises(LookupError):
            server.ask(name)


def test_adapter_that_is_no_plain_lora_is_refused_with_the_reason_and_leaves_nothing(store, vllm, tmp_path):
    store.put("routed", saved(tmp_path / "one", options("hydra_lora")))
    store.put("lokr", saved(tmp_path / "two", peft.LoKrConfig(target_modules=["q_proj"], r=2)))
    server = vllm()
    with pytest.raises(NotExactError, match="rout"):
        server.ask("routed")
    with pytest.raises(NotExactError, match="'lokr' is no LoRA"):
        server.ask("lokr")
    assert not folders(tmp_path)


def test_rank_above_that_of_vllm_is_refused_with_the_number(store, vllm, tmp_path):
    store.put("wide", saved(tmp_path / "one", options("lora", r=12)))
    with pytest.raises(
        SpecError, match=r"'wide' has rank 12 .* at most 8; start it with `--max-lora-rank 12`"
    ):
        vllm(most_rank=8).ask("wide")
    assert vllm(most_rank=12).ask("wide").lora_name.startswith("wide@")


def test_list_of_models_has_every_adapter_by_the_name_that_requests_use(store, vllm, tmp_path):
    folder = saved(tmp_path / "adapter", options("tlora"))
    for name in "abc":
        store.put(name, folder)
    server = vllm()
    assert server.names() == ["served", "static", "a", "b", "c"]
    server.ask("b")
    store.delete("c")
    assert server.names() == ["served", "static", "a", "b"]


def test_plugin_is_silent_without_a_store_and_refuses_what_would_be_served_wrongly(
    store, vllm, tmp_path, monkeypatch
):
    store.put("a", saved(tmp_path / "one", options("tlora")))
    with pytest.raises(SpecError, match=r"--middleware rankfold\.serve\.vllm\.StoreMiddleware"):
        vllm(middleware=None).ask("a")
    monkeypatch.setenv("RANKFOLD_VLLM_BYTES", "10 GB")
    with pytest.raises(SpecError, match="no number of bytes"):
        vllm()
    monkeypatch.setenv("RANKFOLD_STORE", str(tmp_path / "missing.db"))
    monkeypatch.delenv("RANKFOLD_VLLM_BYTES")
    with pytest.raises(StoreError, match="there is no store"):
        vllm()
    monkeypatch.delenv("RANKFOLD_STORE")
    server = vllm()
    server.registry.resolvers.clear()
    assert server.names() == ["served", "static"]
