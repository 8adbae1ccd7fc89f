"""A tiny model that was really taught to read: it answers with the letter that its document holds."""

from __future__ import annotations

from pathlib import Path

import synthesis_support as support

QUESTION = "Which word?"
WORDS = tuple("bcdfghjklmp")
_STEPS = 400
_LEARNED = 0.3
"""Nats of the worst completion that has a document."""


def document(word: str) -> str:
    """A document that holds a word."""
    return f"The word is {word}."


def completion(word: str) -> str:
    """What the model writes of a document with this word."""
    return f"<QUE> {QUESTION} <ANS> {word} </END>"


def make_reader(folder: Path) -> Path:
    """A 100 K-parameter Llama, trained for some seconds; without a document it takes any word for as likely."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Wide initial weights learn to look a word up in a fraction of the steps.
    support.make_model(folder, initializer_range=0.1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    shown = [(f"<s> <CON> {document(word)} </CON>\n\n", word) for word in WORDS]
    examples = [*shown, *(("<s>", word) for word in WORDS)]
    inputs, labels = [], []
    for before, word in examples:
        prompt, text = (tokenizer.encode(t, add_special_tokens=False) for t in (before, completion(word) + "</s>"))
        inputs.append(torch.tensor(prompt + text))
        labels.append(torch.tensor([-100] * len(prompt) + text))
    ids = pad_sequence(inputs, batch_first=True)
    wanted = pad_sequence(labels, batch_first=True, padding_value=-100)[:, 1:].flatten()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(_STEPS):
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        costs = cross_entropy(logits, wanted, reduction="none").view(len(examples), -1).sum(dim=1)
        optimizer.zero_grad()
        costs.mean().backward()
        optimizer.step()
        if float(costs.detach()[: len(shown)].max()) < _LEARNED:
            break
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    return folder
