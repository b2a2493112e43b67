"""What goes with a model, on the real engine: a LoRA adapter, speculative decoding, quantized checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.engine_process import in_one_process, spec_values
from tests.support.quantized import FORMS
from tests.support.tiny_models import NEW_TOKENS, TEXTS

pytestmark = pytest.mark.end_to_end

MODEL = ROOT / "jobs" / "demo" / "model"
ROWS = 300

# ngram comes last: what compiles its lookup keeps vLLM from starting a draft model in the same process.
SCRIPT = """
import sysconfig
from itertools import islice
from pathlib import Path
from docstrings import module_docstrings, parse_module, stdlib_modules
from tests.support.engine_process import answers
from tests.support.quantized import FORMS, quantize
from tests.support.tiny_models import TEXTS, make_adapter, make_checkpoint, reference
from transformers import AutoModel, AutoTokenizer

folder = Path(given["folder"])
base, merged = folder / "base", folder / "merged"
make_checkpoint("LlamaForCausalLM", base)
make_checkpoint("LlamaForCausalLM", folder / "draft", num_hidden_layers=1)
make_adapter(base, folder / "adapter", merged, rank=12)
for form in FORMS:
    quantize(Path(given["model"]), folder / form, form)
modules = list(stdlib_modules(Path(sysconfig.get_path("stdlib"))))[::4]
rows = (row for name, path in modules if (tree := parse_module(path)) for row in module_docstrings(name, tree))
heldout = list(islice((row for row in rows if row.split == "heldout"), given["rows"]))
embedder = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(base)
with torch.no_grad():
    last = [embedder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in TEXTS]
found = {
    "vectors": [torch.nn.functional.normalize(vector, dim=0).tolist() for vector in last],
    "base": reference("LlamaForCausalLM", base),
    "merged": reference("LlamaForCausalLM", merged),
    "areas": [row.area for row in heldout],
    "avx512": torch.cpu._is_avx512_supported(),
}
for name, case in given["cases"].items():
    texts = [row.text for row in heldout] if case["heldout"] else TEXTS
    found[name] = answers(case["spec"], texts, **case["plan"])
report(found)
"""

AREAS = ["data", "files", "system", "concurrency", "network", "markup", "gui", "tools", "runtime"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("model-keys")
    greedy = {"max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True, "logprobs": 0}

    def random_llama(**keys: Any) -> dict[str, Any]:
        return {"spec": spec_values({"source": str(folder / "base")} | keys, greedy), "heldout": False, "plan": {}}

    def demo(source: Path, quantization: str = "none", **keys: Any) -> dict[str, Any]:
        spec = spec_values({"source": str(source)} | keys, {"max_tokens": 4, "temperature": 0}, {"choices": AREAS})
        spec["engine"]["max_model_len"] = 512
        return {"spec": spec, "heldout": True, "plan": {"quantization": quantization, "checkpoint": str(source)}}

    draft = {"method": "draft_model", "num_speculative_tokens": 3}
    cases = {
        "lora": random_llama(lora={"path": str(folder / "adapter")}),
        "own draft": random_llama(speculative=draft | {"model": str(folder / "base")}),
        "other draft": random_llama(speculative=draft | {"model": str(folder / "draft")}),
        "embed": {
            "spec": spec_values({"source": str(folder / "base")}, {}) | {"task": "embed"},
            "heldout": False,
            "plan": {},
        },
        "none": demo(MODEL),
        "w8a8": demo(folder / "w8a8", "w8a8"),
        # The engine takes these in 16 bits only.
        **{form: demo(folder / form, form, dtype="bfloat16") for form in ("w4a16", "awq", "gptq")},
        "ngram": random_llama(
            speculative={"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
        ),
    }
    given = {"folder": str(folder), "model": str(MODEL), "rows": ROWS, "cases": cases}
    return in_one_process(SCRIPT, given, folder)


def test_an_adapter_gives_the_tokens_of_the_merged_model(found: Any) -> None:
    assert found["lora"].get("error") is None
    assert found["lora"]["tokens"] == found["merged"]["tokens"]
    assert all(ours != plain for ours, plain in zip(found["lora"]["tokens"], found["base"]["tokens"], strict=True))
    assert found["merged"]["lead"] > 1e-4


@pytest.mark.parametrize("name", ["own draft", "other draft", "ngram"])
def test_speculation_changes_no_greedy_token(name: str, found: Any) -> None:
    assert found[name].get("error") is None
    assert found[name]["tokens"] == found["base"]["tokens"]
    assert len(found[name]["tokens"]) == len(TEXTS)


def test_an_embedding_is_the_last_hidden_state_of_length_one(found: Any) -> None:
    assert found["embed"].get("error") is None
    assert len(found["embed"]["vectors"]) == len(TEXTS)
    for ours, theirs in zip(found["embed"]["vectors"], found["vectors"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert found["vectors"][0] != pytest.approx(found["vectors"][1], abs=1e-2)


def accuracy(found: Any, name: str) -> float:
    right = sum(text == area for text, area in zip(found[name]["texts"], found["areas"], strict=True))
    return right / len(found["areas"])


def test_eight_bits_cost_little_accuracy(found: Any) -> None:
    assert len(found["areas"]) == ROWS
    assert found["w8a8"].get("error") is None
    print({name: accuracy(found, name) for name in ("none", "w8a8")})
    assert accuracy(found, "none") > 0.8
    assert abs(accuracy(found, "w8a8") - accuracy(found, "none")) < 0.04
    assert found["w8a8"]["texts"] != found["none"]["texts"], "rounding shows in some answers"


@pytest.mark.parametrize("form", [form for form in FORMS if form != "w8a8"])
def test_four_bits_run_where_the_cpu_can_and_are_refused_where_not(form: str, found: Any) -> None:
    if found["avx512"]:
        assert found[form].get("error") is None
        print(form, accuracy(found, form))
        assert accuracy(found, form) > accuracy(found, "none") - 0.15
    else:
        assert found[form]["exit_code"] == 2
        assert f"has {form} weights; vLLM's CPU kernel for 4 bits needs AVX-512" in found[form]["error"]
