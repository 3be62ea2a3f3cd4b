"""Changing one car safely, and who did what."""

import json
import re
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from conftest import (
    CAR,
    CSV,
    DECOMPOSED,
    JSON,
    NOT_FOUND,
    OTHER_CAR,
    TWO_CARS,
    USERNAME,
    TestApp,
    as_csv,
    assert_error,
    assert_headers,
    assert_json,
    assert_refused,
    at,
    changed,
    pages_from,
    put_cars,
    running_server,
    send,
    table,
)

# ----------------------------------------------------------------------------------------------------------------------
# Changing one car safely
# ----------------------------------------------------------------------------------------------------------------------

CHANGED = "Auto was changed by someone else"
SOME = [*[{name: value} for name, value in OTHER_CAR.items()], {"mark": "BMW", "max_speed": 0, "stock": "Sweden"}]


@pytest.mark.parametrize("changes", SOME, ids=",".join)
@pytest.mark.parametrize("headers", [{}, {"X_HTTP_Method_Override": "PATCH"}])
def test_patch_changes_what_it_names(bmw, changes, headers):
    answer = send(bmw, "POST" if headers else "PATCH", "/auto/BMW", json.dumps(changes), **headers)

    assert_json(answer, 202, {"Message": "Auto updated"})
    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **CAR, **changes}


def test_patch_unknown_mark_is_404(refused):
    assert_error(refused.patch_json("/auto/BMW", {"stock": "Sweden"}, status=404), 404, NOT_FOUND)


@pytest.mark.parametrize(
    ("changes", "name"),
    table(
        ["{}", "body"],
        ['{"mark": "BMW"}', "body"],
        ['{"mark": "Audi", "distance": 1}', "mark"],
        ['{"price": 1, "distance": 1}', "price"],
        ['{"max_speed": null}', "max_speed"],
        ['{"distance": -1, "stock": "x"}', "distance"],
        ['{"stock": null, "distance": 1}', "stock"],
        ['{"handler": " ", "mark": "BMW"}', "handler"],
    ),
)
def test_wrong_patch_is_400(bmw, changes, name):
    answer = send(bmw, "PATCH", "/auto/BMW", changes)

    assert_refused(answer, name)
    assert bmw.get("/auto/BMW").json == {"mark": "BMW", **CAR}


# Entity tags


def etag_of(client, path="/auto/BMW"):
    """Give the entity tag of a car."""
    return client.get(path, status=200).headers["ETag"]


def test_etag_is_strong_and_stays_while_the_car_does(bmw):
    before = etag_of(bmw)

    bmw.post_json("/auto/Audi", CAR, status=201)
    bmw.post_json("/auto/BMW", OTHER_CAR, status=400)

    assert re.fullmatch(r'"[\x21\x23-\x7e]+"', before)
    assert etag_of(bmw) == before != etag_of(bmw, "/auto/Audi")


@pytest.mark.parametrize(
    "steps",
    table(
        [["PUT /auto/BMW", OTHER_CAR, "PUT /auto/BMW", CAR]],
        [["PATCH /auto/BMW", {"distance": 1}, "PATCH /auto/BMW", {"distance": 400}]],
        [["PUT /stock", [{"mark": "BMW", **OTHER_CAR}], "PUT /stock", [{"mark": "BMW", **CAR}]]],
        [["DELETE /auto/BMW", None, "POST /auto/BMW", CAR]],
        [["DELETE /auto/BMW", None, "POST /stock", [{"mark": "BMW", **CAR}]]],
    ),
)
def test_car_that_was_changed_is_another_one(bmw, steps):
    before = etag_of(bmw)
    for request, body in zip(steps[::2], steps[1::2], strict=True):
        send(bmw, *request.split(), json.dumps(body))

    answer = bmw.delete("/auto/BMW", headers={"If-Match": before}, status=412)

    assert_error(answer, 412, CHANGED)
    assert bmw.get("/auto/BMW", headers={"If-None-Match": before}, status=200).headers["ETag"] != before


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("header", ["{}", "*", "W/{}", '"x",W/"y" , {}', ',, "a,b",W/{},\t"x",'])
def test_if_none_match_of_the_car_is_304(bmw, method, header):
    etag = etag_of(bmw)

    answer = send(bmw, method, "/auto/BMW", If_None_Match=header.format(etag))

    assert (answer.status_int, answer.body) == (304, b"")
    assert_headers(answer, ETag=etag, Cache_Control="private, no-cache", X_Content_Type_Options="nosniff")


NO_TAGS = ("w/{}", "X{}", "{}x", "{}{}", "{} {}", "'{}'", "*{}", '"x",{}"y"')  # though each has one in it


@pytest.mark.parametrize("header", ['"x"', 'W/"x"', '"x", "y"', '"*"', *NO_TAGS])
def test_if_none_match_of_another_car_is_200(bmw, header):
    header = header.replace("{}", etag_of(bmw))

    assert_json(bmw.get("/auto/BMW", headers={"If-None-Match": header}, status=200), 200, {"mark": "BMW", **CAR})


def change_if(client, method, header):
    """Change or delete a car under a condition; POST says in a header that it is a PUT."""
    override = {"X_HTTP_Method_Override": "PUT"} if method == "POST" else {}
    return send(client, method, "/auto/BMW", json.dumps(OTHER_CAR), If_Match=header, **override)


def ways(*headers):
    """Give each method with the first of some headers, and one method with all of them."""
    return [*[(method, headers[0]) for method in ("PATCH", "DELETE", "POST")], *[("PUT", header) for header in headers]]


@pytest.mark.parametrize(("method", "header"), ways("{}", "*", " * ", '"x", {}', '{} , "x"', 'W/"x",{}', '"a,b", {}'))
def test_if_match_of_the_car_changes_it(bmw, method, header):
    answer = change_if(bmw, method, header.format(etag_of(bmw)))

    assert_json(answer, 202, {"Message": "Auto deleted" if method == "DELETE" else "Auto updated"})


@pytest.mark.parametrize(("method", "header"), ways('"x"', "W/{}", '"x", W/{}', '""', '"*"', '"x", "y"', *NO_TAGS))
def test_if_match_of_another_car_is_412_and_changes_nothing(bmw, database, method, header):
    etag, before = etag_of(bmw), database.contents()

    answer = change_if(bmw, method, header.replace("{}", etag))

    assert_error(answer, 412, CHANGED)
    assert database.contents() == before


@pytest.mark.parametrize(("method", "header"), ways("*", '"x"', 'W/"x"'))
def test_if_match_of_unknown_mark_is_404(refused, method, header):
    assert_error(change_if(refused, method, header), 404, NOT_FOUND)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("header", ["{}", "*", "W/{}", '"x", {}'])
def test_if_none_match_of_the_car_is_412_at_a_change(refused, database, method, header):
    database.insert("autos", {"mark": "BMW", **CAR, "version": "1"})
    etag = etag_of(refused)

    answer = send(refused, method, "/auto/BMW", json.dumps(OTHER_CAR), If_None_Match=header.format(etag))

    database.execute("DELETE FROM autos")
    assert_error(answer, 412, CHANGED)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("header", ['"x"', "", *NO_TAGS])
def test_if_none_match_of_another_car_changes_it(bmw, method, header):
    answer = send(bmw, method, "/auto/BMW", json.dumps(OTHER_CAR), If_None_Match=header.replace("{}", etag_of(bmw)))

    assert answer.status_int == 202


@pytest.mark.parametrize("header", ['"x"', "*"])
def test_if_match_where_there_is_nothing_to_match_is_412(refused, header):
    answer = send(refused, "POST", "/auto/BMW", json.dumps(CAR), If_Match=header)

    assert_error(answer, 412, CHANGED)


def test_uploads_and_single_changes_do_not_wait_for_each_other_in_a_ring(server):
    marks = [f"car {number:02}" for number in range(60)]
    uploads = [("PUT", "/stock", [{"mark": mark, **CAR} for mark in some]) for some in (marks, marks[::-1])]
    server.request(*uploads[0])

    answers = server.at_once(*uploads, *[("PUT", at(mark), OTHER_CAR) for mark in marks[::10] + marks[::-10]])

    assert {answer.status_int for answer in answers} == {202}


def test_sixteen_threads_with_if_match_lose_no_change(server):
    server.request("POST", "/auto/BMW", {**CAR, "distance": 0})
    together = threading.Barrier(16)

    def add_one(_):
        for attempt in range(100):
            read = server.request("GET", "/auto/BMW")
            if attempt == 0:
                together.wait()
            body = {**read.json, "distance": read.json["distance"] + 1}
            answer = server.request("PUT", "/auto/BMW", body, **{"If-Match": read.headers["ETag"]})
            if answer.status_int != 412:
                return answer.status_int, attempt > 0

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(add_one, range(16)))

    assert sorted(results) == [(202, False)] + [(202, True)] * 15
    assert server.request("GET", "/auto/BMW").json["distance"] == 16


# ----------------------------------------------------------------------------------------------------------------------
# Who did what
# ----------------------------------------------------------------------------------------------------------------------


def deeds(client, path="/history"):
    """Give what the entries of a history tell, but for their ids and times."""
    return [[entry[name] for name in ("by", "action", "mark", "auto")] for entry in client.get(path, status=200).json]


@pytest.mark.parametrize("path", ["/history", "/history/BMW"])
def test_history_tells_who_did_what(client, database, account, path):
    database.insert("users", {**account.row, "username": "bob"})
    bob = TestApp(client.app)
    bob.authorization = ("Bearer", changed(account, sub="bob"))

    client.post_json("/auto/BMW", CAR, status=201)
    bob.put_json("/auto/BMW", OTHER_CAR, status=202)
    client.patch_json("/auto/BMW", {"distance": 1}, status=202)
    send(bob, "POST", "/auto/BMW", X_HTTP_Method_Override="DELETE")
    client.post_json("/auto/BMW", CAR, status=201)

    assert deeds(client, path) == [
        [USERNAME, "created", "BMW", CAR],
        ["bob", "deleted", "BMW", None],
        [USERNAME, "updated", "BMW", {**OTHER_CAR, "distance": 1}],
        ["bob", "updated", "BMW", OTHER_CAR],
        [USERNAME, "created", "BMW", CAR],
    ]


def test_entry_has_an_id_and_a_time_in_utc(bmw):
    answer = bmw.get("/history", status=200)

    (entry,) = answer.json
    assert_json(answer, 200, [{**entry, "by": USERNAME, "action": "created", "mark": "BMW", "auto": CAR}])
    assert list(entry) == ["id", "at", "by", "action", "mark", "auto"]
    assert type(entry["id"]) is int
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", entry["at"])
    assert abs((datetime.fromisoformat(entry["at"]) - datetime.now(UTC)).total_seconds()) < 60
    assert_headers(answer, Cache_Control="private, no-cache", Link=None)


@pytest.mark.parametrize(("method", "action"), [("POST", "created"), ("PUT", "updated")])
@pytest.mark.parametrize(("content_type", "write"), [(CSV, as_csv), (JSON, json.dumps)])
def test_upload_is_recorded_car_by_car(client, method, action, content_type, write):
    if method == "PUT":
        put_cars(client, "Audi")

    send(client, method, "/stock", write(TWO_CARS), content_type)

    assert deeds(client, "/history/Audi")[0] == [USERNAME, action, "Audi", OTHER_CAR]
    assert deeds(client, "/history/BMW") == [[USERNAME, "created", "BMW", CAR]]


@pytest.mark.parametrize("mark", ["VW Golf 1.9 TDI/4Motion", "Lada Нива (2121)", "%2F", "/", DECOMPOSED])
def test_history_of_a_mark_holds_no_other(client, mark):
    put_cars(client, mark, "BMW")

    found = deeds(client, "/history/" + quote(mark, safe=""))

    assert found == [[USERNAME, "created", unicodedata.normalize("NFC", mark), CAR]]


def test_history_of_unknown_mark_is_404_and_of_all_is_empty(refused):
    assert_json(refused.get("/history", status=200), 200, [])
    assert_error(refused.get("/history/BMW", status=404), 404, NOT_FOUND)


@pytest.mark.parametrize(
    ("method", "path", "body", "if_match", "status"),
    [
        ("POST", "/auto/BMW", OTHER_CAR, "*", 400),
        ("POST", "/auto/Audi", {**CAR, "distance": -1}, "*", 400),
        ("PUT", "/auto/Audi", CAR, "*", 404),
        ("PATCH", "/auto/BMW", {"distance": 1}, '"x"', 412),
        ("DELETE", "/auto/Audi", None, "*", 404),
        ("PUT", "/stock", [TWO_CARS[0], {"mark": "Kia"}], "*", 400),
    ],
)
def test_refused_change_leaves_no_entry(bmw, method, path, body, if_match, status):
    answer = send(bmw, method, path, json.dumps(body), If_Match=if_match)

    assert answer.status_int == status
    assert deeds(bmw) == [[USERNAME, "created", "BMW", CAR]]


WRONG_PAGING = f"""
    limit= limit=x limit=-1 limit=0 limit=1001 limit=1.0 limit=%2B1 limit=%D9%A1 limit=1&limit=1 after= after=x after=-1
    after=1.0 after=%C2%B2 after=9007199254740992 after={"9" * 5000} after=1&after=2 order_by=id mark=BMW format=csv
    nothing=1""".split()


def test_next_page_of_a_mark_with_dots_is_of_that_mark(client):
    client.post_json("/auto/x%2F..%2Fy", CAR, status=201)
    client.put_json("/auto/x%2F..%2Fy", CAR, status=202)

    answer = client.get("/history/x%2F..%2Fy?limit=1")

    assert answer.headers["Link"].startswith("</history/x%2F..%2Fy?")


@pytest.mark.parametrize("query", table(*[[query] for query in WRONG_PAGING]))
@pytest.mark.parametrize("path", ["/history", "/history/BMW"])
def test_bad_parameter_of_the_history_is_400(refused, path, query):
    answer = refused.get(f"{path}?{query}", status=400)

    assert_refused(answer, query.partition("=")[0])


def test_history_gives_a_hundred_unless_told(lister):
    assert [len(page.json) for page in pages_from(lister, "/history")] == [100, 2]


@pytest.fixture
def busy(client):
    """A client with a token, and ten entries for one car between those of another."""
    for number in range(10):
        put_cars(client, "Audi", {"mark": "BMW", **CAR, "distance": number})
    return client


@pytest.mark.parametrize(("path", "count"), [("/history", 20), ("/history/BMW", 10)])
@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_pages_of_the_history(busy, path, count, limit):
    whole = busy.get(path).json

    pages = [page.json for page in pages_from(busy, f"{path}?limit={limit}")]

    assert [entry["id"] for entry in whole] == sorted({entry["id"] for entry in whole}, reverse=True)
    assert len(whole) == count
    assert pages == [whole[start : start + limit] for start in range(0, count, limit)]


@pytest.mark.parametrize("path", ["/history", "/history/BMW"])
@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_feed_gives_what_came_since_oldest_first(busy, path, limit):
    first, *since = busy.get(path).json[::-1]

    pages = [page.json for page in pages_from(busy, f"{path}?after={first['id']}&limit={limit}")]

    assert pages == [since[start : start + limit] for start in range(0, len(since), limit)]
    assert_json(busy.get(f"{path}?after={since[-1]['id']}"), 200, [])


def test_entries_that_come_on_the_way_move_no_other(busy):
    before, seen = busy.get("/history").json, []

    for page in pages_from(busy, "/history?limit=6"):
        seen += page.json
        put_cars(busy, "Kia")

    assert seen == before


def test_feed_under_eight_writers_misses_nothing(server, store, tmp_path):
    with running_server(store.url, tmp_path) as second, ThreadPoolExecutor(8) as pool:

        def write(writer):
            chosen = (server, second._replace(token=server.token))[writer % 2]
            for number in range(8):
                marks = [f"{writer}-{number}-{place}" for place in range(4)]
                chosen.request("PUT", "/stock", [{"mark": mark, **CAR} for mark in marks])
                chosen.request("DELETE", at(marks[0]))

        writers, seen, ended = [pool.submit(write, writer) for writer in range(8)], [], False
        while not ended:
            ended = all(writer.done() for writer in writers)
            seen += server.request("GET", f"/history?after={seen[-1]['id'] if seen else 0}&limit=1000").json
        stored = server.request("GET", "/history?limit=1000").json

    assert len(stored) == 8 * 8 * 5
    assert seen == stored[::-1]
