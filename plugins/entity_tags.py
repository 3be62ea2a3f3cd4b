"""Entity tags: conditional requests (RFC 9110, section 13) for handlers whose things have versions::

    @app.get("/thing/<name>")
    def show(name):
        response.set_header("ETag", entity_tag(version))
        if is_known(version):
            return NOT_MODIFIED

    @app.put("/thing/<name>")
    def update(name):
        change(name, only_if=wanted_versions())

A version is any text without quotes that a thing never has again once it has changed.
"""

import re

from bottle import request

# One in a list (RFC 9110 5.6.1, 8.8.3), to its comma or its end: what surrounds it otherwise makes it no tag.
TAG = re.compile(r'(?:^|,)[ \t]*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*(?=,|$)')


def entity_tag(version):
    """Give the strong entity tag of a version."""
    return f'"{version}"'


def is_known(version):
    """Tell whether ``If-None-Match`` names a version, so that the client has it already (weak comparison)."""
    header = request.get_header("If-None-Match", "")
    return header.strip() == "*" or version in {tag for _, tag in TAG.findall(header)}


def wanted_versions():
    """Give the versions that ``If-Match`` lets change (strong comparison), or None where any will do."""
    header = request.get_header("If-Match")
    if header is None or header.strip() == "*":
        return None
    return {tag for weak, tag in TAG.findall(header) if not weak}
