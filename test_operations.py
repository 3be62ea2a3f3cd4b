"""For running it: settings, console, backup, schema, log, and the headers of every answer."""

import ast
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy

import dealer
from conftest import (
    BEARER,
    CAR,
    CREDENTIALS,
    HERE,
    OTHER_CAR,
    PASSWORD,
    PROGRAM,
    PROXY,
    SECRET,
    TYPED,
    USERNAME,
    WRONG,
    Server,
    Store,
    TestApp,
    assert_headers,
    assert_json,
    assert_refusal,
    environment,
    free_port,
    open_app,
    raw_car,
    run,
    send,
    sqlite_store,
    table,
)
from plugins.postgresql import Servers, servers_of

# ----------------------------------------------------------------------------------------------------------------------
# The module, and the database that comes with it
# ----------------------------------------------------------------------------------------------------------------------


def test_sqlite_loses_nothing_in_a_power_cut(tmp_path):
    settings = dealer.Settings(database_url=sqlite_store(tmp_path).url)
    with closing(dealer.open_database(settings)) as db, db.reading():
        assert list(db.query("PRAGMA synchronous")) == [{"synchronous": 2}]  # FULL


def schema_of(store):
    """Give all that an SQLite database defines and holds."""
    schema = store.query("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")
    rows = {name: store.query(f"SELECT * FROM {name}") for name in {"schema_version", *store.tables()}}
    return {"schema": schema, "rows": rows}


@pytest.fixture
def committed(tmp_path):
    """The database that is committed; that in the folder may have been used since."""
    shown = shutil.which("git") and subprocess.run(["git", "show", "HEAD:./data.db"], cwd=HERE, capture_output=True)
    if not shown or shown.returncode != 0:
        pytest.skip("what is committed is not known: this is no checkout of git")
    (tmp_path / "committed.db").write_bytes(shown.stdout)
    return Store(f"sqlite:///{tmp_path / 'committed.db'}")


def test_committed_database_is_a_fresh_one(committed, tmp_path):
    fresh = sqlite_store(tmp_path)
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
# Health
# ----------------------------------------------------------------------------------------------------------------------


def test_health(testapp):
    assert_json(testapp.get("/health", status=200), 200, {"status": "ok"})


# ----------------------------------------------------------------------------------------------------------------------
# Settings
# ----------------------------------------------------------------------------------------------------------------------

NOT_OURS = "203.0.113.7"  # an address for documentation: whoever is not stopped before cannot listen there
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
        ("DATABASE_URL", f"postgresql://dealer:{TYPED}/2@localhost/dealer"),
        ("DATABASE_URL", f"postgresql://dealer:1/{TYPED}@localhost/dealer"),
        ("DATABASE_URL", f"postgresql://dealer:1@{TYPED}@localhost/dealer"),
        ("DATABASE_URL", f"postgresql://dealer:%{TYPED}@localhost/dealer"),
        ("DATABASE_URL", f"postgresql://dealer:{TYPED}@one:1,two:2/dealer?port=1,2,3"),
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


def test_help_tells_the_words_that_decide_who_registers():
    assert {"open", "readers", "closed"} <= set(re.findall(r"\w+", run("--help").stdout))


def test_help_is_for_those_who_run_commands_not_for_those_who_call_functions():
    assert "raises" not in run("--help").stdout


def test_importing_reads_no_setting():
    settings = environment(**dict.fromkeys(SETTINGS, "nonsense"))

    child = subprocess.run([sys.executable, "-c", "import dealer"], cwd=HERE, env=settings, capture_output=True)

    assert (child.returncode, child.stdout, child.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("postgresql://u:p@one:5432,two:5433/db", ["one", "two"], ["5432", "5433"]),
        ("postgresql://u:p@one,two:5433/db", ["one", "two"], ["", "5433"]),
        ("postgresql://u:p@[::1]:5432,[fe80::2]/db", ["::1", "fe80::2"], ["5432", ""]),
        ("postgresql://u:p@/db?host=one,two&port=1,2", ["one", "two"], ["1", "2"]),
        ("postgresql://u:p@/db?host=one,two&port=5433", ["one", "two"], ["5433", "5433"]),
        ("postgresql://u:p@one,two/db", ["one", "two"], ["", ""]),
        ("postgresql://u:p@one/db", ["one"], [""]),
    ],
)
def test_url_may_name_several_servers(url, hosts, ports):
    servers = servers_of(url)

    assert [server["host"] for server in servers] == hosts
    assert [server["port"] for server in servers] == ports
    assert {(server["user"], server["password"], server["dbname"]) for server in servers} == {("u", "p", "db")}


def test_password_and_parameters_of_a_url_are_kept():
    (server,) = servers_of("postgresql://u:a%40b%2Fc%3A%25%20%23@one/db?sslmode=require&application_name=dealer")

    assert (server["password"], server["sslmode"]) == ("a@b/c:% #", "require")
    assert server["application_name"] == "dealer"


def test_options_of_a_url_are_kept_before_those_of_the_program():
    (server,) = Servers("postgresql://one/db?options=-c%20search_path%3Dcars", "-c lock_timeout=4s").all

    assert server["options"].split() == ["-c", "search_path=cars", "-c", "lock_timeout=4s"]


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


@pytest.mark.parametrize(
    ("trusted", "remote", "forwarded", "address"),
    [
        *[(trusted, PROXY, "198.51.100.1, 203.0.113.9", "203.0.113.9") for trusted in (PROXY, "*")],
        *[(PROXY, PROXY, forwarded, "203.0.113.9") for forwarded in ("203.0.113.9:65535", "[203.0.113.9]")],
        *[(PROXY, PROXY, f, "2001:db8::1") for f in ("2001:db8::1", "x, [2001:db8::1]:80", "[2001:DB8::1]")],
        *[
            (PROXY, PROXY, forwarded, PROXY)
            for forwarded in ("x, unknown", "203.0.113.9 x", "203.0.113.9:", "[]:80", "")
        ],
        (PROXY, f"::ffff:{PROXY}", "203.0.113.9", "203.0.113.9"),
        *[(trusted, "192.0.2.2", "203.0.113.9", "192.0.2.2") for trusted in (None, PROXY)],
    ],
)
def test_only_the_proxy_names_another_client(make_app, caplog, trusted, remote, forwarded, address):
    caplog.set_level(logging.INFO, "dealer.access")
    testapp = TestApp(make_app(trusted_proxy=trusted))

    testapp.get("/health", headers={"X-Forwarded-For": forwarded}, extra_environ={"REMOTE_ADDR": remote})

    assert caplog.messages[-1].split()[0] == address


@pytest.mark.parametrize(
    ("remote", "scheme", "told"),
    [
        *[(PROXY, "https", "max-age=86400"), (PROXY, "HTTPS", "max-age=86400"), ("192.0.2.2", "https", None)],
        *[(PROXY, scheme, None) for scheme in ("http", "", "https, http", "evil")],
    ],
)
def test_only_who_came_by_https_is_told_to_keep_to_it(make_app, remote, scheme, told):
    testapp = TestApp(make_app(trusted_proxy=PROXY))

    for path, status in ("/health", 200), ("/nothing", 404):
        headers, environ = {"X-Forwarded-Proto": scheme}, {"REMOTE_ADDR": remote}
        answer = testapp.get(path, headers=headers, extra_environ=environ, status=status)
        assert answer.headers.get("Strict-Transport-Security") == told


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


@pytest.fixture
def open_handed():
    """A system whose new files are everybody's, unless a program says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("cloned", [False, True])
def test_files_are_for_their_owner_only(open_handed, tmp_path, cloned):
    store = sqlite_store(tmp_path)
    if cloned:
        (tmp_path / "dealer.db").write_bytes((HERE / "data.db").read_bytes())
        (tmp_path / "dealer.db").chmod(0o664)
    settings = dealer.Settings(database_url=store.url)
    with closing(dealer.create_app(settings)) as app:
        TestApp(app).post_json("/register", CREDENTIALS, status=201)
        dealer.back_up(settings, tmp_path / "copy.db")

        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes.keys() == {"copy.db", *(f"dealer.db{end}" for end in ("", "-shm", "-wal", ".secret"))}
    assert {*modes.values()} == {0o600}


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602])
def test_key_that_others_can_read_or_write_is_refused(tmp_path, mode):
    url = sqlite_store(tmp_path).url
    (tmp_path / "dealer.db.secret").write_text(SECRET)
    (tmp_path / "dealer.db.secret").chmod(mode)

    child = run(DATABASE_URL=url, PORT="0")

    assert_refusal(child, 2, "JWT_SECRET")
    assert "dealer.db.secret: must be for its owner only" in child.stderr


# ----------------------------------------------------------------------------------------------------------------------
# Backup and schema
# ----------------------------------------------------------------------------------------------------------------------


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


SCHEMAS = {  # what each version of the program began with, and what the next one added, with rows
    1: """
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
INSERT INTO autos VALUES ('BMW', 280, 400, 'Auto Motors', 'Germany')""",
    2: """
ALTER TABLE autos ADD COLUMN version TEXT COLLATE "BINARY" DEFAULT '' NOT NULL;
CREATE INDEX autos_max_speed ON autos (max_speed, mark);
CREATE INDEX autos_max_speed_down ON autos (max_speed DESC, mark);
CREATE INDEX autos_distance ON autos (distance, mark);
CREATE INDEX autos_distance_down ON autos (distance DESC, mark);
CREATE INDEX autos_handler ON autos (handler, mark);
CREATE INDEX autos_handler_down ON autos (handler DESC, mark);
CREATE INDEX autos_stock ON autos (stock, mark);
CREATE INDEX autos_stock_down ON autos (stock DESC, mark);
CREATE TABLE history (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, at TEXT COLLATE "BINARY" NOT NULL,
    "by" TEXT COLLATE "BINARY" NOT NULL, action TEXT COLLATE "BINARY" NOT NULL, mark TEXT COLLATE "BINARY" NOT NULL,
    max_speed INTEGER, distance INTEGER, handler TEXT COLLATE "BINARY", stock TEXT COLLATE "BINARY",
    CONSTRAINT max_speed_range CHECK (max_speed BETWEEN 0 AND 9007199254740991),
    CONSTRAINT distance_range CHECK (distance BETWEEN 0 AND 9007199254740991)
) STRICT;
CREATE INDEX history_mark ON history (mark, id);
INSERT INTO history (at, "by", action, mark, max_speed, distance, handler, stock)
VALUES ('2026-01-31T12:00:00.000000Z', 'alice', 'created', 'BMW', 280, 400, 'Auto Motors', 'Germany')""",
    3: """
CREATE TABLE failures (
    address TEXT COLLATE "BINARY" NOT NULL, name TEXT COLLATE "BINARY" NOT NULL, at INTEGER NOT NULL
) STRICT;
CREATE INDEX failures_address ON failures (address, at);
CREATE INDEX failures_at ON failures (at);
INSERT INTO failures VALUES ('192.0.2.1', 'a hash', 9007199254740991)""",
    4: """
CREATE TABLE registrations (
    address TEXT COLLATE "BINARY" NOT NULL, name TEXT COLLATE "BINARY" NOT NULL, at INTEGER NOT NULL
) STRICT;
CREATE INDEX registrations_address ON registrations (address, at);
CREATE INDEX registrations_at ON registrations (at);
INSERT INTO registrations VALUES ('192.0.2.1', 'a hash', 9007199254740991)""",
    5: """ALTER TABLE users ADD COLUMN role TEXT COLLATE "BINARY" DEFAULT 'editor' NOT NULL""",
}
POSTGRES_WORDS = {
    '"BINARY"': '"C"',
    " WITHOUT ROWID, STRICT": "",
    " STRICT": "",
    " INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT": " BIGSERIAL PRIMARY KEY",
    " INTEGER": " BIGINT",
}
ANEW = "DROP SCHEMA public CASCADE", "CREATE SCHEMA public"


@pytest.fixture
def older_versions(store, tmp_path, account):
    """Give a function that makes a database as a version of the program left it, with an account and a car."""

    def make(version):
        sql = ";\n".join(SCHEMAS[number] for number in range(1, version + 1))
        if store.name == "postgresql":  # there is but one: its tables come back after
            sql = re.sub("|".join(POSTGRES_WORDS), lambda word: POSTGRES_WORDS[word[0]], sql)
            store.execute(*ANEW)
        database = store if store.name == "postgresql" else sqlite_store(tmp_path)
        database.execute(*sql.split(";\n"), f"UPDATE schema_version SET version = {version}")
        roles = () if version < 5 else ("role",)
        database.insert("users", {name: account.row[name] for name in ("username", "password", "session", *roles)})
        return database

    yield make
    if store.name == "postgresql":
        store.execute(*ANEW)
        with open_app(store):
            pass


def test_every_version_of_the_schema_is_tried():
    assert [*SCHEMAS] == [*range(1, dealer.SCHEMA_VERSION + 1)]


@pytest.mark.parametrize("version", SCHEMAS)
def test_older_schema_is_brought_up(older_versions, account, version):
    older = older_versions(version)
    before = older.contents()
    with open_app(older):
        pass  # the second start finds it new
    with open_app(older) as app:
        client = TestApp(app)
        client.authorization = ("Bearer", account.token)
        answer = client.get("/auto/BMW")
        etag = {"If-Match": answer.headers["ETag"]}
        after = older.contents()

        assert_json(answer, 200, {"mark": "BMW", **CAR})
        another_tag = after["autos"][0]["version"] != before["autos"][0].get("version")
        assert another_tag == (version < dealer.SCHEMA_VERSION)
        assert {name: after[name] for name in before.keys() - {"autos", "users"}} == {
            name: rows for name, rows in before.items() if name not in ("autos", "users")
        }
        client.put_json("/auto/BMW", OTHER_CAR, headers=etag, status=202)
        client.put_json("/auto/BMW", CAR, headers=etag, status=412)
        client.post_json("/auth", CREDENTIALS, status=200)
        assert after["users"] == [{**account.row, "role": "editor"}]
        history = [entry["action"] for entry in client.get("/history/BMW").json]
        assert history == ["updated", "created"] if version > 1 else ["updated"]


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


@pytest.mark.parametrize("version", SCHEMAS)
def test_older_schema_becomes_that_of_a_new_database(older_versions, store, version):
    with open_app(store):
        new = definitions(store)
    older = older_versions(version)
    with open_app(older):
        assert definitions(older) == new


@pytest.mark.parametrize(
    ("gone", "back", "lacking"),
    [
        (
            "ALTER TABLE autos RENAME COLUMN handler TO maker",
            "ALTER TABLE autos RENAME COLUMN maker TO handler",
            "autos.handler",
        ),
        ("ALTER TABLE history RENAME TO past", "ALTER TABLE past RENAME TO history", "history.id"),
    ],
    ids=["column", "table"],
)
def test_tables_without_what_is_needed_are_refused_by_name(database, app, gone, back, lacking):
    database.execute(gone)
    try:
        child = run(DATABASE_URL=database.url, JWT_SECRET=SECRET, PORT="0")
    finally:
        database.execute(back)

    assert_refusal(child, 2, "DATABASE_URL")
    assert f"lacks the column {lacking}" in child.stderr


def git(folder, *arguments):
    """Run git in a folder; gives what became of it."""
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True)


@pytest.mark.skipif(not (HERE / ".git").exists(), reason="this is no clone")
def test_used_clone_is_upgraded_as_readme_says(tmp_path):
    upstream, clone = tmp_path / "upstream", tmp_path / "clone"
    git(HERE, "clone", "-q", HERE, upstream)
    git(upstream, "checkout", "-q", "-B", "main")
    git(upstream, "clone", "-q", upstream, clone)
    env = environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    shell = {"cwd": clone, "env": env, "input": "sesame\n", "capture_output": True, "text": True}
    assert subprocess.run([sys.executable, "dealer.py", "adduser", "alice"], **shell).returncode == 0
    with closing(sqlite3.connect(upstream / "data.db")) as newer:
        newer.execute("PRAGMA user_version = 1")
    git(upstream, "commit", "-qam", "Change the database")
    assert "data.db" in git(clone, "pull").stderr

    section = (HERE / "README.md").read_text().partition("**Upgrading.**")[2]
    upgrade = section.partition("```sh\n")[2].partition("```")[0]
    done = subprocess.run(["bash", "-c", upgrade], **shell)

    assert (done.returncode, git(clone, "status", "--porcelain").stdout) == (0, " M data.db\n"), done.stderr
    assert git(clone, "rev-parse", "HEAD").stdout == git(upstream, "rev-parse", "HEAD").stdout
    again = subprocess.run([sys.executable, "dealer.py", "adduser", "alice"], **shell)
    assert_refusal(again, 1, "User already exists")


@pytest.mark.parametrize("mine", ["CREATE TABLE users (id INT)", "CREATE TABLE schema_version (version INT)"])
def test_tables_of_another_program_are_refused(tmp_path, mine):
    store = sqlite_store(tmp_path)
    store.execute(mine)

    assert_refusal(run(DATABASE_URL=store.url, PORT="0"), 2, "DATABASE_URL: holds tables of another program")
    assert store.tables() <= {"users"}


def test_newer_schema_is_refused(database, app):
    database.execute("UPDATE schema_version SET version = version + 1")
    try:
        assert_refusal(run(DATABASE_URL=database.url, JWT_SECRET=SECRET, PORT="0"), 2, "DATABASE_URL")
    finally:
        database.execute("UPDATE schema_version SET version = version - 1")


# ----------------------------------------------------------------------------------------------------------------------
# Log
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
    for part in (token, f"token={token}?", f"x{token}", token.replace(".", "%2E"), token.replace("ey", "%65y")):
        server.request("GET", f"/auto/{part}")
    for authorization in (f"Bearer {token}", f"Bearer {token}x", f"Basic {TYPED}", f"Bearer {TYPED}", token):
        answer = server.request("GET", "/stock", Authorization=authorization, **{"X-Request-ID": token})

    assert lines_of(log, answer)
    assert not [secret for secret in (TYPED, SECRET, *token.split(".")) if secret in log.read_text()]
    assert log.read_text().count("/<token> ") == 4


@pytest.fixture
def refusing(lasting_app, database):
    """A database that takes no account, for a reason that the program does not know."""
    if database.name == "sqlite":
        database.execute("CREATE TRIGGER refusal BEFORE INSERT ON users BEGIN SELECT RAISE(ABORT, 'no'); END")
        yield lasting_app
        database.execute("DROP TRIGGER refusal")
    else:
        database.execute("ALTER TABLE users ADD CONSTRAINT refusal CHECK (false)")
        yield lasting_app
        database.execute("ALTER TABLE users DROP CONSTRAINT refusal")


def test_fault_of_the_database_is_logged_without_values(refusing, caplog):
    TestApp(refusing).post_json("/register", CREDENTIALS, status=500)

    assert "Traceback" in caplog.text
    assert not re.search(f"argon2id|{PASSWORD}|{USERNAME}", caplog.text)


# ----------------------------------------------------------------------------------------------------------------------
# Request ids, and headers of every answer
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
        ("GET", "/", 200, {"Cache-Control": "no-cache"}),
        ("POST", "/auto/%25%20%C5%A0%2Fx", 201, {"Location": "/auto/%25%20%C5%A0%2Fx"}),
        *[(method, "/auto/BMW", 401, {"WWW-Authenticate": BEARER}) for method in ("GET", "PUT", "PATCH")],
        *[("POST", "/logout", 401, {"WWW-Authenticate": BEARER}), ("DELETE", "/account", 401, {})],
        *[("OPTIONS", path, 405, {"Allow": "POST"}) for path in ("/register", "/auth", "/logout")],
        ("OPTIONS", "/auto/x", 405, {"Allow": "DELETE, GET, HEAD, PATCH, POST, PUT"}),
        ("OPTIONS", "/stock", 405, {"Allow": "GET, HEAD, POST, PUT"}),
        ("OPTIONS", "/account", 405, {"Allow": "DELETE, GET, HEAD"}),
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


@pytest.mark.parametrize(
    ("method", "path", "name", "status"),
    [
        *[("GET", "/auto/BMW", "If-None-Match", 200), ("PUT", "/auto/BMW", "If-None-Match", 202)],
        *[("PUT", "/auto/BMW", "If-Match", 412), ("POST", "/auto/Audi", "If-Match", 412)],
        *[("GET", "/stock", name, 200) for name in ("Accept", "Origin", "X-Request-ID", "X-Forwarded-For", "Range")],
        *[("GET", "/docs/swagger-ui.css", name, 200) for name in ("If-None-Match", "If-Modified-Since")],
    ],
)
def test_header_that_is_not_utf8_says_nothing(bmw, method, path, name, status):
    answer = send(bmw, method, path, raw_car() if method != "GET" else b"", **{name: '"\xff"'})

    assert answer.status_int == status
