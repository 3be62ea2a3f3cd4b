"""The server: what only real sockets show, and what it does with bytes that are not meant well."""

import json
import os
import random
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from statistics import median

import pytest

import dealer
from conftest import (
    AS_JSON,
    CAR,
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
    413: r"Body is larger than \d+ bytes$",
    431: r"Headers are larger than \d+ bytes$",
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
        assert lane in dealer.lanes_of(dealer.Settings()), route
        assert bool(lane) == bool(asks), route


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
        (b"\xff" * 70_000, []),
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
