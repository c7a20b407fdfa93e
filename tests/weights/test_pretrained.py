"""from_pretrained: files served on this machine, whole, cut off, wrong, late and not at all."""

from __future__ import annotations

import hashlib
import http.server
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pooch
import pytest
from safetensors.numpy import save

from alexnet_jax import from_pretrained, load_weights, weights
from alexnet_jax.cli import main
from alexnet_jax.weights import WeightsError, pretrained
from alexnet_jax.weights.pretrained import MIRROR, PUBLISHED, Published, fetch

from .networks import assert_holds, torch_state

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; `answers` says how each request in turn is answered, the last for all others."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.answers, self.asked = CONTENT, ["whole"], []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        if answer == "missing":
            self.send_error(404)
            return
        content = bytes(len(server.content)) if answer == "wrong" else server.content
        self.send_response(200)
        if answer != "cut without a length":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if answer.startswith("cut"):
            self.wfile.write(content[: len(content) // 2])
            return
        for start in range(0, len(content), 1 << 15):
            if answer == "slow":  # two processes overlap
                time.sleep(0.02)
            self.wfile.write(content[start : start + (1 << 15)])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", MIRROR):
        monkeypatch.delenv(name, raising=False)
    found = Server()
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """The library waits a second and more between its tries."""
    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.02)))


def published(server, digits=40, content=CONTENT):
    return Published(f"{server.url}/there/net.weights", "sha1", hashlib.sha1(content).hexdigest()[:digits])


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("digits", [40, 8])
def test_fetched_once(server, tmp_path, digits):
    wanted = published(server, digits)
    place = fetch(wanted, tmp_path / "cache" / "weights")
    assert place.read_bytes() == CONTENT
    server.stop()
    assert fetch(wanted, tmp_path / "cache" / "weights") == place
    assert (server.asked, files(place.parent)) == (["/there/net.weights"], ["net.weights"])


@pytest.mark.parametrize("answer", ["cut", "cut without a length", "wrong", "missing"])
def test_what_goes_wrong_once_is_tried_again(server, tmp_path, answer):
    server.answers = [answer, answer, "whole"]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert (len(server.asked), files(tmp_path)) == (3, ["net.weights"])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("cut", "150000 bytes read, 150000 more expected"),
        ("cut without a length", "its sha1 is "),
        ("wrong", "its sha1 is "),
        ("missing", "404 Client Error"),
    ],
)
def test_what_stays_wrong_is_an_error_and_leaves_nothing(server, tmp_path, answer, reason):
    server.answers = [answer]
    wanted = published(server)
    with pytest.raises(WeightsError) as caught:
        fetch(wanted, tmp_path)
    message = str(caught.value)
    for words in (
        reason,
        "net.weights could not be fetched",
        wanted.url,
        f"put it at {tmp_path / 'net.weights'}",
        MIRROR,
    ):
        assert words in message
    assert ("the file that is there" not in message, "\n" not in message) == (True, True)
    assert (len(server.asked), files(tmp_path)) == (3, [])


def test_without_a_network(server, tmp_path):
    server.stop()
    wanted = published(server)
    with pytest.raises(
        WeightsError, match=r"(?s)could not be fetched: http.*refused.*put it at .*/net\.weights, or set"
    ):
        fetch(wanted, tmp_path)
    (tmp_path / "net.weights").write_bytes(b"another")
    with pytest.raises(WeightsError, match=r"the file that is there now is another one \(sha1 [0-9a-f]{40}\)"):
        fetch(wanted, tmp_path)
    assert (tmp_path / "net.weights").read_bytes() == b"another"
    (tmp_path / "net.weights").write_bytes(CONTENT)
    assert fetch(wanted, tmp_path).read_bytes() == CONTENT


def test_a_file_that_is_another_is_replaced(server, tmp_path):
    (tmp_path / "net.weights").write_bytes(CONTENT[:-1])
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT


def test_mirrors_come_first_and_in_order(server, tmp_path, monkeypatch):
    monkeypatch.setenv(MIRROR, f"{server.url}/first/ {server.url}/second")
    server.answers = ["missing", "missing", "missing", "whole"]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [*["/first/net.weights"] * 3, "/second/net.weights"]
    server.asked.clear()
    server.answers = ["wrong"] * 6 + ["whole"]
    (tmp_path / "net.weights").unlink()
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "/there/net.weights"
    monkeypatch.setenv(MIRROR, "file:///etc")
    with pytest.raises(WeightsError, match="ALEXNET_JAX_MIRROR: 'file:///etc' is no address that begins with http://"):
        fetch(published(server), tmp_path)


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"can't be read or written .*: make room or give rights there"):
        fetch(published(server), tmp_path / "file" / "weights")


def test_what_a_killed_process_left_behind_goes(server, tmp_path):
    for name, age in ((".fetching-old", 2), (".fetching-new", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tmp123").write_bytes(CONTENT)
        then = time.time() - age * 24 * 3600
        os.utime(tmp_path / name, (then, then))
    fetch(published(server), tmp_path)
    assert files(tmp_path) == [".fetching-new", "net.weights"]


@pytest.mark.slow
def test_two_processes_at_once(server, tmp_path):
    server.answers = ["slow"]
    wanted = published(server)
    code = (
        "import pathlib, sys\n"
        "from alexnet_jax.weights.pretrained import Published, fetch\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        f"place = fetch({wanted!r}, pathlib.Path({str(tmp_path)!r}))\n"
        "import hashlib\n"
        "print(hashlib.sha1(place.read_bytes()).hexdigest())\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pair = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    try:
        for process in pair:
            assert process.stdout.readline() == "ready\n"
        for process in pair:
            process.stdin.write("\n")
            process.stdin.flush()
        for process in pair:
            out, err = process.communicate(timeout=120)
            assert (process.returncode, out.strip()) == (0, wanted.digest), err
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    assert (len(server.asked), files(tmp_path)) == (2, ["net.weights"])


def test_from_pretrained(server, tmp_path, monkeypatch):
    """From the user's cache, as the variant of that name; the network is narrow, to be quick."""
    spec, params, state = torch_state("torchvision")
    server.content = save(state)
    asked = []

    def load(path, *, variant, **options):
        asked.append((path, variant, options))
        return load_weights(path, variant=spec, **options)

    monkeypatch.setattr(pretrained, "load_weights", load)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in PUBLISHED:
        monkeypatch.setitem(PUBLISHED, name, published(server, 8, server.content))
        assert_holds(from_pretrained(name, rngs=3), params)
    assert from_pretrained(name, partial=True, num_classes=3, cache_dir=tmp_path / "here").num_classes == 3
    place = tmp_path / "alexnet-jax" / "weights" / "net.weights"
    options = {"num_classes": None, "partial": False, "rngs": 3}
    assert asked[:3] == [(place, name, options) for name in PUBLISHED]
    assert (len(server.asked), files(tmp_path / "here")) == (2, ["net.weights"])


def test_a_command_takes_a_name_where_there_is_no_such_file(server, monkeypatch, tmp_path, capsys):
    asked = []

    def opened(place, *, variant):
        asked.append((place, variant))
        raise WeightsError("seen")

    monkeypatch.setattr(weights, "open_weights", opened)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(PUBLISHED, "caffenet", published(server))
    monkeypatch.chdir(tmp_path)
    command = ["kernels", "--weights", "caffenet", "--out", "k.png"]
    assert [main(command), main([*command, "--variant", "bvlc_alexnet"])] == [2, 2]
    (tmp_path / "caffenet").mkdir()
    assert main(command) == 2
    assert "seen" in capsys.readouterr().err
    fetched = tmp_path / "cache" / "alexnet-jax" / "weights" / "net.weights"
    assert asked == [(fetched, "caffenet"), (fetched, "bvlc_alexnet"), (pathlib.Path("caffenet"), None)]
    assert len(server.asked) == 1


def test_an_unknown_name(server):
    with pytest.raises(ValueError, match="weights must be one of 'torchvision', 'bvlc_alexnet', 'caffenet'"):
        from_pretrained("paper")


def test_what_is_published():
    assert PUBLISHED["torchvision"].digest in PUBLISHED["torchvision"].file
    assert [len(entry.digest) for entry in PUBLISHED.values()] == [8, 40, 40]
