"""Measures this project and its peers side by side and writes the table to RESULTS.md.

    python benchmarks/run.py --rounds 5 --seconds 3
    python benchmarks/run.py --postgresql postgresql://postgres@127.0.0.1 --processes 2 --output TWO.md

Every round starts all contestants over fresh copies of their databases and gives each work to each of them in turn, so
that a machine that grows slower or faster does so for all. The table shows medians over the rounds.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from harness import (
    BARE,
    CAR_BODY,
    CONNECTIONS,
    HERE,
    PEERS,
    PROJECT,
    STOCK,
    BenchmarkError,
    PostgreSQL,
    Server,
    SQLite,
    cars,
    foreign_load,
    machine,
    processor_times,
    require_tools,
    seeded,
    table,
)

IMPORT = json.dumps(cars("import", 20_000))


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    digits: int = 0
    less_is_better: bool = False


READ = Row("one car read, requests/s")
LIST = Row("stock of 1,000 listed, requests/s")
CHANGED = Row("one car updated, then the stock listed, pairs/s")
UPDATE = Row("one car updated, requests/s")
CREATE = Row("cars created, requests/s")
UPLOAD = Row("20,000 cars imported, s", 2, less_is_better=True)
IDLE = Row("memory idle, MiB", less_is_better=True)
LOADED = Row("memory under load, MiB", less_is_better=True)
UPLOADED = Row("memory after the import, MiB", less_is_better=True)
START = Row("start to first answer, s", 2, less_is_better=True)
ROWS = (READ, LIST, CHANGED, UPDATE, CREATE, UPLOAD, IDLE, LOADED, UPLOADED, START)


def check(server):
    """Make sure that a contestant does its work before it is measured; the check creates the last of the 1,000 cars."""
    stock = cars("car", STOCK)
    last = dict(stock[-1])
    path = f"/auto/{last.pop('mark')}"
    server.expect(201, "POST", path, json.dumps(last))
    server.expect(202, "PUT", path, json.dumps(last))
    if server.expect(200, "GET", path) != stock[-1] or server.expect(200, "GET", "/stock") != stock:
        raise BenchmarkError(f"{server.contestant.name} does not give the cars that it was given")
    if server.request("PUT", path, json.dumps(last | {"max_speed": "fast"}))[0] not in (400, 422):
        raise BenchmarkError(f"{server.contestant.name} takes what is no number")
    database = server.folder / "cars.db"
    if database.exists() and database.read_bytes()[18:20] != b"\2\2":
        raise BenchmarkError(f"{server.contestant.name} does not keep its database in WAL mode")
    server.token, token = "", server.token
    server.expect(401, "GET", path)
    server.token = token


def check_limit(bare, project):
    """Make sure that waitress alone sends the same amount as this project does for one car and for the stock."""
    for path in ("/auto/car-000001", "/stock"):
        (_, limit_headers, limit), (_, headers, body) = bare.request("GET", path), project.request("GET", path)
        if abs(len(limit_headers) - len(headers)) > 1 or not 0.8 < len(limit) / len(body) < 1.25:
            raise BenchmarkError(f"peers/bare.py no longer resembles this project at {path}: {headers}")


def upload(server):
    """Import 20,000 cars; return the seconds it took."""
    begin = time.perf_counter()
    server.expect(201, "POST", "/stock", IMPORT)
    return time.perf_counter() - begin


def works(seconds):
    """Return what is measured once all contestants run, in this order: what adds cars comes last."""
    return {
        READ: lambda server: server.load("GET", "/auto/car-{n}", seconds),
        LIST: lambda server: server.load("GET", "/stock", seconds),
        CHANGED: lambda server: server.load("PUT", "/auto/car-{n}", seconds, body=CAR_BODY, following="/stock") / 2,
        UPDATE: lambda server: server.load("PUT", "/auto/car-{n}", seconds, body=CAR_BODY),
        CREATE: lambda server: server.load("POST", "/auto/new-{n}", seconds, "growing", 0, CAR_BODY),
        LOADED: Server.memory,
        UPLOAD: upload,
        UPLOADED: Server.memory,
    }


def measure_round(servers, seconds, record):
    """Start all servers, give each work to each of them in turn, and stop them."""
    with ExitStack() as stack:
        for server in servers:
            record(START, server, server.start())
            stack.callback(server.stop)
            record(IDLE, server, server.memory())
        by_contestant = {server.contestant: server for server in servers}
        for server in servers:
            if server.contestant is not BARE:
                check(server)
        if PROJECT in by_contestant:
            check_limit(by_contestant[BARE], by_contestant[PROJECT])
        for row, work in works(seconds).items():
            for server in servers:
                if server.contestant is not BARE or row is not UPLOAD:
                    record(row, server, work(server))


def measure(contestants, rounds, seconds, folder, store, processes):
    """Measure all rounds; return the list of values for each row and contestant."""
    tokens = {
        contestant: seeded(contestant, folder / "seed" / contestant.name, cars("car", STOCK - 1), store=store)
        for contestant in contestants
        if contestant is not BARE
    }
    values = defaultdict(list)

    def record(row, server, value):
        values[row, server.contestant].append(value)
        print(f"{row.name:36}{server.contestant.name:34}{value:10.2f}", file=sys.stderr)

    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        turn = number % len(contestants)
        places = {contestant: folder / f"round {number}" / contestant.name for contestant in contestants}
        for contestant in tokens:
            store.copy(folder / "seed" / contestant.name, places[contestant])
        servers = [
            Server(contestant, places[contestant], tokens.get(contestant, ""), store, processes)
            for contestant in contestants[turn:] + contestants[:turn]
        ]
        measure_round(servers, seconds, record)
        for contestant in contestants:
            store.remove(places[contestant])
    for contestant in tokens:
        store.remove(folder / "seed" / contestant.name)
    return values


def ratio(row, values, others):
    """Render how many times better this project is than the best of the others, with the range of the rounds."""
    sign = -1 if row.less_is_better else 1
    best = max((other for other in others if values[row, other]), key=lambda other: sign * median(values[row, other]))
    rounds = [(own / other) ** sign for own, other in zip(values[row, PROJECT], values[row, best], strict=True)]
    overall = (median(values[row, PROJECT]) / median(values[row, best])) ** sign
    return f"**{overall:.2f}** ({min(rounds):.2f} to {max(rounds):.2f})"


def cell(row, measured):
    """Render the median of what was measured."""
    return f"{median(measured):,.{row.digits}f}" if measured else ""


def line(row, values, contestants):
    """Render the cells of one line of the table."""
    peers = [contestant for contestant in contestants if contestant in PEERS]
    medians = [cell(row, values[row, contestant]) for contestant in contestants]
    limit = "" if row.less_is_better else ratio(row, values, [BARE])
    return [row.name, *medians, ratio(row, values, peers), limit]


def report(values, contestants, rounds, seconds, where, note):
    """Render what RESULTS.md holds."""
    head = ["", *(contestant.name for contestant in contestants), "beside the best peer", "beside the limit"]
    lines = [line(row, values, contestants) for row in ROWS]
    return (
        f"Measured on {machine()}; {where}; medians of {rounds} rounds of {seconds} s, {CONNECTIONS} connections. "
        f"{note} Bold ratios tell how many times better this project is (in parentheses: the range of the rounds).\n\n"
    ) + table(head, lines)


def main():
    """Measure everything and write the table."""
    parser = argparse.ArgumentParser(description="Measure this project beside its peers.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of load for each work and contestant in a round")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md")
    parser.add_argument("--postgresql", metavar="URL", help="a server to use instead of SQLite; without a database")
    parser.add_argument("--processes", type=int, default=1, help="of each contestant, with PostgreSQL")
    options = parser.parse_args()
    require_tools()
    store = PostgreSQL(options.postgresql) if options.postgresql else SQLite()
    where = f"{type(store).__name__}, {options.processes} process{'es' * (options.processes > 1)} of each"
    contestants = (PROJECT, *PEERS, BARE)
    begin = processor_times()
    with tempfile.TemporaryDirectory() as folder:
        values = measure(contestants, options.rounds, options.seconds, Path(folder), store, options.processes)
    note = foreign_load(begin)
    options.output.write_text(report(values, contestants, options.rounds, options.seconds, where, note))
    print(options.output.read_text())


if __name__ == "__main__":
    main()
