"""OpenAPI: the description of an application, made from the very definitions that it runs on.

A route that declares its ``answers`` is described: its summary is its docstring, its body the record that it asks for
(see `bodies` and `uploads`), its security what `identity` enforces. What every route can answer follows from that.
Parameters that a handler reads by itself are declared beside it, as ``parameters``::

    app.install(OpenAPIPlugin({"title": "Garage", "version": "1.0"}, {"car": "Cars"}, path=Car))

    @app.get("/car/<mark>", answers=[Data(200, Car, EXAMPLE), UNKNOWN])
    def show(mark): ...

    @app.get("/openapi.json", public=True)
    def describe(openapi):
        return openapi.document

The page for it, in the folder `DOCS`, is Swagger UI, whose files, in `ASSETS`, come from the package ``swagger-ui-py``.
"""

import re
from functools import cached_property
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path

import msgspec

from plugins import Plugin
from plugins.answers import JSON, Answer
from plugins.bodies import NOT_JSON, body_of, fields
from plugins.identity import changes
from plugins.uploads import CSV_TYPE, NEITHER, TOO_MANY, Upload

DOCS = Path(__file__).with_name("swagger")
ASSETS = Path(find_spec("swagger_ui").origin).parent / "static"
REFERENCE = "#/components/schemas/{name}"
CHANGING = ("PUT", "PATCH", "DELETE")  # what is there: the page fills in nothing that could be
BLANK = {"integer": 0, "string": "…"}
KINDS = {str: {"type": "string"}, list: {"type": "array", "items": {"type": "string"}}}
# Swagger UI sets styles by itself and carries its icons as data; all else comes from here.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class OpenAPIPlugin(Plugin):
    """Describe the application it is installed in, to the handlers that ask for ``openapi``."""

    keyword = "openapi"

    def __init__(self, info, tags, path, read_only, common=(), hidden=()):
        """Take the API's own description, the tag for each first step of a path, and what holds for every route.

        That is the record whose fields the arguments of paths are, what readers are told where they may only read, and
        `common` answers. Rules that are `hidden` are left out.
        """
        self.info = info
        self.tags = tags
        self.path = path
        self.read_only = read_only
        self.common = common
        self.hidden = hidden
        self.schemas = {}

    def setup(self, app):
        """Remember the application."""
        super().setup(app)
        self.app = app

    @cached_property
    def document(self):
        """The description (OpenAPI 3.1) of every route that declares its answers, as a dictionary."""
        paths = {}
        for route in self.app.routes:
            if "answers" in route.config and route.rule not in self.hidden:
                path = re.sub(r"<(\w+)[^>]*>", r"{\1}", route.rule)
                paths.setdefault(path, {})[route.method.lower()] = self.operation(route)
        bearer = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
        components = {"securitySchemes": {"token": bearer}, "schemas": self.schemas}
        return {"openapi": "3.1.0", "info": self.info, "paths": paths, "components": components}

    def operation(self, route):
        """Describe a route."""
        callback = route.get_undecorated_callback()
        blank = route.method in CHANGING
        arguments = re.findall(r"<(\w+)", route.rule)
        _, body = body_of(route)
        parameters = [*(self.argument(name, blank) for name in arguments), *route.config.get("parameters", ())]
        operation = {
            "operationId": callback.__name__,
            "summary": callback.__doc__.rstrip("."),
            "tags": [self.tags[route.rule.split("/")[1]]],
            "parameters": parameters,
            "responses": self.responses(route, body, parameters),
        }
        if body:
            operation["requestBody"] = {"required": True, "content": self.content(body, arguments, blank)}
        if not route.config.get("public"):
            operation["security"] = [{"token": []}]
        return operation

    def argument(self, name, blank):
        """Describe an argument of a path."""
        found = {"name": name, "in": "path", "required": True, "schema": self.schema(fields(self.path)[name].type)}
        return found if blank else {**found, "example": self.path.example[name]}

    def content(self, body, arguments, blank):
        """Describe a body, whose record may leave out what the path says."""
        if issubclass(body, Upload):
            rows = [] if blank else [body.record.example]
            table = "\r\n".join(",".join(map(str, row)) for row in (fields(body.record), *map(dict.values, rows)))
            as_csv = {"schema": {"type": "string"}, "example": table}
            return {JSON: {"schema": self.schema(list[body.record]), "example": rows}, CSV_TYPE: as_csv}
        schema = self.schema(body)
        full = self.schemas[body.__name__]
        if arguments:
            required = [name for name in full.get("required", ()) if name not in arguments]
            schema = {**full, "required": required, "minProperties": max(1, len(required))}
        example = {name: BLANK[each["type"]] for name, each in full["properties"].items()} if blank else body.example
        return {JSON: {"schema": schema, "example": {name: example[name] for name in example if name not in arguments}}}

    def responses(self, route, body, parameters):
        """Describe every answer of a route, one entry a status, with an example of each."""
        answers = [*route.config["answers"], *self.common]
        is_upload = hasattr(body, "record")
        if changes(route):
            answers.append(self.read_only)
        if not route.config.get("public"):
            answers.append(Answer(401, {"Error": "Token is missing"}))
        if refusal := self.refusal(body, parameters):
            lines = [f"item {number}: {refusal}" for number in (1, 2)]
            answers.append(Answer(400, {"Error": lines[0], "Errors": lines} if is_upload else {"Error": refusal}))
        if body:
            answers.append(Answer(413, {"Error": f"Body is larger than {body.limit} bytes"}))
            answers.append(Answer(415, {"Error": NEITHER if is_upload else NOT_JSON}))
        if is_upload:
            answers.append(Answer(413, {"Error": TOO_MANY.format(body)}))
        found = {}
        for answer in answers:
            phrase = HTTPStatus(answer.status).phrase
            self.describe(answer, found.setdefault(str(answer.status), {"description": phrase}))
        return dict(sorted(found.items()))

    def refusal(self, body, parameters):
        """Give what a route itself says of an empty body, or else an empty argument, or else a parameter sent twice."""
        arguments = [each["name"] for each in parameters if each["in"] == "path"]
        try:
            if body:
                getattr(body, "record", body).build({}, {name: self.path.example[name] for name in arguments})
            for name in arguments:
                self.path.tidy(name, "")
        except ValueError as error:
            return str(error)
        return next((f"{each['name']}: is repeated" for each in parameters if each["in"] == "query"), None)

    def describe(self, answer, response):
        """Add an answer to the description of its status."""
        if isinstance(answer, Answer):
            key = next(iter(answer.body))
            schema = {"type": "object", "properties": {}, "required": [key], "additionalProperties": False}
            content = response.setdefault("content", {}).setdefault(JSON, {"schema": schema, "examples": {}})
            content["schema"]["properties"].update({name: KINDS[type(value)] for name, value in answer.body.items()})
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
