"""A task kind in a package of its own: texts with any number of tags, its own columns, loss and metric."""

MODULE = """
import torch
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from rankfold.errors import DataError
from rankfold.models.base import TaskHead
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.kinds import Examples, TaskKind
from rankfold.tasks.kinds.labelled import Example, read_rows, text_of


class Tags(TaskKind):
    name = "tags"

    def columns(self, rows, named):
        return Columns(named.text or "text", None, named.label or "tags", named.group)

    def examples(self, tables, columns, hints):
        splits = read_rows(tables, lambda row, _id: row[columns.label])
        names = hints.learned_names or sorted({tag for tags in next(iter(splits.values())) for tag in tags})

        def example(row, name):
            unknown = sorted(set(row[columns.label]) - set(names))
            if unknown:
                raise DataError(f"the tag '{unknown[0]}' is not one of {', '.join(names)}; remove it.")
            label = [float(tag in row[columns.label]) for tag in names]
            return Example(name, text_of(row, columns.text), None, label)

        return Examples(tuple(names), read_rows(tables, example))

    def metrics(self, examples, named=()):
        return tuple(named) or ("exact_match", "hamming_error")

    def head(self, label_names=None):
        outputs = len(label_names or ("tag",))
        options = {"num_labels": outputs, "ignore_mismatched_sizes": True}
        return TaskHead(self.name, AutoModelForSequenceClassification, "SEQ_CLS", outputs, options, 64)

    def encode(self, learner, examples, *, training):
        texts = [example.text for example in examples]
        encoded = learner.processor(texts, truncation=True, max_length=learner.max_length)
        rows = [
            {name: values[index] for name, values in encoded.items()} for index in range(len(examples))
        ]
        if training:
            rows = [{**row, "labels": item.label} for row, item in zip(rows, examples)]
        return rows

    def collate(self, learner):
        pad = DataCollatorWithPadding(learner.processor)

        def collate(rows):
            batch = dict(pad([{name: row[name] for name in row if name != "labels"} for row in rows]))
            if "labels" in rows[0]:
                batch["labels"] = torch.tensor([row["labels"] for row in rows])
            return batch

        return collate

    def loss(self, model, batch):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return torch.nn.functional.binary_cross_entropy_with_logits(model(**inputs).logits, batch["labels"])

    def predict(self, learner, examples):
        rows = self.encode(learner, examples, training=False)
        predictions = [None] * len(rows)
        for indices, batch in learner.batches(rows, self.collate(learner)):
            for index, logits in zip(indices, learner.logits(batch)):
                predictions[index] = (logits > 0).float().tolist()
        return predictions

    def score(self, metrics, labels, predictions):
        pairs = list(zip(labels, predictions))
        exact = sum(label == prediction for label, prediction in pairs) / len(pairs)
        wrong = sum(a != b for label, prediction in pairs for a, b in zip(label, prediction))
        scores = {"exact_match": exact, "hamming_error": wrong / sum(len(label) for label in labels)}
        return {name: scores[name] for name in metrics}

    @staticmethod
    def majority(labels):
        return [float(2 * sum(column) > len(labels)) for column in zip(*labels)]

    baselines = {"majority": majority}


TAGS = Tags()
"""


def write_package(folder, name, module, entries, *, group="rankfold.task_kinds"):
    """Write a package as if it were installed in a folder.

    Args:
        folder: Goes on `sys.path`.
        name: Of the module and the package.
        module: The module's text.
        entries: What stands for the objects of the module, by the names of the entry points.
        group: The entry points' group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(module)
    installed = folder / f"{name}-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{entry} = {name}:{value}" for entry, value in entries.items()]
    (installed / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    return folder
