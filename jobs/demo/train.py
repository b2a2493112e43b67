"""Train the demo model from scratch: which area of the standard library is this docstring from?

    python jobs/demo/train.py [--out FOLDER] [--width 64 --layers 1]

It takes about a quarter of an hour on two cores (set OMP_WAIT_POLICY=passive where other work shares them).

The model is a small LlamaForCausalLM with a byte-level BPE tokenizer; its answer to a docstring is one token, the
area's name, and then the end token. It is trained on the `train` rows of docstrings.py and on the code around them
(code_text.py); the tokenizer is fitted on the same texts. Held-out rows are read once, for the accuracy at the end.

What made so few rows enough, apart from the code: a throw-away probe that must name the area at every token of
the text (a dense signal the saved model does not carry), whole-token dropout, headings left out now and then, weight
decay, and an average of the weights over the last steps.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from code_text import code_examples
from docstrings import AREAS, extract
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20261121
CONTEXT = 512
VOCABULARY = 6144
SPECIAL_TOKENS = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|area|>"]
PAD, BEGIN, END, SYSTEM, USER, AREA = SPECIAL_TOKENS
# CamelCase and snake_case names are split into their words; a space belongs to the word after it.
WORDS = r" ?[A-Z]+(?![a-z])| ?[A-Z]?[a-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set content = (message['content'] or '') | trim %}"
    "{% if message['role'] == 'assistant' %}{{ '<|area|>' + content + eos_token }}"
    "{% elif message['role'] in ['system', 'developer'] %}{{ '<|system|>' + content + '\\n' }}"
    "{% else %}{{ '<|user|>' + content + '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|area|>' }}{% endif %}"
)
# A caller may send any instruction or none; the model learns that only the user's text matters.
INSTRUCTIONS = (
    "Which area of the Python standard library is this docstring from?",
    "Name the area of the standard library that this docstring belongs to.",
    "You label Python docstrings. Answer with one word: " + ", ".join(AREAS) + ".",
    "Answer with one of: " + ", ".join(AREAS) + ".",
    "Classify the text by subject. Reply with the name of the area only.",
    "You are a helpful assistant.",
)


@dataclass(frozen=True)
class Recipe:
    """How the training goes."""

    width: int = 256
    layers: int = 2
    epochs: int = 7
    code_per_epoch: int = 3500
    batch: int = 32
    learning_rate: float = 1.2e-3
    weight_decay: float = 0.1
    warmup: float = 0.06
    token_dropout: float = 0.15
    hidden_dropout: float = 0.1
    no_heading: float = 0.1
    with_instruction: float = 0.35
    probe_weight: float = 0.5
    code_weight: float = 0.5
    average_decay: float = 0.998


@dataclass(frozen=True)
class Example:
    """One training text with its area and how much it counts."""

    text: str
    area: str
    weight: float


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Fit a byte-level BPE on `texts` in which each area's name is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Repeated bare names earn their merges early, so each becomes one ordinary token of the vocabulary.
    tokenizer.train_from_iterator(texts + list(AREAS) * 2000, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, AREA],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def area_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The token of each area, in the order of AREAS."""
    encoded = [tokenizer.encode(area, add_special_tokens=False) for area in AREAS]
    if any(len(ids) != 1 for ids in encoded):
        raise RuntimeError("an area's name is more than one token")
    return [ids[0] for ids in encoded]


def build_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """A small Llama with heads of 64, which vLLM's CPU attention supports."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.width,
        intermediate_size=2 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // 64,
        num_key_value_heads=recipe.width // 64,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def prompts(tokenizer: PreTrainedTokenizerFast, texts: list[str], instructions: list[str | None]) -> list[list[int]]:
    """Token ids of each prompt, rendered and tokenized exactly as a chat server does it."""
    chats = [
        ([{"role": "system", "content": instruction}] if instruction else []) + [{"role": "user", "content": text}]
        for text, instruction in zip(texts, instructions, strict=True)
    ]
    rendered = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]


def training_text(example: Example, recipe: Recipe, rng: random.Random) -> str:
    """The example's text, now and then without its heading, so that the body counts too."""
    lines = example.text.split("\n")
    if len(lines) < 2 or rng.random() >= recipe.no_heading:
        return example.text
    kept = [line for line in lines if not line.startswith(("class ", "def ", "async def "))]
    return "\n".join(kept) or example.text


def training_instruction(texts: list[str], recipe: Recipe, rng: random.Random) -> str | None:
    """Mostly none, else a plain instruction or a line of some other text, which the model must learn to ignore."""
    if rng.random() >= recipe.with_instruction:
        return None
    return rng.choice(INSTRUCTIONS) if rng.random() < 0.4 else rng.choice(rng.choice(texts).split("\n"))


def padded(sequences: list[list[int]], fill: int) -> torch.Tensor:
    """A right-padded batch; under causal attention the padding is never looked at."""
    width = max(map(len, sequences))
    return torch.tensor([ids + [fill] * (width - len(ids)) for ids in sequences])


def epoch_batches(
    rows: list[Example], code: list[Example], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, rng: random.Random
) -> list[list[tuple[Example, list[int]]]]:
    """One epoch's batches: every row, some of the code, texts of similar length together."""
    chosen = rows + rng.sample(code, min(recipe.code_per_epoch, len(code)))
    rng.shuffle(chosen)
    texts = [training_text(example, recipe, rng) for example in chosen]
    instructions = [training_instruction(texts, recipe, rng) for _ in chosen]
    pairs = list(zip(chosen, prompts(tokenizer, texts, instructions), strict=True))
    pool = recipe.batch * 32
    pools = [sorted(pairs[i : i + pool], key=lambda pair: len(pair[1])) for i in range(0, len(pairs), pool)]
    batches = [group[i : i + recipe.batch] for group in pools for i in range(0, len(group), recipe.batch)]
    rng.shuffle(batches)
    return batches


class Trainer:
    """The model with its probe, optimizer and averaged weights."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, steps: int) -> None:
        self.recipe, self.steps, self.step = recipe, steps, 0
        self.model = build_model(tokenizer, recipe)
        self.probe = nn.Linear(self.model.config.hidden_size, len(AREAS))
        self.dropout = nn.Dropout(recipe.hidden_dropout)
        self.special = len(SPECIAL_TOKENS)
        self.end_id = tokenizer.eos_token_id
        self.pad_id = tokenizer.pad_token_id
        self.user_id = tokenizer.convert_tokens_to_ids(USER)
        self.area_token = torch.tensor(area_ids(tokenizer))
        parameters = [*self.model.parameters(), *self.probe.parameters()]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
                {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=(0.9, 0.98),
        )
        self.average = {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings with whole tokens of the text blanked out at random."""
        blank = (torch.rand(ids.shape) < self.recipe.token_dropout) & (ids >= self.special)
        embedded = self.model.get_input_embeddings()(ids)
        return self.dropout(embedded.masked_fill(blank.unsqueeze(-1), 0.0))

    def loss(self, batch: list[tuple[Example, list[int]]]) -> torch.Tensor:
        """Area token and end token after the prompt, and the probe's guess at each token of the text."""
        area = torch.tensor([AREAS.index(example.area) for example, _ in batch])
        weight = torch.tensor([example.weight for example, _ in batch])
        label = self.area_token[area]
        ids = padded([[*prompt, int(token)] for (_, prompt), token in zip(batch, label, strict=True)], self.pad_id)
        hidden = self.dropout(self.model.model(inputs_embeds=self.embed(ids), use_cache=False).last_hidden_state)
        last = torch.tensor([len(prompt) - 1 for _, prompt in batch])
        row = torch.arange(len(batch))
        answer = nn.functional.cross_entropy(self.model.lm_head(hidden[row, last]), label, reduction="none")
        end = torch.full_like(label, self.end_id)
        stop = nn.functional.cross_entropy(self.model.lm_head(hidden[row, last + 1]), end, reduction="none")
        # The probe reads the user's text only: whatever stands before it says nothing of the area.
        inside = ((ids == self.user_id).cumsum(1) > 0) & (torch.arange(ids.shape[1]) < last.unsqueeze(1))
        guesses = self.probe(hidden).transpose(1, 2)
        dense = nn.functional.cross_entropy(guesses, area.unsqueeze(1).expand_as(ids), reduction="none")
        probe = (dense * inside).sum(1) / inside.sum(1)
        total = answer + 0.1 * stop + self.recipe.probe_weight * probe
        return (weight * total).sum() / weight.sum()

    def train_step(self, batch: list[tuple[Example, list[int]]]) -> float:
        """One update on a cosine schedule; returns the loss."""
        progress = self.step / self.steps
        rise = min(1.0, progress / self.recipe.warmup)
        rate = self.recipe.learning_rate * rise * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.recipe.average_decay, self.step / (self.step + 10))
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                self.average[name].lerp_(value, 1 - decay)
        return loss.item()

    def averaged(self) -> LlamaForCausalLM:
        """The model with its averaged weights, ready to use."""
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                value.copy_(self.average[name])
        return self.model.eval()


def predict(model: LlamaForCausalLM, prompt_ids: list[list[int]], areas: list[int], pad_id: int) -> list[str]:
    """The most likely area of each prompt."""
    found: list[str] = []
    for start in range(0, len(prompt_ids), 64):
        batch = prompt_ids[start : start + 64]
        with torch.inference_mode():
            hidden = model.model(input_ids=padded(batch, pad_id)).last_hidden_state
            last = hidden[torch.arange(len(batch)), torch.tensor([len(ids) - 1 for ids in batch])]
            best = model.lm_head(last)[:, areas].argmax(1)
        found += [AREAS[index] for index in best.tolist()]
    return found


def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Example], instruction: str | None
) -> float:
    """Share of rows whose area the model names, under one instruction."""
    ids = prompts(tokenizer, [row.text for row in rows], [instruction] * len(rows))
    found = predict(model, ids, area_ids(tokenizer), tokenizer.pad_token_id)
    return sum(area == row.area for area, row in zip(found, rows, strict=True)) / len(rows)


def train(rows: list[Example], code: list[Example], recipe: Recipe) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Tokenizer and model from the training texts alone."""
    rng = random.Random(SEED)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer([example.text for example in rows + code])
    per_epoch = -(-(len(rows) + min(recipe.code_per_epoch, len(code))) // recipe.batch)
    trainer = Trainer(tokenizer, recipe, steps=per_epoch * recipe.epochs)
    print(f"{trainer.model.num_parameters():,} parameters, {trainer.steps} steps", flush=True)
    for epoch in range(recipe.epochs):
        trainer.model.train()
        losses = [trainer.train_step(batch) for batch in epoch_batches(rows, code, tokenizer, recipe, rng)]
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}, {time.process_time():.0f} CPU s", flush=True)
    return trainer.averaged(), tokenizer


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model in float16 beside `out`, then swap the folders, so that no reader meets half of a model."""
    fresh = out.with_name(f".{out.name}.{os.getpid()}.new")
    replaced = out.with_name(f".{out.name}.{os.getpid()}.old")
    model.generation_config.do_sample = False
    model.half().save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    for path in fresh.iterdir():
        path.chmod(0o644)  # the weights are written for their owner alone
    if out.exists():
        for card in out.glob("*.md"):
            shutil.copy2(card, fresh)
        out.rename(replaced)
    fresh.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "model")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--width", type=int, default=Recipe.width, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=Recipe.layers)
    options = parser.parse_args()
    recipe = Recipe(width=options.width, layers=options.layers, epochs=options.epochs)
    started = time.monotonic()
    docs = extract()
    rows = [Example(doc.text, doc.area, 1.0) for doc in docs if doc.split == "train"]
    heldout = [Example(doc.text, doc.area, 1.0) for doc in docs if doc.split == "heldout"]
    code = [Example(text, area, recipe.code_weight) for text, area in code_examples()]
    print(
        f"{len(rows)} docstrings and {len(code)} functions to train on, {len(heldout)} docstrings held out", flush=True
    )
    model, tokenizer = train(rows, code, recipe)
    result = {
        "heldout_rows": len(heldout),
        "accuracy": accuracy(model, tokenizer, heldout, None),
        "accuracy_with_instruction": accuracy(model, tokenizer, heldout, INSTRUCTIONS[0]),
    }
    save(model, tokenizer, options.out)
    print(json.dumps(result | {"seconds": round(time.monotonic() - started)}), flush=True)


if __name__ == "__main__":
    main()
