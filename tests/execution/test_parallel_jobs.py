"""Whole jobs on the real engine through Ray: tensor parallel, two replicas, a quantized checkpoint's accuracy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.execution import runner
from batchinfer.jobspec import JobSpec
from tests.support import ROOT
from tests.support.scripted_jobs import KeepingListener, assert_ledger_adds_up, results

pytestmark = pytest.mark.end_to_end

ARCHITECTURES = ("MixtralForCausalLM", "LlamaForCausalLM")
AREAS = ["data", "files", "system", "concurrency", "network", "markup", "gui", "tools", "runtime"]
ROWS = 240

MAKE = """
import itertools, json, sys, sysconfig
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[1])
import pyarrow as pa, pyarrow.parquet as pq
from docstrings import module_docstrings, parse_module, stdlib_modules
from tests.support.quantized import quantize
from tests.support.tiny_models import TEXTS, make_checkpoint, reference

folder, model = Path(sys.argv[2]), Path(sys.argv[3])
found = {"texts": TEXTS}
for name in sys.argv[5:]:
    make_checkpoint(name, folder / name)
    found[name] = reference(name, folder / name)["tokens"]
quantize(model, folder / "w8a8", "w8a8")
modules = list(stdlib_modules(Path(sysconfig.get_path("stdlib"))))[::4]
rows = (row for name, path in modules if (tree := parse_module(path)) for row in module_docstrings(name, tree))
heldout = itertools.islice((row for row in rows if row.split == "heldout"), int(sys.argv[4]))
pq.write_table(pa.Table.from_pylist([{"text": row.text, "area": row.area} for row in heldout]), folder / "in.parquet")
(folder / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random checkpoints with their reference tokens, the demo model in W8A8, and held-out docstrings."""
    folder = tmp_path_factory.mktemp("parallel")
    paths = json.dumps([str(ROOT), str(ROOT / "jobs" / "demo")])
    model = str(ROOT / "jobs" / "demo" / "model")
    command = [sys.executable, "-c", MAKE, paths, str(folder), model, str(ROWS), *ARCHITECTURES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def real_spec(model: Path, source: Path, output: Path, /, **sections: Any) -> JobSpec:
    values: dict[str, Any] = {
        "name": "parallel",
        "model": {"source": str(model), "dtype": "float32"},
        "input": {"uri": str(source)},
        "prompt": {"column": "text"},
        "output": {"uri": str(output)},
        "engine": {"max_model_len": 256, "enforce_eager": True, "kv_cache_memory_bytes": 2**26},
    }
    return JobSpec.model_validate(values | sections)


@pytest.mark.parametrize(
    "architecture", ["MixtralForCausalLM", pytest.param("LlamaForCausalLM", marks=pytest.mark.soak)]
)
@pytest.mark.usefixtures("ray_cluster")
def test_two_tensor_parallel_ranks_give_the_tokens_of_transformers(
    architecture: str, made: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    reference = json.loads((made / "found.json").read_text())
    pq.write_table(pa.table({"text": reference["texts"]}), tmp_path / "texts.parquet")
    spec = real_spec(
        made / architecture,
        tmp_path / "texts.parquet",
        tmp_path / "out",
        sampling={"max_tokens": 8, "ignore_eos": True, "logprobs": 0},
        resources={"accelerator": "cpu", "tensor_parallel": 2},
    )
    report = runner.run(spec, listener)
    tokens = [
        [position[0]["token_id"] for position in row]
        for row in results(tmp_path / "out").column("logprobs").to_pylist()
    ]
    assert tokens == reference[architecture]
    assert (report.tensor_parallel, report.rows, report.rows_failed, report.replicas) == (2, len(tokens), 0, 1)
    accounting = pq.read_table(tmp_path / "out" / "accounting").to_pylist()
    assert [row["num_gpus"] for row in accounting] == [1], "a CPU replica is one device, however many processes"
    assert_ledger_adds_up(tmp_path / "out")


# The checkpoint's accuracy is test_model_keys.py's too; two replicas run in test_chaos.py and test_submit.py,
# several processes of the real engine above.
@pytest.mark.soak
@pytest.mark.usefixtures("ray_cluster")
def test_two_replicas_run_an_eight_bit_checkpoint_about_as_well_as_the_whole(
    made: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    spec = real_spec(
        made / "w8a8",
        made / "in.parquet",
        tmp_path / "out",
        input={"uri": str(made / "in.parquet"), "columns": ["area"]},
        sampling={"max_tokens": 4},
        output={"uri": str(tmp_path / "out"), "column": "predicted", "choices": AREAS},
        engine={"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 2**26, "max_num_seqs": 16},
        resources={"accelerator": "cpu", "replicas": 2},
        shards={"rows": 20},
        evaluate={"expected": "area"},
    )
    report = runner.run(spec, listener)
    assert (report.rows, report.rows_failed, report.shards, report.replicas) == (ROWS, 0, ROWS // 20, 2)
    # 90.0% of all held-out rows in full precision (the model's README).
    assert report.accuracy["all"].accuracy == pytest.approx(0.9, abs=0.06)
    assert report.quantization == "w8a8"
    assert_ledger_adds_up(tmp_path / "out")
