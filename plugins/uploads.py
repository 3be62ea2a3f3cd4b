"""Uploads: many records in one body, as a JSON array or as CSV the way spreadsheets save it.

A handler asks for one by its annotation, as `bodies` has it for single records, and gets a dictionary by key::

    class Inventory(Upload):
        record, key = Car, "mark"

    @app.post("/stock")
    def create(cars: Inventory):
        ...

What is wrong is a 400 that tells where: ``line 17: doors: must be …``, in JSON ``item 17: …``. CSV (RFC 4180) is UTF-8
with or without a byte order mark, its lines end with CRLF or LF, its columns are divided by comma or semicolon, as its
header line does, and stand in any order.
"""

import csv
import io
import re
from functools import partial

from bottle import HTTPError

from plugins.bodies import JSON_TYPE, content_type, convert, decoder, fields, integers, read_body, whole_number

CSV_TYPE = "text/csv"
NEITHER = "Content-Type must be application/json or text/csv"


class Upload(dict):
    """Records by their key, in the order of the body; ``places`` tells where each one stood (``line 17``)."""

    record: type
    key: str
    limit = 64 * 1024 * 1024

    def __init__(self):
        super().__init__()
        self.places = {}

    @classmethod
    def receive(cls):
        """Give a function that reads the body; raises the 400, 413 or 415 of one that cannot be read."""
        body = read_body(cls.limit)
        kind = content_type()
        if kind == CSV_TYPE:
            return partial(csv_rows, body)
        if JSON_TYPE.fullmatch(kind):
            return partial(json_rows, body)
        raise HTTPError(415, NEITHER)

    @classmethod
    def build(cls, rows, arguments):
        """Give the upload; raises `ValueError` for the first row that is not right, or stands there twice."""
        upload = cls()
        try:
            for place, values in rows(cls.record):
                upload.add(place, values)
        except UnicodeDecodeError:
            raise ValueError("body: must be UTF-8") from None
        return upload

    def add(self, place, values):
        """Add the record of a line or an item; raises `ValueError`."""
        try:
            record = convert(values, self.record)
            key = getattr(record, self.key)
            if key in self:
                raise ValueError(f"{self.key}: is in {self.places[key]} too")
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        self[key] = record
        self.places[key] = place


def json_rows(body, record):
    """Give the place and the values of each item of a JSON array, decoded one by one to save memory."""
    text = body.decode()
    number, at = 0, past(r"\[", text, 0)
    ended = re.compile(r"\s*\]\s*", re.ASCII).fullmatch
    while not ended(text, at):
        if number:
            at = past(",", text, at)
        number += 1
        try:
            values, at = decoder.raw_decode(text, past("", text, at))
        except (ValueError, RecursionError):
            raise ValueError(f"item {number}: must be JSON") from None
        yield f"item {number}", values


def past(mark, text, at):
    """Give the place behind a mark and the white space around it; raises `ValueError` where there is none."""
    found = re.compile(rf"\s*{mark}\s*", re.ASCII).match(text, at)
    if not found:
        raise ValueError("body: must be a JSON array")
    return found.end()


def csv_rows(body, record):
    """Give the place and the values of each line of CSV; empty lines are passed over."""
    header, _, _ = body.partition(b"\n")
    delimiter = ";" if header.count(b";") > header.count(b",") else ","
    lines = io.TextIOWrapper(io.BytesIO(body), encoding="utf-8-sig", newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 1
    try:
        columns = next(reader, [])
        if sorted(columns) != sorted(fields(record)):
            raise ValueError(f"line 1: columns must be {', '.join(fields(record))}")
        number = reader.line_num + 1
        for cells in reader:
            if cells:
                yield f"line {number}", typed(columns, cells, record, number)
            number = reader.line_num + 1
    except csv.Error:
        raise ValueError(f"line {number}: must be CSV as RFC 4180 has it") from None


def typed(columns, cells, record, number):
    """Give the values of a line by field, numbers as integers; raises `ValueError`."""
    if len(cells) != len(columns):
        raise ValueError(f"line {number}: must have {len(columns)} columns")
    values = dict(zip(columns, cells, strict=True))
    for name in integers(record):
        try:
            values[name] = whole_number(values[name])
        except ValueError as error:
            raise ValueError(f"line {number}: {name}: {error}") from None
    return values
