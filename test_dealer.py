"""What the car dealer API answers, chapter by chapter in the order of its contract.

Every test that touches a database runs on SQLite, and on PostgreSQL too where the environment names an empty one that
has "test" in its name (all that it holds is dropped)::

    TEST_DATABASE_URL=postgresql://postgres@127.0.0.1/dealer_test python -m pytest -W error

Requests go through WebTest; what only a real server shows goes to a process of its own, over sockets.
"""

import ast
import base64
import csv
import hashlib
import hmac
import http.client
import io
import json
import logging
import operator
import os
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode, urljoin

import argon2
import bottle
import jwt
import pytest
import sqlalchemy
from bottle import Bottle, HTTPError, PluginError
from sqlalchemy.pool import NullPool

import dealer
from plugins.access import AccessPlugin
from plugins.answers import Answer, AnswersPlugin
from plugins.bodies import BodiesPlugin, Number, Record, Text
from plugins.identity import IdentityPlugin
from plugins.storage import Database, StoragePlugin

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


# ----------------------------------------------------------------------------------------------------------------------
# Fixtures
# ----------------------------------------------------------------------------------------------------------------------


class Store:
    """A database as another program sees it, for what HTTP cannot show."""

    def __init__(self, url):
        self.url = dealer.database_url(url)
        self.name = sqlalchemy.make_url(self.url).get_backend_name()
        self.engine = sqlalchemy.create_engine(self.url, poolclass=NullPool if self.name == "sqlite" else None)
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
        """Give all that is stored, but for the failed logins, which are only counted."""
        return {name: self.query(f"SELECT * FROM {name}") for name in self.tables() - {"failures"}}

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


def start_server(url, folder):
    """Start the server, and wait until it takes connections."""
    port = free_port()
    command = [sys.executable, str(HERE / "dealer.py"), "--port", str(port)]
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment(DATABASE_URL=url, JWT_SECRET=SECRET)
        )
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
def running_server(url, folder):
    """Give a server that is ended after."""
    server = start_server(url, folder)
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


# ----------------------------------------------------------------------------------------------------------------------
# Part 1: Accounts
# ----------------------------------------------------------------------------------------------------------------------

WRONG_LOGIN = "Invalid username or password"
CREDENTIALS = {"username": USERNAME, "password": PASSWORD}


@pytest.fixture
def registered(testapp, database, account):
    """A client without a token, of a server that knows `account`."""
    database.insert("users", account.row)
    return testapp


def test_register_new_name(testapp):
    answer = testapp.post_json("/register", CREDENTIALS, status=201)

    assert_json(answer, 201, {"Message": "User created. Try to auth"})


def test_register_taken_name_is_400(registered):
    answer = registered.post_json("/register", {"username": USERNAME, "password": "another"}, status=400)

    assert_error(answer, 400, "User already exists")


def test_register_taken_name_keeps_the_password(registered):
    registered.post_json("/register", {"username": USERNAME, "password": "another"}, status=400)

    registered.post_json("/auth", CREDENTIALS, status=200)


def test_names_differ_by_case(registered):
    answer = registered.post_json("/register", {"username": "Alice", "password": "x"}, status=201)

    assert_json(answer, 201, {"Message": "User created. Try to auth"})


def test_log_in(registered):
    answer = registered.post_json("/auth", CREDENTIALS, status=200)

    assert_json(answer, 200, {"access_token": answer.json["access_token"], "token_type": "Bearer", "expires_in": 3600})
    assert_headers(answer, Cache_Control="no-store")


def test_token_opens_the_cars(registered):
    token = registered.post_json("/auth", CREDENTIALS).json["access_token"]
    registered.authorization = ("Bearer", token)

    answer = registered.post_json("/auto/BMW", CAR, status=201)

    assert_json(answer, 201, {"Message": "Auto created"})


def test_token_is_a_jwt_of_the_account(account):
    header = jwt.get_unverified_header(account.token)
    claims = jwt.decode(account.token, SECRET, algorithms=["HS256"])

    assert header["alg"] == "HS256"
    assert claims["sub"] == USERNAME
    assert type(claims["iat"]) is int
    assert abs(claims["iat"] - time.time()) < 300
    assert claims["exp"] - claims["iat"] == 3600


def test_token_lives_as_long_as_set(make_app, database, account):
    testapp = TestApp(make_app(jwt_ttl=60))
    database.insert("users", account.row)

    answer = testapp.post_json("/auth", CREDENTIALS, status=200)

    claims = jwt.decode(answer.json["access_token"], SECRET, algorithms=["HS256"])
    assert (answer.json["expires_in"], claims["exp"] - claims["iat"]) == (60, 60)


@pytest.mark.parametrize(
    ("username", "password"),
    [
        pytest.param(USERNAME, "wrong", id="wrong password"),
        pytest.param(USERNAME, "WARIK", id="other case"),
        pytest.param(USERNAME, "warik ", id="trailing space"),
        pytest.param("bob", PASSWORD, id="unknown name"),
        pytest.param("Alice", PASSWORD, id="name in other case"),
    ],
)
def test_wrong_login_is_401(refused, username, password):
    answer = refused.post_json("/auth", {"username": username, "password": password}, status=401)

    assert_error(answer, 401, WRONG_LOGIN)
    assert_headers(answer, WWW_Authenticate=BEARER)


def test_wrong_password_and_unknown_name_look_alike(refused):
    wrong = refused.post_json("/auth", {"username": USERNAME, "password": "wrong"}, status=401)
    unknown = refused.post_json("/auth", {"username": "nobody", "password": "wrong"}, status=401)

    for answer in (wrong, unknown):
        answer.headers.pop("X-Request-ID")
    assert (wrong.status, wrong.headerlist, wrong.body) == (unknown.status, unknown.headerlist, unknown.body)


@pytest.mark.parametrize(
    "username",
    table(["a"], ["a" * 80], ["😀" * 80], ["e\u0301" * 80], ["Вася Пупкин"], ["a@b.c"], ["'; DROP TABLE users; --"]),
)
def test_username_that_is_fine(testapp, username):
    testapp.post_json("/register", {"username": username, "password": "x"}, status=201)

    testapp.post_json("/auth", {"username": username, "password": "x"}, status=200)


PASSWORDS = [" ", "\t\n", "p", "p" * 1024, "😀" * 1024, "e\u0301" * 1024, "пароль\u200b\x7f", "%s' OR 1=1"]


@pytest.mark.parametrize("password", table(*[[password] for password in PASSWORDS]))
def test_password_that_is_fine(testapp, password):
    testapp.post_json("/register", {"username": "bob", "password": password}, status=201)

    testapp.post_json("/auth", {"username": "bob", "password": password}, status=200)


def test_long_password_counts_to_its_end(testapp):
    testapp.post_json("/register", {"username": "bob", "password": "p" * 1024}, status=201)

    answer = testapp.post_json("/auth", {"username": "bob", "password": "p" * 1023 + "q"}, status=401)

    assert_error(answer, 401, WRONG_LOGIN)


COMPOSED, DECOMPOSED = "\u0160koda", "S\u030ckoda"


@pytest.mark.parametrize(("first", "second"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_both_unicode_forms_log_in(testapp, first, second):
    testapp.post_json("/register", {"username": first, "password": first}, status=201)

    answer = testapp.post_json("/auth", {"username": second, "password": second}, status=200)

    assert jwt.decode(answer.json["access_token"], SECRET, algorithms=["HS256"])["sub"] == COMPOSED


def test_name_in_the_other_unicode_form_is_taken(testapp):
    testapp.post_json("/register", {"username": COMPOSED, "password": "x"}, status=201)

    answer = testapp.post_json("/register", {"username": DECOMPOSED, "password": "x"}, status=400)

    assert_error(answer, 400, "User already exists")


def test_password_is_stored_as_argon2id(testapp, database):
    testapp.post_json("/register", CREDENTIALS, status=201)

    stored = database.query("SELECT password FROM users")[0]["password"]
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_same_password_is_stored_differently(testapp, database):
    testapp.post_json("/register", {"username": "alice", "password": "same"}, status=201)
    testapp.post_json("/register", {"username": "bob", "password": "same"}, status=201)

    first, second = database.query("SELECT password FROM users")
    assert first != second


@pytest.fixture
def old_hash(database, account, app):
    """The hash that `account` has, made with older parameters."""
    weak = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    database.insert("users", {**account.row, "password": weak})
    return weak


def test_login_renews_an_older_hash(testapp, database, old_hash):
    testapp.post_json("/auth", CREDENTIALS, status=200)

    stored = database.query("SELECT password FROM users")[0]["password"]
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert argon2.PasswordHasher().verify(stored, PASSWORD)


def test_wrong_login_keeps_an_older_hash(testapp, database, old_hash):
    testapp.post_json("/auth", {"username": USERNAME, "password": "wrong"}, status=401)

    assert database.query("SELECT password FROM users") == [{"password": old_hash}]


# ----------------------------------------------------------------------------------------------------------------------
# Part 1: Tokens
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


def swapped(token, part, replacement):
    """Give a token with one of its three parts replaced."""
    parts = token.split(".")
    parts[part] = replacement(parts[part])
    return ".".join(parts)


def flipped(text):
    """Give a text with its first character changed."""
    return ("B" if text[0] == "A" else "A") + text[1:]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "JWT", "jwt", "Jwt"])
def test_scheme_that_is_fine(client, account, scheme):
    answer = client.get("/stock", headers={"Authorization": f"{scheme} {account.token}"}, status=400)

    assert_error(answer, 400, "No one autos found in DataBase")


def test_forged_token_opens_where_it_is_right(client, account):
    token = forged(claims_of(account))

    answer = client.get("/stock", headers={"Authorization": f"Bearer {token}"}, status=400)

    assert_error(answer, 400, "No one autos found in DataBase")


def test_token_missing_is_401(testapp):
    answer = testapp.get("/stock", status=401)

    assert_error(answer, 401, "Token is missing")
    assert_headers(answer, WWW_Authenticate=BEARER)


@pytest.mark.parametrize(
    "authorization", table(["Basic YWxpY2U6d2FyaWs="], ["Digest x"], [""], ["Bearers x.y.z"], ["token x.y.z"])
)
def test_other_scheme_is_401(refused, authorization):
    answer = refused.get("/stock", headers={"Authorization": authorization}, status=401)

    assert_error(answer, 401, "Token is missing")
    assert_headers(answer, WWW_Authenticate=BEARER)


NOW = int(time.time())
BAD_TOKENS = {
    "scheme alone": lambda account: "",
    "blank": lambda account: "   ",
    "garbage": lambda account: "garbage",
    "two dots": lambda account: "..",
    "not ASCII": lambda account: "é.é.é",
    "10 KB": lambda account: "x" * 10240,
    "10 KB of dots": lambda account: "." * 10240,
    "10 KB of payload": lambda account: forged({"sub": "x" * 10240, "iat": NOW, "exp": NOW + 60}),
    "two parts": lambda account: account.token.rpartition(".")[0],
    "four parts": lambda account: account.token + ".x",
    "sent twice": lambda account: f"{account.token}, Bearer {account.token}",
    "followed by more": lambda account: account.token + " x",
    "quoted": lambda account: f'"{account.token}"',
    "alg none": lambda account: forged(claims_of(account), {"alg": "none"}).rpartition(".")[0] + ".",
    "alg None": lambda account: forged(claims_of(account), {"alg": "None"}).rpartition(".")[0] + ".",
    "alg none, but signed": lambda account: forged(claims_of(account), {"alg": "none"}),
    "alg missing": lambda account: forged(claims_of(account), {"typ": "JWT"}),
    "alg null": lambda account: forged(claims_of(account), {"alg": None}),
    "alg a list": lambda account: forged(claims_of(account), {"alg": ["HS256"]}),
    "HS512": lambda account: forged(claims_of(account), {"alg": "HS512"}, digest=hashlib.sha512),
    "HS384": lambda account: forged(claims_of(account), {"alg": "HS384"}, digest=hashlib.sha384),
    "RS256, signed with HMAC": lambda account: forged(claims_of(account), {"alg": "RS256"}),
    "ES256, signed with HMAC": lambda account: forged(claims_of(account), {"alg": "ES256"}),
    "critical extension": lambda account: forged(claims_of(account), {"alg": "HS256", "crit": ["x"], "x": 1}),
    "header no object": lambda account: forged(claims_of(account), []),
    "header not JSON": lambda account: forged(claims_of(account), b"{"),
    "other secret": lambda account: forged(claims_of(account), secret="another secret of thirty-two bytes"),
    "empty secret": lambda account: forged(claims_of(account), secret=""),
    "payload tampered": lambda account: swapped(account.token, 1, lambda _: encoded({"sub": "bob"})),
    "signature tampered": lambda account: swapped(account.token, 2, flipped),
    "signature empty": lambda account: swapped(account.token, 2, lambda _: ""),
    "signature short": lambda account: swapped(account.token, 2, lambda text: text[:-4]),
    "payload no object": lambda account: forged([1]),
    "payload not JSON": lambda account: forged(b"{"),
    "payload empty": lambda account: forged({}),
    "expired": lambda account: changed(account, iat=NOW - 3601, exp=NOW - 1),
    "without exp": lambda account: changed(account, exp=None),
    "without iat": lambda account: changed(account, iat=None),
    "without sub": lambda account: changed(account, sub=None),
    "exp null": lambda account: forged({**claims_of(account), "exp": None}),
    "exp a text": lambda account: changed(account, exp="tomorrow"),
    "exp a list": lambda account: changed(account, exp=[NOW + 60]),
    "exp negative": lambda account: changed(account, exp=-1),
    "exp infinite": lambda account: changed(account, exp=float("inf")),
    "exp no number": lambda account: changed(account, exp=float("nan")),
    "iat a text": lambda account: changed(account, iat="now"),
    "iat in the future": lambda account: changed(account, iat=NOW + 86400, exp=NOW + 90000),
    "nbf in the future": lambda account: changed(account, nbf=NOW + 86400),
    "sub a number": lambda account: changed(account, sub=1),
    "sub a list": lambda account: changed(account, sub=[USERNAME]),
    "sub null": lambda account: forged({**claims_of(account), "sub": None}),
    "sub empty": lambda account: changed(account, sub=""),
    "sub with NUL": lambda account: changed(account, sub="alice\0"),
    "sub a lone surrogate": lambda account: changed(account, sub="\ud800"),
    "sub in other case": lambda account: changed(account, sub="Alice"),
    "unknown account": lambda account: changed(account, sub="nobody"),
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in BAD_TOKENS.items()])
def test_bad_token_is_401(refused, account, make):
    answer = refused.get("/stock", headers={"Authorization": "Bearer " + make(account)}, status=401)

    assert_error(answer, 401, "Token is invalid or expired")
    assert_headers(answer, WWW_Authenticate=INVALID_TOKEN)


def test_token_ends_when_its_time_is_over(make_app, database, account):
    client = TestApp(make_app())
    database.insert("users", account.row)
    client.authorization = ("Bearer", changed(account, exp=int(time.time()) + 2))
    client.get("/stock", status=400)

    time.sleep(2.1)

    assert_error(client.get("/stock", status=401), 401, "Token is invalid or expired")


def test_token_ends_with_its_account(client, database):
    client.get("/stock", status=400)
    database.execute("DELETE FROM users")

    answer = client.get("/stock", status=401)

    assert_error(answer, 401, "Token is invalid or expired")
    assert_headers(answer, WWW_Authenticate=INVALID_TOKEN)


def test_token_of_an_earlier_account_of_that_name_is_401(client, database):
    database.execute("DELETE FROM users")
    TestApp(client.app).post_json("/register", CREDENTIALS, status=201)

    answer = client.get("/stock", status=401)

    assert_error(answer, 401, "Token is invalid or expired")


PUBLIC = {
    ("POST", "/register"),
    ("POST", "/auth"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/"),
    ("GET", "/health"),
}


def example_of(rule):
    """Give a path that a rule matches."""
    return re.sub(r"<[^>]+>", "x", rule)


def test_every_route_that_is_not_public_asks_for_a_token(app):
    protected = [route for route in app.routes if (route.method, route.rule) not in PUBLIC]
    testapp = TestApp(app)

    statuses = {
        (route.method, route.rule): send(testapp, route.method, example_of(route.rule)).status_int
        for route in protected
        if not route.rule.startswith("/docs/")
    }

    assert len(statuses) >= 5
    assert set(statuses.values()) == {401}, statuses


# ----------------------------------------------------------------------------------------------------------------------
# Part 1: Cars
# ----------------------------------------------------------------------------------------------------------------------

NOT_FOUND = "Auto with that mark not found"


def test_find_auto(bmw):
    answer = bmw.get("/auto/BMW", status=200)

    assert_json(answer, 200, {"mark": "BMW", **CAR})
    assert_headers(answer, Cache_Control="private, no-cache")


def test_find_unknown_mark_is_404(client):
    answer = client.get("/auto/BMW", status=404)

    assert_error(answer, 404, NOT_FOUND)


def test_create_auto(client):
    answer = client.post_json("/auto/BMW", CAR, status=201)

    assert_json(answer, 201, {"Message": "Auto created"})
    assert_headers(answer, Location="/auto/BMW")


def test_create_known_mark_is_400(bmw):
    answer = bmw.post_json("/auto/BMW", OTHER_CAR, status=400)

    assert_error(answer, 400, "Auto with that mark exists")


def test_create_known_mark_keeps_the_car(bmw):
    bmw.post_json("/auto/BMW", OTHER_CAR, status=400)

    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **CAR}


def test_update_auto(bmw):
    answer = bmw.put_json("/auto/BMW", OTHER_CAR, status=202)

    assert_json(answer, 202, {"Message": "Auto updated"})


def test_update_replaces_the_data(bmw):
    bmw.put_json("/auto/BMW", OTHER_CAR, status=202)

    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **OTHER_CAR}


def test_update_to_the_same_data(bmw):
    answer = bmw.put_json("/auto/BMW", CAR, status=202)

    assert_json(answer, 202, {"Message": "Auto updated"})


def test_update_changes_no_other_car(bmw):
    bmw.post_json("/auto/Audi", CAR, status=201)

    bmw.put_json("/auto/BMW", OTHER_CAR, status=202)

    assert bmw.get("/auto/Audi").json == {"mark": "Audi", **CAR}


def test_update_unknown_mark_is_404(refused):
    answer = refused.put_json("/auto/BMW", CAR, status=404)

    assert_error(answer, 404, NOT_FOUND)


def test_delete_auto(bmw):
    answer = bmw.delete("/auto/BMW", status=202)

    assert_json(answer, 202, {"Message": "Auto deleted"})


def test_deleted_auto_is_gone(bmw):
    bmw.delete("/auto/BMW", status=202)

    assert_error(bmw.get("/auto/BMW", status=404), 404, NOT_FOUND)


def test_delete_deletes_no_other_car(bmw):
    bmw.post_json("/auto/Audi", CAR, status=201)

    bmw.delete("/auto/BMW", status=202)

    assert bmw.get("/stock").json == [{"mark": "Audi", **CAR}]


def test_delete_unknown_mark_is_404(refused):
    answer = refused.delete("/auto/BMW", status=404)

    assert_error(answer, 404, NOT_FOUND)


def test_deleted_mark_can_be_created_again(bmw):
    bmw.delete("/auto/BMW", status=202)

    bmw.post_json("/auto/BMW", OTHER_CAR, status=201)

    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **OTHER_CAR}


def test_stock_without_a_car_is_400(client):
    answer = client.get("/stock", status=400)

    assert_error(answer, 400, "No one autos found in DataBase")


def test_stock_after_the_last_car_is_400(bmw):
    bmw.delete("/auto/BMW", status=202)

    assert_error(bmw.get("/stock", status=400), 400, "No one autos found in DataBase")


def test_stock_lists_whole_cars(bmw):
    answer = bmw.get("/stock", status=200)

    assert_json(answer, 200, [{"mark": "BMW", **CAR}])
    assert_headers(answer, Cache_Control="private, no-cache")


def test_stock_is_ordered_by_code_point(client):
    marks = ["a", "B", "b", "Z", "_", "10", "9", "Ä", "ä", "Ж", "宝马", "\ufffd", "😀", "A b", "A-b", "Ab"]
    for mark in marks:
        client.post_json(at(mark), CAR, status=201)

    answer = client.get("/stock", status=200)

    assert [car["mark"] for car in answer.json] == sorted(marks)


# The samples, and marks as people write them


def test_samples_hold_one_mark_twice():
    assert (len(LINES), len(SAMPLES)) == (103, 102)


def test_samples_from_registration_to_an_empty_stock(testapp):
    testapp.post_json("/register", CREDENTIALS, status=201)
    token = testapp.post_json("/auth", CREDENTIALS, status=200).json["access_token"]
    testapp.authorization = ("JWT", token)

    created = [(line["mark"], testapp.post_json(at(line["mark"]), line, status="*").status_int) for line in LINES]
    read = [testapp.get(at(mark)).json for mark in SAMPLES]
    listed = testapp.get("/stock").json
    updated = [testapp.put_json(at(mark), OTHER_CAR).status_int for mark in SAMPLES]
    relisted = testapp.get("/stock").json
    deleted = [testapp.delete(at(mark)).status_int for mark in SAMPLES]

    assert [mark for mark, status in created if status != 201] == ["Kia e-Soul 64 kWh"]
    assert read == list(SAMPLES.values())
    assert listed == [SAMPLES[mark] for mark in sorted(SAMPLES)]
    assert updated == [202] * 102
    assert relisted == [{"mark": mark, **OTHER_CAR} for mark in sorted(SAMPLES)]
    assert deleted == [202] * 102
    assert_error(testapp.get("/stock", status=400), 400, "No one autos found in DataBase")


def test_second_sample_of_one_mark_is_400(client):
    first, second = (line for line in LINES if line["mark"] == "Kia e-Soul 64 kWh")
    client.post_json(at(first["mark"]), first, status=201)

    answer = client.post_json(at(second["mark"]), second, status=400)

    assert_error(answer, 400, "Auto with that mark exists")


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


@pytest.mark.parametrize("mark", table(*[[mark] for mark in MARKS]))
def test_mark_as_people_write_it(client, mark):
    created = client.post_json(at(mark), CAR, status=201)

    assert_json(client.get(created.location, status=200), 200, {"mark": mark, **CAR})
    assert_json(client.get("/stock", status=200), 200, [{"mark": mark, **CAR}])
    assert_json(client.put_json(at(mark), OTHER_CAR, status=202), 202, {"Message": "Auto updated"})
    assert_json(client.delete(at(mark), status=202), 202, {"Message": "Auto deleted"})


@pytest.mark.parametrize("mark", ["VW Golf 1.9 TDI/4Motion", "/leading", "trailing/", "a//b"])
def test_slash_is_the_same_plain_and_encoded(client, mark):
    client.post_json("/auto/" + quote(mark, safe=""), CAR, status=201)

    assert_json(client.get("/auto/" + quote(mark, safe="/"), status=200), 200, {"mark": mark, **CAR})


def test_plus_in_a_path_is_no_space(client):
    client.post_json("/auto/a+b", CAR, status=201)

    assert_json(client.get("/auto/a%2Bb", status=200), 200, {"mark": "a+b", **CAR})
    assert_error(client.get("/auto/a%20b", status=404), 404, NOT_FOUND)


def test_marks_differ_by_case(bmw):
    assert_error(bmw.get("/auto/bmw", status=404), 404, NOT_FOUND)


@pytest.mark.parametrize(("first", "second"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_both_unicode_forms_are_one_car(client, first, second):
    client.post_json(at(first), CAR, status=201)

    assert_error(client.post_json(at(second), CAR, status=400), 400, "Auto with that mark exists")
    assert_json(client.get(at(second), status=200), 200, {"mark": COMPOSED, **CAR})


def test_location_names_the_mark_as_it_is_stored(client):
    answer = client.post_json(at(DECOMPOSED + "/1"), CAR, status=201)

    assert_headers(answer, Location="/auto/%C5%A0koda%2F1")


def test_texts_are_stored_in_one_unicode_form(client):
    client.post_json("/auto/x", {**CAR, "handler": DECOMPOSED, "stock": DECOMPOSED}, status=201)

    answer = client.get("/auto/x")

    assert (answer.json["handler"], answer.json["stock"]) == (COMPOSED, COMPOSED)


def test_mark_is_measured_in_its_stored_form(client):
    client.post_json(at("e\u0301" * 255), CAR, status=201)

    assert client.get("/stock").json == [{"mark": "\u00e9" * 255, **CAR}]


# The method in a header


def test_post_with_override_put_updates(bmw):
    answer = bmw.post_json("/auto/BMW", OTHER_CAR, headers={"X-HTTP-Method-Override": "PUT"}, status=202)

    assert_json(answer, 202, {"Message": "Auto updated"})
    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **OTHER_CAR}


def test_post_with_override_put_of_unknown_mark_is_404(refused):
    answer = refused.post_json("/auto/BMW", CAR, headers={"X-HTTP-Method-Override": "PUT"}, status=404)

    assert_error(answer, 404, NOT_FOUND)


def test_post_with_override_delete_deletes(bmw):
    answer = bmw.post("/auto/BMW", headers={"X-HTTP-Method-Override": "DELETE"}, status=202)

    assert_json(answer, 202, {"Message": "Auto deleted"})
    assert_error(bmw.get("/auto/BMW", status=404), 404, NOT_FOUND)


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "FETCH", "PUT, DELETE"])
def test_override_with_another_value_is_400(refused, method):
    answer = send(refused, "POST", "/auto/BMW", raw_car(), X_HTTP_Method_Override=method)

    assert_error(answer, 400, answer.json["Error"])


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_override_on_another_method_is_400(refused, method):
    answer = send(refused, method, "/auto/BMW", raw_car(), X_HTTP_Method_Override="PUT")

    assert_error(answer, 400, answer.json["Error"])


def test_override_needs_a_token(testapp):
    answer = send(testapp, "POST", "/auto/BMW", raw_car(), X_HTTP_Method_Override="PUT")

    assert_error(answer, 401, "Token is missing")


def test_override_with_a_method_the_path_has_not_is_405(refused):
    answer = send(refused, "POST", "/auth", raw_credentials(), X_HTTP_Method_Override="DELETE")

    assert_error(answer, 405, "Method not allowed")


# HEAD


@pytest.mark.parametrize("path", ["/auto/BMW", "/stock"])
def test_head_answers_as_get_without_the_body(bmw, path):
    got, headed = bmw.get(path), bmw.head(path, status=200)

    for answer in (got, headed):
        answer.headers.pop("X-Request-ID")
    assert (headed.headerlist, headed.body) == (got.headerlist, b"")


def test_head_of_unknown_mark_is_404(client):
    answer = client.head("/auto/BMW", status=404)

    assert answer.body == b""


def test_head_without_a_token_is_401(testapp):
    answer = testapp.head("/stock", status=401)

    assert_headers(answer, WWW_Authenticate=BEARER)


# ----------------------------------------------------------------------------------------------------------------------
# Part 1: Values
# ----------------------------------------------------------------------------------------------------------------------

NUMBER = "must be an integer from 0 to 9007199254740991"
NOT_TEXT = "must be text"
BLANK = "must not be blank"
UNREADABLE = "must not hold control or format characters"
SURROGATE = "must not hold lone surrogates"
NOT_JSON = "body: must be JSON in UTF-8"


def length(limit):
    """Give the sentence for a text that is empty or too long."""
    return f"must be text of 1 to {limit} characters"


WRONG_NUMBERS = [
    "true",
    "false",
    "null",
    "280.5",
    "280.0",
    "-0.0",
    "2e2",
    "2E2",
    "2e0",
    "1e-1",
    '"280"',
    '""',
    '"many"',
    "[]",
    "[280]",
    "{}",
    '{"value": 280}',
    "-1",
    "-9007199254740991",
    "9007199254740992",
    "9223372036854775808",
    "18446744073709551616",
    "1" + "0" * 30,
    "-1" + "0" * 30,
    "1" + "0" * 5000,
    "1e400",
    "-1e400",
]
NO_NUMBERS = ["NaN", "Infinity", "-Infinity", "0280", "+280", ".5", "5.", "0x118", "1_000", "280k", "None", "True", ""]
WRONG_TYPES = ["true", "false", "null", "280", "0", "280.5", "[]", '["x"]', "{}", '{"x": "y"}']


def wrong_texts(limit):
    """Give texts that are refused wherever a text of `limit` characters is asked for, with the reason."""
    unreadable = ["\0", "a\0b", "a\nb", "a\rb", "a\tb", "a\x1bb", "a\x7fb", "a\x85b", "a\u00adb", "a\u061cb"]
    unreadable += ["a\u200bb", "a\u200eb", "a\u202eb", "a\u2060b", "a\ufeffb", "\ufeffa", "a\U000e0001b", "a\n"]
    surrogates = ["\ud800", "a\udfffb", "\udc00\ud800"]
    blank = [" ", "   ", "\u00a0", "\u2003\u3000", "\u2028"]
    return [
        ["", length(limit)],
        ["x" * (limit + 1), length(limit)],
        ["x" * 10000, length(limit)],
        ["😀" * (limit + 1), length(limit)],
        ["e\u0301" * (limit + 1), length(limit)],
        ["\u0958" * (limit // 2 + 1), length(limit)],  # NFC makes two characters of each
        *[[text, BLANK] for text in blank],
        *[[text, UNREADABLE] for text in unreadable],
        *[[text, SURROGATE] for text in surrogates],
    ]


@pytest.mark.parametrize("name", ["max_speed", "distance"])
@pytest.mark.parametrize("value", table(*[[value] for value in WRONG_NUMBERS]))
def test_wrong_number_is_400(refused, name, value):
    answer = send(refused, "POST", "/auto/BMW", raw_car(**{name: value}))

    assert_error(answer, 400, f"{name}: {NUMBER}")


@pytest.mark.parametrize("name", ["max_speed", "handler"])
@pytest.mark.parametrize("value", table(*[[value] for value in NO_NUMBERS]))
def test_value_that_is_not_json_is_400(refused, name, value):
    answer = send(refused, "POST", "/auto/BMW", raw_car(**{name: value}))

    assert_error(answer, 400, NOT_JSON)


@pytest.mark.parametrize("name", ["max_speed", "distance"])
@pytest.mark.parametrize("value", [0, 1, 280, 2**31, 2**53 - 1])
def test_number_that_is_fine(client, name, value):
    client.post_json("/auto/BMW", {**CAR, name: value}, status=201)

    assert_json(client.get("/auto/BMW"), 200, {"mark": "BMW", **CAR, name: value})


@pytest.mark.parametrize("name", ["handler", "stock", "mark"])
@pytest.mark.parametrize("value", table(*[[value] for value in WRONG_TYPES]))
def test_text_of_another_type_is_400(refused, name, value):
    answer = send(refused, "POST", "/auto/BMW", raw_car(**{name: value}))

    assert_error(answer, 400, f"{name}: {NOT_TEXT}")


@pytest.mark.parametrize("name", ["handler", "stock", "mark"])
@pytest.mark.parametrize(("text", "sentence"), table(*wrong_texts(255)))
def test_wrong_text_is_400(refused, name, text, sentence):
    answer = refused.post_json("/auto/BMW", {**CAR, name: text}, status=400)

    assert_error(answer, 400, f"{name}: {sentence}")


@pytest.mark.parametrize("name", ["handler", "stock"])
@pytest.mark.parametrize(
    "text",
    table(
        ["x"],
        ["x" * 255],
        ["😀" * 255],
        ["\u0958" * 127],
        ["می\u200cخواهم"],
        ["क्\u200dष"],
        ["a\u2028b"],
        ["Łódź & Sons, \"Ltd\" <x> 'y' \\ / ; --"],
        ["\ufdd0"],
        ["\U0010ffff"],
    ),
)
def test_text_that_is_fine(client, name, text):
    client.post_json("/auto/BMW", {**CAR, name: text}, status=201)

    assert client.get("/auto/BMW").json[name] == unicodedata.normalize("NFC", text)


def test_text_is_measured_in_its_stored_form(client):
    client.post_json("/auto/BMW", {**CAR, "handler": "e\u0301" * 255}, status=201)

    assert client.get("/auto/BMW").json["handler"] == "\u00e9" * 255


WRONG_MARKS = [
    [".", "must not be '.' or '..'"],
    ["..", "must not be '.' or '..'"],
    *[row for row in wrong_texts(255) if row[0] and row[1] != SURROGATE and len(row[0]) < 1000],
]


@pytest.mark.parametrize(("mark", "sentence"), table(*WRONG_MARKS))
def test_wrong_mark_in_the_path_is_400(refused, mark, sentence):
    answer = refused.get(at(mark), status=400)

    assert_error(answer, 400, f"mark: {sentence}")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_wrong_mark_is_400_with_every_method(refused, method):
    answer = send(refused, method, "/auto/%20", raw_car())

    assert_error(answer, 400, f"mark: {BLANK}")


@pytest.mark.parametrize("path", ["/auto/%FF", "/auto/%FFbmw", "/auto/bmw%C3", "/auto/%ED%A0%80", "/auto/%C0%AF"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_path_that_is_not_utf8_is_400(refused, method, path):
    answer = send(refused, method, path, raw_car())

    assert_error(answer, 400, "path: must be UTF-8")


def test_mark_in_the_body_may_repeat_that_of_the_path(client):
    answer = client.post_json("/auto/BMW", {"mark": "BMW", **CAR}, status=201)

    assert_json(answer, 201, {"Message": "Auto created"})


def test_mark_in_the_body_may_be_in_another_unicode_form(client):
    answer = client.post_json(at(COMPOSED), {"mark": DECOMPOSED, **CAR}, status=201)

    assert_json(answer, 201, {"Message": "Auto created"})


def test_what_get_gave_can_be_sent_back(bmw):
    answer = bmw.put_json("/auto/BMW", bmw.get("/auto/BMW").json, status=202)

    assert_json(answer, 202, {"Message": "Auto updated"})


@pytest.mark.parametrize("mark", ["Audi", "bmw", "BMW ", "BMW/"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_another_mark_in_the_body_is_400(refused, method, mark):
    answer = send(refused, method, "/auto/BMW", json.dumps({"mark": mark, **CAR}))

    assert_error(answer, 400, "mark: must be the same as in the path")


@pytest.mark.parametrize("name", CAR)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_missing_field_is_400(refused, method, name):
    answer = send(refused, method, "/auto/BMW", raw_car(**{name: None}))

    assert_error(answer, 400, f"{name}: is missing")


@pytest.mark.parametrize(
    ("name", "told"),
    table(
        ["price", "price"],
        ["Max_speed", "Max_speed"],
        ["max_speed ", "max_speed "],
        ["цвет", "цвет"],
        ["x" * 200, "x" * 80],
        ["a\nb\x00\u202ec\ud800", "abc"],
        ["\u200b" * 200 + "x" * 100, "x" * 80],
    ),
)
def test_unknown_field_is_400(refused, name, told):
    answer = refused.post_json("/auto/BMW", {**CAR, name: 1}, status=400)

    assert_error(answer, 400, f"{told}: unknown field")


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_unknown_field_is_400_with_every_method(refused, method):
    answer = send(refused, method, "/auto/BMW", raw_car(price="1"))

    assert_error(answer, 400, "price: unknown field")


def test_last_of_a_repeated_key_counts(client):
    body = '{"max_speed": "fast", "max_speed": 1, ' + raw_car(max_speed="2")[1:]

    answer = send(client, "POST", "/auto/BMW", body)

    assert_json(answer, 201, {"Message": "Auto created"})
    assert client.get("/auto/BMW").json == {"mark": "BMW", **CAR, "max_speed": 2}


def test_last_of_a_repeated_key_is_refused(refused):
    body = '{"max_speed": 1, ' + raw_car(max_speed='"fast"')[1:]

    answer = send(refused, "POST", "/auto/BMW", body)

    assert_error(answer, 400, f"max_speed: {NUMBER}")


@pytest.mark.parametrize(
    ("name", "value"), [("max_speed", "-1"), ("distance", "true"), ("handler", '" "'), ("stock", "null")]
)
def test_wrong_value_is_400_at_an_update(bmw, name, value):
    answer = send(bmw, "PUT", "/auto/BMW", raw_car(**{name: value, "max_speed": value if name == "max_speed" else "1"}))

    assert_error(answer, 400, answer.json["Error"])
    assert answer.json["Error"].startswith(f"{name}: ")
    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **CAR}


# Credentials

PATHS_OF_CREDENTIALS = ["/register", "/auth"]


@pytest.mark.parametrize("path", PATHS_OF_CREDENTIALS)
@pytest.mark.parametrize(("username", "sentence"), table(*wrong_texts(80)))
def test_wrong_username_is_400(refused, path, username, sentence):
    answer = refused.post_json(path, {"username": username, "password": "x"}, status=400)

    assert_error(answer, 400, f"username: {sentence}")


@pytest.mark.parametrize("path", PATHS_OF_CREDENTIALS)
@pytest.mark.parametrize(
    ("password", "sentence"),
    table(
        ["", length(1024)],
        ["x" * 1025, length(1024)],
        ["😀" * 1025, length(1024)],
        ["\u0958" * 513, length(1024)],
        ["\0", "must not hold NUL"],
        ["secret\0", "must not hold NUL"],
        ["\ud800", SURROGATE],
        ["a\udfffb", SURROGATE],
    ),
)
def test_wrong_password_value_is_400(refused, path, password, sentence):
    answer = refused.post_json(path, {"username": "bob", "password": password}, status=400)

    assert_error(answer, 400, f"password: {sentence}")


@pytest.mark.parametrize("path", PATHS_OF_CREDENTIALS)
@pytest.mark.parametrize("name", ["username", "password"])
@pytest.mark.parametrize("value", table(*[[value] for value in WRONG_TYPES]))
def test_credentials_of_another_type_are_400(refused, path, name, value):
    answer = send(refused, "POST", path, raw_credentials(**{name: value}))

    assert_error(answer, 400, f"{name}: {NOT_TEXT}")


@pytest.mark.parametrize("path", PATHS_OF_CREDENTIALS)
@pytest.mark.parametrize("name", ["username", "password"])
def test_missing_credentials_are_400(refused, path, name):
    answer = send(refused, "POST", path, raw_credentials(**{name: None}))

    assert_error(answer, 400, f"{name}: is missing")


@pytest.mark.parametrize("path", PATHS_OF_CREDENTIALS)
@pytest.mark.parametrize("name", ["email", "session", "is_admin", "Password"])
def test_unknown_credentials_are_400(refused, path, name):
    answer = send(refused, "POST", path, raw_credentials(**{name: "true"}))

    assert_error(answer, 400, f"{name}: unknown field")


# ----------------------------------------------------------------------------------------------------------------------
# Part 1: Errors
# ----------------------------------------------------------------------------------------------------------------------

NO_OBJECT = "body: must be a JSON object"
MALFORMED_BODIES = {
    "empty": (b"", "body: is missing"),
    "blank": (b" \n ", NOT_JSON),
    "a word": (b"hello", NOT_JSON),
    "a form": (b"max_speed=280&distance=400", NOT_JSON),
    "truncated": (raw_car()[:-1].encode(), NOT_JSON),
    "truncated in a text": (b'{"max_speed": 280, "handler": "Aut', NOT_JSON),
    "trailing comma": (raw_car().replace("}", ",}").encode(), NOT_JSON),
    "trailing garbage": (raw_car().encode() + b" x", NOT_JSON),
    "two objects": (raw_car().encode() * 2, NOT_JSON),
    "single quotes": (raw_car().replace('"', "'").encode(), NOT_JSON),
    "comment": (b"/* car */" + raw_car().encode(), NOT_JSON),
    "raw line break in a text": (raw_car(handler='"a\nb"').encode(), NOT_JSON),
    "raw NUL": (raw_car().encode() + b"\0", NOT_JSON),
    "bad escape": (raw_car(handler=r'"\x41"').encode(), NOT_JSON),
    "half an escape": (raw_car(handler=r'"\u12"').encode(), NOT_JSON),
    "Latin-1": (raw_car(handler='"Citroën"').encode("latin-1"), NOT_JSON),
    "UTF-8 of a surrogate": (raw_car(handler='"\ud800"').encode("utf-8", "surrogatepass"), NOT_JSON),
    "overlong UTF-8": (b'{"\xc0\xaf": 1}', NOT_JSON),
    "UTF-16": (raw_car().encode("utf-16"), NOT_JSON),
    "UTF-16 without BOM": (raw_car().encode("utf-16-le"), NOT_JSON),
    "UTF-32": (raw_car().encode("utf-32"), NOT_JSON),
    "BOM": (raw_car().encode("utf-8-sig"), NOT_JSON),
    "100,000 arrays": (b"[" * 100_000, NOT_JSON),
    "100,000 arrays, closed": (b"[" * 100_000 + b"]" * 100_000, NOT_JSON),
    "100,000 objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, NOT_JSON),
    "array": (b"[]", NO_OBJECT),
    "array of a car": (f"[{raw_car()}]".encode(), NO_OBJECT),
    "text": (b'"max_speed"', NO_OBJECT),
    "number": (b"280", NO_OBJECT),
    "true": (b"true", NO_OBJECT),
    "null": (b"null", NO_OBJECT),
}
BODIES = [pytest.param(body, sentence, id=name) for name, (body, sentence) in MALFORMED_BODIES.items()]


@pytest.mark.parametrize(("body", "sentence"), BODIES)
def test_malformed_body_is_400(refused, body, sentence):
    answer = send(refused, "POST", "/auto/BMW", body)

    assert_error(answer, 400, sentence)


@pytest.mark.parametrize(("method", "path"), [("PUT", "/auto/BMW"), ("POST", "/register"), ("POST", "/auth")])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
def test_malformed_body_is_400_everywhere(refused, method, path, body):
    answer = send(refused, method, path, body)

    assert_error(answer, 400, answer.json["Error"])
    assert answer.json["Error"].startswith("body: ")


def test_body_missing_without_a_type_is_400(refused):
    answer = send(refused, "POST", "/auto/BMW", b"", content_type=None)

    assert_error(answer, 400, "body: is missing")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "Application/JSON",
        "application/vnd.api+json",
        "application/problem+json; x=y",
    ],
)
def test_type_of_a_body_that_is_fine(client, content_type):
    answer = send(client, "POST", "/auto/BMW", raw_car(), content_type=content_type)

    assert_json(answer, 201, {"Message": "Auto created"})


@pytest.mark.parametrize(
    "content_type",
    table(
        [None],
        [""],
        ["text/plain"],
        ["application/x-www-form-urlencoded"],
        ["multipart/form-data; boundary=x"],
        ["text/json"],
        ["text/csv"],
        ["application/jsonp"],
        ["application/json-patch"],
        ["application/json+xml"],
        ["application/octet-stream"],
        ["application/xjson"],
        ["xapplication/json"],
        ["application/+json"],
        ["application/"],
        ["json"],
        ["*/*"],
        ["text/plain; application/json"],
        ["application/json, text/plain"],
    ),
)
def test_another_type_of_a_body_is_415(refused, content_type):
    answer = send(refused, "POST", "/auto/BMW", raw_car(), content_type=content_type)

    assert_error(answer, 415, "Content-Type must be application/json")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/auto/BMW", raw_car()),
        ("POST", "/register", raw_credentials()),
        ("POST", "/auth", raw_credentials()),
    ],
)
def test_another_type_of_a_body_is_415_everywhere(refused, method, path, body):
    answer = send(refused, method, path, body, content_type="text/plain")

    assert_error(answer, 415, "Content-Type must be application/json")


def test_body_of_a_mebibyte_is_fine(client):
    answer = send(client, "POST", "/auto/BMW", raw_car().rjust(MIB))

    assert_json(answer, 201, {"Message": "Auto created"})


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/auto/BMW", raw_car()),
        ("PUT", "/auto/BMW", raw_car()),
        ("POST", "/register", raw_credentials(username='"bob"')),
        ("POST", "/auth", raw_credentials()),
    ],
)
def test_body_over_a_mebibyte_is_413(refused, method, path, body):
    answer = send(refused, method, path, body.ljust(MIB + 1))

    assert_error(answer, 413, "Body is larger than 1048576 bytes")


UNKNOWN_PATHS = ["/auto", "/auto/", "/stock/", "/nothing", "/stock/x", "/register/", "/auth/", "/Stock", "/stock%0A"]


@pytest.mark.parametrize("path", [*UNKNOWN_PATHS, "/auto%00", "/<script>", "/%5C", "/auto%3Fx"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_unknown_path_is_404(refused, method, path):
    answer = send(refused, method, path, raw_car())

    assert_error(answer, 404, "Not found")


def test_unknown_path_is_404_without_a_token(testapp):
    answer = testapp.get("/nothing", status=404)

    assert_error(answer, 404, "Not found")


def allowed(app, path):
    """Give the methods of a path: those that are routed, and HEAD where GET is."""
    methods = {route.method for route in app.routes if example_of(route.rule) == path}
    return methods | {"HEAD"} if "GET" in methods else methods


@pytest.mark.parametrize("path", ["/register", "/auth", "/auto/x", "/stock"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
def test_method_that_a_path_has_not_is_405(lasting_app, method, path):
    methods = allowed(lasting_app, path)

    answer = send(TestApp(lasting_app, lint=False), method, path, raw_car())

    assert (answer.status_int == 405) == (method not in methods)
    if answer.status_int == 405:
        assert set(answer.headers["Allow"].split(", ")) == methods


def test_405_says_so_in_json(refused):
    answer = refused.delete("/register", status=405)

    assert_error(answer, 405, "Method not allowed")
    assert_headers(answer, Allow="POST")


def test_405_names_head(refused):
    answer = send(refused, "TRACE", "/auto/x")

    assert {"DELETE", "GET", "HEAD", "POST", "PUT"} <= set(answer.headers["Allow"].split(", "))


CANARY = "cAnArY"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"/{CANARY}", ""),
        ("TRACE", f"/auto/{CANARY}", ""),
        ("GET", f"/auto/{CANARY}", ""),
        ("GET", f"/auto/{CANARY}%00", ""),
        ("GET", f"/auto/{CANARY}%FF", ""),
        ("POST", f"/auto/{CANARY}", CANARY),
        ("POST", "/auto/x", raw_car(max_speed=f'"{CANARY}"')),
        ("POST", "/auto/x", raw_car(handler=rf'"{CANARY}\n"')),
        ("POST", "/auto/x", raw_car(mark=f'"{CANARY}"')),
        ("POST", "/auto/x", raw_car(handler=f'{{"{CANARY}": 1}}')),
        ("POST", "/register", raw_credentials(username=rf'"{CANARY}\n"')),
        ("POST", "/register", raw_credentials(username='"bob"', password=rf'"{CANARY}\u0000"')),
        ("POST", "/auth", raw_credentials(username=f'"{CANARY}"', password=f'"{CANARY}"')),
    ],
)
def test_error_does_not_repeat_the_input(refused, method, path, body):
    answer = send(refused, method, path, body)

    assert 400 <= answer.status_int < 500
    assert CANARY not in answer.text
    assert CANARY not in str(answer.headerlist)


def test_error_does_not_repeat_the_token(refused):
    answer = refused.get("/stock", headers={"Authorization": f"Bearer {CANARY}"}, status=401)

    assert CANARY not in answer.text + str(answer.headerlist)


@pytest.fixture
def faulty(app):
    """A client of an application that has a fault."""

    @app.get("/fault", public=True)
    def fault():
        raise RuntimeError(CANARY)

    return TestApp(app)


def test_fault_is_500(faulty):
    answer = faulty.get("/fault", status=500)

    assert_error(answer, 500, "Internal server error")


def test_fault_is_logged_with_its_traceback(faulty, caplog):
    faulty.get("/fault", status=500)

    assert f"RuntimeError: {CANARY}" in caplog.text
    assert "Traceback" in caplog.text


def test_fault_ends_nothing_else(faulty):
    faulty.get("/fault", status=500)

    faulty.post_json("/register", CREDENTIALS, status=201)


# Order of the checks: each request is wrong in many ways, and the first of them is told.

TYPE_MIME = "application/json"
ORDER = {
    "path before token": ("GET", "/nothing", b"", TYPE_MIME, False, 404),
    "path before body": ("POST", "/auto/", b"x" * (MIB + 1), "text/plain", False, 404),
    "UTF-8 of the path before token": ("GET", "/auto/%FF", b"", TYPE_MIME, False, 400),
    "method before token": ("TRACE", "/stock", b"", TYPE_MIME, False, 405),
    "method before size": ("TRACE", "/auto/x", b"x" * (MIB + 1), "text/plain", False, 405),
    "token before size": ("POST", "/auto/x", b"x" * (MIB + 1), TYPE_MIME, False, 401),
    "token before type": ("POST", "/auto/x", b"{}", "text/plain", False, 401),
    "token before a missing body": ("POST", "/auto/x", b"", TYPE_MIME, False, 401),
    "token before values": ("POST", "/auto/x", b"{}", TYPE_MIME, False, 401),
    "token before the mark": ("GET", "/auto/%00", b"", TYPE_MIME, False, 401),
    "token before data": ("GET", "/auto/unknown", b"", TYPE_MIME, False, 401),
    "size before type": ("POST", "/auto/x", b"x" * (MIB + 1), "text/plain", True, 413),
    "size before values": ("POST", "/auto/%00", b"x" * (MIB + 1), TYPE_MIME, True, 413),
    "size before data": ("PUT", "/auto/unknown", b"x" * (MIB + 1), TYPE_MIME, True, 413),
    "type before JSON": ("POST", "/auto/x", b"{", "text/plain", True, 415),
    "type before values": ("POST", "/auto/x", b"{}", "text/plain", True, 415),
    "type before the mark": ("POST", "/auto/%00", raw_car().encode(), "text/plain", True, 415),
    "type before data": ("PUT", "/auto/unknown", raw_car().encode(), "text/plain", True, 415),
    "values before data": ("PUT", "/auto/unknown", b"{}", TYPE_MIME, True, 400),
    "mark before data": ("GET", "/auto/%00", b"", TYPE_MIME, True, 400),
    "mark before data at a deletion": ("DELETE", "/auto/%00", b"", TYPE_MIME, True, 400),
    "size of a login before its type": ("POST", "/auth", b"x" * (MIB + 1), "text/plain", False, 413),
    "type of a login before its values": ("POST", "/auth", b"{}", "text/plain", False, 415),
    "values of a login before data": ("POST", "/auth", b"{}", TYPE_MIME, False, 400),
}


@pytest.mark.parametrize(
    ("method", "path", "body", "content_type", "token", "status"),
    [pytest.param(*row, id=name) for name, row in ORDER.items()],
)
def test_order_of_checks(refused, method, path, body, content_type, token, status):
    client = refused if token else TestApp(refused.app)

    answer = send(client, method, path, body, content_type)

    assert_error(answer, status, answer.json["Error"])


def test_values_come_before_a_known_mark(bmw):
    answer = bmw.post_json("/auto/BMW", {**CAR, "max_speed": -1}, status=400)

    assert_error(answer, 400, f"max_speed: {NUMBER}")


def test_values_come_before_a_taken_name(refused):
    answer = refused.post_json("/register", {"username": USERNAME, "password": ""}, status=400)

    assert_error(answer, 400, f"password: {length(1024)}")


# A database that is busy


@pytest.fixture
def locked(database, client):
    """A client of an application whose database another program writes to, for longer than one can wait."""
    client.post_json("/auto/BMW", CAR, status=201)
    with database.engine.connect() as connection:
        if database.name == "sqlite":
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
        else:
            connection.exec_driver_sql("LOCK TABLE autos IN EXCLUSIVE MODE")
        yield client
        connection.rollback()


def test_locked_database_is_503_within_10_seconds(locked):
    began = time.monotonic()
    answer = locked.put_json("/auto/BMW", OTHER_CAR, status=503)

    assert_error(answer, 503, "Database is not available. Try again later")
    assert answer.headers["Retry-After"].isdigit()
    assert time.monotonic() - began < 10


def test_locked_database_can_be_read(locked):
    answer = locked.get("/auto/BMW", status=200)

    assert_json(answer, 200, {"mark": "BMW", **CAR})


# ----------------------------------------------------------------------------------------------------------------------
# Part 1: What the database holds
# ----------------------------------------------------------------------------------------------------------------------

ROW = {"mark": "BMW", **CAR}


def test_columns_of_a_car(lasting_app, database):
    columns = {
        (column["name"], type(column["type"]).__name__, column["nullable"])
        for column in sqlalchemy.inspect(database.engine).get_columns("autos")
    }

    number = "INTEGER" if database.name == "sqlite" else "BIGINT"  # INTEGER has 64 bits on SQLite
    assert columns >= {
        ("mark", "TEXT", False),
        ("max_speed", number, False),
        ("distance", number, False),
        ("handler", "TEXT", False),
        ("stock", "TEXT", False),
    }


@pytest.mark.parametrize("name", ROW)
def test_database_refuses_null_in_a_car(lasting_app, database, name):
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        database.insert("autos", {**ROW, name: None})


@pytest.mark.parametrize("name", ["username", "password"])
def test_database_refuses_null_in_an_account(lasting_app, database, account, name):
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        database.insert("users", {**account.row, name: None})


@pytest.mark.parametrize("name", ["max_speed", "distance"])
@pytest.mark.parametrize("value", [-1, 2**53])
def test_database_refuses_a_number_out_of_range(lasting_app, database, name, value):
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        database.insert("autos", {**ROW, name: value})


@pytest.mark.parametrize("name", ["max_speed", "distance"])
@pytest.mark.parametrize("value", ["fast", b"\0"])
def test_database_refuses_what_is_no_number(lasting_app, database, name, value):
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        database.insert("autos", {**ROW, name: value})


def test_database_holds_the_largest_numbers(lasting_app, database):
    row = {**ROW, "max_speed": 2**53 - 1, "distance": 2**53 - 1}

    database.insert("autos", row)

    assert database.query("SELECT mark, max_speed, distance, handler, stock FROM autos") == [row]


def test_database_refuses_a_second_car_of_a_mark(lasting_app, database):
    database.insert("autos", ROW)

    with pytest.raises(sqlalchemy.exc.IntegrityError):
        database.insert("autos", {**ROW, **OTHER_CAR})


def test_database_refuses_a_second_account_of_a_name(lasting_app, database, account):
    database.insert("users", account.row)

    with pytest.raises(sqlalchemy.exc.IntegrityError):
        database.insert("users", {**account.row, "password": "another"})


def test_database_sorts_by_code_point(lasting_app, database):
    marks = ["a", "B", "Ä", "b", "\ufffd", "😀", "A b", "Ab"]
    for mark in marks:
        database.insert("autos", {**ROW, "mark": mark})

    rows = database.query("SELECT mark FROM autos ORDER BY mark")

    assert [row["mark"] for row in rows] == sorted(marks)


def test_database_compares_by_case(lasting_app, database):
    database.insert("autos", ROW)

    assert database.query("SELECT * FROM autos WHERE mark = 'bmw'") == []


def test_second_application_finds_what_the_first_stored(make_app, database, account):
    first, second = TestApp(make_app()), TestApp(make_app())
    database.insert("users", account.row)
    first.authorization = second.authorization = ("Bearer", account.token)

    first.post_json("/auto/BMW", CAR, status=201)

    assert_json(second.get("/auto/BMW"), 200, {"mark": "BMW", **CAR})


def test_sqlite_loses_nothing_in_a_power_cut(tmp_path):
    settings = dealer.Settings(database_url=sqlite_store(tmp_path).url)
    with closing(dealer.open_database(settings)) as db, db.reading():
        assert list(db.query("PRAGMA synchronous")) == [{"synchronous": 2}]  # FULL


# The module and the database that come with it


def schema_of(store):
    """Give all that an SQLite database defines and holds."""
    schema = store.query("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")
    rows = {name: store.query(f"SELECT * FROM {name}") for name in {"schema_version", *store.tables()}}
    return {"schema": schema, "rows": rows}


def test_committed_database_is_a_fresh_one(tmp_path):
    committed, fresh = Store(f"sqlite:///{tmp_path / 'committed.db'}"), sqlite_store(tmp_path)
    shutil.copy(HERE / "data.db", tmp_path / "committed.db")
    with open_app(fresh):
        pass

    assert schema_of(committed) == schema_of(fresh)


IMPORT = """
import os, sys, threading
seen = []
def hook(event, arguments):
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    written = event == "open" and isinstance(arguments[2], int) and arguments[2] & flags
    if written or event in ("sqlite3.connect", "socket.connect", "socket.bind", "os.mkdir", "os.link", "os.remove"):
        seen.append((event, str(arguments[0])))
sys.addaudithook(hook)
import dealer, logging
print([seen, threading.active_count(), len(logging.root.handlers)])
"""


@pytest.fixture
def copied(tmp_path):
    """A folder with the program and nothing else."""
    shutil.copy(HERE / "dealer.py", tmp_path)
    shutil.copytree(HERE / "plugins", tmp_path / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_importing_opens_and_writes_nothing(copied):
    before = sorted(copied.rglob("*"))

    child = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", IMPORT],
        cwd=copied,
        env=environment(),
        capture_output=True,
        text=True,
    )

    assert (child.returncode, child.stderr) == (0, "")
    assert ast.literal_eval(child.stdout) == [[], 1, 0]
    assert sorted(copied.rglob("*")) == before


# ----------------------------------------------------------------------------------------------------------------------
# Part 1: Over sockets
# ----------------------------------------------------------------------------------------------------------------------


def request_bytes(server, line, *headers, body=b""):
    """Give a request as it goes over the wire, with the server's token."""
    head = [line, "Host: localhost", f"Authorization: Bearer {server.token}", *headers]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def statuses(answers):
    """Give the statuses of answers, in order."""
    return sorted(answer.status_int for answer in answers)


def test_one_of_many_simultaneous_cars_is_created(server):
    answers = server.at_once(*[("POST", "/auto/BMW", {**CAR, "distance": number}) for number in range(16)])

    assert statuses(answers) == [201] + [400] * 15
    winner = next(number for number, answer in enumerate(answers) if answer.status_int == 201)
    assert_json(server.request("GET", "/auto/BMW"), 200, {"mark": "BMW", **CAR, "distance": winner})


def test_one_of_many_simultaneous_registrations_succeeds(server):
    answers = server.at_once(*[("POST", "/register", {"username": "bob", "password": str(n)}) for n in range(16)])

    assert statuses(answers) == [201] + [400] * 15
    winner = next(number for number, answer in enumerate(answers) if answer.status_int == 201)
    assert server.request("POST", "/auth", {"username": "bob", "password": str(winner)}).status_int == 200


def test_one_of_many_simultaneous_deletions_succeeds(server):
    server.request("POST", "/auto/BMW", CAR)

    answers = server.at_once(*[("DELETE", "/auto/BMW")] * 16)

    assert statuses(answers) == [202] + [404] * 15


def test_simultaneous_cars_of_different_marks_are_all_created(server):
    answers = server.at_once(*[("POST", f"/auto/{number}", CAR) for number in range(16)])

    assert statuses(answers) == [201] * 16
    assert len(server.request("GET", "/stock").json) == 16


def test_refused_duplicates_delay_no_later_write(server):
    server.at_once(*[("POST", "/auto/BMW", CAR)] * 16)

    began = time.monotonic()
    answer = server.request("PUT", "/auto/BMW", OTHER_CAR)

    assert_json(answer, 202, {"Message": "Auto updated"})
    assert time.monotonic() - began < 1


def test_answered_change_survives_kill_9(database, account, tmp_path):
    with running_server(database.url, tmp_path) as server:
        database.insert("users", account.row)
        server._replace(token=account.token).request("POST", "/auto/BMW", CAR)
        server.process.kill()
        server.process.wait()

    with running_server(database.url, tmp_path) as server:
        answer = server._replace(token=account.token).request("GET", "/auto/BMW")

    assert_json(answer, 200, {"mark": "BMW", **CAR})


@pytest.mark.parametrize("mark", table(*[[mark] for mark in MARKS if len(mark) < 255]))
def test_mark_over_a_socket(server, mark):
    server.request("POST", at(mark), CAR)

    assert_json(server.request("GET", at(mark)), 200, {"mark": mark, **CAR})


@pytest.mark.parametrize("path", ["/auto/VW%20Golf/4Motion", "/auto/VW%20Golf%2F4Motion", "/auto/VW%20Golf%2f4Motion"])
def test_slash_over_a_socket(server, path):
    server.request("POST", "/auto/VW%20Golf/4Motion", CAR)

    assert_json(server.request("GET", path), 200, {"mark": "VW Golf/4Motion", **CAR})


def test_path_that_is_not_utf8_over_a_socket(server):
    answer = server.request("GET", "/auto/%FFbmw")

    assert_error(answer, 400, "path: must be UTF-8")


def test_token_sent_twice_over_a_socket(server):
    answer = server.send_bytes(
        request_bytes(server, "GET /stock HTTP/1.1", f"Authorization: Bearer {server.token}", "Connection: close")
    )

    assert_error(answer, 401, "Token is invalid or expired")
    assert_headers(answer, WWW_Authenticate=INVALID_TOKEN)


@pytest.mark.parametrize(
    "data",
    table(
        [b"hello\r\n\r\n"],
        [b"GET\r\n\r\n"],
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n"],
        [b"GET /stock HTTP/1.1\r\n\r\n"],  # no Host
        [b"GET /stock HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n"],
        [b"GET /stock HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"],
        [b"POST /auth HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"],
        [b"POST /auth HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"],
        [b"POST /auth HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"],
        [b"POST /auth HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"],
    ),
)
def test_http_that_cannot_be_read_is_400(server, data):
    answer = server.send_bytes(data)

    assert_error(answer, 400, "Bad HTTP request")


def test_headers_that_are_too_large_are_431(server):
    answer = server.send_bytes(b"GET /stock HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 300_000 + b"\r\n\r\n")

    assert_error(answer, 431, answer.json["Error"])


def test_unknown_transfer_coding_is_501(server):
    answer = server.send_bytes(b"POST /auth HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n")

    assert_error(answer, 501, answer.json["Error"])


def test_large_body_is_refused_by_its_announced_length(server):
    line = "POST /auto/BMW HTTP/1.1"
    answer = server.send_bytes(
        request_bytes(server, line, "Content-Type: application/json", f"Content-Length: {MIB + 1}")
    )

    assert_error(answer, 413, "Body is larger than 1048576 bytes")


def test_large_body_without_a_length_is_413(server):
    head = request_bytes(
        server, "POST /auto/BMW HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    body = raw_car().ljust(MIB + 1).encode()

    answer = server.send_bytes(head, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    assert_error(answer, 413, "Body is larger than 1048576 bytes")


def test_body_without_a_length_is_fine(server):
    head = request_bytes(
        server, "POST /auto/BMW HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    body = raw_car().encode()

    answer = server.send_bytes(head, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    assert_json(answer, 201, {"Message": "Auto created"})


def test_body_of_a_mebibyte_over_a_socket(server):
    answer = server.request("POST", "/auto/BMW", raw_car().rjust(MIB), **{"Content-Type": "application/json"})

    assert_json(answer, 201, {"Message": "Auto created"})


@pytest.mark.parametrize("path", ["/nothing", "/auto/", "/stock/"])
def test_unknown_path_over_a_socket(server, path):
    assert_error(server.request("GET", path), 404, "Not found")


def test_head_over_a_socket(server):
    server.request("POST", "/auto/BMW", CAR)

    answer = server.request("HEAD", "/auto/BMW")

    assert (answer.status_int, answer.body) == (200, b"")


# ----------------------------------------------------------------------------------------------------------------------
# Part 2: Listing
# ----------------------------------------------------------------------------------------------------------------------


def put_cars(client, *cars):
    """Put cars in stock, and give the client back; a text stands for a car of that mark."""
    cars = [{"mark": car, **CAR} if isinstance(car, str) else car for car in cars]
    client.put_json("/stock", cars, status=202)
    return client


@pytest.fixture
def lister(client):
    """A client with a token, and every car of the samples in stock, put there at once."""
    return put_cars(client, *SAMPLES.values())


def marks_of(client, **parameters):
    """Give the marks of the cars that a listing with these parameters has."""
    return [car["mark"] for car in client.get("/stock?" + urlencode(parameters), status=200).json]


def in_order(cars, order_by="mark"):
    """Put cars in order as the contract has it: by code point, ties by mark."""
    cars = sorted(cars, key=lambda car: car["mark"])
    for part in reversed(order_by.split(",")):
        cars.sort(key=lambda car: car[part.lstrip("-")], reverse=part.startswith("-"))
    return cars


def pages_from(client, path):
    """Give the answers of all pages, one after the other."""
    while path:
        answer = client.get(path, status=200)
        yield answer
        link = answer.headers.get("Link")
        path = link and re.fullmatch(r'<([^<>\s]+)>; rel="next"', link)[1]


def items_from(client, path):
    """Give what is on all pages."""
    return [item for page in pages_from(client, path) for item in page.json]


def assert_refused(answer, name):
    """Compare a refusal that names a parameter, a field or a place, in words of its own."""
    assert_error(answer, 400, answer.json["Error"])
    assert answer.json["Error"].startswith(name + ":" * (not name.endswith(" ")))


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


@pytest.mark.parametrize(("name", "operation"), FILTERS)
def test_filter(lister, name, operation):
    expected = [car for car in in_order(SAMPLES.values()) if COMPARISONS[operation](car[name], SOUGHT[name])]

    answer = lister.get("/stock", {name + operation: SOUGHT[name]}, status=200)

    assert 0 < len(expected) < len(SAMPLES)
    assert_json(answer, 200, expected)
    assert_headers(answer, X_Total_Count=str(len(expected)), Link=None)


@pytest.mark.parametrize(
    ("values", "found"),
    table(
        ["BMW,Audi,BMW", ["Audi", "BMW"]],
        ['"BMW",Audi', ["Audi", "BMW"]],
        ['"Rover, Land"', ["Rover, Land"]],
        ["Rover, Land", []],
        ['"the ""best"""', ['the "best"']],
        [DECOMPOSED, [COMPOSED]],
        [",".join(["BMW", *map(str, range(99))]), ["BMW"]],
    ),
)
def test_in_reads_one_csv_record(client, values, found):
    put_cars(client, "BMW", "Audi", "Rover, Land", 'the "best"', COMPOSED)

    assert marks_of(client, mark__in=values) == found


@pytest.mark.parametrize(
    ("operation", "text", "found", "not_found"),
    [
        ("startswith", "Golf", "G|Golf", "g|golf|olf|Golfer"),
        ("startswith", "Жигули", "Жиг", "жиг"),
        ("startswith", "100% e_b\\c*d", "100%|100% e_b\\|100% e_b\\c*", "100_|1%|100% e%"),
        ("startswith", COMPOSED, DECOMPOSED, COMPOSED.lower()),
        ("contains", "VW Golf", "w gOLF|o", "gulf|VW  Golf"),
        ("contains", "Лада НИВА", "лада|нива|НИВА", "ниба"),
        ("contains", "ΟΔΥΣΣΕΥΣ Α", "οδυσσευς α|ΣΕΥΣ|υσ|ευς", "οδυσευς"),
        ("contains", "Οδυσσευς", "ΟΔΥΣΣΕΥΣ|σσ|ευσ", "οδυσευς"),
        ("contains", "Straße", "STRASSE|straße", "strase"),
        ("contains", "STRASSE", "straße|strasse", "strase"),
        ("contains", "STRAẞE", "straße|STRASSE|ẞ", "strase"),
        ("contains", "İstanbul", "İSTANBUL|i\u0307stanbul", "ostanbul"),
        ("contains", "宝马 DIŞ Տոյոտա", "马 dış|ՏՈՅՈՏԱ", "马dış"),
        ("contains", COMPOSED, DECOMPOSED.upper(), "Skoda"),
        ("contains", "100% e_b\\c*d", "0% E|_B|\\C|*D", "0%%|%b|__|e%b|c\\*|c_d"),
    ],
)
def test_part_of_a_text(client, operation, text, found, not_found):
    put_cars(client, text)

    matches = {part: marks_of(client, **{f"mark__{operation}": part}) for part in f"{found}|{not_found}".split("|")}

    assert matches == {part: [text] * (part in found.split("|")) for part in matches}


@pytest.mark.parametrize(
    "query", ["stock=germany", "max_speed__gt=9007199254740991", "mark__lt=%20!", "limit=5&mark=x"]
)
def test_no_match_is_an_empty_array(lister, query):
    answer = lister.get("/stock?" + query, status=200)

    assert_json(answer, 200, [])
    assert_headers(answer, X_Total_Count="0", Link=None)


@pytest.mark.parametrize("query", ["stock=Germany", "nothing=1", "limit=0", "limit=1&limit=1", "format=csv", "%FF=1"])
def test_database_without_a_car_comes_before_parameters(refused, query):
    answer = refused.get("/stock?" + query, headers={"Accept": "text/csv"}, status=400)

    assert_error(answer, 400, "No one autos found in DataBase")


HUNDRED_AND_ONE = ",".join(["1"] * 101)
BAD_PARAMETERS = f"""
    nothing=1 Stock=x price=1 price__gt=1 offset=1 version=1 stock=x&stock=y stock=x&stock=x limit=1&limit=1
    stock__like=x stock__=x stock__GT=x stock__gt__lt=x stock_gt=x max_speed__contains=1 max_speed__startswith=1
    max_speed= max_speed=fast max_speed=-1 max_speed=%2B1 max_speed=1.0 max_speed=1e2 max_speed=%201 max_speed=1_0
    max_speed=0x1 max_speed=%D9%A1 max_speed=%C2%B2 max_speed=9007199254740992 max_speed__lt={"1" * 5000}
    distance__in= distance__in=1,,2 distance__in=1,%202 distance__in={HUNDRED_AND_ONE} stock__in={HUNDRED_AND_ONE}
    mark__contains=%00 mark__startswith=%00 mark__contains=%E2%80%AE
    stock__in= stock__in=a, stock__in=a%0Ab stock__in=%22a stock__in=%22a%22b stock= stock=%20 stock=%00
    stock={"x" * 256} stock__contains= mark__startswith= order_by= order_by=price order_by=version order_by=--mark
    order_by=%2Bmark order_by=mark, order_by=mark,mark order_by=stock,-stock order_by=mark%20desc
    limit=0 limit=1001 limit=-1 limit= limit=ten limit=1.0 limit=%D9%A1 limit={"9" * 5000}
    limit=2&after= limit=2&after=x limit=2&after=[] limit=2&after=[1] limit=2&after=[null] limit=2&after={"[" * 5000}
    format= format=xml format=CSV stock=%FF %FF=1""".split()


@pytest.mark.parametrize("query", table(*[[query] for query in BAD_PARAMETERS]))
def test_bad_parameter_is_400(bmw, query):
    answer = bmw.get("/stock?" + query, headers={"Accept": "text/csv"}, status=400)

    assert_refused(answer, "query" if "%FF" in query else query.rpartition("&")[2].partition("=")[0])


def test_unknown_parameter_is_told_cut_and_printable(bmw):
    answer = bmw.get("/stock", {"a\n\u202eb" + "x" * 100: "1"}, status=400)

    assert_error(answer, 400, "ab" + "x" * 78 + ": unknown parameter")


ORDERS = ["mark", "-mark", "stock", "-stock", "stock,-max_speed", "-stock,max_speed", "handler,-distance,mark"]
ORDERS += ["max_speed,-stock,distance,-handler", "-distance,-mark", "-handler,-stock,-max_speed,-distance,-mark"]


@pytest.mark.parametrize("order_by", ORDERS)
def test_pages_are_the_whole_listing_in_order(lister, order_by):
    whole = lister.get("/stock?order_by=" + order_by).json
    pages = [page.json for page in pages_from(lister, f"/stock?limit=7&order_by={order_by}")]

    assert whole == in_order(SAMPLES.values(), order_by)
    assert pages == [whole[start : start + 7] for start in range(0, 102, 7)]


ODD_MARKS = [*MARKS, '"', '""', ",", "a>b", '["a"]', "a;b;c;d;e;f", " a ", "\u2028.", "=1+1", "-1", "0012", "1e5", "'"]
ODD_MARKS = [unicodedata.normalize("NFC", mark) for mark in ODD_MARKS]
ODD_CARS = [{"mark": mark, **CAR, "stock": mark} for mark in ODD_MARKS]


@pytest.mark.parametrize("order_by", ["mark", "-stock"])
def test_pages_go_on_behind_any_mark(client, order_by):
    put_cars(client, *ODD_CARS)

    assert items_from(client, f"/stock?limit=1&order_by={order_by}") == in_order(ODD_CARS, order_by)


@pytest.mark.parametrize("order_by", ["mark", "-mark", "stock,-max_speed", "-distance,handler"])
def test_cars_that_come_and_go_on_the_way_move_no_other(lister, order_by):
    seen, gone = [], set()

    for page in pages_from(lister, f"/stock?limit=9&order_by={order_by}"):
        seen += [car["mark"] for car in page.json]
        for mark in {seen[0], seen[-1]} & SAMPLES.keys() - gone:  # the very car behind which the next page begins
            lister.delete(at(mark), status=202)
            gone.add(mark)
        new = [f"{mark}{len(seen)}" for mark in ("!", "Q", "\U0010ffff")]
        put_cars(lister, *[{"mark": mark, **CAR, "stock": mark, "distance": 9 * len(seen)} for mark in new])

    stayed = [car["mark"] for car in in_order(SAMPLES.values(), order_by) if car["mark"] not in gone]
    assert [mark for mark in seen if mark in stayed] == stayed


@pytest.mark.parametrize(
    ("limit", "count", "more"), [(1, 1, True), (101, 101, True), (102, 102, False), (1000, 102, False)]
)
def test_first_page_tells_how_many_match(lister, limit, count, more):
    answer = lister.get(f"/stock?limit={limit}", status=200)

    assert len(answer.json) == count
    assert_headers(answer, X_Total_Count="102")
    assert ("Link" in answer.headers) == more


def test_later_page_tells_no_total(lister):
    _, answer = pages_from(lister, "/stock?limit=60")

    assert_json(answer, 200, in_order(SAMPLES.values())[60:])
    assert_headers(answer, X_Total_Count=None, Link=None, Cache_Control="private, no-cache")


@pytest.mark.parametrize("query", ["limit=3", "stock=Germany&order_by=-distance", "format=csv"])
def test_head_of_a_listing(lister, query):
    got, headed = lister.get("/stock?" + query), lister.head("/stock?" + query, status=200)

    for answer in (got, headed):
        answer.headers.pop("X-Request-ID")
    assert (headed.headerlist, headed.body) == (got.headerlist, b"")


# CSV

HEADER = "mark,max_speed,distance,handler,stock"


def assert_csv(answer, *lines):
    """Compare a whole answer in CSV."""
    assert answer.body.decode() == "".join(line + "\r\n" for line in (HEADER, *lines))
    assert (answer.status_int, answer.content_type, answer.charset) == (200, "text/csv", "utf-8")
    assert re.fullmatch(r'attachment; filename="[\w.]+\.csv"', answer.headers["Content-Disposition"])
    assert_headers(answer, X_Content_Type_Options="nosniff", Cache_Control="private, no-cache")


@pytest.mark.parametrize(
    ("mark", "cell"), table(["Нива", "Нива"], ["a,b", '"a,b"'], ['"a"', '"""a"""'], ["=1+1", "=1+1"], ["a;b", "a;b"])
)
def test_listing_as_csv(client, mark, cell):
    put_cars(client, mark)

    answer = client.get("/stock", headers={"Accept": "text/csv"}, status=200)

    assert_csv(answer, f"{cell},280,400,Auto Motors,Germany")


@pytest.mark.parametrize("query", ["", "&format=csv"])
def test_pages_keep_filters_order_and_format(lister, query):
    pages = pages_from(lister, "/stock?stock__in=Germany,USA&max_speed__gte=160&order_by=-max_speed&limit=3" + query)

    found = [car["mark"] for page in pages for car in (csv.DictReader(io.StringIO(page.text)) if query else page.json)]
    cars = [car for car in SAMPLES.values() if car["stock"] in ("Germany", "USA") and car["max_speed"] >= 160]
    assert found == [car["mark"] for car in in_order(cars, "-max_speed")]


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
ACCEPTS = [
    ("", "csv", "text/csv|TEXT/CSV|text/csv; charset=utf-8|text/*|text/csv, */*;q=0.1|text/csv;q=0.001"),
    ("", "csv", "text/csv;q=0.9, application/json;q=0.5|text/csv;q=0.5,application/json;q=0.4,text/html"),
    ("", "csv", "application/json;q=0, */*|application/json;q=0.2, text/*;q=0.3"),
    ("", "json", f"application/json|application/*|*/*||garbage|text/html|{BROWSER}|text/csv;q=0|text/csv;q=0, */*"),
    ("", "json", "text/csv;q=0.5, application/json;q=0.9|text/csv;q=0.5, */*"),
    ("", "json", "text/*;q=0.9, text/csv;q=0.1, application/json;q=0.5"),
    ("format=csv", "csv", f"application/json|{BROWSER}|text/csv;q=0"),
    ("format=json", "json", "text/csv"),
]


@pytest.mark.parametrize(
    ("query", "kind", "accept"),
    [(query, kind, accept) for *row, many in ACCEPTS for accept in many.split("|") for query, kind in [row]],
)
def test_accept_and_format_decide_what_a_listing_is(bmw, query, kind, accept):
    answer = bmw.get("/stock?" + query, headers={"Accept": accept}, status=200)

    assert answer.content_type.rpartition("/")[2] == kind
    assert_headers(answer, Vary="Accept")


# ----------------------------------------------------------------------------------------------------------------------
# Part 2: Whole inventories
# ----------------------------------------------------------------------------------------------------------------------

JSON, CSV = "application/json", "text/csv"
BMW, AUDI = "BMW,280,400,Auto Motors,Germany", "Audi,210,999,Second Hand,Sweden"
TWO_CARS = [{"mark": "Audi", **OTHER_CAR}, {"mark": "BMW", **CAR}]
CREATED = [("POST", 201, "{} autos created"), ("PUT", 202, "{} autos created, 0 updated")]


def lines(*rows, header=HEADER, end="\r\n"):
    """Give the text of CSV."""
    return "".join(row + end for row in (header, *rows))


def row(**changes):
    """Give the line of a car, with some cells of its own."""
    return ",".join(str({"mark": "Kia", **CAR, **changes}[name]) for name in HEADER.split(","))


def items(*changes, end="]"):
    """Give the text of a JSON array of cars, with some values of their own."""
    return json.dumps([{"mark": f"Kia {number}", **CAR, **some} for number, some in enumerate(changes)])[:-1] + end


def as_csv(cars):
    """Give cars as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER.split(","))
    writer.writeheader()
    writer.writerows(cars)
    return text.getvalue()


REORDERED = ["Germany,400,BMW,280,Auto Motors", "Sweden,999,Audi,210,Second Hand"]
FINE_UPLOADS = {
    "CRLF": (CSV, lines(BMW, AUDI)),
    "LF": (CSV, lines(BMW, AUDI, end="\n")),
    "no line end at the end": (CSV, lines(BMW, AUDI).rstrip()),
    "BOM": (CSV, "\ufeff" + lines(BMW, AUDI)),
    "BOM and semicolons": (CSV, "\ufeff" + lines(BMW, AUDI).replace(",", ";")),
    "semicolons and LF": (CSV, lines(BMW, AUDI, end="\n").replace(",", ";")),
    "quoted": (CSV, "\ufeff" + re.sub(r"[^,\r\n]+", r'"\g<0>"', lines(BMW, AUDI))),
    "columns in another order": (CSV, lines(*REORDERED, header="stock,distance,mark,max_speed,handler")),
    "blank lines": (CSV, lines(BMW, "", "", AUDI, "", "")),
    "leading zeros": (CSV, lines(BMW.replace("280", "00280"), AUDI)),
    "parameters": ("Text/CSV; charset=utf-8; header=present", lines(BMW, AUDI)),
    "JSON": (JSON, f"\r\n {json.dumps(TWO_CARS, indent=2)}\t\n"),
    "other JSON": ("application/vnd.dealer+json; charset=utf-8", json.dumps(TWO_CARS)),
}


@pytest.mark.parametrize(("method", "status", "message"), CREATED)
@pytest.mark.parametrize("name", FINE_UPLOADS)
def test_upload_creates_all(client, name, method, status, message):
    content_type, body = FINE_UPLOADS[name]

    answer = send(client, method, "/stock", body, content_type)

    assert_json(answer, status, {"Message": message.format(2)})
    assert client.get("/stock").json == TWO_CARS


@pytest.mark.parametrize(
    ("mark", "cell", "mark_between_semicolons"),
    [
        ("a,b", '"a,b"', "a,b"),
        ("a;b;c;d;e;f;g", "a;b;c;d;e;f;g", '"a;b;c;d;e;f;g"'),
        ('"', '""""', '""""'),
        ("=1", "=1", "=1"),
    ],
)
def test_upload_reads_cells_as_they_were_meant(client, mark, cell, mark_between_semicolons):
    with_commas = lines(row(mark=cell))
    with_semicolons = lines(row(mark="\0")).replace(",", ";").replace("\0", mark_between_semicolons)

    for text in (with_commas, with_semicolons):
        send(client, "PUT", "/stock", text, CSV)
        assert client.get("/stock").json == [{"mark": mark, **CAR}]


@pytest.mark.parametrize(("method", "status", "message"), CREATED)
@pytest.mark.parametrize(
    ("content_type", "body"), [(JSON, "[]"), (JSON, " [ ] "), (CSV, HEADER), (CSV, HEADER + "\n\n")]
)
def test_upload_without_cars(refused, method, status, message, content_type, body):
    answer = send(refused, method, "/stock", body, content_type)

    assert_json(answer, status, {"Message": message.format(0)})


@pytest.mark.parametrize("headers", [{}, {"X_HTTP_Method_Override": "PUT"}])
def test_put_counts_the_new_and_the_known(client, headers):
    put_cars(client, "BMW", "Kia")

    answer = send(client, "POST" if headers else "PUT", "/stock", lines(AUDI, row(distance=1)), CSV, **headers)

    assert_json(answer, 202, {"Message": "1 autos created, 1 updated"})
    assert client.get("/stock").json == [*TWO_CARS, {"mark": "Kia", **CAR, "distance": 1}]


WRONG_CELLS = ["", " ", "1 ", "+1", "-1", "1.0", "1e2", "1_000", '"1,000"', "0x1", "²", "١", "9007199254740992"]
WRONG_CSV = {
    **{
        f"{cell:.9}": (lines(BMW, row(max_speed=cell)), f"line 3: max_speed: {NUMBER}")
        for cell in [*WRONG_CELLS, "1" * 5000]
    },
    "empty text": (lines(BMW, row(handler="")), "line 3: handler: must be text of 1 to 255 characters"),
    "blank text": (lines(row(stock=" "), BMW), "line 2: stock: must not be blank"),
    "long text": (lines(BMW, row(mark="x" * 256)), "line 3: mark"),
    "line feed": (lines(BMW, row(mark='"a\nb"')), "line 3: mark"),
    "after blank lines": (lines("", "", BMW, "", row(distance="far")), "line 6: distance"),
    "the first of two": (lines(row(distance="far"), row(max_speed="fast")), "line 2: distance"),
    "too few cells": (lines(BMW, "Kia,1,2,x"), "line 3"),
    "empty cells": (lines(BMW, ",,,,"), "line 3"),
    "text behind a quote": (lines(BMW, '"Kia"x,1,2,x,y'), "line 3"),
    "open quote": (lines(BMW, '"' + row()), "line 3"),
    "twice": (lines(BMW, AUDI, BMW), "line 4: mark"),
    "twice in two forms": (lines(BMW, row(mark=COMPOSED), row(mark=DECOMPOSED)), "line 4: mark"),
    "missing column": (lines("1,2,x,y", header="max_speed,distance,handler,stock"), "line 1"),
    "sixth column": (lines(row() + ",1", header=HEADER + ",price"), "line 1"),
    "column twice": (lines(row() + ",y", header=HEADER + ",stock"), "line 1"),
    "no header": (lines(AUDI, header=BMW), "line 1"),
    "JSON": (items({}), "line 1"),
    "not UTF-8": (lines(BMW, row(mark="Škoda")).encode("cp1250"), ""),
}
WRONG_JSON = {
    "number as text": (items({}, {"max_speed": "280"}), f"item 2: max_speed: {NUMBER}"),
    "fraction": (items({"distance": 1.0}, {}), f"item 1: distance: {NUMBER}"),
    "boolean": (items({}, {"distance": True}), f"item 2: distance: {NUMBER}"),
    "blank text": (items({}, {"stock": " "}), "item 2: stock: must not be blank"),
    "surrogate": (items({}, {"stock": "\ud800"}), "item 2: stock: must not hold lone surrogates"),
    "no mark": (json.dumps([CAR]), "item 1: mark: is missing"),
    "unknown field": (items({}, {}, {"price": 1}), "item 3: price: unknown field"),
    "number for a car": (items({}, end=", 1]"), "item 2"),
    "no JSON for a car": (items({}, end=", {]"), "item 2"),
    "NaN": (items({"distance": float("nan")}), "item 1"),
    "trailing comma": (items({}, end=",]"), ""),
    "cut": (items({}, end=""), ""),
    "followed by more": (items({}, end="][]"), ""),
    "nested": ("[" * 100000, ""),
    "not UTF-8": (items({}).encode() + b"\xff", ""),
    "twice": (items({}, {}, {"mark": "Kia 0"}), "item 3: mark"),
    "twice in two forms": (items({"mark": DECOMPOSED}, {"mark": COMPOSED}), "item 2: mark"),
}
WRONG_UPLOADS = [
    *[pytest.param("POST", CSV, *wrong, id=f"CSV-{name}") for name, wrong in WRONG_CSV.items()],
    *[pytest.param("POST", JSON, *wrong, id=f"JSON-{name}") for name, wrong in WRONG_JSON.items()],
    *[pytest.param(method, kind, "", "body: is missing") for method in ("POST", "PUT") for kind in (CSV, JSON)],
    *[pytest.param("PUT", CSV, *WRONG_CSV[name], id=f"PUT-{name}") for name in ("after blank lines", "twice")],
    *[pytest.param("PUT", JSON, *WRONG_JSON[name], id=f"PUT-{name}") for name in ("fraction", "twice")],
]


@pytest.mark.parametrize(("method", "content_type", "body", "start"), WRONG_UPLOADS)
def test_wrong_upload_is_400_and_stores_nothing(refused, method, content_type, body, start):
    answer = send(refused, method, "/stock", body, content_type)

    assert_error(answer, 400, answer.json["Error"])
    assert answer.json["Error"].startswith(start)


@pytest.mark.parametrize(
    ("content_type", "body", "place"),
    [(CSV, lines("", AUDI, row(), BMW), "line 5: mark"), (JSON, items({}, {}, {"mark": "BMW"}), "item 3: mark")],
)
def test_post_of_a_known_mark_is_400_and_stores_nothing(bmw, database, content_type, body, place):
    before = database.contents()

    answer = send(bmw, "POST", "/stock", body, content_type)

    assert_refused(answer, place)
    assert database.contents() == before


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "text/csvx", "application/csv", "text/json", "multipart/form-data"]
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_upload_of_another_type_is_415(refused, method, content_type):
    answer = send(refused, method, "/stock", lines(BMW), content_type)

    assert_error(answer, 415, answer.json["Error"])


def test_sample_file_is_refused_for_its_second_kia(refused):
    _, second = (number for number, line in enumerate(LINES, 2) if line["mark"] == "Kia e-Soul 64 kWh")

    answer = send(refused, "POST", "/stock", (HERE / "samples" / "cars.csv").read_bytes(), CSV)

    assert_refused(answer, f"line {second}: mark")


@pytest.mark.parametrize(("content_type", "write"), [(CSV, as_csv), (JSON, lambda cars: json.dumps([*cars]))])
def test_samples_go_in_without_the_second_kia(client, content_type, write):
    answer = send(client, "POST", "/stock", write(SAMPLES.values()), content_type)

    assert_json(answer, 201, {"Message": "102 autos created"})
    assert client.get("/stock").json == in_order(SAMPLES.values())


@pytest.mark.parametrize(("query", "content_type"), [("", JSON), ("?format=csv&order_by=-stock", CSV)])
def test_export_can_be_imported_without_difference(client, database, query, content_type):
    put_cars(client, *SAMPLES.values(), *ODD_CARS)
    before, export = client.get("/stock").json, client.get("/stock" + query).body

    updated = send(client, "PUT", "/stock", export, content_type)
    database.execute("DELETE FROM autos")
    created = send(client, "POST", "/stock", export, content_type)

    assert_json(updated, 202, {"Message": f"0 autos created, {len(before)} updated"})
    assert_json(created, 201, {"Message": f"{len(before)} autos created"})
    assert client.get("/stock").json == before


def test_upload_of_64_mebibytes_is_fine(refused):
    answer = send(refused, "POST", "/stock", b"[" + b" " * (64 * MIB - 2) + b"]")

    assert_json(answer, 201, {"Message": "0 autos created"})


def test_long_upload_is_refused_by_its_head(server):
    head = "POST /stock HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
    head += "Authorization: Bearer {}\r\nContent-Length: {}\r\n\r\n"

    too_long = server.send_bytes(head.format(server.token, 64 * MIB + 1).encode())
    bad_token = server.send_bytes(head.format("x.y.z", 64 * MIB).encode())

    assert_error(too_long, 413, too_long.json["Error"])
    assert_error(bad_token, 401, "Token is invalid or expired")


def test_one_of_many_simultaneous_uploads_succeeds(server):
    answers = server.at_once(*[("POST", "/stock", TWO_CARS[::order]) for order in (1, -1) * 3])

    assert sorted(answer.status_int for answer in answers) == [201] + [400] * 5
    assert len(server.request("GET", "/history").json) == 2


# ----------------------------------------------------------------------------------------------------------------------
# Part 2: Changing one car safely
# ----------------------------------------------------------------------------------------------------------------------

CHANGED = "Auto was changed by someone else"
SOME = [*[{name: value} for name, value in OTHER_CAR.items()], {"mark": "BMW", "max_speed": 0, "stock": "Sweden"}]


@pytest.mark.parametrize("changes", SOME, ids=",".join)
@pytest.mark.parametrize("headers", [{}, {"X_HTTP_Method_Override": "PATCH"}])
def test_patch_changes_what_it_names(bmw, changes, headers):
    answer = send(bmw, "POST" if headers else "PATCH", "/auto/BMW", json.dumps(changes), **headers)

    assert_json(answer, 202, {"Message": "Auto updated"})
    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **CAR, **changes}


def test_patch_unknown_mark_is_404(refused):
    assert_error(refused.patch_json("/auto/BMW", {"stock": "Sweden"}, status=404), 404, NOT_FOUND)


@pytest.mark.parametrize(
    ("changes", "name"),
    table(
        ["{}", "body"],
        ['{"mark": "BMW"}', "body"],
        ['{"mark": "Audi", "distance": 1}', "mark"],
        ['{"price": 1, "distance": 1}', "price"],
        ['{"max_speed": null}', "max_speed"],
        ['{"distance": -1, "stock": "x"}', "distance"],
        ['{"stock": null, "distance": 1}', "stock"],
        ['{"handler": " ", "mark": "BMW"}', "handler"],
    ),
)
def test_wrong_patch_is_400(bmw, changes, name):
    answer = send(bmw, "PATCH", "/auto/BMW", changes)

    assert_refused(answer, name)
    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **CAR}


# Entity tags


def etag_of(client, path="/auto/BMW"):
    """Give the entity tag of a car."""
    return client.get(path, status=200).headers["ETag"]


def test_etag_is_strong_and_stays_while_the_car_does(bmw):
    before = etag_of(bmw)

    bmw.post_json("/auto/Audi", CAR, status=201)
    bmw.post_json("/auto/BMW", OTHER_CAR, status=400)

    assert re.fullmatch(r'"[\x21\x23-\x7e]+"', before)
    assert etag_of(bmw) == before != etag_of(bmw, "/auto/Audi")


@pytest.mark.parametrize(
    "steps",
    table(
        [["PUT /auto/BMW", OTHER_CAR, "PUT /auto/BMW", CAR]],
        [["PATCH /auto/BMW", {"distance": 1}, "PATCH /auto/BMW", {"distance": 400}]],
        [["PUT /stock", [{"mark": "BMW", **OTHER_CAR}], "PUT /stock", [{"mark": "BMW", **CAR}]]],
        [["DELETE /auto/BMW", None, "POST /auto/BMW", CAR]],
        [["DELETE /auto/BMW", None, "POST /stock", [{"mark": "BMW", **CAR}]]],
    ),
)
def test_car_that_was_changed_is_another_one(bmw, steps):
    before = etag_of(bmw)
    for request, body in zip(steps[::2], steps[1::2], strict=True):
        send(bmw, *request.split(), json.dumps(body))

    answer = bmw.delete("/auto/BMW", headers={"If-Match": before}, status=412)

    assert_error(answer, 412, CHANGED)
    assert bmw.get("/auto/BMW", headers={"If-None-Match": before}, status=200).headers["ETag"] != before


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("header", ["{}", "*", "W/{}", '"x",W/"y" , {}', '"a, b",W/{}, "x"'])
def test_if_none_match_of_the_car_is_304(bmw, method, header):
    etag = etag_of(bmw)

    answer = send(bmw, method, "/auto/BMW", If_None_Match=header.format(etag))

    assert (answer.status_int, answer.body) == (304, b"")
    assert_headers(answer, ETag=etag, Cache_Control="private, no-cache", X_Content_Type_Options="nosniff")


@pytest.mark.parametrize("header", ['"x"', 'W/"x"', '"x", "y"', '"*"'])
def test_if_none_match_of_another_car_is_200(bmw, header):
    assert_json(bmw.get("/auto/BMW", headers={"If-None-Match": header}, status=200), 200, {"mark": "BMW", **CAR})


def change_if(client, method, header):
    """Change or delete a car under a condition; POST says in a header that it is a PUT."""
    override = {"X_HTTP_Method_Override": "PUT"} if method == "POST" else {}
    return send(client, method, "/auto/BMW", json.dumps(OTHER_CAR), If_Match=header, **override)


def ways(*headers):
    """Give each method with the first of some headers, and one method with all of them."""
    return [*[(method, headers[0]) for method in ("PATCH", "DELETE", "POST")], *[("PUT", header) for header in headers]]


@pytest.mark.parametrize(("method", "header"), ways("{}", "*", " * ", '"x", {}', '{} , "x"', 'W/"x",{}', '"a, b", {}'))
def test_if_match_of_the_car_changes_it(bmw, method, header):
    answer = change_if(bmw, method, header.format(etag_of(bmw)))

    assert_json(answer, 202, {"Message": "Auto deleted" if method == "DELETE" else "Auto updated"})


@pytest.mark.parametrize(("method", "header"), ways('"x"', "W/{}", '"x", W/{}', '""', '"*"', '"x", "y"'))
def test_if_match_of_another_car_is_412_and_changes_nothing(bmw, database, method, header):
    etag, before = etag_of(bmw), database.contents()

    answer = change_if(bmw, method, header.format(etag))

    assert_error(answer, 412, CHANGED)
    assert database.contents() == before


@pytest.mark.parametrize(("method", "header"), ways("*", '"x"', 'W/"x"'))
def test_if_match_of_unknown_mark_is_404(refused, method, header):
    assert_error(change_if(refused, method, header), 404, NOT_FOUND)


def test_sixteen_threads_with_if_match_lose_no_change(server):
    server.request("POST", "/auto/BMW", {**CAR, "distance": 0})
    together = threading.Barrier(16)

    def add_one(_):
        for attempt in range(100):
            read = server.request("GET", "/auto/BMW")
            if attempt == 0:
                together.wait()
            body = {**read.json, "distance": read.json["distance"] + 1}
            answer = server.request("PUT", "/auto/BMW", body, **{"If-Match": read.headers["ETag"]})
            if answer.status_int != 412:
                return answer.status_int, attempt > 0

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(add_one, range(16)))

    assert sorted(results) == [(202, False)] + [(202, True)] * 15
    assert server.request("GET", "/auto/BMW").json["distance"] == 16


# ----------------------------------------------------------------------------------------------------------------------
# Part 2: Who did what
# ----------------------------------------------------------------------------------------------------------------------


def deeds(client, path="/history"):
    """Give what the entries of a history tell, but for their ids and times."""
    return [[entry[name] for name in ("by", "action", "mark", "auto")] for entry in client.get(path, status=200).json]


@pytest.mark.parametrize("path", ["/history", "/history/BMW"])
def test_history_tells_who_did_what(client, database, account, path):
    database.insert("users", {**account.row, "username": "bob"})
    bob = TestApp(client.app)
    bob.authorization = ("Bearer", changed(account, sub="bob"))

    client.post_json("/auto/BMW", CAR, status=201)
    bob.put_json("/auto/BMW", OTHER_CAR, status=202)
    client.patch_json("/auto/BMW", {"distance": 1}, status=202)
    send(bob, "POST", "/auto/BMW", X_HTTP_Method_Override="DELETE")
    client.post_json("/auto/BMW", CAR, status=201)

    assert deeds(client, path) == [
        [USERNAME, "created", "BMW", CAR],
        ["bob", "deleted", "BMW", None],
        [USERNAME, "updated", "BMW", {**OTHER_CAR, "distance": 1}],
        ["bob", "updated", "BMW", OTHER_CAR],
        [USERNAME, "created", "BMW", CAR],
    ]


def test_entry_has_an_id_and_a_time_in_utc(bmw):
    answer = bmw.get("/history", status=200)

    (entry,) = answer.json
    assert_json(answer, 200, [{**entry, "by": USERNAME, "action": "created", "mark": "BMW", "auto": CAR}])
    assert list(entry) == ["id", "at", "by", "action", "mark", "auto"]
    assert type(entry["id"]) is int
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", entry["at"])
    assert abs((datetime.fromisoformat(entry["at"]) - datetime.now(UTC)).total_seconds()) < 60
    assert_headers(answer, Cache_Control="private, no-cache", Link=None)


@pytest.mark.parametrize(("method", "action"), [("POST", "created"), ("PUT", "updated")])
@pytest.mark.parametrize(("content_type", "write"), [(CSV, as_csv), (JSON, json.dumps)])
def test_upload_is_recorded_car_by_car(client, method, action, content_type, write):
    if method == "PUT":
        put_cars(client, "Audi")

    send(client, method, "/stock", write(TWO_CARS), content_type)

    assert deeds(client, "/history/Audi")[0] == [USERNAME, action, "Audi", OTHER_CAR]
    assert deeds(client, "/history/BMW") == [[USERNAME, "created", "BMW", CAR]]


@pytest.mark.parametrize("mark", ["VW Golf 1.9 TDI/4Motion", "Lada Нива (2121)", "%2F", "/", DECOMPOSED])
def test_history_of_a_mark_holds_no_other(client, mark):
    put_cars(client, mark, "BMW")

    found = deeds(client, "/history/" + quote(mark, safe=""))

    assert found == [[USERNAME, "created", unicodedata.normalize("NFC", mark), CAR]]


def test_history_of_unknown_mark_is_404_and_of_all_is_empty(refused):
    assert_json(refused.get("/history", status=200), 200, [])
    assert_error(refused.get("/history/BMW", status=404), 404, NOT_FOUND)


@pytest.mark.parametrize(
    ("method", "path", "body", "if_match", "status"),
    [
        ("POST", "/auto/BMW", OTHER_CAR, "*", 400),
        ("POST", "/auto/Audi", {**CAR, "distance": -1}, "*", 400),
        ("PUT", "/auto/Audi", CAR, "*", 404),
        ("PATCH", "/auto/BMW", {"distance": 1}, '"x"', 412),
        ("DELETE", "/auto/Audi", None, "*", 404),
        ("PUT", "/stock", [TWO_CARS[0], {"mark": "Kia"}], "*", 400),
    ],
)
def test_refused_change_leaves_no_entry(bmw, method, path, body, if_match, status):
    answer = send(bmw, method, path, json.dumps(body), If_Match=if_match)

    assert answer.status_int == status
    assert deeds(bmw) == [[USERNAME, "created", "BMW", CAR]]


WRONG_PAGING = f"""
    limit= limit=x limit=-1 limit=0 limit=1001 limit=1.0 limit=%2B1 limit=%D9%A1 limit=1&limit=1 after= after=x after=-1
    after=1.0 after=%C2%B2 after=9007199254740992 after={"9" * 5000} after=1&after=2 order_by=id mark=BMW format=csv
    nothing=1""".split()


def test_next_page_of_a_mark_with_dots_is_of_that_mark(client):
    client.post_json("/auto/x%2F..%2Fy", CAR, status=201)
    client.put_json("/auto/x%2F..%2Fy", CAR, status=202)

    answer = client.get("/history/x%2F..%2Fy?limit=1")

    assert answer.headers["Link"].startswith("</history/x%2F..%2Fy?")


@pytest.mark.parametrize("query", table(*[[query] for query in WRONG_PAGING]))
@pytest.mark.parametrize("path", ["/history", "/history/BMW"])
def test_bad_parameter_of_the_history_is_400(refused, path, query):
    answer = refused.get(f"{path}?{query}", status=400)

    assert_refused(answer, query.partition("=")[0])


def test_history_gives_a_hundred_unless_told(lister):
    assert [len(page.json) for page in pages_from(lister, "/history")] == [100, 2]


@pytest.fixture
def busy(client):
    """A client with a token, and ten entries for one car between those of another."""
    for number in range(10):
        put_cars(client, "Audi", {"mark": "BMW", **CAR, "distance": number})
    return client


@pytest.mark.parametrize(("path", "count"), [("/history", 20), ("/history/BMW", 10)])
@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_pages_of_the_history(busy, path, count, limit):
    whole = busy.get(path).json

    pages = [page.json for page in pages_from(busy, f"{path}?limit={limit}")]

    assert [entry["id"] for entry in whole] == sorted({entry["id"] for entry in whole}, reverse=True)
    assert len(whole) == count
    assert pages == [whole[start : start + limit] for start in range(0, count, limit)]


@pytest.mark.parametrize("path", ["/history", "/history/BMW"])
@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_feed_gives_what_came_since_oldest_first(busy, path, limit):
    first, *since = busy.get(path).json[::-1]

    pages = [page.json for page in pages_from(busy, f"{path}?after={first['id']}&limit={limit}")]

    assert pages == [since[start : start + limit] for start in range(0, len(since), limit)]
    assert_json(busy.get(f"{path}?after={since[-1]['id']}"), 200, [])


def test_entries_that_come_on_the_way_move_no_other(busy):
    before, seen = busy.get("/history").json, []

    for page in pages_from(busy, "/history?limit=6"):
        seen += page.json
        put_cars(busy, "Kia")

    assert seen == before


def test_feed_under_eight_writers_misses_nothing(server, store, tmp_path):
    with running_server(store.url, tmp_path) as second, ThreadPoolExecutor(8) as pool:

        def write(writer):
            chosen = (server, second._replace(token=server.token))[writer % 2]
            for number in range(8):
                marks = [f"{writer}-{number}-{place}" for place in range(4)]
                chosen.request("PUT", "/stock", [{"mark": mark, **CAR} for mark in marks])
                chosen.request("DELETE", at(marks[0]))

        writers, seen, ended = [pool.submit(write, writer) for writer in range(8)], [], False
        while not ended:
            ended = all(writer.done() for writer in writers)
            seen += server.request("GET", f"/history?after={seen[-1]['id'] if seen else 0}&limit=1000").json
        stored = server.request("GET", "/history?limit=1000").json

    assert len(stored) == 8 * 8 * 5
    assert seen == stored[::-1]


# ----------------------------------------------------------------------------------------------------------------------
# Part 2: Describing itself
# ----------------------------------------------------------------------------------------------------------------------

BODY = {400, 413, 415}
STATUSES = {
    "POST /register": {201, 403, *BODY},
    "POST /auth": {200, 401, 429, *BODY},
    "PUT /account/password": {202, 401, 403, 429, *BODY},
    "POST /logout": {202, 401},
    "DELETE /account": {202, 401, 403, 429, *BODY},
    "GET /auto/{mark}": {200, 304, 400, 401, 404},
    "POST /auto/{mark}": {201, 401, *BODY},
    "PUT /auto/{mark}": {202, 401, 404, 412, *BODY},
    "PATCH /auto/{mark}": {202, 401, 404, 412, *BODY},
    "DELETE /auto/{mark}": {202, 400, 401, 404, 412},
    "GET /stock": {200, 400, 401},
    "POST /stock": {201, 401, *BODY},
    "PUT /stock": {202, 401, *BODY},
    "GET /history": {200, 400, 401},
    "GET /history/{mark}": {200, 400, 401, 404},
    "GET /health": {200},
}
UNDOCUMENTED = re.compile(r"GET /(openapi\.json|docs(/.*)?)?")


@pytest.fixture
def document(lasting_app):
    """The description of the API."""
    return TestApp(lasting_app).get("/openapi.json", status=200).json


@pytest.fixture
def operations(document):
    """The operations that are described, by method and path."""
    paths = document["paths"].items()
    return {f"{method.upper()} {path}": each for path, methods in paths for method, each in methods.items()}


def schema_in(document, content):
    """Give the schema of JSON that an operation takes or gives: that of an item, where it is an array."""
    schema = content["application/json"]["schema"]
    schema = schema.get("items", schema)
    return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def test_openapi_describes_every_route(lasting_app, document, operations):
    routes = {f"{route.method} " + re.sub(r"<(\w+).*>", r"{\1}", route.rule) for route in lasting_app.routes}

    assert document["openapi"].startswith("3.1.")
    assert operations.keys() == {route for route in routes if not UNDOCUMENTED.fullmatch(route)}


def test_openapi_has_the_statuses_and_the_protection_of_the_contract(operations):
    declared = {name: {int(status) for status in each["responses"]} for name, each in operations.items()}

    public = {name for name, each in operations.items() if not each.get("security") and each["summary"]}
    assert declared == {name: {*statuses, 500, 503} for name, statuses in STATUSES.items()}
    assert public == {"POST /register", "POST /auth", "GET /health"}


def test_openapi_refers_only_to_what_is_there(document):
    references = set(re.findall(r'"\$ref": "(.*?)"', json.dumps(document)))

    assert "#/components/schemas/Car" in references
    assert references <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


@pytest.mark.parametrize("name", CAR)
def test_openapi_has_the_limits_of_a_car(bmw, document, name):
    schema = document["components"]["schemas"]["Car"]["properties"][name]
    number = schema["type"] == "integer"
    low, high = (schema["minimum"], schema["maximum"]) if number else (schema["minLength"], schema["maxLength"])

    values = [value if number else "x" * value for value in (low, high, low - 1, high + 1)]
    statuses = [bmw.patch_json("/auto/BMW", {name: value}, status="*").status_int for value in values]

    assert statuses == [202, 202, 400, 400]


@pytest.mark.parametrize("name", ["username", "password"])
def test_openapi_has_the_limits_of_credentials(client, document, name):
    schema = document["components"]["schemas"]["Credentials"]["properties"][name]
    values = ["y" * length for length in (schema["minLength"], schema["maxLength"], 0, schema["maxLength"] + 1)]

    bodies = [{"username": f"bob {number}", "password": "x", name: value} for number, value in enumerate(values)]
    statuses = [client.post_json("/register", body, status="*").status_int for body in bodies]

    assert statuses == [201, 201, 400, 400]


@pytest.mark.parametrize(
    "text", [" ", "a\n", "\0", "a\u200bb", "a\u200cb", "\u200c", "\U000e0001", "\ufeff", "😀", "a\u2028b"], ids=ascii
)
def test_openapi_has_the_characters_of_a_text(bmw, document, text):
    pattern = document["components"]["schemas"]["Car"]["properties"]["stock"]["pattern"]

    answer = bmw.patch_json("/auto/BMW", {"stock": text}, status="*")

    assert (answer.status_int == 202) == bool(re.search(pattern.replace("$", r"\Z"), text))


@pytest.mark.parametrize(
    ("operation", "required"),
    [
        ("POST /auto/{mark}", {*CAR}),
        ("PUT /auto/{mark}", {*CAR}),
        ("PATCH /auto/{mark}", set()),
        ("PUT /stock", {"mark", *CAR}),
    ],
)
def test_openapi_has_the_fields_of_bodies(document, operations, operation, required):
    schema = schema_in(document, operations[operation]["requestBody"]["content"])

    assert set(schema.get("required", ())) == required
    assert schema["properties"].keys() | {"mark"} == {"mark", *CAR}
    assert schema["additionalProperties"] is False


def test_openapi_says_that_a_patch_needs_a_field(document, operations):
    schema = schema_in(document, operations["PATCH /auto/{mark}"]["requestBody"]["content"])

    assert schema.get("minProperties", 0) >= 1 or "anyOf" in schema


@pytest.mark.parametrize("path", ["/auto/BMW", "/stock", "/history", "/history/BMW", "/health"])
def test_openapi_has_the_fields_of_answers(bmw, document, operations, path):
    answer = bmw.get(path, status=200).json

    schema = schema_in(document, operations["GET " + path.replace("BMW", "{mark}")]["responses"]["200"]["content"])
    given = answer[0] if isinstance(answer, list) else answer
    assert list(given) == list(schema["properties"]) == schema["required"]


@pytest.mark.parametrize(
    ("path", "names"),
    [("/stock", {"order_by", "format", *map("".join, FILTERS)}), ("/history", set()), ("/history/{mark}", set())],
)
def test_openapi_has_the_parameters_that_are_taken(operations, path, names):
    parameters = {
        each["name"]: each["schema"] for each in operations["GET " + path]["parameters"] if each["in"] == "query"
    }

    assert parameters.keys() - {"before"} == names | {"limit", "after"}
    assert parameters["limit"].items() >= {"minimum": 1, "maximum": 1000}.items()


# The page


def test_root_leads_to_the_page(testapp):
    answer = testapp.get("/").follow(status=200)

    assert answer.request.path == "/docs"


def test_page_needs_no_internet(testapp):
    answer = testapp.get("/docs", status=200)

    assert (answer.content_type, answer.charset) == ("text/html", "utf-8")
    assert "//" not in answer.text
    policy = dict(part.split(None, 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] in ("'none'", "'self'")
    assert set(" ".join(policy.values()).split()) <= {"'self'", "'none'", "'unsafe-inline'", "data:"}


def test_page_finds_all_its_parts(testapp):
    parts = re.findall(r'(?:src|href)="([^"]+)"', testapp.get("/docs").text)

    answers = [testapp.get(urljoin("/docs", part), status=200) for part in parts]

    assert {answer.content_type for answer in answers} >= {"text/javascript", "text/css"}
    assert any(re.search(r'url: "/?openapi\.json"', answer.text) for answer in answers if b"\0" not in answer.body)


@pytest.mark.parametrize(
    "path", ["dealer.py", "../dealer.py", "%2E%2E/dealer.py", "..%2Fdealer.py", "swagger-ui.css/x"]
)
def test_page_gives_no_other_file(refused, path):
    assert_error(refused.get("/docs/" + path, status=404), 404, "Not found")


def test_health(testapp):
    assert_json(testapp.get("/health", status=200), 200, {"status": "ok"})


# ----------------------------------------------------------------------------------------------------------------------
# Part 3: Settings
# ----------------------------------------------------------------------------------------------------------------------

NOT_OURS = "203.0.113.7"  # an address for documentation: whoever is not stopped before cannot listen there
TYPED = "geheim"  # what must not show
PROGRAM = [sys.executable, str(HERE / "dealer.py")]
SETTINGS = [option.name.upper() for option in fields(dealer.Settings)]


@contextmanager
def started(folder, *options, **settings):
    """Give a server with settings of its own, the first line that it writes, and the file that it logs to."""
    port, log = free_port(), folder / "standard-error.log"
    command = [*PROGRAM, "--port", str(port), *options]
    with (
        open(log, "wb") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment(**settings)) as child,
    ):
        try:
            line = child.stdout.readline()
            assert line, log.read_text()
            yield Server(child, port), line, log
        finally:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(15)
            child.kill()


def run(*arguments, text="", **settings):
    """Run the program to its end, which must come within ten seconds."""
    env = environment(**settings)
    return subprocess.run([*PROGRAM, *arguments], input=text, env=env, capture_output=True, text=True, timeout=10)


def assert_refusal(child, code, word):
    """Compare what is left of a program that could not do its work: one line on standard error, without a password."""
    assert (child.returncode, child.stdout) == (code, "")
    assert re.fullmatch(rf"[^\n]*\b{word}\b[^\n]*\n", child.stderr), child.stderr
    assert TYPED not in child.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("JWT_SECRET", value) for value in ("short", "x" * 31, "é" * 15)],
        *[("PORT", value) for value in ("abc", "70000", "-1", "٨٠٨٠", "8e3")],
        *[("THREADS", value) for value in ("0", "four")],
        *[("JWT_TTL", value) for value in ("0", "-1", "1.5", "9" * 30)],
        *[("LOG_LEVEL", "x"), ("REGISTRATION", "x"), ("PASSWORD_MIN", "0"), ("PASSWORD_MIN", "1025")],
        *[("TRUSTED_PROXY", value) for value in ("proxy", "10.0.0.0/8", "192.0.2.1,192.0.2.2")],
        *[("CORS_ORIGINS", value) for value in ("shop.example", "https://shop.example/", "https://a.example,,")],
        *[("DATABASE_URL", "garbage"), ("DATABASE_URL", "sqlite://"), ("HOST", NOT_OURS)],
        ("DATABASE_URL", f"mysql://dealer:{TYPED}@localhost/dealer"),
        ("DATABASE_URL", f"postgresql://dealer:{TYPED}@localhost:port/dealer"),
        ("DATABASE_URL", f"postgresql://dealer:{TYPED}@[localhost/dealer"),
    ],
)
@pytest.mark.parametrize("source", ["environment", "option"])
def test_setting_that_cannot_work_ends_the_start(tmp_path, monkeypatch, capfd, source, name, value):
    given = {"HOST": NOT_OURS, "DATABASE_URL": sqlite_store(tmp_path).url, "JWT_SECRET": SECRET, name: value}
    options = [f"--{name.lower().replace('_', '-')}={given.pop(name)}"] if source == "option" else []
    for setting in SETTINGS:
        monkeypatch.delenv(setting, raising=False)
    for setting, text in given.items():
        monkeypatch.setenv(setting, text)

    code = dealer.main(options)

    ended = subprocess.CompletedProcess(options, code, *capfd.readouterr())
    assert_refusal(ended, 2, name)
    assert (NOT_OURS in ended.stderr) == (name == "HOST")


def message(kind, data):
    """Give a message as PostgreSQL sends it."""
    return kind + (len(data) + 4).to_bytes(4, "big") + data


LETS_NOBODY_IN = [
    message(b"R", b"\0\0\0\3"),  # asks for the password
    message(b"E", b'SFATAL\0C28P01\0Mpassword authentication failed for user "dealer"\0\0'),
]


@contextmanager
def listening(*replies):
    """Give the port of a server that answers what comes with these, one after the other, and then with silence."""

    def answer():
        with suppress(OSError):
            while True:
                connections.enter_context(connection := listener.accept()[0])
                for reply in replies:
                    connection.recv(4096)
                    connection.sendall(reply)

    with ExitStack() as connections, socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("url", "replies", "settings", "name"),
    [
        pytest.param("postgresql", (), {"JWT_SECRET": SECRET}, "DATABASE_URL", id="silent"),
        pytest.param("postgresql", LETS_NOBODY_IN, {"JWT_SECRET": SECRET}, "DATABASE_URL", id="wrong password"),
        pytest.param("postgresql", (), {}, "JWT_SECRET", id="no secret"),
        pytest.param("sqlite:///{folder}/nowhere/x.db", (), {"JWT_SECRET": SECRET}, "DATABASE_URL", id="no folder"),
        pytest.param("sqlite:///{folder}/nowhere/x.db", (), {}, "DATABASE_URL", id="no folder, no secret"),
        pytest.param("sqlite:///{folder}/text", (), {"JWT_SECRET": SECRET}, "DATABASE_URL", id="no database"),
        pytest.param("sqlite:///{folder}/x.db", (), {}, "PORT", id="taken port"),
    ],
)
def test_start_that_cannot_work_ends(tmp_path, url, replies, settings, name):
    (tmp_path / "text").write_text("hello " * 1000)
    with listening(*replies) as port:
        if url == "postgresql":
            url = f"postgresql://dealer:{TYPED}@127.0.0.1:{port}/dealer?sslmode=disable"
        child = run(DATABASE_URL=url.format(folder=tmp_path), PORT=str(port), **settings)

    assert_refusal(child, 2, name)


def test_postgresql_out_of_reach_ends_the_start():
    port = free_port()
    child = run(DATABASE_URL=f"postgresql://dealer:{TYPED}@127.0.0.1:{port}/dealer", JWT_SECRET=SECRET, PORT="0")

    assert_refusal(child, 2, "DATABASE_URL")


def test_help_lists_all_settings():
    child = run("--help", PORT="abc")

    assert (child.returncode, child.stderr) == (0, "")
    for name in SETTINGS:
        assert name in child.stdout
        assert f"--{name.lower().replace('_', '-')} " in child.stdout


def test_importing_reads_no_setting():
    settings = environment(**dict.fromkeys(SETTINGS, "nonsense"))

    child = subprocess.run([sys.executable, "-c", "import dealer"], cwd=HERE, env=settings, capture_output=True)

    assert (child.returncode, child.stdout, child.stderr) == (0, b"", b"")


def test_environment_sets_and_options_override(tmp_path):
    given = {"HOST": NOT_OURS, "PORT": "1", "DATABASE_URL": sqlite_store(tmp_path).url, "JWT_SECRET": SECRET}
    given |= {"JWT_TTL": "77", "THREADS": "2", "TRUSTED_PROXY": "127.0.0.1", "REGISTRATION": "closed"}
    given |= {"CORS_ORIGINS": "https://shop.example, http://localhost:3000", "LOG_LEVEL": "WARNING"}
    assert run("adduser", USERNAME, text=PASSWORD, **given).returncode == 0

    with started(tmp_path, "--host", "127.0.0.1", **given) as (server, _, log):
        right = server.request("POST", "/auth", CREDENTIALS, Origin="http://localhost:3000")
        closed = server.request("POST", "/register", CREDENTIALS)
        server.request("POST", "/auth", {**CREDENTIALS, "password": "wrong"}, **{"X-Forwarded-For": "192.0.2.99"})

        assert (right.json["expires_in"], closed.status_int) == (77, 403)
        assert_headers(right, Access_Control_Allow_Origin="http://localhost:3000")
        (line,) = log.read_text().splitlines()
        assert re.search(r"WARNING .*192\.0\.2\.99", line)


@pytest.mark.parametrize("place", ["user", "query"])
def test_start_message_tells_address_and_database(database, tmp_path, place):
    url = sqlalchemy.make_url(database.url)
    password = url.password or TYPED
    if database.name == "postgresql":
        url = url.set(password=password) if place == "user" else url.update_query_dict({"password": password})

    with started(tmp_path, DATABASE_URL=url.render_as_string(False), JWT_SECRET=SECRET) as (server, line, log):
        assert f"http://127.0.0.1:{server.port}" in line
        assert url.database in line
        assert password not in line + log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_with_0(tmp_path, number):
    with started(tmp_path, DATABASE_URL=sqlite_store(tmp_path).url) as (server, _, log):
        with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
            connection.request("GET", "/health")
            connection.getresponse().read()  # the connection stays open
            server.process.send_signal(number)

            assert server.process.wait(10) == 0
        assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("username", [USERNAME, "bob"])
def test_closed_registration_is_403(make_app, database, account, username):
    testapp = TestApp(make_app(registration="closed"))
    database.insert("users", account.row)

    answer = testapp.post_json("/register", {"username": username, "password": "x"}, status=403)

    assert_error(answer, 403, "Registration is closed")
    assert database.query("SELECT * FROM users") == [account.row]


@pytest.mark.parametrize(("password", "fine"), [("p" * 7, False), ("e\u0301" * 7, False), ("p" * 8, True)])
def test_shortest_new_password(make_app, database, account, password, fine):
    testapp = TestApp(make_app(password_min=8))
    database.insert("users", account.row)
    testapp.authorization = ("Bearer", testapp.post_json("/auth", CREDENTIALS).json["access_token"])

    new = testapp.post_json("/register", {"username": "bob", "password": password}, status="*")
    other = testapp.put_json("/account/password", {"password": PASSWORD, "new_password": password}, status="*")

    assert (new.status_int, other.status_int) == ((201, 202) if fine else (400, 400))
    assert fine or other.json == {"Error": "new_password: must be at least 8 characters"}


SHOP = "https://shop.example"
EXPOSED = {"ETag", "Link", "Location", "Retry-After", "X-Request-ID", "X-Total-Count"}
PREFLIGHT = {"Access-Control-Request-Method": "PUT"}


def list_of(answer, name):
    """Give the members of a header that is a list."""
    return {part.strip() for line in answer.headers.getall(name) for part in line.split(",")}


def test_preflight_of_an_allowed_origin(make_app):
    testapp = TestApp(make_app(cors_origins=("https://a.example", SHOP)))

    answer = testapp.options("/auto/BMW", headers={"Origin": SHOP, **PREFLIGHT}, status=204)

    assert_headers(answer, Access_Control_Allow_Origin=SHOP, Access_Control_Allow_Credentials=None)
    assert list_of(answer, "Access-Control-Allow-Methods") >= {"GET", "POST", "PUT", "PATCH", "DELETE"}
    assert list_of(answer, "Access-Control-Allow-Headers") >= {"Authorization", "Content-Type", "If-Match"}


def test_allowed_origin_may_read_answers_and_errors(make_app):
    testapp = TestApp(make_app(cors_origins=(SHOP,)))

    for path, status in {"/health": 200, "/stock": 401, "/nothing": 404, "/auth": 405}.items():
        answer = testapp.get(path, headers={"Origin": SHOP}, status=status)
        assert_headers(answer, Access_Control_Allow_Origin=SHOP)
        assert list_of(answer, "Access-Control-Expose-Headers") == EXPOSED
        assert "Origin" in list_of(answer, "Vary")


OTHERS = ["https://evil.example", "http://shop.example", SHOP + ".evil.example", SHOP + ":8443", "null"]


@pytest.mark.parametrize(("allowed", "origins"), [((SHOP,), OTHERS), ((), [SHOP])])
def test_other_origin_may_read_nothing(make_app, allowed, origins):
    testapp = TestApp(make_app(cors_origins=allowed))

    for origin in origins:
        for method, asked in ("OPTIONS", PREFLIGHT), ("GET", {}):
            answer = testapp.request("/health", method=method, headers={"Origin": origin, **asked}, status="*")
            assert not [name for name in answer.headers if name.startswith("Access-Control-")]
            assert not allowed or "Origin" in list_of(answer, "Vary")


PROXY = "192.0.2.1"


@pytest.mark.parametrize(
    ("trusted", "remote", "forwarded", "address"),
    [
        *[(trusted, PROXY, "198.51.100.1, 203.0.113.9", "203.0.113.9") for trusted in (PROXY, "*")],
        (PROXY, PROXY, "2001:db8::1", "2001:db8::1"),
        *[(PROXY, PROXY, forwarded, PROXY) for forwarded in ("203.0.113.9, unknown", "203.0.113.9 evil", "")],
        *[(trusted, "192.0.2.2", "203.0.113.9", "192.0.2.2") for trusted in (None, PROXY)],
    ],
)
def test_only_the_proxy_names_another_client(make_app, caplog, trusted, remote, forwarded, address):
    caplog.set_level(logging.INFO, "dealer.access")
    testapp = TestApp(make_app(trusted_proxy=trusted))

    testapp.get("/health", headers={"X-Forwarded-For": forwarded}, extra_environ={"REMOTE_ADDR": remote})

    assert caplog.messages[-1].split()[0] == address


def test_secret_that_is_made(tmp_path):
    """Of eight that start at once each makes, or finds, the same one; later starts too; nobody else can read it."""
    settings = dealer.Settings(database_url=sqlite_store(tmp_path).url)
    barrier = threading.Barrier(8)

    def start(_):
        barrier.wait()
        return stack.enter_context(closing(dealer.create_app(settings)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that they come between each other's steps
    with ExitStack() as stack:
        stack.callback(sys.setswitchinterval, interval)
        with ThreadPoolExecutor(8) as pool:
            apps = list(pool.map(start, range(8)))
        apps.append(stack.enter_context(closing(dealer.create_app(settings))))
        TestApp(apps[0]).post_json("/register", CREDENTIALS)
        token = TestApp(apps[0]).post_json("/auth", CREDENTIALS).json["access_token"]

        for app in apps:
            TestApp(app).get("/stock", headers={"Authorization": f"Bearer {token}"}, status=400)
    (path,) = [path for path in tmp_path.iterdir() if not re.search(r"\.db(-\w+)?$", path.name)]
    assert path.stat().st_mode & 0o777 == 0o600


# ----------------------------------------------------------------------------------------------------------------------
# Part 3: Accounts that end
# ----------------------------------------------------------------------------------------------------------------------

CHANGE = {"password": PASSWORD, "new_password": "sesame"}
CONFIRMED = [("PUT", "/account/password", CHANGE), ("DELETE", "/account", {"password": PASSWORD})]
confirmed = pytest.mark.parametrize(("method", "path", "body"), CONFIRMED)
ending = pytest.mark.parametrize(("method", "path", "body"), [*CONFIRMED, ("POST", "/logout", None)])
SENTENCES = {"/account/password": "Password changed", "/logout": "Logged out", "/account": "User deleted"}


def end(client, method, path, body):
    """Send what ends an account or its tokens."""
    body, content_type = (b"", None) if body is None else (json.dumps(body), "application/json")
    return send(client, method, path, body, content_type)


@ending
def test_end_ends_every_token(client, account, method, path, body):
    tokens = [account.token, client.post_json("/auth", CREDENTIALS).json["access_token"]]

    assert_json(end(client, method, path, body), 202, {"Message": SENTENCES[path]})

    for token in tokens:
        answer = client.get("/stock", headers={"Authorization": f"Bearer {token}"}, status=401)
        assert_error(answer, 401, "Token is invalid or expired")


@ending
def test_end_ends_no_token_of_others(client, database, account, method, path, body):
    database.insert("users", {**account.row, "username": "bob"})
    token = client.post_json("/auth", {**CREDENTIALS, "username": "bob"}).json["access_token"]

    end(client, method, path, body)

    client.get("/stock", headers={"Authorization": f"Bearer {token}"}, status=400)


@ending
@pytest.mark.parametrize("here", [True, False])
def test_end_counts_in_another_process(server, lasting_app, here, method, path, body):
    testapp = TestApp(lasting_app)
    testapp.authorization = ("Bearer", server.token)
    before = [testapp.get("/stock", status="*"), server.request("GET", "/stock")]

    end(testapp, method, path, body) if here else server.request(method, path, body)

    assert statuses(before) == [400, 400]
    assert statuses([testapp.get("/stock", status="*"), server.request("GET", "/stock")]) == [401, 401]


@pytest.mark.parametrize("password", [PASSWORD, "another"])
def test_name_registered_again_revives_no_token(client, password):
    client.delete_json("/account", {"password": PASSWORD}, status=202)
    client.post_json("/register", {"username": USERNAME, "password": password}, status=201)

    client.get("/stock", status=401)


@pytest.mark.parametrize(("number", "password", "status"), [(0, PASSWORD, 401), (0, "sesame", 200), (1, PASSWORD, 401)])
def test_log_in_after_the_end(client, number, password, status):
    end(client, *CONFIRMED[number])

    client.post_json("/auth", {"username": USERNAME, "password": password}, status=status)


@confirmed
def test_wrong_password_is_403(refused, method, path, body):
    assert_error(end(refused, method, path, {**body, "password": "wrong"}), 403, "Invalid password")


@pytest.mark.parametrize("name", ["password", "new_password"])
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        *[("", length(1024)), ("x" * 1025, length(1024)), ("a\0", "must not hold NUL"), (1, "must be text")],
        *[(None, "must be text"), (..., "is missing")],
    ],
)
def test_wrong_value_of_a_password_is_400(refused, name, value, sentence):
    body = {key: text for key, text in {**CHANGE, name: value}.items() if text is not ...}

    assert_error(refused.put_json("/account/password", body, status=400), 400, f"{name}: {sentence}")


# ----------------------------------------------------------------------------------------------------------------------
# Part 3: Guessing
# ----------------------------------------------------------------------------------------------------------------------

TOO_MANY = "Too many attempts. Try again later"
WRONG = {**CREDENTIALS, "password": "wrong"}


def guess(client, username=USERNAME, password="wrong", address="127.0.0.1", **environ):
    """Try to log in."""
    credentials = {"username": username, "password": password}
    return client.post_json("/auth", credentials, extra_environ={"REMOTE_ADDR": address, **environ}, status="*")


def failures(database):
    """Give the failed logins that are stored."""
    return database.query("SELECT * FROM failures")


def fail(client, database, times, username=USERNAME):
    """Fail to log in once, and have that stored as often as is said, since each password takes its time."""
    before = failures(database)
    assert guess(client, username).status_int == 401
    (row,) = [row for row in failures(database) if row not in before]
    for number in range(1, times):
        database.insert("failures", {**row, "at": row["at"] - number})


def let_pass(database, seconds):
    """Make what is stored older."""
    database.execute("UPDATE failures SET at = at - :passed", passed=seconds * 1000)


def test_eleventh_failed_login_is_429(registered):
    assert statuses(guess(registered) for _ in range(10)) == [401] * 10

    answer = guess(registered)

    assert_error(answer, 429, TOO_MANY)
    assert 290 <= int(answer.headers["Retry-After"]) <= 300


@pytest.mark.parametrize(("username", "password"), [(USERNAME, PASSWORD), (USERNAME, "wrong"), ("nobody", "wrong")])
def test_password_is_not_looked_at_after_ten(registered, database, username, password):
    def took(name):
        began = time.perf_counter()
        answers.append(guess(registered, name, password))
        return time.perf_counter() - began

    answers = []
    looked_at = took("somebody else")
    fail(registered, database, 10, username)

    assert statistics.median(took(username) for _ in range(9)) < looked_at / 2
    assert statuses(answers) == [401] + [429] * 9
    assert len(failures(database)) == 11


@pytest.mark.parametrize(
    ("times", "failed", "username", "address", "status"),
    [
        (9, USERNAME, USERNAME, "127.0.0.1", 200),
        (10, "bob", USERNAME, "127.0.0.1", 200),
        (10, USERNAME, USERNAME, "192.0.2.11", 200),
        (99, "bob", USERNAME, "127.0.0.1", 200),
        (100, "bob", USERNAME, "127.0.0.1", 429),
        (100, "bob", USERNAME, "192.0.2.11", 200),
        (10, "Alice", "alice", "127.0.0.1", 200),
        (10, "S\u030ckoda", "\u0160koda", "127.0.0.1", 429),
    ],
)
def test_failures_count_by_name_and_address(registered, database, times, failed, username, address, status):
    fail(registered, database, times, failed)

    assert guess(registered, username, PASSWORD, address).status_int == status


@confirmed
def test_wrong_password_counts_as_failed_login(client, database, method, path, body):
    client.extra_environ["REMOTE_ADDR"] = "127.0.0.1"
    fail(client, database, 9)
    assert end(client, method, path, {**body, "password": "wrong"}).status_int == 403

    assert guess(client, password=PASSWORD).status_int == 429
    assert_error(end(client, method, path, body), 429, TOO_MANY)


@pytest.mark.parametrize(
    ("username", "password", "environ", "status"),
    [
        *[(USERNAME, PASSWORD, {}, 200), (USERNAME, "", {}, 400), ("\n", "wrong", {}, 400)],
        (USERNAME, "wrong", {"server.error": (503, "Too many logins wait. Try again later")}, 503),
    ],
)
def test_what_is_no_failed_login_does_not_count(registered, database, username, password, environ, status):
    assert guess(registered, username, password, **environ).status_int == status

    assert failures(database) == []


def test_success_forgives_nothing(registered, database):
    fail(registered, database, 9)

    assert [guess(registered, password=password).status_int for password in (PASSWORD, "x", "x")] == [200, 401, 429]


@pytest.mark.parametrize(("seconds", "status"), [(295, 429), (300, 200)])
def test_failures_hold_for_five_minutes(registered, database, seconds, status):
    fail(registered, database, 10)
    let_pass(database, seconds)

    answer = guess(registered, password=PASSWORD)

    assert answer.status_int == status
    assert 0 <= int(answer.headers.get("Retry-After", 0)) <= 5


def test_old_failures_are_forgotten(registered, database):
    fail(registered, database, 10, "bob")
    let_pass(database, 301)

    guess(registered, address="192.0.2.11")

    assert [row["address"] for row in failures(database)] == ["192.0.2.11"]


def test_names_that_failed_are_not_stored(testapp, database):
    guess(testapp, username="hunter2")  # a password, typed into the wrong field

    assert "hunter2" not in str([database.query(f"SELECT * FROM {name}") for name in database.tables()])


@pytest.mark.parametrize(("trusted", "status"), [(PROXY, 200), (None, 429)])
def test_guesses_are_counted_per_client_of_the_proxy_only(make_app, database, account, trusted, status):
    testapp = TestApp(make_app(trusted_proxy=trusted))
    database.insert("users", account.row)
    for _ in range(10):
        guess(testapp, address=PROXY, HTTP_X_FORWARDED_FOR="203.0.113.10, 203.0.113.9")

    answer = guess(testapp, USERNAME, PASSWORD, address=PROXY, HTTP_X_FORWARDED_FOR="203.0.113.10")

    assert answer.status_int == status


def test_guesses_count_in_another_process(server, lasting_app, database):
    fail(TestApp(lasting_app), database, 10)

    assert_error(server.request("POST", "/auth", CREDENTIALS), 429, TOO_MANY)


@pytest.mark.parametrize(("before", "looked_at"), [(0, 10), (9, 1)])
def test_simultaneous_guesses_in_two_processes_are_ten(server, lasting_app, database, before, looked_at):
    def attempt(number):
        barrier.wait()
        return server.request("POST", "/auth", WRONG) if number % 2 else guess(TestApp(lasting_app))

    if before:
        fail(TestApp(lasting_app), database, before)
    barrier = threading.Barrier(16)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(attempt, range(16)))

    assert statuses(answers) == [401] * looked_at + [429] * (16 - looked_at)


def test_right_password_is_not_told_when_others_failed_meanwhile(registered, database):
    fail(registered, database, 10)
    rows = failures(database)
    database.execute("DELETE FROM failures")
    slow = argon2.PasswordHasher(time_cost=40, memory_cost=19456, parallelism=1).hash(PASSWORD)
    database.execute("UPDATE users SET password = :slow", slow=slow)

    with ThreadPoolExecutor(1) as pool:
        login = pool.submit(guess, registered, USERNAME, PASSWORD)
        time.sleep(0.1)
        for row in rows:
            database.insert("failures", row)

    assert_error(login.result(), 429, TOO_MANY)


def test_many_logins_keep_nobody_waiting(server):
    with ThreadPoolExecutor(16) as pool:
        names = [{"username": f"name {number}", "password": "x"} for number in range(16)]
        logins = [pool.submit(server.request, "POST", "/auth", name) for name in names]
        while not any(login.done() for login in logins):
            time.sleep(0.001)
        server.request("GET", "/health")
        done = sum(login.done() for login in logins)

    assert done < 12
    assert statuses(login.result() for login in logins) == [401] * 16


def test_wrong_password_and_unknown_name_take_the_same_time(registered):
    took = {USERNAME: [], "nobody": []}
    for number in range(20):
        for username, times in took.items():
            began = time.perf_counter()
            guess(registered, username, address=f"192.0.2.{number}")
            times.append(time.perf_counter() - began)

    known, unknown = (statistics.median(times) for times in took.values())
    print(f"medians: wrong password {known * 1000:.1f} ms, unknown name {unknown * 1000:.1f} ms")
    assert abs(known - unknown) < 0.25 * max(known, unknown)


# ----------------------------------------------------------------------------------------------------------------------
# Part 3: At the console
# ----------------------------------------------------------------------------------------------------------------------


def test_adduser_reads_the_password_from_a_pipe(registered, database):
    child = run("adduser", "Вася", text=" pass word \r\n", DATABASE_URL=database.url, REGISTRATION="closed")

    assert (child.returncode, child.stderr) == (0, "")
    registered.post_json("/auth", {"username": "Вася", "password": " pass word "}, status=200)


@pytest.mark.parametrize(
    ("username", "text", "said"),
    [
        (USERNAME, "another\n", "User already exists"),
        *[("a\tb", "sesame\n", "username"), ("x" * 81, "sesame\n", "username")],
        *[("bob", "short\n", "password"), ("bob", "", "password")],
    ],
)
def test_adduser_refuses(database, account, app, username, text, said):
    database.insert("users", account.row)

    assert_refusal(run("adduser", username, text=text, DATABASE_URL=database.url, PASSWORD_MIN="6"), 1, said)

    assert database.query("SELECT * FROM users") == [account.row]


def test_adduser_asks_for_the_password_without_showing_it(tmp_path):
    ours, theirs = pytest.importorskip("pty").openpty()
    pipes = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.PIPE, "start_new_session": True}
    env = environment(DATABASE_URL=sqlite_store(tmp_path).url)
    with subprocess.Popen([*PROGRAM, "adduser", "bob"], env=env, **pipes) as child:
        prompt = child.stderr.read(10)
        os.write(ours, TYPED.encode() + b"\n")
        code = child.wait(10)
    shown = os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)

    assert (prompt, code) == (b"Password: ", 0)
    assert TYPED.encode() not in shown


def test_backup_copies_one_moment_of_a_live_database(tmp_path, account):
    store, copy = sqlite_store(tmp_path), Store(f"sqlite:///{tmp_path / 'copy.db'}")
    with open_app(store) as app, closing(sqlite3.connect(tmp_path / "dealer.db")) as writer:
        store.insert("users", account.row)
        TestApp(app).post_json("/auto/BMW", CAR, headers={"Authorization": f"Bearer {account.token}"}, status=201)
        writer.execute("INSERT INTO autos SELECT 'half', 1, 2, 'x', 'y', ''")
        child = run("backup", str(tmp_path / "copy.db"), DATABASE_URL=store.url)

    assert (child.returncode, child.stderr) == (0, "")
    assert copy.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    with open_app(copy) as app:
        answer = TestApp(app).get("/stock", headers={"Authorization": f"Bearer {account.token}"})
        assert_json(answer, 200, [{"mark": "BMW", **CAR}])


@pytest.mark.parametrize(
    ("source", "target"), [("dealer.db", "text"), ("dealer.db", "nowhere/copy.db"), ("missing.db", "copy.db")]
)
def test_backup_that_is_refused_leaves_all_as_it_was(tmp_path, source, target):
    (tmp_path / "text").write_text("precious")
    with open_app(sqlite_store(tmp_path)):
        pass
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    child = run("backup", str(tmp_path / target), DATABASE_URL=f"sqlite:///{tmp_path / source}")

    assert_refusal(child, 1, Path(target).name)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_backup_of_postgresql_names_pg_dump_without_connecting(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"postgresql://dealer:{TYPED}@127.0.0.1:{listener.getsockname()[1]}/dealer"
        assert_refusal(run("backup", str(tmp_path / "copy.db"), DATABASE_URL=url), 1, "pg_dump")

        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert list(tmp_path.iterdir()) == []


FIRST_SCHEMA = """
CREATE TABLE schema_version (version INTEGER NOT NULL) STRICT;
CREATE TABLE users (
    username TEXT COLLATE "BINARY" NOT NULL, password TEXT COLLATE "BINARY" NOT NULL,
    session TEXT COLLATE "BINARY" NOT NULL, PRIMARY KEY (username)
) STRICT;
CREATE TABLE autos (
    mark TEXT COLLATE "BINARY" NOT NULL, max_speed INTEGER NOT NULL, distance INTEGER NOT NULL,
    handler TEXT COLLATE "BINARY" NOT NULL, stock TEXT COLLATE "BINARY" NOT NULL, PRIMARY KEY (mark),
    CONSTRAINT max_speed_range CHECK (max_speed BETWEEN 0 AND 9007199254740991),
    CONSTRAINT distance_range CHECK (distance BETWEEN 0 AND 9007199254740991)
) WITHOUT ROWID, STRICT;
INSERT INTO schema_version VALUES (1);
INSERT INTO autos VALUES ('BMW', 280, 400, 'Auto Motors', 'Germany')"""
POSTGRES_WORDS = {'"BINARY"': '"C"', " WITHOUT ROWID, STRICT": "", " STRICT": "", " INTEGER ": " BIGINT "}
ANEW = "DROP SCHEMA public CASCADE", "CREATE SCHEMA public"


@pytest.fixture
def first_version(store, tmp_path, account):
    """A database as the first version of the program left it, with an account and a car."""
    sql = FIRST_SCHEMA
    if store.name == "postgresql":  # there is but one: its tables come back after
        sql = re.sub("|".join(POSTGRES_WORDS), lambda word: POSTGRES_WORDS[word[0]], sql)
        store.execute(*ANEW)
    database = store if store.name == "postgresql" else sqlite_store(tmp_path)
    database.execute(*sql.split(";\n"))
    database.insert("users", account.row)
    yield database
    if store.name == "postgresql":
        store.execute(*ANEW)
        with open_app(store):
            pass


def test_older_schema_is_brought_up(first_version, account):
    with open_app(first_version):
        pass  # the second start finds it new
    with open_app(first_version) as app:
        client = TestApp(app)
        client.authorization = ("Bearer", account.token)
        answer = client.get("/auto/BMW")
        etag = {"If-Match": answer.headers["ETag"]}

        assert_json(answer, 200, {"mark": "BMW", **CAR})
        client.put_json("/auto/BMW", OTHER_CAR, headers=etag, status=202)
        client.put_json("/auto/BMW", CAR, headers=etag, status=412)
        client.post_json("/auth", CREDENTIALS, status=200)
        assert [entry["action"] for entry in client.get("/history/BMW").json] == ["updated"]


def definitions(store):
    """Give what the columns and the indexes of every table are."""
    inspector = sqlalchemy.inspect(store.engine)
    return {
        name: (
            {(column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(name)},
            {(index["name"], *index["column_names"]) for index in inspector.get_indexes(name)},
        )
        for name in store.tables()
    }


def test_older_schema_becomes_that_of_a_new_database(first_version, store):
    if store.name == "postgresql":
        pytest.skip("there is no second database")
    with open_app(first_version), open_app(store):
        assert definitions(first_version) == definitions(store)


def test_newer_schema_is_refused(database, app):
    database.execute("UPDATE schema_version SET version = version + 1")
    try:
        assert_refusal(run(DATABASE_URL=database.url, JWT_SECRET=SECRET, PORT="0"), 2, "DATABASE_URL")
    finally:
        database.execute("UPDATE schema_version SET version = version - 1")


# ----------------------------------------------------------------------------------------------------------------------
# Part 3: Log
# ----------------------------------------------------------------------------------------------------------------------

LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3})Z INFO (?P<address>\S+) (?P<identity>\S+) "
    r"(?P<method>\S+) (?P<path>\S+) (?P<status>\d{3}) [\d.]+ms (?P<request_id>\S+)"
)


@pytest.fixture(scope="module")
def logged(tmp_path_factory, account):
    """A server that logs all it can, and its log."""
    store = sqlite_store(tmp_path_factory.mktemp("logged"))
    folder = Path(sqlalchemy.make_url(store.url).database).parent
    with started(folder, DATABASE_URL=store.url, JWT_SECRET=SECRET, LOG_LEVEL="DEBUG") as (server, _, log):
        store.insert("users", account.row)
        yield server._replace(token=account.token), log


def lines_of(log, answer):
    """Give the lines of the log from the end of the request before to that of an answer's, once they are there."""
    request_id = answer.headers["X-Request-ID"]
    for _ in range(200):
        *before, last = [""] * 2 + log.read_text().split("\n")[:-1]
        if last.endswith(" " + request_id):
            begin = max((number for number, line in enumerate(before, 1) if LINE.fullmatch(line)), default=0)
            return [line for line in before[begin:] if line] + [last]
        time.sleep(0.01)
    return pytest.fail(f"the log does not end with {request_id}: {last}")


@pytest.mark.parametrize(
    ("method", "path", "headers", "identity", "status"),
    [
        *[("GET", "/stock", {}, USERNAME, 400), ("HEAD", "/auto/BMW%20i4", {}, USERNAME, 404)],
        *[("GET", "/health", {}, "-", 200), ("GET", "/nothing", {}, "-", 404), ("DELETE", "/auth", {}, "-", 405)],
        *[("GET", "/stock", {"Authorization": ""}, "-", 401), ("GET", "/docs", {"Host": "a b"}, "-", 400)],
    ],
)
def test_log_has_a_line_of_every_request(logged, method, path, headers, identity, status):
    server, log = logged

    answer = server.request(method, path, **headers)

    (line,) = lines_of(log, answer)
    found = LINE.fullmatch(line).groupdict()
    assert abs(datetime.fromisoformat(found.pop("time") + "+00:00") - datetime.now(UTC)).total_seconds() < 60
    assert found == {
        "address": "127.0.0.1",
        "identity": identity,
        "method": method,
        "path": path,
        "status": str(status),
        "request_id": answer.headers["X-Request-ID"],
    }


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "said"),
    [
        ("POST", "/auth", CREDENTIALS, {}, f"login: {USERNAME}"),
        ("POST", "/auth", WRONG, {}, f"login failed: {USERNAME} from 127.0.0.1"),
        ("GET", "/stock", None, {"Authorization": "Bearer x"}, "token refused from 127.0.0.1"),
    ],
)
def test_log_has_a_line_of_every_login_and_refused_token(logged, method, path, body, headers, said):
    server, log = logged

    event, _ = lines_of(log, server.request(method, path, body, **headers))

    assert said in event


def is_control(character):
    """Tell whether a character could end a line, or move the cursor of a terminal."""
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")


@pytest.mark.parametrize("username", ['o\'brien "x"', "two words 200 1.0ms id", "Вася", "a\u2028b", "%0a\\n"])
def test_names_cannot_forge_the_log(logged, username):
    server, log = logged
    server.request("POST", "/register", {"username": username, "password": "x"})
    answers = [server.request("POST", "/auth", {"username": username, "password": word}) for word in ("wrong", "x")]

    answer = server._replace(token=answers[1].json["access_token"]).request("GET", "/stock")

    (line,) = lines_of(log, answer)
    assert LINE.fullmatch(line)["status"] == "400"
    assert not any(map(is_control, log.read_text().replace("\n", "")))


@pytest.mark.parametrize(
    "data",
    table(
        [b"GET /a%0A2026-01-01T00:00:00.000Z%1b%5B31m HTTP/1.1"],
        [b"GET /a%C2%85%E2%80%A8%E2%80%AE HTTP/1.1"],
        [b"GET /a\xc2\x85\xe2\x80\xa8b HTTP/1.1"],
        [b"GET /a\x1b[31m HTTP/1.1"],
        [b"G\x9b31mET / HTTP/1.1"],
        [b"GET http://h\x9b31m/ HTTP/1.1"],
        [b"GET /a\rb HTTP/1.1"],
        [b"GET /health HTTP/1.1\r\nX-Request-ID: a\x9b31m"],
        [b"GET /health HTTP/1.1\r\nX-Request-ID: a\r\nX-Request-ID: b"],
        [b"GET /stock HTTP/1.1\r\nAuthorization: Bearer a\x9b31m"],
        [b"POST /auth HTTP/1.1\r\nX-HTTP-Method-Override: P\x9b31m"],
    ),
)
def test_raw_bytes_cannot_forge_the_log(logged, data):
    server, log = logged

    answer = server.send_bytes(data + b"\r\nHost: a\r\nConnection: close\r\n\r\n")

    *_, line = lines = lines_of(log, answer)
    assert LINE.fullmatch(line)["request_id"] == answer.headers["X-Request-ID"]
    assert not any(map(is_control, "".join(lines)))


def test_log_holds_no_secret(logged):
    server, log = logged
    carol = {"username": "carol", "password": f"{TYPED}-1"}
    assert server.request("POST", "/register", carol).status_int == 201
    token = server.request("POST", "/auth", carol).json["access_token"]
    requests = [
        ("POST", "/auth", {**carol, "password": f"{TYPED}-2"}),
        ("POST", "/auth", {"username": TYPED, "password": "carol"}),  # typed into the wrong field
        ("POST", "/auth", json.dumps(carol)[:-1]),
        ("POST", "/auth", {**carol, TYPED: "x"}),
        ("GET", f"/stock?access_token={token}&password={TYPED}", None),
        ("DELETE", "/account", {"password": f"{TYPED}-3"}),
        ("PUT", "/account/password", {**carol, "new_password": TYPED}),
        ("PUT", "/account/password", {"password": carol["password"], "new_password": TYPED}),
    ]
    for method, path, body in requests:
        server._replace(token=token).request(method, path, body, **{"Content-Type": "application/json"})
    for authorization in (f"Bearer {token}", f"Bearer {token}x", f"Basic {TYPED}", f"Bearer {TYPED}", token):
        answer = server.request("GET", "/stock", Authorization=authorization, **{"X-Request-ID": token})

    assert lines_of(log, answer)
    assert not [secret for secret in (TYPED, SECRET, *token.split(".")) if secret in log.read_text()]


# ----------------------------------------------------------------------------------------------------------------------
# Part 3: Request ids, and headers of every answer
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_id", "taken"),
    [
        *[(request_id, True) for request_id in ("a", "A-z_0.9", ".", "x" * 128)],
        *[(request_id, False) for request_id in ("", "a b", "a,b", "a/b", "é", "٣", "a\tb", 'a"b', "x" * 129)],
    ],
)
def test_request_id_is_the_client_s_where_it_is_clean(client, caplog, request_id, taken):
    caplog.set_level(logging.INFO, "dealer.access")
    sent = request_id.encode().decode("latin-1")

    answers = [client.get(path, headers={"X-Request-ID": sent}, status="*") for path in ("/health", "/nothing")]

    given = [answer.headers["X-Request-ID"] for answer in answers]
    assert given == [sent, sent] if taken else len({*given, sent}) == 3
    assert [line.split()[-1] for line in caplog.messages[-2:]] == given


@pytest.mark.parametrize(
    ("method", "path", "status", "headers"),
    [
        *[
            ("GET", path, 200, {"Cache-Control": "private, no-cache"})
            for path in ("/auto/BMW", "/stock", "/stock?limit=1", "/stock?format=csv", "/history", "/history/BMW")
        ],
        *[("GET", path, 200, {"Vary": "Accept"}) for path in ("/stock", "/stock?format=csv", "/stock?limit=1")],
        *[("GET", path, 200, {}) for path in ("/health", "/docs", "/openapi.json", "/docs/start.js")],
        *[("DELETE", "/auto/BMW", 202, {}), ("GET", "/nothing", 404, {}), ("GET", "/docs/swagger-ui.css", 200, {})],
        ("GET", "/", 302, {"Location": "/docs"}),
        ("POST", "/auto/%25%20%C5%A0%2Fx", 201, {"Location": "/auto/%25%20%C5%A0%2Fx"}),
        *[(method, "/auto/BMW", 401, {"WWW-Authenticate": BEARER}) for method in ("GET", "PUT", "PATCH")],
        *[("POST", "/logout", 401, {"WWW-Authenticate": BEARER}), ("DELETE", "/account", 401, {})],
        *[("OPTIONS", path, 405, {"Allow": "POST"}) for path in ("/register", "/auth", "/logout")],
        ("OPTIONS", "/auto/x", 405, {"Allow": "DELETE, GET, HEAD, PATCH, POST, PUT"}),
        ("OPTIONS", "/stock", 405, {"Allow": "GET, HEAD, POST, PUT"}),
        ("OPTIONS", "/account", 405, {"Allow": "DELETE"}),
        *[("OPTIONS", path, 405, {"Allow": "GET, HEAD"}) for path in ("/history", "/health", "/docs", "/")],
    ],
)
def test_headers_of_an_answer(bmw, method, path, status, headers):
    authorization = {"Authorization": ""} if status == 401 else {}

    answer = send(bmw, method, path, raw_car() if method in ("POST", "PUT") else b"", **authorization)

    assert answer.status_int == status
    location = answer.headers.get("Location", "").removeprefix("http://localhost")
    assert {name: location if name == "Location" else answer.headers.get(name) for name in headers} == headers
    assert answer.headers.getall("X-Content-Type-Options") == ["nosniff"]


def test_documentation_runs_no_script_but_its_own(client):
    policy = dict(part.split(maxsplit=1) for part in client.get("/docs").headers["Content-Security-Policy"].split(";"))

    assert (policy["default-src"], policy["script-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")


# ----------------------------------------------------------------------------------------------------------------------
# Plugins by themselves: access
# ----------------------------------------------------------------------------------------------------------------------

# What a handler uses is an argument with a default here: Bottle takes what a function encloses for what it decorates.


def nothing():
    """Answer with an empty object."""
    return {}


@pytest.fixture
def plain():
    """An application without a plugin."""
    return Bottle()


def test_access_adds_headers_to_every_answer(plain):
    plain.install(AccessPlugin())
    plain.get("/", callback=lambda: "hello")

    for path in ("/", "/nothing"):
        headers = TestApp(plain).get(path, status="*").headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", headers["X-Request-ID"])


@pytest.mark.parametrize("request_id", ["a", "A-z_0.9", "x" * 128])
def test_access_keeps_a_request_id(plain, request_id):
    plain.install(AccessPlugin())

    answer = TestApp(plain).get("/", headers={"X-Request-ID": request_id}, status=404)

    assert_headers(answer, X_Request_ID=request_id)


@pytest.mark.parametrize("request_id", ["", "a b", "é", "x" * 129, "a\tb", "<x>"])
def test_access_replaces_a_request_id_that_is_not_clean(plain, request_id):
    plain.install(AccessPlugin())

    answer = TestApp(plain).get("/", headers={"X-Request-ID": request_id}, status=404)

    assert answer.headers["X-Request-ID"] != request_id


def test_access_logs_a_line_per_request(plain, caplog):
    caplog.set_level(logging.INFO, "dealer.access")
    plain.install(AccessPlugin())
    plain.get("/hello", callback=lambda: "hello")

    TestApp(plain).get("/hello?token=x", headers={"X-Request-ID": "id-1"}, extra_environ={"REMOTE_ADDR": "192.0.2.1"})

    (line,) = caplog.messages
    assert re.fullmatch(r"192\.0\.2\.1 - GET /hello 200 [\d.]+ms id-1", line)


def test_access_logs_no_raw_control_character(plain, caplog):
    caplog.set_level(logging.INFO, "dealer.access")
    plain.install(AccessPlugin())

    TestApp(plain).get("/a%0Ab%1B%C3%A9", status=404)

    (line,) = caplog.messages
    assert line.isascii()
    assert line.isprintable()


def test_second_access_plugin_is_refused(plain):
    plain.install(AccessPlugin())

    with pytest.raises(PluginError):
        plain.install(AccessPlugin())


# ----------------------------------------------------------------------------------------------------------------------
# Plugins by themselves: answers
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def answering(plain):
    """An application that answers in JSON."""
    plain.install(AnswersPlugin())
    return plain


@pytest.mark.parametrize(
    ("result", "status", "body"),
    [({"a": "é"}, 200, {"a": "é"}), ([1, {}], 200, [1, {}]), (Answer(202, {"Message": "x"}), 202, {"Message": "x"})],
)
def test_answers_makes_json_of_what_is_returned(answering, result, status, body):
    answering.get("/", callback=lambda result=result: result)

    answer = TestApp(answering).get("/", status=status)

    assert (answer.json, answer.headers["Content-Type"]) == (body, "application/json")


def test_answers_leaves_bytes_as_they_are(answering):
    answering.get("/", callback=lambda: b"<p>")

    answer = TestApp(answering).get("/")

    assert (answer.body, answer.content_type) == (b"<p>", "text/html")


@pytest.mark.parametrize(
    ("raised", "status", "sentence"),
    [
        (HTTPError(418, "I am a teapot"), 418, "I am a teapot"),
        (Answer(409, {"Error": "Taken"}).error(), 409, "Taken"),
        (ValueError("secret"), 500, "Internal server error"),
    ],
)
def test_answers_makes_json_of_what_is_raised(answering, raised, status, sentence):
    def fail(raised=raised):
        raise raised

    answering.get("/", callback=fail)

    answer = TestApp(answering).get("/", status=status)

    assert (answer.json, answer.headers["Content-Type"]) == ({"Error": sentence}, "application/json")


def test_answers_keeps_the_headers_of_an_error(answering):
    def fail():
        raise Answer(503, {"Error": "Later"}).error(Retry_After="7")

    answering.get("/", callback=fail)

    assert_headers(TestApp(answering).get("/", status=503), Retry_After="7")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/", 405)])
def test_answers_makes_json_of_errors_of_bottle(answering, method, path, status):
    answering.get("/", callback=nothing)

    answer = send(TestApp(answering), method, path)

    assert (answer.status_int, list(answer.json)) == (status, ["Error"])


def test_answers_words_what_the_server_could_not_read(answering):
    answering.get("/", callback=nothing)

    answer = TestApp(answering).get("/", extra_environ={"server.error": (431, "Too large")}, status=431)

    assert answer.json == {"Error": "Too large"}


def test_second_answers_plugin_is_refused(answering):
    with pytest.raises(PluginError):
        answering.install(AnswersPlugin())


# ----------------------------------------------------------------------------------------------------------------------
# Plugins by themselves: storage
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def db(database):
    """A `Database` with one connection and one table, ``notes``."""
    database.execute("CREATE TABLE notes (text TEXT PRIMARY KEY)")
    with closing(Database(database.url, connections=1)) as db:
        yield db
    database.execute("DROP TABLE notes")


@pytest.fixture
def storing(plain, db):
    """An application with a database."""
    plain.install(AnswersPlugin())
    plain.install(StoragePlugin(db))
    return plain


def write_note(db):
    """Write a note, as a handler does."""
    db.query("INSERT INTO notes VALUES ('x')")


def notes(database):
    """Give the notes that anyone can see."""
    return [row["text"] for row in database.query("SELECT text FROM notes")]


def test_storage_commits_on_answer(storing, database):
    @storing.post("/")
    def write(db):
        write_note(db)
        return {}

    TestApp(storing).post("/")

    assert notes(database) == ["x"]


@pytest.mark.parametrize("raised", [HTTPError(400, "No"), bottle.HTTPResponse(status=303), ValueError("fault")])
def test_storage_rolls_back_on_raise(storing, database, raised):
    @storing.post("/")
    def write_and_raise(db, raised=raised):
        write_note(db)
        raise raised

    TestApp(storing).post("/", status="*")

    assert notes(database) == []


def test_storage_gives_the_connection_back(storing):
    @storing.get("/")
    def read(db):
        return list(db.query("SELECT text FROM notes"))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: TestApp(storing).get("/").json, range(8)))

    assert answers == [[]] * 8


def test_storage_gives_the_connection_back_on_raise(storing, db):
    @storing.post("/")
    def write_and_raise(db):
        write_note(db)
        raise HTTPError(400, "No")

    TestApp(storing).post("/", status=400)

    assert db.engine.pool.checkedout() == 0


def test_storage_reads_one_moment(storing, database):
    @storing.get("/")
    def read_twice(db, database=database):
        first = list(db.query("SELECT text FROM notes"))
        database.insert("notes", {"text": "meanwhile"})
        return [first, list(db.query("SELECT text FROM notes"))]

    assert TestApp(storing).get("/").json == [[], []]


def test_storage_takes_no_connection_where_it_is_not_asked_for(storing, db):
    storing.get("/", callback=lambda pool=db.engine.pool: {"taken": pool.checkedout()})

    assert TestApp(storing).get("/").json == {"taken": 0}


def test_storage_takes_no_connection_before_the_first_statement(storing):
    storing.get("/", callback=lambda db: {"taken": db.engine.pool.checkedout()})

    assert TestApp(storing).get("/").json == {"taken": 0}


def test_storage_reads_in_a_transaction_of_its_own_without_holding_writers_up(storing, database):
    @storing.post("/")
    def read_then_write(db, database=database):
        with db.reading():
            list(db.query("SELECT text FROM notes"))
        database.insert("notes", {"text": "meanwhile"})
        write_note(db)
        return {}

    TestApp(storing).post("/")

    assert sorted(notes(database)) == ["meanwhile", "x"]


def test_storage_gives_the_connection_back_after_an_answer_in_parts(storing):
    @storing.get("/")
    def read(db):
        for row in db.query("SELECT 1 AS number UNION SELECT 2 UNION SELECT 3 ORDER BY number"):
            yield b"%d" % row["number"]

    answers = [TestApp(storing).get("/").body for _ in range(3)]

    assert answers == [b"123"] * 3


def test_storage_gives_what_was_made_of_the_database(plain, db):
    plain.install(AnswersPlugin())
    plain.install(StoragePlugin(db, notes="resource"))
    plain.get("/", callback=lambda notes: {"notes": notes})

    assert TestApp(plain).get("/").json == {"notes": "resource"}


def test_second_storage_plugin_with_the_keyword_is_refused(storing, db):
    with pytest.raises(PluginError):
        storing.install(StoragePlugin(db))


def test_storage_out_of_reach_is_503(plain, tmp_path):
    plain.install(AnswersPlugin())
    plain.get("/", callback=lambda db: list(db.query("SELECT 1")))
    with closing(Database(f"sqlite:///{tmp_path}/nowhere/x.db")) as db:
        plain.install(StoragePlugin(db))

        answer = TestApp(plain).get("/", status=503)

    assert answer.json == {"Error": "Database is not available. Try again later"}
    assert answer.headers["Retry-After"].isdigit()


# ----------------------------------------------------------------------------------------------------------------------
# Plugins by themselves: identity
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def identifying(plain):
    """An application that knows everybody but Mallory."""
    plain.install(AnswersPlugin())
    plain.install(IdentityPlugin(SECRET, ttl=60, confirm=lambda claims: claims["sub"] != "mallory"))
    plain.get("/me", callback=lambda identity: {"me": identity})
    plain.get("/secret", callback=nothing)
    plain.get("/open", callback=nothing, public=True)
    plain.get("/token/<name>", callback=lambda name, tokens: {"token": tokens.make(name)}, public=True)
    return TestApp(plain)


def identify(testapp, name):
    """Take a token from the application, and send it from now on."""
    testapp.authorization = ("Bearer", testapp.get(f"/token/{name}").json["token"])
    return testapp


def test_identity_is_injected(identifying):
    assert identify(identifying, "alice").get("/me").json == {"me": "alice"}


def test_identity_protects_where_it_is_not_asked_for(identifying):
    identifying.get("/secret", status=401)


def test_identity_lets_everyone_to_what_is_public(identifying):
    assert identifying.get("/open").json == {}


def test_identity_is_confirmed(identifying):
    identify(identifying, "mallory").get("/secret", status=401)


def test_identity_is_confirmed_each_time(plain):
    known = {"alice"}
    plugin = IdentityPlugin(SECRET, ttl=60, confirm=lambda claims: claims["sub"] in known)
    plain.install(plugin)
    plain.get("/", callback=lambda: "hello")
    testapp = TestApp(plain)
    testapp.authorization = ("Bearer", plugin.make("alice"))
    testapp.get("/", status=200)

    known.clear()

    testapp.get("/", status=401)


def test_public_route_that_asks_for_identity_is_refused(plain):
    plain.install(IdentityPlugin(SECRET, ttl=60, confirm=lambda claims: True))
    plain.get("/", callback=lambda identity: identity, public=True)

    with pytest.raises(PluginError):
        plain.routes[0].prepare()


def test_second_identity_plugin_with_the_keyword_is_refused(plain):
    plain.install(IdentityPlugin(SECRET, ttl=60, confirm=lambda claims: True))

    with pytest.raises(PluginError):
        plain.install(IdentityPlugin(SECRET, ttl=60, confirm=lambda claims: True))


# ----------------------------------------------------------------------------------------------------------------------
# Plugins by themselves: bodies
# ----------------------------------------------------------------------------------------------------------------------


class Room(Record):
    """A record that has nothing to do with cars."""

    name: Text(3)
    seats: Number


@pytest.fixture
def reading(plain):
    """A client of an application that reads rooms."""
    plain.install(AnswersPlugin())
    plain.install(BodiesPlugin(path=Room))

    @plain.put("/room/<name>")
    def update(name, room: Room):
        return {"name": room.name, "seats": room.seats}

    plain.post("/free", callback=lambda: {"body": bottle.request.body.read().decode()})
    return TestApp(plain)


def test_bodies_gives_the_record(reading):
    assert reading.put_json("/room/A1", {"seats": 5}).json == {"name": "A1", "seats": 5}


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/room/A1", {"seats": "5"}, f"seats: {NUMBER}"),
        ("/room/A1", {}, "seats: is missing"),
        ("/room/A1", {"seats": 5, "doors": 1}, "doors: unknown field"),
        ("/room/A1", {"seats": 5, "name": "B1"}, "name: must be the same as in the path"),
        ("/room/A123", {"seats": 5}, f"name: {length(3)}"),
        ("/room/A1", [], NO_OBJECT),
    ],
)
def test_bodies_refuses_what_does_not_fit(reading, path, body, sentence):
    assert reading.put_json(path, body, status=400).json == {"Error": sentence}


def test_bodies_leaves_a_body_that_is_not_asked_for(reading):
    assert reading.post("/free", "anything", content_type="text/plain").json == {"body": "anything"}


def test_second_bodies_plugin_is_refused(plain):
    plain.install(BodiesPlugin(path=Room))

    with pytest.raises(PluginError):
        plain.install(BodiesPlugin(path=Room))
