"""The arguments of `vllm run-batch` as keys of a spec."""

from __future__ import annotations

import shlex

import pytest

from batchinfer.errors import SpecError
from batchinfer.jobspec.vllm_command import read_command

LEAST = "-i in.jsonl -o out.jsonl --model a/b"


def test_engine_arguments_become_the_keys_that_a_spec_has_for_them() -> None:
    line = (
        f"{LEAST} --max-model-len 4k --enforce-eager --no-enable-prefix-caching -tp 2 --dtype half "
        "--served-model-name a b --seed -1 --hf-overrides '{\"a\": 1}' --reasoning-parser=qwen3 "
        "--attention-backend TRITON_ATTN"
    )
    command = read_command(shlex.split(line))
    assert command.keys == {
        "model": {"source": "a/b", "dtype": "float16"},
        "resources": {"tensor_parallel": 2},
        "input": {"models": ["a", "b"]},
        "reasoning": {"parser": "qwen3"},
        "output": {"compact_json": False},
        "engine": {
            "max_model_len": 4000,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "seed": -1,
            "extra": {"hf_overrides": {"a": 1}, "attention_backend": "TRITON_ATTN"},
        },
    }


def test_sizes_are_read_as_vllm_reads_them() -> None:
    for text, number in (("1k", 1000), ("1K", 1024), ("2.5k", 2500), ("8192", 8192)):
        assert read_command([*LEAST.split(), "--max-model-len", text]).keys["engine"]["max_model_len"] == number


def test_what_changes_no_answer_is_named_and_the_config_of_the_model_is_the_commands() -> None:
    line = f"{LEAST} --disable-log-stats --output-tmp-dir /x --generation-config vllm"
    command = read_command([*line.split(), "--override-generation-config", '{"temperature": 0.5}'])
    assert command.ignored == ("disable_log_stats", "output_tmp_dir")
    assert (command.generation_config, command.overrides) == ("vllm", {"temperature": 0.5})
    compact = read_command([*LEAST.split(), "--structured-outputs-config.disable_any_whitespace", "true"])
    assert compact.keys["output"] == {"compact_json": True}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("-i in.jsonl --model a", "run-batch needs -o"),
        ("in.jsonl", "run-batch does not know what 'in.jsonl' is"),
        ("-i http://x/in -o out --model a", "-i 'http://x/in' is a URL"),
        (f"{LEAST} --hf-overrides {{x", "--hf-overrides is not JSON"),
        (f"{LEAST} -x 3", "run-batch does not know '-x'"),
        (f"{LEAST} --structured-outputs-config.backend guidance", "a batch uses xgrammar"),
    ],
)
def test_a_mistake_is_one_message(line: str, told: str) -> None:
    with pytest.raises(SpecError) as error:
        read_command(line.split())
    assert told in error.value.message
    assert error.value.remedy
