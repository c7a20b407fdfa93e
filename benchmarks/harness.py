"""What every benchmark shares: describing the machine, timing cases in turn, printing and writing the result.

A benchmark is a program: `python benchmarks/NAME.py [--quick] [--json FILE]`. It measures
cases one after another, round after round (A, B, A, B, …), so that whatever else the
machine does meets them alike, and prints medians with their spread (lowest to highest
round). A ratio above 1 means that ours is better. Nothing fails when something is slow.

The JSON: `{"machine", "commit", "versions", "command", "rows": [{"case", "ours", "peer",
"peer_name", "ratio", "unit", …}]}`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("alexnet-jax", "jax", "jaxlib", "flax", "numpy", "grain", "pillow", "simplejpeg", "torch", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a case gave in each round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest."""
        return min(self.values), max(self.values)


def interleave(cases: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = 1) -> dict[str, Samples]:
    """Measures the cases in turn, so many rounds, after rounds that do not count.

    Args:
      cases: functions that do their work once and give what was measured (a rate, say).
      rounds: how often each is measured.
      warm_up: rounds before those that count.
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(warm_up + rounds):
        for name, measure in cases.items():
            value = measure()
            if number >= warm_up:
                found[name].append(value)
    return {name: Samples(tuple(values)) for name, values in found.items()}


def row(
    case: str,
    ours: Samples,
    peer: Samples,
    peer_name: str,
    unit: str,
    *,
    target: float | None = None,
    lower_is_better: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """A line of the result.

    Args:
      case: what was measured.
      ours: our figures.
      peer: the other's, in the same unit, round by round beside ours.
      peer_name: whose they are.
      unit: of both.
      target: the ratio that we want at least.
      lower_is_better: as for memory; the ratio is then peer / ours.
      more: what else should stand in the JSON.
    """

    def ratio(a: float, b: float) -> float:
        above, below = (b, a) if lower_is_better else (a, b)
        return above / below if below else math.nan

    paired = [ratio(a, b) for a, b in zip(ours.values, peer.values, strict=False)]
    return {
        "case": case,
        "ours": ours.median,
        "peer": peer.median,
        "peer_name": peer_name,
        "ratio": ratio(ours.median, peer.median),
        "unit": unit,
        "target": target,
        "ours_spread": ours.spread,
        "peer_spread": peer.spread,
        "ratio_spread": (min(paired), max(paired)),
        "rounds": len(ours.values),
        **more,
    }


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flags that every benchmark has; the description is the program's docstring."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the result there too")
    found.add_argument("--quick", action="store_true", help="a short run: is it working? Its figures are not to quote")
    return found


class Report:
    """Collects rows and notes; `finish` prints the table and writes the JSON.

    Args:
      arguments: what `parser` gave.
      title: the first line.
      settings: what the figures depend on, printed below it.
    """

    def __init__(self, arguments: argparse.Namespace, title: str, **settings: Any):
        self._json = arguments.json
        about = machine()
        self._about = {"machine": about, "commit": commit(), "versions": versions(), "command": command()}
        self._rows: list[dict[str, Any]] = []
        self._notes: list[str] = []
        gpus = f", {', '.join(about['gpus'])}" if about["gpus"] else ""
        print(f"{title}\n{about['cpu']}, {about['cores']} cores, {about['memory_gib']:g} GiB{gpus}")
        print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()), flush=True)
        if about["busy_cores"] > 0.1 * about["cores"]:
            self.note(f"other programs keep {about['busy_cores']:g} cores busy: these figures are not to quote")
        if arguments.quick:
            self.note("--quick: these figures are not to quote")

    def add(self, line: dict[str, Any]) -> None:
        """A row, from `row`."""
        self._rows.append(line)
        print(f"… {line['case']}: {number(line['ours'])} {line['unit']}, ratio {line['ratio']:.2f}", flush=True)

    def note(self, text: str) -> None:
        """A sentence that a reader of the table should know."""
        self._notes.append(text)

    def finish(self, **more: Any) -> None:
        """Prints everything, and writes it, and what else is given, if `--json` asked for it."""
        print()
        print(table(self._rows))
        for text in self._notes:
            print(f"Note: {text}.")
        self.write(**more)

    def write(self, **more: Any) -> None:
        """Writes what there is so far, if `--json` asked for it."""
        if self._json:
            found = {**self._about, "rows": self._rows, "notes": self._notes, **more}
            self._json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text."""
    head = ("case", "ours", "(spread)", "peer", "(spread)", "ratio", "(spread)", "wanted", "unit", "peer is")
    lines: list[tuple[str, ...]] = [head]
    for line in rows:
        low, high = line["ratio_spread"]
        lines.append(
            (
                line["case"],
                number(line["ours"]),
                "–".join(map(number, line["ours_spread"])),
                number(line["peer"]),
                "–".join(map(number, line["peer_spread"])),
                f"{line['ratio']:.2f}",
                f"{low:.2f}–{high:.2f}",
                "" if line["target"] is None else f"≥ {line['target']:g}",
                line["unit"],
                line["peer_name"],
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    words = (0, 8, 9)  # columns of text, not of numbers
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in words else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def number(value: float) -> str:
    """A figure with three digits or more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """CPU model, cores, memory, GPUs, system, and how busy it was."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": round(memory, 1),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.release()}",
        "busy_cores": round(_busy_cores(), 2),
    }


def _busy_cores(seconds: float = 1.0) -> float:
    """How many cores are busy while this process sleeps; where nothing counts their time, the load average, late."""
    clock = pathlib.Path("/proc/stat")
    if not clock.exists():
        return os.getloadavg()[0]

    def ticks() -> int:
        times = [int(field) for field in clock.read_text().splitlines()[0].split()[1:9]]
        return sum(times) - times[3] - times[4]  # but idle and waiting for a disk

    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def _cpu() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return _output(query).splitlines()


def peak_mib() -> float:
    """The most main memory that this process has held (Linux; `ru_maxrss` would count the process that started it)."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def commit() -> str:
    """The commit of the source, with "-dirty" if files were changed since; "" outside a repository."""
    return _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])


def _output(arguments: Sequence[str]) -> str:
    """What a program prints; "" where it is not there or fails."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Of Python and the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """What was typed, the program's path from the root of the repository."""
    program = pathlib.Path(sys.argv[0]).resolve()
    name = program.relative_to(ROOT) if program.is_relative_to(ROOT) else pathlib.Path(program.name)
    return shlex.join(["python", name.as_posix(), *sys.argv[1:]])
