"""Entity tags: conditional requests (RFC 9110, section 13) for handlers whose things have versions::

    @app.get("/thing/<name>")
    def show(name):
        send_tag(version)
        return thing

    @app.put("/thing/<name>")
    def update(name):
        table.update(…, version=wanted_version())

A version is any text without quotes that a thing never has again once it has changed.
"""

import re

from bottle import HTTPResponse, request, response

# One in a list (RFC 9110 5.6.1, 8.8.3), to its comma or its end: what surrounds it otherwise makes it no tag.
TAG = re.compile(r'(?:^|,)[ \t]*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*(?=,|$)')


def entity_tag(version):
    """Give the strong entity tag of a version."""
    return f'"{version}"'


def send_tag(version):
    """Send the tag of a version along; raises the 304 where ``If-None-Match`` names it (weak comparison)."""
    response.set_header("ETag", entity_tag(version))
    header = request.environ.get("HTTP_IF_NONE_MATCH", "")  # raw: Bottle would read it as UTF-8, which tags need not be
    if header.strip() == "*" or version in {tag for _, tag in TAG.findall(header)}:
        response.status = 304
        raise response.copy(HTTPResponse)


def wanted_version():
    """Give what a version must be for a change, as a filter of dataset.

    ``If-Match`` names those that it may be (strong comparison), ``If-None-Match`` those that it may not (weak).
    """
    may, may_not = request.environ.get("HTTP_IF_MATCH", "*"), request.environ.get("HTTP_IF_NONE_MATCH")
    wanted = {} if may.strip() == "*" else {"in": [tag for weak, tag in TAG.findall(may) if not weak]}
    if may_not is None:
        return wanted
    return {"in": []} if may_not.strip() == "*" else {**wanted, "notin": [tag for _, tag in TAG.findall(may_not)]}
