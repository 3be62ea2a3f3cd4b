"""What is left when the service is killed, stopped, locked out, crowded and attacked: all of it, and soon.

Real processes over real sockets, on SQLite, and on PostgreSQL too where the environment names an empty database that
has "test" in its name (all that it holds is dropped)::

    TEST_DATABASE_URL=postgresql://postgres@127.0.0.1/dealer_test python -m pytest -W error -s test_reliability.py

``-s`` shows the figures. The mixed load lasts ``RELIABILITY_SECONDS``, 3 unless given. Memory and open files are read
from ``/proc``, so Linux is needed; what needs root or PostgreSQL's own programs is skipped without them.
"""

import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import count, zip_longest
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.parse import quote

import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool

import dealer
from test_dealer import CAR, HERE, SECRET, environment, free_port

MIXED_SECONDS = float(os.environ.get("RELIABILITY_SECONDS", 3))
MIB = 2**20
LONG = "x" * 250  # makes cars of about 600 bytes
FIELDS = ("mark", "max_speed", "distance", "handler", "stock")

# ----------------------------------------------------------------------------------------------------------------------
# A client that sees every byte
# ----------------------------------------------------------------------------------------------------------------------


class Closed(Exception):
    """The connection ended before an answer began."""


class Answer(NamedTuple):
    """An answer that came whole; the names of its headers are in lower case."""

    status: int
    headers: dict
    body: bytes = b""

    @property
    def json(self):
        """The body, which must be JSON."""
        return json.loads(self.body)


class Connection:
    """A connection on which answers come whole and in time or not at all (`Closed`): anything else fails the test."""

    def __init__(self, port, token=None, deadline=10, receive_buffer=None):
        self.options = port, token, deadline, receive_buffer
        self.token = token
        self.ended = False  # the server said that it would hang up
        self.socket = socket.socket()
        self.socket.settimeout(deadline)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb", buffering=2**16)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Hang up."""
        self.file.close()
        self.socket.close()

    def send(self, data):
        """Send bytes; where the server has hung up, what it said before is still to be read."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def request(self, method, path, body=None, **headers):
        """Send a request; a body that is no bytes goes as JSON."""
        self.send(request_bytes(method, path, body, self.token, **headers))

    def ask(self, method, path, body=None, **headers):
        """Send a request, and give its answer; connects anew where the server said that it would hang up."""
        if self.ended:
            self.close()
            try:
                self.__init__(*self.options)
            except ConnectionRefusedError:
                raise Closed from None
        self.request(method, path, body, **headers)
        return self.answer()

    def answer(self, pause=0.0):
        """Give the next answer; `pause` seconds between its chunks make a slow reader."""
        status, headers = self.head()
        self.ended = headers.get("connection") == "close"
        if "content-length" in headers:
            body = self.exactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join(self.chunks(pause))
        else:
            body = b""
        return Answer(status, headers, body)

    def head(self):
        """Give the status and the headers of the next answer."""
        try:
            line = self.file.readline(2**16)
        except (ConnectionResetError, BrokenPipeError):
            line = b""
        if not line:
            raise Closed
        headers = {}
        while (header := self.whole_line()) != b"\r\n":
            name, _, value = header.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return int(re.fullmatch(rb"HTTP/1\.[01] (\d{3}) .*\r\n", line)[1]), headers

    def whole_line(self):
        """Give the next line, which may not end early."""
        line = self.file.readline(2**16)
        assert line.endswith(b"\r\n"), "the answer ended early"
        return line

    def exactly(self, length):
        """Give so many bytes and no fewer."""
        data = self.file.read(length)
        assert len(data) == length, "the answer ended early"
        return data

    def chunks(self, pause):
        """Give the chunks of a body (RFC 9112, section 7.1), down to the last, empty one."""
        while length := int(self.whole_line(), 16):
            time.sleep(pause)
            yield self.exactly(length)
            assert self.whole_line() == b"\r\n"
        assert self.whole_line() == b"\r\n"

    def answers(self):
        """Give all answers until the server hangs up, which it must within the deadline."""
        found = []
        with suppress(Closed):
            while True:
                found.append(self.answer())
        return found


def request_bytes(method, path, body=None, token=None, **headers):
    """Give a request as it goes over the wire; the names of headers are written with underscores."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body is not None and not isinstance(body, bytes):
        headers, body = {"Content_Type": "application/json", **headers}, json.dumps(body).encode()
    if body is not None:
        headers = {"Content_Length": len(body), **headers}
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def at(mark):
    """Give the path of a car."""
    return "/auto/" + quote(mark, safe="")


def wait_for(condition, seconds=10):
    """Wait until a condition holds, and give how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "waited in vain"
        time.sleep(0.005)
    return time.monotonic() - began


def timed(function, *arguments):
    """Give what a function gives, and how many seconds it took."""
    began = time.monotonic()
    return function(*arguments), time.monotonic() - began


def at_once(*calls):
    """Call functions in the same moment, and give their results."""
    barrier = threading.Barrier(len(calls))

    def wait_and_call(call):
        barrier.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(wait_and_call, calls))


@contextmanager
def load(*jobs):
    """Run jobs side by side, each a function of the event that ends it; what one of them raises is raised after."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(job, stop) for job in jobs]
        try:
            yield
        finally:
            stop.set()
            for future in futures:
                future.result(60)


def assert_unavailable(answer):
    """Compare a 503: JSON, and when to come back."""
    assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
    assert set(answer.json) == {"Error"}
    assert answer.headers["retry-after"].isdigit()


# ----------------------------------------------------------------------------------------------------------------------
# Servers and databases
# ----------------------------------------------------------------------------------------------------------------------


class Database:
    """A database, seen without the service."""

    def __init__(self, url):
        self.url = url
        self.engine = sqlalchemy.create_engine(dealer.database_url(url), poolclass=NullPool)
        self.name = self.engine.dialect.name
        self.path = self.engine.url.database

    def query(self, sql):
        """Give the rows of a query as dictionaries."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(sqlalchemy.text(sql)).mappings()]

    def execute(self, *statements):
        """Change the database."""
        with self.engine.begin() as connection:
            for sql in statements:
                connection.execute(sqlalchemy.text(sql))

    def cars(self):
        """Give the stored cars by mark."""
        return {row["mark"]: values_of(row) for row in self.query(f"SELECT {', '.join(FIELDS)} FROM autos")}

    def history(self):
        """Give who did what: name, action, mark and values."""
        rows = self.query("SELECT * FROM history ORDER BY id")
        return [(row["by"], row["action"], row["mark"], values_of(row)) for row in rows]

    @contextmanager
    def locked(self, mode="EXCLUSIVE"):
        """Let another process hold the lock of writers, or of everybody."""
        if self.name != "sqlite":
            with self.engine.connect() as connection:
                connection.execute(sqlalchemy.text(f"LOCK TABLE autos IN {mode} MODE"))
                yield
            return
        code = (
            "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
            "db.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()"
        )
        holder = subprocess.Popen([sys.executable, "-c", code, self.path], stdin=-1, stdout=-1)
        try:
            assert holder.stdout.readline() == b"locked\n"
            yield
        finally:
            holder.communicate(timeout=10)

    def sessions(self, condition="TRUE"):
        """Count the sessions of others on PostgreSQL."""
        others = "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        return self.query(f"SELECT count(*) AS n FROM pg_stat_activity WHERE {others} AND {condition}")[0]["n"]

    def end_sessions(self):
        """End the sessions of others on PostgreSQL."""
        self.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def values_of(row):
    """Give the values of a car without its mark, None where there is none."""
    return tuple(row[name] for name in FIELDS[1:]) if row["handler"] is not None else None


class Site:
    """A server process."""

    def __init__(self, url, folder, command=(sys.executable, "dealer.py"), **settings):
        self.port = free_port()
        self.log = folder / f"{self.port}.log"
        self.tokens, self.connections = {}, []
        settings = {"DATABASE_URL": url, "PORT": str(self.port), "JWT_SECRET": SECRET, **settings}
        self.settings = {name: value for name, value in settings.items() if value is not None}
        self.command = command
        self.start()

    def start(self):
        """Start the process, and do not wait for it."""
        self.began = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=HERE,
                stdout=log,
                stderr=log,
                env=environment(**self.settings),
            )

    def ready(self):
        """Wait until the service is well, and give how long that took from the start."""

        def healthy():
            assert self.process.poll() is None, self.logged()
            with suppress(ConnectionRefusedError), Connection(self.port) as connection:
                return connection.ask("GET", "/health").status == 200

        wait_for(healthy)
        return time.monotonic() - self.began

    def connect(self, name=None, **options):
        """Give a connection, with a token of an account."""
        self.connections.append(Connection(self.port, self.token(name) if name else None, **options))
        return self.connections[-1]

    def token(self, name):
        """Give a token of an account, which is registered where it is new."""
        if name not in self.tokens:
            credentials = {"username": name, "password": "warik"}
            with self.connect() as connection:
                assert connection.ask("POST", "/register", credentials).status in (201, 400)
                self.tokens[name] = connection.ask("POST", "/auth", credentials).json["access_token"]
        return self.tokens[name]

    def ask(self, method, path, body=None, **headers):
        """Send a request over a connection of its own."""
        with self.connect("alice") as connection:
            return connection.ask(method, path, body, **headers)

    def end(self, number=signal.SIGKILL):
        """Send a signal, wait for the end, and give the exit code and how many seconds it took."""
        self.process.send_signal(number)
        return timed(self.process.wait, 20)

    def logged(self):
        """Give the log."""
        return self.log.read_text(errors="replace")

    def memory(self, line="VmRSS"):
        """Give the resident memory in MiB, now or (``VmHWM``) the most there was."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{line}:\s+(\d+) kB", status)[1]) / 1024

    def spilled(self):
        """Give how many MiB of disk the process holds in files that have no name."""
        folder, size = Path(f"/proc/{self.process.pid}/fd"), 0
        for number in os.listdir(folder):
            with suppress(OSError):
                found = os.stat(folder / number)
                size += found.st_size if found.st_nlink == 0 else 0
        return size / MIB

    @contextmanager
    def bounded(self, most):
        """Fail where the block makes the memory grow by more than so many MiB; gives a function for the growth."""
        before = self.memory()
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # forget the most there was
        yield lambda: self.memory("VmHWM") - before
        assert self.memory("VmHWM") - before < most


TEST_URL = os.environ.get("TEST_DATABASE_URL")
no_postgresql = pytest.mark.skipif(not TEST_URL, reason="TEST_DATABASE_URL is not given")
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database", [pytest.param("postgresql", marks=no_postgresql)], indirect=True)


@pytest.fixture(params=["sqlite", "postgresql"] if TEST_URL else ["sqlite"])
def database(request, tmp_path):
    """A database without a table."""
    if request.param == "sqlite":
        return Database(f"sqlite:///{tmp_path / 'dealer.db'}")
    database = Database(TEST_URL)
    assert "test" in database.path, "TEST_DATABASE_URL must name a database for tests"
    database.end_sessions()
    database.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return database


# SQLAlchemy reports itself that it could not roll back where the database has ended the connection.
FAULT = re.compile(r"ERROR (?!Exception during reset).*\n *Traceback")


@pytest.fixture
def launch(tmp_path):
    """Give a function that starts a server; all are ended after the test, and none may have logged a traceback."""
    sites = []

    def start(url, ready=True, **options):
        sites.append(Site(url, tmp_path, **options))
        if ready:
            sites[-1].ready()
        return sites[-1]

    yield start
    for site in sites:
        site.end()
        for connection in site.connections:
            connection.close()
    for site in sites:
        assert not FAULT.search(site.logged())


@pytest.fixture
def site(launch, database):
    """A server on a database without a row."""
    return launch(database.url)


# ----------------------------------------------------------------------------------------------------------------------
# Writers that remember what they were told
# ----------------------------------------------------------------------------------------------------------------------

SHARED = [f"Shared {number}" for number in range(4)]  # cars that all writers fight over


class Writer:
    """A client with an account and cars of its own, which remembers each change that was acknowledged."""

    def __init__(self, site, name, allowed=(201, 202)):
        self.name, self.allowed = name, allowed
        self.random = random.Random(name)
        self.numbers = count(1)
        self.cars = {}  # its own, as they must be now
        self.told = []  # entries of the history that must be there, in this order
        self.open = []  # those of a change without an answer: all are there, or none
        self.seen = dict.fromkeys(allowed, 0)  # how often each status came
        self.slowest = 0.0
        self.connect(site)

    def connect(self, site):
        """Turn to a server."""
        self.connection = site.connect(self.name)

    def new_mark(self):
        """Give a mark that nobody has."""
        return f"{self.name} {next(self.numbers)}"

    def new_car(self):
        """Give values that no car had before."""
        return {"max_speed": next(self.numbers), "distance": 1, "handler": self.name, "stock": LONG}

    def ask(self, method, path, body=None, **headers):
        """Send a request, and time it."""
        answer, seconds = timed(partial(self.connection.ask, **headers), method, path, body)
        self.slowest = max(self.slowest, seconds)
        self.seen[answer.status] = self.seen.get(answer.status, 0) + 1
        return answer

    def change(self, method, path, body, *entries):
        """Change something: what is acknowledged counts, what is refused does not, and without an answer it is open."""
        self.open = entries
        answer = self.ask(method, path, body)
        self.open = ()
        if answer.status in (201, 202):
            self.acknowledge(entries)
        return answer

    def acknowledge(self, entries):
        """Count a change as done."""
        for action, mark, values in entries:
            self.told.append((self.name, action, mark, values and tuple(values[name] for name in FIELDS[1:])))
            if mark not in SHARED:
                self.cars.pop(mark, None) if action == "deleted" else self.cars.update({mark: values})

    def create(self, mark=None):
        """Add a car."""
        mark, car = mark or self.new_mark(), self.new_car()
        return self.change("POST", at(mark), car, ("created", mark, car))

    def update(self, mark=None):
        """Change a car."""
        mark, car = mark or self.random.choice(list(self.cars)), self.new_car()
        return self.change("PUT", at(mark), car, ("updated", mark, car))

    def delete(self, mark=None):
        """Remove a car."""
        mark = mark or self.random.choice(list(self.cars))
        return self.change("DELETE", at(mark), None, ("deleted", mark, None))

    def upload(self, size=10):
        """Add some cars and change some."""
        known = {mark: self.new_car() for mark in list(self.cars)[: size // 2]}
        new = {self.new_mark(): self.new_car() for _ in range(size - len(known))}
        entries = [("created", *car) for car in new.items()] + [("updated", *car) for car in known.items()]
        body = [{"mark": mark, **car} for mark, car in {**known, **new}.items()]
        return self.change("PUT", "/stock", body, *entries)

    def step(self):
        """Change something of one's own."""
        act = self.random.choice([self.create] * 4 + [self.update] * 3 + [self.delete] * 2 + [self.upload])
        answer = (act if len(self.cars) > 10 else self.create)()
        assert answer.status in self.allowed, answer
        if answer.status == 503:
            assert_unavailable(answer)

    def work(self, stop, step=None):
        """Change one thing after the other, until told to end or the server does."""
        with suppress(Closed):
            while not stop.is_set():
                (step or self.step)()

    def settle(self, database):
        """Find out about a change without an answer."""
        if self.open and database.query(f"SELECT count(*) AS n FROM history WHERE by = '{self.name}'")[0]["n"] > len(
            self.told
        ):
            self.acknowledge(self.open)
        self.open = ()


def writers_of(site, number=8, **options):
    """Give writers."""
    return [Writer(site, f"writer {n}", **options) for n in range(number)]


def acknowledged(writers):
    """Count the acknowledged entries of all writers."""
    return sum(len(writer.told) for writer in writers)


def replayed(history):
    """Give the cars that a history leads to; every step of it must be possible."""
    cars = {}
    for entry in history:
        _, action, mark, values = entry
        assert (mark in cars) == (action != "created"), f"impossible: {entry}"
        if action == "deleted":
            del cars[mark]
        else:
            cars[mark] = values
    return cars


def assert_kept(database, writers):
    """Compare all that is stored with what the writers were told: nothing is lost, and nothing invented."""
    for writer in writers:
        writer.settle(database)
    history = database.history()
    for writer in writers:
        found = [entry for entry in history if entry[0] == writer.name]
        difference = next((pair for pair in zip_longest(writer.told, found) if pair[0] != pair[1]), None)
        assert not difference, f"told, and found: {difference}"
    assert len(history) == acknowledged(writers)
    lost = database.cars().items() ^ replayed(history).items()
    assert not lost, f"cars and history differ in {len(lost)}"


# ----------------------------------------------------------------------------------------------------------------------
# Killed
# ----------------------------------------------------------------------------------------------------------------------


def test_killed_server_has_lost_nothing(site, database):
    writers, restarts = writers_of(site), []
    for _ in range(5):
        goal = acknowledged(writers) + 200
        with load(*[writer.work for writer in writers]):
            wait_for(lambda goal=goal: acknowledged(writers) >= goal)
            site.end(signal.SIGKILL)
        site.start()
        restarts.append(site.ready())
        if database.name == "sqlite":
            assert database.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        assert_kept(database, writers)
        for writer in writers:
            writer.connect(site)

    assert max(restarts) < 3
    print(
        f"\nkilled ({database.name}): 5 times under load, {acknowledged(writers)} acknowledged entries, none lost,"
        f" restart {max(restarts):.2f} s at most"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Stopped
# ----------------------------------------------------------------------------------------------------------------------

WEB = shlex.split(re.search(r"^web: (.+)$", (HERE / "Procfile").read_text(), re.MULTILINE)[1])


LARGE = 17_000  # cars that make an answer of 10 MB


def fill(database):
    """Put a large number of cars into stock, behind the service's back."""
    series = f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {LARGE})"
    columns, text = ", ".join(FIELDS), f"'{LONG}'"
    database.execute(f"INSERT INTO autos ({columns}) {series} SELECT 'Large ' || n, n, n, {text}, {text} FROM s")


@pytest.mark.parametrize(
    ("database", "command", "number"),
    [
        ("sqlite", ["python", "dealer.py"], signal.SIGTERM),
        ("sqlite", ["python", "dealer.py"], signal.SIGINT),
        ("sqlite", WEB, signal.SIGTERM),
        ("sqlite", WEB, signal.SIGINT),
        pytest.param("postgresql", WEB, signal.SIGTERM, marks=no_postgresql),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else getattr(value, "name", value),
    indirect=["database"],
)
def test_stopped_server_finishes_its_answers(launch, database, command, number):
    assert command[0] == "python"
    site = launch(database.url, command=[sys.executable, *command[1:]])
    fill(database)
    writers, reader = writers_of(site, 4), site.connect("alice", receive_buffer=2**16)

    reader.request("GET", "/stock?mark__startswith=Large")
    with ThreadPoolExecutor(1) as pool, load(*[writer.work for writer in writers]):
        slow = pool.submit(reader.answer, pause=0.05)
        wait_for(lambda: acknowledged(writers) > 100)
        code, seconds = site.end(number)
        answer = slow.result(1)

    assert (code, answer.status, len(answer.json)) == (0, 200, LARGE)
    assert seconds < 10
    for writer in writers:
        writer.settle(database)
    assert sorted(database.history(), key=str) == sorted((told for each in writers for told in each.told), key=str)
    print(f"\nstopped ({database.name}): {number.name} under load, a slow answer finished, code 0 in {seconds:.1f} s")


# ----------------------------------------------------------------------------------------------------------------------
# Locked out
# ----------------------------------------------------------------------------------------------------------------------


def crowd(site, number, *request):
    """Give functions that send one request each, and time its answer."""
    return [partial(timed, site.connect("alice", deadline=30).ask, *request) for _ in range(number)]


@on_sqlite
def test_locked_database_is_read_and_written_again_later(site, database):
    writers, one, reads = writers_of(site, 16), site.connect("alice"), []
    writers[0].create("BMW")

    def read(stop):
        while not stop.is_set():
            answer, seconds = timed(one.ask, "GET", "/auto/BMW")
            assert answer.status == 200
            reads.append(seconds)

    with load(read), database.locked():
        answers = at_once(*[partial(timed, writer.create) for writer in writers])
    slowest = max(seconds for _, seconds in answers)
    after = [timed(writer.create) for writer in writers]

    assert {answer.status for answer, _ in after} == {201}
    assert slowest < 10
    assert median(reads) < 0.1
    assert max(reads) < 1
    assert max(seconds for _, seconds in after) < 1
    assert_kept(database, writers)
    print(
        f"\nlocked ({database.name}): 16 writers refused within {slowest:.1f} s, reads meanwhile"
        f" {median(reads) * 1000:.1f} ms (median), {max(reads) * 1000:.0f} ms at most"
    )
    for answer, _ in answers:
        assert_unavailable(answer)


@on_postgresql
def test_locked_table_is_503_within_10_seconds_for_many_at_once(site, database):
    assert site.ask("POST", "/auto/BMW", CAR).status == 201
    calls = (
        crowd(site, 16, "GET", "/auto/BMW") + crowd(site, 8, "PUT", "/auto/BMW", CAR) + crowd(site, 4, "GET", "/stock")
    )

    with database.locked("ACCESS EXCLUSIVE"):
        answers = at_once(*calls)
    slowest = max(seconds for _, seconds in answers)

    assert site.ask("GET", "/auto/BMW").status == 200
    assert site.ask("PUT", "/auto/BMW", CAR).status == 202
    assert slowest < 10
    for answer, _ in answers:
        assert_unavailable(answer)
    print(f"\nlocked out ({database.name}): 20 readers and 8 writers refused within {slowest:.1f} s")


@on_postgresql
def test_sessions_that_are_terminated_are_replaced(site, database):
    writers = writers_of(site, 4, allowed=(201, 202, 503))

    with load(*[writer.work for writer in writers]):
        for _ in range(5):
            goal = acknowledged(writers) + 40
            wait_for(lambda goal=goal: acknowledged(writers) >= goal)
            database.end_sessions()
    answers = [site.ask("GET", "/health").status for _ in range(8)] + [writer.create().status for writer in writers]

    assert answers == [200] * 8 + [201] * 4
    assert_kept(database, writers)
    refused = sum(writer.seen[503] for writer in writers)
    print(f"\nterminated (postgresql): 5 times under load, {refused} requests refused, nothing lost")


class Cluster:
    """A PostgreSQL of its own, which tests may stop."""

    def __init__(self, folder, binaries):
        self.folder, self.binaries, self.port = folder, binaries, free_port()
        self.user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root
        if self.user:
            shutil.chown(folder, self.user)
        self.run("initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def run(self, program, *arguments):
        """Run one of PostgreSQL's programs."""
        subprocess.run(
            [self.binaries / program, *arguments],
            check=True,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            user=self.user,
            extra_groups=[] if self.user else None,
            timeout=30,
        )

    def start(self):
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-w", "-o", options, "start")

    def stop(self):
        """Stop it, with all its sessions."""
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-m", "fast", "-w", "stop")


def postgresql_binaries():
    """Give the folder of PostgreSQL's programs, or None."""
    folders = [Path(folder) for folder in os.get_exec_path()] + sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


@pytest.fixture
def cluster():
    """A running PostgreSQL of its own."""
    binaries = postgresql_binaries()
    if not binaries:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not here")
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder), binaries)
        cluster.start()
        yield cluster
        with suppress(subprocess.CalledProcessError):
            cluster.stop()


@no_postgresql
def test_postgresql_that_is_stopped_is_503_until_it_is_started(launch, cluster):
    database = Database(f"postgresql://postgres@127.0.0.1:{cluster.port}/postgres")
    site = launch(database.url)
    writers, health = writers_of(site, 4, allowed=(201, 202, 503)), site.connect()

    with load(*[writer.work for writer in writers]):
        wait_for(lambda: acknowledged(writers) > 50)
        cluster.stop()
        wait_for(lambda: all(writer.seen[503] for writer in writers))
        assert_unavailable(health.ask("GET", "/health"))
        cluster.start()
        goal = acknowledged(writers) + 50
        seconds = wait_for(lambda: acknowledged(writers) > goal)

    assert health.ask("GET", "/health").status == 200
    assert_kept(database, writers)
    assert max(writer.slowest for writer in writers) < 10
    print(f"\nstopped and started (postgresql): 50 changes within {seconds:.2f} s of the start, nothing lost")


def write_until_refused(writer, size):
    """Upload, then write single cars, until both are refused."""
    for write in (partial(writer.upload, size), writer.create):
        for _ in range(500):
            answer = write()
            if answer.status == 503:
                break
        assert_unavailable(answer)


def assert_full_disk_loses_nothing(site, database, make_room):
    """Fill the disk, read, make room, and write again."""
    writer, reader = Writer(site, "writer", allowed=(201, 202, 503)), site.connect("alice")
    assert writer.create().status == 201
    write_until_refused(writer, 500)
    stored = len(writer.cars)
    assert len(reader.ask("GET", "/stock").json) == stored
    assert reader.ask("GET", "/health").status == 200

    make_room()

    assert [write().status for write in (writer.create, writer.update, writer.delete, writer.upload)] == [
        201,
        202,
        202,
        202,
    ]
    assert database.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    assert_kept(database, [writer])
    print(f"\ndisk full (sqlite): 503, {stored} cars stored before are there, written again without a restart")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "dealer-test", folder]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk_loses_nothing(launch, small_disk):
    database = Database(f"sqlite:///{small_disk / 'dealer.db'}")
    grow = partial(subprocess.run, ["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert_full_disk_loses_nothing(launch(database.url), database, grow)


@on_sqlite
def test_file_that_may_not_grow_loses_nothing(site, database):
    _, most = resource.prlimit(site.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(site.process.pid, resource.RLIMIT_FSIZE, (2 * MIB, most))
    lift = partial(resource.prlimit, site.process.pid, resource.RLIMIT_FSIZE, (most, most))
    assert_full_disk_loses_nothing(site, database, lift)


@on_sqlite
def test_body_without_room_on_the_disk_is_503(site, database):
    _, most = resource.prlimit(site.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(site.process.pid, resource.RLIMIT_FSIZE, (2 * MIB, most))
    answer = site.ask("POST", "/stock", b" " * 8 * MIB, Content_Type="application/json")
    resource.prlimit(site.process.pid, resource.RLIMIT_FSIZE, (most, most))

    assert_unavailable(answer)
    assert site.ask("POST", "/auto/BMW", CAR).status == 201


def test_read_only_file_is_503_until_it_can_be_written(launch, tmp_path):
    database, command = Database(f"sqlite:///{tmp_path / 'dealer.db'}"), [sys.executable, "dealer.py"]
    if os.getuid() == 0:  # who may write what is read-only, but for this
        if not shutil.which("setpriv"):
            pytest.skip("root cannot be kept from writing without setpriv")
        command = ["setpriv", "--bounding-set", "-dac_override", *command]
    site = launch(database.url, command=command)
    writers = writers_of(site, 4, allowed=(201, 202, 503))
    files = list(tmp_path.glob("dealer.db*"))

    for path in files:
        path.chmod(0o444)
    with load(*[writer.work for writer in writers]):
        seconds = wait_for(lambda: any(writer.seen[503] for writer in writers))
    for path in files:
        path.chmod(0o644)
    answers = [writer.create().status for writer in writers * 4]

    assert answers == [201] * 16
    assert_kept(database, writers)
    print(f"\nread-only (sqlite): 503 after {seconds:.1f} s, nothing lost, written again without a restart")


# ----------------------------------------------------------------------------------------------------------------------
# Crowded
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def many_files():
    """Room for a thousand connections on this side."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this process may not open 4,096 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def drip(connections, stop):
    """Send a request on each connection, a byte a second."""
    for byte in request_bytes("GET", "/health"):
        for connection in connections:
            connection.send(bytes([byte]))
        if stop.wait(1):
            return


@on_sqlite
def test_crowd_keeps_nobody_from_an_answer(site, database, many_files):
    fill(database)
    assert site.ask("POST", "/auto/BMW", CAR).status == 201
    requests = [("GET", "/auto/BMW"), ("GET", "/stock?limit=10"), ("PUT", "/auto/BMW", CAR), ("GET", "/health")]

    with site.bounded(100) as growth:
        idle = [site.connect() for _ in range(1000)]
        assert all(connection.ask("GET", "/health").status == 200 for connection in idle)
        slow = [site.connect() for _ in range(50)]
        stalled = [site.connect("alice", receive_buffer=4096) for _ in range(16)]
        with load(partial(drip, slow)):
            for connection in stalled:
                connection.request("GET", "/stock")
            deadline, seconds = time.monotonic() + 2, []
            while time.monotonic() < deadline:
                for request in requests:
                    answer, took = timed(site.ask, *request)
                    assert answer.status in (200, 202)
                    seconds.append(took)
        assert idle[0].ask("GET", "/health").status == 200

    assert max(seconds) < 1
    print(
        f"\ncrowded: beside 1,000 idle, 50 slow and 16 stalled clients an ordinary one waits"
        f" {median(seconds) * 1000:.1f} ms (median), {max(seconds) * 1000:.0f} ms at most;"
        f" memory grew by {growth():.0f} MiB"
    )


@on_sqlite
def test_stalled_reader_finds_a_whole_answer_later(site, database):
    fill(database)
    reader = site.connect("alice", receive_buffer=4096)
    reader.request("GET", "/stock")
    wait_for(lambda: "GET /stock 200" in site.logged())  # all of it was written, and waits here

    assert len(reader.answer().json) == LARGE


def reads_beside(site, *jobs):
    """Give how long reads take beside some jobs."""
    connection, seconds = site.connect("alice"), []
    with load(*jobs) if jobs else nullcontext():
        deadline = time.monotonic() + 0.7
        while time.monotonic() < deadline:
            answer, took = timed(connection.ask, "GET", "/auto/BMW")
            assert answer.status == 200
            seconds.append(took)
    return median(seconds) * 1000


def test_logins_leave_reads_as_quick_as_before(site, database):
    assert site.ask("POST", "/auto/BMW", CAR).status == 201
    logins = []

    def log_in(connection, stop):
        while not stop.is_set():
            answer = connection.ask("POST", "/auth", {"username": "alice", "password": "warik"})
            assert answer.status == 200
            logins.append(answer)

    alone = reads_beside(site)
    beside = reads_beside(site, *[partial(log_in, site.connect()) for _ in range(16)])

    assert logins
    assert beside < 10 * alone + 10
    print(
        f"\nlogins ({database.name}): a read takes {alone:.2f} ms (median) alone, {beside:.2f} ms beside sixteen"
        f" clients that log in, {len(logins)} times"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Uploads
# ----------------------------------------------------------------------------------------------------------------------

UPLOAD = 20_000  # cars
AS_JSON = {"Content_Type": "application/json"}


def inventory(name, number=UPLOAD, last=1):
    """Give the body of an upload; all cars of it say whose it is."""
    cars = [{"mark": f"Car {n}", **CAR, "handler": name} for n in range(number)]
    cars[-1]["distance"] = last
    return json.dumps(cars).encode()


def test_upload_holds_writers_up_no_longer_than_it_writes(site, database):
    uploader, writer = site.connect("alice", deadline=30), Writer(site, "writer")
    refused, reading = timed(partial(uploader.ask, "PUT", "/stock", inventory("nobody", last="one"), **AS_JSON))
    assert (refused.status, refused.json) == (400, {"Error": refused.json["Error"]})

    with load(writer.work):
        wait_for(lambda: acknowledged([writer]) > 20)
        writer.slowest = 0
        answer, whole = timed(partial(uploader.ask, "PUT", "/stock", inventory("alice"), **AS_JSON))
    writing = whole - reading

    assert (answer.status, answer.json) == (202, {"Message": f"{UPLOAD} autos created, 0 updated"})
    assert writer.slowest < 1.5 * writing + 0.2
    print(
        f"\nupload ({database.name}): {UPLOAD} cars in {whole:.2f} s, of which {writing:.2f} s are for writing; another"
        f" writer waited {writer.slowest:.2f} s at most"
    )


def test_two_uploads_at_once_come_one_after_the_other(site, database):
    names, number = ("alice", "bob"), 5_000
    uploads = [
        partial(site.connect(name, deadline=30).ask, "PUT", "/stock", inventory(name, number), **AS_JSON)
        for name in names
    ]

    answers = at_once(*uploads)
    history = database.history()

    told = [f"{number} autos created, 0 updated", f"0 autos created, {number} updated"]
    assert sorted(answer.json["Message"] for answer in answers) == sorted(told)
    assert [name for name, *_ in history] in ([a] * number + [b] * number for a, b in (names, names[::-1]))
    assert {values[2] for values in database.cars().values()} == {history[-1][0]}
    assert database.cars() == replayed(history)


# ----------------------------------------------------------------------------------------------------------------------
# Two processes
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(launch, database):
    """Two servers that started at the same moment on a database without a table."""
    # SQLite's own key is made by both at once, PostgreSQL needs one that is given
    secret = {"JWT_SECRET": SECRET if database.name == "postgresql" else None}
    pair = [launch(database.url, ready=False, **secret) for _ in range(2)]
    for site in pair:
        site.ready()
    pair[1].tokens = pair[0].tokens
    return pair


def race(pair, number, *request):
    """Send one request from many clients to both servers at once, and count the statuses."""
    calls = [partial(pair[n % 2].connect("alice").ask, *request) for n in range(number)]
    statuses = [answer.status for answer in at_once(*calls)]
    return {status: statuses.count(status) for status in statuses}


def test_two_servers_are_as_one(pair, database):
    assert race(pair, 16, "POST", "/auto/BMW", CAR) == {201: 1, 400: 15}
    assert race(pair, 16, "PUT", "/auto/BMW", CAR) == {202: 16}
    assert race(pair, 16, "DELETE", "/auto/BMW") == {202: 1, 404: 15}
    assert race(pair, 6, "POST", "/register", {"username": "bob", "password": "warik"}) == {201: 1, 400: 5}
    assert [entry[1] for entry in database.history()] == ["created"] + ["updated"] * 16 + ["deleted"]
    assert [pair[0].ask("POST", "/logout").status, pair[1].ask("GET", "/history").status] == [202, 401]


def test_one_of_many_conditional_changes_across_servers_succeeds(pair):
    assert pair[0].ask("POST", "/auto/BMW", CAR).status == 201
    tag = pair[1].ask("GET", "/auto/BMW").headers["etag"]
    calls = [
        partial(pair[n % 2].connect("alice").ask, "PATCH", "/auto/BMW", {"distance": n}, If_Match=tag)
        for n in range(16)
    ]

    assert sorted(answer.status for answer in at_once(*calls)) == [202] + [412] * 15


@on_postgresql
def test_no_session_stays_in_a_transaction(pair, database):
    writers = writers_of(pair[0], 2) + [Writer(pair[1], f"other {n}") for n in range(2)]
    with load(*[writer.work for writer in writers]):
        wait_for(lambda: acknowledged(writers) > 200)
    for site in pair:
        for method, path in (("GET", "/stock"), ("GET", "/nothing"), ("POST", "/stock"), ("DELETE", "/auto/nothing")):
            site.ask(method, path)

    wait_for(lambda: not database.sessions("state <> 'idle'"), 2)
    assert database.sessions() > 0
    assert_kept(database, writers)


MARKS = ["a", "B", "b", "A", "Z", "z", "ä", "Ä", "ß", "é", "e\u0301z", "ж", "Ж", "10", "9", "a b", "a_b", "a%b", "a-b"]
MARKS += ["日本", "𝄞", "\uffee", "İ", "ı", "Σ", "ς", "a\\b", "'", '"', "~", "ＢＭＷ"]


def test_both_databases_order_and_compare_alike(site):
    stored = sorted({"e\u0301z": "éz"}.get(mark, mark) for mark in MARKS)
    body = [{"mark": mark, **CAR, "handler": mark, "stock": mark[0]} for mark in MARKS]
    assert site.ask("POST", "/stock", body).status == 201

    def listed(query):
        return [car["mark"] for car in site.ask("GET", "/stock?" + query).json]

    assert listed("") == stored
    assert listed("order_by=-handler") == stored[::-1]
    assert listed("order_by=max_speed,mark") == stored
    assert listed("mark__gt=" + quote("ß")) == [mark for mark in stored if mark > "ß"]
    assert listed("mark__lte=a_b") == [mark for mark in stored if mark <= "a_b"]
    assert listed("mark__startswith=a") == [mark for mark in stored if mark.startswith("a")]
    assert listed("mark__contains=" + quote("Ж")) == ["Ж", "ж"]
    assert listed("mark__contains=" + quote("%")) == ["a%b"]
    assert listed("mark__contains=_") == ["a_b"]
    assert listed("mark__contains=" + quote("\\")) == ["a\\b"]


# ----------------------------------------------------------------------------------------------------------------------
# Attacked
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lasting_target(tmp_path_factory):
    """A server for all attacks."""
    folder = tmp_path_factory.mktemp("target")
    site = Site(f"sqlite:///{folder / 'dealer.db'}", folder)
    site.ready()
    site.token("alice")
    yield site
    site.end()
    for connection in site.connections:
        connection.close()


@pytest.fixture
def target(lasting_target):
    """A server that after the test is well, has logged no fault and given none, and has not grown."""
    with lasting_target.bounded(48):
        yield lasting_target
        answer, seconds = timed(lasting_target.ask, "GET", "/history")
    assert answer.status == 200
    assert seconds < 1
    assert not re.search(r"Traceback|ERROR", lasting_target.logged())


def attack(site, *parts, ends=False):
    """Send bytes, perhaps half-close, and give all answers until the server hangs up."""
    with site.connect(deadline=3) as connection:
        for part in parts:
            connection.send(part)
        if ends:
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
        return connection.answers()


def assert_refused(answers, *statuses):
    """Compare the one answer, after which the connection ended: JSON, of one of some statuses."""
    assert len(answers) == 1, answers
    assert answers[0].status in statuses
    assert answers[0].headers["content-type"] == "application/json"
    assert set(answers[0].json) == {"Error"}


SMUGGLED = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
HOST = b"POST /auth HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\n" + CHUNKED,
        CHUNKED + b"\r\nContent-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 5\r\nContent-Length: 0",
        b"Content-Length: 5, 6",
        b"Content-Length: +5",
        b"Content-Length: -5",
        b"Content-Length: 0x5",
        b"Content-Length: 5_0",
        b"Content-Length: 5 0",
        b"Content-Length: \xd9\xa5",
        b"Content-Length: " + b"9" * 5000,
        b"Content-Length : 5",
        b"Content-Length\t: 5",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding\t: chunked",
        b" Transfer-Encoding: chunked",
        b"X: a\r\n Transfer-Encoding: chunked",
        b"X: a\r\n\tTransfer-Encoding: chunked",
        b"Transfer-Encoding:\r\n chunked",
        b"X: a\n" + CHUNKED,
        b"X: a\r" + CHUNKED,
        b"X: a\r\r\n" + CHUNKED,
        b"X: a\0\r\n" + CHUNKED,
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked-false",
        b'Transfer-Encoding: "chunked"',
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding:",
        CHUNKED + b"\r\nTransfer-Encoding: identity",
        CHUNKED + b"\r\n" + CHUNKED,
        b"Host: b",
        b": a",
        b"no colon",
    ],
    ids=lambda headers: ascii(headers)[2:-1][:50],
)
def test_smuggled_request_is_not_answered(target, headers):
    answers = attack(target, HOST + headers + b"\r\n\r\n0\r\n\r\n" + SMUGGLED)

    assert_refused(answers, 400, 501)


@pytest.mark.parametrize("line", [b"GET /health HTTP/1.1\nHost: a\n\n", b"GET /health HTTP/1.1\r\nHost: a\n\r\n"])
def test_lines_that_end_in_lf_alone_are_refused(target, line):
    assert_refused(attack(target, line + SMUGGLED), 400)


@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"+2\r\n{}\r\n0\r\n\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"2_0\r\n{}\r\n0\r\n\r\n",
        b"2\n{}\n0\n\n",
        b"2;a\nb\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}XX0\r\n\r\n",
        b"1\r\n{}\r\n0\r\n\r\n",
        b"f" * 100 + b"\r\n",
        b"2;" + b"x" * 100_000,
        b"2\r\n{}\r\n0\r\n" + b"X: a\r\n" * 100_000,
    ],
    ids=lambda chunks: ascii(chunks)[2:-1][:30],
)
def test_malformed_chunks_are_refused(target, chunks):
    assert_refused(attack(target, HOST + CHUNKED + b"\r\n\r\n" + chunks + SMUGGLED), 400, 413)


def test_body_of_a_get_is_no_request(target):
    head = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED)

    assert [answer.status for answer in attack(target, head + SMUGGLED)] == [200]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET  /health HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\xff" * 70_000,
        b"\0" * 1_000_000,
        b"a" * 1_000_000,
        b"\r\n" * 500_000,
        random.Random(1).randbytes(1_000_000),
    ],
    ids=lambda data: ascii(data)[2:-1][:20],
)
def test_what_is_not_http_is_refused(target, data):
    answers = attack(target, data, ends=True)

    assert all(400 <= answer.status < 500 or answer.status == 505 for answer in answers), answers
    assert len(answers) <= 1


@pytest.mark.parametrize("header", [b"X: " + b"x" * 10_000_000, b"X: a\r\n" * 1_000_000], ids=["long", "many"])
def test_huge_headers_are_431(target, header):
    assert_refused(attack(target, b"GET /health HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n\r\n"), 431)


@pytest.mark.parametrize("path", ["/auto/BMW", "/stock"])
@pytest.mark.parametrize("end", [b"]", b"}", b""], ids=["closed", "wrong", "open"])
@pytest.mark.parametrize("bracket", [b"[", b'{"mark":'], ids=["array", "object"])
def test_nested_brackets_are_400(target, bracket, end, path):
    body = bracket * 100_000 + end * 100_000

    assert target.ask("POST", path, body, Content_Type="application/json").status == 400


@pytest.mark.parametrize(
    "data",
    [HOST[:20], HOST, HOST + b"Content-Length: 100\r\n\r\n{", HOST + CHUNKED + b"\r\n\r\n5\r\n{"],
    ids=["line", "headers", "body", "chunk"],
)
def test_half_a_request_costs_only_a_connection(target, data):
    waiting = [target.connect() for _ in range(20)]
    for connection in waiting:
        connection.send(data)

    assert target.ask("GET", "/history").status == 200
    assert attack(target, data, ends=True) == []
    for connection in waiting:
        connection.close()


def test_length_that_is_too_short_smuggles_nothing(target):
    answers = attack(target, HOST + b'Content-Length: 10\r\n\r\n{"username": "alice", "password": "warik"}' + SMUGGLED)

    assert [answer.status for answer in answers] == [400, 400]


EXPECT = {"Expect": "100-continue", "Content_Type": "application/json"}


@pytest.mark.parametrize(
    ("path", "length", "name", "status"),
    [
        ("/auto/BMW", MIB + 1, "alice", 413),
        ("/auth", 10**15, None, 413),
        ("/stock", 64 * MIB + 1, "alice", 413),
        ("/stock", 64 * MIB, None, 401),
        ("/stock", 10, None, 401),
    ],
)
def test_body_that_is_not_wanted_is_not_asked_for(target, path, length, name, status):
    token = target.token(name) if name else None
    answers = attack(target, request_bytes("POST", path, None, token, Content_Length=length, **EXPECT))

    assert_refused(answers, status, 401)


def test_body_that_is_wanted_is_asked_for(target):
    with target.connect("alice") as connection:
        connection.request("POST", "/stock", None, Content_Length=2, **EXPECT)
        assert connection.answer().status == 100
        connection.send(b"[]")
        assert connection.answer().status == 201


def megabytes(number, chunked=False):
    """Give a body in parts of one MiB."""
    part = bytes(MIB)
    parts = [b"%x\r\n%b\r\n" % (MIB, part) if chunked else part] * number
    return [*parts, b"0\r\n\r\n"] if chunked else parts


CODED = {"Transfer_Encoding": "chunked", **AS_JSON}


def test_uploads_of_strangers_are_401_while_they_still_send(target):
    sized = request_bytes("POST", "/stock", None, None, Content_Length=64 * MIB, **AS_JSON)
    chunked = request_bytes("POST", "/stock", None, "wrong", **CODED)
    attacks = [partial(attack, target, sized, *megabytes(64))] * 2 + [
        partial(attack, target, chunked, *megabytes(64, chunked=True))
    ] * 2

    with target.bounded(24) as growth:
        answers = at_once(*attacks)

    for answer in answers:
        assert_refused(answer, 401)
    assert target.spilled() < 1
    print(f"\nattacked: 4 uploads of 64 MiB without a token refused at once; memory grew by {growth():.0f} MiB")


@pytest.mark.parametrize(("path", "size"), [("/auto/BMW", 2), ("/auth", 2), ("/stock", 65)])
def test_chunks_over_the_limit_are_413(target, path, size):
    head = request_bytes("POST", path, None, target.token("alice"), **CODED)
    with target.bounded(24):
        answers = attack(target, head, *megabytes(size, chunked=True))

    assert_refused(answers, 413)
    wait_for(lambda: target.spilled() < 1)


def test_answers_that_nobody_reads_do_not_pile_up(target):
    reader, files = target.connect(receive_buffer=4096), len(os.listdir(f"/proc/{target.process.pid}/fd"))
    reader.send(request_bytes("GET", "/docs/swagger-ui-bundle.js") * 600)
    with suppress(AssertionError):
        wait_for(lambda: target.spilled() > 64, 2)
    spilled, opened = target.spilled(), len(os.listdir(f"/proc/{target.process.pid}/fd")) - files
    reader.close()

    assert spilled < 64, f"{spilled:.0f} MiB on disk"
    assert opened < 20


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n" * 500_000,
        HOST + CHUNKED + b"\r\n\r\n" + b"1\r\n{\r\n" * 150_000,
        HOST + CHUNKED + b" " * 200_000 + b",\r\n\r\n",
        b"GET /stock?" + b"&".join(b"a%d" % number for number in range(20_000)) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["empty lines", "chunks of one byte", "blanks behind a coding", "parameters"],
)
def test_bytes_that_cost_much_keep_nobody_waiting(target, data):
    attackers = [target.connect() for _ in range(10)]
    slowest, began = 0, time.monotonic()
    with ThreadPoolExecutor(10) as pool:
        for attacker in attackers:
            pool.submit(attacker.send, data)
        while time.monotonic() - began < 1.5:
            answer, seconds = timed(target.ask, "GET", "/history")
            assert answer.status == 200
            slowest = max(slowest, seconds)
        for attacker in attackers:
            with suppress(OSError):
                attacker.socket.shutdown(socket.SHUT_RDWR)

    assert slowest < 1
    print(f"\nattacked: beside 10 that send bytes that cost much another client waits {slowest:.2f} s at most")


# ----------------------------------------------------------------------------------------------------------------------
# Mixed load
# ----------------------------------------------------------------------------------------------------------------------


class Client(Writer):
    """A writer that also reads, repeats itself, errs, and fights for cars."""

    def ordinary(self, stop):
        """Do one thing after the other."""
        acts = [self.step] * 4 + [self.look, self.browse, self.repeat, self.err, self.fight, self.fight, self.load_many]
        while not stop.is_set():
            self.random.choice(acts)()

    def look(self):
        """Look at a car of one's own, and at one that is not there."""
        for mark, car in list(self.cars.items())[-1:]:
            answer = self.ask("GET", at(mark))
            assert (answer.status, answer.json) == (200, {"mark": mark, **car})
        assert self.ask("GET", at(self.new_mark())).status == 404

    def browse(self):
        """Page through the stock, and look who did what."""
        assert self.ask("GET", "/stock?limit=50&order_by=-max_speed").status in (200, 400)  # 400: there is no car yet
        assert self.ask("GET", "/history?limit=50").status == 200

    def repeat(self):
        """Add cars that are there."""
        for mark in list(self.cars)[:1]:
            assert self.ask("POST", at(mark), self.new_car()).status == 400
            new = self.new_mark()
            body = [{"mark": name, **self.new_car()} for name in (new, mark)]
            assert self.ask("POST", "/stock", body).status == 400
            assert self.ask("GET", at(new)).status == 404

    def err(self):
        """Send what is against the rules."""
        mark, car = self.new_mark(), self.new_car()
        good = {"mark": mark, **car}
        assert self.ask("POST", at(mark), {**car, "max_speed": "fast"}).status == 400
        assert self.ask("PUT", at(mark), b"{", Content_Type="application/json").status == 400
        assert self.ask("PUT", "/stock", [good, {**good, "mark": ""}]).status == 400
        assert self.ask("DELETE", at(mark)).status == 404

    def fight(self):
        """Change a car that others change too; whoever is told that it worked has done it."""
        act, refused = self.random.choice([(self.create, 400), (self.update, 404), (self.delete, 404)])
        assert act(self.random.choice(SHARED)).status in (201, 202, refused)

    def load_many(self):
        """Upload many cars at once."""
        assert self.upload(200).status == 202


def test_mixed_load_loses_and_invents_nothing(site, database):
    clients = [Client(site, f"client {n}") for n in range(8)]
    began = time.monotonic()

    with load(*[client.ordinary for client in clients]):
        wait_for(lambda: time.monotonic() - began > MIXED_SECONDS, MIXED_SECONDS + 5)

    assert_kept(database, clients)
    seen = [sum(client.seen.get(status, 0) for client in clients) for status in (200, 201, 202, 400, 404)]
    assert sum(seen) == sum(sum(client.seen.values()) for client in clients)
    print(
        f"\nmixed load ({database.name}): 8 clients, {MIXED_SECONDS:.0f} s, {sum(seen)} answers"
        f" (200, 201, 202, 400, 404: {', '.join(map(str, seen))}), {acknowledged(clients)} entries, all as acknowledged"
    )
