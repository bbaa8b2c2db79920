"""What vLLM's interface for LoRA resolvers is, as far as rankfold uses it: not vLLM, and it serves nothing.

Written after the behaviour of vLLM 0.32: a registry that resolvers are put into, a request that refuses what
vLLM's does, and a server that asks a resolver once for a name and remembers the answer.
"""

import asyncio
import json
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace


@dataclass
class LoRARequest:
    """What vLLM loads an adapter by."""

    lora_name: str
    lora_int_id: int
    lora_path: str

    def __post_init__(self):
        if self.lora_int_id < 1 or self.lora_int_id >= 2**63:
            raise ValueError(f"id must be a positive 64-bit number, got {self.lora_int_id}")
        if not self.lora_path:
            raise ValueError("path is empty")


class Registry:
    """The resolvers that plugins have registered, by name."""

    def __init__(self):
        self.resolvers = {}

    def register_resolver(self, resolver_name, resolver):
        """Take a resolver."""
        self.resolvers[resolver_name] = resolver

    def get_supported_resolvers(self):
        """Return the names of all resolvers."""
        return self.resolvers.keys()

    def get_resolver(self, resolver_name):
        """Return a resolver."""
        return self.resolvers[resolver_name]


class Server:
    """A server of vLLM, without an engine: it answers with the request of the adapter that it would run.

    Args:
        registry: The registry.
        base: The model that it was started with.
        middleware: The class of `--middleware`; None without.
        most_rank: `--max-lora-rank`.
    """

    def __init__(self, registry, base, middleware, most_rank=64):
        self.registry, self.base = registry, base
        self.lora_requests, self.count = {"static": LoRARequest("static", 1, "/static")}, 1
        self.loading = asyncio.Event()
        self.pause = None
        lora = SimpleNamespace(max_lora_rank=most_rank)
        self.state = SimpleNamespace(
            openai_serving_models=self, vllm_config=SimpleNamespace(lora_config=lora)
        )
        self.app = self.serve if middleware is None else middleware(self.serve)

    async def resolve_lora(self, name):
        """Ask each resolver in turn, as vLLM does when a request names an unknown LoRA."""
        if name in self.lora_requests:
            return self.lora_requests[name]
        for resolver in self.registry.resolvers.values():
            request = await resolver.resolve_lora(self.base, name)
            if request is not None:
                self.count += 1
                request.lora_int_id = self.count
                self.lora_requests[name] = request
                return request
        return None

    async def serve(self, scope, receive, send):
        """Answer a request."""
        if scope["path"] == "/v1/models":
            own = [request.lora_name for request in self.lora_requests.values()]
            content = {"data": [{"id": name, "root": self.base} for name in ("served", *own)]}
        else:
            name = json.loads((await receive())["body"])["model"]
            if name not in self.lora_requests and await self.resolve_lora(name) is None:
                raise LookupError(name)
            if self.pause is not None:
                self.loading.set()
                await self.pause.wait()
            # vLLM looks a second time.
            assert name in self.lora_requests
            content = vars(self.lora_requests[name])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"?")]})
        for part in (json.dumps(content).encode(), b""):
            await send({"type": "http.response.body", "body": part, "more_body": part != b""})

    async def call(self, path, body=b""):
        """Send one request through the middleware and return the JSON of the answer."""
        parts = []

        async def receive():
            return {"type": "http.request", "body": body}

        async def send(message):
            parts.append(message)

        scope = {"type": "http", "method": "POST" if body else "GET", "path": path, "app": self}
        await asyncio.create_task(self.app(scope, receive, send))
        content = b"".join(part.get("body", b"") for part in parts)
        lengths = dict(parts[0]["headers"])
        assert path != "/v1/models" or lengths[b"content-length"] in (b"?", b"%d" % len(content))
        return json.loads(content)

    async def complete(self, name):
        """Return vLLM's request of the adapter that answers."""
        return LoRARequest(**await self.call("/v1/completions", json.dumps({"model": name}).encode()))

    def ask(self, name):
        """Return the same, from a program that waits for it."""
        return asyncio.run(self.complete(name))

    def names(self):
        """Return the names that the server lists."""
        return [card["id"] for card in asyncio.run(self.call("/v1/models"))["data"]]


def modules(registry):
    """Return the modules that a program with vLLM would have."""
    resolver, request = ModuleType("vllm.lora.resolver"), ModuleType("vllm.lora.request")
    resolver.LoRAResolverRegistry = registry
    request.LoRARequest = LoRARequest
    return {
        "vllm": ModuleType("vllm"),
        "vllm.lora": ModuleType("vllm.lora"),
        "vllm.lora.resolver": resolver,
        "vllm.lora.request": request,
    }
