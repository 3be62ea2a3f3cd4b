"""Bottle plugins, each a file and a class of its own, and what they are made of; nothing here knows of cars.

Of those that wrap callbacks the one installed first is outermost. The car dealer installs them in this order:

- ``cors``: which pages may call from other origins;
- ``access``: request ids, common headers and the access log, around the whole application;
- ``answers``: what handlers return, and everything that is raised, becomes JSON;
- ``methods``: ``POST`` that stands for another method;
- ``storage``: one transaction of a ``dataset`` database per request;
- ``identity``: who calls, from a JSON Web Token; routes are protected unless declared public;
- ``bodies`` and ``uploads``: request bodies, checked against the record that a handler declares;
- ``openapi``: the description of the application, made from all that.

No plugins, but as free of cars: ``settings``, ``listings``, ``entity_tags``, ``guesses``, and ``server``, by which
waitress serves the application.
"""


def wrap(app, wsgi):
    """Put a WSGI callable around that of an application; gives the one that was there, for it to call."""
    wrapped = app.wsgi
    app.__dict__["wsgi"] = wsgi  # Bottle keeps plugins from setting an attribute twice; this one is wrapped on purpose
    return wrapped
