"""The default run, killed at random moments and started again each time, against an undisturbed one.

    python tests/training/kill_run.py --kills 25
    python tests/training/kill_run.py --kills 10 --signal TERM

Prints where each kill fell. Fails unless enough fell between the first and the last step (15 of 25) and inside a
checkpoint's writing (3 of 25; SIGKILL only), and unless metrics, parameters and momentum are those of the undisturbed
run, bit for bit.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
EPOCH = 1197 // 32
TIMING = ("images_per_second", "data_wait_fraction")
BETWEEN, WRITING, BEFORE, AFTER = (
    "between two steps",
    "inside a checkpoint's writing",
    "before a step",
    "after the last",
)


class Victim:
    """A process of the run, and what it has written so far."""

    def __init__(self, command: list[str], workdir: pathlib.Path, last: int):
        self.workdir, self.last = workdir, last
        self.old = self.seen()
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def seen(self) -> set[tuple[str, int]]:
        """The checkpoints that there are, complete or not, each with its inode."""
        found = set()
        for path in (self.workdir / "checkpoints").glob("[0-9]*"):
            try:
                found.add((path.name, path.stat().st_ino))
            except FileNotFoundError:
                continue
        return found

    def new(self) -> set[tuple[str, int]]:
        """The checkpoints of this process."""
        seen = self.seen()
        self.old &= seen  # what is gone may come again under the same name
        return seen - self.old

    def began(self) -> bool:
        """Whether it has taken a step: it writes a checkpoint every few."""
        return bool(self.new())

    def writing(self) -> bool:
        """Whether it is in the middle of a checkpoint."""
        return any("tmp" in name for name, _ in self.new())

    def newest(self) -> int:
        """The newest complete checkpoint's step."""
        return max((int(name) for name, _ in self.seen() if name.isdigit()), default=0)

    def wait_for(self, condition) -> bool:
        """Waits until a condition holds; False if the process ended before."""
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        return True

    def where(self) -> str:
        """Where it is: to be asked right after its end."""
        if self.writing():
            return WRITING
        if self.newest() >= self.last:
            return AFTER
        return BETWEEN if self.began() else BEFORE


def moment(chance: random.Random, victim: Victim, aim: str) -> None:
    """Waits for a random moment of a kind."""
    if aim == BEFORE:
        time.sleep(chance.uniform(0.1, 5))
    elif victim.wait_for(victim.began):
        if aim == WRITING:
            time.sleep(chance.uniform(0, 0.5))
            victim.wait_for(victim.writing)
            time.sleep(chance.uniform(0, 0.03))
        elif aim == AFTER:
            victim.wait_for(lambda: victim.newest() >= victim.last)
            time.sleep(chance.uniform(0, 0.5))
        else:
            time.sleep(chance.uniform(0, 1))


def aims(chance: random.Random, kills: int) -> list[str]:
    """What each kill is aimed at; where it falls is seen afterwards."""
    writing, before = math.ceil(kills / 5), kills // 8
    found = [WRITING] * writing + [BEFORE] * before + [BETWEEN] * (kills - writing - before - 1)
    chance.shuffle(found)
    return [*found, AFTER]


def killed(command: list[str], workdir: pathlib.Path, last: int, kills: int, number: int, chance: random.Random):
    """Runs to the end through all kills; how many fell where."""
    fell: collections.Counter[str] = collections.Counter()
    for index, aim in enumerate(aims(chance, kills), 1):
        victim = Victim(command, workdir, last)
        moment(chance, victim, aim)
        victim.process.send_signal(number)
        sent = time.monotonic()
        err = victim.process.communicate(timeout=120)[1]
        seconds, code = time.monotonic() - sent, victim.process.returncode
        if code == 0 and index < kills:
            raise SystemExit("the run ended before its kills did: give it more --epochs")
        right = (-number, 128 + number, 0) if number == signal.SIGTERM else (-number, 0)
        if code not in right or (number == signal.SIGTERM and seconds > 10):
            raise SystemExit(f"kill {index}: exit code {code} after {seconds:.1f} s\n{err}")
        where = victim.where()
        fell[where] += 1
        print(f"kill {index:>3}: {where}; newest checkpoint {victim.newest()} of {last}; {seconds:.1f} s", flush=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"the last start failed:\n{done.stdout}{done.stderr}")
    return fell


def outcome(workdir: pathlib.Path, last: int):
    """The lines without their timing, the arrays of the last checkpoint by name, and the result."""
    import jax

    from alexnet_jax.training.metrics import read

    lines = read(workdir / "metrics.jsonl")
    assert all(math.isfinite(line[name]) for line in lines for name in TIMING if line["split"] == "train")
    kept = [{name: value for name, value in line.items() if name not in TIMING} for line in lines]
    state = ocp.StandardCheckpointHandler().restore(workdir / "checkpoints" / str(last) / "state")
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}
    result = json.loads((workdir / "result.json").read_text())
    return kept, arrays, {name: result[name] for name in ("loss", "top1_error", "top5_error", "best_step")}


def compare(folder: pathlib.Path, last: int) -> None:
    """Fails with words where the two runs differ."""
    (lines, arrays, result), (lines2, arrays2, result2) = (outcome(folder / name, last) for name in ("whole", "killed"))
    places = [(line["split"], line["step"]) for line in lines2]
    if len(places) != len(set(places)):
        raise SystemExit("a (split, step) is in metrics.jsonl twice")
    if lines != lines2:
        other = [(a, b) for a, b in zip(lines, lines2, strict=False) if a != b][:1]
        raise SystemExit(f"metrics.jsonl differs: {len(lines)} and {len(lines2)} lines, first difference {other}")
    same = arrays.keys() == arrays2.keys()
    if not same or any(
        a.dtype != arrays2[name].dtype or a.tobytes() != arrays2[name].tobytes() for name, a in arrays.items()
    ):
        raise SystemExit("parameters or momentum differ")
    if result != result2:
        raise SystemExit(f"result.json differs: {result} and {result2}")
    print(
        f"{len(lines)} lines of metrics, {len(arrays)} arrays and the result equal the undisturbed run's, bit for bit"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--epochs", type=int, help="of the run (default: enough for the kills)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--folder", type=pathlib.Path, help="where the two runs are written; empty (default: temporary)"
    )
    parser.add_argument("flags", nargs="*", help="more flags of train.py, after --")
    options = parser.parse_args()
    epochs = options.epochs or max(2, math.ceil(0.7 * options.kills))
    last = epochs * EPOCH
    number = getattr(signal, f"SIG{options.signal}")
    # Neither lines nor checkpoints fall on the ends of epochs or on each other.
    flags = [f"--config.num_epochs={epochs}", "--config.log_every_steps=7", "--config.checkpoint_every_steps=5"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or pathlib.Path(temporary)
        command = [sys.executable, str(ROOT / "train.py"), *flags, *options.flags]
        subprocess.run([*command, f"--workdir={folder / 'whole'}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        print(f"undisturbed: {last} steps", flush=True)
        chance = random.Random(options.seed)
        fell = killed(
            [*command, f"--workdir={folder / 'killed'}"], folder / "killed", last, options.kills, number, chance
        )
        print(", ".join(f"{count} {where}" for where, count in fell.items()))
        compare(folder, last)
    inside = fell[BETWEEN] + fell[WRITING]
    wanted = 0 if number == signal.SIGTERM else math.floor(3 * options.kills / 25)
    if inside < math.floor(15 * options.kills / 25) or fell[WRITING] < wanted:
        raise SystemExit("too few kills fell between the first and the last step, or inside a checkpoint's writing")


if __name__ == "__main__":
    main()
