"""Bottle plugins, each a file and a class of its own, and what they are made of; nothing here knows of cars.

Of those that wrap callbacks the one installed first is outermost. The car dealer installs them in this order:

- ``cors``: which pages may call from other origins;
- ``access``: request ids, common headers and the access log, around the whole application;
- ``answers``: what handlers return, and everything that is raised, becomes JSON;
- ``routing``: ``POST`` that stands for another method;
- ``storage``: one transaction of a ``dataset`` database per request;
- ``identity``: who calls, from a JSON Web Token; routes are protected unless declared public;
- ``bodies`` and ``uploads``: request bodies, checked against the record that a handler declares;
- ``openapi``: the description of the application, made from all that;
- ``metrics``: how many requests there were, how long they took and what waits.

No plugins, but as free of cars: ``settings``, ``files``, ``listings``, ``entity_tags``, ``guesses``, and ``server``,
by which waitress serves the application.
"""

from contextlib import ExitStack
from functools import partial

from bottle import PluginError


class Plugin:
    """What every plugin has in common: an application takes one of a kind, and handlers may ask for it by `keyword`."""

    api = 2
    keyword = None

    def setup(self, app):
        """Raise `PluginError` where another one of this kind is installed."""
        if any(type(plugin) is type(self) for plugin in app.plugins):
            raise PluginError(f"Another {type(self).__name__} is already installed.")

    def apply(self, callback, route):
        """Hand the plugin to a callback that has the keyword among its arguments; leave any other as it is."""
        return partial(callback, **{self.keyword: self}) if self.keyword in route.get_callback_args() else callback


class Wrapper(Plugin):
    """A plugin around the whole application: its `wsgi` answers, by calling ``self.wrapped``, which did before."""

    def setup(self, app):
        """Wrap ``app.wsgi``."""
        super().setup(app)
        self.wrapped = app.wsgi
        app.__dict__["wsgi"] = self.wsgi  # Bottle keeps plugins from setting an attribute twice; this is on purpose


class Parts(ExitStack):
    """An answer in parts. `close`, which servers call when it was sent or given up, does what was stacked up."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def __iter__(self):
        return iter(self.parts)
