"""Guesses: how often somebody may fail to log in, counted in the database, so in all processes and over restarts.

After `NAME_LIMIT` failures for one name from one address, or `ADDRESS_LIMIT` from one address, within `WINDOW`, every
further try is refused unseen, for names that exist and names that do not alike::

    guesses = Guesses(db, guesses_table(metadata))

    guesses.check(name, address)       # raises TooManyAttempts
    if not right(name, password):
        guesses.record(name, address)  # raises it too, where others used up the last guess meanwhile

Failures that no longer count are forgotten with the next one, and names are kept as their hash only: people type
passwords into the wrong field.
"""

import hashlib
import math
import time

from sqlalchemy import Index, Table, bindparam, select

from plugins.storage import column

NAME_LIMIT = 10
ADDRESS_LIMIT = 100
WINDOW = 5 * 60 * 1000  # milliseconds


class TooManyAttempts(Exception):
    """Nobody may guess that often; the next guess is looked at after `retry_after` seconds."""

    def __init__(self, retry_after):
        super().__init__(retry_after)
        self.retry_after = retry_after


def guesses_table(metadata):
    """Give the table of failures: whence, for which name (SHA-256), and when (milliseconds since 1970)."""
    return Table(
        "failures",
        metadata,
        column("address", str),
        column("name", str),
        column("at", int),
        Index("failures_address", "address", "at"),
        Index("failures_at", "at"),
        sqlite_strict=True,
    )


class Guesses:
    """The failures that still count."""

    def __init__(self, db, table):
        since = table.c.at > bindparam("since")
        latest = select(table).where(table.c.address == bindparam("address"), since)
        self.latest = db.prepare(latest.order_by(table.c.at.desc()).limit(ADDRESS_LIMIT))
        self.insert = db.prepare(table.insert())
        self.forget = db.prepare(table.delete().where(table.c.at <= bindparam("until")))

    def check(self, name, address):
        """Raise `TooManyAttempts` where there were enough."""
        now = milliseconds()
        everyone = self.latest(address=address, since=now - WINDOW)
        same = [failure for failure in everyone if failure["name"] == fingerprint(name)]
        for failures, limit in ((same, NAME_LIMIT), (everyone, ADDRESS_LIMIT)):
            if len(failures) >= limit:
                raise TooManyAttempts(math.ceil((failures[limit - 1]["at"] + WINDOW - now) / 1000))

    def record(self, name, address):
        """Count a failure, in a transaction that writes; raises `TooManyAttempts` where it would be one too many."""
        self.forget(until=milliseconds() - WINDOW)
        self.check(name, address)
        self.insert(address=address, name=fingerprint(name), at=milliseconds())


def fingerprint(name):
    """Give what a name is known by."""
    return hashlib.sha256(name.encode()).hexdigest()


def milliseconds():
    """Give the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
