"""Preference tuning with TRL's DPOTrainer; the base without the adapter is the reference model.

Needs `pip install trl`; run it with `python examples/with_dpo_trainer.py`.
"""

import tempfile

import datasets
import torch
import trl
from tiny import questions, tiny_llama, tiny_tokenizer

import rankfold


def main() -> None:
    """Train on pairs of a chosen and a rejected answer, and print how often the chosen one is preferred."""
    torch.manual_seed(0)
    pairs = [
        {"prompt": question, "chosen": f" {right}", "rejected": f" {wrong}"}
        for question, right, wrong in questions()
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.DPOTrainer(
            tiny_llama(),
            args=trl.DPOConfig(
                folder,
                max_steps=30,
                per_device_train_batch_size=6,
                learning_rate=1e-2,
                logging_steps=5,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
                dataloader_pin_memory=False,
            ),
            train_dataset=datasets.Dataset.from_list(pairs),
            processing_class=tiny_tokenizer(),
            peft_config=rankfold.config(
                "relayed_lora", target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
            ),
        )
        trainer.train()
    preferred = [
        entry["rewards/accuracies"] for entry in trainer.state.log_history if "rewards/accuracies" in entry
    ]
    print(f"chosen answers preferred: {float(preferred[0]):.2f} -> {float(preferred[-1]):.2f}")


if __name__ == "__main__":
    main()
