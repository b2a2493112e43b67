"""Ray's job client, whose failures are raised as ClusterErrors."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from batchinfer.deploy.ray_jobs.jobs import OURS, SubmittedJob, submitted_job
from batchinfer.errors import ClusterError
from batchinfer.execution import ray_private
from batchinfer.planner import Cluster, autoscaled, cluster_of

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CONNECT_SECONDS = 10.0
"""Seconds until a dashboard that accepts no connection counts as unreachable. Ray itself would wait for minutes."""

ANSWER_SECONDS = 60.0
"""Seconds for an answer of the dashboard, for which Ray would wait without end. Shorter, and a busy head counts as
dead."""

POLL_SECONDS = 0.5
"""Seconds between looks at a job that is ending. Longer only delays the answer."""

AGENT_SECONDS = 30.0
"""Seconds to wait for the head's agent, which starts some seconds after the dashboard. Shorter, and a submission to a
new cluster fails."""

_NO_AGENT = "No available agent"

_TOKEN = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the token that the cluster has"


class JobClient:
    """The jobs of one cluster. Every method raises ClusterError if the cluster fails to answer."""

    def __init__(self, address: str, client: JobSubmissionClient, ray_version: str) -> None:
        self.address = address
        self.ray_version = ray_version
        self._client = client

    def jobs(self) -> list[SubmittedJob]:
        """The jobs that batchinfer submitted, newest first."""
        with _explained(self.address):
            found = [_job(details) for details in self._client.list_jobs() if OURS in (details.metadata or {})]
        return sorted(found, key=lambda job: job.started_at or 0.0, reverse=True)

    def job(self, job_id: str) -> SubmittedJob:
        """The job with that submission id; raises ClusterError if there is none."""
        with _explained(self.address, job_id):
            return _job(self._client.get_job_info(job_id))

    def logs(self, job_id: str) -> str:
        """The job's output so far."""
        with _explained(self.address, job_id):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, show: Callable[[str], None]) -> SubmittedJob:
        """Show the job's output until the job ends. Returns the ended job."""

        async def tail() -> None:
            async for lines in self._client.tail_job_logs(job_id):
                show(lines)

        self.job(job_id)
        with _explained(self.address, job_id):
            asyncio.run(tail())
        # The log ends before Ray has stored the job's exit code.
        while not (job := self.job(job_id)).ended:
            time.sleep(POLL_SECONDS)
        return job

    def stop(self, job_id: str) -> bool:
        """Ask the job to stop; False if it had ended before."""
        with _explained(self.address, job_id):
            return bool(self._client.stop_job(job_id))

    def send(self, job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: Mapping[str, str]) -> bool:
        """Submit the job; False if a job with that id exists."""
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                with _explained(self.address):
                    self._client.submit_job(
                        entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env, metadata=dict(metadata)
                    )
                return True
            except ClusterError as error:
                # Ray answers 500 to every failure, so only the message tells them apart.
                if "already exists" in error.message:
                    return False
                if _NO_AGENT not in error.message:
                    raise
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"the cluster at {self.address} runs no agent on its head, which starts the jobs",
                        "its dashboard_agent.log says why: often its port, 52365, was taken",
                    ) from error
            time.sleep(1)

    def nodes(self) -> list[tuple[str, dict[str, float]]]:
        """The address and the resources of each node that is alive."""
        with _explained(self.address):
            found = self._get("/api/v0/nodes?detail=1&limit=10000")["result"]["result"]
            alive = [
                (str(node["node_ip"]), {str(name): float(amount) for name, amount in node["resources_total"].items()})
                for node in found
                if node["state"] == "ALIVE"
            ]
        if not alive:
            raise ClusterError(f"the cluster at {self.address} has no node that is alive", "wait until it has started")
        return alive

    def is_here(self) -> bool:
        """Whether every node is on this machine, so that its paths are the cluster's."""
        own = {a.address.partition("%")[0] for addresses in psutil.net_if_addrs().values() for a in addresses}
        with _explained(self.address):
            return all(ip in own or _is_loopback(ip) for ip, _ in self.nodes())

    def cluster(self) -> Cluster:
        """The machines to plan a job for."""
        with _explained(self.address):
            status = self._get("/api/cluster_status")["clusterStatus"]
            if status is None:
                # Autoscaler v2 does not report its state here, v1 always does. Only a cluster that can grow runs v2.
                may_grow = True
            else:
                types = ((status.get("autoscalerReport") or {}).get("nodeTypeMapping") or {}).values()
                may_grow = autoscaled(types)
        return cluster_of([resources for _, resources in self.nodes()], may_grow)

    def _get(self, path: str) -> Any:
        answer = ray_private.job_request(self._client, "GET", path)
        answer.raise_for_status()
        return answer.json()["data"]


def connect(address: str) -> JobClient:
    """The client of the cluster whose dashboard is at `address`; raises ClusterError."""
    _spare_loopback_the_proxy(address)
    url = _require_answer(address)
    import ray
    from ray.job_submission import JobSubmissionClient

    # `ray job` needs RAY_AUTH_MODE; `ray.init` and batchinfer only need a token.
    ray_private.use_token_that_is_there()
    with _explained(url), _winning(url):
        client = JobSubmissionClient(url)
        ray_private.limit_job_requests(client, ANSWER_SECONDS)
        version = ray_private.job_request(client, "GET", "/api/version").json()["ray_version"]
    if version != ray.__version__:
        raise ClusterError(
            f"the cluster at {url} runs Ray {version}, this is Ray {ray.__version__}",
            "both must run the same release of Ray: install the same one on both",
        )
    return JobClient(url, client, version)


@contextlib.contextmanager
def _winning(url: str) -> Iterator[None]:
    """Set the URL in Ray's environment variable too, which overrides the address that Ray's client is called with."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _require_answer(address: str) -> str:
    """The address as a URL. Raises ClusterError if nothing listens or answers there, for which Ray would wait for
    minutes or without end."""
    import requests

    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClusterError(
            f"{address} is not the address of a Ray dashboard", "give --address http://HEAD:8265, as `ray job` takes it"
        )
    try:
        # If there is a proxy, only the proxy has to be reachable from here.
        asked = urlsplit(_proxy(parts.geturl()) or parts.geturl())
        port = asked.port or (443 if asked.scheme == "https" else 80)
        socket.create_connection((asked.hostname or "", port), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(address, error) from error
    url = parts.geturl().rstrip("/")
    try:
        # Ray's client makes this request as its first, without a limit; what the answer says is for the client.
        requests.get(f"{url}/api/version", timeout=ANSWER_SECONDS)
    except requests.exceptions.Timeout as error:
        raise _unreachable(address, error) from error
    except (requests.exceptions.RequestException, ValueError):
        pass
    return url


def _proxy(url: str) -> str | None:
    """The proxy that the environment sets for the URL."""
    from requests.utils import get_environ_proxies, select_proxy

    found: str | None = select_proxy(url, get_environ_proxies(url))
    return found if found is None or "://" in found else f"http://{found}"


def _through(url: str) -> str:
    """The proxy of the URL as a part of a message, without the proxy's password."""
    proxy = _proxy(url)
    host = urlsplit(proxy).netloc.rpartition("@")[2] if proxy else ""
    return f" (through the proxy {host})" if host else ""


def _spare_loopback_the_proxy(address: str) -> None:
    """Exclude a loopback address from this process's HTTP_PROXY, because no proxy reaches this machine's loopback."""
    host = urlsplit(address if "://" in address else f"http://{address}").hostname or ""
    try:
        loopback = host == "localhost" or _is_loopback(host)
    except ValueError:
        return
    if loopback:
        known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, (known, host)))


def _unreachable(address: str, error: Exception) -> ClusterError:
    why = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    through = _through(address if "://" in address else f"http://{address}")
    remedy = (
        "check --address (http://HEAD:8265) and that the head's dashboard runs; for Kubernetes: kubectl port-forward"
    )
    if through:
        remedy = f"if the proxy does not lead there, add the host to NO_PROXY; or {remedy}"
    return ClusterError(f"no cluster answers at {address}{through}: {why}", remedy)


def _no_dashboard(address: str) -> ClusterError:
    through = _through(address)
    remedy = "give --address http://HEAD:8265"
    return ClusterError(
        f"what answers at {address}{through} is no Ray dashboard",
        f"add the host to NO_PROXY, or {remedy}" if through else remedy,
    )


def _is_loopback(ip: str) -> bool:
    return ipaddress.ip_address(ip).is_loopback


def _job(details: Any) -> SubmittedJob:
    return submitted_job(
        details.submission_id or details.job_id,
        str(details.status.value),
        details.metadata,
        details.start_time and details.start_time / 1000,
        details.end_time and details.end_time / 1000,
        details.driver_exit_code,
        details.message,
    )


@contextlib.contextmanager
def _explained(address: str, job_id: str | None = None) -> Iterator[None]:
    """Raise failures between this machine and the dashboard as ClusterErrors."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(f"the cluster at {address} rejects the token, or received none", _TOKEN) from error
    except requests.exceptions.JSONDecodeError as error:
        raise _no_dashboard(address) from error
    except (ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError) as error:
        raise _unreachable(address, error) from error
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        # The answer is JSON, but not of the dashboard's form.
        raise _no_dashboard(address) from error
    except RuntimeError as error:
        if job_id is not None and ("404" in str(error) or "does not exist" in str(error)):
            raise ClusterError(
                f"there is no job {job_id} on {address}", f"`batchinfer list --address {address}` lists those that are"
            ) from error
        lines = [line for line in str(error).splitlines() if line.strip()]
        told = lines[-1].removeprefix("Request failed with status code 500: ") if lines else "it did not say why"
        raise ClusterError(f"the cluster at {address} refused: {told}", "its dashboard.log says more") from error
