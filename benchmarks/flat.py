"""Measures what this project costs with a million cars, beside a thousand, and writes the table to FLAT.md.

    python benchmarks/flat.py

It fills a database through `POST /stock`, reads single cars from both in turn, streams the whole stock as JSON and as
CSV while another client reads single cars, and follows `Link` to the end of the listing to compare the last page with
the first.
"""

import argparse
import http.client
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from statistics import median

from harness import (
    HERE,
    PROJECT,
    STOCK,
    BenchmarkError,
    Server,
    cars,
    foreign_load,
    kibibytes,
    machine,
    processor_times,
    require_tools,
    seeded,
    table,
)

MILLION = 1_000_000
UPLOAD = 50_000  # the most that one may hold
ORDERS = ("mark", "-max_speed")


def filled(folder, count):
    """Make a database of this project with so many cars; return a server for it that has not been started."""
    uploads = (cars("car", min(UPLOAD, count), first) for first in range(1, count + 1, UPLOAD))
    return Server(PROJECT, folder, seeded(PROJECT, folder, *uploads))


def read_cost(small, large, rounds, seconds):
    """Return how many cars can be read in a second from each of the two, by medians over rounds in turn."""
    rates = {STOCK: [], MILLION: []}
    with small, large:
        for _ in range(rounds):
            for server, number in ((small, STOCK), (large, MILLION)):
                rates[number].append(server.load("GET", "/auto/car-{n}", seconds, number=number))
    return median(rates[STOCK]), median(rates[MILLION])


def read_all(port, headers):
    """Read the whole stock; return the seconds to the first byte, to the last, the size and the number of cars."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        begin = time.perf_counter()
        connection.request("GET", "/stock", headers=headers)
        answer = connection.getresponse()
        content = answer.read(1)
        first = time.perf_counter() - begin
        content += answer.read()
        return first, time.perf_counter() - begin, len(content), content.count(b"car-")


def timed(connection, path, headers):
    """Send one request over a kept connection; return the seconds it took."""
    begin = time.perf_counter()
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise BenchmarkError(f"GET {path} gave {answer.status}")
    return time.perf_counter() - begin


def probe(server, until):
    """Read single cars one after the other until told to stop; return the seconds each took."""
    seconds = []
    with closing(server.connect()) as connection:
        while not until():
            seconds.append(timed(connection, f"/auto/car-{len(seconds) % STOCK + 1:06d}", server.headers()))
    return seconds


def probe_for(server, seconds):
    """Read single cars for some seconds; return the seconds each took."""
    deadline = time.perf_counter() + seconds
    return probe(server, lambda: time.perf_counter() > deadline)


def stream(server, accept):
    """Stream the whole stock from a fresh server while another client reads single cars; return what both saw."""
    with server, ProcessPoolExecutor(1) as pool:
        pool.submit(int).result()
        quiet = probe_for(server, 1)
        process = server.process.pid
        before = kibibytes(process, "status", "VmRSS")
        Path(f"/proc/{process}/clear_refs").write_text("5")  # lets VmHWM, the highest memory so far, begin anew
        reading = pool.submit(read_all, server.port, server.headers(Accept=accept))
        meanwhile = probe(server, reading.done)
        growth = kibibytes(process, "status", "VmHWM") - before
        first, total, size, count = reading.result()
    if count != MILLION:
        raise BenchmarkError(f"GET /stock as {accept} gave {count} cars")
    return {
        "first byte, ms (goal 200)": first * 1e3,
        "all, s": total,
        "size, MB": size / 1e6,
        "memory growth, MiB (goal 32)": growth / 1024,
        "another client's read before, median, ms": median(quiet) * 1e3,
        "another client's read meanwhile, median, ms": median(meanwhile) * 1e3,
        "another client's read meanwhile, worst, ms": max(meanwhile) * 1e3,
    }


def follow(server, path):
    """Return the address of the next page as Link names it, or None at the end."""
    status, headers, _body = server.request("GET", path)
    if status != 200:
        raise BenchmarkError(f"GET {path} gave {status}")
    link = re.search(r'<([^>]+)>; rel="next"', headers.get("Link", ""))
    return link and re.sub(r"^https?://[^/]+", "", link[1])


def late_page(server, order):
    """Follow Link in pages of 1,000 to the last one; return the address of its first 100 cars."""
    path, pages = f"/stock?order_by={order}&limit=1000", 1
    while following := follow(server, path):
        path, pages = following, pages + 1
    if pages != MILLION // 1000:
        raise BenchmarkError(f"{path} is page {pages} of {MILLION // 1000}")
    return path.replace("limit=1000", "limit=100")


def page_cost(server, order, times=100):
    """Return the milliseconds of the first and of the last page of 100 cars, by medians of requests in turn."""
    paths = f"/stock?order_by={order}&limit=100", late_page(server, order)
    with closing(server.connect()) as connection:
        turns = [[timed(connection, path, server.headers()) for path in paths] for _ in range(times)]
    return [median(page) * 1e3 for page in zip(*turns, strict=True)]


def report(reads, streams, pages, note):
    """Render what FLAT.md holds."""
    few, many = (f"{rate:,.0f}" for rate in reads)
    stream_lines = [[name, *(f"{stream[name]:,.1f}" for stream in streams)] for name in streams[0]]
    page_lines = [
        [f"`order_by={order}`", f"{first:.2f}", f"{late:.2f}", f"{late / first:.2f}"]
        for order, (first, late) in pages.items()
    ]
    parts = (
        f"Measured on {machine()}, with 1,000,000 cars. {note} Bold is a ratio of costs.\n",
        f"`GET /auto/<mark>`: {many} requests/s, with 1,000 cars {few}: **{reads[0] / reads[1]:.2f}** (goal 1.2)\n",
        table(["`GET /stock`, all cars", "JSON", "CSV"], stream_lines),
        table(["`limit=100`", "first page, ms", "last page, ms", "ratio"], page_lines),
    )
    return "\n".join(parts)


def main():
    """Measure everything and write the table."""
    parser = argparse.ArgumentParser(description="Measure this project with a million cars.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of load on each of the two servers in a round")
    parser.add_argument("--orders", nargs="+", default=ORDERS, metavar="ORDER", help="of the listings that are paged")
    parser.add_argument("--output", type=Path, default=HERE / "FLAT.md")
    options = parser.parse_args()
    require_tools()
    begin = processor_times()
    with tempfile.TemporaryDirectory() as folder:
        small, large = filled(Path(folder, "small"), STOCK), filled(Path(folder, "large"), MILLION)
        reads = read_cost(small, large, options.rounds, options.seconds)
        streams = [stream(large, accept) for accept in ("application/json", "text/csv")]
        with large:
            pages = {order: page_cost(large, order) for order in options.orders}
    options.output.write_text(report(reads, streams, pages, foreign_load(begin)))
    print(options.output.read_text())


if __name__ == "__main__":
    main()
