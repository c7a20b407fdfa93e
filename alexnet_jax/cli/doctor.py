"""`alexnet-jax doctor`: the state of the installation and the machine, to paste into a bug report.

Every part stands alone: one that fails says why in a line, and the rest goes on.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from alexnet_jax.cli.arguments import Parser, refuse

VARIABLES = re.compile(r"(XLA_FLAGS|JAX_\w+|CUDA_VISIBLE_DEVICES|SLURM_\w+|XLA_PYTHON_CLIENT_\w+)$")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|JWT", re.IGNORECASE)
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "fuse.sshfs", "9p", "afs")

Facts = dict[str, Any]


def doctor(argv: Sequence[str], *, program: str) -> int:
    """`alexnet-jax doctor`: exit code 0, however broken what it finds; 2 for a mistake on the command line."""
    parser = Parser(prog=program, description="Versions, devices, memory and disks, as text for a bug report.")
    parser.add_argument("--data", type=pathlib.Path, metavar="DIR", help="a prepared folder: does it fit into memory?")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs"), help="default: runs")
    parser.add_argument("--json", action="store_true", help="one JSON object instead")
    try:
        options = parser.parse_args(argv)
    except ValueError as error:
        return refuse(program, str(error))
    found = examine(options.workdir, options.data)
    text = json.dumps(found, indent=1, ensure_ascii=False) if options.json else as_text(found)
    print(_without_home(text))
    return 0


def examine(workdir: pathlib.Path, data: pathlib.Path | None) -> dict[str, Facts]:
    """Section → name → fact; a section that failed holds `error`."""
    sections: dict[str, Callable[[], Facts]] = {
        "versions": _versions,
        "devices": _devices,
        "gpu": _gpu,
        "environment": _environment,
        "host": _host,
        "workdir": lambda: _disk(workdir),
        "cache": lambda: _disk(_cache()),
    }
    if data is not None:
        sections["data"] = lambda: _data(data)
    sections["git"] = _git
    return {name: _attempt(section) for name, section in sections.items()}


def as_text(found: dict[str, Facts]) -> str:
    """A line a fact, in columns."""
    lines = []
    for section, facts in found.items():
        lines.append(section)
        for name, value in (facts or {"": "nothing"}).items():
            lines.append(f"  {name:<24} {value}")
    return "\n".join(lines)


def _attempt(section: Callable[[], Facts]) -> Facts:
    try:
        return section()
    except Exception as error:  # whatever is broken, the rest is wanted all the more
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())}


def _versions() -> Facts:
    from alexnet_jax.training.result import PACKAGES

    found: Facts = {"python": f"{platform.python_version()} on {platform.platform()}"}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    names = {str(one.metadata["Name"] or "").lower(): one.version for one in importlib.metadata.distributions()}
    return found | {name: names[name] for name in sorted(names) if name.startswith(("jax-cuda", "nvidia-"))}


def _devices() -> Facts:
    import jax

    found: Facts = {"backend": jax.default_backend(), "processes": jax.process_count()}
    for device in jax.local_devices():
        memory = (_statistics(device) or {}).get("bytes_limit")
        words = device.device_kind + (f", {_size(memory)} to use" if memory else "")
        found[f"{device.platform}:{device.id}"] = words
    return found


def _statistics(device: Any) -> dict[str, int] | None:
    import jax

    try:
        return device.memory_stats()
    except (NotImplementedError, jax.errors.JaxRuntimeError):  # a platform that has none
        return None


def _gpu() -> Facts:
    from alexnet_jax.training import devices

    found: Facts = {"in this host": ", ".join(devices.nvidia_gpus()) or "none seen"}
    driver = pathlib.Path("/proc/driver/nvidia/version")
    if driver.exists():
        found["driver"] = driver.read_text().splitlines()[0]
    if shutil.which("nvidia-smi"):
        found |= _attempt(_smi)
    found |= _attempt(lambda: {"advice": devices.check_gpu(False) or "none"})
    return found | _attempt(_cuda)


def _cuda() -> Facts:
    """What JAX itself says of CUDA; nothing where it has none."""
    from jax._src.lib import cuda_versions  # there is no public name for it

    calls = ("cuda_runtime_get_version", "cuda_driver_get_version", "cudnn_get_version")
    if cuda_versions is None:
        return {}
    return {f"jax: {name.removesuffix('_get_version')}": getattr(cuda_versions, name)() for name in calls}


def _smi() -> Facts:
    command = ["nvidia-smi", "--query-gpu=index,name,driver_version,memory.total,memory.used", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if done.returncode:
        return {"nvidia-smi": " ".join((done.stdout + done.stderr).split()) or f"exit code {done.returncode}"}
    return {f"nvidia-smi {number}": line for number, line in enumerate(done.stdout.strip().splitlines())}


def _environment() -> Facts:
    names = sorted(name for name in os.environ if VARIABLES.match(name))
    return {name: "(not shown)" if SECRET.search(name) else os.environ[name] for name in names}


def _host() -> Facts:
    from alexnet_jax.data.images import cores

    found: Facts = {"cores": f"{cores()} of {os.cpu_count()} for this process"}
    quota = _read("/sys/fs/cgroup/cpu.max")
    if quota and not quota.startswith("max"):
        limit, period = map(int, quota.split())
        found["cores, container"] = f"{limit / period:g}"
    memory = _memory()
    found["memory"] = f"{_size(memory['MemTotal'])}, {_size(memory['MemAvailable'])} available"
    if (limit_bytes := _container_memory()) is not None:
        found["memory, container"] = _size(limit_bytes)
    shared = shutil.disk_usage("/dev/shm") if pathlib.Path("/dev/shm").is_dir() else None
    return found | ({"/dev/shm": f"{_size(shared.free)} free of {_size(shared.total)}"} if shared else {})


def _memory() -> dict[str, int]:
    """/proc/meminfo, in bytes."""
    lines = (line.split() for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3}


def _container_memory() -> int | None:
    text = _read("/sys/fs/cgroup/memory.max") or _read("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    return int(text) if text and text.isdigit() and int(text) < 1 << 60 else None  # v1 writes a huge number for none


def _read(path: str) -> str | None:
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return None


def _disk(path: pathlib.Path) -> Facts:
    path = path.expanduser().absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    usage = shutil.disk_usage(there)
    kind = filesystem(there.resolve(), _read("/proc/mounts") or "")
    words = f"{kind}, over a network: see docs/operations.md" if kind in NETWORK else kind
    return {
        "path": str(path) + ("" if there == path else " (not made yet)"),
        "free": f"{_size(usage.free)} of {_size(usage.total)}",
        "file system": words,
        "can be written": "yes" if os.access(there, os.W_OK) else "no",
    }


def filesystem(path: pathlib.Path, mounts: str) -> str:
    """The kind of file system that a path is on, by the text of /proc/mounts; the last of the longest mounts."""
    best, kind = -1, "unknown"
    for line in mounts.splitlines():
        _, raw, found, *_ = line.split(" ")
        mount = pathlib.Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), raw))
        if path.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), found
    return kind


def _cache() -> pathlib.Path:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alexnet-jax"


def _data(directory: pathlib.Path) -> Facts:
    from alexnet_jax.data.prepared import open_prepared

    data = open_prepared(directory)
    size = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    limits = [_memory()["MemAvailable"], *([limit] if (limit := _container_memory()) is not None else [])]
    verdict = "fits" if size < min(limits) else "does NOT fit: every epoch reads from the disk"
    counts = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    return _disk(directory) | {
        "images": f"{counts}, {data.image_size} pixels, {len(data.classes):,} classes, {data.manifest['encoding']}",
        "size": _size(size),
        "page cache": f"{verdict} ({_size(min(limits))} available)",
    }


def _git() -> Facts:
    from alexnet_jax.training.result import git_state

    return git_state() or {"commit": "no clone"}


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _without_home(text: str) -> str:
    home = str(pathlib.Path.home())
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if len(home) > 1 else text
