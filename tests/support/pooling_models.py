"""Random checkpoints of encoders with heads, and what `transformers` computes with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TEXT = "def read self a file alpha beta gamma delta the sum of all numbers x list"
NAMES = {0: "billing", 1: "outage", 2: "other"}
_SIZE = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.3}


def make_checkpoints(folder: Path) -> None:
    """`bert` and `modernbert`, classifiers of three labels, and the cross-encoders `reranker` and `xlmr`."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: i for i, word in enumerate([*VOCABULARY, *dict.fromkeys(TEXT.split())])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    )
    # XLM-R puts two tokens between the texts of a pair, and does not tell them apart by types.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    untyped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **names
    )
    common = _SIZE | {"vocab_size": len(words), "hidden_size": 128, "intermediate_size": 64, "pad_token_id": 0}
    heads = {"id2label": NAMES, "label2id": {name: i for i, name in NAMES.items()}}
    one = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    torch.manual_seed(11)
    made = {
        "bert": transformers.BertForSequenceClassification(transformers.BertConfig(**common, **heads)),
        "modernbert": transformers.ModernBertForSequenceClassification(
            transformers.ModernBertConfig(**common, **heads, **tokens)
        ),
        "reranker": transformers.BertForSequenceClassification(transformers.BertConfig(**common, **one)),
        "xlmr": transformers.XLMRobertaForSequenceClassification(
            transformers.XLMRobertaConfig(
                **common | {"max_position_embeddings": 130, "type_vocab_size": 1}, **one, **tokens
            )
        ),
    }
    for name, model in made.items():
        model.float().save_pretrained(folder / name)
        (untyped if name == "xlmr" else fast).save_pretrained(folder / name)


def _logits(folder: Path, *texts: Any) -> Any:
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(*texts, padding=True, return_tensors="pt")
    if model.config.model_type == "modernbert":
        given.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**given).logits


def classified(folder: Path, texts: Sequence[str]) -> list[dict[str, float]]:
    """The probability of each label, for each text."""
    return [dict(zip(NAMES.values(), row.softmax(-1).tolist(), strict=True)) for row in _logits(folder, list(texts))]


def scored(folder: Path, query: str, texts: Sequence[str]) -> list[float]:
    """How well each text answers the query: the sigmoid of the head's output."""
    found: list[float] = _logits(folder, [query] * len(texts), list(texts)).sigmoid().flatten().tolist()
    return found


def embedded(folder: Path, texts: Sequence[str]) -> list[list[float]]:
    """The last hidden state of each text's last token."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [model(torch.tensor([tokenizer(t)["input_ids"]])).last_hidden_state[0, -1].tolist() for t in texts]


def label_probabilities(folder: Path, texts: Sequence[str], labels: Sequence[str]) -> list[dict[str, float]]:
    """The probability of each label after each text: the sum over every sequence of tokens that writes it, each
    step among the tokens that a label allows. The tokenizer has one token a byte and merges of them."""
    import torch
    import transformers
    from xgrammar import TokenizerInfo

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vocabulary = TokenizerInfo.from_huggingface(tokenizer).decoded_vocab
    end = tokenizer.eos_token_id
    wanted = [label.encode() for label in labels]
    found = []
    for text in texts:
        sums = dict.fromkeys(wanted, 0.0)
        waiting = [(tokenizer(text)["input_ids"], b"", 1.0)]
        while waiting:
            ids, begun, mass = waiting.pop()
            # Longer ways have next to no probability.
            if mass < 1e-3:
                continue
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            fits = [
                t
                for t, piece in enumerate(vocabulary)
                if (t == end and begun in wanted)
                or (t > 2 and piece and any(w.startswith(begun + piece) for w in wanted))
            ]
            for token, p in zip(fits, logits[fits].softmax(-1).tolist(), strict=True):
                if token == end:
                    sums[begun] += mass * p
                elif sum(w.startswith(begun + vocabulary[token]) for w in wanted) == 1:
                    sums[next(w for w in wanted if w.startswith(begun + vocabulary[token]))] += mass * p
                else:
                    waiting.append(([*ids, token], begun + vocabulary[token], mass * p))
        found.append({label: sums[label.encode()] for label in labels})
    assert all(math.isclose(sum(one.values()), 1, abs_tol=0.2) for one in found)
    return found
