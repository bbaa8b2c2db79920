"""How far merging moves a model whose base is quantised to nf4, for every method without a router.

The model is a BERT with two layers of width 64; each adapter takes ten steps first. Run it from the
repository's folder with bitsandbytes installed: `PYTHONPATH=. python benchmarks/merge_quantised.py`
"""

import tempfile
import warnings

from transformers import BertForSequenceClassification, BitsAndBytesConfig

from tests.integration.models import FOLDABLE, adapted, bert, config_of, scores, train
from tests.support.tolerance import relative_rms

SEEDS = range(3)


def main() -> None:
    """Print for each method how far the scores move, and the share of a layer's change that is lost."""
    warnings.simplefilter("ignore")
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["classifier"]
    )
    with tempfile.TemporaryDirectory() as folder:
        bert(hidden_size=64, intermediate_size=128).save_pretrained(folder)
        for method in FOLDABLE:
            of_scores: list[float] = []
            of_change: list[float] = []
            for seed in SEEDS:
                base = BertForSequenceClassification.from_pretrained(
                    folder, quantization_config=quantisation, device_map="cpu"
                )
                model = adapted(config_of(method, seed=seed, init_weights=True), base)
                train(model, steps=10)
                live = scores(model.eval())
                model.merge_adapter()
                of_scores.append(relative_rms(scores(model), live))
                drifts = (getattr(layer, "merge_drift", None) for layer in model.modules())
                of_change += [drift for drift in drifts if drift is not None]
            print(
                f"{method}: scores {max(of_scores):.1%}, change of a layer {max(of_change):.0%}", flush=True
            )


if __name__ == "__main__":
    main()
