"""waitress alone with answers made beforehand: what no application under it can surpass.

Run with `waitress-serve bare:app`. The answers have the size and the headers of the ones that this project gives.
"""

import json

HEADERS = [
    ("Content-Type", "application/json"),
    ("Cache-Control", "private, no-cache"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Request-ID", "0123456789abcdef0123456789abcdef"),
    ("ETag", '"0123456789abcdef"'),
]


def car(number):
    """Make one car."""
    return {
        "mark": f"car-{number:06d}",
        "max_speed": 280,
        "distance": 400,
        "handler": "Auto Motors",
        "stock": "Germany",
    }


def answer(value):
    """Render a value once, with its headers."""
    body = json.dumps(value).encode()
    return [*HEADERS, ("Content-Length", str(len(body)))], [body]


ONE_CAR = answer(car(1))
ALL_CARS = answer([car(number) for number in range(1, 1001)])


def app(environ, start_response):
    """Give the stock at /stock and one car at any other path, whatever the method."""
    headers, body = ALL_CARS if environ["PATH_INFO"] == "/stock" else ONE_CAR
    start_response("200 OK", headers)
    return body
