"""Accounts that end, guessing, and accounts at the console."""

import getpass
import io
import json
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import argon2
import pytest

import dealer
from conftest import (
    CAR,
    CREDENTIALS,
    OTHER_CAR,
    PASSWORD,
    PROGRAM,
    PROXY,
    TYPED,
    USERNAME,
    WRONG,
    Connection,
    TestApp,
    assert_error,
    assert_json,
    assert_refusal,
    environment,
    length,
    request_bytes,
    run,
    send,
    sqlite_store,
    statuses,
    table,
)
from plugins.identity import changes

# ----------------------------------------------------------------------------------------------------------------------
# Registration
# ----------------------------------------------------------------------------------------------------------------------


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


# ----------------------------------------------------------------------------------------------------------------------
# Accounts that end
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


@pytest.fixture
def meanwhile(monkeypatch):
    """Give a function that has something done whenever a password is looked at."""
    verify = argon2.PasswordHasher.verify

    def arrange(act):
        def act_and_verify(*arguments):
            act()
            return verify(*arguments)

        monkeypatch.setattr(argon2.PasswordHasher, "verify", act_and_verify)

    return arrange


@pytest.mark.parametrize(("column", "status"), [("password", 403), ("session", 401)])
@confirmed
def test_account_that_changed_meanwhile_is_left_alone(client, database, meanwhile, method, path, body, column, status):
    def change():
        database.execute(f"UPDATE users SET {column} = 'that of somebody quicker'")
        changed.extend(database.query("SELECT * FROM users"))

    changed = []
    meanwhile(change)

    assert end(client, method, path, body).status_int == status
    assert database.query("SELECT * FROM users") == changed


def test_older_hash_that_was_replaced_meanwhile_is_not_renewed(registered, database, meanwhile):
    weak = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    database.execute("UPDATE users SET password = :weak", weak=weak)
    meanwhile(lambda: database.execute("UPDATE users SET password = 'that of somebody quicker'"))

    registered.post_json("/auth", CREDENTIALS, status="*")

    assert [row["password"] for row in database.query("SELECT * FROM users")] == ["that of somebody quicker"]


# ----------------------------------------------------------------------------------------------------------------------
# Roles
# ----------------------------------------------------------------------------------------------------------------------

CLOSED = sorted(
    (route.method, route.rule.replace(dealer.MARK, "BMW")) for route in dealer.routes.routes if changes(route)
)
BODIES = table(
    (json.dumps(CAR), "application/json"),
    (b"", "application/json"),
    (b"{", "application/json"),
    (b"x", "text/plain"),
    (b"x" * (1 << 21), "application/json"),
)


@pytest.fixture
def reader(bmw, database):
    """A client that may only read, of a server with one car; after the test nothing may have changed."""
    database.execute("UPDATE users SET role = 'reader'")
    before = database.contents()
    yield bmw
    assert database.contents() == before


def test_what_changes_cars_is_closed_to_readers():
    assert {path for _, path in CLOSED} == {"/auto/BMW", "/stock"}
    assert {method for method, _ in CLOSED} == {"POST", "PUT", "PATCH", "DELETE"}


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize(("body", "content_type"), BODIES)
@pytest.mark.parametrize("overriding", [False, True])
def test_reader_changes_nothing_whatever_is_sent(reader, method, path, body, content_type, overriding):
    headers = {"X-HTTP-Method-Override": method} if overriding and method != "POST" else {}

    answer = send(reader, "POST" if headers else method, path, body, content_type, **headers)

    assert_error(answer, 403, "This account may only read")


@pytest.mark.parametrize("path", ["/auto/Audi", "/auto/%00", "/auto/" + "x" * 256])
def test_reader_is_refused_before_the_mark_is_looked_at(reader, path):
    assert_error(reader.delete(path, status=403), 403, "This account may only read")


@pytest.mark.parametrize("path", ["/auto/BMW", "/stock", "/history", "/history/BMW", "/account"])
def test_reader_reads(reader, path):
    reader.get(path, status=200)


@ending
def test_reader_ends_its_own_account(client, database, method, path, body):
    database.execute("UPDATE users SET role = 'reader'")

    assert end(client, method, path, body).status_int == 202


@pytest.mark.parametrize(("registration", "role"), [("open", "editor"), ("readers", "reader")])
def test_who_registers_has_the_role_of_the_settings(make_app, registration, role):
    testapp = TestApp(make_app(registration=registration))
    testapp.post_json("/register", CREDENTIALS, status=201)
    testapp.authorization = ("Bearer", testapp.post_json("/auth", CREDENTIALS).json["access_token"])

    assert_json(testapp.get("/account"), 200, {"username": USERNAME, "role": role})
    testapp.post_json("/auto/BMW", CAR, status=201 if role == "editor" else 403)


def test_editor_made_a_reader_during_an_upload_stores_nothing(server, database):
    body = json.dumps([{"mark": f"BMW {number}", **CAR} for number in range(1000)]).encode()
    sent = request_bytes("POST", "/stock", body, server.token, Content_Type="application/json")
    with Connection(server.port) as connection:
        connection.send(sent[:-1000])
        child = run("role", USERNAME, "reader", DATABASE_URL=database.url)
        connection.send(sent[-1000:])
        answer = connection.answer()

    assert child.returncode == 0
    assert (answer.status, json.loads(answer.body)) == (403, {"Error": "This account may only read"})
    assert database.query("SELECT * FROM autos") == []


# ----------------------------------------------------------------------------------------------------------------------
# Guessing
# ----------------------------------------------------------------------------------------------------------------------

TOO_MANY = "Too many attempts. Try again later"


def guess(client, username=USERNAME, password="wrong", address="127.0.0.1", **environ):
    """Try to log in."""
    credentials = {"username": username, "password": password}
    return client.post_json("/auth", credentials, extra_environ={"REMOTE_ADDR": address, **environ}, status="*")


def failures(database):
    """Give the failed logins that are stored."""
    return database.query("SELECT * FROM failures")


def fail(client, database, times, username=USERNAME, address="127.0.0.1"):
    """Fail to log in once, and have that stored as often as is said, since each password takes its time."""
    before = failures(database)
    assert guess(client, username, address=address).status_int == 401
    (row,) = [row for row in failures(database) if row not in before]
    repeat(database, "failures", row, times)


def repeat(database, table, row, times):
    """Have what counts stored as often as is said."""
    for number in range(1, times):
        database.insert(table, {**row, "at": row["at"] - number})


def let_pass(database, seconds, table="failures"):
    """Make what is stored older."""
    database.execute(f"UPDATE {table} SET at = at - :passed", passed=seconds * 1000)


def test_eleventh_failed_login_is_429(registered):
    assert statuses(guess(registered) for _ in range(10)) == [401] * 10

    answer = guess(registered)

    assert_error(answer, 429, TOO_MANY)
    assert 290 <= int(answer.headers["Retry-After"]) <= 300


@pytest.fixture
def looked_at(monkeypatch):
    """The hashes that a password was compared with."""
    hashes, verify = [], argon2.PasswordHasher.verify

    def record(hasher, stored, password):
        hashes.append(stored)
        return verify(hasher, stored, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", record)
    return hashes


@pytest.mark.parametrize(("username", "password"), [(USERNAME, PASSWORD), (USERNAME, "wrong"), ("nobody", "wrong")])
def test_password_is_not_looked_at_after_ten(registered, database, looked_at, username, password):
    fail(registered, database, 10, username)
    assert len(looked_at) == 1

    answers = [guess(registered, username, password) for _ in range(3)]

    assert statuses(answers) == [429] * 3
    assert len(looked_at) == 1
    assert len(failures(database)) == 10


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


NEIGHBOURS = [  # and whether they count as one
    ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
    ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
    ("192.0.2.11", "::ffff:192.0.2.11", True),
    ("::ffff:192.0.2.11", "::ffff:192.0.2.12", False),
    ("192.0.2.11", "192.0.2.12", False),
]
neighbours = pytest.mark.parametrize(("first", "second", "one"), NEIGHBOURS)


@neighbours
def test_failures_count_by_network(registered, database, first, second, one):
    fail(registered, database, 10, address=first)

    assert guess(registered, USERNAME, PASSWORD, second).status_int == (429 if one else 200)


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


def test_right_password_is_not_told_when_others_failed_meanwhile(registered, database, meanwhile):
    fail(registered, database, 10)
    rows = failures(database)
    database.execute("DELETE FROM failures")
    meanwhile(lambda: [database.insert("failures", row) for row in rows])

    answer = guess(registered, USERNAME, PASSWORD)

    assert len(failures(database)) == 10
    assert_error(answer, 429, TOO_MANY)


@pytest.mark.parametrize(
    ("path", "status", "meanwhile"),
    [
        ("/auth", 401, ("GET", "/health")),
        ("/auth", 401, ("POST", "/register", {"username": "bob", "password": "x"})),
        ("/register", 201, ("POST", "/auth", CREDENTIALS)),
    ],
    ids=["logins, anything", "logins, a registration", "registrations, a login"],
)
def test_many_who_have_to_wait_keep_nobody_else_waiting(server, path, status, meanwhile):
    with ThreadPoolExecutor(16) as pool:
        names = [{"username": f"name {number}", "password": "x"} for number in range(16)]
        hashed = [pool.submit(server.request, "POST", path, name) for name in names]
        while not any(each.done() for each in hashed):
            time.sleep(0.001)
        server.request(*meanwhile)
        done = sum(each.done() for each in hashed)

    assert done < 12
    assert statuses(each.result() for each in hashed) == [status] * 16


def test_wrong_password_and_unknown_name_cost_the_same(registered, looked_at):
    guess(registered, USERNAME)
    guess(registered, "nobody")

    known, unknown = map(argon2.extract_parameters, looked_at)
    assert known == unknown


# ----------------------------------------------------------------------------------------------------------------------
# Registering without end
# ----------------------------------------------------------------------------------------------------------------------


def register(client, username="bob", password="x", address="127.0.0.1", **environ):
    """Try to register."""
    credentials = {"username": username, "password": password}
    return client.post_json("/register", credentials, extra_environ={"REMOTE_ADDR": address, **environ}, status="*")


def registrations(database):
    """Give the registrations that are stored."""
    return database.query("SELECT * FROM registrations")


def register_often(client, database, times, address="127.0.0.1"):
    """Ask for a taken name, and have that stored as often as is said."""
    assert register(client, USERNAME, address=address).status_int == 400
    repeat(database, "registrations", *registrations(database), times)


def test_taken_name_is_told_without_hashing(registered, monkeypatch):
    monkeypatch.delattr(argon2.PasswordHasher, "hash")

    assert_error(register(registered, USERNAME), 400, "User already exists")


@pytest.mark.parametrize("username", [USERNAME, "bob"])
def test_hundred_and_first_registration_is_429(registered, database, username):
    register_often(registered, database, 99)
    assert register(registered, "carol").status_int == 201

    answer = register(registered, username)

    assert_error(answer, 429, TOO_MANY)
    assert 290 <= int(answer.headers["Retry-After"]) <= 300
    assert len(registrations(database)) == 100


@pytest.mark.parametrize(
    ("environ", "password", "status"),
    [({}, "", 400), ({"server.error": (503, "Too many registrations wait. Try again later")}, "x", 503)],
)
def test_what_is_refused_for_itself_is_no_registration(registered, database, environ, password, status):
    assert register(registered, password=password, **environ).status_int == status

    assert registrations(database) == []


@pytest.mark.parametrize(("seconds", "status"), [(295, 429), (301, 201)])
def test_registrations_count_for_five_minutes(registered, database, seconds, status):
    register_often(registered, database, 100)
    let_pass(database, seconds, "registrations")

    assert register(registered).status_int == status
    assert len(registrations(database)) == (100 if status == 429 else 1)


@neighbours
def test_registrations_count_by_network(registered, database, first, second, one):
    register_often(registered, database, 100, first)

    assert register(registered, address=second).status_int == (429 if one else 201)


def test_registrations_and_failed_logins_count_apart(registered, database):
    register_often(registered, database, 100)
    assert guess(registered, password=PASSWORD).status_int == 200

    database.execute("DELETE FROM registrations")
    fail(registered, database, 100)
    assert register(registered).status_int == 201


def test_simultaneous_registrations_in_two_processes_are_a_hundred(server, lasting_app, database):
    register_often(TestApp(lasting_app), database, 98)

    def attempt(number):
        barrier.wait()
        body = {"username": f"name {number}", "password": "x"}
        return server.request("POST", "/register", body) if number % 2 else register(TestApp(lasting_app), **body)

    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(8)))

    assert statuses(answers) == [201] * 2 + [429] * 6
    assert len(database.query("SELECT * FROM users WHERE username LIKE 'name%'")) == 2


# ----------------------------------------------------------------------------------------------------------------------
# At the console
# ----------------------------------------------------------------------------------------------------------------------


def test_adduser_reads_the_password_from_a_pipe(registered, database):
    child = run("adduser", "Вася", text=" pass word \r\n", DATABASE_URL=database.url, REGISTRATION="closed")

    assert (child.returncode, child.stdout) == (0, "User created: Вася\n")
    registered.post_json("/auth", {"username": "Вася", "password": " pass word "}, status=200)


@pytest.mark.parametrize(
    ("username", "text", "said"),
    [
        (USERNAME, "another\n", "User already exists"),
        *[(" bob", "sesame\n", "username"), ("a\tb", "sesame\n", "username"), ("x" * 81, "sesame\n", "username")],
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


class Ending(io.BytesIO):
    """A body that takes so long to come that its account is deleted meanwhile."""

    def read(self, *size):
        self.database.execute("DELETE FROM users")
        return super().read(*size)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/stock", [{"mark": "Audi", **CAR}]),
        ("PUT", "/stock", [{"mark": "Audi", **CAR}]),
        ("PUT", "/auto/BMW", OTHER_CAR),
        ("POST", "/auto/Audi", CAR),
        ("POST", "/auto/Audi", {}),
        ("PUT", "/account/password", {"password": PASSWORD, "new_password": "new"}),
    ],
)
def test_request_whose_account_ended_on_the_way_changes_nothing(bmw, database, method, path, body):
    before = database.contents()
    data = json.dumps(body).encode()
    stream = Ending(data)
    stream.database = database
    environ = {"wsgi.input": stream, "CONTENT_LENGTH": str(len(data)), "CONTENT_TYPE": "application/json"}

    answer = bmw.request(path, method=method, environ=environ, status=401)

    assert_error(answer, 401, "Token is invalid or expired")
    assert database.contents() == before | {"users": []}


CONSOLE = table(
    ("passwd, a new one", ["passwd", USERNAME], "sesame\n", 0, f"Password changed: {USERNAME}\n"),
    ("role", ["role", USERNAME, "reader"], "", 0, f"Role changed to reader: {USERNAME}\n"),
    ("deluser", ["deluser", USERNAME], "", 0, f"User deleted: {USERNAME}\n"),
    ("adduser, a reader", ["adduser", "e\u0301 x", "--role", "reader"], "sesame\n", 0, "User created: \xe9 x\n"),
    ("adduser, like an option", ["adduser", "--", "-x"], "sesame\n", 0, "User created: -x\n"),
    ("passwd, too short", ["passwd", USERNAME], "abc\n", 1, "password"),
    ("passwd, unknown", ["passwd", "nobody"], "sesame\n", 1, "No user has that name"),
    ("role, unknown user", ["role", "nobody", "reader"], "", 1, "No user has that name"),
    ("role, unknown role", ["role", USERNAME, "owner"], "", 1, "role"),
    ("adduser, unknown role", ["adduser", "bob", "--role", "owner"], "sesame\n", 1, "role"),
    ("deluser, unknown", ["deluser", "nobody"], "", 1, "No user has that name"),
    ("deluser, no name", ["deluser", "a\tb"], "", 1, "username"),
)


@pytest.mark.parametrize(("what", "arguments", "text", "code", "said"), CONSOLE)
def test_command_says_what_it_did_and_logs_it(client, database, what, arguments, text, code, said):
    before = database.contents()

    child = run(*arguments, text=text, DATABASE_URL=database.url, PASSWORD_MIN="6")

    if code:
        assert_refusal(child, code, said)
        assert database.contents() == before
    else:
        assert (child.returncode, child.stdout) == (0, said)
        act, _, name = said.strip().partition(": ")
        line = f" INFO {act} by {getpass.getuser()} at the console: {quote(name, safe='@')}\n"
        assert child.stderr.count("\n") == 1
        assert child.stderr.endswith(line)
        assert database.contents() != before


@pytest.mark.parametrize(
    ("arguments", "text", "status"),
    [
        (["passwd", USERNAME], "sesame\n", 401),
        (["role", USERNAME, "reader"], "", 403),
        (["deluser", USERNAME], "", 401),
    ],
)
def test_command_holds_in_every_process_at_the_next_request(server, lasting_app, database, arguments, text, status):
    testapp = TestApp(lasting_app)
    testapp.authorization = ("Bearer", server.token)
    before = [testapp.get("/stock", status="*"), server.request("GET", "/stock")]

    child = run(*arguments, text=text, DATABASE_URL=database.url)

    after = [testapp.delete("/auto/BMW", status="*"), server.request("DELETE", "/auto/BMW")]
    assert (child.returncode, statuses(before), statuses(after)) == (0, [400, 400], [status, status])


def test_users_are_a_line_each_for_people_and_programs(database, account):
    database.insert("users", {**account.row, "username": "two words", "role": "reader"})
    database.insert("users", account.row)

    child = run("users", DATABASE_URL=database.url)

    assert (child.returncode, child.stderr) == (0, "")
    assert child.stdout.splitlines() == sorted([f"{USERNAME}\teditor", "two words\treader"])
