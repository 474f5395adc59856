"""A causal language model of Hugging Face transformers, by its Trainer: perplexity, of which less is better.

    python examples/causal_lm.py        # needs pip install 'espalier[huggingface]'

A small Llama with random weights, and drawn text: the next word follows from the two before it, with some noise.
The search keeps half of the multiply-adds. Perplexity on test texts stays within 0.4 of the dense network's.
"""

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import espalier

TEXTS, WORDS, LENGTH, TRIALS, EPOCHS = 512, 24, 32, 8, 2

torch.manual_seed(0)


def draw(count):
    """Texts of word numbers, which are their own labels."""
    texts = torch.randint(WORDS, (count, LENGTH))
    for place in range(2, LENGTH):
        follows = (3 * texts[:, place - 1] + texts[:, place - 2] + 1) % WORDS
        texts[:, place] = torch.where(torch.rand(count) < 0.9, follows, texts[:, place])
    return [{"input_ids": text, "labels": text} for text in texts]


class PerplexityTrainer(Trainer):
    """Tells the perplexity too, e to the power of the loss."""

    def evaluate(self, *args, **kwargs):
        """Of the eval dataset, or of the one that is given."""
        found = super().evaluate(*args, **kwargs)
        return found | {"eval_perplexity": math.exp(found["eval_loss"])}


config = LlamaConfig(
    vocab_size=WORDS,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=LENGTH,
)
network = LlamaForCausalLM(config)
trainer = PerplexityTrainer(
    network,
    TrainingArguments(
        "runs/causal_lm/trainer",
        num_train_epochs=10 * EPOCHS,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=128,
        learning_rate=5e-3,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=draw(TEXTS),
    eval_dataset=draw(128),
)
trainer.train()
found = espalier.search_widths(
    network,
    {"input_ids": torch.zeros(1, LENGTH, dtype=torch.long), "use_cache": False},
    espalier.HuggingFaceTask(trainer, metric="perplexity", greater_is_better=False, test_dataset=draw(128)),
    budget=espalier.Budget(macs=0.5),
    trials=TRIALS,
    epochs=EPOCHS,
    strengths=[0.0, 1e-3],
    workers=0,
    study="causal_lm",
)
print(found.network)
print(f"perplexity {found.result.dense.after:.3f} dense, {found.result.searched.after:.3f} at half the MACs")
