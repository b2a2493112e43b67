"""What this machine is, without starting Ray on it: enough to plan for a CPU."""

from __future__ import annotations

import os

import psutil

from batchinfer.planner import Cluster

_GPU_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""The device files of NVIDIA's and AMD's drivers, and of GPUs under WSL."""

_RAYS_SHARE = 0.7
"""Share of free memory, 0 to 1, that Ray 2.60 counts as `memory`; its object store has the other 0.3. With another
share, `batchinfer plan` may accept a model or a KV cache that the plan of the run refuses, or the reverse."""


def may_have_gpus() -> bool:
    """Whether a GPU driver is loaded; if so, Ray must be started to find the kinds of GPU."""
    return any(map(os.path.exists, _GPU_DEVICES))


def host_cluster() -> Cluster:
    """This machine as a cluster of one node without a GPU."""
    return Cluster(
        gpus=0,
        largest_node_gpus=0,
        accelerator_type=None,
        memory_bytes=int(psutil.virtual_memory().available * _RAYS_SHARE),
        cpus=float(len(os.sched_getaffinity(0))),
        avx512=has_avx512(),
    )


def has_avx512() -> bool:
    """Whether this machine's CPU has AVX-512; True if it is unknown, so that the engine decides."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "avx512f")
    except OSError:
        return True
    return "avx512f" in flags
