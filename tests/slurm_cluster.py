"""A Slurm of two nodes on this machine, for tests: needs root, and Debian's slurm-wlm and munge.

It makes a key for munge where there is none, and names the nodes in /etc/hosts, as JAX takes the
first node's name for the address of process 0.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NODES = ("node1", "node2")
SETTINGS = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
SlurmUser=root
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=60
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=1
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def is_there() -> bool:
    """Return whether this process can start a cluster, and was asked to by SSL_JAX_TEST_SLURM."""
    programs = ("slurmctld", "slurmd", "munged")
    return bool(os.environ.get("SSL_JAX_TEST_SLURM")) and all(map(shutil.which, programs))


@contextlib.contextmanager
def cluster(place: Path) -> Iterator[dict[str, str]]:
    """Start the cluster, with its files below `place`; yield the environment that finds it."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "state").mkdir()
    _start_munge()
    hosts = Path("/etc/hosts")
    if NODES[0] not in hosts.read_text().split():
        with hosts.open("a") as file:
            file.write(f"127.0.0.1 {' '.join(NODES)}\n")
    port = _free_port()
    numbers = {"port": port, "first": port + 1, "last": port + 2}
    settings = place / "slurm.conf"
    settings.write_text(SETTINGS.format(host=socket.gethostname(), place=place, **numbers))
    environment = os.environ | {"SLURM_CONF": str(settings)}
    daemons = [["slurmctld"], *(["slurmd", "-N", node] for node in NODES)]
    try:
        for daemon in daemons:
            subprocess.run(daemon, env=environment, check=True)
        _wait_for_nodes(environment)
        yield environment
    finally:
        for file in place.glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(file.read_text()), 15)


def _start_munge() -> None:
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return
    key = Path("/etc/munge/munge.key")
    if not key.exists():
        key.write_bytes(os.urandom(1024))
        shutil.chown(key, "munge", "munge")
        key.chmod(0o400)
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)


def _free_port() -> int:
    """Return a port that is free, as are most likely the two after it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for_nodes(environment: dict[str, str]) -> None:
    idle = ["sinfo", "-h", "-t", "idle", "-o", "%D"]
    for _ in range(60):
        found = subprocess.run(idle, env=environment, capture_output=True, text=True)
        if found.stdout.strip() == str(len(NODES)):
            return
        time.sleep(1)
    raise RuntimeError(f"the nodes are not idle: {found.stdout}{found.stderr}")


if __name__ == "__main__":  # whether this machine can have one
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder) / "try") as environment:
        subprocess.run(["srun", "-N2", "-n2", "true"], env=environment, check=True, timeout=60)
