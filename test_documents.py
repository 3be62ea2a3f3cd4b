"""What the API says of itself: `/openapi.json` and the page for it."""

import json
import re
from urllib.parse import urljoin

import pytest

from conftest import CAR, FILTERS, TestApp, assert_error

# ----------------------------------------------------------------------------------------------------------------------
# Describing itself
# ----------------------------------------------------------------------------------------------------------------------

BODY = {400, 413, 415}
STATUSES = {
    "POST /register": {201, 403, 429, *BODY},
    "POST /auth": {200, 401, 429, *BODY},
    "PUT /account/password": {202, 401, 403, 429, *BODY},
    "POST /logout": {202, 401},
    "DELETE /account": {202, 401, 403, 429, *BODY},
    "GET /auto/{mark}": {200, 304, 400, 401, 404},
    "POST /auto/{mark}": {201, 401, *BODY},
    "PUT /auto/{mark}": {202, 401, 404, 412, *BODY},
    "PATCH /auto/{mark}": {202, 401, 404, 412, *BODY},
    "DELETE /auto/{mark}": {202, 400, 401, 404, 412},
    "GET /stock": {200, 400, 401},
    "POST /stock": {201, 401, *BODY},
    "PUT /stock": {202, 401, *BODY},
    "GET /history": {200, 400, 401},
    "GET /history/{mark}": {200, 400, 401, 404},
    "GET /health": {200},
}
UNDOCUMENTED = re.compile(r"GET /(openapi\.json|docs(/.*)?)?")


@pytest.fixture
def document(lasting_app):
    """The description of the API."""
    return TestApp(lasting_app).get("/openapi.json", status=200).json


@pytest.fixture
def operations(document):
    """The operations that are described, by method and path."""
    paths = document["paths"].items()
    return {f"{method.upper()} {path}": each for path, methods in paths for method, each in methods.items()}


def schema_in(document, content):
    """Give the schema of JSON that an operation takes or gives: that of an item, where it is an array."""
    schema = content["application/json"]["schema"]
    schema = schema.get("items", schema)
    return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def test_openapi_describes_every_route(lasting_app, document, operations):
    routes = {f"{route.method} " + re.sub(r"<(\w+).*>", r"{\1}", route.rule) for route in lasting_app.routes}

    assert document["openapi"].startswith("3.1.")
    assert operations.keys() == {route for route in routes if not UNDOCUMENTED.fullmatch(route)}


def test_openapi_has_the_statuses_and_the_protection_of_the_contract(operations):
    declared = {name: {int(status) for status in each["responses"]} for name, each in operations.items()}

    public = {name for name, each in operations.items() if not each.get("security") and each["summary"]}
    assert declared == {name: {*statuses, 500, 503} for name, statuses in STATUSES.items()}
    assert public == {"POST /register", "POST /auth", "GET /health"}


def test_openapi_refers_only_to_what_is_there(document):
    references = set(re.findall(r'"\$ref": "(.*?)"', json.dumps(document)))

    assert "#/components/schemas/Car" in references
    assert references <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


@pytest.mark.parametrize("name", CAR)
def test_openapi_has_the_limits_of_a_car(bmw, document, name):
    schema = document["components"]["schemas"]["Car"]["properties"][name]
    number = schema["type"] == "integer"
    low, high = (schema["minimum"], schema["maximum"]) if number else (schema["minLength"], schema["maxLength"])

    values = [value if number else "x" * value for value in (low, high, low - 1, high + 1)]
    statuses = [bmw.patch_json("/auto/BMW", {name: value}, status="*").status_int for value in values]

    assert statuses == [202, 202, 400, 400]


@pytest.mark.parametrize("name", ["username", "password"])
def test_openapi_has_the_limits_of_credentials(client, document, name):
    schema = document["components"]["schemas"]["Credentials"]["properties"][name]
    values = ["y" * length for length in (schema["minLength"], schema["maxLength"], 0, schema["maxLength"] + 1)]

    bodies = [{"username": f"bob {number}", "password": "x", name: value} for number, value in enumerate(values)]
    statuses = [client.post_json("/register", body, status="*").status_int for body in bodies]

    assert statuses == [201, 201, 400, 400]


@pytest.mark.parametrize(
    "text", [" ", "a\n", "\0", "a\u200bb", "a\u200cb", "\u200c", "\U000e0001", "\ufeff", "😀", "a\u2028b"], ids=ascii
)
def test_openapi_has_the_characters_of_a_text(bmw, document, text):
    pattern = document["components"]["schemas"]["Car"]["properties"]["stock"]["pattern"]

    answer = bmw.patch_json("/auto/BMW", {"stock": text}, status="*")

    assert (answer.status_int == 202) == bool(re.search(pattern.replace("$", r"\Z"), text))


@pytest.mark.parametrize(
    ("operation", "required"),
    [
        ("POST /auto/{mark}", {*CAR}),
        ("PUT /auto/{mark}", {*CAR}),
        ("PATCH /auto/{mark}", set()),
        ("PUT /stock", {"mark", *CAR}),
    ],
)
def test_openapi_has_the_fields_of_bodies(document, operations, operation, required):
    schema = schema_in(document, operations[operation]["requestBody"]["content"])

    assert set(schema.get("required", ())) == required
    assert schema["properties"].keys() | {"mark"} == {"mark", *CAR}
    assert schema["additionalProperties"] is False


def test_openapi_says_that_a_patch_needs_a_field(document, operations):
    schema = schema_in(document, operations["PATCH /auto/{mark}"]["requestBody"]["content"])

    assert schema.get("minProperties", 0) >= 1 or "anyOf" in schema


@pytest.mark.parametrize("path", ["/auto/BMW", "/stock", "/history", "/history/BMW", "/health"])
def test_openapi_has_the_fields_of_answers(bmw, document, operations, path):
    answer = bmw.get(path, status=200).json

    schema = schema_in(document, operations["GET " + path.replace("BMW", "{mark}")]["responses"]["200"]["content"])
    given = answer[0] if isinstance(answer, list) else answer
    assert list(given) == list(schema["properties"]) == schema["required"]


@pytest.mark.parametrize(
    ("path", "names"),
    [("/stock", {"order_by", "format", *map("".join, FILTERS)}), ("/history", set()), ("/history/{mark}", set())],
)
def test_openapi_has_the_parameters_that_are_taken(operations, path, names):
    parameters = {
        each["name"]: each["schema"] for each in operations["GET " + path]["parameters"] if each["in"] == "query"
    }

    assert parameters.keys() - {"before"} == names | {"limit", "after"}
    assert parameters["limit"].items() >= {"minimum": 1, "maximum": 1000}.items()


# The page


def test_root_leads_to_the_page(testapp):
    answer = testapp.get("/").follow(status=200)

    assert answer.request.path == "/docs"


def test_page_needs_no_internet(testapp):
    answer = testapp.get("/docs", status=200)

    assert (answer.content_type, answer.charset) == ("text/html", "utf-8")
    assert "//" not in answer.text
    policy = dict(part.split(None, 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] in ("'none'", "'self'")
    assert set(" ".join(policy.values()).split()) <= {"'self'", "'none'", "'unsafe-inline'", "data:"}


def test_page_finds_all_its_parts(testapp):
    parts = re.findall(r'(?:src|href)="([^"]+)"', testapp.get("/docs").text)

    answers = [testapp.get(urljoin("/docs", part), status=200) for part in parts]

    assert {answer.content_type for answer in answers} >= {"text/javascript", "text/css"}
    assert any(re.search(r'url: "/?openapi\.json"', answer.text) for answer in answers if b"\0" not in answer.body)


@pytest.mark.parametrize(
    "path", ["dealer.py", "../dealer.py", "%2E%2E/dealer.py", "..%2Fdealer.py", "swagger-ui.css/x", "swagger-uiXcss"]
)
def test_page_gives_no_other_file(refused, path):
    assert_error(refused.get("/docs/" + path, status=404), 404, "Not found")


def test_documentation_runs_no_script_but_its_own(client):
    policy = dict(part.split(maxsplit=1) for part in client.get("/docs").headers["Content-Security-Policy"].split(";"))

    assert (policy["default-src"], policy["script-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
