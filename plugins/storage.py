"""Storage: one transaction of a `dataset` database per request, on SQLite and PostgreSQL alike.

A handler that names a keyword gets what stands behind it: the database itself, or an object that works on it. Its
transaction is committed when the handler answers, rolled back when it raises, and its connection is given back::

    db = Database("sqlite:///data.db")
    app.install(StoragePlugin(db, cars=Cars(db)))

    @app.get("/car/<mark>")
    def show(mark, cars):
        return cars.find(mark)

Requests with a safe method (RFC 9110, section 9.2.1) read one moment of the database; all others write, one after the
other on either database, so that what a transaction has read still holds when it writes. The transaction begins with
the first statement: a refused request costs no connection, and a slow body or a password hash holds none up. Code that
must read without waiting for writers opens a transaction of its own; inside another of the same kind it joins that::

    with db.reading():
        ...
    with db.writing():
        ...

A database that cannot be reached, is full or stays locked is a 503 with ``Retry-After``.
"""

import logging
import sqlite3
import threading
from functools import partial, wraps
from inspect import isgenerator
from itertools import chain

import dataset
from bottle import HTTPError, PluginError
from sqlalchemy import BigInteger, Column, Integer, Text, event, exc
from sqlalchemy.dialects import postgresql, sqlite

log = logging.getLogger("dealer")

SAFE_METHODS = ("GET", "HEAD")
LOCK_SECONDS = 4  # requests that queue for a thread meanwhile must still be answered within ten
POOL = {"max_overflow": 0, "hide_parameters": True}  # what parameters hold must not reach the log
SQLITE = {"connect_args": {"timeout": LOCK_SECONDS, "isolation_level": None, "check_same_thread": False}}
POSTGRES = {
    "pool_pre_ping": True,
    "connect_args": {
        "connect_timeout": 3,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 2,
        "tcp_user_timeout": 6000,
        "options": f"-c lock_timeout={LOCK_SECONDS}s -c statement_timeout=6s",
    },
}


class State(threading.local):
    """What a thread has in hand: its connection, once it has begun, and whether it is in a transaction that writes."""

    connection = driver = writing = None


class Database(dataset.Database):
    """A `dataset.Database` whose transactions are begun on purpose, and which never changes its schema by itself.

    ``url`` is a SQLAlchemy URL; ``connections`` is how many threads may hold one at once (none holds two), 0 for any
    number; ``lock`` is the statement with which writers on PostgreSQL line up; ``functions`` gives SQLite functions of
    one text by name. Rows come as dictionaries.
    """

    def __init__(self, url, connections=0, lock="SELECT 1", functions=()):
        options = SQLITE if url.startswith("sqlite") else POSTGRES
        super().__init__(
            url,
            ensure_schema=False,
            row_type=dict,
            engine_kwargs={"pool_size": connections, "pool_timeout": LOCK_SECONDS, **POOL, **options},
            on_connect_statements=["PRAGMA synchronous=FULL"] if url.startswith("sqlite") else None,
        )
        if self.is_sqlite:
            event.listen(self.engine, "connect", partial(add_functions, dict(functions)))
        self.lock_statement = lock
        self.dbapi = self.engine.dialect.loaded_dbapi
        self.state = State()

    @property
    def driver(self):
        """The driver's connection of this thread's transaction, a `sqlite3.Connection` or a `psycopg.Connection`.

        The first use of it takes a connection from the pool and begins the transaction.
        """
        state = self.state
        if state.driver is None:
            connection = self.engine.connect()
            try:
                driver = connection.connection.driver_connection
                self.begin_on(driver, state.writing)
            except BaseException:
                connection.close()
                raise
            state.connection, state.driver = connection, driver
        return state.driver

    @property
    def executable(self):
        """The SQLAlchemy connection around `driver`, for what `dataset` itself sends."""
        return self.driver and self.state.connection

    def begin_on(self, driver, writing):
        """Begin a transaction as one moment to read, or as the only writer.

        Left alone, SQLite's driver begins one no sooner than at the first change, and a transaction that has read
        before it writes can fail at once there; on PostgreSQL each statement would see another moment.
        """
        if self.is_sqlite:
            driver.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
            return
        driver.read_only = not writing
        driver.isolation_level = None if writing else self.dbapi.IsolationLevel.REPEATABLE_READ
        if writing:
            driver.execute(self.lock_statement)

    def prepare(self, statement):
        """Compile a SQLAlchemy statement once, to be called with its parameters by name."""
        return Statement(self, statement)

    def insert_new(self, table):
        """Prepare the statement that inserts a row unless its key is taken, and gives the key where it went in."""
        return self.prepare(self.insert(table).on_conflict_do_nothing().returning(*table.primary_key))

    def upsert(self, table):
        """Prepare the statement that inserts a row, or puts it in the place of the one with its key."""
        insert = self.insert(table)
        return self.prepare(insert.on_conflict_do_update(index_elements=table.primary_key, set_=dict(insert.excluded)))

    def insert(self, table):
        """Give the database's own kind of INSERT, which knows of conflicts."""
        return (sqlite if self.is_sqlite else postgresql).insert(table)

    def stream(self, statement, size=1000):
        """Run a SQLAlchemy statement whose rows come in lists of up to `size`, as they are asked for."""
        return self.executable.execute(statement, execution_options={"yield_per": size}).partitions()

    def reading(self):
        """Give a context in which all statements see the same moment."""
        return Transaction(self, writing=False)

    def writing(self):
        """Give a context in which no other writer is at work."""
        return Transaction(self, writing=True)

    def detach(self):
        """Give this thread's connection, with its transaction, to the caller, who must close it."""
        connection = self.state.connection
        self.state.connection = self.state.driver = None
        return connection

    def finish(self, commit, sound=True):
        """End this thread's transaction, if it has begun, and give its connection back, or drop one that failed.

        A session that was ended, or a file that could only be read, would fail the next request as well.
        """
        connection = self.detach()
        if connection is None:
            return
        try:
            if sound:
                driver = connection.connection.driver_connection
                (driver.commit if commit else driver.rollback)()
        except BaseException:
            sound = False
            raise
        finally:
            if not sound:
                connection.invalidate()
            connection.close()

    def close(self):
        """Give back every connection; the object cannot be used after."""
        self.finish(commit=False)
        super().close()


class Transaction:
    """A block whose changes are kept together, or not at all where it raises.

    Inside another transaction of the same kind, or one that has begun, the block is a part of that.
    """

    def __init__(self, db, writing):
        self.db = db
        self.writing = writing

    def __enter__(self):
        state = self.db.state
        self.outer = state.writing
        self.own = self.outer != self.writing and state.connection is None
        if self.own:
            state.writing = self.writing
        return self.db

    def __exit__(self, kind, error, traceback):
        if self.own:
            try:
                self.db.finish(
                    commit=kind is None, sound=not isinstance(error, (self.db.dbapi.Error, exc.SQLAlchemyError))
                )
            finally:
                self.db.state.writing = self.outer


def column(name, kind, **options):
    """Give a column for `int`, of 64 bits, or `str`, sorted by code point; not NULL unless `options` say so."""
    text = Text(collation="C").with_variant(Text(collation="BINARY"), "sqlite")
    number = BigInteger().with_variant(Integer, "sqlite")
    return Column(name, text if kind is str else number, **{"nullable": False, **options})


def add_functions(functions, connection, record):
    """Add functions of one argument to a new SQLite connection."""
    for name, function in functions.items():
        connection.create_function(name, 1, function, deterministic=True)


class Statement:
    """A statement, compiled once and sent straight to the driver, at a fifth of its cost by way of SQLAlchemy."""

    def __init__(self, db, statement):
        compiled = statement.compile(db.engine)
        self.db = db
        self.sql = str(compiled)
        self.fixed = compiled.params
        self.order = compiled.positiontup

    def __call__(self, **parameters):
        """Run the statement in this thread's transaction; gives its rows as dictionaries, none where it has none."""
        cursor = self.db.driver.execute(self.sql, self.bind(parameters))
        if cursor.description is None:
            return []
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row)) for row in cursor]  # noqa: B905 - as long as each other

    def many(self, rows):
        """Run the statement for each of `rows`, which are parameters by name, as they come."""
        self.db.driver.cursor().executemany(self.sql, map(self.bind, rows))

    def bind(self, parameters):
        """Give the parameters as the driver wants them."""
        values = {**self.fixed, **parameters}
        return [values[name] for name in self.order] if self.order else values


class StoragePlugin:
    """Inject the database, or what was made of it, into the handlers that ask, in one transaction."""

    name = "storage"
    api = 2

    def __init__(self, db, **resources):
        """Take a `Database` and, by keyword, what was made of it for handlers to ask for."""
        self.db = db
        self.resources = {"db": db, **resources}

    def setup(self, app):
        """Refuse a second plugin with one of the same keywords."""
        for other in app.plugins:
            if isinstance(other, StoragePlugin) and other.resources.keys() & self.resources.keys():
                raise PluginError(f"Another storage plugin has one of the keywords {', '.join(self.resources)}.")

    def apply(self, callback, route):
        """Wrap a callback in a transaction, as its method and its arguments ask for."""
        wanted = {name: self.resources[name] for name in route.get_callback_args() if name in self.resources}
        writing = route.method not in SAFE_METHODS
        db = self.db

        @wraps(callback)
        def wrapper(*args, **kwargs):
            try:
                with Transaction(db, writing):
                    result = callback(*args, **kwargs, **wanted)
                    return stream_or_whole(result, db) if isgenerator(result) else result
            except (exc.SQLAlchemyError, db.dbapi.Error) as error:
                raise unavailable(error, db.dbapi) from error

        return wrapper

    def close(self):
        """Close the database."""
        self.db.close()


def stream_or_whole(parts, db):
    """Give an answer that comes in parts: whole where it has no more than one, which spares the connection."""
    first, second = next(parts, b""), next(parts, None)
    return first if second is None else Stream(chain((first, second), parts), parts, db.detach())


class Stream:
    """An answer in parts that are still being read, with the connection that reads them."""

    def __init__(self, parts, generator, connection):
        self.parts = parts
        self.generator = generator
        self.connection = connection

    def __iter__(self):
        return self.parts

    def close(self):
        """Stop reading, wherever it is, and give the connection back."""
        self.generator.close()
        self.connection.close()


def unavailable(error, dbapi):
    """Give the 503 for a database that cannot serve now; raises `error` again where it is a fault of the program."""
    cause = getattr(error, "orig", error)
    passing = isinstance(cause, (dbapi.OperationalError, dbapi.InterfaceError, exc.TimeoutError))
    if not passing or getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
        raise error
    log.error("database: %s", " ".join(str(cause).split()))
    return HTTPError(503, "Database is not available. Try again later", Retry_After="1")
