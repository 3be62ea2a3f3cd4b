"""OpenAPI: the description of an application, made from the very definitions that it runs on.

A route that declares its ``answers`` is described: its summary is its docstring, its body the record that it asks for
(see `bodies` and `uploads`), its security what `identity` enforces. What every route can answer follows from that.
Parameters that a handler reads by itself are declared beside it, as ``parameters``::

    app.install(OpenAPIPlugin({"title": "Garage", "version": "1.0"}, {"car": "Cars"}, path=Car))

    @app.get("/car/<mark>", answers=[Data(200, Car, EXAMPLE), UNKNOWN])
    def show(mark): ...

    @app.get("/openapi.json", public=True)
    def describe(openapi):
        return openapi.document()

The page for it is Swagger UI, whose files come from the installed package ``swagger-ui-py``.
"""

import re
import threading
from functools import partial
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path

import msgspec
from bottle import PluginError

from plugins.answers import JSON, Answer
from plugins.bodies import fields
from plugins.uploads import CSV_TYPE, Upload

ASSETS = Path(find_spec("swagger_ui").origin).parent / "static"
REFERENCE = "#/components/schemas/{name}"
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
# Whoever logs in with the page's own form is logged in for every other request of the page.
START = """const page = SwaggerUIBundle({
  dom_id: "#page",
  url: "openapi.json",
  validatorUrl: null,
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  responseInterceptor: (response) => {
    if (response.ok && response.body && response.body.access_token) {
      page.preauthorizeApiKey("token", response.body.access_token);
    }
    return response;
  },
});
"""
# Swagger UI sets styles by itself and carries its icons as data; all else comes from here.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class OpenAPIPlugin:
    """Describe the application it is installed in, to the handlers that ask for ``openapi``."""

    name = "openapi"
    api = 2
    keyword = "openapi"

    def __init__(self, info, tags, path, common=()):
        """Take the API's own description, the tag for each first step of a path, and what holds for every route.

        That is the record whose fields the arguments of paths are, and `common` answers.
        """
        self.info = info
        self.tags = tags
        self.path = path
        self.common = common
        self.lock = threading.Lock()
        self.made = None

    def setup(self, app):
        """Remember the application; raises `PluginError` where it is described already."""
        if any(isinstance(plugin, OpenAPIPlugin) for plugin in app.plugins):
            raise PluginError("Another openapi plugin is already installed.")
        self.app = app

    def apply(self, callback, route):
        """Hand the plugin to a callback that asks for it."""
        return partial(callback, openapi=self) if self.keyword in route.get_callback_args() else callback

    def document(self):
        """Give the description (OpenAPI 3.1), as a dictionary; it is made when first asked for."""
        with self.lock:
            self.made = self.made or self.describe_all()
        return self.made

    def describe_all(self):
        """Describe every route that declares its answers."""
        self.schemas = {}
        paths = {}
        for route in self.app.routes:
            if "answers" in route.config:
                path = re.sub(r"<(\w+)[^>]*>", r"{\1}", route.rule)
                paths.setdefault(path, {})[route.method.lower()] = self.operation(route)
        bearer = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
        components = {"securitySchemes": {"token": bearer}, "schemas": self.schemas}
        return {"openapi": "3.1.0", "info": self.info, "paths": paths, "components": components}

    def operation(self, route):
        """Describe a route."""
        callback = route.get_undecorated_callback()
        arguments = re.findall(r"<(\w+)", route.rule)
        summary, _, description = callback.__doc__.partition("\n")
        operation = {
            "operationId": callback.__name__,
            "summary": summary.strip(" ."),
            "tags": [self.tags[route.rule.split("/")[1]]],
            "parameters": [self.path_parameter(name) for name in arguments] + list(route.config.get("parameters", ())),
            "responses": self.responses(route, self.body(callback)),
        }
        if description.strip():
            operation["description"] = " ".join(description.split())
        if body := self.body(callback):
            operation["requestBody"] = {"required": True, "content": self.content(body, arguments)}
        if not route.config.get("public"):
            operation["security"] = [{"token": []}]
        return operation

    def body(self, callback):
        """Give the record or the upload that a callback asks for, or None."""
        return next((kind for kind in callback.__annotations__.values() if hasattr(kind, "receive")), None)

    def path_parameter(self, name):
        """Describe an argument of a path."""
        schema = self.schema(fields(self.path)[name].type)
        return {"name": name, "in": "path", "required": True, "schema": schema, "example": self.path.example[name]}

    def content(self, body, arguments):
        """Describe a body, whose record may leave out what the path says."""
        if issubclass(body, Upload):
            example, schema = body.record.example, {"type": "array", "items": self.schema(body.record)}
            table = "\r\n".join(",".join(map(str, row)) for row in (example, example.values()))
            as_csv = {"schema": {"type": "string"}, "example": table}
            return {JSON: {"schema": schema, "example": [example]}, CSV_TYPE: as_csv}
        schema = self.schema(body)
        if arguments:
            (full,), parts = msgspec.json.schema_components([body], ref_template=REFERENCE)
            schema = parts[full["$ref"].rpartition("/")[2]]
            schema["required"] = [name for name in schema["required"] if name not in arguments]
            schema["minProperties"] = max(1, len(schema["required"]))
        example = {name: value for name, value in body.example.items() if name not in arguments}
        return {JSON: {"schema": schema, "example": example}}

    def responses(self, route, body):
        """Describe every answer of a route, one entry a status, with an example of each."""
        answers = [*route.config["answers"], *self.common]
        if not route.config.get("public"):
            answers.append(Answer(401, {"Error": "Token is missing"}))
        if body or "<" in route.rule or "parameters" in route.config:
            answers.append(Answer(400, {"Error": "max_speed: must be an integer from 0 to 9007199254740991"}))
        if body:
            answers += [Answer(413, {"Error": f"Body is larger than {body.limit} bytes"})]
            answers += [Answer(415, {"Error": "Content-Type must be application/json"})]
        found = {}
        for answer in answers:
            self.describe(answer, found.setdefault(str(answer.status), {"description": phrase(answer.status)}))
        return dict(sorted(found.items()))

    def describe(self, answer, response):
        """Add an answer to the description of its status."""
        if isinstance(answer, Answer):
            (key,) = answer.body
            properties = {key: {"type": "string"}}
            schema = {"type": "object", "properties": properties, "required": [key], "additionalProperties": False}
            content = response.setdefault("content", {}).setdefault(JSON, {"schema": schema, "examples": {}})
            content["examples"][answer.body[key]] = {"value": answer.body}
        elif answer.schema is not None:
            response["content"] = {JSON: {"schema": self.schema(answer.schema), "example": answer.example}}
            response["content"].update({kind: {"schema": {"type": "string"}} for kind in answer.also})
        if answer.headers:
            response["headers"] = {name: {"schema": {"type": "string"}} for name in answer.headers}

    def schema(self, kind):
        """Give the JSON Schema of a type, a reference to it where it is a record."""
        (schema,), parts = msgspec.json.schema_components([kind], ref_template=REFERENCE)
        self.schemas.update(parts)
        return schema


def query_parameter(name, kind, description):
    """Describe a parameter of a query string, with the type of its value."""
    return {"name": name, "in": "query", "description": description, "schema": msgspec.json.schema(kind)}


def header_parameter(name, description):
    """Describe a header of a request."""
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


def phrase(status):
    """Give the words of a status."""
    return HTTPStatus(status).phrase
