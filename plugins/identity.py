"""Identity: who calls, from a JSON Web Token (RFC 7519) sent as a bearer token (RFC 6750).

Every route is protected unless it is declared public. A handler that names ``identity`` gets the token's subject, one
that names ``tokens`` the plugin itself, to make tokens::

    def confirm(claims, changes, refuse):
        if claims["sub"] not in users:
            refuse(None)

    app.install(IdentityPlugin(secret, 3600, confirm))

    @app.post("/auth", public=True)
    def log_in(tokens):
        return tokens.make("alice")

    @app.delete("/me", readers=True)
    def leave(identity):
        users.remove(identity)

`confirm` is given the claims of every valid token, so that an account that ended ends its tokens, and whether the route
changes something: what is not declared for ``readers`` too. It calls ``refuse(account)`` where there is none (None), or
one that may only read, at once or when a transaction begins. A ``session`` among the claims, which `make` puts there,
tells the accounts apart that a subject had one after the other.
"""

import logging
import time
from functools import lru_cache, partial, wraps

import jwt
from bottle import HTTPError, PluginError, request, response

from plugins import Plugin
from plugins.bodies import MAX_INTEGER
from plugins.storage import SAFE_METHODS

log = logging.getLogger("dealer")

SCHEMES = ("bearer", "jwt")  # the second is what clients of Flask-JWT send
TEXTS, TIMES = ("sub", "session"), ("iat", "exp")


class MayOnlyRead(Exception):
    """The account is a reader's, and the route changes something."""


def changes(route):
    """Tell whether a route is closed to readers: what does not only read is, unless declared for ``readers`` too."""
    return route.method not in SAFE_METHODS and not (route.config.get("public") or route.config.get("readers"))


class IdentityPlugin(Plugin):
    """Check the token of every request to a protected route, and inject the identity where it is asked for."""

    keyword = "tokens"

    def __init__(self, secret, ttl, confirm):
        """Take the HMAC `secret`, the seconds `ttl` that a token lives and ``confirm(claims, changes, refuse)``."""
        self.secret = secret
        self.ttl = ttl
        self.confirm = confirm
        # That a signature is right never changes, whatever else does: expiry and account are looked at each time.
        self.verified = lru_cache(maxsize=1024)(self.verify)

    def apply(self, callback, route):
        """Wrap a callback so that it runs for a confirmed identity only; a public one runs for anybody."""
        callback, inject = super().apply(callback, route), "identity" in route.get_callback_args()
        if route.config.get("public"):
            if inject:
                raise PluginError(f"{route!r} is public and cannot ask for the identity.")
            return callback
        closed, reads = changes(route), route.method in SAFE_METHODS

        @wraps(callback)
        def wrapper(*args, **kwargs):
            claims = self.identify(request.environ)
            self.confirm(claims, closed, partial(self.refuse, request.environ))
            if inject:
                kwargs["identity"] = claims["sub"]
            if reads:
                response.set_header("Cache-Control", "private, no-cache")
            return callback(*args, **kwargs)

        return wrapper

    def make(self, subject, session=""):
        """Make a signed token for a session of `subject`, both texts; it lives ``ttl`` seconds."""
        now = int(time.time())
        claims = {"sub": subject, "iat": now, "exp": now + self.ttl, "session": session}
        return jwt.encode(claims, self.secret, "HS256")

    def identify(self, environ):
        """Give the claims of the request's token, or raise the `HTTPError` 401 that RFC 6750, section 3, asks for."""
        try:
            claims = self.claims(environ)
        except (jwt.InvalidTokenError, ValueError, OverflowError) as error:
            raise self.invalid(environ, type(error).__name__) from None
        environ["identity"] = claims["sub"]
        return claims

    def refuse(self, environ, account):
        """Raise the 401 for a token whose account or session has ended, `MayOnlyRead` for one that is still there."""
        raise MayOnlyRead if account else self.invalid(environ, "account or session has ended")

    def claims(self, environ):
        """Give the claims of the request's token, which is ours and has not expired: no database is asked.

        Raises a 401 where there is none, else `jwt.InvalidTokenError`, `ValueError` or `OverflowError`.
        """
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() not in SCHEMES:
            raise HTTPError(401, "Token is missing", WWW_Authenticate="Bearer")
        claims = self.verified(token.strip(" "))
        if claims["exp"] <= time.time():
            raise jwt.ExpiredSignatureError
        return claims

    def verify(self, token):
        """Give the claims of a token of ours; raises `jwt.InvalidTokenError` or `ValueError`. The algorithm is ours."""
        claims = jwt.decode(token, self.secret, algorithms=["HS256"], options={"require": (*TEXTS, *TIMES)})
        texts, times = ([claims[name] for name in names] for names in (TEXTS, TIMES))
        kinds = {*map(type, texts)}, {*map(type, times)}
        if kinds != ({str}, {int}) or "\0" in "".join(texts) or max(times) > MAX_INTEGER:
            raise ValueError("claims that no token of ours has")
        "".join(texts).encode()  # raises ValueError for lone surrogates
        return claims

    def invalid(self, environ, reason):
        """Give the 401 for a token that does not hold; the log learns the reason, the client does not."""
        log.warning("token refused from %s: %s", environ.get("REMOTE_ADDR", "-"), reason)
        return HTTPError(401, "Token is invalid or expired", WWW_Authenticate='Bearer error="invalid_token"')
