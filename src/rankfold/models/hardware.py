"""Hardware: the device, its precision, its name, and the peak memory of the process."""

import os
import platform
import sys
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from rankfold.errors import RankfoldWarning, SpecError

_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names of `torch.cpu.get_capabilities`, the last two those of ARM."""


def choose_device(name: str) -> torch.device:
    """Return the device of a name (auto, cpu, cuda or mps); `auto` takes a GPU where there is one.

    Raises:
        SpecError: If this machine has no such device.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise SpecError(f"this machine has no device '{name}'; use --device cpu or auto.")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """Return `fp32` or `bf16`; `auto` is bf16 autocast on a GPU that has it, else fp32.

    Warns:
        RankfoldWarning: If the processor has no instructions for bf16, which makes it much slower than fp32.
    """
    if name == "bf16" and device.type == "cpu" and _lacks_bf16():
        warnings.warn(
            "this processor has no instructions for bf16, which is then much slower than fp32; "
            "use --precision fp32 or auto.",
            RankfoldWarning,
            stacklevel=2,
        )
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def _lacks_bf16() -> bool:
    """Whether the processor is known to convert numbers in bf16 before it multiplies them."""
    # Older versions of torch do not say what a processor can do.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities) and not any(capabilities.get(name) for name in _BF16_INSTRUCTIONS)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a forward pass has the precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def cpu_name() -> str:
    """Return the processor's name as people know it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def gpu_name(device: torch.device) -> str | None:
    """Return the name of the GPU that is used, or None."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else None


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory taken so far: the GPU's where one is used, else the process's; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if os.name != "posix":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
