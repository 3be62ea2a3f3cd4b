"""The server: what only real sockets show, and what it does with bytes that are not meant well."""

import hashlib
import http.client
import inspect
import json
import os
import random
import re
import select
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from statistics import median

import pytest
from waitress.buffers import OverflowableBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.receiver import ChunkedReceiver
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.utilities import Error

import dealer
from conftest import (
    AS_JSON,
    CAR,
    HERE,
    INVALID_TOKEN,
    MARKS,
    MIB,
    OTHER_CAR,
    Site,
    assert_error,
    assert_headers,
    assert_json,
    at,
    at_once,
    raw_car,
    request_bytes,
    statuses,
    table,
    timed,
    wait_for,
)

# ----------------------------------------------------------------------------------------------------------------------
# The assignment over sockets
# ----------------------------------------------------------------------------------------------------------------------


def raw_request(server, line, *headers, body=b""):
    """Give a request as it goes over the wire, with the server's token."""
    head = [line, "Host: localhost", f"Authorization: Bearer {server.token}", *headers]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def test_one_of_many_simultaneous_cars_is_created(server):
    answers = server.at_once(*[("POST", "/auto/BMW", {**CAR, "distance": number}) for number in range(16)])

    assert statuses(answers) == [201] + [400] * 15
    winner = next(number for number, answer in enumerate(answers) if answer.status_int == 201)
    assert_json(server.request("GET", "/auto/BMW"), 200, {"mark": "BMW", **CAR, "distance": winner})


def test_one_of_many_simultaneous_registrations_succeeds(server):
    answers = server.at_once(*[("POST", "/register", {"username": "bob", "password": str(n)}) for n in range(16)])

    assert statuses(answers) == [201] + [400] * 15
    winner = next(number for number, answer in enumerate(answers) if answer.status_int == 201)
    assert server.request("POST", "/auth", {"username": "bob", "password": str(winner)}).status_int == 200


def test_one_of_many_simultaneous_deletions_succeeds(server):
    server.request("POST", "/auto/BMW", CAR)

    answers = server.at_once(*[("DELETE", "/auto/BMW")] * 16)

    assert statuses(answers) == [202] + [404] * 15


def test_simultaneous_cars_of_different_marks_are_all_created(server):
    answers = server.at_once(*[("POST", f"/auto/{number}", CAR) for number in range(16)])

    assert statuses(answers) == [201] * 16
    assert len(server.request("GET", "/stock").json) == 16


def test_refused_duplicates_delay_no_later_write(server):
    server.at_once(*[("POST", "/auto/BMW", CAR)] * 16)

    began = time.monotonic()
    answer = server.request("PUT", "/auto/BMW", OTHER_CAR)

    assert_json(answer, 202, {"Message": "Auto updated"})
    assert time.monotonic() - began < 3  # a lock that was left would keep it for four seconds


@pytest.mark.parametrize("mark", table(*[[mark] for mark in MARKS if len(mark) < 255]))
def test_mark_over_a_socket(server, mark):
    server.request("POST", at(mark), CAR)

    assert_json(server.request("GET", at(mark)), 200, {"mark": mark, **CAR})


@pytest.mark.parametrize("path", ["/auto/VW%20Golf/4Motion", "/auto/VW%20Golf%2F4Motion", "/auto/VW%20Golf%2f4Motion"])
def test_slash_over_a_socket(server, path):
    server.request("POST", "/auto/VW%20Golf/4Motion", CAR)

    assert_json(server.request("GET", path), 200, {"mark": "VW Golf/4Motion", **CAR})


def test_path_that_is_not_utf8_over_a_socket(server):
    answer = server.request("GET", "/auto/%FFbmw")

    assert_error(answer, 400, "path: must be UTF-8")


def test_token_sent_twice_over_a_socket(server):
    answer = server.send_bytes(
        raw_request(server, "GET /stock HTTP/1.1", f"Authorization: Bearer {server.token}", "Connection: close")
    )

    assert_error(answer, 401, "Token is invalid or expired")
    assert_headers(answer, WWW_Authenticate=INVALID_TOKEN)


def test_unknown_transfer_coding_is_501(server):
    answer = server.send_bytes(b"POST /auth HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n")

    assert_error(answer, 501, "Transfer-Encoding is not supported")


def test_large_body_is_refused_by_its_announced_length(server):
    line = "POST /auto/BMW HTTP/1.1"
    answer = server.send_bytes(
        raw_request(server, line, "Content-Type: application/json", f"Content-Length: {MIB + 1}")
    )

    assert_error(answer, 413, "Body is larger than 1048576 bytes")


def test_body_without_a_length_is_fine(server):
    head = raw_request(
        server, "POST /auto/BMW HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    body = raw_car().encode()

    answer = server.send_bytes(head, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    assert_json(answer, 201, {"Message": "Auto created"})


def test_body_of_a_mebibyte_over_a_socket(server):
    answer = server.request("POST", "/auto/BMW", raw_car().rjust(MIB), **{"Content-Type": "application/json"})

    assert_json(answer, 201, {"Message": "Auto created"})


@pytest.mark.parametrize("path", ["/nothing", "/auto/", "/stock/"])
def test_unknown_path_over_a_socket(server, path):
    assert_error(server.request("GET", path), 404, "Not found")


def test_head_over_a_socket(server):
    server.request("POST", "/auto/BMW", CAR)

    answer = server.request("HEAD", "/auto/BMW")

    assert (answer.status_int, answer.body) == (200, b"")


# ----------------------------------------------------------------------------------------------------------------------
# Attacked
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lasting_target(tmp_path_factory):
    """A server for all attacks."""
    folder = tmp_path_factory.mktemp("target")
    site = Site(f"sqlite:///{folder / 'dealer.db'}", folder)
    site.ready()
    site.token("alice")
    yield site
    site.end()
    for connection in site.connections:
        connection.close()


@pytest.fixture
def target(lasting_target):
    """A server that after the test is well, has logged no fault and given none, and has not grown."""
    with lasting_target.bounded(48):
        yield lasting_target
        answer, seconds = timed(lasting_target.ask, "GET", "/history")
    assert answer.status == 200
    assert seconds < 1
    assert not re.search(r"Traceback|ERROR", lasting_target.logged())


def attack(site, *parts, ends=False):
    """Send bytes, perhaps half-close, and give all answers until the server hangs up."""
    with site.connect(deadline=3) as connection:
        for part in parts:
            connection.send(part)
        if ends:
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
        return connection.answers()


SENTENCES = {
    400: "Bad HTTP request$|body: must be JSON in UTF-8$",
    401: "Token is ",
    408: "Request came too slowly$",
    413: r"Body is larger than \d+ bytes$",
    431: r"Headers are larger than \d+ bytes$",
    500: "Internal server error$",
    501: "Transfer-Encoding is not supported$",
}


def assert_refused(answers, *statuses):
    """Compare the one answer, after which the connection ended: JSON, of one of some statuses."""
    (answer,) = answers
    assert answer.status in statuses
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json) == ["Error"]
    assert re.match(SENTENCES[answer.status], answer.json["Error"])


def test_what_names_no_lane_asks_no_database(app):
    for route in app.routes:
        lane = route.config.get("lane")
        asks = not route.config.get("public") or {"autos", "history", "users"} & set(route.get_callback_args())
        assert bool(lane) == bool(asks), route
        assert not isinstance(lane, str) or lane in dealer.lanes_of(dealer.Settings()), route


SMUGGLED = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
HOST = b"POST /auth HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\n" + CHUNKED,
        CHUNKED + b"\r\nContent-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 5\r\nContent-Length: 0",
        b"Content-Length: 5, 6",
        b"Content-Length: +5",
        b"Content-Length: -5",
        b"Content-Length: 0x5",
        b"Content-Length: x",
        b"Content-Length: 5_0",
        b"Content-Length: 5 0",
        b"Content-Length: \xd9\xa5",
        b"Content-Length: " + b"9" * 5000,
        b"Content-Length : 5",
        b"Content-Length\t: 5",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding\t: chunked",
        b" Transfer-Encoding: chunked",
        b"X: a\r\n Transfer-Encoding: chunked",
        b"X: a\r\n\tTransfer-Encoding: chunked",
        b"Transfer-Encoding:\r\n chunked",
        b"X: a\n" + CHUNKED,
        b"X: a\r" + CHUNKED,
        b"X: a\r\r\n" + CHUNKED,
        b"X: a\0\r\n" + CHUNKED,
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked-false",
        b'Transfer-Encoding: "chunked"',
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding:",
        CHUNKED + b"\r\nTransfer-Encoding: identity",
        CHUNKED + b"\r\n" + CHUNKED,
        b"Host: b",
        b": a",
        b"no colon",
    ],
    ids=lambda headers: ascii(headers)[2:-1][:50],
)
def test_smuggled_request_is_not_answered(target, headers):
    answers = attack(target, HOST + headers + b"\r\n\r\n0\r\n\r\n" + SMUGGLED)

    assert_refused(answers, 400, 501)


@pytest.mark.parametrize("line", [b"GET /health HTTP/1.1\nHost: a\n\n", b"GET /health HTTP/1.1\r\nHost: a\n\r\n"])
def test_lines_that_end_in_lf_alone_are_refused(target, line):
    assert_refused(attack(target, line + SMUGGLED), 400)


@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"+2\r\n{}\r\n0\r\n\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"2_0\r\n{}\r\n0\r\n\r\n",
        b"2\n{}\n0\n\n",
        b"2;a\nb\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}XX0\r\n\r\n",
        b"1\r\n{}\r\n0\r\n\r\n",
        b"f" * 100 + b"\r\n",
        b"2;" + b"x" * 100_000,
        b"2\r\n{}\r\n0\r\n" + b"X: a\r\n" * 100_000,
    ],
    ids=lambda chunks: ascii(chunks)[2:-1][:30],
)
def test_malformed_chunks_are_refused(target, chunks):
    assert_refused(attack(target, HOST + CHUNKED + b"\r\n\r\n" + chunks + SMUGGLED), 400, 413)


def test_body_of_a_get_is_no_request(target):
    head = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED)

    assert [answer.status for answer in attack(target, head + SMUGGLED)] == [200]


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), [400]),
        (b"SSH-2.0-OpenSSH_9.6\r\n", []),  # a request that does not end
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
        (b"hello\r\n\r\n", [400]),
        (b"GET\r\n\r\n", [400]),
        (b"GET /health\r\n\r\n", [400]),
        (b"GET /health HTTP/1.1\r\n\r\n", [400]),  # no Host
        (b"GET /health HTTP/9.9\r\nHost: a\r\n\r\n", [400]),
        (b"GET  /health HTTP/1.1\r\nHost: a\r\n\r\n", [400]),
        (b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n", [400]),
        (b"\xff" * 70_000, [400]),
        (b"\0" * 1_000_000, [400]),
        (b"a" * 1_000_000, [431]),
        (b"\r\n" * 500_000, []),
        (random.Random(1).randbytes(1_000_000), [400]),
    ],
    ids=lambda value: ascii(value)[2:-1][:20],
)
def test_what_is_not_http_is_refused(target, data, statuses):
    answers = attack(target, data, ends=True)

    assert [answer.status for answer in answers] == statuses
    if answers:
        assert_refused(answers, *statuses)


@pytest.mark.parametrize("header", [b"X: " + b"x" * 10_000_000, b"X: a\r\n" * 1_000_000], ids=["long", "many"])
def test_huge_headers_are_431(target, header):
    assert_refused(attack(target, b"GET /health HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n\r\n"), 431)


@pytest.mark.parametrize("path", ["/auto/BMW", "/stock"])
@pytest.mark.parametrize("end", [b"]", b"}", b""], ids=["closed", "wrong", "open"])
@pytest.mark.parametrize("bracket", [b"[", b'{"mark":'], ids=["array", "object"])
def test_nested_brackets_are_400(target, bracket, end, path):
    body = bracket * 100_000 + end * 100_000

    assert target.ask("POST", path, body, Content_Type="application/json").status == 400


@pytest.mark.parametrize(
    "data",
    [HOST[:20], HOST, HOST + b"Content-Length: 100\r\n\r\n{", HOST + CHUNKED + b"\r\n\r\n5\r\n{"],
    ids=["line", "headers", "body", "chunk"],
)
def test_half_a_request_costs_only_a_connection(target, data):
    waiting = [target.connect() for _ in range(20)]
    for connection in waiting:
        connection.send(data)

    assert target.ask("GET", "/history").status == 200
    assert attack(target, data, ends=True) == []
    for connection in waiting:
        connection.close()


def test_length_that_is_too_short_smuggles_nothing(target):
    answers = attack(target, HOST + b'Content-Length: 10\r\n\r\n{"username": "alice", "password": "warik"}' + SMUGGLED)

    assert [answer.status for answer in answers] == [400, 400]


EXPECT = {"Expect": "100-continue", "Content_Type": "application/json"}


@pytest.mark.parametrize(
    ("path", "length", "name", "status"),
    [
        ("/auto/BMW", MIB + 1, "alice", 413),
        ("/auth", 10**15, None, 413),
        ("/stock", 64 * MIB + 1, "alice", 413),
        ("/stock", 64 * MIB, None, 401),
        ("/stock", 10, None, 401),
    ],
)
def test_body_that_is_not_wanted_is_not_asked_for(target, path, length, name, status):
    token = target.token(name) if name else None
    answers = attack(target, request_bytes("POST", path, None, token, Content_Length=length, **EXPECT))

    assert_refused(answers, status, 401)


def test_body_that_is_wanted_is_asked_for(target):
    with target.connect("alice") as connection:
        connection.request("POST", "/stock", None, Content_Length=2, **EXPECT)
        assert connection.answer().status == 100
        connection.send(b"[]")
        assert connection.answer().status == 201


def megabytes(number, chunked=False):
    """Give a body in parts of one MiB."""
    part = bytes(MIB)
    parts = [b"%x\r\n%b\r\n" % (MIB, part) if chunked else part] * number
    return [*parts, b"0\r\n\r\n"] if chunked else parts


CODED = {"Transfer_Encoding": "chunked", **AS_JSON}


def test_uploads_of_strangers_are_401_while_they_still_send(target):
    sized = request_bytes("POST", "/stock", None, None, Content_Length=64 * MIB, **AS_JSON)
    chunked = request_bytes("POST", "/stock", None, "wrong", **CODED)
    attacks = [partial(attack, target, sized, *megabytes(64))] * 2 + [
        partial(attack, target, chunked, *megabytes(64, chunked=True))
    ] * 2

    with target.bounded(24) as growth:
        answers = at_once(*attacks)

    for answer in answers:
        assert_refused(answer, 401)
    assert target.spilled() < 1
    print(f"\nattacked: 4 uploads of 64 MiB without a token refused at once; memory grew by {growth():.0f} MiB")


@pytest.mark.parametrize(("path", "size"), [("/auto/BMW", 2), ("/auth", 2), ("/stock", 65)])
def test_chunks_over_the_limit_are_413(target, path, size):
    head = request_bytes("POST", path, None, target.token("alice"), **CODED)
    with target.bounded(24):
        answers = attack(target, head, *megabytes(size, chunked=True))

    assert_refused(answers, 413)
    wait_for(lambda: target.spilled() < 1)


def test_answers_that_nobody_reads_do_not_pile_up(target):
    reader, files = target.connect(receive_buffer=4096), len(os.listdir(f"/proc/{target.process.pid}/fd"))
    reader.send(request_bytes("GET", "/docs/swagger-ui-bundle.js") * 600)
    with suppress(AssertionError):
        wait_for(lambda: target.spilled() > 64, 1)
    spilled, opened = target.spilled(), len(os.listdir(f"/proc/{target.process.pid}/fd")) - files
    reader.close()

    assert spilled < 64, f"{spilled:.0f} MiB on disk"
    assert opened < 20


MARKS_TO_ORDER = "\u0301\u0316"  # Unicode has them the other way round
MANY_MARKS = [
    json.dumps(credentials, ensure_ascii=False).encode()
    for credentials in (
        {"username": MARKS_TO_ORDER * 100_000, "password": "x"},
        {"username": "x", "password": MARKS_TO_ORDER * 2048},
    )
]


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n" * 500_000,
        HOST + CHUNKED + b"\r\n\r\n" + b"1\r\n{\r\n" * 150_000,
        HOST + CHUNKED + b" " * 200_000 + b",\r\n\r\n",
        b"GET /stock?" + b"&".join(b"a%d" % number for number in range(20_000)) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        *[HOST + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in MANY_MARKS],
    ],
    ids=["empty lines", "chunks of one byte", "blanks behind a coding", "parameters", "marks", "marks of a password"],
)
def test_bytes_that_cost_much_keep_nobody_waiting(target, data):
    attackers = [target.connect() for _ in range(10)]
    waits, began = [], time.monotonic()
    with ThreadPoolExecutor(10) as pool:
        for attacker in attackers:
            pool.submit(attacker.send, data)
        while time.monotonic() - began < 0.7:
            answer, seconds = timed(target.ask, "GET", "/history")
            assert answer.status == 200
            waits.append(seconds)
        for attacker in attackers:
            with suppress(OSError):
                attacker.socket.shutdown(socket.SHUT_RDWR)

    assert median(waits) < 1
    print(
        f"\nattacked: beside 10 that send bytes that cost much another client waits {median(waits):.3f} s (median),"
        f" {max(waits):.2f} s at most"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Patience and its limits
# ----------------------------------------------------------------------------------------------------------------------

# An application that does what its path says (`/list/64`: 64 MiB in parts), behind a server with limits of its own.
PLAYTHING = """
import json, sys, time
from plugins.server import Lane, Limits, serve

seen = []

def app(environ, start_response):
    _, word, number = (environ["PATH_INFO"] + "//").split("/")[:3]
    told = environ.get("server.error")
    seen.append(word)
    if "broken" in seen or (environ["QUERY_STRING"] == "fail" and not told):
        seen[:] = ["mended"] if told else seen
        raise LookupError("on purpose")
    start_response(f"{told[0]} Refused" if told else "200 OK", [("Content-Type", "application/json")])
    if told:
        return [json.dumps({"Error": told[1]}).encode()]
    if environ["REQUEST_METHOD"] == "HEAD":
        return iter(()) if word == "list" else [b""]
    if word == "list":
        return (b"x" * 65536 for _ in range(16 * int(number)))
    if word == "trickle":
        return (time.sleep(0.001) or b"x" * 65536 for _ in range(16 * int(number)))
    if word == "hang":
        time.sleep(float(number))
    if word == "break":
        return (1 / (0 if n == int(number) else 1) and b"part" for n in range(9))
    if word == "seen" or environ["server.unread"]:
        return [json.dumps(seen).encode()]
    if word == "waiting":
        return [json.dumps(environ["server.waiting"]()).encode()]
    return [json.dumps(len(environ["wsgi.input"].read())).encode()]

serve(
    app,
    host="127.0.0.1",
    port=int(sys.argv[1]),
    lanes={"own": Lane(0), "hang": Lane(1, 0.5, "Too many hang"), "work": Lane(2)},
    lane_of=lambda environ: {"hang": "hang", "health": "own", "waiting": "own", "broken": "own", "own": "own"}.get(
        environ["PATH_INFO"].split("/")[1], "work"
    ),
    limit_of=lambda method, path: 2**20,
    admits=lambda environ: "HTTP_UNWELCOME" not in environ,
    limits=Limits(**json.loads(sys.argv[2])),
)
"""


@pytest.fixture
def play(tmp_path):
    """Give a function that starts a plaything with some limits; all are ended after the test."""
    sites = []

    def start(**limits):
        command = (
            "sh",
            "-c",
            f"ulimit -S -n 64; exec {sys.executable} -c \"$PLAYTHING\" $PORT '{json.dumps({'tick': 0.1, **limits})}'",
        )
        sites.append(Site(None, tmp_path, command, PLAYTHING=PLAYTHING))
        sites[-1].ready()
        return sites[-1]

    yield start
    for site in sites:
        site.end()
        for connection in site.connections:
            connection.close()


def ask(path, method="GET", body=None, version="1.1", **headers):
    """Give a request as it goes over the wire."""
    return request_bytes(method, path, body, **headers).replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1)


def rest_of(connection):
    """Read until the connection ends; gives how many bytes came, and whether it was reset."""
    count = 0
    try:
        while data := connection.socket.recv(2**20):
            count += len(data)
    except ConnectionResetError:
        return count, True
    return count, False


def processor_seconds(site):
    """Give how long a server has worked."""
    fields = Path(f"/proc/{site.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sockets(site):
    """Count the connections of a server, with what it listens on."""
    folder, count = Path(f"/proc/{site.process.pid}/fd"), 0
    for number in os.listdir(folder):
        with suppress(OSError):
            count += os.readlink(folder / number).startswith("socket:")
    return count


def test_client_that_sends_on_sees_the_answer_and_no_reset(play):
    connection = play().connect()
    connection.send(ask("/", "POST", Content_Length=MIB, Unwelcome="yes") + b"x" * 1000)
    answer = connection.answer()
    for _ in range(5):
        connection.socket.sendall(b"x" * 1000)  # fails where the server has closed
        time.sleep(0.05)

    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert rest_of(connection) == (0, False)


def test_body_that_is_not_read_is_no_request(play):
    site = play(linger_idle=0.5)
    connection = site.connect()
    connection.send(ask("/", "POST", Content_Length=MIB, Unwelcome="yes"))
    connection.answer()
    connection.send(ask("/own"))
    wait_for(lambda: sockets(site) == 1)

    assert "own" not in site.connect().ask("GET", "/seen").json


def test_body_that_is_not_read_is_known_as_such(play):
    connection = play().connect()
    connection.send(ask("/work", "POST", Content_Length=MIB, Unwelcome="yes"))

    assert connection.answer().json[-1] == "work"


@pytest.mark.parametrize(("limits", "pause"), [({"linger": 0.5}, 0.05), ({"linger_idle": 0.5}, None)], ids=str)
def test_client_that_does_not_hang_up_is_hung_up_on(play, limits, pause):
    site = play(**limits)
    wait_for(lambda: sockets(site) == 1)
    connection = site.connect()
    connection.send(ask("/", "POST", Content_Length=MIB, Unwelcome="yes"))
    connection.answer()

    def hung_up():
        if pause:
            connection.send(b"x")
            time.sleep(pause)
        return sockets(site) == 1

    assert wait_for(hung_up) < 5


NINE = ask("/", "POST", Content_Length=9)


@pytest.mark.parametrize("head", [b"", b"\r\n", b"GET", NINE, NINE + b"x"])
def test_client_that_sends_nothing_more_is_hung_up_on(play, head):
    connection = play(idle=0.5).connect()
    connection.send(head)

    refused = [(408, {"Error": "Request came too slowly"})] if head.strip() else []
    assert [(answer.status, answer.json) for answer in connection.answers()] == refused


@pytest.mark.parametrize(
    ("head", "limits"),
    [
        (b"GET / HTTP/1.1\r\nX: ", {"head": 0.5}),
        (ask("/", "POST", Content_Length=MIB), {"body": 0.5, "pace": 10**6}),
    ],
    ids=["headers", "body"],
)
def test_client_that_sends_too_slowly_is_408(play, head, limits):
    connection = play(**limits).connect()
    connection.send(head)
    while not select.select([connection.socket], [], [], 0.1)[0]:
        connection.send(b"x")

    assert_refused(connection.answers(), 408)


def test_body_at_a_decent_pace_is_waited_for(play):
    connection = play(body=0.5, pace=1000).connect()
    connection.send(ask("/", "POST", Content_Length=100_000))
    for _ in range(10):
        time.sleep(0.1)
        connection.send(b"x" * 10_000)

    assert connection.answer().json == 100_000


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_reader_that_stalls_is_hung_up_on(play, version):
    site = play(idle=0.5)
    reader = site.connect(receive_buffer=4096)
    reader.send(ask("/list/16", version=version))
    wait_for(lambda: site.spilled() > 8)
    wait_for(lambda: site.spilled() == 0)

    count, reset = rest_of(reader)
    assert count < 16 * MIB
    assert reset


def test_reader_that_reads_on_gets_all(play):
    reader = play(idle=1, output=64 * MIB).connect(receive_buffer=4096)
    reader.request("GET", "/list/16")

    assert len(reader.answer(pause=0.01).body) == 16 * MIB


def test_answers_that_wait_are_bounded_together(play):
    site = play(output=33 * MIB)
    readers = [site.connect(receive_buffer=4096) for _ in range(8)]
    for reader in readers:
        reader.send(ask("/list/16", Connection="close"))
        reader.socket.recv(1)
    wait_for(lambda: sockets(site) == 3)

    assert site.spilled() < 40
    ends = [rest_of(reader) for reader in readers]
    assert ends[0][1]  # who waited for longest
    assert sorted((count > 16 * MIB, reset) for count, reset in ends) == [(False, True)] * 6 + [(True, False)] * 2


def test_answer_that_is_read_is_not_kept(play):
    site = play()
    with site.bounded(40):
        assert len(site.connect().ask("GET", "/trickle/100").body) == 100 * MIB
    reader = site.connect(receive_buffer=4096)
    reader.request("GET", "/list/64")
    wait_for(lambda: site.spilled() > 60)
    reader.socket.recv_into(bytearray(2**20))
    got = 0
    while got < 48 * MIB:
        got += len(reader.socket.recv(2**20))
    wait_for(lambda: site.spilled() < 32)


def test_urgent_data_ends_the_connection(play):
    site = play()
    connection = site.connect()
    connection.socket.send(b"!", socket.MSG_OOB)

    rest_of(connection)
    before = processor_seconds(site)
    time.sleep(0.5)
    assert processor_seconds(site) - before < 0.25
    assert site.connect().ask("GET", "/").status == 200


def test_empty_lines_cost_next_to_nothing(play):
    site = play()
    connection, before = site.connect(), processor_seconds(site)
    connection.send(b"\r\n" * MIB)

    assert connection.ask("GET", "/").status == 200
    assert processor_seconds(site) - before < 1


@pytest.mark.parametrize("header", [b"a:b\r\n" * 2**13, b"a: " + b"b" * 2**15 + b"\r\n"], ids=["short", "long"])
def test_headers_over_32_kib_are_431(play, header):
    connection = play().connect()
    connection.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n")

    assert_refused(connection.answers(), 431)


def test_more_connections_are_held_than_files_may_be_open(play):
    site = play()  # starts with 64

    assert all(site.connect().ask("GET", "/").status == 200 for _ in range(100))


@pytest.mark.parametrize("path", ["/list/1", "/"])
def test_answer_to_head_has_no_body(play, path):
    connection = play().connect()
    connection.send(ask(path, "HEAD", Connection="close"))
    data = b""
    while part := connection.socket.recv(2**16):
        data += part

    assert data.endswith(b"\r\n\r\n")
    assert data.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "CHUNKED"])
def test_chunked_is_taken_in_any_case(play, coding):
    connection = play().connect()
    connection.send(ask("/", "POST", Transfer_Encoding=coding) + b"5\r\nhello\r\n0\r\n\r\n")

    assert connection.answer().json == 5


def test_pipelined_requests_are_answered_in_order(play):
    connection = play().connect()
    paths = ["/hang/0.2", "/own", "/list/1", "/own", "/work"]
    connection.send(b"".join(ask(path) for path in paths[:2]) + ask("/own", "POST", b"four") + b"\r\n" + ask("/list/1"))

    assert [len(connection.answer().body) for _ in range(4)] == [1, 1, 1, MIB]


@pytest.mark.parametrize(
    ("headers", "stays"), [({}, True), ({"Connection": "keep-alive"}, True), ({"Connection": "Close"}, False)]
)
def test_connection_outlives_an_answer_in_chunks(play, headers, stays):
    connection = play().connect()
    connection.send(ask("/list/1", **headers) + ask("/own", Connection="close"))

    assert [len(answer.body) for answer in connection.answers()] == [MIB, 1][: 1 + stays]


def test_end_of_an_answer_without_a_length_is_told_http_1_0_by_the_connection(play):
    connection = play().connect()
    connection.send(ask("/list/1", version="1.0", Connection="keep-alive"))

    assert connection.head()[1]["connection"] == "close"
    assert len(connection.file.read()) == MIB


@pytest.mark.parametrize("path", ["/auto/BMW", "/stock"])
def test_connection_outlives_a_304(server, path):
    server.request("POST", "/auto/BMW", CAR)
    headers = {"Authorization": f"Bearer {server.token}"}
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.connect()
        first = connection.sock
        for _ in range(3):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            answer.read()
            headers["If-None-Match"] = answer.getheader("ETag")

        assert (answer.status, answer.getheader("Connection"), connection.sock) == (304, None, first)


@pytest.mark.parametrize("lane", ["own", "work"])
def test_application_that_fails_is_500_and_the_next_request_is_served(play, lane):
    connection = play().connect()
    connection.request("GET", f"/{lane}?fail")

    assert_refused([connection.answer()], 500)
    assert connection.ask("GET", f"/{lane}").status == 200


def test_application_that_cannot_say_that_it_fails_costs_one_connection(play):
    site = play()
    broken = site.connect()
    broken.request("GET", "/broken")

    assert broken.answers() == []
    assert site.connect().ask("GET", "/own").status == 200


def test_answer_that_breaks_off_has_no_end(play):
    site = play()
    connection = site.connect()
    connection.request("GET", "/break/3")

    with pytest.raises(AssertionError, match="ended early"):
        connection.answer()
    assert site.connect().ask("GET", "/").status == 200


# ----------------------------------------------------------------------------------------------------------------------
# Lanes
# ----------------------------------------------------------------------------------------------------------------------


def test_lane_that_hangs_answers_those_that_wait(play):
    site = play()
    first, others = site.connect(), [site.connect() for _ in range(3)]
    first.request("GET", "/hang/4")
    wait_for(lambda: site.connect().ask("GET", "/waiting").json["hang"] == 0)
    for other in others:
        other.request("GET", "/hang/0")
    wait_for(lambda: site.connect().ask("GET", "/waiting").json["hang"] == 3)
    began = time.monotonic()
    answers = [other.answer() for other in others]

    assert [(answer.status, answer.json) for answer in answers] == [(503, {"Error": "Too many hang"})] * 3
    assert time.monotonic() - began < 3
    assert site.connect().ask("GET", "/work").status == 200
    assert first.answer().status == 200


def test_server_that_idles_stops_at_once(play):
    site = play(tick=30)
    site.connect().ask("GET", "/")
    time.sleep(0.2)

    code, seconds = site.end(signal.SIGTERM)
    assert (code, seconds < 10) == (0, True)


def test_server_that_stops_answers_what_was_sent_before_anyone_could_know(play):
    site = play(last_call=2)
    busy, idle = site.connect(), site.connect()
    idle.ask("GET", "/")
    busy.request("GET", "/hang/3")
    wait_for(lambda: "hang" in site.connect().ask("GET", "/seen").json)
    site.process.send_signal(signal.SIGTERM)
    with pytest.raises(ConnectionRefusedError):
        for _ in range(1000):
            site.connect().close()
    idle.request("GET", "/")

    answer = idle.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert busy.answer().status == 200
    assert site.process.wait(10) == 0


def test_server_with_a_thread_that_hangs_stops_in_time(play):
    site = play(grace=1)
    hanging, working = site.connect(), site.connect()
    hanging.request("GET", "/hang/60")
    working.request("GET", "/list/4")
    wait_for(lambda: b"200" in working.socket.recv(20, socket.MSG_PEEK))

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(site.end, signal.SIGTERM)
        assert len(working.answer().body) == 4 * MIB
        code, seconds = ended.result()
    assert (code, seconds < 8) == (0, True)
    assert rest_of(hanging) == (0, True)


# ----------------------------------------------------------------------------------------------------------------------
# Waitress, of which more is used than its documentation tells
# ----------------------------------------------------------------------------------------------------------------------

INSIDE = {
    HTTPRequestParser: "adj body_bytes_received body_rcv chunked command completed content_length error expect_continue"
    " headers headers_finished parse_header path query received request_uri url_scheme version",
    ChunkedReceiver: "chunk_remainder control_line trailer",
    WSGITask: "build_response_header channel close_on_finish finish get_environment request write",
    HTTPChannel: "adj close_when_flushed connected current_outbuf_count error_task_class handle_close handle_error"
    " handle_expt handle_write last_activity outbufs parser_class received request requests server service socket"
    " task_class total_outbufs_len will_close write_soon",
    OverflowableBuffer: "overflowed",
    ThreadedTaskDispatcher: "add_task lock queue set_thread_count",
    TcpWSGIServer: "channel_class effective_host effective_port pull_trigger trigger",
    Error: "body code",
}
PINNED = "749bc5027e86851b48f781f24f2977af92c8494f0ef830db87935ec717a8af90"


@pytest.mark.parametrize("kind", INSIDE, ids=lambda kind: kind.__name__)
def test_inside_of_waitress_is_used_as_listed(kind):
    source = "".join(inspect.getsource(base) for base in kind.__mro__[:-1])
    own = (HERE / "plugins" / "server.py").read_text()
    for name in INSIDE[kind].split():
        assert re.search(rf"(self\.|def |^    ){name}\b", source, re.MULTILINE), f"waitress has no {name} now"
        assert re.search(rf"\b{name}\b", own), f"{name} is no longer used"


def test_waitress_is_the_one_that_was_read():
    modules = {inspect.getmodule(base) for kind in INSIDE for base in kind.__mro__[:-1]}
    sources = sorted(inspect.getsource(module) for module in modules)

    digest = hashlib.sha256("".join(sources).encode()).hexdigest()
    assert digest == PINNED, "waitress has changed: read what, beside plugins/server.py and INSIDE, then pin it anew"
