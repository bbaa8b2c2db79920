"""What vLLM's interface for LoRA resolvers is, as far as rankfold uses it: not vLLM, and it serves nothing.

Written after the pages of vLLM's `lora.resolver` and `lora.request`: a registry that resolvers are put into,
and a request that refuses what vLLM's does.
"""

import asyncio
from dataclasses import dataclass
from types import ModuleType


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

    def ask(self, base_model_name, lora_name):
        """Ask each resolver in turn, as vLLM's server does when a request names an unknown LoRA."""
        for resolver in self.resolvers.values():
            found = asyncio.run(resolver.resolve_lora(base_model_name, lora_name))
            if found is not None:
                return found
        return None


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
