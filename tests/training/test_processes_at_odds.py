"""What befalls one process of a run alone: the others hear of it, and nothing of the run is lost."""

from __future__ import annotations

import pathlib
import sys

import pytest

from .teams import Processes, assert_same, free_port, saved
from .test_team import images

WORKER = pathlib.Path(__file__).with_name("odd_worker.py")
SMALL = (
    *("--config.model.name=cifar", "--config.model.width=0.25", "--config.model.init=None", "--config.batch_size=4"),
    *("--config.num_steps=12", "--config.log_every_steps=1", "--config.optimizer.schedule=plateau"),
    *("--config.data.image_size=32", "--config.data.crop_size=32"),
)
EPOCH, LAST = 4, 12


@pytest.fixture(scope="module")
def ended(environment, tmp_path_factory):
    """Runs a case; (workdir, exit codes, what each said)."""
    folder = tmp_path_factory.mktemp("odds")
    source = images(folder / "images")

    def run(case, name=None):
        workdir = folder / (name or case)
        port = free_port()
        flags = [str(workdir), *SMALL, f"--config.data.source=folder:{source}"]
        commands = [[sys.executable, str(WORKER), case, str(index), str(port), *flags] for index in range(2)]
        processes = Processes(commands, environment, folder / f"{case} in {workdir.name}")
        try:
            codes = processes.codes(200)
        finally:
            processes.end()
        return workdir, codes, [processes.said(index) for index in range(2)]

    return run


@pytest.fixture(scope="module")
def whole(ended):
    """The workdir of a run that nothing befell."""
    workdir, codes, said = ended("nothing")
    assert codes == [0, 0], said
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("step", [EPOCH, LAST], ids=["in the middle", "at the end"])
def test_a_signal_during_an_evaluation_stops_both_and_the_evaluation_is_made_up_for(ended, whole, step):
    """The schedule hears of every evaluation, at its own step."""
    workdir, codes, said = ended(f"signal at {step}")
    assert codes == [143, 143], said
    assert saved(workdir)[-1] == step
    assert not (workdir / "result.json").exists()
    _, codes, said = ended("nothing", workdir.name)
    assert codes == [0, 0], said
    assert_same(workdir, whole, LAST)


@pytest.mark.slow
def test_damaged_data_of_one_process_ends_it_with_its_own_code(ended):
    _, codes, said = ended("damaged")
    assert codes == [75, 2], said
    assert "a part is damaged" in said[1]
    assert "process 0 of 2 can't go on: another one has ended" in said[0]


@pytest.mark.slow
def test_two_runs_one_after_the_other_in_the_same_processes(ended):
    workdir, codes, said = ended("twice")
    assert codes == [0, 0], said
    assert_same(workdir.with_name("twice-0"), workdir.with_name("twice-1"), LAST)
