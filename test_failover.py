"""What is left when PostgreSQL is killed, stopped, demoted or frozen: soon all answers, and every acknowledged change.

Real servers, started from PostgreSQL's own programs (``initdb``, ``pg_ctl``, ``pg_basebackup``) on ports of their own,
and real processes of ours in front of them. As all tests of PostgreSQL they want ``TEST_DATABASE_URL``, though another
server; they are skipped, too, where those programs are not there, or not Linux's ``/proc``.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from conftest import (
    CAR,
    FIELDS,
    SECRET,
    TYPED,
    Database,
    assert_refusal,
    assert_unavailable,
    at,
    free_port,
    load,
    run,
    timed,
    wait_for,
)
from plugins.postgresql import SILENCE
from plugins.storage import unavailable
from test_reliability import Writer, acknowledged, no_postgresql, replayed

# ----------------------------------------------------------------------------------------------------------------------
# Servers
# ----------------------------------------------------------------------------------------------------------------------


PROGRAMS = ("initdb", "pg_ctl", "pg_basebackup")


def binaries():
    """Give the folder of PostgreSQL's programs, or None."""
    folders = [Path(folder) for folder in os.get_exec_path()] + sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in folders if all((folder / name).exists() for name in PROGRAMS)), None)


BINARIES = binaries()
pytestmark = [
    no_postgresql,
    pytest.mark.skipif(not (BINARIES and Path("/proc").exists()), reason="PostgreSQL's programs are not here"),
]


class Server:
    """A PostgreSQL server of its own, which tests may break."""

    def __init__(self, folder):
        self.folder, self.data, self.port = folder, folder / "data", free_port()
        self.user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root
        if self.user:
            shutil.chown(folder, self.user)
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, program, *arguments):
        """Run one of PostgreSQL's programs."""
        subprocess.run(
            [BINARIES / program, *arguments],
            check=True,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            user=self.user,
            extra_groups=[] if self.user else None,
            timeout=30,
        )

    def create(self):
        """Make it an empty server."""
        self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def copy(self, primary):
        """Make it the standby of another."""
        source = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres"]
        self.run("pg_basebackup", *source, "-D", self.data, "-R", "-X", "stream", "-c", "fast", "--no-sync")

    def start(self, *settings):
        """Start it, and wait until it answers."""
        settings = ["listen_addresses=127.0.0.1", "fsync=off", *settings]
        options = f"-p {self.port} -k {self.folder} " + " ".join(f"-c {setting}" for setting in settings)
        self.run("pg_ctl", "-D", self.data, "-l", self.folder / "log", "-w", "-o", options, "start")

    def stop(self):
        """Stop it, with all its sessions."""
        self.run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def promote(self):
        """Have it take writes."""
        self.run("pg_ctl", "-D", self.data, "-w", "promote")

    def demote(self):
        """Have it follow, whom there is not to follow."""
        self.stop()
        (self.data / "standby.signal").touch()
        self.start()

    def signal(self, number):
        """Send a signal to all of its processes."""
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        for process in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    @contextmanager
    def frozen(self):
        """Keep it from doing anything: what is sent to it is taken, and nobody answers."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def end(self):
        """End it, in whatever state it is."""
        with suppress(OSError, ProcessLookupError):
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGQUIT)


@contextmanager
def new_server():
    """Give a folder and a port for a server, which is ended after."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder))
        yield server
        server.end()


@pytest.fixture(scope="module")
def lasting_server():
    """A server that lasts for the module."""
    with new_server() as server:
        server.create()
        server.start()
        yield server


@pytest.fixture
def postgres(lasting_server):
    """A server without a table, which may be frozen, stopped and demoted, but is well again after the test."""
    with psycopg.connect(lasting_server.url) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return lasting_server


@pytest.fixture
def pair():
    """A primary, and a standby that has each change before it is acknowledged."""
    with new_server() as primary, new_server() as standby:
        primary.create()
        primary.start()
        standby.copy(primary)
        standby.start()
        with psycopg.connect(primary.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
        yield primary, standby


@pytest.fixture
def silent():
    """Ports that take connections and never say a word."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        yield [sock.getsockname()[1] for sock in sockets]


def url_of(*ports):
    """Give the URL of several servers on this machine."""
    return f"postgresql://postgres@{','.join(f'127.0.0.1:{port}' for port in ports)}/postgres"


# ----------------------------------------------------------------------------------------------------------------------
# Requests
# ----------------------------------------------------------------------------------------------------------------------

CREDENTIALS = {"username": "alice", "password": "warik"}
READS = [("GET", "/health"), ("GET", at("known")), ("GET", "/stock"), ("GET", "/stock?limit=1"), ("GET", "/history")]
WRITES = [
    ("POST", at("new"), CAR),
    ("PUT", at("known"), CAR),
    ("DELETE", at("known")),
    ("PUT", "/stock", [{"mark": "known", **CAR}]),
]
LOGINS = [("POST", "/auth", CREDENTIALS), ("POST", "/register", {**CREDENTIALS, "username": "bob"})]
FILES = [("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json")]


def stocked(site):
    """Give a site that has a car, and every lane of which has asked the database before."""
    site.ask("POST", at("known"), CAR)
    for request in READS + LOGINS[:1]:
        assert site.ask(*request).status == 200
    return site


def assert_all_unavailable(site, *requests):
    """Send requests all at once, twice over, and compare: 503, and soon; gives how long the slowest took."""
    with ThreadPoolExecutor(2 * len(requests)) as pool:
        answers = [pool.submit(timed, site.ask, *request) for request in requests * 2]
        time.sleep(0.3)
        for file in FILES:
            answer, seconds = timed(site.ask, *file)
            assert (answer.status in (200, 302), seconds < 1) == (True, True)
        answers = [answer.result() for answer in answers]
    for answer, _ in answers:
        assert_unavailable(answer)
    slowest = max(seconds for _, seconds in answers)
    assert slowest < 10
    return slowest


def assert_back(site, *request, status):
    """Compare how soon a request is served again."""
    seconds = wait_for(lambda: site.ask(*request).status == status, 3)
    assert site.ask("GET", "/health").status == 200
    return seconds


class Client(Writer):
    """A writer that knows that a change which was answered with 503 may have been done."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, allowed=(201, 202, 503), **options)
        self.doubted = []

    def change(self, method, path, body, *entries):
        """Change something; of a car whose change is in doubt no more is asked for."""
        answer = super().change(method, path, body, *entries)
        if answer.status == 503:
            time.sleep(0.05)  # a part of what Retry-After asks for
            for action, mark, values in entries:
                self.doubted.append((self.name, action, mark, values and tuple(values[name] for name in FIELDS[1:])))
                self.cars.pop(mark, None)
        return answer

    def step(self):
        """Change something, and read something."""
        super().step()
        mark = self.random.choice([*self.cars, "known"])
        assert self.ask("GET", at(mark)).status in (200, 404, 503)


def assert_nothing_lost(database, clients):
    """Compare what is stored with what clients were told: all that was acknowledged is there, and nothing is twice."""
    history = database.history()
    for client in clients:
        found = [entry for entry in history if entry[0] == client.name]
        assert len(found) == len(set(found)), "done twice"
        later = iter(found)
        lost = [entry for entry in client.told if entry not in later]
        assert not lost, f"{len(lost)} of {len(client.told)} lost: {lost[0]}"
        assert set(found) <= {*client.told, *client.doubted}
    assert database.cars() == replayed(history)
    assert max(client.slowest for client in clients) < 10


# ----------------------------------------------------------------------------------------------------------------------
# Failures
# ----------------------------------------------------------------------------------------------------------------------


def test_frozen_server_is_503_until_it_wakes(launch, postgres):
    site = stocked(launch(postgres.url))
    other = stocked(launch(postgres.url))

    with postgres.frozen():
        for request in (READS[1], WRITES[1], LOGINS[0]):
            other.connect("alice").request(*request)
        slowest = assert_all_unavailable(site, *READS, *WRITES, *LOGINS)
        code, ending = other.end(signal.SIGTERM)

    assert (code, ending < 10) == (0, True)
    seconds = assert_back(site, "PUT", at("known"), CAR, status=202)
    print(f"\nfrozen: 503 within {slowest:.1f} s, back within {seconds:.2f} s")


def test_silent_servers_end_the_start_with_one_line(silent):
    url = url_of(*silent).replace("@", f":{TYPED}@")

    assert_refusal(run(DATABASE_URL=url, JWT_SECRET=SECRET), 2, "DATABASE_URL")


def test_long_upload_is_not_cut(launch, postgres):
    site = launch(postgres.url)
    cars = [{"mark": f"car {number}", **CAR} for number in range(5_000)]
    with psycopg.connect(postgres.url) as connection:
        connection.execute(
            "CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END'"
        )
        connection.execute("CREATE TRIGGER slow AFTER INSERT ON autos FOR EACH STATEMENT EXECUTE FUNCTION take_time()")

    answer, seconds = timed(site.ask, "POST", "/stock", cars)

    assert (answer.status, answer.json) == (201, {"Message": "5000 autos created"})
    assert seconds > SILENCE
    print(f"\nan upload that takes {seconds:.1f} s is not cut")


def test_demoted_server_is_503_until_it_is_promoted(launch, postgres):
    site = stocked(launch(postgres.url))

    postgres.demote()
    child = run(DATABASE_URL=postgres.url, JWT_SECRET=SECRET)
    slowest = assert_all_unavailable(site, *WRITES, *LOGINS)
    postgres.promote()

    assert_refusal(child, 2, "DATABASE_URL")
    seconds = assert_back(site, "PUT", at("known"), CAR, status=202)
    print(f"\ndemoted: 503 within {slowest:.1f} s, back within {seconds:.2f} s")


def test_what_a_standby_refuses_is_503(pair):
    for begin, statement in (("BEGIN READ WRITE", ""), ("BEGIN", "CREATE TABLE autos ()")):
        with psycopg.connect(pair[1].url, autocommit=True) as connection:
            with pytest.raises(psycopg.Error) as refusal:
                connection.execute(begin)
                connection.execute(statement)
            assert unavailable(refusal.value, psycopg, writing=True).status_code == 503


def test_silent_servers_hide_no_other(launch, postgres, silent):
    site = stocked(launch(url_of(*silent, postgres.port)))

    postgres.stop()
    assert_all_unavailable(site, *READS, *WRITES)
    postgres.start()

    assert_back(site, "PUT", at("known"), CAR, status=202)


def test_commit_that_waits_for_a_frozen_standby_is_503(launch, pair):
    primary, standby = pair
    site = stocked(launch(primary.url))

    with standby.frozen():
        answer, seconds = timed(site.ask, "PUT", at("known"), CAR)
        assert_unavailable(answer)
        assert seconds < 10
        assert_back(site, "GET", at("known"), status=200)

    assert_back(site, "PUT", at("known"), CAR, status=202)


def test_stopped_server_is_503_until_it_is_started(launch, postgres):
    site = launch(postgres.url)
    clients = [Client(site, f"client {number}") for number in range(4)]

    with load(*[client.work for client in clients]):
        wait_for(lambda: acknowledged(clients) > 50)
        postgres.stop()
        wait_for(lambda: all(client.seen[503] for client in clients))
        assert_unavailable(site.connect().ask("GET", "/health"))
        postgres.start()
        goal = acknowledged(clients) + 50
        seconds = wait_for(lambda: acknowledged(clients) > goal)

    assert_nothing_lost(Database(postgres.url), clients)
    print(f"\nstopped and started: 50 changes within {seconds:.2f} s of the start, nothing lost")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_standby_that_takes_over_has_every_acknowledged_change(launch, pair, number):
    primary, standby = pair
    site = launch(url_of(primary.port, standby.port))
    clients = [Client(site, f"client {number}") for number in range(4)]

    with load(*[client.work for client in clients]):
        wait_for(lambda: acknowledged(clients) > 50)
        primary.signal(number)
        wait_for(lambda: all(client.seen[503] for client in clients))
        standby.promote()
        goal = acknowledged(clients) + 50
        seconds = wait_for(lambda: acknowledged(clients) > goal)
    primary.end()

    assert_nothing_lost(Database(standby.url), clients)
    slowest = max(client.slowest for client in clients)
    print(f"\n{number.name}: 503 within {slowest:.1f} s, 50 changes within {seconds:.2f} s of the promotion, none lost")
