"""The seam to PEFT in one short run: every method trains, is saved, loaded, merged and mixed.

Run as a program, so that it can be run against another version of PEFT than the tests'.
"""

import sys
import tempfile
from pathlib import Path

import peft
import torch

from tests.integration.models import FOLDABLE, METHODS, adapted, bert, config_of, scores, train

NAMES = ["first", "second", "__base__"] * 2


def check(method: str, folder: Path) -> None:
    """Take one method through its life on a small BERT.

    Raises:
        AssertionError: If a step does not give what it should.
    """
    model = adapted(config_of(method, task_type=None), adapter_name="first")
    losses = train(model, steps=5)
    assert min(losses) < losses[0], "does not learn"
    expected = scores(model)
    model.save_pretrained(folder)

    loaded = peft.PeftModel.from_pretrained(bert(), folder / "first", adapter_name="first").eval()
    assert torch.equal(scores(loaded), expected), "is not loaded as it was saved"
    loaded.add_adapter("second", config_of("lora", task_type=None))
    mixed = scores(loaded, adapter_names=NAMES)
    assert torch.allclose(mixed[::3], expected[::3], atol=1e-5), "differs in a mixed batch"
    assert torch.allclose(mixed[2::3], scores(bert())[2::3], atol=1e-5), "changes the base in a mixed batch"

    if method not in FOLDABLE:
        return
    loaded.merge_adapter(["first"])
    assert torch.allclose(scores(loaded), expected, atol=1e-5), "differs when merged"
    loaded.unmerge_adapter()
    assert torch.equal(scores(loaded), expected), "is not unmerged"
    assert torch.equal(scores(loaded.unload()), scores(bert())), "is not unloaded"


def main() -> None:
    """Check every method, then print PEFT's version as the last word."""
    torch.set_num_threads(1)
    for method in METHODS:
        with tempfile.TemporaryDirectory() as folder:
            check(method, Path(folder))
    sys.stdout.write(peft.__version__)


if __name__ == "__main__":
    main()
