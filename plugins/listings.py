"""Listings: a query string that searches, filters, orders and pages a table, made into what `dataset` knows.

- ``search=text``: in any field that is text, in any case;
- ``field=value``, ``field__op=value`` with an operator of `OPERATORS`;
- ``order_by=field,-field``: ties are settled by the table's key, so that the order is total;
- ``limit=100`` gives a page, ``after=[...]`` the one behind the row with these values (by keyset: no row that is added
  or removed meanwhile makes another one appear twice or not at all, and each page costs the same).

What is unknown, repeated, or does not fit its field is refused with a sentence::

    listing = Listing("stock=Germany&order_by=-max_speed&limit=10", Car, key="mark")
    cars = listing.page("/cars", db["cars"].find(**listing.find, _limit=listing.limit + 1))

A `Feed` is a listing of what is only ever added, by ``id``: the newest first, or the oldest first ``after`` one.
"""

import csv
import io
from itertools import chain, islice
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlencode

import mimeparse
import msgspec
from bottle import HTTPError, response
from msgspec import Meta

from plugins.answers import JSON, encode
from plugins.bodies import MAX_INTEGER, Number, cleaners, fields, integers, shown, visible, whole_number
from plugins.openapi import query_parameter
from plugins.uploads import CSV_TYPE

FORMATS = ("json", "csv")
MAX_LIMIT = 1000
MAX_VALUES = 100
ACCEPTED = 4096  # characters of an Accept header that are read: parameters cost the square of their number
Search = Annotated[str, Meta(min_length=1, max_length=255)]
Limit = Annotated[int, Meta(ge=1, le=MAX_LIMIT)]
HINTS = {
    **dict.fromkeys(("order", "ordering", "sort", "_sort", "_sort_desc"), "write order_by=field or order_by=-field"),
    **dict.fromkeys(("page_size", "per_page", "_size", "size"), "write limit=100"),
    **dict.fromkeys(("page", "offset", "cursor", "_next", "start"), "write limit=100 and follow the Link header"),
    **dict.fromkeys(("q", "_search"), "write search=text"),
    **dict.fromkeys(("select", "fields", "_col"), "every field is always given"),
}
TEXT_OPERATORS = ("startswith", "contains")
OPERATORS = {  # in dataset's words, but for the first, and what they mean
    "": "Equal to",
    "not": "Not equal to",
    "gt": "Greater than",
    "gte": "Greater than or equal to",
    "lt": "Less than",
    "lte": "Less than or equal to",
    "in": f"One of up to {MAX_VALUES} values, divided by commas and quoted as in CSV",
    "startswith": "Begins with, in this case",
    "contains": "Contains, in any case",
}


def listing_parameters(record):
    """Describe the parameters of a `Listing` (OpenAPI)."""
    names = ", ".join(fields(record))
    yield query_parameter("search", Search, "Text in any field, in any case")
    yield query_parameter("order_by", str, f"Fields of {names}; with - in front of one that goes down")
    yield query_parameter("limit", Limit, "How many on a page")
    yield query_parameter("after", str, "Where the page begins, taken from the Link of the page before")
    yield query_parameter("format", Literal[FORMATS], "What to answer with, whatever Accept says")
    for name, field in fields(record).items():
        for operation in operators(text=name not in integers(record)):
            kind = field.type if operation not in ("in", *TEXT_OPERATORS) else str
            yield query_parameter(f"{name}__{operation}" if operation else name, kind, OPERATORS[operation])


def operators(text):
    """Give the names of the operators for a field that is text or a number."""
    return [name for name in OPERATORS if text or name not in TEXT_OPERATORS]


def feed_parameters():
    """Describe the parameters of a `Feed` (OpenAPI)."""
    yield query_parameter("limit", Limit, "How many entries at most")
    yield query_parameter("after", Number, "The entries after the one with this id, oldest first")
    yield query_parameter("before", Number, "The entries before the one with this id, newest first")


class Paged:
    """What a query string asks of a table, ``limit`` rows at once; `behind` names a place in it.

    Each of its ``parameters`` is there once; ``rest`` are those that nobody has taken yet. A refused one is a 400.
    """

    def __init__(self, query):
        """Read a query string (latin-1, as WSGI has it)."""
        try:
            text = query.encode("latin-1").decode()
            pairs = parse_qsl(text, True, strict_parsing=bool(text), errors="strict", max_num_fields=MAX_VALUES)
        except ValueError:
            raise HTTPError(400, "query: must be name=value pairs in UTF-8") from None
        self.parameters = {}
        for name, value in pairs:
            if name in self.parameters:
                raise HTTPError(400, f"{shown(name)}: is repeated")
            self.parameters[name] = value
        self.rest = dict(self.parameters)

    def take_integer(self, name, low, high=MAX_INTEGER):
        """Take a whole number from `low` to `high`, None where it was not given."""
        try:
            return whole_number(self.rest.pop(name), low, high) if name in self.rest else None
        except ValueError as error:
            raise HTTPError(400, f"{name}: {error}") from None

    def refuse_rest(self):
        """Refuse what is left."""
        for name in self.rest:
            hint = HINTS.get(name)
            raise HTTPError(400, f"{shown(name)}: unknown parameter" + (f"; {hint}" if hint else ""))

    def page(self, path, rows):
        """Give the rows of a page; where there is one more, ``Link`` names the next page (RFC 8288)."""
        rows = list(rows)
        if len(rows) > self.limit:
            query = urlencode({**self.parameters, **self.behind(rows[self.limit - 1])})
            response.set_header("Link", f'<{path}?{query}>; rel="next"')
        return rows[: self.limit]


class Feed(Paged):
    """What a query string asks of a table of entries: ``find`` are arguments by name for `plugins.storage.Table`."""

    def __init__(self, query):
        """Read a query string."""
        super().__init__(query)
        self.limit = self.take_integer("limit", 1, MAX_LIMIT) or 100
        ids = {"<": self.take_integer("before", 0), ">": self.take_integer("after", 0)}
        self.refuse_rest()
        self.rising = ids[">"] is not None
        ids = {operator: id for operator, id in ids.items() if id is not None}
        self.find = {"id": ids, "order_by": "id" if self.rising else "-id", "_limit": self.limit + 1}

    def behind(self, row):
        """Give the parameters of the page behind `row`."""
        return {"after" if self.rising else "before": row["id"]}


class Listing(Paged):
    """What a query string asks of a table whose columns are the fields of a record.

    ``filters`` and ``find`` are arguments by name for `count` and `find` of `plugins.storage.Table`; ``limit`` is the
    size of the page that was asked for, or None. ``first`` tells whether nothing comes before it, ``is_plain`` whether
    nothing was asked for at all, and ``as_csv`` whether to answer with CSV rather than JSON.
    """

    def __init__(self, query, record, key, accept):
        """Read a query string, and what ``Accept`` asks for."""
        super().__init__(query)
        self.record = record
        self.key = key
        rest = self.rest
        self.as_csv = wants_csv(rest.pop("format", None), accept)
        self.is_plain = not rest
        self.limit = self.take_integer("limit", 1, MAX_LIMIT)
        self.order = self.read_order(rest.pop("order_by", key))
        after = rest.pop("after", None)
        self.first = after is None
        position = () if self.first else self.read_position(after)
        self.filters = {}
        if "search" in rest:
            self.add_filter("search", "|".join(filter(self.is_text, fields(record))), "contains", rest.pop("search"))
        for parameter in [each for each in rest if each.partition("__")[0] in fields(record)]:
            self.add_filter(parameter, *self.read_name(parameter), rest.pop(parameter))
        self.refuse_rest()
        order = [f"-{name}" if falling else name for name, falling in self.order]
        self.find = {**self.filters, "order_by": order, "_after": position, "_columns": fields(record)}

    def is_text(self, name):
        """Tell whether a field is text; the others are numbers."""
        return name not in integers(self.record)

    def read_order(self, text):
        """Give (field, descending) pairs, the key last."""
        order = {}
        for part in text.split(","):
            name = part.removeprefix("-")
            if name not in fields(self.record) or name in order:
                raise HTTPError(400, f"order_by: must be different fields of {', '.join(fields(self.record))}")
            order[name] = part.startswith("-")
        order.setdefault(self.key, False)
        return list(order.items())

    def read_position(self, text):
        """Give the values of the row behind which the page begins, as `behind` wrote them."""
        kinds = tuple(fields(self.record)[name].type for name, _ in self.order)
        try:
            values = msgspec.json.decode(text, type=tuple[kinds])
            return [self.read_value(name, str(value)) for (name, _), value in zip(self.order, values, strict=True)]
        except (ValueError, msgspec.DecodeError, RecursionError):
            raise HTTPError(400, "after: must be taken from a Link header") from None

    def read_name(self, parameter):
        """Give the field and the operator that the name of a parameter holds; raises a 400."""
        name, divided, operation = parameter.partition("__")
        known = operators(self.is_text(name))[1:]
        if divided and operation not in known:
            choice = f"{name}__ with one of {', '.join(known)}"
            raise HTTPError(400, f"{shown(parameter)}: unknown operator; use {choice}")
        return name, operation

    def add_filter(self, parameter, names, operation, text):
        """Add a filter on a field, or on any of some; raises a 400 for a value that does not fit."""
        try:
            if operation == "in":
                value = self.read_values(names, text)
            elif operation in TEXT_OPERATORS:
                value = visible(text, 255)
            else:
                value = self.read_value(names, text)
        except ValueError as error:
            raise HTTPError(400, f"{parameter}: {error}") from None
        self.filters.setdefault(names, {})[operation or "="] = value

    def read_value(self, name, text):
        """Give what a text means for a field: a number, or text in NFC."""
        if self.is_text(name):
            return cleaners(self.record)[name](text)
        try:
            return whole_number(text)
        except ValueError as error:
            raise ValueError(f"{error}; to compare, write {name}__gt=100") from None

    def read_values(self, name, text):
        """Give the values of one CSV record."""
        try:
            (values,) = csv.reader([text], strict=True)
        except (csv.Error, ValueError):
            raise ValueError("must be one line of comma-separated values") from None
        if len(values) > MAX_VALUES:
            raise ValueError(f"must be at most {MAX_VALUES} values")
        return [self.read_value(name, value) for value in values or [""]]

    def behind(self, row):
        """Give the parameters of the page behind `row`."""
        return {"after": encode([row[name] for name, _ in self.order])}

    def parts(self, rows, filename):
        """Give rows, which come one by one, in parts: as JSON or, to be saved as a file, as CSV."""
        return csv_parts(fields(self.record), iter(rows), filename) if self.as_csv else json_parts(iter(rows))


def wants_csv(format, accept):
    """Tell whether CSV is asked for: by ``format``, or else by ``Accept`` (RFC 9110, section 12.5.1)."""
    if format is not None:
        if format not in FORMATS:
            raise HTTPError(400, "format: must be " + " or ".join(FORMATS))
        return format == "csv"
    known = ",".join(part for part in accept.lower().split(",") if "/" in part)
    try:
        return len(known) <= ACCEPTED and mimeparse.best_match([CSV_TYPE, JSON], known) == CSV_TYPE
    except mimeparse.MimeTypeParseException:
        return False


def json_parts(rows):
    """Give rows, which come one by one, as a JSON array in parts; a part is given when the next one is there."""
    response.content_type = JSON
    part = b"["
    while some := list(islice(rows, MAX_LIMIT)):
        if len(part) > 1:
            yield part
            part = b","
        part += encode(some)[1:-1]
    yield part + b"]"


def csv_parts(columns, rows, filename):
    """Give rows, which come one by one, as CSV (RFC 4180) in parts, to be saved as a file."""
    response.content_type = f"{CSV_TYPE}; charset=utf-8; header=present"
    response.set_header("Content-Disposition", f'attachment; filename="{filename}"')
    lines = chain([columns], map(dict.values, rows))
    while some := list(islice(lines, MAX_LIMIT)):
        part = io.StringIO()
        csv.writer(part).writerows(some)
        yield part.getvalue().encode()
