"""Make the Postman collection: ``python .ci/postman.py`` writes ``postman_collection.json``, and a test compares it.

What is sent and what comes back stands in `postman_steps`. From the application's OpenAPI description come which routes
need a token and what they are for; a step for a status that is not described there is an error; and what every route
refuses by itself becomes a folder of its own. A run leaves nothing behind, so it can be repeated on a database in use.
"""

import json
import re
import sys
import tempfile
from http import HTTPStatus
from pathlib import Path
from typing import get_args
from urllib.parse import quote

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from postman_steps import (  # noqa: E402
    AFTER_EACH,
    BEFORE_EACH,
    FOLDERS,
    JSON_BODY,
    PLAIN,
    REFUSED,
    Step,
    create,
    delete,
    equal,
    js,
    long,
)

import dealer  # noqa: E402
from plugins.answers import Answer, Data  # noqa: E402
from plugins.bodies import fields  # noqa: E402
from plugins.openapi import OpenAPIPlugin  # noqa: E402

URL = "http://127.0.0.1:8080"
FILE = HERE.parent / "postman_collection.json"
SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
ABOUT = """Every request of the API with its failures, each with tests; made by `.ci/postman.py`.

Set `base_url` to where the server listens, then run the whole collection, or send "Register a user" and "Log in" and
after them whatever you like. It can be run again and again: what it creates it deletes."""


def refusals(document):
    """Give what each route refuses by itself (no token, nothing in it, another type), as its description says it."""
    yield create(REFUSED)
    here = quote(REFUSED, "{}")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            title = f"{method.upper()} {path}"
            request = title.replace("{mark}", here)
            missing, wrong, other = (sentences(operation, status) for status in ("401", "400", "415"))
            if "security" in operation:
                yield Step(f"{title} without a token", request, (401, missing[0]), token=None)
            if other:
                empty = [{}, {}] if path == "/stock" else {}
                yield Step(f"{title} with nothing in it", request, (400, wrong[-1]), empty)
                yield Step(f"{title} of another type", request, (415, other[0]), "x", headers=PLAIN)
            elif here in request:
                too_long = request.replace(here, "{{long}}")
                yield Step(f"{title}, too long", too_long, (400, wrong[-1]), before=long("x", 256))
            elif wrong:
                twice = "{0}=1&{0}=1".format(wrong[-1].partition(":")[0])
                yield Step(f"{title}, a parameter twice", f"{request}?{twice}", (400, wrong[-1]))
    yield delete(REFUSED)


def sentences(operation, status):
    """Give the sentences that are described for a status of an operation."""
    content = operation["responses"].get(status, {}).get("content", {})
    return list(content.get("application/json", {}).get("examples", ()))


def describe():
    """Give the OpenAPI description of the application."""
    with tempfile.TemporaryDirectory() as folder:
        app = dealer.create_app(dealer.Settings(database_url=f"sqlite:///{folder}/data.db"))
        try:
            return next(plugin for plugin in app.plugins if isinstance(plugin, OpenAPIPlugin)).document
        finally:
            app.close()


def operation_of(step, document):
    """Give the operation that answers a step, or None where it is not described."""
    method, path = step.request.partition("?")[0].split(" ", 1)
    method = step.headers.get("X-HTTP-Method-Override", method).lower().replace("head", "get")
    for known, methods in document["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", ".+", known), path):
            return methods.get(method)
    return None


def checks_of(step):
    """Give what a step makes sure of, in JavaScript by name: the status, the body, and its own checks."""
    status = status_of(step)
    yield f"Status is {status} {HTTPStatus(status).phrase}", f"pm.response.to.have.status({status});"
    if isinstance(step.answer, Answer):
        yield f"Body is {json.dumps(step.answer.body)}", equal(JSON_BODY, step.answer.body)
    elif isinstance(step.answer, tuple) and not isinstance(step.answer, Data):
        beginning = f"{JSON_BODY}.Error.slice(0, {len(step.answer[1])})"
        yield f"Error begins with {step.answer[1]}", equal(beginning, step.answer[1])
    elif step.gives is not None:
        yield "Body is what was stored", equal(JSON_BODY, step.gives)
    elif isinstance(step.answer, Data):
        kind = step.answer.schema
        names = ", ".join(map(js, fields(*get_args(kind) or [kind])))
        each = f"[].concat({JSON_BODY}).forEach((each) => pm.expect(each).to.have.all.keys({names}));"
        yield "Body has the fields that are described", each
    yield from step.checks.items()


def status_of(step):
    """Give the status that a step expects."""
    return step.answer if isinstance(step.answer, int) else step.answer[0]


def script(listen, text):
    """Give a script of an item or of the collection."""
    return {"listen": listen, "script": {"type": "text/javascript", "exec": text.split("\n")}}


def item(step, document):
    """Give a step as an item of the collection; raises `ValueError` where the description knows no such answer."""
    status, operation = status_of(step), operation_of(step, document)
    if operation and str(status) not in operation["responses"] and status != 431:
        raise ValueError(f"{step.name}: {step.request} is not described to answer {status}")
    tests = [f"pm.test({js(name)}, () => {{ {code.strip()} }});" for name, code in checks_of(step)]
    tests += [f"pm.collectionVariables.set({js(name)}, {code});" for name, code in step.keep.items()]
    method, _, path = step.request.partition(" ")
    headers = {**({} if step.body is None else {"Content-Type": "application/json"}), **step.headers}
    header = [{"key": key, "value": value} for key, value in headers.items()]
    request = {"method": method, "url": "{{base_url}}" + path, "header": header}
    if step.body is not None:
        raw = step.body if isinstance(step.body, str) else json.dumps(step.body, ensure_ascii=False, indent=2)
        request["body"] = {"mode": "raw", "raw": raw}
    if step.token is None or (operation and "security" not in operation):
        request["auth"] = {"type": "noauth"}
    elif step.token != "{{token}}":
        request["auth"] = bearer(step.token)
    if operation:
        request["description"] = operation["summary"]
    name = step.name.replace(" {{run}}", "") + (f": {status}" if status >= 300 else "")
    events = [script("prerequest", step.before)] if step.before else []
    return {"name": name, "event": [*events, script("test", "\n".join(tests))], "request": request}


def bearer(token):
    """Give the authorization by a token."""
    return {"type": "bearer", "bearer": [{"key": "token", "value": token, "type": "string"}]}


def collection(document):
    """Give the whole collection, as the text of its file."""
    folders = {name: steps or list(refusals(document)) for name, (steps, _) in FOLDERS.items()}
    kept = sorted({"run", *(name for steps in folders.values() for step in steps for name in step.keep)})
    made = {
        "info": {"name": "Car dealer API", "description": ABOUT, "schema": SCHEMA},
        "auth": bearer("{{token}}"),
        "variable": [{"key": "base_url", "value": URL}, *({"key": name, "value": ""} for name in kept)],
        "event": [script("prerequest", BEFORE_EACH), script("test", AFTER_EACH)],
        "item": [
            {"name": name, "description": FOLDERS[name][1], "item": [item(step, document) for step in steps]}
            for name, steps in folders.items()
        ],
    }
    return json.dumps(made, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(collection(describe()), encoding="utf-8")
