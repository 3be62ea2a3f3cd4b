"""What is said of the API: by itself in `/openapi.json`, on the page for it, in the Postman collection and README."""

import importlib.util
import json
import re
import subprocess
from dataclasses import fields
from pathlib import Path
from urllib.parse import urljoin

import pytest

import dealer
from conftest import (
    CAR,
    CREDENTIALS,
    FIELDS,
    FILTERS,
    HERE,
    TestApp,
    assert_error,
    assert_headers,
    assert_json,
    open_app,
    run,
    sqlite_store,
)
from plugins.listings import OPERATORS

# ----------------------------------------------------------------------------------------------------------------------
# Describing itself
# ----------------------------------------------------------------------------------------------------------------------

BODY = {400, 413, 415}
STATUSES = {
    "POST /register": {201, 403, 429, *BODY},
    "POST /auth": {200, 401, 429, *BODY},
    "PUT /account/password": {202, 401, 403, 429, *BODY},
    "GET /account": {200, 401},
    "POST /logout": {202, 401},
    "DELETE /account": {202, 401, 403, 429, *BODY},
    "GET /auto/{mark}": {200, 304, 400, 401, 404},
    "POST /auto/{mark}": {201, 401, 403, 412, *BODY},
    "PUT /auto/{mark}": {202, 401, 403, 404, 412, *BODY},
    "PATCH /auto/{mark}": {202, 401, 403, 404, 412, *BODY},
    "DELETE /auto/{mark}": {202, 400, 401, 403, 404, 412},
    "GET /stock": {200, 304, 400, 401},
    "POST /stock": {201, 401, 403, *BODY},
    "PUT /stock": {202, 401, 403, *BODY},
    "GET /history": {200, 400, 401},
    "GET /history/{mark}": {200, 400, 401, 404},
    "GET /health": {200},
}
UNDOCUMENTED = re.compile(r"GET /(openapi\.json|docs(/.*)?|pages/.*)?")


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


def test_openapi_has_no_registration_while_it_is_closed(make_app):
    document = TestApp(make_app(registration="closed")).get("/openapi.json").json

    assert "/register" not in document["paths"]
    assert "/auth" in document["paths"]


@pytest.mark.parametrize("name", [name for name, statuses in STATUSES.items() if 415 in statuses])
def test_openapi_shows_what_a_route_itself_refuses(bmw, operations, name):
    method, path = name.replace("{mark}", "BMW").split()
    body = [{}, {}] if path == "/stock" else {}

    answers = [
        bmw.request(path, method=method, body=json.dumps(body).encode(), headers={"Content-Type": kind}, status="*")
        for kind in ("application/json", "text/plain")
    ]

    for status, answer in zip((400, 415), answers, strict=True):
        examples = operations[name]["responses"][str(status)]["content"]["application/json"]["examples"]
        assert_json(answer, status, examples[answer.json["Error"]]["value"])


@pytest.mark.parametrize("name", ["GET /auto/{mark}", "DELETE /auto/{mark}", "GET /history/{mark}"])
def test_openapi_shows_what_a_route_refuses_of_a_path(client, operations, name):
    method, path = name.replace("{mark}", "x" * 256).split()

    answer = client.request(path, method=method, status=400)

    assert answer.json["Error"] in operations[name]["responses"]["400"]["content"]["application/json"]["examples"]


@pytest.mark.parametrize("path", ["/stock", "/history"])
def test_openapi_shows_what_a_route_refuses_of_a_query(bmw, operations, path):
    examples = operations["GET " + path]["responses"]["400"]["content"]["application/json"]["examples"]
    name = next(sentence.removesuffix(": is repeated") for sentence in examples if sentence.endswith(": is repeated"))

    answer = bmw.get(f"{path}?{name}=1&{name}=1", status=400)

    assert answer.json["Error"] in examples


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
    "text",
    [" ", "a\n", "\0", "a\u200bb", "a\u200cb", "\u200c", "\U000110bd", "\U000e0001", "\ufeff", "😀", "a\u2028b"],
    ids=ascii,
)
def test_openapi_has_the_characters_of_a_text(bmw, document, text):
    pattern = document["components"]["schemas"]["Car"]["properties"]["stock"]["pattern"]

    answer = bmw.patch_json("/auto/BMW", {"stock": text}, status="*")

    assert (answer.status_int == 202) == bool(re.search(pattern, text))


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
    [
        ("/stock", {"search", "order_by", "format", *map("".join, FILTERS)}),
        ("/history", set()),
        ("/history/{mark}", set()),
    ],
)
def test_openapi_has_the_parameters_that_are_taken(operations, path, names):
    parameters = {
        each["name"]: each["schema"] for each in operations["GET " + path]["parameters"] if each["in"] == "query"
    }

    assert parameters.keys() - {"before"} == names | {"limit", "after"}
    assert parameters["limit"].items() >= {"minimum": 1, "maximum": 1000}.items()


# The page


def test_page_needs_no_internet(testapp):
    answer = testapp.get("/docs", status=200)

    assert (answer.content_type, answer.charset.lower()) == ("text/html", "utf-8")
    assert "//" not in answer.text
    policy = dict(part.split(None, 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
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


def buttons(page, kinds):
    """Open the operations of some kinds on the page, and give for each its element and the button that sends it."""
    for operation in page.locator(", ".join(f".opblock-{kind}" for kind in kinds)).all():
        operation.locator(".opblock-summary").click()
        yield operation, operation.get_by_role("button", name="Execute")


def outcome(operation):
    """Wait for what the page says to a click on the button: the status of an answer, or that something is missing."""
    operation.locator(".live-responses-table .response-col_status, .validation-errors li").last.wait_for()
    return operation.locator(".live-responses-table .response-col_status, .validation-errors li").last.inner_text()


@pytest.fixture
def page(browser, server):
    """The page in Chromium, logged in by its own form; at the end nothing may have gone wrong in it."""
    errors = []
    with browser.new_context() as context:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.port}/docs")
        log_in = page.locator("#operations-Accounts-log_in")
        log_in.locator(".opblock-summary").click()
        log_in.locator("textarea").fill(json.dumps(CREDENTIALS))
        log_in.get_by_role("button", name="Execute").click()
        assert outcome(log_in) == "200"
        yield page
    assert errors == []


def test_page_changes_nothing_that_nobody_typed(page, server, database, document):
    """One click on each button, without a word typed: what stands in the forms names nothing that is there."""
    example = document["paths"]["/stock"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert server.request("POST", "/stock", example).status_int == 201
    kept = database.contents()

    outcomes = []
    for operation, execute in buttons(page, ["put", "patch", "delete"]):
        execute.click()
        outcomes.append(outcome(operation))

    assert len(outcomes) == 6
    assert database.contents() == kept


def test_page_sends_what_is_typed(page, server):
    server.request("POST", "/auto/BMW", CAR)
    delete = page.locator("#operations-Cars-delete_auto")
    delete.locator(".opblock-summary").click()
    delete.get_by_placeholder("mark").fill("BMW")

    delete.get_by_role("button", name="Execute").click()

    assert outcome(delete) == "202"
    assert server.request("GET", "/auto/BMW").status_int == 404


@pytest.mark.parametrize("flags", ["", "u", "v"])
def test_patterns_mean_the_same_in_a_browser(browser, document, flags):
    """Swagger UI compiles a pattern without flags, schemas ask for ``u``, and the inputs of a page take ``v``."""
    pattern = document["components"]["schemas"]["Car"]["properties"]["mark"]["pattern"]
    texts = [
        "BMW",
        ".",
        "..",
        " ",
        "a\n",
        "a\u200bb",
        "a\u200cb",
        "a\U000110bd",
        "\U000e0041",
        "a\U0001d175b",
        "宝马 😀",
    ]

    with browser.new_context() as context:
        matches = "([pattern, flags, texts]) => texts.map((text) => new RegExp(pattern, flags).test(text))"
        found = context.new_page().evaluate(matches, [pattern, flags, texts])

    assert found == [bool(re.search(pattern, text)) for text in texts]
    assert sum(found) == 3


# ----------------------------------------------------------------------------------------------------------------------
# The page for people: its files (what it does is tested in a browser)
# ----------------------------------------------------------------------------------------------------------------------

PAGE_FILES = sorted(path.name for path in (HERE / "pages").iterdir())
PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.mark.parametrize("name", PAGE_FILES)
def test_file_of_the_page_is_sent(testapp, name):
    path = "/" if name == "index.html" else f"/pages/{name}"

    answer = testapp.get(path, status=200)

    assert answer.body == (HERE / "pages" / name).read_bytes()
    assert answer.content_type == PAGE_TYPES[Path(name).suffix]
    assert_headers(
        answer,
        Cache_Control="no-cache",
        X_Content_Type_Options="nosniff",
        Content_Security_Policy="default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    )
    assert re.fullmatch('"[0-9a-f]{64}"', answer.headers["ETag"])
    assert testapp.get(path, headers={"If-None-Match": answer.headers["ETag"]}, status=304).body == b""


@pytest.mark.parametrize("path", ["/pages/", "/pages/none.js", "/pages/..%2Fdealer.py", "/pages/index.html"])
def test_page_has_no_other_files(testapp, path):
    assert testapp.get(path, status=404).content_type == "application/json"


def test_page_is_small_and_builds_nothing_from_text():
    texts = {name: (HERE / "pages" / name).read_text() for name in PAGE_FILES}

    assert sum(text.count("\n") for name, text in texts.items() if not name.endswith(".svg")) < 1000
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", "".join(texts.values()))
    assert not re.search(r"<style|<script(?! type=\"module\" src=)|\son\w+=|style=|https?:", texts["index.html"])


# ----------------------------------------------------------------------------------------------------------------------
# The Postman collection
# ----------------------------------------------------------------------------------------------------------------------

COLLECTION = HERE / "postman_collection.json"
UNPROVOKED = {500, 503}  # what a client cannot bring about
ONCE = {403, 413, 429}  # what is dear, or slow, or needs another server: where it is shown once it is shown


@pytest.fixture(scope="module")
def postman():
    """The script that makes the collection."""
    spec = importlib.util.spec_from_file_location("postman", HERE / ".ci" / "postman.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def requests():
    """Every request of the collection, as method and path, with the status that it must get."""
    collection = json.loads(COLLECTION.read_text())
    found = []
    for folder in collection["item"]:
        for item in folder["item"]:
            code = "\n".join(item["event"][-1]["script"]["exec"])
            method = next(
                (each["value"] for each in item["request"]["header"] if each["key"] == "X-HTTP-Method-Override"),
                item["request"]["method"],
            )
            path = item["request"]["url"].removeprefix("{{base_url}}")
            found.append((method, path, int(re.search(r"have\.status\((\d+)\)", code)[1])))
    return found


def test_collection_is_what_its_script_makes(postman, document):
    assert COLLECTION.read_text() == postman.collection(document), "run: python .ci/postman.py"


def test_collection_has_every_status_of_every_route(requests, operations):
    wanted = {(name, int(status)) for name, each in operations.items() for status in each["responses"]}
    shown = {
        (name, status)
        for name in operations
        for method, path, status in requests
        if method == name.split()[0] and re.fullmatch(re.sub(r"\{\w+\}", ".+", name.split()[1]), path.split("?")[0])
    }

    missing = {(name, status) for name, status in wanted - shown if status not in UNPROVOKED | ONCE}
    assert missing == set()
    assert {status for _, status in shown} >= ONCE


def test_collection_has_the_pages(requests):
    assert {("GET", path, 200) for path in ("/", "/docs", "/openapi.json")} <= set(requests)


def test_collection_has_every_operator_and_parameter(requests, operations):
    used = {part.partition("=")[0] for _, path, _ in requests for part in path.partition("?")[2].split("&")}

    assert {operator for operator in OPERATORS if operator} <= {name.partition("__")[2] for name in used}
    taken = {each["name"] for each in operations["GET /stock"]["parameters"] if each["in"] == "query"}
    assert {name for name in taken if "__" not in name} - {"after", *FIELDS} <= used


# ----------------------------------------------------------------------------------------------------------------------
# README
# ----------------------------------------------------------------------------------------------------------------------

ANYWHERE = {400, 401, 413, 415, 500, 503}  # said once, below the table


def section(heading):
    """Give what stands under a heading of README."""
    return (HERE / "README.md").read_text().partition(f"\n{heading}\n")[2].partition("\n## ")[0]


def rows(heading):
    """Give the rows of the tables under a heading of README, each with the words that stand there as code."""
    return [(row, re.findall(r"`([^`]+)`", row)) for row in section(heading).splitlines() if row.startswith("| `")]


def test_readme_has_every_route_with_its_statuses(lasting_app, operations):
    shown = {" ".join(words[0].split()[:2]): set(re.findall(r"`(\d{3})`", row)) for row, words in rows("## API")}

    routes = {f"{route.method} " + re.sub(r"<(\w+).*>", r"<\1>", route.rule) for route in lasting_app.routes}
    assert {route for route in routes if not route.startswith(("GET /docs/", "GET /pages/"))} <= shown.keys()
    for name, each in operations.items():
        statuses = set(each["responses"]) - set(map(str, ANYWHERE))
        assert statuses <= shown[name.replace("{mark}", "<mark>")], name


def test_readme_has_every_status_that_any_route_can_give():
    below = section("## API").partition("Besides")[2]

    assert set(map(str, ANYWHERE | {404, 405})) <= set(re.findall(r"`(\d{3})`", below))


def test_readme_has_every_operator_and_parameter(operations):
    words = {word for _, found in rows("## API") for word in found}

    assert {operator for operator in OPERATORS if operator} <= words
    taken = {each["name"] for each in operations["GET /stock"]["parameters"] if each["in"] == "query"}
    assert {name for name in taken if "__" not in name} - {"after", *FIELDS} <= {
        word.partition("=")[0] for word in words
    }


def test_readme_has_every_setting_with_its_default():
    shown = {words[0]: row.split(" | ")[1] for row, words in rows("## Running it for a dealer")}

    for field in fields(dealer.Settings):
        assert shown[field.name.upper()] == field.metadata["shown"]


@pytest.mark.parametrize("work", ["one car read", "stock of 1,000 listed", "one car updated"])
def test_readme_quotes_the_benchmark_that_is_shown(work):
    results = (HERE / "benchmarks" / "RESULTS.md").read_text()
    ratio = float(re.search(rf"^\| {work}, requests/s .*?\*\*([\d.]+)\*\*", results, re.MULTILINE)[1])

    assert f" {ratio:.1f} times" in " ".join(section("## How fast, how sturdy").split())


def test_readme_asks_for_metrics_that_there_are(make_app):
    told = TestApp(make_app(metrics="on")).get("/metrics", status=200).text
    asked = set(re.findall(r"\b(?:http|requests|database|failed)_\w+", section("## Running it for a dealer")))

    assert len(asked) == 6
    assert {
        name for name in asked if f"# TYPE {name.removesuffix('_total').removesuffix('_bucket')}" not in told
    } == set()


def test_backup_is_restored_as_readme_says(tmp_path, account):
    store, token = sqlite_store(tmp_path), {"Authorization": f"Bearer {account.token}"}
    with open_app(store) as app:
        store.insert("users", account.row)
        TestApp(app).post_json("/auto/BMW", CAR, headers=token, status=201)
        run("backup", str(tmp_path / "backup.db"), DATABASE_URL=store.url)
        TestApp(app).delete("/auto/BMW", headers=token, status=202)
        TestApp(app).post_json("/auto/Audi", CAR, headers=token, status=201)
        left = (tmp_path / "dealer.db-wal").read_bytes()
    (tmp_path / "dealer.db-wal").write_bytes(left)  # as a server leaves it that was killed

    (restore,) = re.findall(r"```sh\n(.*backup\.db.*)\n```", section("## Running it for a dealer"))
    subprocess.run(["sh", "-c", restore.replace("/var/lib/dealer", str(tmp_path))], cwd=tmp_path, check=True)

    with open_app(store) as app:
        assert_json(TestApp(app).get("/stock", headers=token), 200, [{"mark": "BMW", **CAR}])
