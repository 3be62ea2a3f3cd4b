"""How schemathesis comes by tokens that hold, and what it did with them.

It sends the document's own examples first. So the account of most cases has a password that no example has; and a case
that may end its account, or the account's tokens, gets an account of its own, with the password of the examples. Every
request comes from another address, as far as the server knows, so that no limit on guessing hides what is behind it.
"""

import atexit
import itertools
from collections import Counter

import requests
import schemathesis

ENDING = ["/logout", "/account", "/account/password"]
numbers = itertools.count(1)
statuses = {"with a token": Counter(), "without a token": Counter()}


def new_address():
    """Give the header that names an address which sent nothing yet."""
    high, low = divmod(next(numbers), 256)
    return {"X-Forwarded-For": f"10.{high >> 8}.{high & 255}.{low}"}


def token_of(context, password):
    """Register an account that nobody has, and give a token of it."""
    api = context.operation.base_url.rstrip("/")
    account = {"username": f"tester {next(numbers)}", "password": password}
    requests.post(f"{api}/register", json=account, headers=new_address(), timeout=10).raise_for_status()
    answer = requests.post(f"{api}/auth", json=account, headers=new_address(), timeout=10)
    answer.raise_for_status()
    return answer.json()["access_token"]


class Account:
    """An account whose password is in no example."""

    def get(self, case, context):
        """Give a token."""
        return token_of(context, "in no example")

    def set(self, case, token, context):
        """Send it."""
        case.headers["Authorization"] = f"Bearer {token}"


class AccountOfOneCase(Account):
    """An account with the password of the examples."""

    def get(self, case, context):
        """Give a token."""
        ending = context.operation.schema.raw_schema["paths"]["/account"]["delete"]["requestBody"]["content"]
        return token_of(context, ending["application/json"]["example"]["password"])


schemathesis.auth().skip_for(path=ENDING)(Account)
schemathesis.auth(refresh_interval=None).apply_to(path=ENDING)(AccountOfOneCase)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Come from another address each time."""
    case.headers.update(new_address())


@schemathesis.hook
def after_call(context, case, response):
    """Count."""
    kind = "with a token" if "Authorization" in response.request.headers else "without a token"
    statuses[kind][response.status_code] += 1


@atexit.register
def tell():
    """Print how many cases there were, by status of their answers."""
    for kind, found in statuses.items():
        counts = ", ".join(f"{status} {number} times" for status, number in sorted(found.items()))
        print(f"{found.total()} cases {kind}, answered with {counts}")
