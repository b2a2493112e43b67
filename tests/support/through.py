"""A job without Ray and an engine: from input files to result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.engine import Completion
from batchinfer.errors import RowError
from batchinfer.execution.result_rows import result_table
from batchinfer.execution.shard_block import seal, unseal
from batchinfer.input import build_manifest, read_shards
from batchinfer.input.manifest import Manifest, from_parquet, read_together, to_parquet
from batchinfer.prompting.prompts import Prompt, PromptMaker, needed_columns
from batchinfer.rundir.commit import commit
from batchinfer.rundir.paths import Layout
from tests.support.builders import make_envelope, make_fingerprint, make_record, make_spec


def through(
    folder: Path,
    output: Path,
    columns: list[str],
    prompt: dict[str, Any],
    rows: int = 2,
    file_format: str = "parquet",
    made: list[Prompt | RowError] | None = None,
    **values: Any,
) -> tuple[Manifest, pa.Table | None]:
    """The manifest and the results: manifest, reader, prompts, result table, commit. `made` gets the prompts; `values`
    are more keys of `input`."""
    given = {"uri": str(folder), "format": file_format, "columns": columns, **values}
    spec = make_spec(input=given, prompt=prompt, shards={"rows": rows}, output={"uri": str(output)})
    manifest = from_parquet(to_parquet(build_manifest(spec, needed_columns(spec), make_fingerprint())))
    maker, layout = PromptMaker(spec.prompt), Layout(str(output))
    for group in read_together(manifest.shards):
        for shard, table in read_shards(group, manifest.schema, manifest.partitions, spec.input):
            table, envelope = unseal(seal(table, make_envelope(shard_id=shard.shard_id, first_row=shard.first_row)))
            prompts = maker.prompts(table)
            for one in prompts:
                assert isinstance(one, RowError) or "".join(m["content"] for m in one.as_messages()).encode()
            if made is not None:
                made.extend(prompts)
            answers = [
                Completion.failed(one) if isinstance(one, RowError) else Completion(["ok"], ["stop"], 1, 0, 1)
                for one in prompts
            ]
            results = result_table(spec, table, envelope, [answers])
            assert commit(layout, results, make_record(shard.shard_id))
    return manifest, pq.read_table(output / "data") if manifest.shards else None
