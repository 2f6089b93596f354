"""A job over several hosts, which share no memory: the same answers as on one, and an end where a host is lost."""

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hosts import Hosts, wait_until
from job import Stream
from serving import BINARY, ROOT, Server, wait_for_address

DEMO = ROOT / "launch" / "demo-model"

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")


@pytest.fixture(scope="module")
def hosts():
    try:
        made = Hosts(3).__enter__()
    except OSError as why:
        pytest.skip(f"this machine makes no hosts of its own: {why}")
    yield made
    made.__exit__()


@pytest.fixture
def running(hosts):
    """Starts a job; ends it after the test, whatever mpirun thinks of it."""
    jobs = []

    def start(slots, *words):
        log = tempfile.TemporaryFile("w+")
        process = hosts.mpirun(slots, *words, stdout=log, stderr=subprocess.STDOUT)
        jobs.append((process, log))
        return process, log

    yield start
    for process, log in jobs:
        process.kill()
        process.wait()
        log.close()
    for host in hosts.hosts:
        for pid in host.pids(BINARY.name) + host.pids("orted"):
            os.kill(pid, signal.SIGKILL)


def text_of(log):
    log.seek(0)
    return log.read()


@pytest.mark.parametrize("slots", [[2, 2, 1], [2, 2]], ids=str)  # tokens take one hop, and two
@pytest.mark.parametrize("option", [(), ("--ucx",)], ids=["mpi", "ucx"])
def test_communicator(running, option, slots):
    process, log = running(slots, BINARY.parent / "tests" / "mpi_communicator_test", *option)
    status = process.wait(120)
    if status == 77:
        pytest.skip("built without UCX")
    assert status == 0, text_of(log)


@pytest.mark.parametrize("slots", [[1, 1, 1], [2, 2, 1], [2, 2]], ids=str)
def test_same_answers_as_on_one_host(running, tmp_path, slots):
    options = ["eval", "--model", DEMO, "--json"]
    for name, option in (("puzzles", "--puzzles"), ("solutions", "--text")):
        lines = (DEMO / f"{name}.jsonl").read_text().splitlines()
        some = tmp_path / f"{name}.jsonl"
        some.write_text("\n".join(lines[::len(lines) // 20]) + "\n")
        options += [option, some]
    alone = subprocess.run([str(BINARY), *map(str, options)], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    process, log = running(slots, BINARY, *options)
    assert process.wait(120) == 0, text_of(log)
    one, many = (json.loads(text[text.index("{\n"):]) for text in (alone.stdout, text_of(log)))  # mpirun may warn first
    assert many["accuracy"]["tasks"] == one["accuracy"]["tasks"]
    assert many["perplexity"]["perplexity"] == pytest.approx(one["perplexity"]["perplexity"], rel=1e-6)


def serving(start, slots):
    process, log = start(slots, BINARY, "serve", "--model", DEMO, "--host", "127.0.0.1", "--port", "0")
    wait_for_address(process, log, time.monotonic() + 60)
    return process, log


def recovering(hosts, start, slots, collectives):
    process, log = start(slots, "--enable-recovery", BINARY, "serve", "--recover", "--collectives", collectives, "--model",
                         DEMO, "--host", "0.0.0.0", "--port", "0")
    try:
        url = wait_for_address(process, log, time.monotonic() + 60)
    except RuntimeError:
        if "without UCX" in text_of(log):
            pytest.skip("built without UCX")
        raise
    return process, log, Server(f"http://{hosts.network}.1:{url.rsplit(':', 1)[1]}")


def under_way(server):
    """Three answers at once, which are on different ranks, when each has begun."""
    streams = [Stream(server, [5, 6, 7 + i], tokens=300) for i in range(3)]
    for stream in streams:
        assert stream.some.wait(90)
    return streams


def answers(streams):
    return [stream.answer() for stream in streams]


@pytest.mark.parametrize("collectives", ["mpi", "ucx"])
def test_killed_rank_of_another_host_is_outlived(hosts, running, collectives):
    process, log, server = recovering(hosts, running, [1, 2, 1], collectives)
    undisturbed = answers(under_way(server))
    busy, idle = (hosts.hosts[i].pids(BINARY.name)[0] for i in (1, 2))
    streams = under_way(server)
    os.kill(busy, signal.SIGKILL)
    assert all(stream.is_alive() for stream in streams), "it may have been idle when the rank was lost"
    assert answers(streams) == undisturbed
    assert wait_until(lambda: "recovered ranks=3" in text_of(log), 10), text_of(log)
    os.kill(idle, signal.SIGKILL)
    assert wait_until(lambda: "recovered ranks=2" in text_of(log), 10), text_of(log)
    assert answers(under_way(server)) == undisturbed


@pytest.mark.parametrize("collectives", ["mpi", "ucx"])
def test_host_without_network_is_outlived(hosts, running, collectives):
    process, log, server = recovering(hosts, running, [1, 1, 1], collectives)
    undisturbed = answers(under_way(server))
    streams = under_way(server)
    with hosts.cable_pulled(2):
        assert all(stream.is_alive() for stream in streams), "it may have been idle when the host was lost"
        assert answers(streams) == undisturbed
        assert re.search(r"rank lost rank=2 .*no sign of life", text_of(log)), text_of(log)
        assert answers(under_way(server)) == undisturbed


def test_killed_rank_of_another_host_is_named(hosts, running):
    process, log = serving(running, [1, 2, 1])
    os.kill(hosts.hosts[1].pids(BINARY.name)[0], signal.SIGKILL)
    assert process.wait(30) != 0
    assert re.search(rf"shoal: rank [12] \(host {hosts.hosts[1].name}, .*ending the job", text_of(log)), text_of(log)


def test_host_without_network_is_named_and_all_end(hosts, running):
    """mpirun itself may wait for that host for ever; no rank does."""
    process, log = serving(running, [1, 1, 1])
    alive = lambda: [pid for host in hosts.hosts for pid in host.pids(BINARY.name)]  # noqa: E731
    with hosts.cable_pulled(2):
        assert wait_until(lambda: not alive(), 40), text_of(log)
    assert re.search(rf"shoal: rank 2 \(host {hosts.hosts[2].name}, .*no sign of life.*ending the job", text_of(log)), \
        text_of(log)
    assert "Ctrl-C" in text_of(log)
