"""A text classifier of Hugging Face transformers, by its Trainer.

    python examples/text_classifier.py        # needs pip install 'espalier[huggingface]'

A small BERT with random weights, and drawn texts: sixteen words of fifty, of which some are good and some bad, and
a "not" turns the word behind it round. The label says whether the good ones are more. The search keeps half of the
multiply-adds. Accuracy on test texts stays within 4 points of the dense network's.
"""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import espalier

TEXTS, WORDS, LENGTH, NOT, TRIALS, EPOCHS = 1536, 50, 16, 2, 12, 2

torch.manual_seed(0)


def draw(count):
    """Texts of word numbers, as a tokenizer gives them."""
    words = torch.randint(NOT, WORDS, (count, LENGTH))
    meaning = (words > 38).int() - ((words > 26) & (words <= 38)).int()
    turned = torch.cat([torch.zeros(count, 1, dtype=torch.bool), words[:, :-1] == NOT], 1)
    good = (meaning * torch.where(turned, -1, 1)).sum(1) > 0
    return [
        {"input_ids": text, "attention_mask": torch.ones_like(text), "labels": label}
        for text, label in zip(words, good.long(), strict=True)
    ]


def accuracy(prediction):
    """Percent of texts whose label is found."""
    return {"accuracy": 100 * float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


config = BertConfig(
    vocab_size=WORDS,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=LENGTH,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
network = BertForSequenceClassification(config)
trainer = Trainer(
    network,
    TrainingArguments(
        "runs/text_classifier/trainer",
        num_train_epochs=6 * EPOCHS,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        learning_rate=3e-3,
        weight_decay=0.01,
        warmup_steps=10,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=draw(TEXTS),
    eval_dataset=draw(512),
    compute_metrics=accuracy,
)
trainer.train()
found = espalier.search_widths(
    network,
    {"input_ids": torch.zeros(1, LENGTH, dtype=torch.long)},
    espalier.HuggingFaceTask(trainer, metric="accuracy", unit="%", test_dataset=draw(512)),
    budget=espalier.Budget(macs=0.5),
    trials=TRIALS,
    epochs=EPOCHS,
    strengths=[0.0, 1e-3],
    workers=0,
    study="text_classifier",
)
print(found.network)
print(f"accuracy {found.result.dense.after:.2f} % dense, {found.result.searched.after:.2f} at half the MACs")
