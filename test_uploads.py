"""Whole inventories: all of an upload is stored, or nothing."""

import json
import re

import pytest

from conftest import (
    CAR,
    COMPOSED,
    CSV,
    DECOMPOSED,
    HEADER,
    HERE,
    JSON,
    LINES,
    MIB,
    NUMBER,
    ODD_CARS,
    SAMPLES,
    TWO_CARS,
    as_csv,
    assert_error,
    assert_json,
    assert_refused,
    in_order,
    put_cars,
    send,
)

# ----------------------------------------------------------------------------------------------------------------------
# Whole inventories
# ----------------------------------------------------------------------------------------------------------------------

BMW, AUDI = "BMW,280,400,Auto Motors,Germany", "Audi,210,999,Second Hand,Sweden"
CREATED = [("POST", 201, "{} autos created"), ("PUT", 202, "{} autos created, 0 updated")]


def lines(*rows, header=HEADER, end="\r\n"):
    """Give the text of CSV."""
    return "".join(row + end for row in (header, *rows))


def row(**changes):
    """Give the line of a car, with some cells of its own."""
    return ",".join(str({"mark": "Kia", **CAR, **changes}[name]) for name in HEADER.split(","))


def items(*changes, end="]"):
    """Give the text of a JSON array of cars, with some values of their own."""
    return json.dumps([{"mark": f"Kia {number}", **CAR, **some} for number, some in enumerate(changes)])[:-1] + end


REORDERED = ["Germany,400,BMW,280,Auto Motors", "Sweden,999,Audi,210,Second Hand"]
FINE_UPLOADS = {
    "CRLF": (CSV, lines(BMW, AUDI)),
    "LF": (CSV, lines(BMW, AUDI, end="\n")),
    "no line end at the end": (CSV, lines(BMW, AUDI).rstrip()),
    "white space": (JSON, json.dumps(TWO_CARS).replace("}", "}" + " " * MIB)),
    "BOM": (CSV, "\ufeff" + lines(BMW, AUDI)),
    "BOM and semicolons": (CSV, "\ufeff" + lines(BMW, AUDI).replace(",", ";")),
    "semicolons and LF": (CSV, lines(BMW, AUDI, end="\n").replace(",", ";")),
    "quoted": (CSV, "\ufeff" + re.sub(r"[^,\r\n]+", r'"\g<0>"', lines(BMW, AUDI))),
    "columns in another order": (CSV, lines(*REORDERED, header="stock,distance,mark,max_speed,handler")),
    "blank lines": (CSV, lines(BMW, "", "", AUDI, "", "")),
    "leading zeros": (CSV, lines(BMW.replace("280", "00280"), AUDI)),
    "parameters": ("Text/CSV; charset=utf-8; header=present", lines(BMW, AUDI)),
    "JSON": (JSON, f"\r\n {json.dumps(TWO_CARS, indent=2)}\t\n"),
    "keys twice, of which the last counts": (JSON, json.dumps(TWO_CARS).replace('"max', '"max_speed": "?", "max')),
    "other JSON": ("application/vnd.dealer+json; charset=utf-8", json.dumps(TWO_CARS)),
}


@pytest.mark.parametrize(("method", "status", "message"), CREATED)
@pytest.mark.parametrize("name", FINE_UPLOADS)
def test_upload_creates_all(client, name, method, status, message):
    content_type, body = FINE_UPLOADS[name]

    answer = send(client, method, "/stock", body, content_type)

    assert_json(answer, status, {"Message": message.format(2)})
    assert client.get("/stock").json == TWO_CARS


@pytest.mark.parametrize(
    ("mark", "cell", "mark_between_semicolons"),
    [
        ("a,b", '"a,b"', "a,b"),
        ("a;b;c;d;e;f;g", "a;b;c;d;e;f;g", '"a;b;c;d;e;f;g"'),
        ('"', '""""', '""""'),
        ("=1", "=1", "=1"),
    ],
)
def test_upload_reads_cells_as_they_were_meant(client, mark, cell, mark_between_semicolons):
    with_commas = lines(row(mark=cell))
    with_semicolons = lines(row(mark="\0")).replace(",", ";").replace("\0", mark_between_semicolons)

    for text in (with_commas, with_semicolons):
        send(client, "PUT", "/stock", text, CSV)
        assert client.get("/stock").json == [{"mark": mark, **CAR}]


@pytest.mark.parametrize(("method", "status", "message"), CREATED)
@pytest.mark.parametrize(
    ("content_type", "body"), [(JSON, "[]"), (JSON, " [ ] "), (CSV, HEADER), (CSV, HEADER + "\n\n")]
)
def test_upload_without_cars(refused, method, status, message, content_type, body):
    answer = send(refused, method, "/stock", body, content_type)

    assert_json(answer, status, {"Message": message.format(0)})


@pytest.mark.parametrize("headers", [{}, {"X_HTTP_Method_Override": "PUT"}])
def test_put_counts_the_new_and_the_known(client, headers):
    put_cars(client, "BMW", "Kia")

    answer = send(client, "POST" if headers else "PUT", "/stock", lines(AUDI, row(distance=1)), CSV, **headers)

    assert_json(answer, 202, {"Message": "1 autos created, 1 updated"})
    assert client.get("/stock").json == [*TWO_CARS, {"mark": "Kia", **CAR, "distance": 1}]


WRONG_CELLS = ["", " ", "1 ", "+1", "-1", "1.0", "1e2", "1_000", '"1,000"', "0x1", "²", "١", "9007199254740992"]
COLUMNS = "line 1: columns must be mark, max_speed, distance, handler, stock"
WRONG_CSV = {
    **{
        f"{cell:.9}": (lines(BMW, row(max_speed=cell)), f"line 3: max_speed: {NUMBER}")
        for cell in [*WRONG_CELLS, "1" * 5000]
    },
    "empty text": (lines(BMW, row(handler="")), "line 3: handler: must be text of 1 to 255 characters"),
    "blank text": (lines(row(stock=" "), BMW), "line 2: stock: must not be blank"),
    "long text": (lines(BMW, row(mark="x" * 256)), "line 3: mark: must be text of 1 to 255 characters"),
    "line feed": (lines(BMW, row(mark='"a\nb"')), "line 3: mark: must not hold control or format characters"),
    "after blank lines": (lines("", "", BMW, "", row(distance="far")), f"line 6: distance: {NUMBER}"),
    "too few cells": (lines(BMW, "Kia,1,2,x"), "line 3: must have 5 columns"),
    "empty cells": (lines(BMW, ",,,,"), f"line 3: max_speed: {NUMBER}"),
    "text behind a quote": (lines(BMW, '"Kia"x,1,2,x,y'), "line 3: must be CSV as RFC 4180 has it"),
    "open quote": (lines(BMW, '"' + row()), "line 3: must be CSV as RFC 4180 has it"),
    "twice": (lines(BMW, AUDI, BMW), "line 4: mark: is in line 2 too"),
    "twice in two forms": (lines(BMW, row(mark=COMPOSED), row(mark=DECOMPOSED)), "line 4: mark: is in line 3 too"),
    "missing column": (lines("1,2,x,y", header="max_speed,distance,handler,stock"), COLUMNS),
    "sixth column": (lines(row() + ",1", header=HEADER + ",price"), COLUMNS),
    "column twice": (lines(row() + ",y", header=HEADER + ",stock"), COLUMNS),
    "no header": (lines(AUDI, header=BMW), COLUMNS),
    "JSON": (items({}), COLUMNS),
    "longer than any car": (lines(BMW, row() + "," * MIB, AUDI), "line 3: must be CSV as RFC 4180 has it"),
    "longer in many lines": (lines(BMW, ",".join(['"\n"'] * MIB), AUDI), "line 3: must be CSV as RFC 4180 has it"),
    "not UTF-8": (lines(BMW, row(mark="Škoda")).encode("cp1250"), "body: must be UTF-8"),
}
WRONG_JSON = {
    "number as text": (items({}, {"max_speed": "280"}), f"item 2: max_speed: {NUMBER}"),
    "fraction": (items({"distance": 1.0}, {}), f"item 1: distance: {NUMBER}"),
    "boolean": (items({}, {"distance": True}), f"item 2: distance: {NUMBER}"),
    "blank text": (items({}, {"stock": " "}), "item 2: stock: must not be blank"),
    "surrogate": (items({}, {"stock": "\ud800"}), "item 2: stock: must not hold lone surrogates"),
    "no mark": (json.dumps([CAR]), "item 1: mark: is missing"),
    "unknown field": (items({}, {}, {"price": 1}), "item 3: price: unknown field"),
    "number for a car": (items({}, end=", 1]"), "item 2: must be a JSON object"),
    "no JSON for a car": (items({}, end=", {]"), "item 2: must be JSON"),
    "NaN": (items({"distance": float("nan")}), "item 1: must be JSON"),
    "trailing comma": (items({}, end=",]"), "item 2: must be JSON"),
    "cut": (items({}, end=""), "body: must be a JSON array"),
    "followed by more": (items({}, end="][]"), "body: must be a JSON array"),
    "nested": ("[" * 100000, "body: must be a JSON array"),
    "longer than any car": (items({}, {"mark": [[]] * MIB}), "item 2: must be JSON"),
    "not UTF-8": (items({}).encode() + b"\xff", "body: must be a JSON array"),
    "twice": (items({}, {}, {"mark": "Kia 0"}), "item 3: mark: is in item 1 too"),
    "twice in two forms": (items({"mark": DECOMPOSED}, {"mark": COMPOSED}), "item 2: mark: is in item 1 too"),
}
WRONG_UPLOADS = [
    *[pytest.param("POST", CSV, *wrong, id=f"CSV-{name}") for name, wrong in WRONG_CSV.items()],
    *[pytest.param("POST", JSON, *wrong, id=f"JSON-{name}") for name, wrong in WRONG_JSON.items()],
    *[pytest.param(method, kind, "", "body: is missing") for method in ("POST", "PUT") for kind in (CSV, JSON)],
    *[pytest.param("PUT", CSV, *WRONG_CSV[name], id=f"PUT-{name}") for name in ("after blank lines", "twice")],
    *[pytest.param("PUT", JSON, *WRONG_JSON[name], id=f"PUT-{name}") for name in ("fraction", "twice")],
]


@pytest.mark.parametrize(("method", "content_type", "body", "sentence"), WRONG_UPLOADS)
def test_wrong_upload_is_400_and_stores_nothing(refused, method, content_type, body, sentence):
    answer = send(refused, method, "/stock", body, content_type)

    assert_error(answer, 400, sentence)


@pytest.mark.parametrize(
    ("content_type", "body", "place"),
    [(CSV, lines("", AUDI, row(), BMW), "line 5: mark"), (JSON, items({}, {}, {"mark": "BMW"}), "item 3: mark")],
)
def test_post_of_a_known_mark_is_400_and_stores_nothing(bmw, database, content_type, body, place):
    before = database.contents()

    answer = send(bmw, "POST", "/stock", body, content_type)

    assert_refused(answer, place)
    assert database.contents() == before


TWICE, KNOWN = "mark: is in {} too", "mark: Auto with that mark exists"
FAR, FAST = f"distance: {NUMBER}", f"max_speed: {NUMBER}"
TOO_MANY = "body: more than 50000 cars; send them in several uploads"
SEVERAL_WRONG = {  # by line, where BMW is in stock
    "values": ((row(distance="far"), AUDI, row(max_speed="fast")), {2: FAR, 4: FAST}),
    "the first value of a line": ((row(max_speed=-1, stock=""), row(distance="far", max_speed="")), {2: FAST, 3: FAST}),
    "marks that repeat": ((AUDI, row(), row(), AUDI), {4: TWICE.format("line 3"), 5: TWICE.format("line 2")}),
    "the mark of a wrong line": ((row(distance="far"), AUDI, row()), {2: FAR, 4: TWICE.format("line 2")}),
    "a mark known, and one that repeats": ((AUDI, BMW, AUDI), {3: KNOWN, 4: TWICE.format("line 2")}),
    "a known mark that repeats": ((BMW, BMW), {2: KNOWN, 3: TWICE.format("line 2")}),
    "a wrong value of a known mark": ((row(distance="far"), row(mark="BMW", max_speed="fast")), {2: FAR, 3: FAST}),
    "all kinds": (
        ("Kia,1", BMW, AUDI, "", row(handler=" "), AUDI, '"Kia"x,1,2,x,y', row(distance="far")),
        {
            2: "must have 5 columns",
            3: KNOWN,
            6: "handler: must not be blank",
            7: TWICE.format("line 4"),
            8: "must be CSV as RFC 4180 has it",
        },
    ),
}


def assert_errors(answer, sentences):
    """Compare the refusal of an upload of which more than one line is wrong."""
    assert_json(answer, 400, {"Error": sentences[0], "Errors": sentences})


@pytest.mark.parametrize("name", SEVERAL_WRONG)
def test_every_wrong_line_of_a_post_is_told_in_order(bmw, database, name):
    rows, wrong = SEVERAL_WRONG[name]
    before = database.contents()

    answer = send(bmw, "POST", "/stock", lines(*rows), CSV)

    assert_errors(answer, [f"line {number}: {sentence}" for number, sentence in wrong.items()])
    assert database.contents() == before


def test_put_tells_every_wrong_line_but_no_known_mark(bmw, database):
    before = database.contents()

    answer = send(bmw, "PUT", "/stock", lines(row(distance="far"), BMW, AUDI, BMW), CSV)

    assert_errors(answer, [f"line 2: {FAR}", f"line 5: {TWICE.format('line 3')}"])
    assert database.contents() == before


def test_every_wrong_item_is_told_in_order(bmw):
    body = items({"price": 1}, {"mark": "BMW"}, {}, {"mark": "Kia 2"}, {"mark": 7}, end=', 7, [], {"mark": "x"}, {]')

    answer = send(bmw, "POST", "/stock", body)

    sentences = [
        "price: unknown field",
        KNOWN,
        TWICE.format("item 3"),
        "mark: must be text",
        "must be a JSON object",
        "must be a JSON object",
        "max_speed: is missing",
        "must be JSON",
    ]
    places = (1, 2, 4, 5, 6, 7, 8, 9)
    assert_errors(answer, [f"item {place}: {sentence}" for place, sentence in zip(places, sentences, strict=True)])


@pytest.mark.parametrize("content_type", [CSV, JSON])
def test_a_hundred_wrong_lines_are_told_and_no_more(refused, content_type):
    cars = [{"mark": f"Kia {number}", **CAR, "stock": " " * (number % 2)} for number in range(150)]

    answer = send(refused, "POST", "/stock", as_csv(cars) if content_type == CSV else json.dumps(cars), content_type)

    place, first = ("line", 2) if content_type == CSV else ("item", 1)
    reasons = ["must be text of 1 to 255 characters", "must not be blank"] * 50
    assert_errors(answer, [f"{place} {number}: stock: {reason}" for number, reason in enumerate(reasons, first)])


@pytest.mark.parametrize("content_type", [CSV, JSON])
@pytest.mark.parametrize(("count", "status"), [(50_000, 400), (50_001, 413)])
def test_more_than_50000_cars_are_413_whatever_is_wrong_with_them(refused, content_type, count, status):
    cars = [{"mark": f"Kia {number}", **CAR, "distance": -(number == 1)} for number in range(count)]
    body = as_csv(cars).replace("\r\n", "\r\n\r\n") if content_type == CSV else json.dumps(cars)

    answer = send(refused, "POST", "/stock", body, content_type)

    sentence = TOO_MANY if status == 413 else f"{'line 5' if content_type == CSV else 'item 2'}: {FAR}"
    assert_error(answer, status, sentence)


@pytest.mark.parametrize(("content_type", "write"), [(CSV, as_csv), (JSON, json.dumps)])
def test_50000_cars_go_in(client, content_type, write):
    cars = [{"mark": f"{number:05}", **CAR, "handler": "{Škoda}"} for number in range(50_000)]

    answer = send(client, "PUT", "/stock", write(cars), content_type)

    assert_json(answer, 202, {"Message": "50000 autos created, 0 updated"})
    assert client.get("/stock?limit=2&mark__gt=49997").json == cars[-2:]


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "text/csvx", "application/csv", "text/json", "multipart/form-data"]
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_upload_of_another_type_is_415(refused, method, content_type):
    answer = send(refused, method, "/stock", lines(BMW), content_type)

    assert_error(answer, 415, "Content-Type must be application/json or text/csv")


def test_sample_file_is_refused_for_its_second_kia(refused):
    first, second = (number for number, line in enumerate(LINES, 2) if line["mark"] == "Kia e-Soul 64 kWh")

    answer = send(refused, "POST", "/stock", (HERE / "samples" / "cars.csv").read_bytes(), CSV)

    assert_error(answer, 400, f"line {second}: mark: is in line {first} too")


@pytest.mark.parametrize(("content_type", "write"), [(CSV, as_csv), (JSON, lambda cars: json.dumps([*cars]))])
def test_samples_go_in_without_the_second_kia(client, content_type, write):
    answer = send(client, "POST", "/stock", write(SAMPLES.values()), content_type)

    assert_json(answer, 201, {"Message": "102 autos created"})
    assert client.get("/stock").json == in_order(SAMPLES.values())


@pytest.mark.parametrize(("query", "content_type"), [("", JSON), ("?format=csv&order_by=-stock", CSV)])
def test_export_can_be_imported_without_difference(client, database, query, content_type):
    put_cars(client, *SAMPLES.values(), *ODD_CARS)
    before, export = client.get("/stock").json, client.get("/stock" + query).body

    updated = send(client, "PUT", "/stock", export, content_type)
    database.execute("DELETE FROM autos")
    created = send(client, "POST", "/stock", export, content_type)

    assert_json(updated, 202, {"Message": f"0 autos created, {len(before)} updated"})
    assert_json(created, 201, {"Message": f"{len(before)} autos created"})
    assert client.get("/stock").json == before


def test_upload_of_64_mebibytes_is_fine(refused):
    answer = send(refused, "POST", "/stock", b"[" + b" " * (64 * MIB - 2) + b"]")

    assert_json(answer, 201, {"Message": "0 autos created"})


def test_long_upload_is_refused_by_its_head(server):
    head = "POST /stock HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
    head += "Authorization: Bearer {}\r\nContent-Length: {}\r\n\r\n"

    too_long = server.send_bytes(head.format(server.token, 64 * MIB + 1).encode())
    bad_token = server.send_bytes(head.format("x.y.z", 64 * MIB).encode())

    assert_error(too_long, 413, f"Body is larger than {64 * MIB} bytes")
    assert_error(bad_token, 401, "Token is invalid or expired")


def test_one_of_many_simultaneous_uploads_succeeds(server):
    answers = server.at_once(*[("POST", "/stock", TWO_CARS[::order]) for order in (1, -1) * 4])

    assert sorted(answer.status_int for answer in answers) == [201] + [400] * 7
    assert {tuple(answer.json.get("Errors", ())) for answer in answers} == {
        (),
        (f"item 1: {KNOWN}", f"item 2: {KNOWN}"),
    }
    assert len(server.request("GET", "/history").json) == 2


def test_simultaneous_uploads_keep_every_car(server):
    """Eight clients whose cars overlap, in both orders: all are stored, each created once."""
    cars = [{"mark": f"Kia {number}", **CAR} for number in range(400)]

    answers = server.at_once(*[("PUT", "/stock", cars[50 * n : 50 * n + 100][:: (-1) ** n]) for n in range(8)])

    assert [answer.status_int for answer in answers] == [202] * 8
    created = [int(answer.json["Message"].split()[0]) for answer in answers]
    assert sum(created) == len(server.request("GET", "/stock").json) == 400
