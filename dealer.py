"""A car dealer's stock over HTTP with JSON: register, log in, and look up, add, change and remove cars by their mark.

``python dealer.py`` serves it on SQLite; ``DATABASE_URL`` puts it on PostgreSQL. Importing this module opens nothing:
`create_app` builds the application. In reading order: settings, values, schema, storage, answers, routes, application,
command line.
"""

import argparse
import dataclasses
import logging
import os
import secrets
import sys
import time
from pathlib import Path
from urllib.parse import quote

import argon2
from bottle import Bottle, response
from msgspec import structs
from sqlalchemy import BigInteger, CheckConstraint, Column, Integer, MetaData, Table, bindparam, exc, select
from sqlalchemy import Text as TextColumn
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url

from plugins.access import AccessPlugin
from plugins.answers import Answer, AnswersPlugin
from plugins.bodies import MAX_INTEGER, BodiesPlugin, Number, Password, Record, Text, fields
from plugins.identity import IdentityPlugin
from plugins.methods import MethodsPlugin
from plugins.server import Lane, serve
from plugins.storage import Database, StoragePlugin

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


class Credentials(Record):
    """Who registers or logs in."""

    username: Text(80)
    password: Password(1024)


# ----------------------------------------------------------------------------------------------------------------------
# Schema
# ----------------------------------------------------------------------------------------------------------------------

SCHEMA_VERSION = 1

metadata = MetaData()


def column(name, type, **options):
    """Give the column that stores a field: 64-bit integers, and text that compares and sorts by code point."""
    text = TextColumn(collation="C").with_variant(TextColumn(collation="BINARY"), "sqlite")
    kind = text if type is str else BigInteger().with_variant(Integer, "sqlite")
    return Column(name, kind, nullable=False, **options)


def columns_of(record, key):
    """Give a column for each field of a record, and the checks that hold in the database what the record holds."""
    for name, field in fields(record).items():
        yield column(name, field.type.__origin__, primary_key=name == key)
        if field.type.__origin__ is int:
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

autos_table = Table("autos", metadata, *columns_of(Car, key="mark"), sqlite_strict=True, sqlite_with_rowid=False)


def open_schema(db):
    """Create the tables that are missing; raises `SettingError` for a database that is not of this program."""
    with db.writing():
        known = set(db.tables)
        version = db[versions_table.name].find_one()["version"] if versions_table.name in known else 0
        if version > SCHEMA_VERSION:
            raise SettingError(f"DATABASE_URL: has schema version {version}, this program knows {SCHEMA_VERSION}")
        if not version and known & metadata.tables.keys():
            raise SettingError("DATABASE_URL: holds tables of another program")
        metadata.create_all(db.executable)
        if not version:
            db.query(versions_table.insert(), version=SCHEMA_VERSION)


# ----------------------------------------------------------------------------------------------------------------------
# Storage
# ----------------------------------------------------------------------------------------------------------------------


def insert_new(db, table):
    """Give the statement that inserts a row unless its key is taken, and returns it only where it went in."""
    insert = (sqlite if db.is_sqlite else postgresql).insert
    return db.prepare(insert(table).on_conflict_do_nothing().returning(*table.primary_key))


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


class UnknownAuto(LookupError):
    """There is no car with that mark."""


class AutoExists(ValueError):
    """There is a car with that mark already."""


class Autos:
    """The cars. One statement decides and writes, so that of several at once exactly one succeeds."""

    def __init__(self, db):
        self.db = db
        same = autos_table.c.mark == bindparam("mark_")
        values = {name: bindparam(name) for name in fields(Car) if name != "mark"}
        self.insert = insert_new(db, autos_table)
        self.select = db.prepare(select(autos_table).where(same))
        self.select_all = db.prepare(select(autos_table).order_by(autos_table.c.mark))
        self.replace = db.prepare(autos_table.update().where(same).values(values).returning(autos_table.c.mark))
        self.remove = db.prepare(autos_table.delete().where(same).returning(autos_table.c.mark))

    def create(self, car):
        """Add a car; raises `AutoExists`."""
        if not self.insert(**structs.asdict(car)):
            raise AutoExists(car.mark)

    def find(self, mark):
        """Give a car as a dictionary; raises `UnknownAuto`."""
        for car in self.select(mark_=mark):
            return car
        raise UnknownAuto(mark)

    def all(self):
        """Give every car, ordered by mark."""
        return self.select_all()

    def update(self, car):
        """Replace the data of a car; raises `UnknownAuto`."""
        values = structs.asdict(car)
        if not self.replace(mark_=values.pop("mark"), **values):
            raise UnknownAuto(car.mark)

    def delete(self, mark):
        """Remove a car; raises `UnknownAuto`."""
        if not self.remove(mark_=mark):
            raise UnknownAuto(mark)


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
NO_AUTOS = Answer(400, {"Error": "No one autos found in DataBase"})

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
    response.set_header("Cache-Control", "private, no-cache")
    return autos.find(mark)


@routes.post("/auto/" + MARK)
def create_auto(mark, car: Car, autos):
    """Add one car."""
    autos.create(car)
    response.set_header("Location", "/auto/" + quote(mark, safe=""))
    return AUTO_CREATED


@routes.put("/auto/" + MARK)
def update_auto(mark, car: Car, autos):
    """Replace the data of one car."""
    autos.update(car)
    return AUTO_UPDATED


@routes.delete("/auto/" + MARK)
def delete_auto(mark, autos):
    """Remove one car."""
    autos.delete(mark)
    return AUTO_DELETED


@routes.get("/stock")
def list_stock(autos):
    """List every car, ordered by mark."""
    cars = autos.all()
    if not cars:
        raise NO_AUTOS.error()
    response.set_header("Cache-Control", "private, no-cache")
    return cars


# ----------------------------------------------------------------------------------------------------------------------
# Application
# ----------------------------------------------------------------------------------------------------------------------


def create_app(settings=None):
    """Build the application over its database; raises `SettingError` where a setting cannot work."""
    settings = settings or Settings()
    url = make_url(settings.database_url)
    key = signing_key(settings, url)
    db = open_database(settings)
    users = Users(db)
    identity = IdentityPlugin(key, settings.jwt_ttl, confirm=users.confirm)
    app = Bottle()
    for plugin in (
        AccessPlugin(),
        AnswersPlugin({UnknownAuto: AUTO_NOT_FOUND, AutoExists: AUTO_EXISTS}),
        MethodsPlugin(),
        StoragePlugin(db, users=users, autos=Autos(db)),
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
    db = Database(settings.database_url, connections=settings.threads + 8, lock="SELECT pg_advisory_xact_lock(1908)")
    try:
        open_schema(db)
    except (exc.SQLAlchemyError, OSError) as error:
        raise SettingError("DATABASE_URL: " + " ".join(str(getattr(error, "orig", error)).split())) from None
    return db


# ----------------------------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------------------------

LANES = {
    "writes": Lane(threads=1, patience=5, refusal="Too many changes wait. Try again later"),
    "passwords": Lane(threads=1, patience=5, refusal="Too many logins wait. Try again later"),
}


def lane_of(method, path, query):
    """Name the queue of workers for a request, so that what takes long never keeps what is short waiting."""
    if path in ("/register", "/auth"):
        return "passwords"
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
