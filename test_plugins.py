"""The plugins by themselves, each in an application of its own."""

import io
import json
import logging
import re
import secrets
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import bottle
import dataset
import pytest
from bottle import Bottle, HTTPError, PluginError

from conftest import MIB, NO_OBJECT, NUMBER, SECRET, TestApp, assert_headers, length, send
from plugins.access import AccessPlugin
from plugins.answers import Answer, AnswersPlugin
from plugins.bodies import BodiesPlugin, Number, Record, Text
from plugins.identity import IdentityPlugin, MayOnlyRead
from plugins.storage import SHAPES, Database, StoragePlugin

# ----------------------------------------------------------------------------------------------------------------------
# Access
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
# Answers
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
# Storage
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


@pytest.mark.parametrize("read_on", [True, False])
def test_storage_ends_an_answer_in_parts_wherever_it_is(storing, db, read_on):
    ended = []

    @storing.get("/")
    def read(db, ended=ended):
        try:
            for row in db.query("SELECT 1 AS number UNION SELECT 2 UNION SELECT 3"):
                yield b"%d" % row["number"]
        finally:
            ended.append(True)

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr}
    parts = storing(environ, lambda *_: None)
    whole = b"".join(parts) if read_on else next(iter(parts))
    assert db.engine.pool.checkedout() == 1
    parts.close()

    assert whole == (b"123" if read_on else b"1")
    assert ended == [True]
    assert db.engine.pool.checkedout() == 0


def test_storage_lets_nobody_write_who_reads(storing, database):
    if database.name == "sqlite":
        pytest.skip("SQLite knows no transactions that only read")

    @storing.get("/")
    def write_in_a_request_that_reads(db):
        write_note(db)

    TestApp(storing).get("/", status=500)

    assert notes(database) == []


@pytest.mark.parametrize(
    "write",
    [
        lambda db, text: db["notes"].insert({"text": text}),
        lambda db, text: db.query("INSERT INTO notes VALUES (:text)", text=text),
    ],
    ids=["table", "query"],
)
def test_storage_keeps_values_from_the_log(storing, caplog, write):
    value = secrets.token_hex()  # which no line of a program repeats

    @storing.post("/")
    def write_twice(db, write=write, value=value):
        write(db, value)
        write(db, value)

    TestApp(storing).post("/", status=500)

    assert "Traceback" in caplog.text
    assert value not in caplog.text


def test_storage_gives_what_was_made_of_the_database(plain, db):
    plain.install(AnswersPlugin())
    plain.install(StoragePlugin(db, notes="resource"))
    plain.get("/", callback=lambda notes: {"notes": notes})

    assert TestApp(plain).get("/").json == {"notes": "resource"}


def test_second_storage_plugin_is_refused(storing, db):
    with pytest.raises(PluginError):
        storing.install(StoragePlugin(db))


def test_storage_looks_first_at_what_is_expected(storing, database):
    def refuse():
        raise HTTPError(401, "Nobody")

    @storing.post("/<kind>")
    def write(kind, db, refuse=refuse):
        db.expect(refuse, "notes", text="nobody")
        if kind == "refused":
            raise HTTPError(400, "No")
        if kind == "written":
            write_note(db)
        with db.writing(single=True):
            changes = {
                "insert": lambda notes: notes.insert({"text": "x"}),
                "update": lambda notes: notes.update({"text": "x", "kind": 1}, ["kind"]),
                "delete": lambda notes: notes.delete(),
                "find": lambda notes: notes.find_one(),
            }
            changes.get(kind, bool)(db["notes"])
        return {}

    for kind in ("written", "refused", "nothing", "insert", "update", "delete", "find"):
        assert TestApp(storing).post(f"/{kind}", status=401).json == {"Error": "Nobody"}
    assert notes(database) == []


@pytest.mark.parametrize("single", [False, True])
def test_statement_that_finds_what_is_expected_does_its_work(db, database, single):
    database.insert("notes", {"text": "alice"})

    def refuse():
        raise AssertionError

    db.expect(refuse, "notes", text="alice")
    with db.writing(single):
        added = db["notes"].insert({"text": "x"})
    with db.reading(single):
        found, nothing = db["notes"].find_one(text="x"), db["notes"].find_one(text="y")
    with db.reading(single):
        count = db["notes"].count()
    with db.writing(single):
        changed = db["notes"].update({"text": "x"}, ["text"], text={"!=": "x"}), db["notes"].delete(text="x")
    db.settle()

    assert (added, found, nothing, count, changed) == ("x", {"text": "x"}, None, 2, (0, True))
    assert notes(database) == ["alice"]


def test_what_is_expected_stays_so_until_a_writer_has_ended(db, database):
    if database.name == "sqlite":
        pytest.skip("SQLite has one writer")
    database.insert("notes", {"text": "alice"})
    db.expect(pytest.fail, "notes", text="alice")

    with db.writing():
        db["notes"].find_one()
        with pytest.raises(Exception, match="lock timeout"):
            database.execute("SET LOCAL lock_timeout = 50", "DELETE FROM notes")
    db.settle()

    assert notes(database) == ["alice"]


def test_writing_inside_reading_is_refused(db):
    with db.reading(), pytest.raises(RuntimeError), db.writing():
        pass


def test_statement_outside_a_transaction_is_refused(db):
    with pytest.raises(RuntimeError):
        db["notes"].find_one()


def test_storage_out_of_reach_is_503(plain, tmp_path):
    plain.install(AnswersPlugin())
    plain.get("/", callback=lambda db: list(db.query("SELECT 1")))
    with closing(Database(f"sqlite:///{tmp_path}/nowhere/x.db")) as db:
        plain.install(StoragePlugin(db))

        answer = TestApp(plain).get("/", status=503)

    assert answer.json == {"Error": "Database is not available. Try again later"}
    assert answer.headers["Retry-After"].isdigit()


# ----------------------------------------------------------------------------------------------------------------------
# Tables, beside those of dataset itself
# ----------------------------------------------------------------------------------------------------------------------

TOWNS = [
    {"name": "Łódź", "country": "Poland", "people": 660},
    {"name": "lund", "country": "Sweden", "people": 94},
    {"name": "Lund", "country": "Denmark", "people": 94},
    {"name": "Graz", "country": "Austria", "people": 305},
    {"name": "50% off_", "country": None, "people": 0},
]


@pytest.fixture
def towns(database):
    """Two databases of the same kind with the same rows: ours, and dataset's own."""
    database.execute("CREATE TABLE towns (name TEXT PRIMARY KEY, country TEXT, people BIGINT)")
    for town in TOWNS:
        database.insert("towns", town)
    with (
        closing(Database(database.url)) as ours,
        closing(dataset.connect(database.url, ensure_schema=False, row_type=dict)) as theirs,
    ):
        yield ours, theirs
    database.execute("DROP TABLE towns")


def both(towns, verb, *args, **filters):
    """Give what a verb gives on our table and on dataset's, and the rows there are then; nothing stays changed."""
    ours, theirs = towns
    results = []
    for db, transaction in ((ours, ours.writing()), (theirs, theirs)):
        with suppress(Undo), transaction:
            result = getattr(db["towns"], verb)(*args, **filters)
            result = result if isinstance(result, int | str | dict | None) else list(result)
            results.append((result, list(db["towns"].find(order_by="name"))))
            raise Undo
    return results


class Undo(Exception):
    """Ends a transaction without its changes."""


NEW, KNOWN = {"name": "Kiel", "country": "Germany", "people": 247}, {**TOWNS[0], "people": 661}


@pytest.mark.parametrize(
    ("verb", "args", "filters"),
    [
        *(
            (verb, (), filters)
            for verb in ("find", "find_one", "count")
            for filters in (
                {},
                {"name": "Lund"},
                {"NAME": "Lund"},
                {"country": None},
                {"country": {"!=": None}},
                {"name": ["Lund", "Graz", "Rome"]},
                {"name": []},
                {"people": {"in": (94, 305)}},
                {"people": {"notin": {94, 305}}},
                {"people": {">": 94, "<=": 305}},
                {"people": {"gte": 94, "lt": 305, "not": 100}},
                {"people": {"between": [94, 305]}},
                {"name": {"like": "L%"}, "country": "Denmark"},
                {"name": {"notlike": "L%"}},
                {"name": {"startswith": "50%"}},
                {"name": {"endswith": "off_"}},
                {"river": "Oder"},
                {"people": {"beside": 1}},
            )
        ),
        ("find", (), {"order_by": ["-people", "name"], "_limit": 2}),
        ("find", (), {"order_by": "name", "_limit": 2, "_offset": 1}),
        ("find", (), {"order_by": ["river", "-name"], "_limit": 9}),
        ("find", (), {"order_by": "name", "_streamed": True, "_step": 2}),
        ("insert", (NEW,), {}),
        ("insert", ({**NEW, "river": "Eider"},), {}),
        ("insert_ignore", (NEW, ["name"]), {}),
        ("insert_ignore", (KNOWN, ["name"]), {}),
        ("insert_many", ([NEW, {"name": "Rome"}],), {}),
        ("insert_many", ([],), {}),
        ("upsert_many", ([NEW, KNOWN], ["name"]), {}),
        ("update", (KNOWN, ["name"]), {}),
        ("update", ({"people": 94, "country": "Both"}, "people"), {}),
        ("update", (NEW, ["name", "people"]), {}),
        ("delete", (), {"name": "Graz"}),
        ("delete", (), {"name": "Rome"}),
        ("delete", (), {}),
    ],
)
def test_verb_gives_what_dataset_gives(towns, verb, args, filters):
    ours, theirs = both(towns, verb, *args, **filters)

    assert ours == theirs


@pytest.mark.parametrize("row", [NEW, KNOWN])
def test_upsert_does_what_dataset_does_and_gives_the_key(towns, row):
    (result, ours), (_, theirs) = both(towns, "upsert", row, ["name"])

    assert (result, ours) == (row["name"], theirs)


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"name": {"startswith": "L"}}, ["Lund"]),
        ({"name": {"startswith": "Ł"}}, ["Łódź"]),
        ({"name": {"contains": "ŁÓ"}}, ["Łódź"]),
        ({"name": {"contains": "% OFF_"}}, ["50% off_"]),
        ({"name|country": {"contains": "den"}}, ["Lund", "lund"]),
        ({"order_by": ["people", "name"], "_after": [94, "Lund"]}, ["lund", "Graz", "Łódź"]),
        ({"order_by": ["-people", "name"], "_after": [305, "Graz"], "_limit": 2}, ["Lund", "lund"]),
        ({"order_by": "name", "_after": ["Lund"], "_columns": ["name"]}, ["lund", "Łódź"]),
    ],
)
def test_find_knows_what_dataset_does_not(towns, filters, names):
    ours, _ = towns
    with ours.reading():
        found = [row["name"] for row in ours["towns"].find(**{"order_by": "name", **filters})]

    assert found == names


def test_rows_as_one_text_of_json(towns):
    ours, _ = towns
    with ours.reading():
        text = ours["towns"].json(order_by="name", _columns=["people", "name"], people={">": 94})
        nothing = ours["towns"].json(people=-1)

    assert json.loads(text) == [{"people": 305, "name": "Graz"}, {"people": 660, "name": "Łódź"}]
    assert json.loads(nothing) == []


def test_shapes_of_statements_are_kept_up_to_a_bound(towns):
    ours, _ = towns
    with ours.reading():
        for number in range(SHAPES + 9):
            ours["towns"].count(**{f"x{number}": 1})

    assert ours["towns"]._compiled.cache_info().currsize == SHAPES


# ----------------------------------------------------------------------------------------------------------------------
# Identity
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def identifying(plain):
    """An application that knows Alice."""
    plain.install(AnswersPlugin())
    plugin = IdentityPlugin(
        SECRET, ttl=60, confirm=lambda claims, _, refuse: claims["sub"] != "mallory" or refuse(None)
    )
    plain.install(plugin)
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


@pytest.mark.parametrize(
    ("method", "declared", "status"),
    [
        *[(method, {}, 403) for method in ("POST", "PUT", "PATCH", "DELETE", "SELL")],
        *[(method, {"readers": True}, 200) for method in ("POST", "PUT", "PATCH", "DELETE", "SELL")],
        *[("GET", {}, 200), ("HEAD", {}, 200), ("POST", {"public": True}, 200)],
    ],
)
@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_identity_closes_to_readers_what_changes_unless_told(plain, method, declared, status):
    plugin = IdentityPlugin(SECRET, 60, lambda claims, changing, refuse: changing and refuse({"role": "reader"}))
    plain.install(AnswersPlugin({MayOnlyRead: Answer(403, {"Error": "Read only"})}))
    plain.install(plugin)
    plain.route("/new", method.replace("HEAD", "GET"), nothing, **declared)

    answer = TestApp(plain).request(
        "/new", method=method, headers={"Authorization": "Bearer " + plugin.make("alice")}, status="*"
    )

    assert answer.status_int == status


def test_identity_is_confirmed_each_time(plain):
    known = {"alice"}
    plugin = IdentityPlugin(SECRET, ttl=60, confirm=lambda claims, _, refuse: claims["sub"] in known or refuse(None))
    plain.install(plugin)
    plain.get("/", callback=lambda: "hello")
    testapp = TestApp(plain)
    testapp.authorization = ("Bearer", plugin.make("alice"))
    testapp.get("/", status=200)

    known.clear()

    testapp.get("/", status=401)


def test_public_route_that_asks_for_identity_is_refused(plain):
    plain.install(IdentityPlugin(SECRET, ttl=60, confirm=lambda *given: None))
    plain.get("/", callback=lambda identity: identity, public=True)

    with pytest.raises(PluginError):
        plain.routes[0].prepare()


def test_identity_remembers_no_more_than_some_tokens():
    plugin = IdentityPlugin(SECRET, ttl=60, confirm=None)

    def memory_after(subjects):
        for subject in subjects:
            plugin.identify({"HTTP_AUTHORIZATION": "Bearer " + plugin.make(f"{subject:04000}")})
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = memory_after(range(1100))
        grown = memory_after(range(1100, 2200)) - before
    finally:
        tracemalloc.stop()

    assert grown < MIB, "for 1,100 tokens of 5 KiB"


def test_second_identity_plugin_is_refused(plain):
    plain.install(IdentityPlugin(SECRET, ttl=60, confirm=lambda *given: None))

    with pytest.raises(PluginError):
        plain.install(IdentityPlugin(SECRET, ttl=60, confirm=lambda *given: None))


# ----------------------------------------------------------------------------------------------------------------------
# Bodies
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
