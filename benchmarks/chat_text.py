"""A chat text: questions of ours, each answered by the unquantized model itself, in its own chat template.

    python benchmarks/chat_text.py OUT.txt [--cache FOLDER]

What is answered is sampled (temperature 0.7, seed 0), so the text is what a user of the model would see. No published
conversations are needed, and quantized models are measured where the original one is at home.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from smollm2 import CACHE, fetch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = (
    "What is the difference between weather and climate?",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "How do I boil an egg so that the yolk stays soft?",
    "Explain to a child why the sky is blue.",
    "Give me five tips for sleeping better.",
    "What were the main causes of the First World War?",
    "Write a Python function that counts the vowels in a word.",
    "Who was Marie Curie, and what is she known for?",
    "Summarize how a bill becomes law in the United States.",
    "Write a polite e-mail that asks for a day off next Friday.",
    "What is photosynthesis?",
    "Compare cats and dogs as pets.",
    "How does a bicycle stay upright?",
    "Suggest a menu for a dinner with two vegetarians.",
    "What is inflation, and why does it matter?",
    "Describe the city of Venice to somebody who has never been there.",
    "How can I learn a new language on my own?",
    "Explain what a database index is.",
    "Write a poem about autumn.",
    "What should I look for when I buy a used car?",
    "How do vaccines work?",
    "Tell me about the Roman Empire.",
    "What are the planets of the solar system, in order?",
    "Give me a plan for getting fit in four weeks.",
    "Why do leaves change their colour?",
    "What is the capital of Australia, and why is it not Sydney?",
    "How do I remove a red wine stain from a shirt?",
    "Explain the difference between a virus and a bacterium.",
    "Write a dialogue between a customer and a baker.",
    "What is machine learning, in simple terms?",
    "How was the Great Wall of China built?",
    "Give me three ideas for a birthday present for my grandmother.",
    "What makes a good leader?",
    "How do tides come about?",
    "Explain the rules of chess in a few sentences.",
    "What are the benefits of reading every day?",
    "How does a refrigerator keep food cold?",
    "Write a product description for a wooden toy train.",
)
NEW_TOKENS, AT_ONCE, TEMPERATURE = 256, 8, 0.7


def main() -> None:
    """Write the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    folder = fetch(arguments.cache)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    text = ""
    for start in range(0, len(QUESTIONS), AT_ONCE):
        asked = [as_asked(tokenizer, question) for question in QUESTIONS[start : start + AT_ONCE]]
        made = continued(model, tokenizer, asked, NEW_TOKENS, do_sample=True, temperature=TEMPERATURE)
        said = tokenizer.batch_decode(made, skip_special_tokens=True)
        text += "".join(f"{question}{answer}<|im_end|>\n" for question, answer in zip(asked, said, strict=True))
    arguments.out.write_text(text, encoding="utf-8")
    print(len(tokenizer(text).input_ids), "tokens")


def as_asked(tokenizer: Any, question: str) -> str:
    """A question in the chat template, up to where the answer begins."""
    turn = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))


def continued(model: Any, tokenizer: Any, texts: list[str], new_tokens: int, **sampling: Any) -> list[Tensor]:
    """What a model adds to several texts at once, as token ids, without those behind its end."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    end = model.generation_config.eos_token_id
    made = model.generate(**batch, max_new_tokens=new_tokens, pad_token_id=end, **sampling)
    added = made[:, batch.input_ids.shape[1] :]
    return [row[: (row == end).nonzero()[0, 0]] if (row == end).any() else row for row in added]


if __name__ == "__main__":
    main()
