"""A PostgreSQL cluster that fails over while eight clients change cars by way of two processes of this project.

    .venv/bin/python .ci/failover.py [kill freeze …]

Each word is a failure of the leader, one after the other, a kill and a freeze unless given. What must hold: no answer
but success and 503, none after more than ten seconds, every acknowledged change is there, and none twice.
"""

import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from conftest import FAULT, Database, Site, load, wait_for  # noqa: E402
from test_failover import Client, assert_nothing_lost  # noqa: E402
from test_reliability import acknowledged  # noqa: E402


def cluster(*arguments):
    """Run `.ci/cluster`, and give what it says."""
    return subprocess.run([HERE / "cluster", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def served_again(clients, seconds=60):
    """Wait until each client has been refused and then been served; gives how long that took."""
    began = time.monotonic()
    refused = [client.seen[503] for client in clients]
    wait_for(lambda: all(client.seen[503] > seen for client, seen in zip(clients, refused, strict=True)), seconds)
    told = [len(client.told) for client in clients]
    wait_for(lambda: all(len(client.told) > number for client, number in zip(clients, told, strict=True)), seconds)
    return time.monotonic() - began


def main(failures):
    """Let the leader fail once for each word, and compare what is stored with what the clients were told."""
    with ExitStack() as stack:
        url = cluster("start")
        stack.callback(cluster, "stop")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sites = [Site(url, folder) for _ in range(2)]
        for site in sites:
            stack.callback(site.end)
            site.ready()
        clients = [Client(sites[number % 2], f"client {number}") for number in range(8)]
        with load(*[client.work for client in clients]):
            for kind in failures:
                goal = acknowledged(clients) + 1000
                wait_for(lambda goal=goal: acknowledged(clients) > goal, 60)
                cluster(kind)
                print(f"{kind}: all clients are served again after {served_again(clients):.1f} s", flush=True)
                cluster("revive")
        leader = re.search(r"role=leader .*port=(\d+)", cluster("status"))[1]
        assert_nothing_lost(Database(f"postgresql://postgres@127.0.0.1:{leader}/dealer"), clients)
        codes = [site.end(signal.SIGTERM)[0] for site in sites]
        assert codes == [0, 0]
        assert not any(FAULT.search(site.logged()) for site in sites)
        doubted = sum(len(client.doubted) for client in clients)
        print(f"{acknowledged(clients)} acknowledged changes, none lost and none twice; {doubted} answered with 503,")
        print(f"the slowest of all answers after {max(client.slowest for client in clients):.1f} s")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    main(sys.argv[1:] or ["kill", "freeze"])
