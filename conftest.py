"""What the rooms of the tests share: databases, applications, servers, clients, and how answers are compared.

Every test that touches a database runs on SQLite, and on PostgreSQL too where the environment names an empty one that
has "test" in its name (all that it holds is dropped)::

    TEST_DATABASE_URL=postgresql://postgres@127.0.0.1/dealer_test python -m pytest -W error

Requests go through WebTest; what only a real server shows goes to a process of its own, over sockets.
"""

import base64
import csv
import hashlib
import hmac
import http.client
import io
import json
import operator
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jwt
import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool

import dealer

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # WebOb imports `cgi`, on its way out
    from webtest import TestApp, TestResponse


HERE = Path(__file__).resolve().parent
SECRET = "a secret of more than thirty-two bytes"
USERNAME, PASSWORD = "alice", "warik"
CAR = {"max_speed": 280, "distance": 400, "handler": "Auto Motors", "stock": "Germany"}
OTHER_CAR = {"max_speed": 210, "distance": 999, "handler": "Second Hand", "stock": "Sweden"}
MIB = 1024 * 1024

with open(HERE / "samples" / "cars.csv", encoding="utf-8", newline="") as file:
    LINES = [
        {**line, "max_speed": int(line["max_speed"]), "distance": int(line["distance"])}
        for line in csv.DictReader(file)
    ]
SAMPLES = {line["mark"]: line for line in reversed(LINES)}  # of a mark that occurs twice the first line stays
FIELDS = ("mark", "max_speed", "distance", "handler", "stock")


# ----------------------------------------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------------------------------------

CREDENTIALS = {"username": USERNAME, "password": PASSWORD}
COMPOSED, DECOMPOSED = "\u0160koda", "S\u030ckoda"
NOT_FOUND = "Auto with that mark not found"

MARKS = [
    "BMW",
    "VW Golf 1.9 TDI/4Motion",
    "Lada Нива (2121)",
    "宝马 3系",
    "100% electric",
    "100%25 electric",
    "%2F",
    COMPOSED,
    "/leading slash",
    "//two slashes",
    "trailing slash/",
    "/",
    "../up",
    "a/../b",
    "...",
    ".a",
    "Citroën C4;2020",
    "what?",
    "a&b=c",
    "a+b",
    "a b",
    "#1",
    "😀 Emoji 👨\u200d👩\u200d👧",
    "می\u200cخواهم",
    'quoted "mark"',
    "it's",
    "'; DROP TABLE autos; --",
    "<b>bold</b>",
    "back\\slash",
    "{mark}",
    "%s %(x)s :mark",
    "a_b%",
    "null",
    "0",
    "x" * 255,
    "😀" * 255,
    "\u00e9" * 255,
]

NUMBER = "must be an integer from 0 to 9007199254740991"


def length(limit):
    """Give the sentence for a text that is empty or too long."""
    return f"must be text of 1 to {limit} characters"


NO_OBJECT = "body: must be a JSON object"

COMPARISONS = {
    "": operator.eq,
    "__not": operator.ne,
    "__gt": operator.gt,
    "__gte": operator.ge,
    "__lt": operator.lt,
    "__lte": operator.le,
    "__in": operator.eq,
    "__startswith": lambda text, part: text.startswith(part),
    "__contains": lambda text, part: part in text,
}
SOUGHT = {"mark": "Nissan Leaf", "handler": "BMW", "stock": "Germany", "max_speed": 160, "distance": 330}
FILTERS = [
    (name, operation)
    for name, value in SOUGHT.items()
    for operation in COMPARISONS
    if isinstance(value, str) or operation not in ("__startswith", "__contains")
]

ODD_MARKS = [*MARKS, '"', '""', ",", "a>b", '["a"]', "a;b;c;d;e;f", " a ", "\u2028.", "=1+1", "-1", "0012", "1e5", "'"]
ODD_MARKS = [unicodedata.normalize("NFC", mark) for mark in ODD_MARKS]
ODD_CARS = [{"mark": mark, **CAR, "stock": mark} for mark in ODD_MARKS]
HEADER = "mark,max_speed,distance,handler,stock"
JSON, CSV = "application/json", "text/csv"
TWO_CARS = [{"mark": "Audi", **OTHER_CAR}, {"mark": "BMW", **CAR}]
TYPED = "geheim"  # what must not show
PROXY = "192.0.2.1"
WRONG = {**CREDENTIALS, "password": "wrong"}


# ----------------------------------------------------------------------------------------------------------------------
# Assertions
# ----------------------------------------------------------------------------------------------------------------------

LEAK = re.compile(r"Traceback|File \"|\.py\b|SELECT |INSERT |UPDATE |sqlite|psycopg|sqlalchemy|msgspec|/home/|/tmp/")
BEARER, INVALID_TOKEN = "Bearer", 'Bearer error="invalid_token"'


def assert_json(answer, status, body):
    """Compare a whole answer, and what all answers have in common."""
    assert (answer.status_int, answer.json) == (status, body)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", answer.headers["X-Request-ID"])


def assert_error(answer, status, sentence):
    """Compare a refusal: every one is JSON, one sentence under one key, and tells nothing of the inside."""
    assert_json(answer, status, {"Error": sentence})
    assert re.fullmatch(r"\S[^\n]*\S", sentence)
    assert not LEAK.search(answer.text)


def assert_headers(answer, **headers):
    """Compare some headers of an answer; their names are written with underscores."""
    assert {name: answer.headers.get(name.replace("_", "-")) for name in headers} == headers


def assert_refused(answer, name):
    """Compare a refusal that names a parameter, a field or a place, and goes on in words of its own."""
    sentence = answer.json["Error"]
    assert sentence.startswith(f"{name}: ")
    assert_error(answer, 400, sentence)


# ----------------------------------------------------------------------------------------------------------------------
# Requests
# ----------------------------------------------------------------------------------------------------------------------


def at(mark):
    """Give the path of a car."""
    return "/auto/" + quote(mark, safe="")


def send(client, method, path, body=b"", content_type="application/json", **headers):
    """Send a request just as it is given, also one that no well-behaved client sends."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if content_type is not None:
        headers["Content-Type"] = content_type
    body = body if isinstance(body, bytes) else body.encode()
    return client.request(path, method=method, body=body, headers=headers, status="*")


def raw_object(defaults, changes):
    """Give a JSON object as text, its values written in JSON already; a value of None leaves its name out."""
    members = {**{name: json.dumps(value) for name, value in defaults.items()}, **changes}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in members.items() if value is not None) + "}"


def raw_car(**changes):
    """Give the body of a car, with some values in JSON of their own."""
    return raw_object(CAR, changes)


def raw_credentials(**changes):
    """Give the body of a login, with some values in JSON of their own."""
    return raw_object({"username": USERNAME, "password": PASSWORD}, changes)


def table(*rows):
    """Give the parameters of rows whose first value is also their id, where it can be."""
    return [pytest.param(*row, id=ascii(row[0])[:40]) for row in rows]


def statuses(answers):
    """Give the statuses of answers, in order."""
    return sorted(answer.status_int for answer in answers)


def put_cars(client, *cars):
    """Put cars in stock, and give the client back; a text stands for a car of that mark."""
    cars = [{"mark": car, **CAR} if isinstance(car, str) else car for car in cars]
    client.put_json("/stock", cars, status=202)
    return client


def in_order(cars, order_by="mark"):
    """Put cars in order as the contract has it: by code point, ties by mark."""
    cars = sorted(cars, key=lambda car: car["mark"])
    for part in reversed(order_by.split(",")):
        cars.sort(key=lambda car: car[part.lstrip("-")], reverse=part.startswith("-"))
    return cars


def pages_from(client, path):
    """Give the answers of all pages, one after the other; no listing here has more than a thousand."""
    for _ in range(1000):
        answer = client.get(path, status=200)
        yield answer
        link = answer.headers.get("Link")
        if not link:
            return
        path = re.fullmatch(r'<([^<>\s]+)>; rel="next"', link)[1]
    pytest.fail("the pages have no end")


def as_csv(cars):
    """Give cars as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER.split(","))
    writer.writeheader()
    writer.writerows(cars)
    return text.getvalue()


# ----------------------------------------------------------------------------------------------------------------------
# Tokens
# ----------------------------------------------------------------------------------------------------------------------


def encoded(part):
    """Give a part of a JWT."""
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(claims, header=None, secret=SECRET, digest=hashlib.sha256):
    """Give a token with a header and a signature of any kind."""
    signed = encoded({"alg": "HS256", "typ": "JWT"} if header is None else header) + "." + encoded(claims)
    return signed + "." + encoded(hmac.new(secret.encode(), signed.encode(), digest).digest())


def claims_of(account):
    """Give the claims of the account's token."""
    return jwt.decode(account.token, options={"verify_signature": False})


def changed(account, **claims):
    """Give a token of the account, signed rightly, with some claims changed; None leaves one out."""
    merged = {**claims_of(account), **claims}
    return forged({name: value for name, value in merged.items() if value is not None})


# ----------------------------------------------------------------------------------------------------------------------
# Fixtures
# ----------------------------------------------------------------------------------------------------------------------


class Store:
    """A database as another program sees it, for what HTTP cannot show."""

    pool = None  # SQLAlchemy's own

    def __init__(self, url):
        self.url = dealer.database_url(url)
        self.name = sqlalchemy.make_url(self.url).get_backend_name()
        self.engine = sqlalchemy.create_engine(self.url, poolclass=NullPool if self.name == "sqlite" else self.pool)
        if self.name == "sqlite":
            sqlalchemy.event.listen(self.engine, "connect", hurry)

    def query(self, sql, **values):
        """Give the rows of a query as dictionaries."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(sqlalchemy.text(sql), values).mappings()]

    def execute(self, *statements, **values):
        """Change the database, all in one transaction."""
        with self.engine.begin() as connection:
            for sql in statements:
                connection.execute(sqlalchemy.text(sql), values)

    def insert(self, table, row):
        """Insert a row."""
        self.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(':' + name for name in row)})", **row)

    def tables(self):
        """Give the names of all tables but that of the schema's version."""
        if self.name == "sqlite":
            found = self.query("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
        else:
            found = self.query("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")
        return {row["name"] for row in found} - {"schema_version"}

    def contents(self):
        """Give all that is stored, but for failed logins and registrations, which are only counted."""
        return {name: self.query(f"SELECT * FROM {name}") for name in self.tables() - {"failures", "registrations"}}

    def empty(self):
        """Delete every row."""
        self.execute(*[f"DELETE FROM {name}" for name in self.tables()])


def hurry(connection, record):
    """Spare the tests' own changes to an SQLite database the wait for the disk."""
    connection.execute("PRAGMA synchronous=OFF")


def sqlite_store(folder):
    """Give a database that does not exist yet."""
    return Store(f"sqlite:///{folder / 'dealer.db'}")


DATABASES = ["sqlite", "postgresql"] if os.environ.get("TEST_DATABASE_URL") else ["sqlite"]


@pytest.fixture(autouse=True)
def patience():
    """No test lasts longer than two minutes: one that waits for what does not come fails."""

    def give_up(*_):
        pytest.fail("this takes for ever")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", params=DATABASES)
def store(request, tmp_path_factory):
    """The database of the module, at first without a table."""
    if request.param == "sqlite":
        yield sqlite_store(tmp_path_factory.mktemp("database"))
        return
    store = Store(os.environ["TEST_DATABASE_URL"])
    assert "test" in store.engine.url.database, "TEST_DATABASE_URL must name a database for tests"
    store.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    yield store
    store.engine.dispose()


@pytest.fixture
def database(store):
    """A database without a row."""
    store.empty()
    return store


@pytest.fixture
def make_app(database):
    """Give a function that builds an application, with some settings of its own; all are closed after the test."""
    with ExitStack() as apps:
        yield lambda **settings: apps.enter_context(open_app(database, **settings))


@contextmanager
def open_app(database, **settings):
    """Give an application over a database, and close it after."""
    settings = {"database_url": database.url, "jwt_secret": SECRET, **settings}
    with closing(dealer.create_app(dealer.Settings(**settings))) as app:
        yield app


@pytest.fixture
def app(make_app):
    """A fresh application over a database without a row."""
    return make_app()


@pytest.fixture
def testapp(app):
    """A client without a token."""
    return TestApp(app)


class Account(NamedTuple):
    """An account as the database holds it, and a token of it."""

    row: dict
    token: str


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    """An account that registered and logged in over HTTP: once, since hashing takes its time."""
    store = sqlite_store(tmp_path_factory.mktemp("account"))
    with open_app(store) as app:
        testapp = TestApp(app)
        testapp.post_json("/register", {"username": USERNAME, "password": PASSWORD}, status=201)
        token = testapp.post_json("/auth", {"username": USERNAME, "password": PASSWORD}).json["access_token"]
    return Account(store.query("SELECT * FROM users")[0], token)


@pytest.fixture(scope="module")
def lasting_app(store):
    """An application for all tests of the module that are not about itself, since opening one takes its time."""
    with open_app(store) as app:
        yield app


@pytest.fixture
def client(lasting_app, database, account):
    """A client with a token of `account`, which is all that the database holds."""
    database.insert("users", account.row)
    client = TestApp(lasting_app)
    client.authorization = ("Bearer", account.token)
    return client


@pytest.fixture
def refused(client, database):
    """A client with a token whose requests are all refused: after the test nothing may have changed."""
    before = database.contents()
    yield client
    assert database.contents() == before


@pytest.fixture
def bmw(client):
    """A client with a token, and one car in stock."""
    client.post_json("/auto/BMW", CAR, status=201)
    return client


@pytest.fixture
def stocked(client):
    """A client with a token, and every car of the samples in stock."""
    for mark, car in SAMPLES.items():
        client.post_json(at(mark), car, status=201)
    return client


@pytest.fixture
def registered(testapp, database, account):
    """A client without a token, of a server that knows `account`."""
    database.insert("users", account.row)
    return testapp


@pytest.fixture
def lister(client):
    """A client with a token, and every car of the samples in stock, put there at once."""
    return put_cars(client, *SAMPLES.values())


# ----------------------------------------------------------------------------------------------------------------------
# A real server
# ----------------------------------------------------------------------------------------------------------------------


class Server(NamedTuple):
    """A server process, its port, and a token it takes."""

    process: subprocess.Popen
    port: int
    token: str = ""

    def request(self, method, path, body=None, **headers):
        """Send a request over a connection of its own; a body that is no text or bytes goes as JSON."""
        headers = {"Authorization": f"Bearer {self.token}", **headers}
        if body is not None and not isinstance(body, (bytes, str)):
            headers["Content-Type"], body = "application/json", json.dumps(body)
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, headers)
            return answer_of(connection.getresponse())

    def send_bytes(self, *parts):
        """Send bytes as they are, and give the first answer to them."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            for part in parts:
                connection.sendall(part)
            with closing(http.client.HTTPResponse(connection)) as response:
                response.begin()
                return answer_of(response)

    def at_once(self, *requests):
        """Send requests in the same moment, and give their answers."""
        barrier = threading.Barrier(len(requests))

        def wait_and_send(arguments):
            barrier.wait()
            return self.request(*arguments)

        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(wait_and_send, requests))


def answer_of(response):
    """Give the answer of a real server in the form that WebTest has for its own."""
    return TestResponse(body=response.read(), status=response.status, headerlist=response.getheaders())


def environment(**settings):
    """Give this process' environment, with these settings and no others."""
    names = {field.name.upper() for field in fields(dealer.Settings)}
    return {**{name: value for name, value in os.environ.items() if name not in names}, **settings}


def free_port():
    """Give a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def start_server(url, folder, **settings):
    """Start the server, and wait until it takes connections."""
    port = free_port()
    command = [sys.executable, str(HERE / "dealer.py"), "--port", str(port)]
    with open(folder / "server.log", "ab") as log:
        settings = environment(DATABASE_URL=url, JWT_SECRET=SECRET, **settings)
        process = subprocess.Popen(command, stdout=log, stderr=log, env=settings)
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return Server(process, port)
        except ConnectionRefusedError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
    process.kill()
    process.wait()
    pytest.fail("the server did not start:\n" + (folder / "server.log").read_text())


@contextmanager
def running_server(url, folder, **settings):
    """Give a server that is ended after."""
    server = start_server(url, folder, **settings)
    try:
        yield server
    finally:
        server.process.terminate()
        try:
            server.process.wait(15)
        finally:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="module")
def lasting_server(store, tmp_path_factory):
    """A server that lasts for the module, since starting one takes its time."""
    with running_server(store.url, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(lasting_server, database, account):
    """A server over a database that holds nothing but `account`."""
    database.insert("users", account.row)
    return lasting_server._replace(token=account.token)


CHROMIUM = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    """Chromium, as Debian has it; where there is none its tests are skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright (.ci/requirements.txt)")
    chromium = shutil.which("chromium") or pytest.skip("needs Chromium (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM)
        yield browser
        browser.close()


# ----------------------------------------------------------------------------------------------------------------------
# The program
# ----------------------------------------------------------------------------------------------------------------------

PROGRAM = [sys.executable, str(HERE / "dealer.py")]


def run(*arguments, text="", **settings):
    """Run the program to its end, which must come within ten seconds."""
    env = environment(**settings)
    return subprocess.run([*PROGRAM, *arguments], input=text, env=env, capture_output=True, text=True, timeout=10)


def assert_refusal(child, code, word):
    """Compare what is left of a program that could not do its work: one line on standard error, without a password."""
    assert (child.returncode, child.stdout) == (code, "")
    assert re.fullmatch(rf"[^\n]*\b{word}\b[^\n]*\n", child.stderr), child.stderr
    assert TYPED not in child.stderr


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
    assert list(answer.json) == ["Error"]
    assert re.fullmatch(
        r"(Database is not available|Too many \w+ wait|No room for a body of this size)\. Try again later",
        answer.json["Error"],
    )
    assert answer.headers["retry-after"].isdigit()


# ----------------------------------------------------------------------------------------------------------------------
# Servers and databases
# ----------------------------------------------------------------------------------------------------------------------


class Database(Store):
    """A database whose server may fail: each statement has a session of its own."""

    pool = NullPool

    @property
    def path(self):
        """The file, or the name on the server."""
        return self.engine.url.database

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


AS_JSON = {"Content_Type": "application/json"}
