"""What `step.py` and `forward.py` share: options, the limits of the machine, rows with settings, a check of peers."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import harness
import limits
import our_networks
import torch_networks
import workers

PEERS = {"PyTorch": "torch", "ONNX Runtime": "onnxruntime", "Flax": "flax"}  # and the packages that they need
COMPILED = "torch.compile"
# GFLOP/s of the matrix product on the two Zen 4 cores (float32, PyTorch 2.13) where `EXPECTED` of the programs was
# measured, in milliseconds.
EXPECTED_PRODUCT = 210.0


def options(
    parser: argparse.ArgumentParser,
    peers: Iterable[str],
    batch_sizes: tuple[int, ...],
    variants: tuple[str, ...] = torch_networks.NETWORKS,
) -> None:
    """Adds what the programs have in common."""
    add = parser.add_argument
    names = " and ".join(torch_networks.NETWORKS)
    add("--variants", nargs="+", default=list(variants), help=f"of the networks; PyTorch has {names}")
    add("--batch-sizes", nargs="+", type=int, default=list(batch_sizes))
    add("--peers", nargs="*", choices=list(peers), default=list(peers))
    add("--no-compile", action="store_true", help="leave torch.compile out, which takes a minute to compile")
    add("--rounds", type=int, help="measurements of each case (7)")
    add("--seconds", type=float, help="that each takes at least (2)")
    add("--heap", choices=workers.HEAPS, default="kept", help="freed memory stays in the process; or glibc's default")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--precision", choices=torch_networks.PRECISIONS, default="float32")
    add("--image-size", type=int, help="pixels; the variant's own by default")
    add("--narrow", type=int, default=1, help="divide every width by this: for a test of the program")
    add("--classes", type=int, default=1000)


def run(
    about: str | None,
    title: str,
    peers: Iterable[str],
    batch_sizes: tuple[int, ...],
    measure: Callable[..., None],
    variants: tuple[str, ...] = torch_networks.NETWORKS,
) -> None:
    """The program: parses its options, measures each variant at each batch size, prints and writes.

    Args:
      about: its docstring.
      title: of the report.
      peers: that it can compare with, names in `PEERS`.
      batch_sizes: by default.
      measure: called with (arguments, report, peers that are there, variant, batch size, team of workers).
      variants: by default.
    """
    parser = harness.parser(about)
    options(parser, peers, batch_sizes, variants)
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 7)
    arguments.seconds = arguments.seconds or (0.05 if arguments.quick else 2.0)
    report = harness.Report(
        arguments,
        title,
        device=arguments.device,
        precision=arguments.precision,
        heap=arguments.heap,
        rounds=arguments.rounds,
    )
    there = available(arguments, report)
    for variant in arguments.variants:
        for batch_size in arguments.batch_sizes:
            with workers.Team(arguments.seconds, heap=arguments.heap, device=arguments.device) as team:
                measure(arguments, report, there, variant, batch_size, team)
    report.finish()


def available(arguments: argparse.Namespace, report: harness.Report) -> list[str]:
    """The wanted peers whose packages are there; a note for each that is not."""
    found = []
    for name in arguments.peers:
        packages = (PEERS[name], "onnx") if name == "ONNX Runtime" else (PEERS[name],)
        if all(map(importlib.util.find_spec, packages)):
            found.append(name)
        else:
            report.note(f"{name} is not installed, so the rows that compare with it are left out")
    return found


class Comparison:
    """One network at one batch size: the sides, measured in turn, and their rows.

    Args:
      arguments: of the program.
      report: where rows and notes go.
      title: "training paper, batch 32": what every case begins with.
      team: of workers.
    """

    def __init__(self, arguments: argparse.Namespace, report: harness.Report, title: str, team: workers.Team):
        self._arguments, self._report, self.title, self._team = arguments, report, title, team
        self._more: dict[str, Any] = {"precision": arguments.precision, "device": arguments.device}
        self.found: dict[str, harness.Samples] = {}
        print(f"{title}:", flush=True)

    def network(self, variant: str, batch_size: int) -> dict[str, Any]:
        """Arguments that every side takes."""
        self._more |= {"variant": variant, "batch_size": batch_size}
        found = {"variant": variant, "batch_size": batch_size, "classes": self._arguments.classes}
        if self._arguments.image_size:
            found["size"] = self._arguments.image_size
        return found | {"narrow": self._arguments.narrow}

    def ours(self, name: str, **arguments: Any) -> None:
        """A case of ours; the program fails if it does."""
        self._team.add(name, "ours", precision=self._arguments.precision, **arguments)

    def peer(self, name: str, side: str, **arguments: Any) -> None:
        """A peer's case; it is left out with a note if it fails."""
        try:
            self._team.add(name, side, **arguments)
        except workers.WorkerError as error:
            self._report.note(f"{self.title}: {name} is left out: {error}")

    def limits(self, what: str, libraries: Iterable[str]) -> None:
        """The machine's limit, as each of the libraries reaches it."""
        size = {"rows": 256, "size": 2**20} if self._arguments.quick else {}
        more = {"precision": self._arguments.precision, "device": self._arguments.device}
        for library in libraries:
            self.peer(f"{what}, {library}", "limits", what=what, library=library, **more, **size)

    def measure(self) -> None:
        """Measures all cases."""
        self.found = self._team.interleave(self._arguments.rounds)

    def limit(self, what: str) -> tuple[str, harness.Samples]:
        """The library that reached most, and its figures."""
        tried = {name: found for name, found in self.found.items() if name.startswith(f"{what}, ")}
        name = max(tried, key=lambda name: tried[name].median)
        return name.removeprefix(f"{what}, "), tried[name]

    def compare(
        self, ours: str, peer: str, *, case: str = "", peer_name: str = "", target: float | None = None, **more: Any
    ) -> None:
        """A row of two cases, if both are there."""
        if ours not in self.found or peer not in self.found:
            return
        settings: dict[str, Any] = {"ours_settings": self._team.settings[ours]}
        settings["peer_settings"] = self._team.settings[peer]
        title = f"{self.title}{f', {case}' if case else ''}"
        line = harness.row(
            title,
            self.found[ours],
            self.found[peer],
            peer_name or peer,
            "images/s",
            target=target,
            **self._more,
            **settings,
            **more,
        )
        self._report.add(line)

    def peaks(self, ours: str, peer: str) -> dict[str, float]:
        """The most memory that the processes have held, MiB by case, and its row if both are there.

        Args:
          ours: the only case of the JAX process.
          peer: the only one of the PyTorch process.
        """
        sides = {ours: "ours", peer: "PyTorch"}
        found = {name: self._team.peak(side) for name, side in sides.items() if name in self.found}
        if len(found) == 2:
            own, other = (harness.Samples((value,)) for value in found.values())
            settings = {"ours_settings": self._team.settings[ours], "peer_settings": self._team.settings[peer]}
            line = harness.row(f"{self.title}, peak memory", own, other, peer, "MiB", lower_is_better=True)
            self._report.add(line | self._more | settings)
        return found

    def share(self, name: str, operations: int, *, target: float | None = None) -> None:
        """The row of a case's arithmetic against the matrix product."""
        library, product = self.limit("product")
        ours = harness.Samples(tuple(rate * operations * 1e-9 for rate in self.found[name].values))
        what = f"matrix product ({library})"
        settings: dict[str, Any] = {"ours_settings": self._team.settings[name], "gflop_an_image": operations * 1e-9}
        settings["peer_settings"] = self._team.settings[f"product, {library}"]
        settings["product_by_library"] = {
            name.removeprefix("product, "): found.median
            for name, found in self.found.items()
            if name.startswith("product, ")
        }
        line = harness.row(f"{self.title}, GFLOP/s", ours, product, what, "GFLOP/s", target=target)
        self._report.add(line | self._more | settings)

    def best(self, names: Iterable[str]) -> str | None:
        """The fastest of the cases that are there."""
        there = [name for name in names if name in self.found]
        return max(there, key=lambda name: self.found[name].median, default=None)

    def check_peers(self, expected: Mapping[str, float]) -> None:
        """Notes how peers compare with earlier milliseconds of theirs, scaled by the matrix product."""
        arguments = self._arguments
        if arguments.quick or arguments.narrow != 1 or arguments.device != "cpu" or arguments.precision != "float32":
            return
        if arguments.image_size or arguments.heap != "kept" or arguments.classes != 1000 or harness.cores() != 2:
            return
        product = self.limit("product")[1].median
        words = []
        for name, wanted in expected.items():
            if name in self.found:
                took = 1000 * self._more["batch_size"] / self.found[name].median
                words.append(f"{name} {took:,.0f} ms, {took * product / EXPECTED_PRODUCT / wanted:.2f} of it")
        if words:
            self._report.note(
                f"{self.title}: against milliseconds measured earlier on two Zen 4 cores, scaled by the matrix product "
                f"({product:.0f} GFLOP/s here, {EXPECTED_PRODUCT:.0f} there): {'; '.join(words)}"
            )

    def close(self) -> None:
        """Notes what waiting processes took of the cores."""
        idle = {program: share for program, share in self._team.idle().items() if share > 0.02}
        if idle:
            words = ", ".join(f"{program} {share:.0%}" for program, share in idle.items())
            self._report.note(f"{self.title}: while others were measured, processes took of one core: {words}")


def operations(arguments: argparse.Namespace, variant: str, *, training: bool) -> int:
    """Floating-point operations of an image."""
    spec = our_networks.variant(variant, size=arguments.image_size, narrow=arguments.narrow)
    return our_networks.operations(spec, arguments.classes, training=training)


def libraries(peers: Iterable[str]) -> list[str]:
    """Those in which the limits are measured."""
    return [name for name in limits.LIBRARIES if name != "PyTorch" or "PyTorch" in peers]
