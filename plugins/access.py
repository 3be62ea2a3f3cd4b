"""Access: a request id, common headers and one log line for every request, whoever answers it.

Plugins do not run for a 404, nor hooks for an unhandled fault, so this one wraps the WSGI callable of the application::

    app.install(AccessPlugin(trusted_proxy="10.0.0.1"))

The line: ``address identity method path status milliseconds request-id``. An answer that is streamed is logged when its
last byte was handed over. Of a trusted proxy the last address in ``X-Forwarded-For`` is believed, and its
``X-Forwarded-Proto``: browsers that came by HTTPS are told to keep to it (RFC 6797). What clients send is logged in
printable ASCII, so that no line can be forged.
"""

import logging
import os
import re
import secrets
import time
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import quote, unquote

from plugins import Parts, Wrapper

log = logging.getLogger("dealer.access")

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
TOKEN = re.compile(r"(?<![\w-])(?=[\w-]*eyJ)[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)  # `{"` is eyJ in Base64, so a JWT has it
WITH_PORT = re.compile(r"(?:\[([^\]]+)\]|([0-9.]+))(?::[0-9]+)?")  # 192.0.2.1:80, [2001:db8::1]:80
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class AccessPlugin(Wrapper):
    """Wrap the application: a request id in and out, common headers, and the access log."""

    def __init__(self, trusted_proxy=None, observe=None):
        """Take the address of the proxy that is believed, ``*`` for any, and ``observe(environ, status, seconds)``."""
        self.trusted_proxy = trusted_proxy
        self.observe = observe

    def wsgi(self, environ, start_response):
        """Answer a request through the application, then log it."""
        began = time.perf_counter()
        request_id = environ.get("HTTP_X_REQUEST_ID", "")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(8)
        remote = environ.get("REMOTE_ADDR", "").removeprefix("::ffff:")  # what IPv4 is on a socket for both
        if self.trusted_proxy in ("*", remote):
            believe_proxy(environ)
        status = "500"

        def start(line, headers, exc_info=None):
            nonlocal status
            status = line[:3]
            headers += [("X-Request-ID", request_id), ("X-Content-Type-Options", "nosniff")]
            if environ["wsgi.url_scheme"] == "https":
                headers.append(("Strict-Transport-Security", "max-age=86400"))  # a day from the last answer
            return start_response(line, headers, exc_info)

        def finish():
            seconds = time.perf_counter() - began
            if self.observe:
                self.observe(environ, status, seconds)
            if log.isEnabledFor(logging.INFO):
                who = environ.get("REMOTE_ADDR", "-"), quote(environ.get("identity", "-"), safe="@")
                what = environ["REQUEST_METHOD"], path_of(environ), status
                log.info("%s %s %s %s %s %.1fms %s", *who, *what, seconds * 1000, request_id)

        body = self.wrapped(environ, start)
        if isinstance(body, list):
            finish()
            return body
        parts = Parts(body)
        parts.callback(finish)
        if hasattr(body, "close"):
            parts.callback(body.close)
        return parts


def believe_proxy(environ):
    """Put the client that a proxy names in the place of the proxy; what is no address or scheme is left alone."""
    client = environ.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip()
    if with_port := WITH_PORT.fullmatch(client):
        client = with_port[1] or with_port[2]
    with suppress(ValueError):
        if "%" not in client:  # an IPv6 scope may be any text
            environ["REMOTE_ADDR"] = str(ip_address(client))
    scheme = environ.get("HTTP_X_FORWARDED_PROTO", "").lower()
    if scheme in ("http", "https"):
        environ["wsgi.url_scheme"] = scheme


def path_of(environ):
    """Give the path as it was sent, without its query and any token, in printable ASCII."""
    path = environ.get("REQUEST_URI") or quote(environ.get("bottle.raw_path", ""), encoding="latin-1")
    path = path.partition("?")[0]
    if "://" in path:  # the absolute form of a target (RFC 9112 3.2.2), which may hold a password
        path = "/" + path.partition("://")[2].partition("/")[2]
    decoded = unquote(path, "latin-1")
    if TOKEN.search(decoded):
        path = "<token>".join(quote(part, safe="/", encoding="latin-1") for part in TOKEN.split(decoded))
    return path if path.isascii() and path.isprintable() else quote(path, safe="/%", encoding="latin-1")


class LineFormatter(logging.Formatter):
    """Lines with their time in UTC (RFC 3339); a traceback is indented, so that nothing in it can look like a line."""

    converter = time.gmtime

    def __init__(self):
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")

    def format(self, record):
        """Give the text of a record without control characters."""
        lines = super().format(record).split("\n")
        return "\n    ".join(CONTROL.sub("?", line) for line in lines)


class LineHandler(logging.Handler):
    """Writes each line to standard error at once and in one piece, so that threads need no lock to take turns."""

    def createLock(self):
        """Do without a lock: a thread that waits for one holds up its request."""
        self.lock = None

    def emit(self, record):
        """Write a line; that nobody reads it is no fault of the request."""
        with suppress(OSError):
            os.write(2, (self.format(record) + "\n").encode())


def start_log(level):
    """Log to standard error."""
    handler = LineHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level, handlers=[handler])
