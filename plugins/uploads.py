"""Uploads: many records in one body, as a JSON array or as CSV the way spreadsheets save it.

A handler asks for one by its annotation, as `bodies` has it for single records, and gets its rows if all are right::

    class Inventory(Upload):
        record, key, noun = Car, "mark", "cars"

    @app.post("/stock")
    def create(cars: Inventory):
        for mark, row in cars.rows().items():
            ...

What is wrong is a 400 that tells where: ``line 17: doors: must be …``, in JSON ``item 17: …``; ``Errors`` beside its
``Error`` lists all that is. CSV (RFC 4180) is UTF-8 with or without a byte order mark, its lines end with CRLF or LF,
its columns are divided by comma or semicolon, as its header line does, and stand in any order.
"""

import csv
import io
import re
from contextlib import suppress
from functools import cache
from itertools import islice

import msgspec
from bottle import HTTPError
from msgspec import structs

from plugins.bodies import DIGITS, LIMIT, cleaners, content_type, convert, decoder, fields, integers, is_json, read_body

CSV_TYPE = "text/csv"
NEITHER = "Content-Type must be application/json or text/csv"
COMMA = re.compile(r"\s*,\s*", re.ASCII)
TOO_MANY = "body: more than {0.most} {0.noun}; send them in several uploads"
MAX_ERRORS = 100  # that one answer lists


class Upload:
    """Records by their key as plain rows, checked all at once; only what is not right is looked at line by line."""

    record: type
    key: str
    noun: str  # what the records are called, in the plural
    limit = 64 * 1024 * 1024
    most = 50_000

    def __init__(self, unit):
        self.unit = unit
        self.right = {}  # rows by key
        self.places = {}  # the line or item in which each key stands first, be it right or not
        self.errors = {}  # what is wrong, by line or item

    @classmethod
    def receive(cls):
        """Give the body and its type; raises the 400, 413 or 415 of one that cannot be read."""
        body, kind = read_body(cls.limit), content_type()
        if kind != CSV_TYPE and not is_json(kind):
            raise HTTPError(415, NEITHER)
        return body, kind

    @classmethod
    def build(cls, received, arguments):
        """Give the upload; raises `ValueError` for a body that has no lines or items, and the 413 for too many."""
        body, kind = received
        upload = cls("line" if kind == CSV_TYPE else "item")
        try:
            (upload.read_csv if kind == CSV_TYPE else upload.read_json)(body)
        except UnicodeDecodeError:
            raise ValueError("body: must be UTF-8") from None
        return upload

    def read_json(self, body):
        """Add what a JSON array holds."""
        if body.count(b"{") <= self.most:  # else there are too many, or one is wrong
            with suppress(ValueError, msgspec.DecodeError):
                records = msgspec.json.decode(body, type=array(self.record))
                return self.add_all(range(1, len(records) + 1), records)
        self.add_each(json_items(body))

    def read_csv(self, body):
        """Add what CSV holds."""
        lines = dict(islice(csv_lines(body, self.record), self.most + 1))
        if len(lines) <= self.most:
            with suppress(ValueError, msgspec.DecodeError):
                return self.add_all(lines, msgspec.convert([*lines.values()], array(self.record)))
        self.add_each(lines.items())

    def add_all(self, places, records):
        """Add all records at once; raises `ValueError` where a text is not right, or a key is there twice."""
        rows = [*map(structs.asdict, records)]
        for name, clean in cleaners(self.record).items():
            cleaned = {text: clean(text) for text in {row[name] for row in rows}}  # each once
            for row in rows:
                row[name] = cleaned[row[name]]
        right = {row[self.key]: row for row in rows}
        self.right, self.places = right, dict(zip(right, places, strict=True))

    def add_each(self, rows):
        """Add rows one by one, given as place and values, or what is wrong with each; raises the 413 for too many."""
        for count, (place, values) in enumerate(rows, 1):
            if count > self.most:
                raise HTTPError(413, TOO_MANY.format(self))
            try:
                self.add(place, values)
            except ValueError as error:
                self.errors[place] = str(error)

    def add(self, place, values):
        """Add a row; raises `ValueError`."""
        if isinstance(values, ValueError):
            raise values
        if isinstance(values, dict) and isinstance(values.get(self.key), str):
            with suppress(ValueError):
                first = self.places.setdefault(cleaners(self.record)[self.key](values[self.key]), place)
        row = structs.asdict(convert(values, self.record))
        if first != place:
            raise ValueError(f"{self.key}: is in {self.unit} {first} too")
        self.right[row[self.key]] = row

    def rows(self, known=(), reason=""):
        """Give all rows by key; raises the 400 where one is wrong, or has a `known` key, which is a `reason`."""
        errors = {self.places[key]: f"{self.key}: {reason}" for key in known} | self.errors
        if errors:
            raise HTTPError(400, [f"{self.unit} {place}: {errors[place]}" for place in sorted(errors)[:MAX_ERRORS]])
        return self.right


@cache
def array(record):
    """Give the type of an array of records whose types are right, though not yet their texts."""
    types = [(name, field.type) for name, field in fields(record).items()]
    return list[msgspec.defstruct(record.__name__, types, forbid_unknown_fields=True, gc=False)]


def json_items(body):
    """Give the number and the values of each item of a JSON array, a `ValueError` for one that cannot be read.

    Its text is decoded piece by piece, and no item may be longer than a body of its own: decoded, it takes much memory.
    """
    array = body.strip()
    if array[:1] + array[-1:] != b"[]":
        raise ValueError("body: must be a JSON array")
    reader = io.TextIOWrapper(io.BytesIO(array[1:-1].strip()), encoding="utf-8", newline="")
    text, at, number = reader.read(LIMIT), 0, 0
    while at < len(text):
        if number:
            comma = COMMA.match(text, at)
            if not comma:
                raise ValueError("body: must be a JSON array")
            at = comma.end()
        number += 1
        try:
            values, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            yield number, ValueError("must be JSON")
            return
        yield number, values
        if len(text) - at < LIMIT:
            text, at = text[at:] + reader.read(LIMIT), 0


def csv_lines(body, record):
    """Give the number and the values of each line of CSV, a `ValueError` for one without; empty lines are skipped."""
    header, _, _ = body.partition(b"\n")
    delimiter = ";" if header.count(b";") > header.count(b",") else ","
    numbers, length = integers(record), 0

    def short_lines():
        nonlocal length
        for line in io.TextIOWrapper(io.BytesIO(body), encoding="utf-8-sig", newline=""):
            length += len(line)
            if length > LIMIT:
                raise csv.Error
            yield line

    reader = csv.reader(short_lines(), delimiter=delimiter, strict=True)
    read = cache(lambda cell: int(cell) if DIGITS.fullmatch(cell) else cell)  # to be refused, as a text in JSON is
    number = 1
    try:
        columns = next(reader, [])
        if sorted(columns) != sorted(fields(record)):
            raise ValueError(f"line 1: columns must be {', '.join(fields(record))}")
        number = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(columns):
                values = dict(zip(columns, cells, strict=True))
                for name in numbers:
                    values[name] = read(values[name])
                yield number, values
            elif cells:
                yield number, ValueError(f"must have {len(columns)} columns")
            number, length = reader.line_num + 1, 0
    except csv.Error:
        yield number, ValueError("must be CSV as RFC 4180 has it")
