"""What `GET /metrics` tells, read by a parser of Prometheus' text format."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import webtest
from prometheus_client.parser import text_string_to_metric_families

from conftest import CAR, CREDENTIALS, TestApp, assert_error, running_server, sqlite_store


def series(text):
    """Give the value of every series, by its name and its labels."""
    families = text_string_to_metric_families(text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


@pytest.fixture
def measured(make_app, database, account):
    """A client with a token, of a server that measures."""
    client = TestApp(make_app(metrics="on"))
    database.insert("users", account.row)
    client.authorization = ("Bearer", account.token)
    return client


def test_metrics_are_not_there_unless_asked_for(client):
    assert_error(client.get("/metrics", status=404), 404, "Not found")
    assert "/metrics" not in client.get("/openapi.json").json["paths"]


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("GET", "/auto/BMW", ("GET", "/auto/<mark:re:(?s:.+)>", "200")),
        ("HEAD", "/auto/BMW", ("HEAD", "/auto/<mark:re:(?s:.+)>", "200")),
        ("GET", "/auto/Audi", ("GET", "/auto/<mark:re:(?s:.+)>", "404")),
        ("GET", "/stock?format=csv", ("GET", "/stock", "200")),
        ("GET", "/of/a/client", ("GET", "none", "404")),
        ("DELETE", "/stock", ("DELETE", "none", "405")),
        ("FOO", "/stock", ("other", "none", "405")),
    ],
)
def test_requests_are_counted_under_labels_of_ours(measured, method, path, labels):
    measured.post_json("/auto/BMW", CAR, status=201)

    for _ in range(2):
        measured.request(path, method=method, status="*")

    found = series(measured.get("/metrics").text)
    assert found[("http_requests_total", *labels)] == 2
    assert found[("http_request_duration_seconds_count", *labels[:2])] >= 2
    assert not [key for key in found if "client" in str(key) or "FOO" in key or "BMW" in str(key)]


def test_failed_logins_are_counted(measured):
    measured.post_json("/auth", {**CREDENTIALS, "password": "wrong"}, status=401)
    measured.post_json("/auth", CREDENTIALS, status=200)

    assert series(measured.get("/metrics").text)[("failed_logins_total",)] == 1


def test_refusal_of_the_server_is_counted_under_its_route(measured):
    refusal = {"server.error": (503, "Too many uploads wait. Try again later")}

    measured.post("/stock", extra_environ=refusal, status=503)

    assert series(measured.get("/metrics").text)[("http_requests_total", "POST", "/stock", "503")] == 1


def test_answer_in_parts_is_counted_at_its_end(make_app, database, account):
    app, counted = make_app(metrics="on"), ("http_requests_total", "GET", "/stock", "200")
    database.insert("users", account.row)
    client = TestApp(app)
    client.authorization = ("Bearer", account.token)
    client.put_json("/stock", [{"mark": f"BMW {number}", **CAR} for number in range(1001)], status=202)
    asked = webtest.TestRequest.blank("/stock", headers={"Authorization": f"Bearer {account.token}"})

    with closing(app(asked.environ, lambda *given: None)) as parts:
        assert b"BMW" in b"".join(parts)
        before = series(client.get("/metrics").text)

    assert counted not in before
    assert series(client.get("/metrics").text)[counted] == 1


def test_requests_that_wait_are_told_by_lane(tmp_path, account):
    """While another program holds SQLite's lock for writers, one change is at work on it and the others wait."""
    store = sqlite_store(tmp_path)
    with running_server(store.url, tmp_path, METRICS="on") as server, ThreadPoolExecutor(3) as pool:
        store.insert("users", account.row)
        server = server._replace(token=account.token)
        with closing(sqlite3.connect(tmp_path / "dealer.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            answers = [pool.submit(server.request, "POST", f"/auto/{number}", CAR) for number in range(3)]
            waiting = (series(server.request("GET", "/metrics").text) for _ in range(1000))
            found = next(found for found in waiting if found[("requests_waiting", "writes")] == 2)

        assert found[("requests_waiting", "uploads")] == 0
        assert [answer.result().status_int for answer in answers] == [201] * 3
        assert series(server.request("GET", "/metrics").text)[("requests_waiting", "writes")] == 0


def test_connections_are_no_more_than_there_may_be(measured):
    found = series(measured.get("/metrics").text)

    assert 0 <= found[("database_connections",)] <= found[("database_connections_max",)]
