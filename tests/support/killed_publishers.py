"""A script: publishes runs in processes that are killed before or after each step, then again in whole ones.

Forks before either library has started a thread. Prints what is left for each step, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Imported once, not in each child.
import deltalake  # noqa: F401
import pyarrow.dataset  # noqa: F401
import pyiceberg.catalog.sql
import pyiceberg.io.pyarrow  # noqa: F401

from batchinfer.execution import publish, reports, runner
from batchinfer.rundir.paths import Layout
from batchinfer.tables import delta, iceberg
from tests.support.lakes import Lake, past_run

STEPS: dict[str, list[tuple[Any, str]]] = {
    "delta": [(delta.DeltaDestination, "_write"), (publish, "note_publication"), (reports, "overwrite")],
    "iceberg": [(iceberg, "_append"), (publish, "note_publication"), (reports, "overwrite")],
}


def forked(work: Callable[[], None]) -> int:
    """Do the work in a child; returns how the child ended."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killing(place: Any, name: str, when: str) -> None:
    whole = getattr(place, name)

    def killed(*arguments: Any, **values: Any) -> Any:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        made = whole(*arguments, **values)
        os.kill(os.getpid(), signal.SIGKILL)
        return made

    setattr(place, name, killed)


def stream_killed() -> None:
    """The process dies while the rows of the second shard are written."""
    whole = publish._Written.batches

    def killed(self: Any) -> Any:
        for number, batch in enumerate(whole(self)):
            if number:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    publish._Written.batches = killed  # type: ignore[method-assign]


def main(to: str, folder: Path, bucket: str | None = None, endpoint: str = "") -> None:
    setattr(reports, "_write_page", lambda *story: None)  # noqa: B010 # drawing takes longer than the steps
    outcomes = {}
    steps = [(f"{when} {name}", place, name, when) for place, name in STEPS[to] for when in ("before", "after")]
    steps += [("while rows are written", None, "", "")]
    # A table that is there already, and one that the first command creates.
    for number, (step, place, name, when) in enumerate([*steps, ("after create", None, "create", "after")]):
        here = folder / str(number)
        here.mkdir()
        made = []
        apart = f"{bucket}/{number}" if bucket else None

        def prepare(here: Path = here, apart: str | None = apart) -> None:
            lake = Lake(to, here / "lake", apart, endpoint)
            checked = past_run(here, 2, storage=lake.storage)
            (here / "root").write_text(checked.layout.root)
            (here / "keys").write_text(json.dumps(lake.keys()))

        assert forked(prepare) == 0
        root, keys = (here / "root").read_text(), (here / "keys").read_text()

        def run(root: str = root, keys: str = keys) -> None:
            runner.publish(root, [f"output.publish={keys}"])

        def killed(place: Any = place, name: str = name, when: str = when, run: Callable[[], None] = run) -> None:
            if name == "create" and to == "delta":
                import deltalake

                class Killed(deltalake.DeltaTable):
                    @classmethod
                    def create(cls, *arguments: Any, **values: Any) -> Any:
                        deltalake_table.create(*arguments, **values)
                        os.kill(os.getpid(), signal.SIGKILL)

                deltalake_table = deltalake.DeltaTable
                setattr(deltalake, "DeltaTable", Killed)  # noqa: B010
            elif name == "create":
                from pyiceberg.catalog.sql import SqlCatalog

                killing(SqlCatalog, "create_table", "after")
            elif place is None:
                stream_killed()
            else:
                killing(place, name, when)
            run()

        ended = forked(killed)
        assert forked(run) == 0
        assert forked(run) == 0

        def look(here: Path = here, root: str = root, apart: str | None = apart) -> None:
            lake = Lake(to, here / "lake", apart, endpoint)
            ids = lake.read().column("id").to_pylist()
            found = {
                "rows": len(ids),
                "distinct": len(set(ids)),
                "commits": len(lake.commits()),
                "noted": os.path.exists(Layout(root).published),
            }
            (here / "found").write_text(json.dumps(found))

        assert forked(look) == 0
        killed_by = os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL
        made.append({"killed": killed_by, **json.loads((here / "found").read_text())})
        outcomes[step] = made[0]
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
