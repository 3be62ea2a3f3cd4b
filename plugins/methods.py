"""Methods: ``POST`` with ``X-HTTP-Method-Override`` is the method that the header names.

For clients, and proxies between, that can only ``GET`` and ``POST``::

    app.install(MethodsPlugin())
"""

from bottle import HTTPError, request

from plugins import Plugin

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


def route_of(app, environ):
    """Give the route that a request will take, before it is answered; raises the `HTTPError` where there is none."""
    route, _ = app.match({**environ, "REQUEST_METHOD": method_of(environ)})
    return route


def method_of(environ):
    """Give the method that a request means; raises a 400 for another one in the header, or where it is no ``POST``."""
    if HEADER not in environ:
        return environ["REQUEST_METHOD"]
    if environ["REQUEST_METHOD"] != "POST" or environ[HEADER] not in METHODS:
        raise HTTPError(400, "X-HTTP-Method-Override: must be PUT, PATCH or DELETE, and on POST")
    return environ[HEADER]
