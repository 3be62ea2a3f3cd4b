"""Listings: filters, order, pages, and CSV."""

import csv
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest

import dealer
from conftest import (
    CAR,
    COMPARISONS,
    COMPOSED,
    DECOMPOSED,
    FIELDS,
    FILTERS,
    HEADER,
    ODD_CARS,
    OTHER_CAR,
    SAMPLES,
    SOUGHT,
    TestApp,
    assert_error,
    assert_headers,
    assert_json,
    assert_refused,
    at,
    in_order,
    pages_from,
    put_cars,
    send,
    table,
)
from plugins.listings import Listing
from plugins.storage import StoragePlugin, Table

# ----------------------------------------------------------------------------------------------------------------------
# Filters, order and pages
# ----------------------------------------------------------------------------------------------------------------------


def marks_of(client, **parameters):
    """Give the marks of the cars that a listing with these parameters has."""
    return [car["mark"] for car in client.get("/stock?" + urlencode(parameters), status=200).json]


def items_from(client, path):
    """Give what is on all pages."""
    return [item for page in pages_from(client, path) for item in page.json]


@pytest.mark.parametrize(("name", "operation"), FILTERS)
def test_filter(lister, name, operation):
    expected = [car for car in in_order(SAMPLES.values()) if COMPARISONS[operation](car[name], SOUGHT[name])]

    answer = lister.get("/stock", {name + operation: SOUGHT[name]}, status=200)

    assert 0 < len(expected) < len(SAMPLES)
    assert_json(answer, 200, expected)
    assert_headers(answer, X_Total_Count=str(len(expected)), Link=None)


@pytest.mark.parametrize(
    ("values", "found"),
    table(
        ["BMW,Audi,BMW", ["Audi", "BMW"]],
        ['"BMW",Audi', ["Audi", "BMW"]],
        ['"Rover, Land"', ["Rover, Land"]],
        ["Rover, Land", []],
        ['"the ""best"""', ['the "best"']],
        [DECOMPOSED, [COMPOSED]],
        [",".join(["BMW", *map(str, range(99))]), ["BMW"]],
    ),
)
def test_in_reads_one_csv_record(client, values, found):
    put_cars(client, "BMW", "Audi", "Rover, Land", 'the "best"', COMPOSED)

    assert marks_of(client, mark__in=values) == found


@pytest.mark.parametrize(
    ("operation", "text", "found", "not_found"),
    [
        ("startswith", "Golf", "G|Golf", "g|golf|olf|Golfer"),
        ("startswith", "Жигули", "Жиг", "жиг"),
        ("startswith", "100% e_b\\c*d", "100%|100% e_b\\|100% e_b\\c*", "100_|1%|100% e%"),
        ("startswith", COMPOSED, DECOMPOSED, COMPOSED.lower()),
        ("contains", "VW Golf", "w gOLF|o", "gulf|VW  Golf"),
        ("contains", "Лада НИВА", "лада|нива|НИВА", "ниба"),
        ("contains", "ΟΔΥΣΣΕΥΣ Α", "οδυσσευς α|ΣΕΥΣ|υσ|ευς", "οδυσευς"),
        ("contains", "Οδυσσευς", "ΟΔΥΣΣΕΥΣ|σσ|ευσ", "οδυσευς"),
        ("contains", "Straße", "STRASSE|straße", "strase"),
        ("contains", "STRASSE", "straße|strasse", "strase"),
        ("contains", "STRAẞE", "straße|STRASSE|ẞ", "strase"),
        ("contains", "İstanbul", "İSTANBUL|i\u0307stanbul", "ostanbul"),
        ("contains", "宝马 DIŞ Տոյոտա", "马 dış|ՏՈՅՈՏԱ", "马dış"),
        ("contains", COMPOSED, DECOMPOSED.upper(), "Skoda"),
        ("contains", "100% e_b\\c*d", "0% E|_B|\\C|*D", "0%%|%b|__|e%b|c\\*|c_d"),
    ],
)
def test_part_of_a_text(client, operation, text, found, not_found):
    put_cars(client, text)

    matches = {part: marks_of(client, **{f"mark__{operation}": part}) for part in f"{found}|{not_found}".split("|")}

    assert matches == {part: [text] * (part in found.split("|")) for part in matches}


FOUND = [
    ("golf", ["VW Golf"]),
    ("ГРУПП", ["Лада"]),
    ("germany", ["Audi A1", "VW Golf"]),
    ("%", []),
    (" A", ["Audi A1"]),
]


@pytest.mark.parametrize(("text", "found"), FOUND)
def test_search_finds_text_in_any_field_in_any_case(client, text, found):
    for mark, handler, stock in (("VW Golf", "VAG", "Germany"), ("Audi A1", "VAG", "GERMANY"), ("Лада", "Групп", "RU")):
        client.post_json(at(mark), {**CAR, "handler": handler, "stock": stock}, status=201)

    assert marks_of(client, search=text) == found
    assert marks_of(client, search=text, limit=1000, mark__not="x") == found


@pytest.mark.parametrize(
    "query", ["stock=germany", "max_speed__gt=9007199254740991", "mark__lt=%20!", "limit=5&mark=x"]
)
def test_no_match_is_an_empty_array(lister, query):
    answer = lister.get("/stock?" + query, status=200)

    assert_json(answer, 200, [])
    assert_headers(answer, X_Total_Count="0", Link=None)


@pytest.mark.parametrize("query", ["stock=Germany", "nothing=1", "limit=0", "limit=1&limit=1", "format=csv", "%FF=1"])
def test_database_without_a_car_comes_before_parameters(refused, query):
    answer = refused.get("/stock?" + query, headers={"Accept": "text/csv"}, status=400)

    assert_error(answer, 400, "No one autos found in DataBase")


HUNDRED_AND_ONE = ",".join(["1"] * 101)
BAD_PARAMETERS = f"""
    nothing=1 Stock=x price=1 price__gt=1 offset=1 version=1 stock=x&stock=y stock=x&stock=x limit=1&limit=1
    stock__like=x stock__=x stock__GT=x stock__gt__lt=x stock_gt=x max_speed__contains=1 max_speed__startswith=1
    max_speed= max_speed=fast max_speed=-1 max_speed=%2B1 max_speed=1.0 max_speed=1e2 max_speed=%201 max_speed=1_0
    max_speed=0x1 max_speed=%D9%A1 max_speed=%C2%B2 max_speed=9007199254740992 max_speed__lt={"1" * 5000}
    distance__in= distance__in=1,,2 distance__in=1,%202 distance__in={HUNDRED_AND_ONE} stock__in={HUNDRED_AND_ONE}
    search= search=%00 search__in=x mark__contains=%00 mark__startswith=%00 mark__contains=%E2%80%AE
    stock__in= stock__in=a, stock__in=a%0Ab stock__in=%22a stock__in=%22a%22b stock= stock=%20 stock=%00
    stock={"x" * 256} stock__contains= mark__startswith= order_by= order_by=price order_by=version order_by=--mark
    order_by=%2Bmark order_by=mark, order_by=mark,mark order_by=stock,-stock order_by=mark%20desc
    limit=0 limit=1001 limit=-1 limit= limit=ten limit=1.0 limit=%D9%A1 limit={"9" * 5000}
    limit=2&after= limit=2&after=x limit=2&after=[] limit=2&after=[1] limit=2&after=[null]
    limit=2&after="i" limit=2&after={{"i":1}} limit=2&after={"[" * 5000}
    format= format=xml format=CSV stock=%FF %FF=1""".split()


@pytest.mark.parametrize("query", table(*[[query] for query in BAD_PARAMETERS]))
def test_bad_parameter_is_400(bmw, query):
    answer = bmw.get("/stock?" + query, headers={"Accept": "text/csv"}, status=400)

    assert_refused(answer, "query" if "%FF" in query else query.rpartition("&")[2].partition("=")[0])


def test_unknown_parameter_is_told_cut_and_printable(bmw):
    answer = bmw.get("/stock", {"a\n\u202eb" + "x" * 100: "1"}, status=400)

    assert_error(answer, 400, "ab" + "x" * 78 + ": unknown parameter")


def test_query_of_more_parameters_than_anybody_needs_is_not_read(bmw):
    answer = bmw.get("/stock?" + "&".join(f"a{number}=1" for number in range(101)), status=400)

    assert_error(answer, 400, "query: must be name=value pairs in UTF-8")


ORDERS = ["mark", "-mark", "stock", "-stock", "stock,-max_speed", "-stock,max_speed", "handler,-distance,mark"]
ORDERS += ["max_speed,-stock,distance,-handler", "-distance,-mark", "-handler,-stock,-max_speed,-distance,-mark"]


@pytest.mark.parametrize("order_by", ORDERS)
def test_pages_are_the_whole_listing_in_order(lister, order_by):
    whole = lister.get("/stock?order_by=" + order_by).json
    pages = [page.json for page in pages_from(lister, f"/stock?limit=7&order_by={order_by}")]

    assert whole == in_order(SAMPLES.values(), order_by)
    assert pages == [whole[start : start + 7] for start in range(0, 102, 7)]


@pytest.mark.parametrize("order_by", ["mark", "-stock"])
def test_pages_go_on_behind_any_mark(client, order_by):
    put_cars(client, *ODD_CARS)

    assert items_from(client, f"/stock?limit=1&order_by={order_by}") == in_order(ODD_CARS, order_by)


@pytest.mark.parametrize("order_by", ["mark", "-mark", "stock,-max_speed", "-distance,handler"])
def test_cars_that_come_and_go_on_the_way_move_no_other(lister, order_by):
    seen, gone = [], set()

    for page in pages_from(lister, f"/stock?limit=9&order_by={order_by}"):
        seen += [car["mark"] for car in page.json]
        for mark in {seen[0], seen[-1]} & SAMPLES.keys() - gone:  # the very car behind which the next page begins
            lister.delete(at(mark), status=202)
            gone.add(mark)
        new = [f"{mark}{len(seen)}" for mark in ("!", "Q", "\U0010ffff")]
        put_cars(lister, *[{"mark": mark, **CAR, "stock": mark, "distance": 9 * len(seen)} for mark in new])

    stayed = [car["mark"] for car in in_order(SAMPLES.values(), order_by) if car["mark"] not in gone]
    assert [mark for mark in seen if mark in stayed] == stayed


@pytest.mark.parametrize(
    ("limit", "count", "more"), [(1, 1, True), (101, 101, True), (102, 102, False), (1000, 102, False)]
)
def test_first_page_tells_how_many_match(lister, limit, count, more):
    answer = lister.get(f"/stock?limit={limit}", status=200)

    assert len(answer.json) == count
    assert_headers(answer, X_Total_Count="102")
    assert ("Link" in answer.headers) == more


def test_later_page_tells_no_total(lister):
    _, answer = pages_from(lister, "/stock?limit=60")

    assert_json(answer, 200, in_order(SAMPLES.values())[60:])
    assert_headers(answer, X_Total_Count=None, Link=None, Cache_Control="private, no-cache")


@pytest.mark.parametrize("query", ["limit=3", "stock=Germany&order_by=-distance", "format=csv"])
def test_head_of_a_listing(lister, query):
    got, headed = lister.get("/stock?" + query), lister.head("/stock?" + query, status=200)

    for answer in (got, headed):
        answer.headers.pop("X-Request-ID")
    assert (headed.headerlist, headed.body) == (got.headerlist, b"")


# ----------------------------------------------------------------------------------------------------------------------
# CSV
# ----------------------------------------------------------------------------------------------------------------------


def assert_csv(answer, *lines):
    """Compare a whole answer in CSV."""
    assert answer.body.decode() == "".join(line + "\r\n" for line in (HEADER, *lines))
    assert (answer.status_int, answer.content_type, answer.charset) == (200, "text/csv", "utf-8")
    assert re.fullmatch(r'attachment; filename="[\w.]+\.csv"', answer.headers["Content-Disposition"])
    assert_headers(answer, X_Content_Type_Options="nosniff", Cache_Control="private, no-cache")


@pytest.mark.parametrize(
    ("mark", "cell"), table(["Нива", "Нива"], ["a,b", '"a,b"'], ['"a"', '"""a"""'], ["=1+1", "=1+1"], ["a;b", "a;b"])
)
def test_listing_as_csv(client, mark, cell):
    put_cars(client, mark)

    answer = client.get("/stock", headers={"Accept": "text/csv"}, status=200)

    assert_csv(answer, f"{cell},280,400,Auto Motors,Germany")


@pytest.mark.parametrize("query", ["", "&format=csv"])
def test_pages_keep_filters_order_and_format(lister, query):
    pages = pages_from(lister, "/stock?stock__in=Germany,USA&max_speed__gte=160&order_by=-max_speed&limit=3" + query)

    found = [car["mark"] for page in pages for car in (csv.DictReader(io.StringIO(page.text)) if query else page.json)]
    cars = [car for car in SAMPLES.values() if car["stock"] in ("Germany", "USA") and car["max_speed"] >= 160]
    assert found == [car["mark"] for car in in_order(cars, "-max_speed")]


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
ACCEPTS = [
    ("", "csv", "text/csv|TEXT/CSV|text/csv; charset=utf-8|text/*|text/csv, */*;q=0.1|text/csv;q=0.001"),
    ("", "csv", "text/csv;q=0.9, application/json;q=0.5|text/csv;q=0.5,application/json;q=0.4,text/html"),
    ("", "csv", "application/json;q=0, */*|application/json;q=0.2, text/*;q=0.3"),
    ("", "json", f"application/json|application/*|*/*||garbage|text/html|{BROWSER}|text/csv;q=0|text/csv;q=0, */*"),
    ("", "json", "text/csv;q=0.5, application/json;q=0.9|text/csv;q=0.5, */*"),
    ("", "json", "text/*;q=0.9, text/csv;q=0.1, application/json;q=0.5"),
    ("", "json", "text/csv" + ";" * 5000),
    ("format=csv", "csv", f"application/json|{BROWSER}|text/csv;q=0"),
    ("format=json", "json", "text/csv"),
]


@pytest.mark.parametrize(
    ("query", "kind", "accept"),
    [(query, kind, accept) for *row, many in ACCEPTS for accept in many.split("|") for query, kind in [row]],
)
def test_accept_and_format_decide_what_a_listing_is(bmw, query, kind, accept):
    answer = bmw.get("/stock?" + query, headers={"Accept": accept}, status=200)

    assert answer.content_type.rpartition("/")[2] == kind
    assert_headers(answer, Vary="Accept")


# ----------------------------------------------------------------------------------------------------------------------
# The version of the whole stock
# ----------------------------------------------------------------------------------------------------------------------


def stock_tag(client, query="", **headers):
    """Give the entity tag of a listing."""
    return client.get("/stock" + query, headers=headers, status=200).headers["ETag"]


@pytest.mark.parametrize("query", ["", "?format=csv", "?limit=1", "?stock=nowhere", "?order_by=-stock&search=x"])
def test_listing_that_has_not_changed_is_304(bmw, query):
    tag = stock_tag(bmw, query)

    answer = bmw.get("/stock" + query, headers={"If-None-Match": f'"x", W/{tag}'}, status=304)

    assert re.fullmatch(r'"[\x21\x23-\x7e]+"', tag)
    assert (answer.body, answer.headers["ETag"]) == (b"", tag)
    assert_headers(answer, Cache_Control="private, no-cache", Vary="Accept")


@pytest.mark.parametrize(
    ("method", "path", "body", "marks"),
    [
        ("POST", "/auto/Audi", CAR, ["Audi", "BMW", "Kia"]),
        ("PUT", "/auto/BMW", CAR, ["BMW", "Kia"]),
        ("PATCH", "/auto/BMW", {"distance": 400}, ["BMW", "Kia"]),
        ("DELETE", "/auto/Kia", None, ["BMW"]),
        ("POST", "/stock", [{"mark": "Audi", **CAR}], ["Audi", "BMW", "Kia"]),
        ("PUT", "/stock", [{"mark": "BMW", **CAR}], ["BMW", "Kia"]),
    ],
)
def test_stock_that_was_changed_is_another_one(bmw, make_app, method, path, body, marks):
    bmw.post_json("/auto/Kia", CAR, status=201)
    other = TestApp(make_app())
    other.authorization = bmw.authorization
    before = stock_tag(bmw)

    send(other, method, path, json.dumps(body))

    answer = bmw.get("/stock", headers={"If-None-Match": before}, status=200)
    assert answer.headers["ETag"] == stock_tag(other) != before
    assert [car["mark"] for car in answer.json] == marks


def test_json_and_csv_have_different_tags(bmw):
    assert stock_tag(bmw) == stock_tag(bmw, "?format=json") != stock_tag(bmw, Accept="text/csv")


def test_refused_change_leaves_the_tag(bmw):
    before = stock_tag(bmw)

    bmw.post_json("/auto/BMW", CAR, status=400)
    bmw.delete("/auto/Kia", status=404)

    assert stock_tag(bmw) == before


def test_parameters_and_an_empty_stock_come_before_the_tag(bmw):
    headers = {"If-None-Match": stock_tag(bmw)}

    assert_refused(bmw.get("/stock?limit=0", headers=headers, status=400), "limit")
    bmw.delete("/auto/BMW", status=202)
    assert_error(bmw.get("/stock", headers=headers, status=400), 400, "No one autos found in DataBase")


def test_stock_is_another_one_after_a_copy_was_put_back(bmw, database):
    before = stock_tag(bmw)

    database.execute("UPDATE history SET at = '2026-01-31T12:00:00.000000Z'", "UPDATE autos SET distance = 1")

    assert bmw.get("/stock", headers={"If-None-Match": before}, status=200).json[0]["distance"] == 1


# ----------------------------------------------------------------------------------------------------------------------
# What a page costs
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["", " DESC"])
@pytest.mark.parametrize("name", FIELDS)
def test_page_in_any_order_needs_no_sorting(lasting_app, database, name, direction):
    page = f"SELECT * FROM autos ORDER BY {name}{direction}, mark LIMIT 10"

    if database.name == "sqlite":
        plan = [row["detail"] for row in database.query(f"EXPLAIN QUERY PLAN {page}")]
    else:
        with database.engine.connect() as connection:
            connection.exec_driver_sql("SET enable_seqscan = off; SET enable_sort = off")
            plan = [row[0] for row in connection.exec_driver_sql(f"EXPLAIN {page}")]

    assert plan
    assert not re.search("TEMP B-TREE|Sort", str(plan)), plan


def test_stock_is_kept_while_nothing_changes(bmw, monkeypatch):
    before = bmw.get("/stock")
    monkeypatch.setattr(Table, "json", pytest.fail)

    again = bmw.get("/stock")

    assert (again.body, again.headers["X-Total-Count"]) == (before.body, before.headers["X-Total-Count"])


def test_stock_is_kept_with_the_version_that_it_is_of(bmw, lasting_app):
    (storage,) = (plugin for plugin in lasting_app.plugins if isinstance(plugin, StoragePlugin))
    autos = storage.resources["autos"]
    with storage.db.reading(), ThreadPoolExecutor(1) as elsewhere:
        version = autos.version()
        elsewhere.submit(bmw.put_json, "/auto/BMW", OTHER_CAR, status=202).result()
        total, array = autos.whole(Listing("", dealer.Car, "mark", "*/*"), version)

    assert (total, json.loads(array)) == (1, [{"mark": "BMW", **CAR}])
    assert bmw.get("/stock").json == [{"mark": "BMW", **OTHER_CAR}]
