"""An embedding model fine-tuned with sentence-transformers and its trainer.

Needs `pip install sentence-transformers`; run it with `python examples/with_sentence_transformers.py`.
"""

import tempfile

import datasets
import sentence_transformers
import torch
import transformers
from sentence_transformers import losses, models
from tiny import WORDS, questions, tiny_tokenizer

import rankfold


def embedding_model(folder: str) -> sentence_transformers.SentenceTransformer:
    """Return a small random encoder with mean pooling."""
    size = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.05,
    )
    transformers.BertModel(size).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    encoder = models.Transformer(folder)
    return sentence_transformers.SentenceTransformer(
        modules=[encoder, models.Pooling(encoder.get_word_embedding_dimension())], device="cpu"
    )


def main() -> None:
    """Pull questions towards their answers, and print how the similarity of the right pairs grew."""
    torch.manual_seed(0)
    triples = [
        {"anchor": question, "positive": right, "negative": wrong} for question, right, wrong in questions()
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = embedding_model(folder)
        model.add_adapter(
            rankfold.config("relayed_lora", r=8, k=4, zero="up", target_modules=["query", "value"])
        )

        def margin() -> float:
            texts = {name: [triple[name] for triple in triples] for name in triples[0]}
            anchors, rights, wrongs = (model.encode(part, convert_to_tensor=True) for part in texts.values())
            nearer = torch.cosine_similarity(anchors, rights) - torch.cosine_similarity(anchors, wrongs)
            return float(nearer.mean())

        before = margin()
        trainer = sentence_transformers.SentenceTransformerTrainer(
            model,
            sentence_transformers.SentenceTransformerTrainingArguments(
                folder,
                max_steps=100,
                per_device_train_batch_size=6,
                learning_rate=1e-2,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=datasets.Dataset.from_list(triples),
            loss=losses.TripletLoss(model, losses.TripletDistanceMetric.COSINE, triplet_margin=0.5),
        )
        trainer.train()
        print(f"the right answer is nearer by {before:.2f} -> {margin():.2f}")
        model.save_pretrained(f"{folder}/tuned")


if __name__ == "__main__":
    main()
