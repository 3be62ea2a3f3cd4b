"""Listings: a query string that filters, orders and pages the rows of a table, made into SQL.

- ``field=value``, ``field__op=value`` with an operator of `OPERATORS`;
- ``order_by=field,-field``: ties are settled by the table's key, so that the order is total;
- ``limit=100`` gives a page, ``after=[...]`` the one behind the row with these values (by keyset: no row that is added
  or removed meanwhile makes another one appear twice or not at all, and each page costs the same).

What is unknown, repeated, or does not fit its field is refused with a sentence::

    listing = Listing("stock=Germany&order_by=-max_speed&limit=10", Car, cars_table)
    rows = db.query(listing.select(lambda named: [named.mark, named.stock], limit=10))
"""

import csv
import io
import json
import operator
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlencode

import mimeparse
from bottle import HTTPError, response
from msgspec import Meta
from sqlalchemy import Text, func, select, union_all
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from plugins.answers import JSON
from plugins.bodies import cleaners, fields, integers, shown, visible, whole_number
from plugins.openapi import query_parameter
from plugins.uploads import CSV_TYPE

FORMATS = ("json", "csv")
MAX_LIMIT = 1000
MAX_VALUES = 100
PART = 1024  # characters that are worth sending by themselves
ACCEPTED = 4096  # characters of an Accept header that are read: parameters cost the square of their number
Limit = Annotated[int, Meta(ge=1, le=MAX_LIMIT)]
HINTS = {
    **dict.fromkeys(("order", "ordering", "sort", "_sort", "_sort_desc"), "write order_by=field or order_by=-field"),
    **dict.fromkeys(("page_size", "per_page", "_size", "size"), "write limit=100"),
    **dict.fromkeys(("page", "offset", "cursor", "_next", "start"), "write limit=100 and follow the Link header"),
    **dict.fromkeys(("search", "q", "_search"), "write field__contains=text"),
    **dict.fromkeys(("select", "fields", "_col"), "every field is always given"),
}


class fold(GenericFunction):
    """SQL for a text without its case, in any alphabet; on SQLite the function `folded` stands behind it."""

    type = Text()
    inherit_cache = True


@compiles(fold, "postgresql")
def fold_on_postgresql(element, compiler, **kw):
    """Spell `folded` in SQL: the collation is what makes PostgreSQL fold more than ASCII."""
    return f'upper(lower({compiler.process(element.clauses, **kw)} COLLATE "und-x-icu"))'


def folded(text):
    """Give a text without its case: ``STRASSE`` and ``Straße`` are one, and so are the forms of sigma."""
    return text.lower().upper()


TEXT_OPERATORS = {
    "startswith": lambda column, value: func.substr(column, 1, len(value)) == value,
    "contains": lambda column, value: fold(column).contains(folded(value), autoescape=True),
}
OPERATORS = {
    "": operator.eq,
    "not": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "in": lambda column, values: column.in_(values),
    **TEXT_OPERATORS,
}
DESCRIPTIONS = {
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


def read_parameters(query):
    """Give the parameters of a query string (latin-1, as WSGI has it) as a dictionary; raises a 400."""
    try:
        text = query.encode("latin-1").decode()
        pairs = parse_qsl(text, True, strict_parsing=bool(text), errors="strict", max_num_fields=MAX_VALUES)
    except ValueError:
        raise HTTPError(400, "query: must be name=value pairs in UTF-8") from None
    parameters = {}
    for name, value in pairs:
        if name in parameters:
            raise HTTPError(400, f"{shown(name)}: is repeated")
        parameters[name] = value
    return parameters


def read_integer(parameters, name, low, high, default=None):
    """Take a whole number from `low` to `high` out of parameters; raises a 400 that names it."""
    text = parameters.pop(name, None)
    if text is None:
        return default
    try:
        return whole_number(text, low, high)
    except ValueError as error:
        raise HTTPError(400, f"{name}: {error}") from None


def refuse_others(parameters):
    """Raise a 400 for the first parameter that nobody took."""
    for name in parameters:
        hint = HINTS.get(name)
        raise HTTPError(400, f"{shown(name)}: unknown parameter" + (f"; {hint}" if hint else ""))


def listing_parameters(record):
    """Describe the parameters of a `Listing` (OpenAPI)."""
    names = ", ".join(fields(record))
    yield query_parameter("order_by", str, f"Fields of {names}; with - in front of one that goes down")
    yield query_parameter("limit", Limit, "How many on a page")
    yield query_parameter("after", str, "Where the page begins, taken from the Link of the page before")
    yield query_parameter("format", Literal[FORMATS], "What to answer with, whatever Accept says")
    for name, field in fields(record).items():
        for operation in operators(text=name not in integers(record)):
            kind = field.type if operation not in ("in", *TEXT_OPERATORS) else str
            yield query_parameter(f"{name}__{operation}" if operation else name, kind, DESCRIPTIONS[operation])


def operators(text):
    """Give the names of the operators for a field that is text or a number."""
    return [name for name in OPERATORS if text or name not in TEXT_OPERATORS]


class Listing:
    """What a query string asks of a table whose columns are the fields of a record.

    ``limit`` is the size of the page that was asked for, or None; ``first`` tells whether nothing comes before it, and
    ``as_csv`` whether to answer with CSV rather than JSON.
    """

    def __init__(self, query, record, table, accept=JSON):
        """Read a query string, and what ``Accept`` asks for; raises a 400 that names the parameter."""
        self.record = record
        self.table = table
        self.key = next(iter(table.primary_key)).name
        self.parameters = read_parameters(query)
        rest = dict(self.parameters)
        self.as_csv = wants_csv(rest.pop("format", None), accept)
        self.is_plain = not rest
        self.limit = read_integer(rest, "limit", 1, MAX_LIMIT)
        self.order = self.read_order(rest.pop("order_by", self.key))
        after = rest.pop("after", None)
        self.first = after is None
        self.after = None if self.first else self.read_position(after)
        self.conditions = [self.read_condition(name, rest[name]) for name in rest if self.is_filter(name)]
        refuse_others({name: value for name, value in rest.items() if not self.is_filter(name)})

    def is_filter(self, name):
        """Tell whether a parameter's name begins with a field."""
        return name.partition("__")[0] in fields(self.record)

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
        """Give the values of the row behind which the page begins, as `next_page` wrote them."""
        kinds = [str if self.is_text(name) else int for name, _ in self.order]
        try:
            values = json.loads(text)
            if type(values) is list and [*map(type, values)] == kinds:
                return [self.read_value(name, str(value)) for (name, _), value in zip(self.order, values, strict=True)]
        except (ValueError, TypeError, RecursionError):
            pass
        raise HTTPError(400, "after: must be taken from a Link header")

    def read_condition(self, parameter, text):
        """Give the SQL condition of a filter."""
        name, _, operation = parameter.partition("__")
        known = operators(self.is_text(name))
        if parameter != name and operation not in known[1:]:
            raise HTTPError(
                400, f"{shown(parameter)}: unknown operator; use {name}__ with one of {', '.join(known[1:])}"
            )
        try:
            if operation == "in":
                value = self.read_values(name, text)
            else:
                value = self.read_value(name, text, part=operation in TEXT_OPERATORS)
        except ValueError as error:
            raise HTTPError(400, f"{parameter}: {error}") from None
        return OPERATORS[operation](self.table.c[name], value)

    def read_value(self, name, text, part=False):
        """Give what a text means for a field: a number, or text in NFC; a `part` of a text may be blank."""
        if self.is_text(name):
            return visible(text, 255) if part else cleaners(self.record)[name](text)
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

    def count(self):
        """Give the statement that counts what matches, wherever the page begins."""
        return select(func.count().label("count")).select_from(self.table).where(*self.conditions)

    def select(self, columns, limit=None):
        """Give the statement for the rows in order, from where the page begins, `limit` at most.

        ``columns(named)`` gives what to select of the named columns. A page begins behind a row: among those that
        equal it in the first fields of the order and lie beyond in the next. Each such set is a range of an index,
        which one condition with OR would not be.
        """
        if self.first:
            return self.ordered(select(*columns(self.table.c)).where(*self.conditions), self.table.c, limit)
        parts = []
        for place in reversed(range(len(self.order))):
            equal = [
                self.table.c[name] == value for (name, _), value in zip(self.order[:place], self.after, strict=False)
            ]
            name, descending = self.order[place]
            beyond = (operator.lt if descending else operator.gt)(self.table.c[name], self.after[place])
            rows = select(self.table).where(*self.conditions, *equal, beyond)
            parts.append(select(self.ordered(rows, self.table.c, limit).subquery()))
        rows = union_all(*parts).subquery()
        return self.ordered(select(*columns(rows.c)), rows.c, limit)

    def ordered(self, statement, named, limit):
        """Put a statement in order, and cut it."""
        order = [named[name].desc() if descending else named[name] for name, descending in self.order]
        return statement.order_by(*order).limit(limit)

    def next_page(self, row):
        """Give the query string of the page behind `row`, a mapping."""
        position = json.dumps([row[name] for name, _ in self.order], ensure_ascii=False, separators=(",", ":"))
        return urlencode({**self.parameters, "after": position})


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


def link_next(path, query):
    """Name the next page (RFC 8288)."""
    response.set_header("Link", f'<{path}?{query}>; rel="next"')


def json_array(text):
    """Give a JSON array that the database wrote."""
    response.content_type = JSON
    return text.encode()


def json_parts(chunks):
    """Give a JSON array in parts, of lists of its items as texts; a part is given when the next one is there."""
    response.content_type = JSON
    return array_parts(chunks)


def array_parts(chunks):
    """Write the array of `json_parts`."""
    part = "["
    for texts in chunks:
        if len(part) > 1:
            yield part.encode()
            part = ","
        part += ",".join(texts)
    yield (part + "]").encode()


def csv_parts(columns, chunks, filename):
    """Give CSV (RFC 4180) in parts, of lists of rows, to be saved as a file."""
    response.content_type = f"{CSV_TYPE}; charset=utf-8; header=present"
    response.set_header("Content-Disposition", f'attachment; filename="{filename}"')
    return record_parts(columns, chunks)


def record_parts(columns, chunks):
    """Write the records of `csv_parts`."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(columns)
    for rows in chunks:
        if file.tell() > PART:
            yield taken(file)
        writer.writerows(rows)
    yield taken(file)


def taken(file):
    """Take out of a text file what it holds, as UTF-8."""
    text = file.getvalue()
    file.seek(0)
    file.truncate()
    return text.encode()
