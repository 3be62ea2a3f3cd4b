"""A car dealer's stock over HTTP with JSON: register, log in, and look up, add, change and remove cars by their mark.

``python dealer.py`` serves it on SQLite; ``DATABASE_URL`` puts it on PostgreSQL. Importing this module opens nothing:
`create_app` builds the application. In reading order: settings, values, schema, storage, answers, routes, application,
command line.
"""

import dataclasses
import getpass
import hashlib
import logging
import math
import os
import pwd
import secrets
import sqlite3
import sys
from datetime import UTC, datetime
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import argon2
import msgspec
from bottle import Bottle, HTTPError, request, response, static_file
from sqlalchemy import CheckConstraint, Index, MetaData, Table, exc
from sqlalchemy.schema import CreateColumn

from plugins.access import AccessPlugin, start_log
from plugins.answers import JSON, Answer, AnswersPlugin, Data
from plugins.bodies import MAX_INTEGER, BodiesPlugin, Number, Password, Record, Text, fields, given, integers, some_of
from plugins.cors import CorsPlugin
from plugins.entity_tags import entity_tag, send_tag, wanted_version
from plugins.files import copy, keep_private, key_beside
from plugins.guesses import NAME_LIMIT, Guesses, TooManyAttempts, guesses_table
from plugins.identity import IdentityPlugin, MayOnlyRead
from plugins.listings import MAX_LIMIT, Feed, Listing, feed_parameters, listing_parameters
from plugins.metrics import MetricsPlugin
from plugins.openapi import ASSETS, DOCS, POLICY, OpenAPIPlugin, header_parameter
from plugins.routing import MethodsPlugin, admits, lane_of
from plugins.server import Lane, serve
from plugins.settings import OneLineParser, SettingError, address, integer, load, one_of, options, origins, setting
from plugins.storage import Database, StoragePlugin, column, one_line, shown
from plugins.uploads import CSV_TYPE, Upload

DATABASES = "SQLite or PostgreSQL; several servers of one cluster as postgresql://user@one:5432,two:5433/db"
DATA = f"sqlite:///{Path(__file__).resolve().parent / 'data.db'}"
log = logging.getLogger("dealer")

# ----------------------------------------------------------------------------------------------------------------------
# Settings
# ----------------------------------------------------------------------------------------------------------------------


def database_url(text):
    """Give the URL of a database that is supported, with the driver that SQLAlchemy shall use."""
    scheme, _, rest = text.partition("://")
    if scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        from plugins.postgresql import servers_of  # only here, for its driver takes 9 MiB

        servers_of("postgresql://" + rest)
        return "postgresql+psycopg://" + rest
    if scheme != "sqlite" or not rest.startswith("/") or not rest.strip("/") or ":memory:" in rest or "?" in rest:
        raise ValueError("must be sqlite:///file or postgresql://user:password@host/database")
    return text


def secret(text):
    """Give a secret that is long enough for HS256 (RFC 7518, section 3.2)."""
    if len(text.encode()) < 32:
        raise ValueError("must be at least 32 bytes")
    return text


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set, from the environment (``JWT_TTL``) or by options (``--jwt-ttl``), which override it."""

    host: str = setting("127.0.0.1", str, "address to listen on")
    port: int = setting(8080, integer(0, 65535), "port to listen on")
    database_url: str = setting(DATA, database_url, DATABASES, shown="data.db beside dealer.py")
    jwt_secret: str = setting(None, secret, "key that signs tokens, at least 32 bytes", shown="made once, with SQLite")
    jwt_ttl: int = setting(3600, integer(1, 10**9), "seconds a token lives")
    threads: int = setting(4, integer(1, 256), "threads for pages, with PostgreSQL as many for lookups")
    trusted_proxy: str = setting(None, address, "proxy whose X-Forwarded-For and -Proto are believed, or *")
    registration: str = setting("open", one_of("open", "readers", "closed"), "open (all are editors), readers, closed")
    password_min: int = setting(1, integer(1, 1024), "shortest new password, in characters")
    cors_origins: tuple = setting((), origins, "origins whose pages may call, divided by commas")
    metrics: str = setting("off", one_of("off", "on"), "whether GET /metrics answers")
    log_level: str = setting("INFO", one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), "least level logged")


def file_of(url):
    """Give the file of an SQLite database, None for another one."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else None


def signing_key(file):
    """Give the key that signs tokens with SQLite: made once at random, and kept beside the database's file."""
    try:
        return secret(key_beside(file))
    except (OSError, ValueError) as error:
        raise SettingError(f"JWT_SECRET: {file.name}.secret: {getattr(error, 'strerror', None) or error}") from None


# ----------------------------------------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------------------------------------

Mark = Text(255, refuse=(".", ".."))  # the two names that clients fold away from a path


class Car(Record):
    """A car in stock; its mark is what it is known by."""

    example = {"mark": "BMW i4", "max_speed": 200, "distance": 450, "handler": "BMW", "stock": "Germany"}

    mark: Mark
    max_speed: Number
    distance: Number
    handler: Text(255)
    stock: Text(255)


VALUES = tuple(name for name in fields(Car) if name != "mark")
Changes = some_of("Changes", Car, key="mark")


class Inventory(Upload):
    """Cars by their marks, as a JSON array or CSV."""

    record, key, noun = Car, "mark", "cars"


class Credentials(Record):
    """Who logs in."""

    example = {"username": "alice", "password": "correct horse"}

    username: Text(80)
    password: Password(1024)


class NewCredentials(Credentials):
    """Who registers."""

    username: Text(80, stripped=True)


class Confirmation(Record):
    """The password of an account, which is asked for once more."""

    password: Password(1024)


class NewPassword(Confirmation):
    """The password that an account has, and the one it shall have."""

    new_password: Password(1024)


# ----------------------------------------------------------------------------------------------------------------------
# Schema
# ----------------------------------------------------------------------------------------------------------------------

SCHEMA_VERSION = 5

ROLES = EDITOR, READER = "editor", "reader"

metadata = MetaData()


def columns_of(names, **options):
    """Give a column for each of some fields of a car, and the checks that hold in the database what `Car` holds."""
    for name in names:
        number = name in integers(Car)
        yield column(name, int if number else str, **options)
        if number:
            yield CheckConstraint(f"{name} BETWEEN 0 AND {MAX_INTEGER}", name=f"{name}_range")


Table("schema_version", metadata, column("version", int), sqlite_strict=True)

users_table = Table(
    "users",
    metadata,
    column("username", str, primary_key=True),
    column("password", str),  # an Argon2 hash
    column("session", str),  # random; every token names the one it was made in
    column("role", str, server_default=EDITOR),
    sqlite_strict=True,
)

autos_table = Table(
    "autos",
    metadata,
    *columns_of(["mark"], primary_key=True),
    *columns_of(VALUES),
    column("version", str, server_default=""),  # random, and another one after every change
    sqlite_strict=True,
    sqlite_with_rowid=False,
    info={"journal": "history"},
)
for name in VALUES:  # both directions, since ties are settled by mark, which goes up in either
    Index(f"autos_{name}", autos_table.c[name], autos_table.c.mark)
    Index(f"autos_{name}_down", autos_table.c[name].desc(), autos_table.c.mark)

Table(
    "history",
    metadata,
    column("id", int, primary_key=True),
    column("at", str),
    column("by", str),
    column("action", str),
    *columns_of(["mark"]),
    *columns_of(VALUES, nullable=True),
    Index("history_mark", "mark", "id"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

guesses_table("failures", metadata)
guesses_table("registrations", metadata)


def open_schema(db):
    """Create the tables that are missing and bring older ones up; raises `SettingError` where that cannot be done."""
    with db.writing():
        db.line_up()
        known = set(db.tables)
        versions = db["schema_version"].find() if "schema_version" in known else ()
        version = max((row["version"] for row in versions), default=0)
        if version > SCHEMA_VERSION:
            raise SettingError(f"DATABASE_URL: has schema version {version}, this program knows {SCHEMA_VERSION}")
        if not version and known & metadata.tables.keys():
            raise SettingError("DATABASE_URL: holds tables of another program")
        if version < SCHEMA_VERSION:
            bring_up(db, version)
        there = db.inspect.get_multi_columns()
        for table in metadata.sorted_tables:
            for column in table.columns:
                if column.name not in [each["name"] for each in there.get((None, table.name), ())]:
                    raise SettingError(f"DATABASE_URL: lacks the column {column}, which this program needs")


def bring_up(db, version):
    """Change the schema from an older version, 0 for an empty database, to `SCHEMA_VERSION`."""
    added = {autos_table.c.version: 2, users_table.c.role: 5}  # other versions added tables and indexes only
    for new, since in added.items():
        if 0 < version < since:
            db.query(f"ALTER TABLE {new.table} ADD COLUMN {CreateColumn(new).compile(db.engine)}")
    metadata.create_all(db.executable)
    for index in autos_table.indexes:
        index.create(db.executable, checkfirst=True)
    db.query(autos_table.update(), version=new_version())  # what is shown of a car may be another thing now
    db["schema_version"].delete()
    db["schema_version"].insert({"version": SCHEMA_VERSION})


# ----------------------------------------------------------------------------------------------------------------------
# Storage
# ----------------------------------------------------------------------------------------------------------------------


class Users:
    """The accounts. No transaction is open for the 30 ms that a hash takes."""

    def __init__(self, db, on_failure=None):
        """Take the database, and what is called for each failed login."""
        self.db = db
        self.on_failure = on_failure
        self.accounts = db["users"]
        self.guesses = Guesses(db["failures"], NAME_LIMIT)
        self.registrations = Guesses(db["registrations"])
        self.hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)  # OWASP's first choice
        self.decoy = self.hasher.hash(secrets.token_hex())

    def register(self, username, password, role, address):
        """Create an account, counted as a registration; gives whether the name was free. Raises `TooManyAttempts`."""
        with self.db.reading():
            self.registrations.check(username, address)
            taken = self.accounts.find_one(username=username)
        created = not taken and self.create(username, password, role)
        self.registrations.record(username, address)
        return created

    def create(self, username, password, role):
        """Create an account; gives whether the name was free."""
        account = {"username": username, "password": self.hasher.hash(password), "session": new_session(), "role": role}
        return bool(self.accounts.insert_ignore(account, ["username"]))

    def log_in(self, username, password, address):
        """Give the session of an account, or None where the name or the password is wrong, in the same time.

        Raises `TooManyAttempts`, for a right password too: the answer must not tell that it was right.
        """
        user = self.verify(username, password, address)
        if user and self.hasher.check_needs_rehash(user["password"]):
            self.change(user, password=self.hasher.hash(password))
        return user and user["session"]

    def verify(self, username, password, address):
        """Give an account as a dictionary, or None, counted as a failed login; raises `TooManyAttempts`."""
        with self.db.reading():
            self.guesses.check(username, address)
            user = self.accounts.find_one(username=username)
        if self.matches(user, password):
            with self.db.reading():
                self.guesses.check(username, address)
            return user
        log.warning("login failed: %s from %s", quote(username, safe="@") if user else "an unknown name", address)
        if self.on_failure:
            self.on_failure()
        self.guesses.record(username, address)
        return None

    def matches(self, user, password):
        """Tell whether a password is a user's, or takes as long to find that there is no such user."""
        try:
            return self.hasher.verify(user["password"] if user else self.decoy, password) and user is not None
        except argon2.exceptions.VerificationError:
            return False

    def change_password(self, username, password, new_password, address):
        """Give a password in place of another and end every token; gives whether the old one was right."""
        user = self.verify(username, password, address)
        return bool(user) and self.change(user, password=self.hasher.hash(new_password), session=new_session())

    def change(self, user, **values):
        """Change an account, and tell whether that was done: not if somebody else has changed it meanwhile."""
        row = {"username": user["username"], **values}
        with self.db.writing(single=True):
            return bool(self.accounts.update(row, ["username"], password=user["password"], session=user["session"]))

    def set(self, username, **values):
        """Change an account, whoever asks for it; raises `ValueError` where there is none."""
        with self.db.writing(single=True):
            if not self.accounts.update({"username": username, **values}, ["username"]):
                raise ValueError("No user has that name")

    def delete(self, username, password, address):
        """Remove an account, and with it every token; gives whether the password was right."""
        user = self.verify(username, password, address)
        with self.db.writing(single=True):
            return bool(user) and self.accounts.delete(username=username, password=user["password"])

    def confirm(self, claims, changes, refuse):
        """Have ``refuse(account)`` called where a token's account or session has ended, or may not do what `changes`.

        That is looked at in the transaction that serves the request, before all else.
        """
        account = {"username": claims["sub"], "session": claims["session"]}
        wanted = {**account, "role": EDITOR} if changes else account
        self.db.expect(lambda: refuse(self.accounts.find_one(**account)), "users", **wanted)


def new_session():
    """Give what the tokens of an account name until it changes; an account of the same name gets another one."""
    return secrets.token_hex(16)


class History:
    """Who did what to which car, in the order in which it happened."""

    def __init__(self, db):
        self.entries = db["history"]
        self.cars = db["autos"]

    def find(self, feed):
        """Give the entries of every car that a feed asks for."""
        return map(entry, self.entries.find(**feed.find))

    def find_of(self, mark, feed):
        """Give those of one car; raises `UnknownAuto` for one that never was."""
        if not (self.entries.find_one(mark=mark) or self.cars.find_one(mark=mark)):
            raise UnknownAuto(mark)
        return map(entry, self.entries.find(mark=mark, **feed.find))


def act(action, by):
    """Give what the history says of a change besides the car."""
    at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {"at": at, "by": by, "action": action}


def entry(row):
    """Give an entry of the history as clients see it."""
    auto = {name: row.pop(name) for name in VALUES}
    return {**row, "auto": None if row["action"] == "deleted" else auto}


class UnknownAuto(LookupError):
    """There is no car with that mark."""


class NoAutos(LookupError):
    """There is no car at all."""


class AutoChanged(ValueError):
    """The car is no longer the one that was read."""


ANY = {}  # a filter that holds for any version


class Autos:
    """The cars. One statement decides and writes, so that of several at once exactly one succeeds.

    Whoever changes something is named `by`, for the history. `version` is what the car's must be, as a filter.
    """

    def __init__(self, db):
        self.db = db
        self.cars = db["autos"]
        self.history = db["history"]
        self.stocked = self.cars.table.select().exists()
        self.kept = None, 0, b""  # of the whole stock: its version, how many cars, and all of them in JSON

    def any(self):
        """Tell whether there is a car at all."""
        return self.cars.find_one() is not None

    def version(self):
        """Give what the whole stock is known by, another one after every change; raises `NoAutos` where it is empty.

        Each change adds to the history, whose entries become visible in the order of their ids. The time makes
        another version of an id that comes again, after a copy of the database was put back.
        """
        last = self.history.find_one(self.stocked, order_by="-id", _columns=["id", "at"])
        if last is None and not self.any():
            raise NoAutos
        return last and f"{SCHEMA_VERSION}-{last['id']}-{last['at']}"

    def find(self, mark):
        """Give a car, with its version, as a dictionary; raises `UnknownAuto`."""
        with self.db.reading(single=True):
            car = self.cars.find_one(mark=mark)
        if car is None:
            raise UnknownAuto(mark)
        return car

    def create(self, car, by):
        """Add a car; gives whether there was none with its mark."""
        row = {**car, "version": new_version()}
        with self.db.writing(single=True):
            return bool(self.cars.insert_ignore(row, ["mark"], _entry=act("created", by)))

    def update(self, mark, values, by, version=ANY):
        """Change some or all values of a car; raises `UnknownAuto` or `AutoChanged`."""
        row = {"mark": mark, **values, "version": new_version()}
        with self.db.writing(single=True):
            self.done(mark, version, self.cars.update(row, ["mark"], _entry=act("updated", by), version=version))

    def delete(self, mark, by, version=ANY):
        """Remove a car; raises `UnknownAuto` or `AutoChanged`."""
        with self.db.writing(single=True):
            self.done(mark, version, self.cars.delete(mark=mark, _entry=act("deleted", by), version=version))

    def done(self, mark, version, done):
        """Raise what kept a car from being changed, where that was not done; it may have come into being since."""
        if not done:
            raise AutoChanged(mark) if version != ANY and self.cars.count(mark=mark) else UnknownAuto(mark)

    def known(self, marks):
        """Give those of `marks` that there are cars with, as a set, which stays true in this transaction."""
        self.cars.lock()
        return {car["mark"] for car in self.cars.find(mark=list(marks), _columns=["mark"])}

    def put_all(self, cars, by):
        """Add or change many cars, given by mark as dictionaries; gives how many were added, and how many changed."""
        known = self.known(cars)
        version, created, updated = new_version(), act("created", by), act("updated", by)
        self.cars.upsert_many([{**car, "version": version} for car in cars.values()], ["mark"])
        self.db.line_up()
        self.history.insert_many(
            [{**created, **car} for mark, car in cars.items() if mark not in known]
            + [{**updated, **car} for mark, car in cars.items() if mark in known]
        )
        return len(cars) - len(known), len(known)

    def count(self, listing):
        """Give how many cars match a listing."""
        return self.cars.count(**listing.filters)

    def rows(self, listing):
        """Give all cars that match, one by one as they are asked for."""
        return self.cars.find(**listing.find, _streamed=True)

    def page(self, listing):
        """Give the cars of a page and one more, where there is one."""
        return self.cars.find(**listing.find, _limit=listing.limit + 1)

    def whole(self, listing, version):
        """Give how many cars match, and all as one JSON array, or None where they are too many for it, or go as CSV.

        The array of the whole stock is kept as long as that is of the same version.
        """
        if listing.as_csv:
            return self.count(listing), None
        if listing.is_plain and version and self.kept[0] == version:
            return self.kept[1:]
        total = self.count(listing)
        array = self.cars.json(**listing.find).encode() if listing.first and total <= MAX_LIMIT else None
        if listing.is_plain and array:
            self.kept = version, total, array
        return total, array


def new_version():
    """Give a version that no car ever had."""
    return secrets.token_hex(8)


# ----------------------------------------------------------------------------------------------------------------------
# Answers
# ----------------------------------------------------------------------------------------------------------------------


class Token(msgspec.Struct):
    """What logs a client in: ``Authorization: Bearer <access_token>``, for `expires_in` seconds."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int


Values = msgspec.defstruct("Values", [(name, fields(Car)[name].type) for name in VALUES])


class Entry(msgspec.Struct):
    """What was done to a car: when (UTC, RFC 3339), by whom, and the values it had then."""

    example = {"id": 1, "at": "2026-01-31T12:00:00.000000Z", "by": "alice", "action": "deleted", "mark": "BMW i4"}

    id: int
    at: str
    by: str
    action: Literal["created", "updated", "deleted"]
    mark: str
    auto: Values | None


class Account(msgspec.Struct):
    """Who is logged in, and whether to change cars or only to read."""

    username: str
    role: Literal[ROLES]


USER_CREATED = Answer(201, {"Message": "User created. Try to auth"})
USER_EXISTS = Answer(400, {"Error": "User already exists"})
LOGGED_IN = Data(200, Token, {"access_token": "eyJhbGciOi…", "token_type": "Bearer", "expires_in": 3600})
WRONG_CREDENTIALS = Answer(401, {"Error": "Invalid username or password"}, ("WWW-Authenticate",))
REGISTRATION_CLOSED = Answer(403, {"Error": "Registration is closed"})
TOO_MANY_ATTEMPTS = Answer(429, {"Error": "Too many attempts. Try again later"}, ("Retry-After",))
PASSWORD_CHANGED = Answer(202, {"Message": "Password changed"})
LOGGED_OUT = Answer(202, {"Message": "Logged out"})
USER_DELETED = Answer(202, {"Message": "User deleted"})
WRONG_PASSWORD = Answer(403, {"Error": "Invalid password"})
ACCOUNT = Data(200, Account, {"username": "alice", "role": EDITOR})
MAY_ONLY_READ = Answer(403, {"Error": "This account may only read"})
AUTO_FOUND = Data(200, Car, Car.example, ("ETag",))
UNCHANGED = Data(304, None, headers=("ETag",))
AUTO_CREATED = Answer(201, {"Message": "Auto created"}, ("Location",))
AUTO_EXISTS = Answer(400, {"Error": "Auto with that mark exists"})
AUTO_UPDATED = Answer(202, {"Message": "Auto updated"})
AUTO_DELETED = Answer(202, {"Message": "Auto deleted"})
AUTO_NOT_FOUND = Answer(404, {"Error": "Auto with that mark not found"})
AUTO_CHANGED = Answer(412, {"Error": "Auto was changed by someone else"})
NO_AUTOS = Answer(400, {"Error": "No one autos found in DataBase"})
STOCK = Data(200, list[Car], [Car.example], ("ETag", "X-Total-Count", "Link", "Content-Disposition"), also=(CSV_TYPE,))
ENTRIES = Data(200, list[Entry], [{**Entry.example, "auto": None}], ("Link",))
HEALTHY = Answer(200, {"status": "ok"})
UNAVAILABLE = Answer(503, {"Error": "Database is not available. Try again later"}, ("Retry-After",))
FAULT = Answer(500, {"Error": "Internal server error"})


def autos_created(created):
    """Give the answer to an upload of new cars."""
    return Answer(201, {"Message": f"{created} autos created"})


def autos_put(created, updated):
    """Give the answer to an upload of new and known cars."""
    return Answer(202, {"Message": f"{created} autos created, {updated} updated"})


# ----------------------------------------------------------------------------------------------------------------------
# Routes
# ----------------------------------------------------------------------------------------------------------------------

DECLARED = ("public", "readers", "lane", "answers", "parameters")  # what a route says of itself to plugins
routes = Bottle()
IF_MATCH = header_parameter("If-Match", "Change the car only if it still has one of these entity tags")
CONDITIONS = [IF_MATCH, header_parameter("If-None-Match", "Change the car only if it has none of these entity tags")]
IF_NONE_MATCH = header_parameter("If-None-Match", "Answer 304 if it still has one of these entity tags")
LISTING = [*listing_parameters(Car), IF_NONE_MATCH]
FEED = [*feed_parameters()]
REGISTERED = [USER_CREATED, USER_EXISTS, REGISTRATION_CLOSED, TOO_MANY_ATTEMPTS]
CONFIRMED = [WRONG_PASSWORD, TOO_MANY_ATTEMPTS]
UPDATED = [AUTO_UPDATED, AUTO_NOT_FOUND, AUTO_CHANGED]
STOCK_FILE = "stock.csv"
PAGES = Path(__file__).resolve().parent / "pages"
PAGE_POLICY = POLICY.replace(" 'unsafe-inline'", "")
MARK = "<mark:re:(?s:.+)>"  # anything, slashes and line breaks too: what a mark may hold is for `Car` to say
AUTO = "/auto/" + MARK


def lane_of_stock(query):
    """Name the lane of a listing: a page does not wait for whole ones."""
    return "pages" if "&limit=" in "&" + query else "listings"


@routes.post("/register", public=True, lane="registrations", answers=REGISTERED)
def register(credentials: NewCredentials, users, settings):
    """Create an account."""
    check_length("password", credentials.password, settings.password_min)
    if settings.registration == "closed":
        raise REGISTRATION_CLOSED.error()
    role = EDITOR if settings.registration == "open" else READER
    created = users.register(credentials.username, credentials.password, role, client_address())
    return USER_CREATED if created else USER_EXISTS  # not raised: that would forget that it counts


@routes.post("/auth", public=True, lane="passwords", answers=[LOGGED_IN, WRONG_CREDENTIALS, TOO_MANY_ATTEMPTS])
def log_in(credentials: Credentials, users, tokens):
    """Log in, and get a token."""
    session = users.log_in(credentials.username, credentials.password, client_address())
    if session is None:
        response.set_header("WWW-Authenticate", "Bearer")
        return WRONG_CREDENTIALS  # not raised: that would forget that the login failed
    log.info("login: %s", quote(credentials.username, safe="@"))
    response.set_header("Cache-Control", "no-store")
    return Token(tokens.make(credentials.username, session=session), "Bearer", tokens.ttl)


@routes.get("/account", lane="lookups", answers=[ACCOUNT])
def find_account(identity, db):
    """Tell who is logged in."""
    return Account(identity, db["users"].find_one(username=identity)["role"])


@routes.put("/account/password", readers=True, lane="passwords", answers=[PASSWORD_CHANGED, *CONFIRMED])
def change_password(passwords: NewPassword, identity, users, settings):
    """Change one's password, which ends every token of the account."""
    check_length("new_password", passwords.new_password, settings.password_min)
    address = client_address()
    changed = users.change_password(identity, passwords.password, passwords.new_password, address)
    return PASSWORD_CHANGED if changed else WRONG_PASSWORD


@routes.post("/logout", readers=True, lane="writes", answers=[LOGGED_OUT])
def log_out(identity, users):
    """End every token of one's account."""
    users.set(identity, session=new_session())
    return LOGGED_OUT


@routes.delete("/account", readers=True, lane="passwords", answers=[USER_DELETED, *CONFIRMED])
def delete_account(confirmation: Confirmation, identity, users):
    """Delete one's account, which ends every token of it."""
    deleted = users.delete(identity, confirmation.password, client_address())
    return USER_DELETED if deleted else WRONG_PASSWORD


@routes.get(AUTO, lane="lookups", answers=[AUTO_FOUND, UNCHANGED, AUTO_NOT_FOUND], parameters=[IF_NONE_MATCH])
def find_auto(mark, autos):
    """Look up one car."""
    car = autos.find(mark)
    send_tag(car.pop("version"))
    return car


@routes.post(AUTO, lane="writes", answers=[AUTO_CREATED, AUTO_EXISTS, AUTO_CHANGED], parameters=[IF_MATCH])
def create_auto(mark, car: Car, identity, autos):
    """Add one car."""
    if "If-Match" in request.headers and not autos.known([mark]):
        raise AutoChanged(mark)  # there is nothing yet to match
    if not autos.create(given(car), by=identity):
        raise AUTO_EXISTS.error()
    response.set_header("Location", "/auto/" + quote(mark, safe=""))
    return AUTO_CREATED


@routes.put(AUTO, lane="writes", answers=UPDATED, parameters=CONDITIONS)
def update_auto(mark, car: Car, identity, autos):
    """Replace the data of one car."""
    autos.update(mark, given(car), by=identity, version=wanted_version())
    return AUTO_UPDATED


@routes.patch(AUTO, lane="writes", answers=UPDATED, parameters=CONDITIONS)
def patch_auto(mark, changes: Changes, identity, autos):
    """Change some of the data of one car."""
    autos.update(mark, given(changes), by=identity, version=wanted_version())
    return AUTO_UPDATED


@routes.delete(AUTO, lane="writes", answers=[AUTO_DELETED, AUTO_NOT_FOUND, AUTO_CHANGED], parameters=CONDITIONS)
def delete_auto(mark, identity, autos):
    """Remove one car."""
    autos.delete(mark, by=identity, version=wanted_version())
    return AUTO_DELETED


@routes.get("/stock", lane=lane_of_stock, answers=[STOCK, UNCHANGED, NO_AUTOS], parameters=LISTING)
def list_stock(autos):
    """List the stock: filtered, ordered, in pages, as JSON or CSV."""
    version = autos.version()
    listing = Listing(request.query_string, Car, "mark", request.environ.get("HTTP_ACCEPT", JSON))
    response.set_header("Vary", "Accept")
    send_tag(f"{version}-{'csv' if listing.as_csv else 'json'}")
    if not listing.limit:
        return whole_stock(listing, autos, version)
    if listing.first:
        response.set_header("X-Total-Count", autos.count(listing))
    return listing.parts(listing.page("/stock", autos.page(listing)), STOCK_FILE)


@routes.post("/stock", lane="uploads", answers=[autos_created(103)])
def create_autos(cars: Inventory, identity, autos):
    """Add many cars, all or none."""
    new = cars.rows(known=autos.known(cars.places), reason=AUTO_EXISTS.body["Error"])
    created, _ = autos.put_all(new, by=identity)
    return autos_created(created)


@routes.put("/stock", lane="uploads", answers=[autos_put(2, 101)])
def put_autos(cars: Inventory, identity, autos):
    """Add the cars that are new and update those that are known, all or none."""
    return autos_put(*autos.put_all(cars.rows(), by=identity))


@routes.get("/history", lane="pages", answers=[ENTRIES], parameters=FEED)
def list_history(history):
    """List what was done to every car."""
    feed = Feed(request.query_string)
    return feed.page("/history", history.find(feed))


@routes.get("/history/" + MARK, lane="pages", answers=[ENTRIES, AUTO_NOT_FOUND], parameters=FEED)
def list_history_of(mark, history):
    """List what was done to one car, also one that is gone."""
    feed = Feed(request.query_string)
    return feed.page("/history/" + quote(mark, safe=""), history.find_of(mark, feed))


@routes.get("/health", public=True, lane="lookups", answers=[HEALTHY])
def check_health(autos):
    """Tell whether the database answers."""
    autos.any()
    return HEALTHY


@routes.get("/metrics", public=True)
def show_metrics(metrics, db):
    """Tell Prometheus what goes on."""
    for lane, count in request.environ.get("server.waiting", dict)().items():
        metrics.waiting.labels(lane or "others").set(count)
    metrics.connections.set(db.engine.pool.checkedout())
    metrics.most_connections.set(db.engine.pool.size() or math.inf)
    return metrics.text()


@routes.get("/openapi.json", public=True)
def describe(openapi):
    """Describe this API (OpenAPI 3.1)."""
    return openapi.document


@routes.get(["/", "/pages/<name:re:[a-z]+[.](?:js|css|svg)>"], public=True)
def send_page(name="index.html"):
    """Send a file of the page for people."""
    file = PAGES / name
    version = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": PAGE_POLICY}
    return static_file(name, root=PAGES, etag=entity_tag(version), headers=headers)


@routes.get("/docs", public=True)
def show_docs():
    """Show the documentation, where every request can be tried."""
    return static_file("index.html", root=DOCS, headers={"Content-Security-Policy": POLICY})


@routes.get(r"/docs/<name:re:swagger-ui(-bundle\.js|\.css)|favicon-32x32\.png|start\.js>", public=True)
def docs_asset(name):
    """Send a file of the documentation."""
    return static_file(name, root=DOCS if name == "start.js" else ASSETS)


def whole_stock(listing, autos, version):
    """Give all cars that match: in one piece up to a thousand as JSON, in parts otherwise."""
    total, array = autos.whole(listing, version)
    response.set_header("X-Total-Count", total)
    return listing.parts(autos.rows(listing), STOCK_FILE) if array is None else msgspec.Raw(array)


def client_address():
    """Give the address that a request comes from (Bottle's own attribute believes headers that anybody can send)."""
    return request.environ.get("REMOTE_ADDR", "-")


def check_length(name, password, least):
    """Raise a 400 for a new password that is shorter than the settings ask for."""
    if len(password) < least:
        raise HTTPError(400, f"{name}: must be at least {least} characters")


# ----------------------------------------------------------------------------------------------------------------------
# Application
# ----------------------------------------------------------------------------------------------------------------------

ABOUT = {
    "title": "Car dealer API",
    "version": "1.0",
    "description": "Register, log in with `POST /auth`, and try the rest: the page keeps the token that you get.",
}
TAGS = dict.fromkeys(("register", "auth", "account", "logout"), "Accounts")  # of the first step of a path
TAGS |= {"auto": "Cars", "stock": "Stock", "history": "History", "health": "Service"}
EXPOSED_HEADERS = ("ETag", "Link", "Location", "Retry-After", "X-Request-ID", "X-Total-Count")
REFUSALS = {
    TooManyAttempts: TOO_MANY_ATTEMPTS,
    NoAutos: NO_AUTOS,
    MayOnlyRead: MAY_ONLY_READ,
    UnknownAuto: AUTO_NOT_FOUND,
    AutoChanged: AUTO_CHANGED,
}


def create_app(settings=None):
    """Build the application over its database; raises `SettingError` where a setting cannot work.

    Without `settings`, as other WSGI servers call it, it reads the environment and starts the log, unless the server
    has set up logging itself. Nothing is left open, so that a server may fork after it.
    """
    if settings is None:
        settings, connections = load(Settings, os.environ), 0
        start_log(settings.log_level)
    else:
        connections = sum(lane.threads for lane in lanes_of(settings).values()) + 2
    file = file_of(settings.database_url)
    if not settings.jwt_secret and not file:
        raise SettingError("JWT_SECRET: must be given with PostgreSQL")
    db = open_database(settings, connections)
    key = settings.jwt_secret or signing_key(file)
    metrics = MetricsPlugin() if settings.metrics == "on" else None
    users = Users(db, metrics and metrics.failed_logins.inc)
    history, autos = History(db), Autos(db)
    hidden = ("/register",) if settings.registration == "closed" else ()
    app = Bottle()
    for plugin in (
        CorsPlugin(settings.cors_origins, EXPOSED_HEADERS),
        AccessPlugin(settings.trusted_proxy, metrics and metrics.observe),
        AnswersPlugin(REFUSALS),
        MethodsPlugin(),
        StoragePlugin(db, users=users, history=history, autos=autos, settings=settings),
        IdentityPlugin(key, settings.jwt_ttl, confirm=users.confirm),
        BodiesPlugin(path=Car),
        OpenAPIPlugin(ABOUT, TAGS, path=Car, read_only=MAY_ONLY_READ, common=(UNAVAILABLE, FAULT), hidden=hidden),
        *([metrics] if metrics else ()),
    ):
        app.install(plugin)
    for route in routes.routes:
        if route.rule == "/metrics" and not metrics:
            continue
        own = {name: route.config[name] for name in DECLARED if name in route.config}
        app.route(route.rule, route.method, route.callback, **own)
    return app


def open_database(settings, connections=0):
    """Open the database of the settings and bring its tables up; raises `SettingError` where that cannot be done."""
    try:
        if file := file_of(settings.database_url):
            keep_private(file)
        db = Database(settings.database_url, metadata, connections)
        open_schema(db)
        db.engine.dispose()  # a process that is forked must not share a connection
    except (exc.SQLAlchemyError, OSError, ValueError, TypeError) as error:
        raise SettingError("DATABASE_URL: " + one_line(error)) from None
    return db


# ----------------------------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------------------------

PATIENCE = 5  # seconds; what then waits for the database gives up after `LOCK_SECONDS`: so all is answered within ten


def lanes_of(settings):
    """Give the queues of workers that routes name, so that what takes long never keeps what is short waiting.

    On SQLite each write would wait for the one before, and each hash takes a core for itself. What names none asks no
    database.
    """
    on_sqlite = settings.database_url.startswith("sqlite")
    return {
        "documents": Lane(2, PATIENCE),
        "lookups": Lane(0) if on_sqlite else Lane(settings.threads, PATIENCE),  # readers of SQLite wait for nobody
        "pages": Lane(settings.threads, PATIENCE),
        "listings": Lane(2, PATIENCE, "Too many listings wait. Try again later"),
        "uploads": Lane(1, PATIENCE, "Too many uploads wait. Try again later"),
        "writes": Lane(1 if on_sqlite else settings.threads, PATIENCE, "Too many changes wait. Try again later"),
        "passwords": Lane(1, PATIENCE, "Too many logins wait. Try again later"),
        "registrations": Lane(1, PATIENCE, "Too many registrations wait. Try again later"),
    }


def run_server(settings):
    """Serve the application until SIGTERM or Ctrl-C."""
    app = create_app(settings)
    try:
        serve(
            app,
            host=settings.host,
            port=settings.port,
            lanes=lanes_of(settings),
            lane_of=partial(lane_of, app, "documents"),
            limit_of=lambda method, path: Inventory.limit if path == "/stock" else Record.limit,
            admits=partial(admits, app),
            ready=lambda address: print(f"Listening on {address}, database {shown(settings.database_url)}", flush=True),
        )
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "is no name of a host"
        raise SettingError(f"HOST, PORT: {settings.host}:{settings.port}: {reason}") from None
    finally:
        app.close()


class CommandRefused(Exception):
    """A command that changed nothing; its text is one line that says why."""


def on_accounts(command):
    """Make a command, in one transaction, of a function that does something to the account of a name, and says what."""

    @wraps(command)
    def run(settings, **arguments):
        db = open_database(settings)
        name = arguments.get("name")
        try:
            if name is not None:
                arguments["name"] = name = Credentials.tidy("username", name)
            with db.writing():
                done = command(Users(db), settings, **arguments)
        except (ValueError, exc.SQLAlchemyError) as error:
            raise CommandRefused(one_line(error)) from None
        finally:
            db.close()
        if done:
            log.info("%s by %s at the console: %s", done, system_user(), quote(name, safe="@"))
            print(f"{done}: {name}")

    return run


def system_user():
    """Name the system's user who runs this, by number where there is no name, as in a container."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@on_accounts
def add_user(users, settings, name, role=EDITOR):
    """Create an account."""
    name = NewCredentials.tidy("username", name)
    if not users.create(name, new_password(settings), known_role(role)):
        raise ValueError(USER_EXISTS.body["Error"])
    return "User created"


@on_accounts
def set_password(users, settings, name):
    """Give an account another password, and end every token of it."""
    users.set(name, password=users.hasher.hash(new_password(settings)), session=new_session())
    return "Password changed"


@on_accounts
def list_users(users, settings):
    """Print a line for each account: its name, a tab, its role."""
    for user in users.accounts.find(order_by="username"):
        print(user["username"], user["role"], sep="\t")


@on_accounts
def set_role(users, settings, name, role):
    """Make an account an editor or a reader."""
    users.set(name, role=known_role(role))
    return f"Role changed to {role}"


@on_accounts
def delete_user(users, settings, name):
    """Remove an account, and with it every token."""
    if not users.accounts.delete(username=name):
        raise ValueError("No user has that name")
    return "User deleted"


def new_password(settings):
    """Give a password that is asked for, or read from a pipe; raises `ValueError`."""
    typed = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    password = Credentials.tidy("password", typed)
    if len(password) < settings.password_min:
        raise ValueError(f"password: must be at least {settings.password_min} characters")
    return password


def known_role(role):
    """Give a role; raises `ValueError` where there is no such one."""
    if role not in ROLES:
        raise ValueError("role: must be " + " or ".join(ROLES))
    return role


def back_up(settings, file):
    """Copy a SQLite database, as it is at one moment, while it is in use."""
    source = file_of(settings.database_url)
    if not source:
        raise CommandRefused("use pg_dump to back up PostgreSQL")
    try:
        copy(source, file)
    except OSError as error:
        raise CommandRefused(f"{file}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise CommandRefused(f"cannot copy {source} to {file}: {error}") from None


COMMANDS = {
    "adduser": add_user,
    "passwd": set_password,
    "users": list_users,
    "role": set_role,
    "deluser": delete_user,
    "backup": back_up,
}


def read_command_line(arguments):
    """Give the command, to be called with the settings, and those; ends the program with 2 where one cannot work."""
    settings = options(Settings)
    parser = OneLineParser(prog="dealer.py", description=__doc__.partition("\n")[0], parents=[settings])
    commands = parser.add_subparsers(metavar="COMMAND", title="commands, instead of serving")
    for name, function in COMMANDS.items():
        about = function.__doc__.partition("\n")[0]
        command = commands.add_parser(name, parents=[settings], help=about, description=about)
        command.set_defaults(command=function)
        for argument in signature(function).parameters.values():
            if argument.default is not argument.empty:
                command.add_argument(f"--{argument.name}", default=argument.default, metavar="…")
            elif argument.name not in ("users", "settings"):
                command.add_argument(argument.name, metavar=argument.name.upper())
    given = vars(parser.parse_args(arguments))
    command = given.pop("command", run_server)
    own = {name: given.pop(name) for name in [*given] if name.islower()}
    return partial(command, **own), load(Settings, {**os.environ, **given})


def main(arguments=None):
    """Run the command line; gives the exit code of the program: 2 for a setting that cannot work, 1 for a refusal."""
    try:
        command, settings = read_command_line(arguments)
        start_log(settings.log_level)
        command(settings)
        return 0
    except (SettingError, CommandRefused) as error:
        print(f"dealer.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingError) else 1


if __name__ == "__main__":
    sys.exit(main())
