"""Answers: what handlers return becomes JSON, and so does everything that is raised.

A handler returns a ``dict``, a ``list``, what `msgspec` makes JSON of, or an `Answer`: a status with its body, under a
name that documentation and tests can use too. A refusal is raised, as an `HTTPError` or as an exception that was given
an answer.
Errors that Bottle raises itself (404, 405, 500) take the same way out, in one place, and so do those that the server
reports in ``environ["server.error"]``::

    CREATED = Answer(201, {"Message": "Created"})
    UNKNOWN = Answer(404, {"Error": "Not known"})

    app.install(AnswersPlugin({KeyError: UNKNOWN}))

    @app.post("/thing/<name>")
    def create(name):
        things[name]
        return CREATED
"""

import logging
from functools import wraps
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec
from bottle import HTTPError, HTTPResponse, request, response

from plugins import Plugin

log = logging.getLogger("dealer")

JSON = "application/json"
encode = msgspec.json.Encoder().encode


class Answer(NamedTuple):
    """A status and the JSON body that goes with it; `headers` names those that may come along."""

    status: int
    body: dict
    headers: tuple = ()

    def error(self, **headers):
        """Give the exception that makes this answer; headers are written with underscores (``Retry_After="1"``)."""
        return HTTPError(self.status, self.body["Error"], **headers)


class Data(NamedTuple):
    """What an answer with data looks like, for documentation: the type of its JSON, and other types it may come in."""

    status: int
    schema: type | None
    example: object = None
    headers: tuple = ()
    also: tuple = ()


class AnswersPlugin(Plugin):
    """Make JSON of every answer, of success and of failure."""

    def __init__(self, refusals=()):
        """Take a mapping from exceptions to the `Answer` each makes; their ``retry_after``, in seconds, goes along."""
        self.refusals = dict(refusals)

    def setup(self, app):
        """Take over the error page of `app`."""
        super().setup(app)
        app.uninstall("json")  # Bottle's own, which knows nothing but dictionaries
        app.default_error_handler = self.error_page
        app.add_hook("before_request", refuse_unreadable)

    def apply(self, callback, route):
        """Wrap a callback so that its result is sent as JSON and its faults are logged."""

        @wraps(callback)
        def wrapper(*args, **kwargs):
            try:
                result = callback(*args, **kwargs)
            except HTTPResponse:
                raise
            except Exception as fault:
                if type(fault) in self.refusals:
                    retry_after = getattr(fault, "retry_after", None)
                    headers = {"Retry_After": str(retry_after)} if retry_after else {}
                    raise self.refusals[type(fault)].error(**headers) from None
                log.exception("%s %s failed", route.method, route.rule)
                raise HTTPError(500, exception=fault) from None
            if isinstance(result, Answer):
                response.status, result = result.status, result.body
            elif not isinstance(result, (dict, list, msgspec.Struct, msgspec.Raw)):
                return result
            body = encode(result)
            response.content_type = JSON
            return body

        return wrapper

    def error_page(self, error):
        """Give the body of an `HTTPError`: ``{"Error": "<one sentence>"}``, and ``Errors`` where it has several."""
        response.content_type = JSON
        if error.status_code == 405:
            response.set_header("Allow", with_head(error.get_header("Allow")))
        told = sentence(error)
        errors = told if isinstance(told, list) else [told]
        return encode({"Error": errors[0], **({"Errors": errors} if len(errors) > 1 else {})})


def refuse_unreadable():
    """Refuse what the server could not read, and a path that is not UTF-8 (Bottle would drop the bytes unseen)."""
    environ = request.environ
    if "server.error" in environ:
        status, reason = environ["server.error"]
        raise HTTPError(status, reason, **({"Retry_After": "5"} if status == 503 else {}))
    path = environ["bottle.raw_path"].encode("latin-1")
    if "asgi.scope" in environ:  # there U+FFFD has taken the place of what is not UTF-8
        path = unquote_to_bytes(environ["asgi.scope"]["raw_path"])
    if not path.isascii():
        try:
            path.decode()
        except UnicodeDecodeError:
            raise HTTPError(400, "path: must be UTF-8") from None


def sentence(error):
    """Give what may be told of an error: the sentence it was raised with, or its phrase where Bottle made it.

    Bottle's own sentences repeat the path, and are known by coming before a route was found or without a sentence.
    """
    if error.exception or (error.status_code in (404, 405) and "bottle.route" not in request.environ):
        return HTTPStatus(error.status_code).phrase.capitalize()
    return error.body


def with_head(allow):
    """Name HEAD beside GET in the value of an ``Allow`` header: Bottle answers it wherever GET is routed."""
    methods = set(allow.split(","))
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
