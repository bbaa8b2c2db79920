"""EleutherAI's lm-evaluation-harness on a model with an adapter, through its own Python interface.

Needs `pip install rankfold[harness]`; run it with `python examples/with_lm_eval.py`. For a saved adapter,
`rankfold evaluate ADAPTER --harness hellaswag` is all it takes.
"""

import json
import tempfile
from pathlib import Path

import peft
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny import COLOURS, questions, tiny_llama, tiny_tokenizer

import rankfold

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: {colours}
doc_to_target: answer
target_delimiter: " "
metric_list: [{{metric: acc}}]
"""


def write_task(folder: Path) -> None:
    """Write the questions, and how the harness reads them."""
    rows = folder / "rows.jsonl"
    answers = {question: right for question, right, _ in questions()}
    rows.write_text("".join(f"{json.dumps({'question': q, 'answer': a})}\n" for q, a in answers.items()))
    (folder / "colours.yaml").write_text(TASK.format(rows=rows, colours=json.dumps(COLOURS)))


def main() -> None:
    """Learn the answers, and print the harness's accuracy before and after."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = rankfold.config("tlora", r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_llama(), config)
    batch = tokenizer([f"{question} {right}" for question, right, _ in questions()], return_tensors="pt")
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder))
        manager = TaskManager(include_path=folder, include_defaults=False)

        def accuracy() -> float:
            harness_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
            scores = simple_evaluate(
                harness_model, tasks=["colours"], task_manager=manager, bootstrap_iters=0
            )
            return scores["results"]["colours"]["acc,none"]

        before = accuracy()
        optimizer = rankfold.optimizer(model, torch.optim.AdamW, lr=1e-2)
        for _ in range(40):
            model(**batch, labels=batch["input_ids"]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"accuracy {before:.2f} -> {accuracy():.2f}")


if __name__ == "__main__":
    main()
