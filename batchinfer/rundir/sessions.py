"""The plan of each session of a run, in `_run/plans/`."""

from __future__ import annotations

import re
from datetime import datetime

from batchinfer.accounting.sessions import Command, Session
from batchinfer.errors import StorageError
from batchinfer.planner import Plan
from batchinfer.rundir.paths import Layout, reading
from batchinfer.storage import read_many


def begin_session(layout: Layout, command: Command, plan: Plan, began_at: datetime) -> int:
    """Keep the plan of a new session, whose number is returned. The caller holds the run's lock."""
    session = max(_numbers(layout), default=0) + 1
    _keep(layout, Session(session=session, command=command, began_at=began_at, plan=plan))
    return session


def keep_earlier_plan(layout: Layout, plan: Plan) -> None:
    """Keep the plan of a run of an earlier version, which is about to be overwritten, as that of session 0."""
    if not _numbers(layout):
        _keep(layout, Session(session=0, command="run", began_at=None, plan=plan))


def read_sessions(layout: Layout) -> list[Session]:
    """The sessions of the run, in order. Raises OutputError for a damaged file."""
    uris = [layout.plan_of_session(session) for session in _numbers(layout)]
    found = []
    for uri, text in zip(uris, read_many(layout.storage, uris), strict=True):
        with reading(uri, "move it away: the report is made without it"):
            session = Session.model_validate_json(text)
            if layout.plan_of_session(session.session) != uri:
                raise ValueError("it is a copy of another session's plan")
        found.append(session)
    return found


def _keep(layout: Layout, session: Session) -> None:
    uri = layout.plan_of_session(session.session)
    if not layout.storage.create(uri, session.model_dump_json(indent=2).encode()):
        raise StorageError(f"another command wrote {uri} at the same time", "run the same command again")


def _numbers(layout: Layout) -> list[int]:
    names = (entry.uri.rsplit("/", 1)[-1] for entry in layout.storage.list(layout.plans_folder))
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"session-(\d{4,})\.json", name)))
