"""Routing: by the method that a ``POST`` names in ``X-HTTP-Method-Override``, and told before a request is answered.

The header is for clients, and proxies between, that can only ``GET`` and ``POST``. A route may declare its ``lane``, or
a function that names it by the query string, and that it is ``public``, which a server asks for::

    app.install(MethodsPlugin())

    @app.get("/stock", lane=lambda query: "pages" if "limit=" in query else "listings")
    def list_stock(): ...

    serve(app, lane_of=partial(lane_of, app, "others"), admits=partial(admits, app), …)
"""

from contextlib import suppress

from bottle import HTTPError, request

from plugins import Plugin
from plugins.identity import IdentityPlugin

HEADER = "HTTP_X_HTTP_METHOD_OVERRIDE"
METHODS = ("PUT", "PATCH", "DELETE")


class MethodsPlugin(Plugin):
    """Route a request by the method that it names in a header."""

    def setup(self, app):
        """Look at every request before it is routed."""
        super().setup(app)
        app.add_hook("before_request", override)


def override():
    """Change the method of the request that is being answered."""
    request.environ["REQUEST_METHOD"] = method_of(request.environ)


def method_of(environ):
    """Give the method that a request means; raises a 400 for another one in the header, or where it is no ``POST``."""
    if HEADER not in environ:
        return environ["REQUEST_METHOD"]
    if environ["REQUEST_METHOD"] != "POST" or environ[HEADER] not in METHODS:
        raise HTTPError(400, "X-HTTP-Method-Override: must be PUT, PATCH or DELETE, and on POST")
    return environ[HEADER]


def route_of(app, environ):
    """Give the route that a request will take; raises the `HTTPError` where there is none."""
    route, _ = app.match({**environ, "REQUEST_METHOD": method_of(environ)})
    return route


def lane_of(app, others, environ):
    """Name the lane that the route of a request declares, `others` where it declares none, or there is no route."""
    try:
        lane = route_of(app, environ).config.get("lane", others)
        return lane(environ["QUERY_STRING"]) if callable(lane) else lane
    except HTTPError:
        return others


def admits(app, environ):
    """Tell, before a long body is read, whether its request gets as far as that; if not, the application says why."""
    identity = next(plugin for plugin in app.plugins if isinstance(plugin, IdentityPlugin))
    with suppress(Exception):
        return bool(route_of(app, environ).config.get("public") or identity.claims(environ))
    return False
