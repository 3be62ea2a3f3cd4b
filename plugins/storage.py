"""Storage: a `dataset` database's tables as dictionaries, in one transaction per request, on SQLite and PostgreSQL.

A handler that names a keyword gets what stands behind it: the database itself, or an object that works on it. Its
transaction is committed when the handler answers, rolled back when it raises, and its connection is given back::

    db = Database("sqlite:///data.db", metadata)
    app.install(StoragePlugin(db, cars=Cars(db)))

    @app.get("/car/<mark>")
    def show(mark, db):
        return db["cars"].find_one(mark=mark)

Requests with a safe method (RFC 9110, section 9.2.1) read one moment of the database, all others write: on SQLite one
after the other, on PostgreSQL side by side, where rows and constraints decide. The transaction begins with the first
statement: a refused request costs no connection, and a slow body or a password hash holds none up. What must hold for
it, that an account exists, is looked at there and then (`Database.expect`). Code that must read without waiting for
writers opens a transaction of its own, ``with db.reading():``; inside another that has begun it is a part of that.
What is a single statement says so, ``reading(single=True)``: around that PostgreSQL needs no transaction, which spares
it two ways there and back. A database that cannot be reached, is full or stays locked is a 503 with ``Retry-After``.
"""

import logging
import sqlite3
import threading
from contextlib import closing, contextmanager
from functools import lru_cache, partial, wraps
from inspect import isgenerator
from itertools import chain, compress
from math import inf
from operator import add
from time import monotonic

import dataset
import msgspec
import sqlalchemy as sa
from bottle import HTTPError
from dataset.util import QUERY_STEP, QueryError, ensure_strings
from sqlalchemy.dialects import postgresql, sqlite

from plugins import Parts, Plugin

log = logging.getLogger("dealer")

SAFE_METHODS = ("GET", "HEAD")
SHAPES = 512  # statements that a table keeps compiled
ONE = sa.literal_column("1")
LOCK = 1908  # PostgreSQL's advisory lock behind `Database.line_up`
LOCK_SECONDS = 4  # requests that queue for a thread meanwhile must still be answered within ten
POOL = {"max_overflow": 0, "pool_timeout": LOCK_SECONDS, "hide_parameters": True}  # they must not reach the log
SQLITE = {"connect_args": {"timeout": LOCK_SECONDS, "isolation_level": None, "check_same_thread": False}}
POSTGRES = {"paramstyle": "format"}
TIMEOUTS = f"-c lock_timeout={LOCK_SECONDS}s -c statement_timeout={LOCK_SECONDS}s"
SILENCE = 4.5  # seconds for a statement: longer than a server that lives lets it take
PART = 1000  # rows in one statement for PostgreSQL, which answers each in time however long an upload takes
READ_ONLY = ("25006", "0A000")  # what is said to a change by a server that was demoted, and by a standby


class Patience(threading.local):
    """Until when, by the monotonic clock, this thread waits for a PostgreSQL that is silent."""

    end = inf


patience = Patience()


class State(threading.local):
    """What a thread has in hand: its connection, once it has begun, whether it writes, and what is expected of it."""

    connection = driver = executable = writing = expected = None
    single, settled = False, True


class Database(dataset.Database):
    """A `dataset.Database` whose transactions are begun on purpose, and which never changes its schema by itself.

    ``url`` is a SQLAlchemy URL; ``metadata`` declares tables, so that nothing is reflected; ``connections`` is how many
    threads may hold one at once (none holds two), 0 for any number. ``db["name"]`` is a `Table`.
    """

    def __init__(self, url, metadata=None, connections=0):
        on_sqlite = url.startswith("sqlite")
        super().__init__(
            url if on_sqlite else "postgresql+psycopg://",
            ensure_schema=False,
            row_type=dict,
            engine_kwargs={"pool_size": connections, **POOL, **(SQLITE if on_sqlite else POSTGRES)},
            on_connect_statements=["PRAGMA synchronous=FULL"] if on_sqlite else None,
        )
        if on_sqlite:
            sa.event.listen(
                self.engine, "connect", lambda new, _: new.create_function("fold", 1, folded, deterministic=True)
            )
        else:
            from plugins.postgresql import Servers  # only here, for its driver takes 9 MiB

            Servers(url.replace("+psycopg", "", 1), TIMEOUTS).connect_for(self.engine)
        self.declared = (metadata or sa.MetaData()).tables
        self.dbapi = self.engine.dialect.loaded_dbapi
        self.insert_into = (sqlite if on_sqlite else postgresql).insert  # these know of conflicts
        self.reading, self.writing = partial(self.transaction, False), partial(self.transaction, True)
        self.state = State()

    @property
    def driver(self):
        """The driver's connection of this thread's transaction, a `sqlite3.Connection` or a `psycopg.Connection`.

        The first use of it takes a connection from the pool, begins the transaction and looks at what is expected.
        """
        state = self.state
        if state.driver is None:
            self.begin_transaction()
            if state.expected:
                refuse, table, filters = state.expected
                if not self[table].find_one(**filters, _locked=state.writing):
                    refuse()
        return state.driver

    @property
    def executable(self):
        """The SQLAlchemy connection around `driver`, for what `dataset` itself sends."""
        if self.driver and not self.state.executable:
            self.state.executable = sa.Connection(self.engine, connection=self.state.connection)
        return self.state.executable

    def begin_transaction(self):
        """Take a connection, and begin a transaction on it as one moment to read, or as a writer.

        Left alone, SQLite's driver begins one no sooner than at the first change, and a transaction that has read
        before it writes can fail at once there; on PostgreSQL each statement that reads would see another moment.
        """
        state = self.state
        if state.writing is None:
            raise RuntimeError("Statements belong into reading() or writing()")
        state.settled = True
        patience.end = monotonic() + SILENCE  # in all; what has many rows lifts that
        state.connection = self.engine.raw_connection()
        driver = state.connection.driver_connection
        if self.is_sqlite:
            driver.execute("BEGIN IMMEDIATE" if state.writing else "BEGIN")
        else:
            level = None if state.writing else self.dbapi.IsolationLevel.REPEATABLE_READ
            wanted = {"autocommit": state.single, "read_only": not state.writing, "isolation_level": level}
            for name, value in wanted.items():
                if getattr(driver, name) != value:  # to set it takes the driver longer
                    setattr(driver, name, value)
        state.driver = driver

    def expect(self, refuse, table, **filters):
        """Have every transaction of this thread begin with a look whether a table has a row that matches.

        Where it has none, ``refuse()`` raises what is to be answered; nothing has been read or written then.
        """
        self.state.expected, self.state.settled = (refuse, table, filters), False

    def settle(self):
        """Expect nothing any more; what no transaction has looked at is looked at now."""
        try:
            if not self.state.settled:
                with self.reading():
                    self.driver  # noqa: B018 - begins
        finally:
            self.state.expected, self.state.settled = None, True

    def line_up(self):
        """Wait until no other transaction that lined up is at work; on SQLite writers have done so when they began."""
        if not self.is_sqlite:
            self.driver.execute(f"SELECT pg_advisory_xact_lock({LOCK})")

    def load_table(self, table_name):
        """Give a `Table`; the database is asked for its columns only where it was not declared."""
        with self.lock:
            if table_name not in self._tables:
                self._tables[table_name] = Table(self, table_name)
            return self._tables[table_name]

    def _auto_commit(self):
        """Commit nothing: where a transaction ends is said by `reading` and `writing`."""

    @contextmanager
    def transaction(self, writing, single=False):
        """Give a context whose statements see one moment, or are kept together; or have a `single` statement in it.

        Inside another that is the same, or has begun, it is a part of that; what writes is refused in one that reads.
        """
        state = self.state
        outer, kind = (state.writing, state.single), (writing, single and not self.is_sqlite)
        if writing and state.writing is False:
            raise RuntimeError("A transaction that reads cannot write")
        if state.driver is not None or outer == kind:
            yield self
            return
        state.writing, state.single = kind
        try:
            yield self
            end(self.detach(), "commit")
        except self.dbapi.Error as error:  # straight from the driver
            end(self.detach(), "invalidate")
            raise sa.exc.DBAPIError(None, None, error) from error
        except BaseException as error:
            end(self.detach(), "invalidate" if isinstance(error, sa.exc.SQLAlchemyError) else "rollback")
            raise
        finally:
            state.writing, state.single = outer

    def detach(self):
        """Give this thread's connection, with its transaction, to the caller, who must end both; None without one."""
        connection = self.state.connection
        self.state.connection = self.state.driver = self.state.executable = None
        return connection

    def close(self):
        """Give back every connection; the object cannot be used after."""
        end(self.detach(), "rollback")
        super().close()


def end(connection, how):
    """End a transaction by `how`, ``commit`` or ``rollback``, and give its connection back to the pool.

    By ``invalidate``, or where that fails, it is dropped: a session that was ended, or a file that could only be read,
    would fail the next request as well.
    """
    if connection:
        try:
            getattr(connection, how)()
        except BaseException:
            connection.invalidate()
            raise
        finally:
            connection.close()


def column(name, kind, **options):
    """Give a column for `int`, of 64 bits, or `str`, sorted by code point; not NULL unless `options` say so."""
    text = sa.Text(collation="C").with_variant(sa.Text(collation="BINARY"), "sqlite")
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    return sa.Column(name, text if kind is str else number, **{"nullable": False, **options})


def folded(text):
    """Give a text without its case: ``STRASSE`` and ``Straße`` are one, and so are the forms of sigma."""
    return text and text.lower().upper()


class Table(dataset.Table):
    """A `dataset.Table` each of whose verbs is one statement that decides, compiled once for each shape.

    Its shape is the names of columns, filters and operators; it goes straight to the driver, in this thread's
    transaction, and commits nothing. Arguments and results are those of dataset, but for ``ensure`` and ``types``,
    which change the schema. What is more: filters know ``contains``, which ignores case; ``startswith`` minds it on
    both databases; and ``{"name|city": {…}}`` is a filter on either column.

    A table whose declaration has ``info={"journal": name}`` keeps one: what is written with an ``_entry``, a
    dictionary, is written into that table too, with the row as it then is, or its key where it was deleted.
    """

    def __init__(self, db, name):
        super().__init__(db, name)
        self._table = db.declared.get(self.name)
        self._compiled = lru_cache(maxsize=SHAPES)(self._compile)

    def find(self, *clauses, _streamed=False, _step=QUERY_STEP, **options):
        """Give an iterator over the rows that match, as dictionaries.

        ``_columns`` names those wanted, ``_after`` the values of ``order_by`` behind which to begin: a page by keyset.
        With ``_streamed`` rows are fetched as they are asked for, inside this transaction (dataset opens another one).
        """
        shape, values = self._query(clauses, **options)
        if _streamed:
            return self._compiled(self._select, None, *shape).stream(values, _step)
        return iter(self._run(self._select, shape, values))

    def find_one(self, *clauses, **options):
        """Give the first row that matches, or None."""
        return next(iter(self._run(self._select, *self._query(clauses, _limit=1, **options))), None)

    def count(self, *clauses, **filters):
        """Give how many rows match."""
        return self._run(self._count, *self._query(clauses, **filters))[0]["count"]

    def json(self, *clauses, **options):
        """Give what `find` gives, with the same arguments, as the text of one JSON array: the database writes it."""
        return self._run(self._gather, *self._query(clauses, **options))[0]["text"]

    def insert(self, row, _conflict=(), _entry=None):
        """Add a row; gives its primary key, True where there is none, False where no row was added."""
        rows = self._write(self._insert, (), tuple(row), *_conflict, values=[*row.values()], entry=_entry)
        key = next(iter(self.table.primary_key), None)
        return bool(rows) and (key is None or rows[0][key.name])

    def insert_ignore(self, row, keys, _entry=None):
        """Add a row; gives its primary key, or False where a unique index over `keys` has one like it."""
        return self.insert(row, (tuple(ensure_strings(keys)), False), _entry)

    def upsert(self, row, keys):
        """Add a row, or change the one with its `keys`, which have a unique index; gives its primary key.

        dataset gives True for a row that was there, and lets such a row be given in part: neither can be had in one
        statement on both databases.
        """
        return self.insert(row, (tuple(ensure_strings(keys)), True))

    def insert_many(self, rows, _conflict=()):
        """Add many rows, on SQLite one by one, on PostgreSQL at once; what one lacks of the others' columns is NULL."""
        rows = list(rows)
        names = tuple(dict.fromkeys(chain.from_iterable(rows)))
        if self.db.is_sqlite and rows:
            statement = self._compiled(self._insert, None, names, *_conflict)
            self.db.driver.executemany(statement.sql, ([row.get(name) for name in names] for row in rows))
            return
        patience.end = inf
        for first in range(0, len(rows), PART):
            part = msgspec.json.encode(rows[first : first + PART]).decode()
            self._compiled(self._insert_all, None, names, *_conflict)([part])

    def upsert_many(self, rows, keys):
        """Do as `upsert` with many rows; no two of them may have the same `keys`."""
        self.insert_many(rows, (tuple(ensure_strings(keys)), True))

    def update(self, row, keys, _entry=None, **filters):
        """Give the rows that have the values of `row` under `keys`, and match, its other values; gives their number."""
        row = dict(row)
        parts = self._shape({name: row.pop(name, None) for name in ensure_strings(keys)}), self._shape(filters)
        shape, values = map(add, *parts)
        if not row:
            return self._run(self._count, ((), shape), values)[0]["count"]
        return len(self._write(self._update, (), tuple(row), shape, values=[*row.values(), *values], entry=_entry))

    def delete(self, *clauses, _entry=None, **filters):
        """Remove the rows that match; tells whether there were any."""
        shape, values = self._shape(filters)
        return bool(self._write(self._delete, clauses, shape, values=values, entry=_entry))

    def lock(self):
        """Keep other writers out of the table, not readers, until the transaction ends; on SQLite they are anyway."""
        if not self.db.is_sqlite:
            self.db.driver.execute(f'LOCK TABLE "{self.name}" IN SHARE ROW EXCLUSIVE MODE')

    def _query(self, clauses, _limit=None, _offset=0, order_by=(), _columns=(), _after=(), _locked=False, **filters):
        """Give the shape of a query, and its values."""
        where, values = self._shape(filters)
        cut = _limit is not None, bool(_offset)
        shape = clauses, where, tuple(ensure_strings(order_by)), tuple(_columns), len(_after), *cut, _locked
        return shape, [*values, *_after, *compress((_limit, _offset), cut)]

    def _shape(self, filters):
        """Give filters as (name, operator, whether there is a value) triples, and the values."""
        shape, values = [], []
        for name, given in filters.items():
            if not isinstance(given, dict):
                given = {"in" if isinstance(given, (list, tuple, set)) else "=": given}
            for operator, value in given.items():
                if operator in ("between", ".."):
                    shape += ((name, ">=", True), (name, "<=", True))
                    values += value
                    continue
                if operator in ("in", "notin"):
                    if not isinstance(value, (list, tuple, set)):
                        raise QueryError(f"{operator!r} filter requires a list, got {type(value)}")
                    value = msgspec.json.encode(list(value)).decode() if self.db.is_sqlite else list(value)
                shape.append((name, operator, value is not None))
                values += () if value is None else (value,)
        return tuple(shape), values

    def _run(self, build, shape, values):
        """Give the rows of a statement, which looks at what is expected too where it is the only one."""
        state = self.db.state
        if not (state.expected and state.single and state.driver is None):
            return self._compiled(build, None, *shape)(values)
        self.db.begin_transaction()  # which looks at nothing itself
        refuse, table, filters = state.expected
        rows = self._compiled(build, (table, *filters), *shape)([*filters.values(), *values])
        marks = [(row.pop("held"), row.pop("found")) for row in rows]
        if not marks[0][0]:
            refuse()
        return rows if marks[0][1] else []

    def _write(self, *shape, values, entry=None):
        """Run a statement that writes; gives its rows, of which there are entries in the journal then."""
        entry = entry or {}
        rows = self._run(self._change, (tuple(entry), *shape), [*values, *entry.values()])
        if entry and rows and self.db.is_sqlite:
            self.db[self.table.info["journal"]].insert_many([{**entry, **row} for row in rows])
        return rows

    def _compile(self, build, expected, *shape):
        """Compile the statement that ``build(bind, held, *shape)`` makes; ``bind(type)`` is the next value's place.

        ``held`` is a query for the row that is expected, None if there is nothing to look at.
        """
        places = []

        def bind(kind):
            places.append(sa.bindparam(f"value_{len(places)}", type_=kind))
            return places[-1]

        held = expected and self.db[expected[0]]._where(bind, (), [(name, "=", True) for name in expected[1:]])
        held = expected and sa.select(ONE).select_from(self.db[expected[0]].table).where(held)
        return Statement(self.db, build(bind, held, *shape), [each.key for each in places])

    def _where(self, bind, clauses, shape):
        """Give the condition of filters; as with dataset, none holds of a column that is not there."""
        conditions = list(clauses)
        for names, operator, valued in shape:
            places = [self.table.c.get(self._get_column_name(name)) for name in names.split("|")]
            kind = None if places[0] is None else places[0].type
            many = kind is not None and operator in ("in", "notin") and not self.db.is_sqlite
            value = bind(sa.ARRAY(type(kind)()) if many else kind) if valued else None
            known = [self._generate_clause(place.name, operator, value) for place in places if place is not None]
            conditions.append(sa.or_(False, *known))
        return sa.and_(True, *conditions)

    def _generate_clause(self, column, op, value):
        """Give a condition, by dataset's operators and ours."""
        place = self.table.c[column]
        if op == "contains" and self.db.is_sqlite:
            return sa.func.instr(sa.func.fold(place), sa.func.fold(value)) > 0
        if op == "contains":  # the collation has more than ASCII folded
            fold = [sa.func.upper(sa.func.lower(sa.collate(text, "und-x-icu"))) for text in (place, value)]
            return sa.func.strpos(*fold) > 0
        if op == "startswith":
            return sa.func.substr(place, 1, sa.func.length(value)) == value
        if op == "endswith":
            return sa.func.substr(place, sa.func.length(place) - sa.func.length(value) + 1) == value
        if op in ("in", "notin"):
            if self.db.is_sqlite:
                values = sa.select(sa.func.json_each(value).table_valued("value").c.value)
                return place.in_(values) if op == "in" else place.not_in(values)
            return place == sa.any_(value) if op == "in" else place != sa.all_(value)
        return super()._generate_clause(column, op, value)

    def _select(self, bind, held, clauses, shape, order, columns, after, limited, offset, locked):
        """Give the statement for the rows in order, from where a page begins.

        A page begins behind a row: among those that equal it in the first columns of the order and lie beyond in the
        next. Each such set is a range of an index, which one condition with OR would not be.
        """
        named = self.table.c
        where = self._where(bind, clauses, shape)
        order = [(self._get_column_name(each.lstrip("-")), each.startswith("-")) for each in order]
        order = [(name, falling) for name, falling in order if name in named]
        values = [bind(named[name].type) for name, _ in order[:after]]
        limit = bind(sa.Integer()) if limited else None

        def pick(named):
            return sa.select(*(named[name] for name in columns or self.table.c.keys()))

        def cut(statement, named):
            orders = (named[name].desc() if falling else named[name] for name, falling in order)
            return statement.order_by(*orders).limit(limit)

        if not after:
            rows = cut(pick(named).where(where), named).offset(bind(sa.Integer()) if offset else None)
            return beside(held, rows.with_for_update(read=True) if locked else rows)
        parts = []
        for last, (name, falling) in reversed(list(enumerate(order[:after]))):
            equal = [named[name] == value for (name, _), value in zip(order[:last], values, strict=False)]
            beyond = named[name] < values[last] if falling else named[name] > values[last]
            parts.append(sa.select(cut(sa.select(self.table).where(where, *equal, beyond), named).subquery()))
        rows = sa.union_all(*parts).subquery()
        return beside(held, cut(pick(rows.c), rows.c))

    def _count(self, bind, held, clauses, shape, *_):
        """Give the statement that counts."""
        rows = sa.select(sa.func.count().label("count")).select_from(self.table)
        return beside(held, rows.where(self._where(bind, clauses, shape)))

    def _gather(self, bind, held, *shape):
        """Give the statement for the rows of `_select` as one text of JSON."""
        rows = self._select(bind, None, *shape).subquery("rows")
        if self.db.is_sqlite:
            pairs = chain.from_iterable((sa.literal_column(f"'{each.name}'"), each) for each in rows.c)
            array = sa.func.json_group_array(sa.func.json_object(*pairs))
        else:
            array = sa.cast(sa.func.json_agg(rows.table_valued()), sa.Text)
        return beside(held, sa.select(sa.func.coalesce(array, "[]").label("text")))

    def _change(self, bind, held, entry, build, clauses, *shape):
        """Give a statement that writes, and gives the rows' keys or what the journal keeps of them.

        PostgreSQL writes the entries in the same statement, and waits for its turn just before: so their ids become
        visible in their order, and whoever waits for a row has not got that turn yet: no two wait for each other.
        What is expected stays as it is until then.
        """
        if held is not None:
            own = self.table in held.get_final_froms()
            held = sa.select(ONE).select_from(held.with_for_update(read=not own, key_share=own).cte("guard"))
            clauses = (*clauses, held.exists())
        statement = build(bind, clauses, *shape)
        journal = self.db[self.table.info["journal"]].table if entry else None
        said = [bind(journal.c[name].type) for name in entry]
        kept = self.table.primary_key or [*self.table.c][:1]
        if entry and build != self._delete:
            kept = [each for each in self.table.c if each.name in journal.c]
        statement = statement.returning(*kept)
        if self.db.is_sqlite or (held is None and not entry):
            return statement
        changed = statement.cte("changed")
        rows = beside(held, sa.select(*changed.c))
        if not entry:
            return rows
        queued = sa.select(changed, sa.func.pg_advisory_xact_lock(LOCK).label("turn")).cte("queued")
        names = [each.name for each in kept]
        source = sa.select(*said, *(queued.c[name] for name in names))
        return rows.add_cte(journal.insert().from_select([*entry, *names], source).cte("entries"))

    def _places(self, bind, names):
        """Give the places of a row's values by column; as with dataset, those of other names are dropped."""
        known = [self.table.c.get(self._get_column_name(name)) for name in names]
        places = [bind(None if each is None else each.type) for each in known]
        return {each.name: place for each, place in zip(known, places, strict=True) if each is not None}

    def _insert(self, bind, clauses, names, keys=None, replace=False):
        """Give the statement that adds a row, if `clauses` hold."""
        values, row = self._places(bind, names), self.db.insert_into(self.table)
        row = row.from_select([*values], sa.select(*values.values()).where(*clauses)) if clauses else row.values(values)
        return self._or_else(row, values, keys, replace)

    def _insert_all(self, bind, _, names, keys=None, replace=False):
        """Give PostgreSQL's statement that adds many rows, which come as one text of JSON."""
        kinds = {each.name: type(each.type)() for each in self.table.c if each.name in names}
        columns = (sa.Column(*each) for each in kinds.items())
        given = sa.func.json_to_recordset(sa.cast(bind(sa.Text()), sa.JSON))
        rows = sa.select(*given.table_valued(*columns).render_derived(with_types=True).c)
        return self._or_else(self.db.insert_into(self.table).from_select([*kinds], rows), kinds, keys, replace)

    def _or_else(self, statement, names, keys, replace):
        """Add to an INSERT what is done about a row that has the same `keys`."""
        if keys is None:
            return statement
        if not replace:
            return statement.on_conflict_do_nothing(index_elements=keys)
        others = {name: statement.excluded[name] for name in names if name not in keys}
        return statement.on_conflict_do_update(index_elements=keys, set_=others)

    def _update(self, bind, clauses, names, shape):
        """Give the statement that changes rows."""
        return self.table.update().values(self._places(bind, names)).where(self._where(bind, clauses, shape))

    def _delete(self, bind, clauses, shape):
        """Give the statement that removes rows."""
        return self.table.delete().where(self._where(bind, clauses, shape))


def beside(held, rows):
    """Give a query together with a look whether there is what is expected, or by itself where nothing is."""
    if held is None:
        return rows
    one = sa.select(held.exists().label("held")).subquery("one")
    rows = rows.add_columns(sa.literal_column("true").label("found")).subquery("rows")
    return sa.select(one, rows).select_from(one.outerjoin(rows, one.c.held))


class Statement:
    """A statement, compiled once and sent straight to the driver, at a fifth of its cost by way of SQLAlchemy."""

    def __init__(self, db, statement, places):
        """Compile a statement; `places` are the names of its parameters, in the order in which values are given."""
        compiled = statement.compile(db.engine)
        self.db = db
        self.sql = str(compiled)
        self.names = [each.name for each in statement.exported_columns]
        others = [name for name in compiled.positiontup if name not in places]
        self.fixed = [compiled.params[name] for name in others]
        self.order = [[*places, *others].index(name) for name in compiled.positiontup]

    def __call__(self, values):
        """Run the statement in this thread's transaction; gives its rows as dictionaries, none where it has none."""
        cursor = self.db.driver.execute(self.sql, self.bind(values))
        return [dict(zip(self.names, row)) for row in cursor] if self.names else []  # noqa: B905 - as long

    def stream(self, values, step):
        """Run the statement; gives its rows one by one, of which `step` are fetched at once."""
        driver = self.db.driver
        patience.end = inf
        with closing(driver.cursor() if self.db.is_sqlite else driver.cursor("stream")) as cursor:
            cursor.execute(self.sql, self.bind(values))
            while rows := cursor.fetchmany(step):
                for row in rows:
                    yield dict(zip(self.names, row))  # noqa: B905 - as long

    def bind(self, values):
        """Give the values, and those that never change, in the driver's order."""
        values = [*values, *self.fixed]
        return [values[place] for place in self.order]


class StoragePlugin(Plugin):
    """Inject the database, or what was made of it, into the handlers that ask, in one transaction."""

    def __init__(self, db, **resources):
        """Take a `Database` and, by keyword, what was made of it for handlers to ask for."""
        self.db = db
        self.resources = {"db": db, **resources}

    def apply(self, callback, route):
        """Wrap a callback in a transaction, as its method and its arguments ask for."""
        wanted = {name: self.resources[name] for name in route.get_callback_args() if name in self.resources}
        writing = route.method not in SAFE_METHODS
        db = self.db

        @wraps(callback)
        def wrapper(*args, **kwargs):
            try:
                with db.transaction(writing):
                    try:
                        result = callback(*args, **kwargs, **wanted)
                    finally:
                        db.settle()
                    return stream_or_whole(result, db) if isgenerator(result) else result
            except sa.exc.SQLAlchemyError as error:
                raise unavailable(error, db.dbapi, writing) from error

        return wrapper

    def close(self):
        """Close the database."""
        self.db.close()


def stream_or_whole(parts, db):
    """Give an answer that comes in parts: whole where it has no more than one, which spares the connection."""
    first, second = next(parts, b""), next(parts, None)
    if second is None:
        return first
    answer = Parts(chain((first, second), parts))
    answer.callback(end, db.detach(), "rollback")
    answer.callback(parts.close)
    return answer


def shown(url):
    """Give a URL without its password and its parameters."""
    scheme, _, rest = url.partition("?")[0].partition("://")
    user, at, servers = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{servers}"


def one_line(error):
    """Give what an error of the database says in one line."""
    return " ".join(str(getattr(error, "orig", error)).split())


def unavailable(error, dbapi, writing):
    """Give the 503 for a database that cannot serve now; raises `error` again where it is a fault of the program."""
    cause = getattr(error, "orig", error)
    for each in (error, cause):  # PostgreSQL repeats the row in its details, which must not reach the log
        each.args = tuple(str(text).partition("\nDETAIL:")[0] for text in each.args)
    passing = isinstance(cause, (dbapi.OperationalError, dbapi.InterfaceError, sa.exc.TimeoutError))
    passing = passing or (writing and getattr(cause, "sqlstate", None) in READ_ONLY)
    if not passing or getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
        raise error
    log.error("database: %s", one_line(error))
    return HTTPError(503, "Database is not available. Try again later", Retry_After="1")
