"""Which devices a run finds, whether they are the ones that its owner expects, and how JAX is set for them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pathlib
import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from alexnet_jax.training.config import Config, ConfigError

DETERMINISTIC = "--xla_gpu_deterministic_ops"


def set_deterministic(wanted: bool | None) -> None:
    """Asks XLA for deterministic operations on a GPU; before JAX starts its devices, as XLA reads its flags once.

    On a CPU they are deterministic anyway, so None (leave it to the device) is what it says.

    Raises:
      ConfigError: they are wanted, and JAX has started a GPU without them.
    """
    from jax._src import xla_bridge  # there is no public name for it

    flags = os.environ.get("XLA_FLAGS", "")
    there = [flag for flag in flags.split() if flag.split("=")[0] == DETERMINISTIC]
    if not wanted or (there and there[-1] in (DETERMINISTIC, f"{DETERMINISTIC}=true")):
        return
    if xla_bridge.backends_are_initialized():
        if jax.default_backend() == "gpu":
            raise ConfigError(
                "config.deterministic=True comes too late: JAX has started its GPU in this process. Use train.py, or "
                f'set XLA_FLAGS="{DETERMINISTIC}=true" before JAX is first used'
            )
        return
    os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}=true".strip()


def keep_heap(*, compute_here: bool = False) -> bool:
    """Has glibc keep freed memory, instead of taking a page fault for it again at every step; whether it does.

    For the start of a program that computes on a CPU, before JAX starts its threads: settings of the
    whole process, which a library must not touch. XLA asks for the temporaries of a step as blocks of
    many megabytes, which glibc by default maps afresh each time, and a thread's own arena gives them
    back; so no block is mapped, nothing is given back, and there is one arena.
    Where the C library is another, or the host has a GPU, nothing happens.

    Args:
      compute_here: JAX computes in the thread that calls it, which is the main one, and so has the main
        arena without such a limit to all others. A step is faster then: Eigen's product asks for small
        blocks thousands of times, and the main arena has thousands of holes after a compilation. Not where
        the caller has other work meanwhile (`features` was a seventh slower), nor for one of several
        processes, which can't be told inside of a computation that another is gone.
    """
    if nvidia_gpus() and jax.config.jax_platforms != "cpu":  # type: ignore[attr-defined]
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    import ctypes

    # malloc.h: M_MMAP_MAX is -4, M_TRIM_THRESHOLD -1, M_ARENA_MAX -8; a threshold of -1 is none. 1 is success.
    settings = [(-4, 0), (-1, -1)]
    if compute_here:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    else:
        settings.append((-8, 1))
    mallopt = ctypes.CDLL(None).mallopt
    taken = [mallopt(*setting) == 1 for setting in settings]
    return all(taken)


@contextlib.contextmanager
def compilation_cache(config: Config) -> Iterator[None]:
    """JAX's cache of compiled programs in the user's cache folder, for the time of the run only.

    A folder that JAX is set to already (JAX_COMPILATION_CACHE_DIR) stays the one. The cache of one
    processor is no good for another, so each kind has a folder of its own. Several processes with
    GPUs have none but that folder, which they must share: XLA has them tune their programs
    together, and one that finds its program in a cache would leave the others waiting.
    """
    from jax.experimental.compilation_cache import compilation_cache as cache

    kept = config.compilation_cache and not (jax.process_count() > 1 and jax.default_backend() == "gpu")
    if config.compilation_cache and jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        yield
        return
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alexnet-jax" / "compiled"
    folder = root / hashlib.sha256(_processor().encode()).hexdigest()[:12]
    wanted = (
        {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.2}
        if kept
        else {"jax_enable_compilation_cache": False}
    )
    before = {name: getattr(jax.config, name) for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    cache.reset_cache()  # JAX asks once whether there is one
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        cache.reset_cache()


def _processor() -> str:
    """The CPU and its instructions, in words."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"{platform.machine()} {platform.processor()}"


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


def describe(used: Sequence[jax.Device] = ()) -> str:
    """The devices of the run (JAX's first if none are named) and those of this host that it leaves alone, in words."""
    used = used or jax.local_devices()[:1]
    first = used[0]
    words = f"{len(used)} × {first.platform}" if len(used) > 1 else f"{first.platform}:{first.id}"
    idle = ", ".join(f"{device.platform}:{device.id}" for device in jax.local_devices() if device not in used)
    return f"{words} ({first.device_kind})" + (f"; left unused: {idle}" if idle else "")


def peak_memory_mib() -> float:
    """The most main memory that this process has held, in MiB."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # Linux: getrusage would count the process that started this one too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def device_memory(used: Sequence[Any]) -> dict[str, float]:
    """`device_memory_mib`: the most memory that one of these devices, those of this process, has held so far.

    JAX counts what its allocator has handed out, so the pool that it takes from the start (three
    quarters of a GPU) says nothing here. A CPU counts nothing: an empty dictionary.
    """
    here = jax.process_index()
    stats = [device.memory_stats() or {} for device in used if device.process_index == here]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    return {"device_memory_mib": round(max(peaks) / 2**20, 1)} if peaks else {}
