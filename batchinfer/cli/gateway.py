"""The gateway: OpenAI's Batch API over runs, and its keys."""

from __future__ import annotations

from typing import Annotated

import typer

from batchinfer.cli.app import Address, AsJson, app, listened, print_json
from batchinfer.errors import UserError

Root = Annotated[str, typer.Option("--root", metavar="URI", help="The folder of the gateway's files, runs and keys.")]
EnginesFile = Annotated[
    str, typer.Option("--engines", metavar="FILE", help="The models: YAML, as jobs/gateway/engines.yaml.")
]
Host = Annotated[
    str, typer.Option("--host", metavar="HOST", help="The address to listen at. Others than 127.0.0.1 need keys.")
]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="The port to listen at.")]
Replicas = Annotated[int, typer.Option("--replicas", min=1, help="Processes that answer calls.")]


@app.command()
def gateway(
    root: Root,
    engines: EnginesFile,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    replicas: Replicas = 1,
    address: Address = None,
) -> None:
    """Answer OpenAI's Batch API: files, batches and models, each batch as a run below the root.

    All state is in the root: whatever is killed, the same command goes on. SIGTERM lets the shards in flight end.
    """
    from batchinfer import signals
    from batchinfer.gateway.engines import load_engines
    from batchinfer.gateway.front_door import open_gateway

    offered = load_engines(engines)
    listened(lambda listener: open_gateway(root, engines, offered, host, port, replicas, address, listener), {})
    signals.let_end(True)


@app.command("gateway-batch", hidden=True)
def gateway_batch(
    root: Root,
    engines: EnginesFile,
    queue: Annotated[str, typer.Option("--queue")],
    entry: Annotated[str, typer.Option("--entry")],
    address: Address = None,
) -> None:
    """Run one batch of a gateway, which starts this command."""
    from batchinfer.gateway.engines import load_engines
    from batchinfer.gateway.root import GatewayRoot, entry_of
    from batchinfer.gateway.worker import settle

    opened = GatewayRoot(root, load_engines(engines).stores)
    found = entry_of(queue, entry)
    if found is None:
        raise UserError(f"{entry!r:.200} is no entry of a queue", "`batchinfer gateway` starts this command itself")
    listened(lambda listener: settle(opened, found, listener, address), opened.stores)


keys_app = typer.Typer(help="Make, list and revoke keys of a gateway.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="What to call the key.")]
Owner = Annotated[str, typer.Option("--owner", metavar="TEAM", help="Whose files and batches the key reaches.")]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="A label of the runs, for the accounting. Repeatable."),
]
PerMinute = Annotated[
    int | None,
    typer.Option("--requests-per-minute", min=1, help="Calls of the API. Default: that of the engines file."),
]
FileBytes = Annotated[
    int | None, typer.Option("--max-file-bytes", min=1, help="Bytes of an upload. Default: that of the engines file.")
]
MonthRequests = Annotated[
    int | None, typer.Option("--requests-per-month", min=0, help="Requests of batches in a calendar month (UTC).")
]
MonthTokens = Annotated[int | None, typer.Option("--tokens-per-month", min=0, help="Tokens in and out in a month.")]
MonthUsd = Annotated[float | None, typer.Option("--usd-per-month", min=0, help="What the runs may cost in a month.")]


@keys_app.command("create")
def create(
    name: KeyName,
    root: Root,
    owner: Owner,
    label: Labels = None,
    requests_per_minute: PerMinute = None,
    max_file_bytes: FileBytes = None,
    requests_per_month: MonthRequests = None,
    tokens_per_month: MonthTokens = None,
    usd_per_month: MonthUsd = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once: the root holds only its hash."""
    from batchinfer.gateway.keys import KeyLimits, create_key
    from batchinfer.gateway.root import GatewayRoot
    from batchinfer.jobspec import key_values

    limits = KeyLimits(
        requests_per_minute=requests_per_minute,
        max_file_bytes=max_file_bytes,
        requests_per_month=requests_per_month,
        tokens_per_month=tokens_per_month,
        usd_per_month=usd_per_month,
    )
    labels = dict(key_values("--label", label or [], "team=search"))
    key = create_key(GatewayRoot(root), name, owner, labels, limits)
    if as_json:
        print_json({"name": name, "owner": owner, "key": key})
    else:
        print(key)


@keys_app.command("list")
def list_(root: Root, as_json: AsJson = False) -> None:
    """List the keys that were made, without their secrets."""
    from batchinfer.gateway.keys import list_keys
    from batchinfer.gateway.root import GatewayRoot

    found = list_keys(GatewayRoot(root))
    if as_json:
        print_json([{"id": one.key_id, **one.record.model_dump(), "revoked": one.revoked} for one in found])
        return
    for one in found:
        limits = one.record.limits.model_dump(exclude_none=True)
        told = ", ".join(f"{name} {value:,}" for name, value in limits.items()) or "no limits of its own"
        state = "revoked" if one.revoked else "works"
        print(f"{one.key_id}  ...{one.record.ending}  {one.record.name}  owner {one.record.owner}  {state}  {told}")


@keys_app.command("revoke")
def revoke(name: KeyName, root: Root) -> None:
    """Let a key, by its name or id, not work any more."""
    from batchinfer.gateway.keys import revoke_key
    from batchinfer.gateway.root import GatewayRoot

    revoke_key(GatewayRoot(root), name)
    print(f"revoked {name}: within seconds no call with it is answered")
