"""A car dealer's stock over HTTP with JSON: register, log in, and look up, add, change and remove cars by their mark.

``python dealer.py`` serves it on SQLite; ``DATABASE_URL`` puts it on PostgreSQL. Importing this module opens nothing:
`create_app` builds the application. In reading order: settings, values, schema, storage, answers, routes, application,
command line.
"""

import argparse
import csv
import dataclasses
import io
import logging
import os
import re
import secrets
import sys
import time
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from urllib.parse import quote, urlencode

import argon2
import mimeparse
from bottle import Bottle, HTTPError, request, response
from msgspec import structs
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    MetaData,
    Table,
    bindparam,
    cast,
    exc,
    func,
    literal_column,
    select,
)
from sqlalchemy import Text as TextColumn
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url

from plugins.access import AccessPlugin
from plugins.answers import JSON, Answer, AnswersPlugin
from plugins.bodies import MAX_INTEGER, BodiesPlugin, Number, Password, Record, Text, fields, given, integers, partial
from plugins.identity import IdentityPlugin
from plugins.listings import MAX_LIMIT, Listing, folded, read_integer, read_parameters, refuse_others
from plugins.methods import MethodsPlugin
from plugins.server import Lane, serve
from plugins.storage import Database, StoragePlugin
from plugins.uploads import Upload

ENTITY_TAG = re.compile(r'(W/)?"([^"]*)"')
HERE = Path(__file__).resolve().parent

# ----------------------------------------------------------------------------------------------------------------------
# Settings
# ----------------------------------------------------------------------------------------------------------------------


class SettingError(Exception):
    """A setting that cannot work; its text is one line that names it."""


def integer(low, high):
    """Give a parser of whole numbers from `low` to `high`."""

    def parse(text):
        if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def one_of(*choices):
    """Give a parser that takes one of a few words."""

    def parse(text):
        if text not in choices:
            raise ValueError("must be one of " + ", ".join(choices))
        return text

    return parse


def database_url(text):
    """Give the SQLAlchemy URL, with its driver, of the databases that are supported."""
    scheme, _, rest = text.partition("://")
    if scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        text = "postgresql+psycopg://" + rest
    elif scheme != "sqlite" or not rest.strip("/") or rest.startswith("/:memory:"):
        raise ValueError("must be sqlite:///file or postgresql://user:password@host/database")
    try:
        make_url(text)
    except (exc.ArgumentError, ValueError):
        raise ValueError("cannot be read as a URL") from None
    return text


def secret(text):
    """Give a secret that is long enough for HS256 (RFC 7518, section 3.2)."""
    if len(text.encode()) < 32:
        raise ValueError("must be at least 32 bytes")
    return text


def setting(default, parse, help):
    """Give a field of `Settings` with all that the environment, the options and their help need."""
    return dataclasses.field(default=default, metadata={"parse": parse, "help": help})


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set, from the environment (``JWT_TTL``) or by options (``--jwt-ttl``), which override it."""

    host: str = setting("127.0.0.1", str, "address to listen on")
    port: int = setting(8080, integer(0, 65535), "port to listen on")
    database_url: str = setting(f"sqlite:///{HERE / 'data.db'}", database_url, "SQLite or PostgreSQL")
    jwt_secret: str = setting(None, secret, "key that signs tokens, at least 32 bytes")
    jwt_ttl: int = setting(3600, integer(1, 10**9), "seconds a token lives")
    threads: int = setting(4, integer(1, 256), "waitress threads")
    log_level: str = setting("INFO", one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), "least level logged")

    @classmethod
    def load(cls, given):
        """Give the settings of a mapping from names to texts; raises `SettingError` for the first that cannot work."""
        values = {}
        for option in dataclasses.fields(cls):
            text = given.get(option.name.upper())
            if text:
                try:
                    values[option.name] = option.metadata["parse"](text)
                except ValueError as error:
                    raise SettingError(f"{option.name.upper()}: {error}") from None
        return cls(**values)


def signing_key(settings, url):
    """Give the key that signs tokens: the one that was set, or for SQLite one made at random beside the database.

    The file is linked into place whole, so that of two processes that start at once both use the same key.
    """
    if settings.jwt_secret:
        return settings.jwt_secret
    if not url.drivername.startswith("sqlite"):
        raise SettingError("JWT_SECRET: must be given with PostgreSQL")
    path = Path(url.database + ".secret")
    if not path.exists():
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    try:
        return secret(path.read_text().strip())
    except ValueError as error:
        raise SettingError(f"JWT_SECRET: in {path.name} {error}") from None


# ----------------------------------------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------------------------------------

Mark = Text(255, refuse=(".", ".."))  # the two names that clients fold away from a path


class Car(Record):
    """A car in stock; its mark is what it is known by."""

    mark: Mark
    max_speed: Number
    distance: Number
    handler: Text(255)
    stock: Text(255)


Changes = partial("Changes", Car, key="mark")


class Inventory(Upload):
    """Cars by their marks, as a JSON array or CSV."""

    record, key = Car, "mark"


class Credentials(Record):
    """Who registers or logs in."""

    username: Text(80)
    password: Password(1024)


# ----------------------------------------------------------------------------------------------------------------------
# Schema
# ----------------------------------------------------------------------------------------------------------------------

SCHEMA_VERSION = 2

metadata = MetaData()


def column(name, type, **options):
    """Give the column that stores a field: 64-bit integers, and text that compares and sorts by code point."""
    text = TextColumn(collation="C").with_variant(TextColumn(collation="BINARY"), "sqlite")
    kind = text if type is str else BigInteger().with_variant(Integer, "sqlite")
    return Column(name, kind, **{"nullable": False, **options})


def columns_of(record, key=None, nullable=False):
    """Give a column for each field of a record, and the checks that hold in the database what the record holds."""
    for name in fields(record):
        number = name in integers(record)
        yield column(name, int if number else str, primary_key=name == key, nullable=nullable and name != "mark")
        if number:
            yield CheckConstraint(f"{name} BETWEEN 0 AND {MAX_INTEGER}", name=f"{name}_range")


versions_table = Table("schema_version", metadata, column("version", int), sqlite_strict=True)

users_table = Table(
    "users",
    metadata,
    column("username", str, primary_key=True),
    column("password", str),  # an Argon2 hash
    column("session", str),  # random; every token names the one it was made in
    sqlite_strict=True,
)

autos_table = Table(
    "autos",
    metadata,
    *columns_of(Car, key="mark"),
    column("version", str, server_default=""),  # random, and another one after every change
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
for name in fields(Car):
    if name != "mark":  # both directions, since ties are settled by mark, which goes up in either
        Index(f"autos_{name}", autos_table.c[name], autos_table.c.mark)
        Index(f"autos_{name}_down", autos_table.c[name].desc(), autos_table.c.mark)

HISTORY_FIELDS = ("at", "by", "action", *fields(Car))

history_table = Table(
    "history",
    metadata,
    column("id", int, primary_key=True),
    column("at", str),
    column("by", str),
    column("action", str),
    *columns_of(Car, nullable=True),
    Index("history_mark", "mark", "id"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)


def open_schema(db):
    """Create the tables that are missing and bring older ones up; raises `SettingError` where that cannot be done."""
    with db.writing():
        known = set(db.tables)
        version = db[versions_table.name].find_one()["version"] if versions_table.name in known else 0
        if version > SCHEMA_VERSION:
            raise SettingError(f"DATABASE_URL: has schema version {version}, this program knows {SCHEMA_VERSION}")
        if not version and known & metadata.tables.keys():
            raise SettingError("DATABASE_URL: holds tables of another program")
        if version < SCHEMA_VERSION:
            bring_up(db, version)


def bring_up(db, version):
    """Change the schema from an older version, 0 for an empty database, to `SCHEMA_VERSION`."""
    if version == 1:
        db.query("ALTER TABLE autos ADD COLUMN version TEXT NOT NULL DEFAULT ''")
    metadata.create_all(db.executable)
    for index in autos_table.indexes:
        index.create(db.executable, checkfirst=True)
    db.query(versions_table.delete())
    db.query(versions_table.insert(), version=SCHEMA_VERSION)


# ----------------------------------------------------------------------------------------------------------------------
# Storage
# ----------------------------------------------------------------------------------------------------------------------


def insert_new(db, table):
    """Give the statement that inserts a row unless its key is taken, and returns it only where it went in."""
    return db.prepare(insert_for(db)(table).on_conflict_do_nothing().returning(*table.primary_key))


def insert_for(db):
    """Give the function that makes the database's own kind of INSERT."""
    return (sqlite if db.is_sqlite else postgresql).insert


class Users:
    """The accounts. No transaction is open for the 30 ms that a hash takes."""

    def __init__(self, db):
        self.db = db
        self.hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)  # OWASP's first choice
        self.decoy = self.hasher.hash(secrets.token_hex())
        column = users_table.c
        named = column.username == bindparam("name")
        self.insert = insert_new(db, users_table)
        self.select = db.prepare(select(users_table).where(named))
        self.alive = db.prepare(select(column.session).where(named, column.session == bindparam("session")))

    def create(self, username, password):
        """Create an account; gives whether the name was free."""
        row = {"username": username, "password": self.hasher.hash(password), "session": secrets.token_hex(16)}
        return bool(self.insert(**row))

    def log_in(self, username, password):
        """Give the session of an account, or None where the name or the password is wrong, in the same time."""
        with self.db.reading():
            user = next(iter(self.select(name=username)), None)
        if not self.matches(user, password):
            return None
        if self.hasher.check_needs_rehash(user["password"]):
            self.renew_hash(user, password)
        return user["session"]

    def matches(self, user, password):
        """Tell whether a password is a user's, or takes as long to find that there is no such user."""
        try:
            return self.hasher.verify(user["password"] if user else self.decoy, password) and user is not None
        except argon2.exceptions.VerificationError:
            return False

    def renew_hash(self, user, password):
        """Hash a password again, with today's parameters, unless it was changed meanwhile."""
        column = users_table.c
        same = column.username == user["username"], column.password == user["password"]
        renewed = self.hasher.hash(password)
        self.db.query(users_table.update().where(*same).values(password=renewed))

    def confirm(self, claims):
        """Tell whether the account and the session that a token names still exist."""
        with self.db.reading():
            return bool(self.alive(name=claims["sub"], session=claims.get("session")))


class History:
    """Who did what to which car, in the order in which it happened: writers come one after the other."""

    def __init__(self, db):
        self.db = db
        self.known = db.prepare(select(history_table.c.id).where(history_table.c.mark == bindparam("mark")).limit(1))
        self.insert = db.prepare(history_table.insert().values({name: bindparam(name) for name in HISTORY_FIELDS}))

    def record(self, action, by, cars):
        """Add an entry for each of `cars`, which are dictionaries with their mark and the values they now have."""
        at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        blank = dict.fromkeys(HISTORY_FIELDS) | {"at": at, "by": by, "action": action}
        self.insert.many({**blank, **car} for car in cars)

    def page(self, limit, mark=None, before=None, after=None):
        """Give up to `limit` entries: the newest first, or the oldest first of those `after` an id.

        `mark` keeps to one car, and raises `UnknownAuto` for one that never was.
        """
        column = history_table.c
        statement = select(history_table).order_by(column.id if after is not None else column.id.desc()).limit(limit)
        if mark is not None:
            if not self.known(mark=mark):
                raise UnknownAuto(mark)
            statement = statement.where(column.mark == mark)
        if before is not None:
            statement = statement.where(column.id < before)
        if after is not None:
            statement = statement.where(column.id > after)
        return [self.entry(row) for row in self.db.query(statement)]

    def entry(self, row):
        """Give an entry as clients see it."""
        auto = {name: row.pop(name) for name in fields(Car) if name != "mark"}
        return {**row, "auto": None if row["action"] == "deleted" else auto}


class UnknownAuto(LookupError):
    """There is no car with that mark."""


class AutoExists(ValueError):
    """There is a car with that mark already."""


class AutoChanged(ValueError):
    """The car is no longer the one that was read."""


class Autos:
    """The cars. One statement decides and writes, so that of several at once exactly one succeeds.

    Whoever changes something is named `by`, for the history. `versions` are those of which the car must still be one,
    or None where any will do.
    """

    def __init__(self, db, history):
        self.db = db
        self.history = history
        column = autos_table.c
        same = column.mark == bindparam("same")
        kept = {name: func.coalesce(bindparam(f"new_{name}"), column[name]) for name in fields(Car) if name != "mark"}
        change = autos_table.update().where(same).values(version=bindparam("new_version"), **kept)
        upsert = insert_for(db)(autos_table)
        self.some = db.prepare(select(column.mark).limit(1))
        self.select = db.prepare(select(autos_table).where(same))
        self.insert = insert_new(db, autos_table)
        self.upsert = db.prepare(upsert.on_conflict_do_update(index_elements=["mark"], set_=dict(upsert.excluded)))
        self.change = db.prepare(change.returning(*(column[name] for name in fields(Car))))
        self.remove = db.prepare(autos_table.delete().where(same).returning(column.mark))

    def any(self):
        """Tell whether there is a car at all."""
        return bool(self.some())

    def find(self, mark):
        """Give a car, with its version, as a dictionary; raises `UnknownAuto`."""
        for car in self.select(same=mark):
            return car
        raise UnknownAuto(mark)

    def create(self, car, by):
        """Add a car; raises `AutoExists`."""
        values = structs.asdict(car)
        if not self.insert(**values, version=new_version()):
            raise AutoExists(car.mark)
        self.history.record("created", by, [values])

    def update(self, mark, values, by, versions=None):
        """Change some or all values of a car; raises `UnknownAuto` or `AutoChanged`."""
        self.compare(mark, versions)
        wanted = {f"new_{name}": values.get(name) for name in fields(Car) if name != "mark"}
        cars = self.change(same=mark, new_version=new_version(), **wanted)
        if not cars:
            raise UnknownAuto(mark)
        self.history.record("updated", by, cars)

    def delete(self, mark, by, versions=None):
        """Remove a car; raises `UnknownAuto` or `AutoChanged`."""
        self.compare(mark, versions)
        cars = self.remove(same=mark)
        if not cars:
            raise UnknownAuto(mark)
        self.history.record("deleted", by, cars)

    def compare(self, mark, versions):
        """Raise `AutoChanged` for a car of another version; no other writer comes between this and the change."""
        if versions is not None and self.find(mark)["version"] not in versions:
            raise AutoChanged(mark)

    def known(self, marks):
        """Give those of `marks` that there are cars with, as a set."""
        marks, known = iter(marks), set()
        statement = select(autos_table.c.mark).where(autos_table.c.mark.in_(bindparam("some", expanding=True)))
        while some := list(islice(marks, 500)):
            known.update(row["mark"] for row in self.db.query(statement, some=some))
        return known

    def put_all(self, cars, by):
        """Add or change many cars, given by mark; gives how many were added, and how many changed."""
        known = self.known(cars)
        values = {mark: structs.asdict(car) for mark, car in cars.items()}
        self.upsert.many({**car, "version": new_version()} for car in values.values())
        self.history.record("created", by, (car for mark, car in values.items() if mark not in known))
        self.history.record("updated", by, (values[mark] for mark in cars if mark in known))
        return len(cars) - len(known), len(known)

    def count(self, listing):
        """Give how many cars match a listing."""
        return self.db.executable.scalar(listing.count())

    def page(self, listing):
        """Give the cars of a page and one more, where there is one, as dictionaries."""
        return list(self.db.query(listing.select(car_columns, listing.limit + 1)))

    def rows(self, listing):
        """Give the values of all cars that match, as tuples, in lists, as they are asked for."""
        return self.db.stream(listing.select(car_columns))

    def texts(self, listing):
        """Give all cars that match as texts of JSON, in lists, as they are asked for: the database writes them."""
        make = func.json_object if self.db.is_sqlite else func.json_build_object

        def as_json(named):
            pairs = ((literal_column(f"'{column.name}'"), column) for column in car_columns(named))
            return [cast(make(*chain.from_iterable(pairs)), TextColumn)]

        return ([text for (text,) in rows] for rows in self.db.stream(listing.select(as_json)))


def car_columns(named):
    """Give the columns of a car, of those that are named."""
    return [named[name] for name in fields(Car)]


def new_version():
    """Give a version that no car ever had."""
    return secrets.token_hex(8)


# ----------------------------------------------------------------------------------------------------------------------
# Answers
# ----------------------------------------------------------------------------------------------------------------------

USER_CREATED = Answer(201, {"Message": "User created. Try to auth"})
USER_EXISTS = Answer(400, {"Error": "User already exists"})
WRONG_CREDENTIALS = Answer(401, {"Error": "Invalid username or password"})
AUTO_CREATED = Answer(201, {"Message": "Auto created"})
AUTO_EXISTS = Answer(400, {"Error": "Auto with that mark exists"})
AUTO_UPDATED = Answer(202, {"Message": "Auto updated"})
AUTO_DELETED = Answer(202, {"Message": "Auto deleted"})
AUTO_NOT_FOUND = Answer(404, {"Error": "Auto with that mark not found"})
AUTO_CHANGED = Answer(412, {"Error": "Auto was changed by someone else"})
NO_AUTOS = Answer(400, {"Error": "No one autos found in DataBase"})


def autos_created(created):
    """Give the answer to an upload of new cars."""
    return Answer(201, {"Message": f"{created} autos created"})


def autos_put(created, updated):
    """Give the answer to an upload of new and known cars."""
    return Answer(202, {"Message": f"{created} autos created, {updated} updated"})


# ----------------------------------------------------------------------------------------------------------------------
# Routes
# ----------------------------------------------------------------------------------------------------------------------

routes = Bottle()
MARK = "<mark:re:(?s:.+)>"  # anything, slashes and line breaks too: what a mark may hold is for `Car` to say


@routes.post("/register", public=True)
def register(credentials: Credentials, users):
    """Create an account."""
    if not users.create(credentials.username, credentials.password):
        raise USER_EXISTS.error()
    return USER_CREATED


@routes.post("/auth", public=True)
def log_in(credentials: Credentials, users, tokens):
    """Log in, and get a token."""
    session = users.log_in(credentials.username, credentials.password)
    if session is None:
        raise WRONG_CREDENTIALS.error(WWW_Authenticate="Bearer")
    response.set_header("Cache-Control", "no-store")
    token = tokens.make(credentials.username, session=session)
    return {"access_token": token, "token_type": "Bearer", "expires_in": tokens.ttl}


@routes.get("/auto/" + MARK)
def find_auto(mark, autos):
    """Look up one car."""
    car = autos.find(mark)
    etag = f'"{car.pop("version")}"'
    response.headers.update({"ETag": etag, "Cache-Control": "private, no-cache"})
    if matches(request.get_header("If-None-Match"), etag):
        response.status = 304
        return ""
    return car


@routes.post("/auto/" + MARK)
def create_auto(mark, car: Car, identity, autos):
    """Add one car."""
    autos.create(car, by=identity)
    response.set_header("Location", "/auto/" + quote(mark, safe=""))
    return AUTO_CREATED


@routes.put("/auto/" + MARK)
def update_auto(mark, car: Car, identity, autos):
    """Replace the data of one car."""
    autos.update(mark, given(car), by=identity, versions=wanted_versions())
    return AUTO_UPDATED


@routes.route("/auto/" + MARK, "PATCH")
def patch_auto(mark, changes: Changes, identity, autos):
    """Change some of the data of one car."""
    autos.update(mark, given(changes), by=identity, versions=wanted_versions())
    return AUTO_UPDATED


@routes.delete("/auto/" + MARK)
def delete_auto(mark, identity, autos):
    """Remove one car."""
    autos.delete(mark, by=identity, versions=wanted_versions())
    return AUTO_DELETED


@routes.get("/stock")
def list_stock(autos):
    """List the stock: filtered, ordered, in pages, as JSON or CSV."""
    if not autos.any():
        raise NO_AUTOS.error()
    listing = Listing(request.query_string, Car, autos_table, formats=("json", "csv"))
    response.headers.update({"Cache-Control": "private, no-cache", "Vary": "Accept"})
    if listing.first:
        response.set_header("X-Total-Count", autos.count(listing))
    as_csv = wants_csv(listing)
    if listing.limit is None:
        return send_csv(autos.rows(listing)) if as_csv else send_json(autos.texts(listing))
    cars = autos.page(listing)
    if len(cars) > listing.limit:
        link_next(listing.next_page(cars[listing.limit - 1]))
    cars = cars[: listing.limit]
    return send_csv([map(dict.values, cars)]) if as_csv else cars


@routes.post("/stock")
def create_autos(cars: Inventory, identity, autos):
    """Add many cars, all or none."""
    known = autos.known(cars)
    for mark in cars:
        if mark in known:
            raise HTTPError(400, f"{cars.places[mark]}: mark: {AUTO_EXISTS.body['Error']}")
    created, _ = autos.put_all(cars, by=identity)
    return autos_created(created)


@routes.put("/stock")
def put_autos(cars: Inventory, identity, autos):
    """Add the cars that are new and update those that are known, all or none."""
    return autos_put(*autos.put_all(cars, by=identity))


@routes.get("/history")
def list_history(history):
    """List what was done to every car."""
    return history_page(history)


@routes.get("/history/" + MARK)
def list_history_of(mark, history):
    """List what was done to one car, also one that is gone."""
    return history_page(history, mark)


def wanted_versions():
    """Give the versions that ``If-Match`` asks for (RFC 9110, section 13.1.1), or None for any."""
    header = request.get_header("If-Match")
    if header is None or header.strip() == "*":
        return None
    return {version for weak, version in ENTITY_TAG.findall(header) if not weak}


def matches(header, etag):
    """Tell whether ``If-None-Match`` names an entity tag (RFC 9110, section 13.1.2)."""
    return header is not None and (
        header.strip() == "*" or etag in (f'"{tag}"' for _, tag in ENTITY_TAG.findall(header))
    )


def wants_csv(listing):
    """Tell whether a listing is asked for as CSV: by ``format``, or else by ``Accept``."""
    if listing.format:
        return listing.format == "csv"
    try:
        return mimeparse.best_match(["text/csv", JSON], request.get_header("Accept", JSON).lower()) == "text/csv"
    except mimeparse.MimeTypeParseException:
        return False


def link_next(query):
    """Name the next page (RFC 8288)."""
    response.set_header("Link", f'<{quote(request.path)}?{query}>; rel="next"')


def send_json(chunks):
    """Give a JSON array in parts, of lists of its items as texts; a part is sent when the next one is there."""
    response.content_type = JSON
    return json_parts(chunks)


def json_parts(chunks):
    part = "["
    for texts in chunks:
        if len(part) > 1:
            yield part.encode()
            part = ","
        part += ",".join(texts)
    yield (part + "]").encode()


def send_csv(chunks):
    """Give CSV (RFC 4180) in parts, of lists of rows."""
    response.content_type = "text/csv; charset=utf-8; header=present"
    response.set_header("Content-Disposition", 'attachment; filename="stock.csv"')
    return csv_parts(chunks)


def csv_parts(chunks):
    part = io.StringIO()
    writer = csv.writer(part)
    writer.writerow(fields(Car))
    for rows in chunks:
        writer.writerows(rows)
        yield part.getvalue().encode()
        part.seek(0)
        part.truncate()
    yield part.getvalue().encode()


def history_page(history, mark=None):
    """Give a page of the history, as the query string asks for it."""
    parameters = read_parameters(request.query_string)
    rest = dict(parameters)
    limit = read_integer(rest, "limit", 1, MAX_LIMIT, default=100)
    before, after = (read_integer(rest, name, 0, MAX_INTEGER) for name in ("before", "after"))
    refuse_others(rest)
    entries = history.page(limit + 1, mark, before, after)
    if len(entries) > limit:
        direction = "before" if after is None else "after"
        link_next(urlencode({**parameters, direction: entries[limit - 1]["id"]}))
    response.set_header("Cache-Control", "private, no-cache")
    return entries[:limit]


# ----------------------------------------------------------------------------------------------------------------------
# Application
# ----------------------------------------------------------------------------------------------------------------------


def create_app(settings=None):
    """Build the application over its database; raises `SettingError` where a setting cannot work."""
    settings = settings or Settings()
    url = make_url(settings.database_url)
    key = signing_key(settings, url)
    db = open_database(settings)
    users, history = Users(db), History(db)
    identity = IdentityPlugin(key, settings.jwt_ttl, confirm=users.confirm)
    app = Bottle()
    for plugin in (
        AccessPlugin(),
        AnswersPlugin({UnknownAuto: AUTO_NOT_FOUND, AutoExists: AUTO_EXISTS, AutoChanged: AUTO_CHANGED}),
        MethodsPlugin(),
        StoragePlugin(db, users=users, history=history, autos=Autos(db, history)),
        identity,
        BodiesPlugin(path=Car),
    ):
        app.install(plugin)
    for route in routes.routes:
        own = {name: route.config[name] for name in ("public",) if name in route.config}
        app.route(route.rule, route.method, route.callback, **own)
    return app


def open_database(settings):
    """Open the database of the settings and bring its tables up; raises `SettingError` where that cannot be done."""
    db = Database(
        settings.database_url,
        connections=settings.threads + sum(lane.threads for lane in LANES.values()) + 2,
        lock="SELECT pg_advisory_xact_lock(1908)",
        functions={"fold": folded},
    )
    try:
        open_schema(db)
    except (exc.SQLAlchemyError, OSError) as error:
        raise SettingError("DATABASE_URL: " + " ".join(str(getattr(error, "orig", error)).split())) from None
    return db


# ----------------------------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------------------------

LANES = {
    "listings": Lane(threads=2, patience=None, refusal=""),
    "uploads": Lane(threads=1, patience=5, refusal="Too many uploads wait. Try again later"),
    "writes": Lane(threads=1, patience=5, refusal="Too many changes wait. Try again later"),
    "passwords": Lane(threads=1, patience=5, refusal="Too many logins wait. Try again later"),
}


def lane_of(method, path, query):
    """Name the queue of workers for a request, so that what takes long never keeps what is short waiting."""
    if path in ("/register", "/auth"):
        return "passwords"
    if path == "/stock":
        return ("listings" if "limit=" not in query else None) if method in ("GET", "HEAD") else "uploads"
    return None if method in ("GET", "HEAD") else "writes"


def parse_arguments(arguments):
    """Give the settings of the environment and of the options; ends the program with code 2 where one cannot work."""
    parser = OneLineParser(prog="dealer.py", description=__doc__.partition("\n")[0])
    for option in dataclasses.fields(Settings):
        name = option.name.upper()
        parser.add_argument(
            "--" + option.name.replace("_", "-"),
            metavar=name,
            default=os.environ.get(name),
            help=f"{option.metadata['help']} (default: {option.default}; environment: {name})".replace("%", "%%"),
        )
    given = vars(parser.parse_args(arguments))
    return Settings.load({name.upper(): value for name, value in given.items()})


class OneLineParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that refuses in one line, without its usage."""

    def error(self, message):
        """End the program with code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def start_log(level):
    """Log to standard error, a line each, with the time in UTC (ISO 8601)."""
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler])


def main(arguments=None):
    """Serve the application until SIGTERM or Ctrl-C; gives the exit code of the program."""
    try:
        settings = parse_arguments(arguments)
        start_log(settings.log_level)
        app = create_app(settings)
        database = make_url(settings.database_url).render_as_string(hide_password=True)
        serve(
            app,
            host=settings.host,
            port=settings.port,
            threads=settings.threads,
            lanes=LANES,
            lane_of=lane_of,
            ready=lambda address: print(f"Listening on {address}, database {database}", flush=True),
        )
    except SettingError as error:
        print(f"dealer.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"dealer.py: HOST, PORT: cannot listen on {settings.host}:{settings.port}: {error.strerror}",
            file=sys.stderr,
        )
        return 2
    app.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
