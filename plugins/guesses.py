"""Guesses: how often somebody may fail to log in, or register, counted in the database, so in all processes.

After `NAME_LIMIT` failures for one name from one address, or `ADDRESS_LIMIT` from one address, within `WINDOW`, every
further try is refused unseen, for names that exist and names that do not alike::

    guesses = Guesses(db["failures"], NAME_LIMIT)

    guesses.check(name, address)       # raises TooManyAttempts
    if not right(name, password):
        guesses.record(name, address)  # raises it too, where others used up the last guess meanwhile

What no longer counts is forgotten with the next one, and names are kept as their hash only: people type passwords into
the wrong field.
"""

import hashlib
import math
import time
from ipaddress import ip_address, ip_network

from sqlalchemy import Index, Table

from plugins.storage import column

NAME_LIMIT = 10
ADDRESS_LIMIT = 100
WINDOW = 5 * 60 * 1000  # milliseconds


class TooManyAttempts(Exception):
    """Nobody may guess that often; the next guess is looked at after `retry_after` seconds."""

    def __init__(self, retry_after):
        super().__init__(retry_after)
        self.retry_after = retry_after


def guesses_table(name, metadata):
    """Give a table of what counts: whence, for which name (SHA-256), and when (milliseconds since 1970)."""
    return Table(
        name,
        metadata,
        column("address", str),
        column("name", str),
        column("at", int),
        Index(f"{name}_address", "address", "at"),
        Index(f"{name}_at", "at"),
        sqlite_strict=True,
    )


class Guesses:
    """What still counts."""

    def __init__(self, table, name_limit=ADDRESS_LIMIT):
        self.table = table
        self.name_limit = name_limit

    def check(self, name, address):
        """Raise `TooManyAttempts` where there were enough."""
        now = milliseconds()
        since = {"address": network(address), "at": {">": now - WINDOW}}
        everyone = list(self.table.find(**since, order_by="-at", _limit=ADDRESS_LIMIT))
        same = [guess for guess in everyone if guess["name"] == fingerprint(name)]
        for guesses, limit in ((same, self.name_limit), (everyone, ADDRESS_LIMIT)):
            if len(guesses) >= limit:
                raise TooManyAttempts(math.ceil((guesses[limit - 1]["at"] + WINDOW - now) / 1000))

    def record(self, name, address):
        """Count a guess, in a transaction that writes; raises `TooManyAttempts` where it would be one too many."""
        self.table.lock()
        self.table.delete(at={"<=": milliseconds() - WINDOW})
        self.check(name, address)
        self.table.insert({"address": network(address), "name": fingerprint(name), "at": milliseconds()})


def network(address):
    """Give what an address counts as: one host may have all that begin with the same 64 bits of IPv6 (RFC 6177)."""
    try:
        found = ip_address(address)
    except ValueError:  # no address, but the name of a socket
        return address
    plain = getattr(found, "ipv4_mapped", None) or found
    return str(plain if plain.version == 4 else ip_network((int(plain), 64), strict=False))


def fingerprint(name):
    """Give what a name is known by."""
    return hashlib.sha256(name.encode()).hexdigest()


def milliseconds():
    """Give the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
