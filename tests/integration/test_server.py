"""A live server answers the official client, keeps to its keys and limits, and never mixes up adapters."""

import itertools
import json
import random
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import openai
import pytest
import schemathesis
import torch
from hypothesis import given, settings, strategies
from transformers import AutoModelForCausalLM, AutoTokenizer

import rankfold
from rankfold.serve.decoding import Decoder, Prompt, TextStream
from rankfold.serve.engine import Engine, load_base
from rankfold.serve.http.service import ServerOptions
from rankfold.serve.scheduler import Limits
from rankfold.store.manifest import Manifest, TaskManifest
from rankfold.store.saved import open_adapter
from tests.support.adapters import save_adapter
from tests.support.live_server import ADMIN, CLOSED_KEYS, TEAM, ask, engine_of, served
from tests.support.tiny_models import question_rows, review_rows, tiny_bert, tiny_llama

__all__ = ["tiny_bert", "tiny_llama"]

TEXTS = [row["sentence"] for row in review_rows(8)]
PROMPTS = [row["instruction"] for row in question_rows(8)]
METHODS = ("lora", "tlora", "effilora")


def write_store(folder, base, names, **task):
    """Write a store with an adapter of some method under each name."""
    manifest = Manifest(TaskManifest("reviews", **task), max_length=32)
    with rankfold.AdapterStore(folder / "adapters.db") as store:
        for index, name in enumerate(names):
            saved = open_adapter(save_adapter(folder / f"{index}", base, METHODS[index % 3], seed=index))
            store.put(name, saved.with_manifest(manifest))
    return folder / "adapters.db"


@pytest.fixture(scope="module")
def encoder(tiny_bert, tmp_path_factory):
    names = ["plain", "shared", "team/a", "team/b"]
    folder = tmp_path_factory.mktemp("encoder")
    store = write_store(folder, tiny_bert, names, kind="classification", label_names=("bad", "good"))
    with served(engine_of(tiny_bert, store, limits=Limits(queue_rows=300))) as server:
        yield server


@pytest.fixture(scope="module")
def writer(tiny_llama, tmp_path_factory):
    store = write_store(tmp_path_factory.mktemp("writer"), tiny_llama, METHODS, kind="instruction")
    with served(engine_of(tiny_llama, store)) as server:
        yield server


def client_of(server, key="none"):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0)


def test_official_client_gets_the_embeddings_and_classes_of_each_adapter(encoder):
    names = ["bert", "plain", "team/a"]
    session = encoder.engine.session
    with client_of(encoder) as client:
        assert [model.id for model in client.models.list()] == ["bert", "plain", "shared", "team/a", "team/b"]
        assert client.models.retrieve("team/a").id == "team/a"
        for name in names:
            wanted = session.embed(TEXTS, [None if name == "bert" else name] * len(TEXTS))
            # The client asks for base64 by itself.
            for encoding in ({}, {"encoding_format": "float"}):
                answer = client.embeddings.create(model=name, input=TEXTS, **encoding)
                vectors = torch.tensor([item.embedding for item in answer.data])
                assert torch.allclose(vectors, wanted, atol=1e-5)
            ids = [session.processor(text)["input_ids"] for text in TEXTS]
            assert answer.usage.prompt_tokens == sum(map(len, ids))
            tokens = client.embeddings.create(model=name, input=ids)
            assert torch.allclose(torch.tensor([item.embedding for item in tokens.data]), wanted, atol=1e-5)
    status, _, answer = ask(encoder, "POST", "/v1/classify", {"model": "plain", "input": TEXTS})
    wanted = session.predict(TEXTS, ["plain"] * len(TEXTS))
    assert status == 200
    assert [row["label"] for row in answer["data"]] == [row["label"] for row in wanted]


@pytest.mark.parametrize("stop", [None, ["story", "true"]])
def test_official_client_gets_texts_whole_and_in_pieces(writer, stop):
    options = {"max_tokens": 12, "stop": stop}
    with client_of(writer) as client, client_of(writer) as other:
        for name in ("llama", *METHODS):
            whole = client.completions.create(model=name, prompt=PROMPTS, **options)
            texts = [""] * len(PROMPTS)
            with other.completions.create(model=name, prompt=PROMPTS, stream=True, **options) as stream:
                for chunk in stream:
                    texts[chunk.choices[0].index] += chunk.choices[0].text
            assert texts == [choice.text for choice in whole.choices]
            ids = [writer.engine.session.processor(text)["input_ids"] for text in PROMPTS]
            wanted = alone(writer.engine.session, ids, None if name == "llama" else name, 12)
            cut = [min([t.find(s) for s in stop or () if s in t], default=len(t)) for t in wanted]
            assert texts == [text[:end] for text, end in zip(wanted, cut, strict=True)]
        turns = [{"role": "user", "content": PROMPTS[0]}]
        reply = client.chat.completions.create(model="tlora", messages=turns, max_tokens=6)
        usage = {"stream_options": {"include_usage": True}}
        chunks = list(
            client.chat.completions.create(model="tlora", messages=turns, max_tokens=6, stream=True, **usage)
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
        assert "".join(pieces) == reply.choices[0].message.content
        assert chunks[-1].usage == reply.usage
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model="tlora", messages=turns * 2)


def alone(session, prompts, name, new_tokens):
    """The greedy continuation of each prompt by itself, by transformers' own loop."""
    texts = []
    for ids in prompts:
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=int)}
        tokens = session.generate(inputs, [name], max_new_tokens=new_tokens, do_sample=False)
        texts.append(session.processor.decode(tokens[0, len(ids) :], skip_special_tokens=True))
    return texts


def outcome(row):
    """The text of a row, None for one that was dropped."""
    if isinstance(row.result, ConnectionError):
        return "failed"
    return row.result and row.result.text


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_join_and_leave_at_any_token_are_continued_as_alone(tiny_llama, tmp_path, seed):
    draw = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = tokenizer.eos_token
    bank = rankfold.Bank(AutoModelForCausalLM.from_pretrained(tiny_llama), slots=8)
    for method in METHODS:
        bank.add(method, save_adapter(tmp_path / method, tiny_llama, method, seed=seed))
    session = rankfold.Session(bank, tokenizer)
    decoder = Decoder(session, 6)
    prompts = [tokenizer(text)["input_ids"][: draw.randint(1, 9)] for text in PROMPTS]
    names = [draw.choice([None, *METHODS]) for _ in prompts]
    lengths = [draw.randint(1, 10) for _ in prompts]
    waiting, rows = list(range(len(prompts))), {}
    dropped, failing = draw.sample(waiting, 2)

    def refuse(piece):
        raise ConnectionError(piece)

    while waiting or decoder.rows:
        joining = waiting[: min(draw.randint(0, 2), 6 - len(decoder.rows))]
        waiting = waiting[len(joining) :]
        if joining:
            receivers = {failing: refuse}
            asked = [
                Prompt(prompts[index], lengths[index], on_text=receivers.get(index)) for index in joining
            ]
            rows |= zip(joining, decoder.join(asked, [names[index] for index in joining]), strict=True)
        if dropped in rows and draw.random() < 0.5:
            decoder.drop([rows[dropped]])
        decoder.step()
    for index, row in rows.items():
        wanted = alone(session, [prompts[index]], names[index], lengths[index])
        assert outcome(row) in (None, *wanted, *(["failed"] if index == failing else []))
    with bank.hold([None]):
        assert not bank._pins  # every row has given its slot back


def test_draws_follow_the_seed_and_top_p(writer):
    with client_of(writer) as client:

        def draw(**options):
            answer = client.completions.create(model="lora", prompt=PROMPTS[0], max_tokens=12, **options)
            return answer.choices[0].text

        greedy = draw()
        assert draw(temperature=1.5, seed=1) == draw(temperature=1.5, seed=1)
        assert len({draw(temperature=1.5, seed=seed) for seed in range(4)}) > 1
        assert draw(temperature=1.5, top_p=1e-9, seed=3) == greedy
        assert draw(temperature=1e-320, seed=3) == greedy


@pytest.mark.parametrize("stops", [(), ("ab", "bc"), ("cab",)])
def test_pieces_of_a_text_are_the_text_up_to_a_stop(stops):
    class Letters:
        def decode(self, ids, **_):
            return bytes(ids).decode("utf-8", "replace")

    for seed in range(20):
        text = "".join(random.Random(seed).choices("abcdé☃", k=12))
        stream = TextStream(Letters(), stops)
        pieces = []
        for byte in text.encode():
            pieces.append(stream.push(byte))
            if stream.is_stopped:
                break
        pieces.append(stream.finish())
        end = min([text.find(stop) for stop in stops if stop in text], default=len(text))
        assert "".join(pieces) == stream.text == text[:end]


def test_unknown_and_forbidden_adapters_get_the_same_answer(tiny_bert, tmp_path):
    names = ["plain", "shared", "team/a"]
    store = write_store(tmp_path, tiny_bert, names, kind="classification", label_names=("bad", "good"))
    with served(engine_of(tiny_bert, store), CLOSED_KEYS) as server:
        for path, extra in [("embeddings", {}), ("classify", {}), ("completions", {"prompt": "a"})]:
            answers = [
                ask(server, "POST", f"/v1/{path}", {"model": name, "input": "a"} | extra, key=TEAM)[::2]
                if not extra
                else ask(server, "POST", f"/v1/{path}", {"model": name} | extra, key=TEAM)[::2]
                for name in ("plain", "never", "bert")
            ]
            texts = [
                json.dumps(body).replace(name, "NAME")
                for (_, body), name in zip(answers, ("plain", "never", "bert"), strict=True)
            ]
            assert {status for status, _ in answers} == {404}
            assert len(set(texts)) == 1
        with client_of(server, TEAM) as client:
            assert [model.id for model in client.models.list()] == ["shared", "team/a"]
            assert client.embeddings.create(model="team/a", input="good").data
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("plain")
        for key in (None, "wrong", ADMIN):
            for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/embeddings")):
                body = {"model": "shared", "input": "a"} if method == "POST" else None
                assert ask(server, method, path, body, key=key)[0] == 401
        assert ask(server, "GET", "/admin/adapters", key=TEAM)[0] == 401
        status, headers, answer = ask(
            server, "POST", "/v1/embeddings", {"model": "shared", "input": ["a"] * 41}, key=TEAM
        )
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert int(headers["Retry-After"]) >= 1
        assert [ask(server, "GET", path)[0] for path in ("/health", "/ready", "/")] == [200] * 3


DEEP = b"[" * 100_000
BAD_BODIES = [
    pytest.param(b"{", 400, "body", id="no JSON"),
    pytest.param(b'{"model": "plain", "input": "\xff"}', 400, "UTF-8", id="not UTF-8"),
    pytest.param(b'{"model": "plain", "input": "\\ud800"}', 400, "surrogate", id="a surrogate"),
    pytest.param(DEEP, 400, "without end", id="deep"),
    pytest.param(b'{"model": "plain", "input": "a", "model": "plain"}', 400, "'model'", id="a key twice"),
    pytest.param(b'{"model": "plain", "input": [NaN]}', 400, "NaN", id="no number"),
    pytest.param(b'{"model": "plain", "input": [1e999]}', 400, "1e999", id="a number without end"),
    pytest.param(b'{"model": "plain", "input": [' + b"9" * 5000 + b"]}", 400, "digits", id="5,000 digits"),
    pytest.param({"model": "plain", "input": []}, 400, "at least 1", id="no text"),
    pytest.param({"model": "plain", "input": ["a"] * 10_000}, 400, "at most 2048", id="10,000 texts"),
    pytest.param({"model": "plain", "input": ["a"] * 2000}, 429, "send fewer rows", id="too many rows"),
    pytest.param({"model": "plain", "input": "good " * 100}, 400, "model takes 64", id="a long text"),
    pytest.param({"model": "plain", "input": [-1]}, 400, "greater than or equal to 0", id="negative tokens"),
    pytest.param({"model": "plain", "input": [10**6]}, 400, "no token", id="tokens of no word"),
    pytest.param({"model": "plain", "input": 3}, 400, "string", id="a number"),
    pytest.param({"model": "plain", "input": "a", "dimensions": 3}, 400, "dimensions", id="an unknown field"),
    pytest.param({"model": "../etc/passwd", "input": "a"}, 404, "does not exist", id="another name"),
    pytest.param({"model": "*", "input": "a"}, 404, "does not exist", id="a name with a star"),
    pytest.param(b" " * (5 << 20), 413, "4,194,304 bytes", id="a large body"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD_BODIES)
def test_bad_requests_get_a_status_and_a_sentence(encoder, body, status, words):
    found, _, answer = ask(encoder, "POST", "/v1/embeddings", body)
    assert (found, answer["error"]["type"]) == (status, TYPES.get(status, "invalid_request_error"))
    assert words in answer["error"]["message"]


CLASHES = [
    ({"max_tokens": 5, "max_completion_tokens": 7}, "other name"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"top_p": 0.5}, "temperature"),
    ({"n": 2}, "n: "),
    ({"logprobs": True}, "logprobs: The server does not have"),
    ({"tools": [{"type": "function"}]}, "tools: "),
    ({"response_format": {"type": "json_object"}}, "response_format: "),
    ({"frequency_penalty": 0.5}, "frequency_penalty: "),
    ({"temperature": float("nan")}, "NaN"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"max_tokens": 0}, "max_tokens: "),
    ({"max_tokens": True}, "max_tokens: "),
    ({"max_tokens": 2.5}, "max_tokens: "),
    ({"max_tokens": "5"}, "max_tokens: "),
    ({"stream": "yes"}, "stream: "),
    ({"seed": -1}, "seed: "),
    ({"stream": "yes please"}, "stream: "),
    ({"messages": [{"role": "user", "content": "a", "name": "Ann"}]}, "messages.0.name"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a"}]}]}, "messages.0"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
]


def test_fields_that_clash_or_ask_for_what_the_server_cannot_do_are_refused_by_name(writer):
    body = {"model": "llama", "messages": [{"role": "user", "content": "true"}]}
    for fields, words in CLASHES:
        status, _, answer = ask(writer, "POST", "/v1/chat/completions", body | fields)
        assert (status, words in answer["error"]["message"]) == (400, True), (fields, answer)


def test_fields_that_ask_for_nothing_change_nothing(writer):
    with client_of(writer) as client:
        turn = {"role": "user", "content": [{"type": "text", "text": "tr"}, {"type": "text", "text": "ue"}]}
        plain = client.chat.completions.create(
            model="llama", messages=[turn | {"content": "true"}], max_tokens=5
        )
        idle = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": False}
        for limits in ({"max_tokens": 5, "max_completion_tokens": 5}, {"max_completion_tokens": 5}):
            nulls = dict.fromkeys(("seed", "stop", "stream", "temperature", "top_p", "functions"))
            answer = client.chat.completions.create(
                model="llama", messages=[turn], **idle, **limits, n=1, extra_body=nulls
            )
            assert answer.choices == plain.choices
        # Clients send the answer back, with all its fields, of which most are null.
        echo = [{"role": "user", "content": "a"}, plain.choices[0].message.to_dict(exclude_unset=False)]
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model="llama", messages=echo)


def test_body_without_its_type_is_answered_with_the_header_to_send(encoder):
    body = {"model": "plain", "input": "a"}
    for kind in ("application/x-www-form-urlencoded", "text/plain"):
        status, _, answer = ask(encoder, "POST", "/v1/embeddings", body, headers={"Content-Type": kind})
        assert (status, "Content-Type: application/json" in answer["error"]["message"]) == (400, True)


def test_adapters_of_no_store_show_their_method_and_keep_their_names(tiny_bert, tmp_path):
    engine = engine_of(tiny_bert)
    engine.bank.add("news", save_adapter(tmp_path / "a", tiny_bert, "tlora"))
    with served(engine) as server, client_of(server) as client:
        assert [(model.id, model.method) for model in client.models.list()] == [
            ("bert", None),
            ("news", "tlora"),
        ]
        for name in ("bert", "news"):  # an adapter put under it would never be served
            status, _, answer = ask(server, "PUT", f"/admin/adapters/{name}", b"a", key=ADMIN)
            assert (status, answer["error"]["code"]) == (409, "name_taken")


TYPES = {404: "not_found_error", 429: "rate_limit_error"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models?limit=-1", 400),
        ("/v1/models?limit=100000", 400),
        ("/v1/models/never", 404),
        ("/v1/models/*", 404),
        ("/v1/models/plai%3F", 404),
        ("/v1/models/[p]lain", 404),
        ("/nowhere", 404),
        ("/health/", 404),
        ("/v1/embeddings", 405),
        (f"/{'a' * 20_000}", 431),
    ],
)
def test_bad_paths_get_a_status(encoder, path, status):
    assert ask(encoder, "GET", path)[0] == status


SCHEMA_SETTINGS = settings(max_examples=15, derandomize=True, deadline=None, database=None)


@pytest.mark.filterwarnings("ignore")  # those of the library
@pytest.mark.parametrize("which", ["encoder", "writer"])
def test_no_request_of_the_openapi_document_gets_a_status_of_500(which, request):
    server = request.getfixturevalue(which)
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    statuses = set()

    @SCHEMA_SETTINGS
    @given(data=strategies.data())
    def run(operation, data):
        case = data.draw(operation.as_strategy())
        key = ADMIN if operation.path.startswith("/admin") else "any"
        answer = case.call(headers={"Authorization": f"Bearer {key}"})
        statuses.add(answer.status_code)
        assert answer.status_code not in (500, 503), (case.as_curl_command(), answer.content)
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"]

    operations = [result.ok() for result in schema.get_all_operations()]
    for operation in operations:
        run(operation)
    assert len(operations) >= 13
    assert {200, 400, 404} <= statuses


def raw(server, data, *, seconds=30):
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        try:
            connection.sendall(data)
            return connection.recv(1 << 16)
        except ConnectionError:
            return b""


def test_floods_and_endless_bodies_are_cut_off(tiny_bert):
    options = ServerOptions(body_bytes=1000, body_seconds=0.5)
    with served(engine_of(tiny_bert), options=options) as server:
        flood = b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(9000))
        assert b" 431 " in raw(server, flood + b"\r\n")[:20]
        post = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\n"
        assert b" 413 " in raw(server, post + b"Content-Length: 1000000000\r\n\r\n")[:20]
        chunk = b"3e8\r\n" + b"a" * 1000 + b"\r\n"
        assert b" 413 " in raw(server, post + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3)[:20]
        assert b" 408 " in raw(server, post + b"Content-Length: 100\r\n\r\n{")[:20]
        assert ask(server, "GET", "/health")[0] == 200


def test_late_requests_get_504_and_clients_that_leave_free_their_rows(tiny_llama):
    options = ServerOptions(timeout=0.0, generation_timeout=0.0)
    engine = engine_of(tiny_llama)
    with served(engine, options=options) as server:
        body = {"model": "llama", "input": "true"}
        assert ask(server, "POST", "/v1/embeddings", body)[0] == 504
        for stream in (False, True):
            body = {"model": "llama", "prompt": "true", "stream": stream}
            assert ask(server, "POST", "/v1/completions", body)[0] == 504
    engine = engine_of(tiny_llama)
    engine.session.processor.eos_token = None
    scheduler, decoder = engine.scheduler, engine.scheduler._decoder
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with served(engine) as server:
        for stage, stream in itertools.product(("join", "step"), (False, True)):
            own = getattr(decoder, stage)
            begun, may_go_on, ended = threading.Event(), threading.Event(), threading.Event()

            def wait_first(*values, own=own, begun=begun, may_go_on=may_go_on, ended=ended):
                begun.set()
                assert may_go_on.wait(30)
                try:
                    return own(*values)
                finally:
                    ended.set()

            setattr(decoder, stage, wait_first)
            fields = {"model": "llama", "prompt": ["a", "b"], "max_tokens": 60, "stream": stream}
            body, tokens = json.dumps(fields).encode(), scheduler.stats.tokens
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                assert begun.wait(30)
                assert scheduler._by_key.total() == 2
            wait_until(lambda: not scheduler._by_key.total())  # though the model is still busy
            may_go_on.set()
            assert ended.wait(30)
            wait_until(lambda: not decoder.rows)
            assert scheduler.stats.tokens - tokens < 60
            setattr(decoder, stage, own)


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_server_follows_the_file_at_the_path_of_its_store(tiny_bert, tmp_path):
    def statuses(*names):
        body = {"input": "a"}
        return [ask(server, "POST", "/v1/embeddings", body | {"model": name})[0] for name in names]

    folders = [tmp_path / name for name in ("first", "second")]
    for folder, names in zip(folders, (["a", "b"], ["b", "c"]), strict=True):
        folder.mkdir()
        write_store(folder, tiny_bert, names, kind="classification", label_names=("bad", "good"))
    first, second = (folder / "adapters.db" for folder in folders)
    with served(engine_of(tiny_bert, first)) as server:
        assert statuses("a", "b", "c") == [200, 200, 404]
        second.replace(first)
        assert statuses("a", "b", "c") == [404, 200, 200]
        first.rename(second)
        assert statuses("b", "bert") == [503, 200]
        assert ask(server, "GET", "/ready")[0] == 503
        first.write_bytes(b"no store" * 1000)
        assert statuses("b") == [503]
        second.replace(first)
        assert statuses("a", "b", "c") == [404, 200, 200]
        assert [ask(server, "HEAD", path)[0] for path in ("/", "/health", "/ready")] == [200] * 3


def test_administrator_puts_and_deletes_adapters_of_a_running_server(
    encoder, tiny_bert, tiny_llama, tmp_path
):
    packed = tmp_path / "a.rankfold"
    rankfold.pack_adapter(save_adapter(tmp_path / "a", tiny_bert), packed)
    rankfold.pack_adapter(save_adapter(tmp_path / "b", tiny_llama), tmp_path / "b.rankfold")
    path, body = "/admin/adapters/new", {"model": "new", "input": "good"}
    octets = {"Content-Type": "application/octet-stream"}
    assert ask(encoder, "PUT", path, packed.read_bytes(), headers=octets)[0] == 401
    assert ask(encoder, "POST", "/v1/embeddings", body)[0] == 404
    status, _, answer = ask(encoder, "PUT", path, packed.read_bytes(), key=ADMIN, headers=octets)
    assert (status, answer["name"], answer["method"]) == (200, "new", "relayed_lora")
    assert ask(encoder, "GET", path, key=ADMIN)[2] == answer
    assert "new" in {row["name"] for row in ask(encoder, "GET", "/admin/adapters", key=ADMIN)[2]}
    assert ask(encoder, "POST", "/v1/embeddings", body)[0] == 200
    for wrong in (b"", b"abc", (tmp_path / "b.rankfold").read_bytes(), packed.read_bytes()[:-9]):
        status, _, answer = ask(encoder, "PUT", path, wrong, key=ADMIN, headers=octets)
        assert status == 422, answer
    wrong = "/admin/adapters/-a"
    assert ask(encoder, "PUT", wrong, packed.read_bytes(), key=ADMIN, headers=octets)[0] == 400
    assert ask(encoder, "DELETE", path, key=ADMIN)[0] == 204
    assert ask(encoder, "DELETE", path, key=ADMIN)[0] == 404
    assert ask(encoder, "POST", "/v1/embeddings", body)[0] == 404


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
@pytest.mark.parametrize("size", [100, 40_000], ids=["for the body", "for the store"])
def test_full_disk_refuses_what_is_put_and_answers_what_is_there(encoder, tiny_bert, tmp_path, size):
    import resource

    packed = tmp_path / "a.rankfold"
    rankfold.pack_adapter(save_adapter(tmp_path / "a", tiny_bert, seed=5), packed)
    body = {"model": "plain", "input": "good"}
    wanted = ask(encoder, "POST", "/v1/embeddings", body)[2]["data"]

    def put():
        return ask(encoder, "PUT", "/admin/adapters/plain", packed.read_bytes(), key=ADMIN)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        status, _, answer = put()
        found = ask(encoder, "POST", "/v1/embeddings", body)[2]["data"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # The system does not tell SQLite why it may not write more, as it does on a disk that is really full.
    assert (status, answer["error"]["code"]) in {(507, "disk_full"), (503, "store_unavailable")}
    assert "room" in answer["error"]["message"]
    assert found == wanted
    assert ask(encoder, "POST", "/v1/embeddings", body)[2]["data"] == wanted


def test_clock_that_jumps_changes_no_answer(encoder, writer, monkeypatch):
    clock = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: 1e9 + 1e8 * clock.random())
    body = {"model": "plain", "input": "good"}
    answers = [ask(encoder, "POST", "/v1/embeddings", body) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200] * 5
    assert all(answer["data"] == answers[0][2]["data"] for _, _, answer in answers)
    chat = {"model": "lora", "messages": [{"role": "user", "content": "true"}], "temperature": 0}
    texts = [ask(writer, "POST", "/v1/chat/completions", chat)[2]["choices"] for _ in range(3)]
    assert texts == [texts[0]] * 3


@pytest.mark.parametrize("path", ["embeddings", "classify"])
def test_adapter_deleted_while_its_request_waits_is_as_unknown_as_any(encoder, monkeypatch, path):
    body = {"model": "deleted", "input": ["good"]}
    wanted = ask(encoder, "POST", f"/v1/{path}", body)
    monkeypatch.setattr(Engine, "has", lambda self, model: True)
    assert ask(encoder, "POST", f"/v1/{path}", body)[::2] == wanted[::2]
    assert wanted[0] == 404


class ChangingStore:
    """A store whose adapters have one of two versions each; the first one comes and goes."""

    COUNT = 24

    def __init__(self, folder, base):
        kinds = [save_adapter(folder / method, base, method) for method in METHODS]
        self._kinds = [open_adapter(kind) for kind in kinds]
        self.path = folder / "adapters.db"
        self.store = rankfold.AdapterStore(self.path)
        for index in range(self.COUNT):
            self.store.put(f"a{index}", self.version(index, 0))

    def version(self, index, number):
        draw = torch.Generator().manual_seed(2 * index + number)
        kind = self._kinds[index % len(self._kinds)]
        tensors = {key: torch.randn(t.shape, generator=draw) for key, t in kind.tensors.items()}
        return replace(kind, tensors=tensors)

    def change(self, stop):
        """Replace and delete adapters until the event is set."""
        draw, number = random.Random(0), 0
        while not stop.wait(0.002):
            index, number = draw.randrange(self.COUNT), 1 - number
            if index == 0 and "a0" in self.store:
                self.store.delete("a0")
            else:
                self.store.put(f"a{index}", self.version(index, number), replace=True)

    def embeddings(self, session):
        """The embeddings of all texts by both versions of each adapter."""
        wanted = {}
        for index in range(self.COUNT):
            for number in range(2):
                session.bank.add("x", self.version(index, number))
                wanted[index, number] = session.embed(TEXTS, ["x"] * len(TEXTS))
        return wanted


def test_no_row_of_64_clients_is_anothers_while_adapters_change(tiny_bert, tmp_path):
    changing = ChangingStore(tmp_path, tiny_bert)
    engine = engine_of(tiny_bert, changing.path, slots=12, host_bytes=4000)
    loaded = load_base(str(tiny_bert))
    wanted = changing.embeddings(rankfold.Session(rankfold.Bank(loaded.model), loaded.processor))
    stop, statuses, gaps = threading.Event(), set(), []

    def one_client(seed):
        draw = random.Random(seed)
        for _ in range(4):
            index, rows = draw.randrange(changing.COUNT), draw.sample(range(len(TEXTS)), 2)
            body = {"model": f"a{index}", "input": [TEXTS[row] for row in rows]}
            status, _, answer = ask(server, "POST", "/v1/embeddings", body)
            statuses.add((status, index == 0))
            if status == 200:
                vectors = torch.tensor([item["embedding"] for item in answer["data"]])
                both = torch.stack([(vectors - wanted[index, n][rows]).abs().amax(1) for n in range(2)])
                gaps.append(float(both.amin(0).amax()))

    with served(engine) as server, ThreadPoolExecutor(64) as pool:
        thread = threading.Thread(target=changing.change, args=[stop])
        thread.start()
        try:
            list(pool.map(one_client, range(64)))
        finally:
            stop.set()
            thread.join()
    changing.store.close()
    assert len(gaps) > 200
    assert max(gaps) < 1e-4
    assert statuses <= {(200, False), (200, True), (404, True)}
