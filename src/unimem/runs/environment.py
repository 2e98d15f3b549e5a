"""Where a run ran: versions, machine, memory."""

import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

VARIABLES = ("MKL_", "ONEDNN_", "DNNL_", "OMP_", "KMP_", "CUBLAS_", "CUDNN_", "NVIDIA_", "TORCH_")
"""Prefixes of environment variables by which libraries choose kernels."""


def variables() -> dict[str, str]:
    """Return the environment variables that can change the last bits of a sum."""
    found = {key: value for key, value in os.environ.items() if key.startswith(VARIABLES)}
    return dict(sorted(found.items()))


def numerics() -> dict[str, Any]:
    """Return what decides the last bits of a sum on a CPU."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": _gpu(),
    }


def versions() -> dict[str, str]:
    """Return the versions of python and of the packages that a result depends on."""
    packages = {name: name for name in ("torch", "transformers", "lightning", "numpy")}
    packages["unimem"] = "unimem-runner"  # the distribution's name
    found = {name: _version(distribution) for name, distribution in packages.items()}
    return {"python": platform.python_version()} | found


def machine() -> dict[str, Any]:
    """Return platform, processors, threads and GPU."""
    return {"platform": platform.platform(), "cpus": os.cpu_count(), **numerics()}


def git_commit() -> str | None:
    """Return the git commit of the package; None if it is not run from a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: GPU memory if it used a GPU, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
