"""The application under other servers: the same settings, the same answers, nothing cut and nothing lost."""

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from conftest import (
    CAR,
    HERE,
    MIB,
    SECRET,
    Site,
    at,
    at_once,
    environment,
    wait_for,
)

BIN = Path(sys.executable).parent
ASGI = "import a2wsgi, dealer\napp = a2wsgi.WSGIMiddleware(dealer.create_app(), workers=8)\n"
SERVERS = {
    "waitress": "{bin}/waitress-serve --listen=127.0.0.1:$PORT --call dealer:create_app",
    "gunicorn, two processes": "{bin}/gunicorn -b 127.0.0.1:$PORT -w 2 'dealer:create_app()'",
    "gunicorn, forked late": "{bin}/gunicorn -b 127.0.0.1:$PORT -w 2 --preload 'dealer:create_app()'",
    "gunicorn, threads": "{bin}/gunicorn -b 127.0.0.1:$PORT --threads 8 'dealer:create_app()'",
    "uvicorn": "{bin}/uvicorn --app-dir {folder} --port $PORT asgi:app",
}
LONG = {"Content_Type": "text/csv"}
CSV = b"mark,max_speed,distance,handler,stock\r\n"


@pytest.fixture(scope="module", params=SERVERS)
def other(request, tmp_path_factory):
    """The application under another server, with settings from the environment."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "asgi.py").write_text(ASGI)
    command = "exec " + SERVERS[request.param].format(bin=BIN, folder=folder)
    settings = {"PASSWORD_MIN": "5", "PYTHONPATH": f"{HERE}:{folder}"}
    site = Site(f"sqlite:///{folder / 'dealer.db'}", folder, command=("sh", "-c", command), **settings)
    site.name = request.param
    try:
        site.ready()
        site.token("alice")
        yield site
    finally:
        site.end(signal.SIGTERM)
        for connection in site.connections:
            connection.close()
    assert "Traceback" not in site.logged()


def chunks(*parts):
    """Give a body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


def csv_of(mebibytes, prefix):
    """Give an inventory as CSV."""
    line = b",280,400,%b,Germany\r\n" % (b"x" * 250)
    count = mebibytes * MIB // (len(line) + 16) + 1
    return CSV + b"".join(b"%b-%015d" % (prefix, number) + line for number in range(count)), count


def stored(site, prefix):
    """Count the cars whose marks begin so."""
    answer = site.ask("GET", f"/stock?mark__startswith={prefix}&limit=1")
    return int(answer.headers["x-total-count"]) if answer.status == 200 else 0


def test_settings_of_the_environment_hold(other):
    answer = other.ask("POST", "/register", {"username": "carol", "password": "four"})

    assert (answer.status, answer.json["Error"]) == (400, "password: must be at least 5 characters")
    assert "POST /register 400" in other.logged()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", at("Škoda Octavia (III)"), CAR, 201),
        ("GET", at("Škoda Octavia (III)"), None, 200),
        ("HEAD", at("Škoda Octavia (III)"), None, 200),
        ("PATCH", at("Škoda Octavia (III)"), {"max_speed": 281}, 202),
        ("POST", at("Škoda Octavia (III)"), CAR, 400),
        ("GET", "/auto/a%2Fb", None, 404),
        ("GET", "/auto/%FFbmw", None, 400),
        ("GET", "/auto/%EF%BF%BD", None, 404),
        ("GET", "/stock", None, 200),
        ("GET", "/stock?max_speed__gt=a", None, 400),
        ("PUT", "/auto/BMW", b"{}", 415),
        ("POST", "/auto/BMW", None, 400),
        ("PUT", "/stock", None, 400),
        ("GET", "/auto/", None, 404),
        ("DELETE", "/stock", None, 405),
        ("GET", "/docs", None, 200),
    ],
)
def test_answers_are_those_of_the_contract(other, method, path, body, status):
    with other.connect("alice") as connection:
        connection.request(method, path, body)
        answer_status, headers = connection.head()

    assert answer_status == status
    assert headers["x-request-id"]
    if method != "HEAD" and "json" in headers["content-type"] and status >= 400:
        assert f"{path.partition('?')[0].partition('%')[0]}" in other.logged()


def test_no_token_is_401(other):
    with other.connect() as connection:
        answer = connection.ask("GET", "/stock")

    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_upload_in_chunks_is_stored_whole(other):
    body, count = csv_of(2, b"chunked")
    with other.connect("alice") as connection:
        connection.request("POST", "/stock", None, Transfer_Encoding="chunked", **LONG)
        connection.send(chunks(body[:100_000], body[100_000:]))
        answer = connection.answer()

    assert (answer.status, answer.json["Message"]) == (201, f"{count} autos created")
    assert stored(other, "chunked") == count


def test_chunks_over_the_limit_are_413_and_never_cut(other):
    row = b'{"max_speed": 280, "distance": 400, "handler": "a", "stock": "b"}'
    with other.connect("alice") as connection:
        connection.request("POST", at("cut"), None, Transfer_Encoding="chunked", Content_Type="application/json")
        connection.send(chunks(row, b" " * MIB, b"and more"))
        answer = connection.answer()

    assert answer.status == 413
    assert other.ask("GET", at("cut")).status == 404


@pytest.mark.parametrize("framing", ["announced", "chunked"])
def test_upload_of_a_client_that_is_gone_is_not_stored(other, framing):
    if (other.name, framing) == ("uvicorn", "chunked"):
        pytest.skip("a2wsgi hides the disappearance from the application")
    body, _ = csv_of(1, b"half")
    half = body[: body.index(b"\n", len(body) // 2) + 1]
    headers = {"Content_Length": len(body)} if framing == "announced" else {"Transfer_Encoding": "chunked"}
    with other.connect("alice") as connection:
        connection.request("POST", "/stock", None, **headers, **LONG)
        connection.send(half if framing == "announced" else chunks(half)[: -len(b"0\r\n\r\n")])
    wait_for(lambda: other.ask("GET", "/health").status == 200)
    time.sleep(0.3)

    assert stored(other, "half") == 0


def test_many_at_once_are_all_answered(other):
    answers = at_once(
        *[partial(other.ask, "PUT", "/stock", [{"mark": f"many {number}", **CAR}]) for number in range(8)]
    )

    assert [answer.status for answer in answers] == [202] * 8


def test_create_app_leaves_nothing_open(tmp_path):
    path = tmp_path / "dealer.db"
    settings = environment(DATABASE_URL=f"sqlite:///{path}", JWT_SECRET=SECRET)
    code = "import dealer, os; app = dealer.create_app(); os.system('ls -l /proc/$PPID/fd')"
    opened = subprocess.run([sys.executable, "-c", code], cwd=HERE, env=settings, capture_output=True, text=True).stdout

    assert "-> /" in opened
    assert str(path) not in opened
