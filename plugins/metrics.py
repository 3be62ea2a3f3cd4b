"""Metrics: what goes on, in Prometheus' text format, for the handler that asks for ``metrics``::

    metrics = MetricsPlugin()
    app.install(AccessPlugin(observe=metrics.observe))
    app.install(metrics)

    @app.get("/metrics", public=True)
    def show(metrics):
        metrics.waiting.labels("uploads").set(3)
        return metrics.text()

Requests are counted by method, route as declared, and status, and their seconds by method and route: no label has a
value that a client chose. Names are as https://prometheus.io/docs/practices/naming asks for.
"""

from contextlib import suppress
from functools import cache, partial

from bottle import HTTPError, response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from plugins import Plugin

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class MetricsPlugin(Plugin):
    """Count the requests that `observe` is told of, and inject itself into handlers that ask for ``metrics``."""

    keyword = "metrics"

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        make = partial(partial, registry=self.registry)
        counter, gauge, histogram = make(Counter), make(Gauge), make(Histogram)
        self.requests = counter("http_requests", "Requests answered", ("method", "route", "status"))
        self.seconds = histogram("http_request_duration_seconds", "Until the last byte is given", ("method", "route"))
        self.failed_logins = counter("failed_logins", "Logins with a wrong name or password")
        self.waiting = gauge("requests_waiting", "Requests that wait for a thread", ("lane",))
        self.connections = gauge("database_connections", "Connections to the database in use")
        self.most_connections = gauge("database_connections_max", "Connections to the database that there may be")
        self.series = cache(self.find_series)  # there are as many as routes have methods and statuses

    def setup(self, app):
        """Keep the application, which knows the routes."""
        super().setup(app)
        self.app = app

    def find_series(self, method, route, status):
        """Give the counter and the histogram of some requests."""
        return self.requests.labels(method, route, status), self.seconds.labels(method, route)

    def observe(self, environ, status, seconds):
        """Count a request that was answered, also one that was refused before its route was looked for, or has none."""
        method, route = environ["REQUEST_METHOD"], environ.get("bottle.route")
        with suppress(HTTPError):
            route = route or self.app.match(environ)[0]
        requests, histogram = self.series(
            method if method in METHODS else "other", route.rule if route else "none", status
        )
        requests.inc()
        histogram.observe(seconds)

    def text(self):
        """Give all that was counted and measured."""
        response.content_type = CONTENT_TYPE_PLAIN_0_0_4
        return generate_latest(self.registry)
