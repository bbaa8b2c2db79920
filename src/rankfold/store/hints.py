"""What the bytes of an adapter suggest without proving it."""

import math

import torch
from torch import Tensor

from rankfold.store.contents import Contents

# Some thousand numbers of an even distribution come this close to its ends.
_NEAR_END = 0.98


def hints(contents: Contents) -> tuple[str, ...]:
    """Return sentences for the user."""
    found: list[str] = []
    local = sum(
        contents.file.entries[place].bytes
        for proof in contents.proofs
        if not proof.recipe.portable
        for place in proof.recipe.tensors
    )
    if local:
        found.append(
            f"{local:,} bytes follow from a seed on a processor like this one only; "
            "--shrink leaves them out with --regenerate"
        )
    if contents.config.peft_type == "LORA" and _downs_look_untouched(contents):
        found.append(
            "every lora_A still lies within the ends of its first draw, as if it had been frozen (LoRA-FA); "
            "the file does not say so, and no seed, so it counts as learned"
        )
    return tuple(found)


def _downs_look_untouched(contents: Contents) -> bool:
    """Return whether all down factors fill PEFT's draw, ±1/√in, and no more, while the up factors moved."""
    downs, ups = ([t for n, t in contents.file.tensors.items() if f".lora_{f}." in n] for f in "AB")
    return bool(downs) and all(map(_fills_its_draw, downs)) and any(bool(up.count_nonzero()) for up in ups)


def _fills_its_draw(down: Tensor) -> bool:
    if not down.ndim or not down.numel():
        return False
    end = torch.tensor(1 / math.sqrt(down[0].numel()), dtype=down.dtype)
    return bool(_NEAR_END * end <= down.abs().max() <= end)
