"""Settings of every test: implicit rank promotion is an error, several devices, PyTorch where it is there."""

from __future__ import annotations

import gc
import importlib.util
import os

# Before JAX starts: several devices for the tests that map over them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip()

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Small networks cost more to compile than to run: no expensive passes. Processes of their own compile as users' do.
jax.config.update("jax_disable_most_optimizations", True)

PARITY = "compares with PyTorch, which is not installed: pip install -e '.[parity]'"

PEERS = {"torch": "PyTorch", "cv2": "OpenCV"}  # of the extra `parity`


def pytest_addoption(parser):
    parser.addoption("--require-parity", action="store_true", help="fail where a peer is missing, instead of skipping")


def pytest_configure(config):
    # XLA's older code for fusions compiles in half the time. What is slow takes that of users' programs.
    if jax.__version_info__ < (0, 11) and "not slow" in config.option.markexpr:
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


def pytest_collection_modifyitems(config, items):
    missing = [peer for module, peer in PEERS.items() if importlib.util.find_spec(module) is None]
    if missing and config.getoption("--require-parity"):
        raise pytest.UsageError(f"--require-parity: not installed: {', '.join(missing)}")
    if "PyTorch" not in missing:
        return
    for item in items:
        if item.get_closest_marker("parity"):
            item.add_marker(pytest.mark.skip(reason=PARITY))


def pytest_terminal_summary(terminalreporter):
    left_out = [report for report in terminalreporter.stats.get("skipped", []) if "PyTorch" in str(report.longrepr)]
    if left_out:
        terminalreporter.write_line(f"{len(left_out)} tests left out: each {PARITY}")


@pytest.fixture
def x64():
    """Runs the test in 64-bit JAX."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def collected():
    """Collects, at the end of the test, what failed saves and restores left behind."""
    yield
    gc.collect()


@pytest.fixture
def fully_compiled():
    """Compiles as users' programs are."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def _whole_networks(request):
    """Beside PyTorch they take longer to run than to compile."""
    if request.node.get_closest_marker("parity"):
        request.getfixturevalue("fully_compiled")


@pytest.fixture(scope="session")
def torch():
    """PyTorch, or the test is skipped."""
    return pytest.importorskip("torch")
