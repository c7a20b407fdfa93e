"""Which devices a run finds, and whether they are the ones that its owner expects."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import jax

from alexnet_jax.training.config import ConfigError


def nvidia_gpus() -> list[str]:
    """The NVIDIA GPUs that the host's driver shows, whether JAX can use them or not."""
    folder = pathlib.Path("/proc/driver/nvidia/gpus")
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return found or [path.name for path in pathlib.Path("/dev").glob("nvidia[0-9]*")]


def check_gpu(require_gpu: bool) -> str | None:
    """A warning if the host has a GPU that JAX does not use.

    Raises:
      ConfigError: `require_gpu`, and JAX has no GPU.
    """
    if jax.default_backend() == "gpu":
        return None
    gpus = nvidia_gpus()
    if not gpus:
        remedy = "no NVIDIA driver was found on this host"
    elif any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        remedy = (
            "JAX's CUDA support is installed, so see to JAX_PLATFORMS, CUDA_VISIBLE_DEVICES and the driver's version"
        )
    else:
        remedy = 'this JAX has no CUDA support: pip install "alexnet-jax[cuda12]" (or [cuda13], as the driver allows)'
    if require_gpu:
        raise ConfigError(f"config.require_gpu=True, but JAX runs on {jax.default_backend()}: {remedy}")
    if gpus:
        return f"WARNING: {len(gpus)} NVIDIA GPU(s) in this host ({', '.join(gpus)}) stay idle: {remedy}"
    return None


def describe() -> str:
    """The device of the run and those it leaves alone, in words."""
    first, *others = jax.local_devices()
    words = f"{first.platform}:{first.id} ({first.device_kind})"
    return words + (f"; left unused: {', '.join(f'{d.platform}:{d.id}' for d in others)}" if others else "")


def peak_memory_mib() -> float:
    """The most main memory that this process has held, in MiB."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # Linux: getrusage would count the process that started this one too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
