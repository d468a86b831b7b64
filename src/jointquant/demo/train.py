"""Train the demo model from scratch: ``python -m jointquant.demo.train --out DIR``.

The result is an ordinary Llama checkpoint of some three million parameters in bfloat16, with its
tokenizer, plus ``training.json`` with the figures of the run, and the two texts ``calibration.txt`` and
``heldout.txt``.

The text and the order of its documents come from the Python that runs the script, so another Python
release gives another model. The calibration text (whole documents of the training part) and the held-out
text (whole documents that training never sees) are therefore kept as files too.

Tokenizer: byte-level BPE with ``<s>`` and ``</s>``. Encoding adds **neither** of them, so that a text cut
into windows is the same tokens with and without ``add_special_tokens``; a quarter of the training windows
start with ``<s>`` all the same, so the model works with it in front, too.

Residual basis: ``--principal-axes`` applies, after training, a change of basis that leaves the function
of the model as it is. The weights of all RMSNorms are fused into the layers that read them, and the
residual stream is rotated onto the principal axes of its activations over training text. The variance
then sits in few channels, as in the outlier channels of large models, which is what makes four-bit
activations hard and rotations worthwhile. The output head can then no longer share the embedding's
weights. ``training.json`` says which basis was saved; the shipped model has the principal axes and is
otherwise what the default options give.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from jointquant.demo import corpus

BOS = "<s>"
EOS = "</s>"
VOCABULARY = 2048
WINDOW = 256
"""Tokens in a window, for training and for evaluation."""

TEXT_CHARACTERS = 175_000
"""Size of the held-out text and of the calibration text."""

CONFIG: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
"""The architecture; every size a rotation acts on is a power of two times 1 or 12 (192 = 16 * 12)."""


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=CONFIG["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    """Return the token ids of a text of any length as one vector."""
    return torch.tensor(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def windows(ids: torch.Tensor) -> torch.Tensor:
    """Cut a vector of token ids into whole, non-overlapping windows."""
    count = len(ids) // WINDOW
    return ids[: count * WINDOW].view(count, WINDOW)


@torch.no_grad()
def perplexity(model: Any, ids: torch.Tensor, batch: int = 16) -> float:
    """Return exp of the mean negative log-likelihood over separate windows, all but their first token."""
    model.eval()
    total, count = 0.0, 0
    for part in windows(ids).split(batch):
        logits = model(input_ids=part).logits[:, :-1].float()
        targets = part[:, 1:]
        total += nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        count += targets.numel()
    return math.exp(total / count)


def unigram_perplexity(train: torch.Tensor, heldout: torch.Tensor) -> float:
    """Return the perplexity of training token counts (add-one) on what :func:`perplexity` predicts."""
    counts = torch.bincount(train, minlength=VOCABULARY).double() + 1
    log_probability = (counts / counts.sum()).log()
    return math.exp(-log_probability[windows(heldout)[:, 1:]].mean().item())


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        **CONFIG,
    )
    return LlamaForCausalLM(config)


def batches(ids: torch.Tensor, batch: int, bos: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield batches of windows from random places, a quarter of them starting with ``<s>``."""
    span = torch.arange(WINDOW)
    while True:
        start = torch.randint(len(ids) - WINDOW, (batch, 1), generator=generator)
        part = ids[start + span]
        part[torch.rand(batch, generator=generator) < 0.25, 0] = bos
        yield part


def learning_rate(step: int, warmup: int, done: float, peak: float) -> float:
    """Return the rate of a step: linear warm-up, and a cosine in the part done down to a fiftieth."""
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))


def fit(
    model: LlamaForCausalLM, train: torch.Tensor, heldout: torch.Tensor, options: argparse.Namespace
) -> list[dict[str, float]]:
    """Train the model in place and return the held-out perplexities on the way."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(options.seed)
    source = batches(train, options.batch, int(model.config.bos_token_id or 0), generator)
    history: list[dict[str, float]] = []
    began = time.monotonic()
    for step in range(options.steps):
        done = (step - options.warmup) / max(1, options.steps - options.warmup)
        done = max(0.0, done, (time.monotonic() - began) / (60 * options.minutes))
        last = done >= 1 or step + 1 == options.steps
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.warmup, min(done, 1.0), options.lr)
        part = next(source)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            logits = model(input_ids=part).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), part[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % options.every == 0 or last:
            with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
                ppl = perplexity(model, heldout)
            history.append({"step": step + 1, "heldout_perplexity": round(ppl, 3)})
            rate = (step + 1) * part.numel() / (time.monotonic() - began)
            print(
                f"step {step + 1}/{options.steps}  train loss {loss.item():.3f}  "
                f"held-out perplexity {ppl:.2f}  {rate:.0f} tokens/s",
                flush=True,
            )
        if last:
            break
    return history


def fused(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return a float64 copy with RMSNorm weights fused into their readers and a head of its own."""
    config = LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": False})
    copy: LlamaForCausalLM = LlamaForCausalLM(config)
    copy.double()
    state = {name: value.double() for name, value in model.state_dict().items()}
    copy.load_state_dict(state)
    with torch.no_grad():
        for layer in copy.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                linear.weight *= layer.input_layernorm.weight
            for linear in (mlp.gate_proj, mlp.up_proj):
                linear.weight *= layer.post_attention_layernorm.weight
            layer.input_layernorm.weight.fill_(1)
            layer.post_attention_layernorm.weight.fill_(1)
        copy.lm_head.weight *= copy.model.norm.weight
        copy.model.norm.weight.fill_(1)
    copy.eval()
    return copy


@torch.no_grad()
def to_principal_axes(model: LlamaForCausalLM, ids: torch.Tensor) -> LlamaForCausalLM:
    """Return the same function, the residual stream on the principal axes of its activations."""
    model = fused(model)
    hidden = model.config.hidden_size
    covariance = torch.zeros(hidden, hidden, dtype=torch.float64)

    def collect(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        rows = output.flatten(0, 1)
        covariance.add_(rows.T @ rows)

    hooks = []
    for layer in model.model.layers:
        hooks.append(layer.input_layernorm.register_forward_hook(collect))
        hooks.append(layer.post_attention_layernorm.register_forward_hook(collect))
    for part in windows(ids).split(16):
        model(input_ids=part)
    for hook in hooks:
        hook.remove()

    axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            reader.weight.copy_(reader.weight @ axes)
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.copy_(axes.T @ writer.weight)
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ axes)
    model.lm_head.weight.copy_(model.lm_head.weight @ axes)
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model and the tokenizer to a folder, in bfloat16 and free of paths."""
    model.bfloat16()
    model.config._name_or_path = ""
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m jointquant.demo.train", description="Train the demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--text", type=Path, help="folder for calibration.txt and heldout.txt (default: --out)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end earlier, the schedule with it")
    parser.add_argument("--batch", type=int, default=16, help="windows in a batch")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=100, help="steps of linear warm-up")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of products; float32 is faster where the processor has no instructions for bfloat16",
    )
    parser.add_argument("--principal-axes", action="store_true", help="save in the basis of principal axes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Collect the text, train, evaluate and write everything."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    documents = corpus.python_documents()
    parts = corpus.split(documents, TEXT_CHARACTERS, options.seed)
    calibration = corpus.take(corpus.shuffled(parts.train, options.seed + 1), TEXT_CHARACTERS)
    tokenizer = train_tokenizer(parts.train)
    train = encode(tokenizer, corpus.join(parts.train))
    heldout = encode(tokenizer, corpus.join(parts.heldout))
    unigram = unigram_perplexity(train, heldout)
    print(f"{len(parts.train)} documents, {len(train)} tokens for training; ", end="")
    print(f"{len(parts.heldout)} documents, {len(heldout)} tokens held out; unigram perplexity {unigram:.1f}")

    model = new_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters", flush=True)
    began = time.monotonic()
    history = fit(model, train, heldout, options)
    seconds = time.monotonic() - began
    steps = int(history[-1]["step"])

    model.eval()
    if options.principal_axes:
        model = to_principal_axes(model, train[: 64 * WINDOW])
        parameters = sum(p.numel() for p in model.parameters())
    save(model, tokenizer, options.out)
    saved = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.bfloat16).float()
    final = perplexity(saved, heldout)
    figures = {
        "heldout_perplexity": round(final, 4),
        "heldout_perplexity_unigram": round(unigram, 4),
        "parameters": parameters,
        "residual_basis": "principal axes" if options.principal_axes else "as trained",
        "train_documents": len(parts.train),
        "train_tokens": len(train),
        "heldout_documents": len(parts.heldout),
        "heldout_tokens": len(heldout),
        "window": WINDOW,
        "steps": steps,
        "tokens_seen": steps * options.batch * WINDOW,
        "batch": options.batch,
        "learning_rate": options.lr,
        "warmup": options.warmup,
        "weight_decay": options.weight_decay,
        "seed": options.seed,
        "seconds": round(seconds),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "history": history,
    }
    (options.out / "training.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    text = options.text or options.out
    (text / "calibration.txt").write_text(corpus.join(calibration), encoding="utf-8")
    (text / "heldout.txt").write_text(corpus.join(parts.heldout), encoding="utf-8")
    print(f"held-out perplexity {final:.3f} in bfloat16 weights, written to {options.out}")


if __name__ == "__main__":
    main()
