"""Hosts of a cluster on one machine: each has its own network, name, processes, IPC and /dev/shm, so that ranks on two of
them share no memory and talk over TCP alone. Needs root (or what else may make namespaces) and iproute2."""

import contextlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

from serving import MPI_ENVIRONMENT


class Host:
    """Pid 1 of a host, which keeps its namespaces."""

    def __init__(self, name):
        self.name = name
        script = f'hostname {name} && mount -t tmpfs tmpfs /dev/shm && echo up && while :; do sleep 1000 & wait $!; done'
        self.process = subprocess.Popen(
            ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c",
             script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "up\n":
            raise OSError(f"{name}: {self.process.stderr.read()}")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.pid = int(children[0])

    def command(self, *words):
        return ["nsenter", "-t", str(self.pid), "-n", "-u", "-i", "-m", "-p", "--", *words]

    def pids(self, name):
        """Of the processes of that name, as this machine numbers them."""
        space = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (folder / "comm").read_text().strip() == name and os.readlink(folder / "ns" / "pid") == space:
                    found.append(int(folder.name))
        return found

    def kill(self):
        self.process.kill()
        self.process.wait()


class Hosts:
    """`count` hosts on a bridge, as a context manager. OSError where the machine does not allow it."""

    def __init__(self, count):
        self.count, self.bridge = count, f"sh{os.getpid() % 1000000}"
        self.network = f"10.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}"
        self.hosts = []
        self.folder = tempfile.TemporaryDirectory()

    def ip(self, *words):
        done = subprocess.run(["ip", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise OSError(f"ip {' '.join(words)}: {done.stderr}")

    def __enter__(self):
        try:
            self.ip("link", "add", self.bridge, "type", "bridge")
            self.ip("addr", "add", f"{self.network}.254/24", "dev", self.bridge)
            self.ip("link", "set", self.bridge, "up")
            for i in range(self.count):
                host = Host(f"{self.bridge}-{i}")
                self.hosts.append(host)
                cable = f"{self.bridge}v{i}"
                self.ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
                self.ip("link", "set", cable, "master", self.bridge, "up")
                for words in ("link set lo up", f"addr add {self.network}.{i + 1}/24 dev eth0", "link set eth0 up"):
                    done = subprocess.run(host.command("ip", *words.split()), stderr=subprocess.PIPE, text=True)
                    if done.returncode != 0:
                        raise OSError(f"ip {words}: {done.stderr}")
                (Path(self.folder.name) / f"{self.network}.{i + 1}").write_text(str(host.pid))
        except OSError:
            self.__exit__()
            raise
        agent = Path(self.folder.name) / "agent"  # what mpirun calls instead of ssh
        agent.write_text('#!/bin/sh\npid=$(cat "$(dirname "$0")/$1"); shift\n'
                         'exec nsenter -t "$pid" -n -u -i -m -p -- /bin/sh -c "$*"\n')
        agent.chmod(0o755)
        return self

    def __exit__(self, *_):
        for host in self.hosts:
            host.kill()
        # Sockets that wait for an answer keep a host's network, and its cable with it.
        for link in (*(f"{self.bridge}v{i}" for i in range(len(self.hosts))), self.bridge):
            subprocess.run(["ip", "link", "del", link], stderr=subprocess.DEVNULL)
        self.folder.cleanup()

    def environment(self):
        return {**os.environ, **MPI_ENVIRONMENT, "OMPI_MCA_plm": "rsh", "OMPI_MCA_plm_rsh_no_tree_spawn": "1",
                "OMPI_MCA_plm_rsh_agent": str(Path(self.folder.name) / "agent"),
                "OMPI_MCA_oob_tcp_if_include": f"{self.network}.0/24",
                "OMPI_MCA_btl_tcp_if_include": f"{self.network}.0/24"}

    def mpirun(self, slots, *words, **more):
        """Starts `words` with as many ranks on each host as `slots` says, in the order of the hosts."""
        hostfile = Path(self.folder.name) / "hostfile"
        hostfile.write_text("".join(f"{self.network}.{i + 1} slots={n}\n" for i, n in enumerate(slots)))
        return subprocess.Popen(["mpirun", "--hostfile", str(hostfile), "-n", str(sum(slots)), *map(str, words)],
                                env=self.environment(), **more)

    @contextlib.contextmanager
    def cable_pulled(self, i):
        """Host i is without its network for the time of a with block; then the others reach it again, and it them."""
        cable = f"{self.bridge}v{i}"
        self.ip("link", "set", cable, "down")
        try:
            yield
        finally:
            self.ip("link", "set", cable, "up")
            others = [j for j in range(self.count) if j != i]
            pairs = [(i, j) for j in others] + [(j, i) for j in others]
            assert wait_until(lambda: all(self.reaches(*pair) for pair in pairs), 30)

    def reaches(self, i, j):
        """Whether anything, a refusal too, comes from host j to i."""
        connect = ("import socket; s = socket.socket(); s.settimeout(1); "
                   f"raise SystemExit(s.connect_ex(('{self.network}.{j + 1}', 9)) != 111)")
        return subprocess.run(self.hosts[i].command("python3", "-c", connect)).returncode == 0


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
