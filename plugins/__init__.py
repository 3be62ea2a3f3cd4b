"""Bottle plugins, each a file and a class of its own, that know nothing of cars.

Installed first wraps outermost. The car dealer installs them in this order:

- ``access``: request ids, common headers and the access log, around the whole application;
- ``answers``: what handlers return, and everything that is raised, becomes JSON;
- ``methods``: ``POST`` that stands for another method;
- ``storage``: one transaction of a ``dataset`` database per request;
- ``identity``: who calls, from a JSON Web Token; routes are protected unless declared public;
- ``bodies``: request bodies, checked against the record that a handler declares.

``server`` is no plugin: it is how waitress serves the application.
"""
