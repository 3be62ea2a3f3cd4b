"""PostgreSQL that fails: of several servers the one that takes writes is used, and a silent one is not waited for.

`Servers` connects for a SQLAlchemy engine to whichever server of a URL of libpq's takes writes::

    engine = create_engine("postgresql+psycopg://")
    Servers("postgresql://dealer@one:5432,two:5433/dealer").connect_for(engine)

A server that is frozen, or behind a network that swallows, still takes what is sent to it: neither TCP nor its own
``statement_timeout`` ends the wait. So a `Connection` gives up when that time is over. It is closed then, and its
statement not cancelled: a COMMIT that is cancelled while it waits for a standby has succeeded. And `patience` bounds
how long one thread waits, whatever it asks.
"""

import select
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, as_completed, wait
from math import inf
from time import monotonic

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from sqlalchemy import event, exc

from plugins.storage import SILENCE, patience

CONNECT = 2  # seconds for one address; psycopg takes no less
STAGGER = 0.3  # seconds that a server is ahead of the next one (RFC 8305, "Happy Eyeballs")
REACH = 4  # seconds for all servers, whatever their names stand for
PAUSE = 1  # seconds after a failure in which no server is asked: what would connect fails at once


class Connection(psycopg.Connection):
    """A connection that is closed, with a `psycopg.OperationalError`, when its server has not answered in time."""

    def wait(self, generator, interval=0.1, timeout=inf):
        """Do all the waiting of psycopg, but that for the connection itself: once for a statement, or for its rows."""
        try:
            return super().wait(generator, interval, min(timeout, SILENCE, max(0.1, patience.end - monotonic())))
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.close()
                self.servers.silent()
            raise


class Servers:
    """The servers of a URL, which are tried in their order, a silent one not holding up the next."""

    def __init__(self, url, options=""):
        """Take a URL, and options that come after its own, so override them; raises `ValueError` for a bad URL."""
        own = {"connect_timeout": CONNECT, "target_session_attrs": "read-write"}
        self.all = [{**one, **own, "options": f"{one.get('options', '')} {options}"} for one in servers_of(url)]
        self.silence, self.rest = 0.0, 0.0  # when one was silent, and until when none is asked

    def connect_for(self, engine):
        """Connect whenever an engine would, and look at what comes from its pool."""
        event.listen(engine, "do_connect", self.connect)
        event.listen(engine, "checkout", self.look_at)

    def silent(self):
        """Trust no connection that there is."""
        self.silence = monotonic()
        self.rest = self.silence + PAUSE

    def look_at(self, connection, record, proxy):
        """Have the pool replace what is from before a silence, or has something to say unasked: the server ended it."""
        waiting = select.poll()
        waiting.register(connection.fileno(), select.POLLIN)
        if connection.made < self.silence or waiting.poll(0):
            raise exc.InvalidatePoolError

    def connect(self, dialect, record, arguments, options):
        """Give a connection, in place of the dialect's own; raises `psycopg.OperationalError`.

        The server that was used last comes first the next time.
        """
        if monotonic() < self.rest:
            raise psycopg.OperationalError("no server could be used a moment ago")
        threads, tries = ThreadPoolExecutor(len(self.all)), {}
        try:
            for server in self.all:
                tries[threads.submit(Connection.connect, **server, **options)] = server
                if any(not attempt.exception() for attempt in wait(tries, STAGGER, FIRST_COMPLETED).done):
                    break
            for attempt in as_completed(tries, REACH):
                error = attempt.exception()
                if not error:
                    used, connection = tries.pop(attempt), attempt.result()
                    self.all = sorted(self.all, key=lambda server: server is not used)
                    connection.servers, connection.made = self, monotonic()
                    return connection
        except TimeoutError:
            error = psycopg.OperationalError("no server answers")
        finally:
            threads.shutdown(wait=False)
            for attempt in tries:
                attempt.add_done_callback(close_late)
        self.rest = monotonic() + PAUSE
        raise error


def close_late(attempt):
    """Close the connection of a server that another was quicker than."""
    if not attempt.exception():
        attempt.result().close()


def servers_of(url):
    """Give libpq's parameters for each server of a URL; raises `ValueError`, which shows no password.

    A password with a sign that should have been percent-encoded may have ended up as anything.
    """
    authority, _, path = url.partition("://")[2].partition("?")[0].partition("/")
    try:
        found = conninfo_to_dict(url)
        hosts, ports = (found.get(name, "").split(",") for name in ("host", "port"))
        if authority.count("@") > 1 or "@" in path or not all(port.isdigit() for port in filter(None, ports)):
            raise ValueError
        pairs = zip(hosts, ports * (len(hosts) // len(ports)), strict=True)
        return [{**found, "host": host, "port": port} for host, port in pairs]
    except (psycopg.Error, ValueError):
        raise ValueError("cannot be read as a URL; what is special in a password must be percent-encoded") from None
