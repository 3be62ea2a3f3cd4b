"""The steps of the Postman collection, for `postman.py`: a request, the answer to it, and what else must hold.

Answers and fields are the application's own. ``{{run}}`` is a suffix that each run of the collection has for itself.
"""

import json
import re
from typing import NamedTuple
from urllib.parse import quote, urlencode

import dealer


class Step(NamedTuple):
    """A request and what must come back: an `Answer`, a `Data`, a status, or a status and how its sentence begins."""

    name: str
    request: str
    answer: object
    body: object = None  # JSON, or text that is sent as it is
    gives: object = None  # the JSON of an answer with data
    checks: dict = {}  # JavaScript by what it makes sure of
    headers: dict = {}
    token: str | None = "{{token}}"
    keep: dict = {}  # JavaScript by the variable that keeps its value
    before: str = ""  # JavaScript


# ----------------------------------------------------------------------------------------------------------------------
# JavaScript
# ----------------------------------------------------------------------------------------------------------------------

JSON_BODY, HEADERS = "pm.response.json()", "pm.response.headers"
FRESH_RUN = 'pm.collectionVariables.set("run", pm.variables.replaceIn("{{$timestamp}}-{{$randomInt}}{{$randomInt}}"));'
BEFORE_EACH = f"""\
// Requests can be sent one by one too: only a whole run begins with "Register a user", which makes a fresh suffix.
if (!pm.collectionVariables.get("run")) {{
    {FRESH_RUN}
}}"""
AFTER_EACH = """\
// What holds for every answer.
const headers = pm.response.headers;
const code = pm.response.code;
pm.test("X-Content-Type-Options is nosniff", () => pm.expect(headers.get("X-Content-Type-Options")).to.eql("nosniff"));
pm.test("X-Request-ID is sent", () => pm.expect(headers.get("X-Request-ID")).to.match(/^[A-Za-z0-9._-]{1,128}$/));
if (code >= 400) {
    pm.test("Failure is JSON, one sentence", () => {
        const { Errors, ...body } = pm.response.json();
        pm.expect(headers.get("Content-Type")).to.eql("application/json");
        pm.expect(Object.keys(body)).to.eql(["Error"]);
        pm.expect(body.Error).to.match(/^[^\\n]+$/);
    });
}
if (code === 401) {
    pm.test("401 says how to log in", () => pm.expect(headers.get("WWW-Authenticate")).to.match(/^Bearer/));
}
if (code === 405) {
    pm.test("405 says what is allowed", () => pm.expect(headers.get("Allow")).to.match(/^[A-Z]+(, [A-Z]+)*$/));
}"""
FORGE = """\
const crypto = require("crypto-js");
const part = (words) => crypto.enc.Base64.stringify(words).replace(/=+$/, "").replace(/\\+/g, "-").replace(/\\//g, "_");
const json = (value) => part(crypto.enc.Utf8.parse(JSON.stringify(value)));
const now = Math.floor(Date.now() / 1000);
const signed = `${json({ alg: "ALG" })}.${json({ sub: `dealer-${pm.variables.get("run")}`, iat: now, exp: now + 60 })}`;
const signature = "ALG" === "none" ? "" : part(crypto.HmacSHA256(signed, "a key that the server does not have"));
pm.variables.set("forged", `${signed}.${signature}`);"""
GUESS = """\
const wrong = JSON.stringify({ username: `nobody-${pm.variables.get("run")}`, password: "wrong" });
const header = { "Content-Type": "application/json" };
const url = `${pm.variables.get("base_url")}/auth`;
const guess = { url, method: "POST", header, body: { mode: "raw", raw: wrong } };
Array.from({ length: 10 }, () => pm.sendRequest(guess));"""


def js(value):
    """Give a value in JavaScript; texts with variables of the collection become templates."""
    text = json.dumps(value, ensure_ascii=False)
    templates = re.sub(r'"((?:[^"\\]|\\.)*\{\{(?:[^"\\]|\\.)*)"', r"`\1`", text)
    return re.sub(r"\{\{(\w+)\}\}", r'${pm.variables.get("\1")}', templates)


def equal(expression, value):
    """Give the JavaScript that compares an expression with a value."""
    return f"pm.expect({expression}).to.eql({js(value)});"


def header(name, value=None):
    """Give the check that compares a header; None for one that must not be there."""
    return {f"{name} is {value}": f"pm.expect({HEADERS}.get({js(name)}) || null).to.eql({js(value)});"}


def like(name, pattern):
    """Give the check that matches a header."""
    return {f"{name} is right": f"pm.expect({HEADERS}.get({js(name)})).to.match({pattern});"}


def long(text, times):
    """Give the JavaScript that keeps a long text in the variable ``long``."""
    return f'pm.variables.set("long", {js(text)}.repeat({times}));'


INVALID_TOKEN = like("WWW-Authenticate", '/^Bearer error="invalid_token"/')
KEEP_TOKEN = {"token": f"{JSON_BODY}.access_token"}
KEEP_OTHER = {"other_token": f"{JSON_BODY}.access_token"}
KEEP_TAG = {"etag": f'{HEADERS}.get("ETag")'}
KEEP_PAGE = {"next_page": f'{HEADERS}.get("Link").match(/^<([^<>]+)>; rel="next"$/)[1]'}
NO_BODY = {"Body is empty": equal("pm.response.text()", "")}
JWT_CLAIMS = {
    "Token is a JWT, HS256, with sub, iat and exp": """
    const parts = pm.response.json().access_token.split(".").slice(0, 2);
    const [head, claims] = parts.map((part) => JSON.parse(atob(part.replace(/-/g, "+").replace(/_/g, "/"))));
    pm.expect(head.alg).to.eql("HS256");
    pm.expect(claims.sub).to.eql(`dealer-${pm.variables.get("run")}`);
    pm.expect(claims.exp - claims.iat).to.eql(pm.response.json().expires_in);
"""
}
BY_CODE_POINT = {
    "Cars are ordered by mark, by code point": """
    const point = (character) => character.codePointAt(0).toString(16).padStart(6, "0");
    const marks = pm.response.json().map((car) => Array.from(car.mark, point).join());
    pm.expect(marks).to.eql([...marks].sort());
"""
}

# ----------------------------------------------------------------------------------------------------------------------
# Steps
# ----------------------------------------------------------------------------------------------------------------------

ME = {"username": "dealer-{{run}}", "password": "warik"}
IVAN = {"username": "Иван {{run}}", "password": "пароль 密码 🔑"}
CAR = {"max_speed": 280, "distance": 400, "handler": "Auto Motors", "stock": "Germany"}
OTHER = {"max_speed": 250, "distance": 12000, "handler": "Second Hand GmbH", "stock": "Österreich"}
BMW, GOLF, LADA = "BMW 540i {{run}}", "VW Golf 1.9 TDI/4Motion {{run}}", "100% Lada Нива (2121) {{run}}"
REFUSED, NOBODY, CITROEN = "Refused {{run}}", "Nobody has this {{run}}", "Citroën {{run}}"
OTHER_TOKEN = "{{other_token}}"
AS_CSV, PLAIN, ANY_JSON = ({"Content-Type": kind} for kind in ("text/csv", "text/plain", "application/vnd.dealer+json"))
SAME_ID = header("X-Request-ID", "a.b")
SAFE, REMEMBERED = "Safe {{run}}", "Remembered {{run}}"


def at(mark, path="/auto/"):
    """Give the path of a car."""
    return path + quote(mark, safe="{}")


def create(mark, car=CAR, **more):
    """Create a car, and see where it is."""
    where = {"Location is its address": equal(f'decodeURIComponent({HEADERS}.get("Location"))', "/auto/" + mark)}
    return Step(f"Create {mark}", "POST " + at(mark), dealer.AUTO_CREATED, car, checks=where, **more)


def get(mark, car=CAR, **more):
    """See that a car has these values."""
    gives = {"mark": mark, **car}
    return Step(f"Get {mark}", "GET " + at(mark), dealer.AUTO_FOUND, gives=gives, **more)


def gone(mark):
    """See that there is no such car."""
    return Step(f"Get {mark}, which is not there", "GET " + at(mark), dealer.AUTO_NOT_FOUND)


def with_last(name, value):
    """Give the JSON of a car that ends with a value of its own, written in JSON: the last one of a field counts."""
    return f'{js(CAR)[:-1]}, "{name}": {value}}}'


def override(method):
    """Give the header that means another method."""
    return {"X-HTTP-Method-Override": method}


def delete(mark, **more):
    """Delete a car."""
    return Step(f"Delete {mark}", "DELETE " + at(mark), dealer.AUTO_DELETED, **more)


LOG_IN_CHECKS = {**JWT_CLAIMS, **header("Cache-Control", "no-store")}
UNKNOWN = {**ME, "username": "nobody-{{run}}"}
LATER = like("Retry-After", r"/^\d+$/")
ACCOUNTS = [
    Step("Register a user", "POST /register", dealer.USER_CREATED, ME, before=FRESH_RUN),
    Step("Register the same name again", "POST /register", dealer.USER_EXISTS, {**ME, "password": "another"}),
    Step("Register a name in any alphabet", "POST /register", dealer.USER_CREATED, IVAN),
    Step("Register a blank name", "POST /register", (400, "username: "), {**ME, "username": "  "}),
    Step("Register with NUL in the password", "POST /register", (400, "password: "), {**ME, "password": "wa\0rik"}),
    Step("Log in with the wrong password", "POST /auth", dealer.WRONG_CREDENTIALS, {**ME, "password": "wrong"}),
    Step("Log in with an unknown name", "POST /auth", dealer.WRONG_CREDENTIALS, UNKNOWN),
    Step("Log in with an empty password", "POST /auth", (400, "password: "), {**ME, "password": ""}),
    Step("Log in as the other user", "POST /auth", dealer.LOGGED_IN, IVAN, keep=KEEP_OTHER),
    Step("Log in", "POST /auth", dealer.LOGGED_IN, ME, checks=LOG_IN_CHECKS, keep=KEEP_TOKEN),
    Step("Who is logged in", "GET /account", dealer.ACCOUNT, gives={"username": ME["username"], "role": "editor"}),
    Step("Log in once too often", "POST /auth", dealer.TOO_MANY_ATTEMPTS, UNKNOWN, checks=LATER, before=GUESS),
]

NO_OVERRIDE = (400, "X-HTTP-Method-Override: ")
CARS = [
    create(BMW),
    Step("Create it again", "POST " + at(BMW), dealer.AUTO_EXISTS, OTHER),
    get(BMW, checks=header("Cache-Control", "private, no-cache")),
    get(BMW, headers={"Authorization": "JWT {{token}}"}, token=None),
    Step("Ask for its head", "HEAD " + at(BMW), 200, checks=NO_BODY),
    gone(BMW.lower()),
    Step("Replace its data", "PUT " + at(BMW), dealer.AUTO_UPDATED, OTHER),
    get(BMW, OTHER),
    Step("Replace the data of no car", "PUT " + at(NOBODY), dealer.AUTO_NOT_FOUND, CAR),
    Step("Replace its data by POST", "POST " + at(BMW), dealer.AUTO_UPDATED, CAR, headers=override("PUT")),
    Step("Override with another method", "POST " + at(BMW), NO_OVERRIDE, OTHER, headers=override("FETCH")),
    Step("Override PUT", "PUT " + at(BMW), NO_OVERRIDE, OTHER, headers=override("PUT")),
    get(BMW),
    create(GOLF),
    get(GOLF)._replace(name="Get it, its slash plain", request="GET " + at(GOLF).replace("%2F", "/")),
    create(LADA, {"mark": LADA, **CAR}),
    Step("List the stock", "GET /stock", dealer.STOCK, checks=BY_CODE_POINT, keep=KEEP_TAG),
    Step(
        "Get the stock that has not changed", "GET /stock", 304, headers={"If-None-Match": "{{etag}}"}, checks=NO_BODY
    ),
    delete(BMW),
    Step("Delete it again", "DELETE " + at(BMW), dealer.AUTO_NOT_FOUND),
    Step("Delete by POST", "POST " + at(GOLF), dealer.AUTO_DELETED, headers=override("DELETE")),
    delete(LADA),
]

BAD_VALUES = {  # what stands in the place of a right value, as it is written in JSON
    "A number below 0": ("max_speed", "-1"),
    "A number above 2^53 - 1": ("distance", "9007199254740992"),
    "A number with a fraction": ("max_speed", "280.5"),
    "A number written 2e2": ("distance", "2e2"),
    "A number in quotes": ("max_speed", '"280"'),
    "true as a number": ("distance", "true"),
    "Blank text": ("stock", '" "'),
    "Text with a control character": ("handler", r'"Auto\u0007Motors"'),
    "Text with a format character": ("handler", r'"Auto \u202e srotoM"'),
    "Text with a lone surrogate": ("stock", r'"Germany \ud83d"'),
    "Text of 256 characters": ("handler", '"{{long}}"'),
    "An unknown field": ("colour", '"red"'),
    "Another mark in the body": ("mark", '"Another"'),
}


LIMITS = {"max_speed": 0, "distance": 2**53 - 1, "handler": "🚗" * 255, "stock": "Germany"}
VALUES = [
    *(
        Step(title, "POST " + at(REFUSED), (400, f"{name}: "), with_last(name, value), before=long("x", 256))
        for title, (name, value) in BAD_VALUES.items()
    ),
    Step("A path that is not UTF-8", "GET /auto/%FF%20{{run}}", (400, "path: ")),
    gone(REFUSED),
    create(CITROEN)._replace(request="POST " + at(CITROEN.replace("ë", "e\u0308"))),  # NFC makes one of both
    Step("Change it to the limits", "PUT " + at(CITROEN), dealer.AUTO_UPDATED, LIMITS),
    get(CITROEN, LIMITS),
    Step("Repeat a key", "PUT " + at(CITROEN), dealer.AUTO_UPDATED, with_last("stock", '"Spain"')),
    get(CITROEN, {**CAR, "stock": "Spain"}),
    delete(CITROEN),
]

ERRORS = [
    Step("A malformed token", "GET /stock", 401, token="not.a.token", checks=INVALID_TOKEN),
    *(
        Step(title, "GET /stock", 401, token="{{forged}}", checks=INVALID_TOKEN, before=FORGE.replace("ALG", algorithm))
        for title, algorithm in (("An unsigned token", "none"), ("A token signed with another key", "HS256"))
    ),
    Step("No such path", "GET /nowhere", (404, "Not found")),
    Step("A car without a mark", "GET /auto/", (404, "Not found")),
    Step("The stock with a slash", "GET /stock/", (404, "Not found")),
    Step("A method that the stock does not have", "DELETE /stock", (405, "Method not allowed"), token=None),
    Step("A body that is not JSON", "POST " + at(REFUSED), (400, "body: "), "max_speed=280"),
    Step("An array instead of an object", "POST " + at(REFUSED), (400, "body: "), [CAR]),
    Step("The token comes before the type", "POST " + at(REFUSED), 401, "x", headers=PLAIN, token="not.a.token"),
    Step("The values come before the stored data", "PUT " + at(REFUSED), (400, "stock: "), {**CAR, "stock": ""}),
    Step("Another kind of JSON", "PUT " + at(REFUSED), dealer.AUTO_NOT_FOUND, CAR, headers=ANY_JSON),
    Step("A body over 1 MiB", "POST " + at(REFUSED), (413, "Body is larger"), "{{long}}", before=long("x", 2**20 + 1)),
    Step("Headers that are too large", "GET /stock", 431, headers={"X-Long": "{{long}}"}, before=long("x", 2**15)),
    Step("The request id comes back", "GET /nowhere", 404, headers={"X-Request-ID": "a.b"}, checks=SAME_ID),
]

LISTED = [
    {"mark": "Audi A4 {{run}}", "max_speed": 240, "distance": 400, "handler": "Dealer-{{run}}", "stock": "Germany"},
    {"mark": 'BMW "M3", Touring {{run}}', **CAR, "handler": "Dealer-{{run}}", "stock": "Österreich"},
    {"mark": "Lada Нива {{run}}", "max_speed": 142, "distance": 90000, "handler": "Dealer-{{run}}", "stock": "Россия"},
]
FIRST, SECOND, THIRD = LISTED
EXTRA = {"mark": "Extra {{run}}", "max_speed": 999, "distance": 0, "handler": "Dealer-{{run}}", "stock": "Czechia"}
TWO = {"order_by": "stock,-max_speed", "limit": 2}
QUERIES = {  # what is asked, and which of these cars come, in order
    "All of a dealer": ({}, LISTED),
    "Equal": ({"stock": "Germany"}, [FIRST]),
    "Not equal": ({"stock__not": "Germany"}, [SECOND, THIRD]),
    "From": ({"max_speed__gte": 142, "max_speed__gt": 142}, [FIRST, SECOND]),
    "To": ({"max_speed__lte": 280, "max_speed__lt": 280}, [FIRST, THIRD]),
    "One of several": ({"mark__in": '"BMW ""M3"", Touring {{run}}",Audi A4 {{run}}'}, [FIRST, SECOND]),
    "Begins with": ({"mark__startswith": "Lada"}, [THIRD]),
    "Contains, in any case": ({"stock__contains": "ОСС"}, [THIRD]),
    "Search in all texts": ({"search": "нива"}, [THIRD]),
    "None that match": ({"stock": "Atlantis"}, []),
}
BAD_QUERIES = {
    "An unknown parameter": "colour=red",
    "A repeated parameter": "stock=USA&stock=Germany",
    "An unknown operator": "max_speed__near=240",
    "A number that is none": "max_speed__gt=fast",
    "An unknown field to order by": "order_by=colour",
    "No cars on a page": "limit=0",
    "More than 100 values": "max_speed__in=" + ",".join(map(str, range(101))),
}


def cars_are(cars, total=None):
    """Give the checks that compare the cars of a listing, and how many match."""
    total = None if total is None else str(total)
    return {"Cars are those that match": equal(JSON_BODY, cars), **header("X-Total-Count", total)}


def listing(**query):
    """Give the request for the cars of this run's dealer."""
    return "GET /stock?" + urlencode({"handler": "Dealer-{{run}}", **query}, safe="{}", quote_via=quote)


LINES = ["mark,max_speed,distance,handler,stock", *(",".join(map(str, car.values())) for car in LISTED)]
LINES[2] = LINES[2].replace('BMW "M3", Touring {{run}}', '"BMW ""M3"", Touring {{run}}"')
CSV = {
    "Body has a line for each car": equal('pm.response.text().trim().split("\\r\\n")', LINES),
    **like("Content-Type", r"/^text\/csv\b/"),
    **like("Content-Disposition", "/^attachment/"),
}
LISTING = [
    Step("Stock three cars", "POST /stock", dealer.autos_created(3), LISTED),
    *(
        Step(title, listing(**query), dealer.STOCK, checks=cars_are(cars, len(cars)))
        for title, (query, cars) in QUERIES.items()
    ),
    Step("The first page", listing(**TWO), dealer.STOCK, checks=cars_are([FIRST, SECOND], 3), keep=KEEP_PAGE),
    create(EXTRA["mark"], EXTRA),
    Step("The last page", "GET {{next_page}}", dealer.STOCK, checks={**cars_are([THIRD]), **header("Link")}),
    delete(EXTRA["mark"]),
    Step("CSV by its type", listing(), 200, headers={"Accept": "text/csv"}, checks=CSV),
    Step("CSV by format, which wins", listing(format="csv"), 200, headers={"Accept": "application/json"}, checks=CSV),
    *(Step(title, "GET /stock?" + query, (400, query.split("=")[0] + ": ")) for title, query in BAD_QUERIES.items()),
    *(delete(car["mark"]) for car in LISTED),
]

BULK = [{"mark": f"Bulk {letter} {{{{run}}}}", **CAR} for letter in "ABC"]
A, B, C = BULK
HEADER = "mark,max_speed,distance,handler,stock\n"
BAD_LINE = HEADER + "Bulk D {{run}},200,10,Bulk,Italy\nBulk E {{run}},200,far,Bulk,Italy\n"
SPREADSHEET = (
    "\ufeffstock;mark;handler;max_speed;distance\r\n"
    'Suomi;Bulk B {{run}};"Müller; Söhne";210;11\r\nSuomi;Bulk C {{run}};Bulk;211;12\r\n'
)
UPLOADS = [
    Step("Create two cars from JSON", "POST /stock", dealer.autos_created(2), [A, B]),
    Step("A new one and a known one", "POST /stock", (400, "item 2: mark: "), [C, A]),
    Step("A bad value", "POST /stock", (400, "item 2: max_speed: "), [C, {**A, "max_speed": -1}]),
    Step("A mark twice", "POST /stock", (400, "item 2: mark: "), [C, C]),
    gone(C["mark"]),
    Step("Create and change from JSON", "PUT /stock", dealer.autos_put(1, 1), [{**B, **OTHER}, C]),
    get(B["mark"], OTHER),
    Step("Change from CSV as spreadsheets save it", "PUT /stock", dealer.autos_put(0, 2), SPREADSHEET, headers=AS_CSV),
    get(B["mark"], {"max_speed": 210, "distance": 11, "handler": "Müller; Söhne", "stock": "Suomi"}),
    Step("A bad value in CSV", "POST /stock", (400, "line 3: distance: "), BAD_LINE, headers=AS_CSV),
    Step("A column is missing", "POST /stock", (400, "line 1: "), "mark,max_speed\nBulk D,200\n", headers=AS_CSV),
    gone("Bulk D {{run}}"),
    Step("CSV without cars", "POST /stock", dealer.autos_created(0), HEADER, headers=AS_CSV),
    *(delete(car["mark"]) for car in BULK),
]

IF_OLD, IF_NEW = {"If-Match": "{{old_etag}}"}, {"If-Match": '"other", {{etag}}'}
CHANGES = [("PUT", CAR), ("PATCH", {"distance": 1}), ("DELETE", None)]
ANY = {"If-Match": "*"}
SAFELY = [
    Step("Create only what is there", "POST " + at(SAFE), dealer.AUTO_CHANGED, CAR, headers=ANY),
    create(SAFE),
    get(SAFE, checks=like("ETag", '/^"[^"]+"$/'), keep={**KEEP_TAG, "old_etag": KEEP_TAG["etag"]}),
    Step("Get what has not changed", "GET " + at(SAFE), 304, headers={"If-None-Match": "{{etag}}"}, checks=NO_BODY),
    Step("Change one field", "PATCH " + at(SAFE), dealer.AUTO_UPDATED, {"distance": 500}),
    get(SAFE, {**CAR, "distance": 500}, headers={"If-None-Match": "{{etag}}"}, keep=KEEP_TAG),
    *(
        Step(f"{method} with the old tag", f"{method} {at(SAFE)}", dealer.AUTO_CHANGED, car, headers=IF_OLD)
        for method, car in CHANGES
    ),
    get(SAFE, {**CAR, "distance": 500}),
    *(
        Step(f"{method} no car", f"{method} {at(NOBODY)}", dealer.AUTO_NOT_FOUND, car, headers=IF_OLD)
        for method, car in CHANGES
    ),
    Step("PATCH without a field", "PATCH " + at(SAFE), (400, "body: "), {}),
    Step("PATCH what has not changed", "PATCH " + at(SAFE), dealer.AUTO_UPDATED, {"handler": "Other"}, headers=IF_NEW),
    Step("PUT whatever is there", "PUT " + at(SAFE), dealer.AUTO_UPDATED, CAR, headers=ANY),
    Step("PUT only what is not there", "PUT " + at(SAFE), dealer.AUTO_CHANGED, CAR, headers={"If-None-Match": "*"}),
    get(SAFE, keep=KEEP_TAG),
    delete(SAFE, headers=IF_NEW),
]

DONE = [("deleted", ME), ("updated", ME), ("updated", IVAN), ("created", ME)]
ACTIONS = f"{JSON_BODY}.map((each) => each.action)"
OURS = f"{JSON_BODY}.filter((each) => each.mark === {js(REMEMBERED)}).map((each) => each.action)"
NEWEST_FIRST = {
    "Actions": equal(ACTIONS, [action for action, _ in DONE]),
    "Users": equal(f"{JSON_BODY}.map((each) => each.by)", [user["username"] for _, user in DONE]),
    "Values after each": equal(f"{JSON_BODY}.map((each) => each.auto)", [None, {**OTHER, "distance": 500}, OTHER, CAR]),
    "Ids go down": f"{JSON_BODY}.reduce((last, each) => (pm.expect(each.id).to.be.below(last), each.id), Infinity);",
    "In UTC": f"{JSON_BODY}.forEach((each) => pm.expect(each.at).to.match(/^[\\d-]+T[\\d:.]+Z$/));",
}
CHANGED = [{"mark": REMEMBERED, **OTHER}]
LAST_ID = {"last_id": f"({JSON_BODY}[0] || {{ id: 0 }}).id"}
SINCE = {"Oldest first": equal(OURS, [action for action, _ in reversed(DONE)])}
HISTORY = [
    Step("Note the newest change", "GET /history?limit=1", dealer.ENTRIES, keep=LAST_ID),
    create(REMEMBERED),
    Step("Change it as another", "PUT /stock", dealer.autos_put(0, 1), CHANGED, token=OTHER_TOKEN),
    Step("Change one field", "PATCH " + at(REMEMBERED), dealer.AUTO_UPDATED, {"distance": 500}),
    delete(REMEMBERED),
    Step("Its history", "GET " + at(REMEMBERED, "/history/"), dealer.ENTRIES, checks=NEWEST_FIRST),
    Step("A page of it", f"GET {at(REMEMBERED, '/history/')}?limit=3", dealer.ENTRIES, keep=KEEP_PAGE),
    Step("The next page", "GET {{next_page}}", dealer.ENTRIES, checks={"The oldest": equal(ACTIONS, ["created"])}),
    Step("What came since, of all cars", "GET /history?after={{last_id}}", dealer.ENTRIES, checks=SINCE),
    Step("The history of a mark never seen", "GET " + at(NOBODY, "/history/"), dealer.AUTO_NOT_FOUND),
]

HTML = like("Content-Type", r"/^text\/html\b/")
OPENAPI = {"Body is OpenAPI 3.1": f"pm.expect({JSON_BODY}.openapi).to.match(/^3\\.1\\./);"}
ITSELF = [
    Step("The description", "GET /openapi.json", 200, checks=OPENAPI, token=None),
    Step("The page to try it", "GET /docs", 200, checks=HTML, token=None),
    Step("The page for people", "GET /", 200, checks=HTML, token=None),
    Step("Health", "GET /health", dealer.HEALTHY, gives={"status": "ok"}),
]


def password_of(user):
    """Give the body that confirms with a password."""
    return {"password": user["password"]}


NEW = {**IVAN, "password": "new 🔑"}
WRONG = {"password": "wrong"}
ENDED = Step("The token has ended", "GET /stock", 401, token=OTHER_TOKEN, checks=INVALID_TOKEN)
CHANGE = {"password": IVAN["password"], "new_password": NEW["password"]}
ENDING = [
    Step("A wrong one", "PUT /account/password", dealer.WRONG_PASSWORD, {**CHANGE, **WRONG}, token=OTHER_TOKEN),
    Step("Change the password", "PUT /account/password", dealer.PASSWORD_CHANGED, CHANGE, token=OTHER_TOKEN),
    ENDED,
    Step("Log in with the old password", "POST /auth", dealer.WRONG_CREDENTIALS, IVAN),
    Step("Log in with the new password", "POST /auth", dealer.LOGGED_IN, NEW, keep=KEEP_OTHER),
    Step("Log out", "POST /logout", dealer.LOGGED_OUT, token=OTHER_TOKEN),
    ENDED,
    Step("Log in again", "POST /auth", dealer.LOGGED_IN, NEW, keep=KEEP_OTHER),
    Step("Delete it with a wrong one", "DELETE /account", dealer.WRONG_PASSWORD, WRONG, token=OTHER_TOKEN),
    Step("Delete it", "DELETE /account", dealer.USER_DELETED, password_of(NEW), token=OTHER_TOKEN),
    Step("Register the name again", "POST /register", dealer.USER_CREATED, IVAN),
    ENDED,
    Step("Log in to the new account", "POST /auth", dealer.LOGGED_IN, IVAN, keep=KEEP_OTHER),
    Step("Delete it", "DELETE /account", dealer.USER_DELETED, password_of(IVAN), token=OTHER_TOKEN),
    Step("Delete the first account", "DELETE /account", dealer.USER_DELETED, password_of(ME)),
]

FOLDERS = {
    "Accounts": (
        ACCOUNTS,
        "Register and log in. The token is kept in the variable `token`, which all that follows sends.",
    ),
    "Cars": (CARS, "A car is known by its mark, which is part of the path, percent-encoded."),
    "Values": (VALUES, "What a value may be, and what it may not."),
    "Errors": (ERRORS, "Every failure is one sentence in JSON."),
    "Refusals": (None, "What each route refuses by itself, made from its description."),
    "Listing": (LISTING, "The stock: filtered, ordered, in pages, as JSON or CSV."),
    "Whole inventories": (UPLOADS, "Many cars at once, all or none."),
    "Changing one car safely": (SAFELY, "`ETag` and `If-Match` make sure that nobody came between."),
    "Who did what": (HISTORY, "Every change is recorded with who did it."),
    "Describing itself": (ITSELF, "What the API tells about itself; no token is needed."),
    "Accounts that end": (
        ENDING,
        "Each of these ends every token of the account; at the end the accounts are deleted.",
    ),
}
