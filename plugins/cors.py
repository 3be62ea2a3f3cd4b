"""CORS: pages of chosen origins may call the application (https://fetch.spec.whatwg.org/#http-cors-protocol).

Preflights are answered here, and every other answer, a refusal too, says which origin may read it::

    app.install(CorsPlugin(["https://dealer.example"], expose=["ETag"]))
"""

from plugins import Wrapper

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
REQUEST_HEADERS = "Authorization, Content-Type, If-Match, If-None-Match, X-HTTP-Method-Override, X-Request-ID"


class CorsPlugin(Wrapper):
    """Let pages of some origins call, and read some headers of the answers."""

    def __init__(self, origins, expose):
        """Take the origins (``https://host:port``, or ``*`` for any) and the headers that their pages may read."""
        self.origins = frozenset(origins)
        self.expose = ", ".join(expose)

    def setup(self, app):
        """Wrap the application, unless there is no origin to let in."""
        if self.origins:
            super().setup(app)

    def wsgi(self, environ, start_response):
        """Answer a preflight, or add to the application's answer who may read it."""
        origin = environ.get("HTTP_ORIGIN")
        added = [("Vary", "Origin")]
        if origin in self.origins or ("*" in self.origins and origin):
            added += [("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", self.expose)]
            if environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ:
                allowed = [("Access-Control-Allow-Methods", METHODS), ("Access-Control-Allow-Headers", REQUEST_HEADERS)]
                start_response("204 No Content", [*added, *allowed, ("Access-Control-Max-Age", "600")])
                return []

        def start(line, headers, exc_info=None):
            return start_response(line, headers + added, exc_info)

        return self.wrapped(environ, start)
