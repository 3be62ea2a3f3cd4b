"""Bodies: requests checked against the record that a handler declares.

A record is a `msgspec.Struct` of numbers and texts. A handler asks for one by its annotation, and gets it whole and
right, or is not called at all; path arguments are fields of the record too::

    class Car(Record):
        mark: Text(255)
        doors: Number

    app.install(BodiesPlugin(Car))

    @app.put("/car/<mark>")
    def update(mark, car: Car):
        ...

Bodies are JSON objects (RFC 8259). What is wrong with one is a 400 that names the field; a body of another type is a
415, a longer one than the route takes a 413. Text is normalised to Unicode NFC before it is looked at.
"""

import json
import re
import unicodedata
from functools import cache, wraps
from itertools import accumulate, chain, islice
from operator import itemgetter
from typing import Annotated, ClassVar, get_args

import msgspec
from bottle import HTTPError, request
from msgspec import UNSET, Meta

from plugins import Plugin

LIMIT = 1024 * 1024
NOT_JSON = "Content-Type must be application/json"
is_json = re.compile(r"application/(json|[\w.!#$&^-]+\+json)", re.ASCII).fullmatch  # a media type
JOINERS = "\u200c\u200d"  # Persian and the scripts of India need them
# Control and format characters (Unicode Cc and Cf) but the joiners, for regular expressions here and in JSON Schema.
INVISIBLE = (
    r"\u0000-\u001f\u007f-\u009f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200e\u200f"
    r"\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb"
)
ASTRAL = (0x110BD, 0x110CD, *range(0x13430, 0x13440), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), 0xE0001)
ASTRAL = [*map(chr, (*ASTRAL, *range(0xE0020, 0xE0080)))]  # those above U+FFFF
VISIBLE = re.compile(f"[^{INVISIBLE}{''.join(ASTRAL)}]+")
# The same for JSON Schema: in JavaScript without the ``u`` flag such a character is two, which no set can hold; in
# Python ``$`` stands before a last line feed, too.
VISIBLE_ANYWHERE = f"(?:(?!{'|'.join(ASTRAL)})[^{INVISIBLE}])+$(?!\\n)"
JOINED = 4  # code points, at most, that NFC makes one of
UNORDERED = 256  # code points that NFC puts in order in a tenth of a millisecond, whatever they are
SURROGATE = re.compile("[\ud800-\udfff]")
BLANK = re.compile(rf"[\s{JOINERS}]*")
DIGITS = re.compile(r"[0-9]{1,30}")
MAX_INTEGER = 2**53 - 1  # what every JSON client can hold (RFC 8259, section 6)

Number = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]


# Of a very long integer, which Python refuses to read, a part is too large as well; NaN and Infinity `int` refuses.
decoder = json.JSONDecoder(parse_int=lambda digits: int(digits[:32]), parse_constant=int)


def Text(length, refuse=(), stripped=False):
    """Give the type of a readable text of 1 to `length` code points, none to `refuse`, its ends `stripped` or not."""

    def readable(text):
        text = visible(text, length)
        if BLANK.fullmatch(text):
            raise ValueError("must not be blank")
        if text in refuse:
            raise ValueError("must not be " + " or ".join(map(repr, refuse)))
        if stripped and text != text.strip():
            raise ValueError("must not begin or end with white space")
        return text

    others = "".join(f"(?!{re.escape(text)}$)" for text in refuse) + r"(?!\s|[\s\S]*\s$)" * stripped
    return text_type(length, readable, f"^{others}(?!{BLANK.pattern}$){VISIBLE_ANYWHERE}")


def Password(length):
    """Give the type of a password of 1 to `length` code points, which may hold anything but NUL."""

    def without_nul(text):
        text = normalised(text, length)
        if "\0" in text:
            raise ValueError("must not hold NUL")
        return text

    return text_type(length, without_nul, r"^[^\u0000]+$")


def text_type(length, clean, pattern):
    """Give a type of text for a `Record`, which keeps what ``clean(text)`` gives; `pattern` says it in JSON Schema."""
    schema = {"minLength": 1, "maxLength": length, "pattern": pattern}
    return Annotated[str, Meta(extra_json_schema=schema, extra={"clean": clean})]


def visible(text, length):
    """Give `text` in NFC; raises `ValueError` as `normalised` does, and for control and format characters."""
    text = normalised(text, length)
    if not (text.isprintable() or VISIBLE.fullmatch(text)):  # the first is quick, and knows no joiners
        raise ValueError("must not hold control or format characters")
    return text


def normalised(text, length):
    """Give `text` in NFC; raises `ValueError` where that is not Unicode, or not 1 to `length` code points."""
    if not text.isascii() and len(text) <= length * JOINED:
        text = unicodedata.normalize("NFC", text if len(text) < UNORDERED else in_order(text))
        if SURROGATE.search(text):
            raise ValueError("must not hold lone surrogates")
    if not 1 <= len(text) <= length:
        raise ValueError(f"must be text of 1 to {length} characters")
    return text


def in_order(text):
    """Give `text` decomposed, its marks in canonical order (UAX #15): `normalize` takes the square of their number."""
    parts = "".join(unicodedata.normalize("NFD", character) for character in text)
    starters = accumulate(not unicodedata.combining(part) for part in parts)
    ordered = sorted(zip(starters, map(unicodedata.combining, parts), parts, strict=True), key=itemgetter(0, 1))
    return "".join(part for _, _, part in ordered)


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A JSON object with known fields only, its texts clean."""

    limit: ClassVar = LIMIT
    example: ClassVar = None

    @classmethod
    def receive(cls):
        """Give what the JSON body holds, whatever it is; of a key that is repeated the last one counts."""
        body = read_body(cls.limit)
        if not is_json(content_type()):
            raise HTTPError(415, NOT_JSON)
        try:
            return decoder.decode(body.decode())
        except (ValueError, RecursionError):
            raise HTTPError(400, "body: must be JSON in UTF-8") from None

    @classmethod
    def build(cls, data, arguments):
        """Give the record of a body and of the path's arguments, which may say the same, but nothing else."""
        if not isinstance(data, dict):
            raise ValueError("body: must be a JSON object")
        record = convert({**arguments, **data}, cls)
        for name, value in arguments.items():
            if getattr(record, name) != value:
                raise ValueError(f"{name}: must be the same as in the path")
        return record

    @classmethod
    def tidy(cls, name, text):
        """Give a text as the field `name` keeps it; raises `ValueError` with the field and what is wrong."""
        try:
            return cleaners(cls)[name](text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def __post_init__(self):
        record = type(self)
        for name in cleaners(record):
            value = getattr(self, name)
            if value is not UNSET:
                setattr(self, name, record.tidy(name, value))


def some_of(name, record, key):
    """Give a record type like `record`, to which one of the fields besides `key` is enough."""
    others = [each for each in fields(record) if each != key]

    def at_least_one(self):
        Record.__post_init__(self)
        if not given(self).keys() & others:
            raise ValueError(f"body: must have at least one of {', '.join(others)}")

    optional = [(field.name, field.type | msgspec.UnsetType, UNSET) for field in fields(record).values()]
    namespace = {"__post_init__": at_least_one}
    return msgspec.defstruct(name, optional, bases=(Record,), namespace=namespace, kw_only=True)


def given(record):
    """Give the fields of a record that were not left out, as a dictionary."""
    return {name: value for name, value in msgspec.structs.asdict(record).items() if value is not UNSET}


@cache
def fields(record):
    """Give the fields of a record by name, as `msgspec.structs.FieldInfo`."""
    return {field.name: field for field in msgspec.structs.fields(record)}


def whole_number(text, low=0, high=MAX_INTEGER):
    """Give the integer that plain ASCII digits mean; raises `ValueError` where it is not one from `low` to `high`."""
    if not DIGITS.fullmatch(text) or not low <= int(text) <= high:
        raise ValueError(f"must be an integer from {low} to {high}")
    return int(text)


@cache
def integers(record):
    """Give the names of the fields of a record that are numbers."""
    return [name for name, field in fields(record).items() if field.type is Number]


@cache
def cleaners(record):
    """Give the function that tidies each text of a record, by field name."""
    parts = [(name, part) for name, field in fields(record).items() for part in (field.type, *get_args(field.type))]
    metas = [(name, meta) for name, part in parts for meta in getattr(part, "__metadata__", ())]
    return {name: meta.extra["clean"] for name, meta in metas if meta.extra}


def convert(data, record):
    """Make a record of what JSON gave; raises `ValueError` with a sentence that names the field."""
    try:
        return msgspec.convert(data, record)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter for a lone surrogate in a name
        raise ValueError(misfit(data, fields(record)) or reason(str(error))) from None


def misfit(data, known):
    """Tell which name of what JSON gave does not fit a record of the `known` fields, or None."""
    if not isinstance(data, dict):
        return "must be a JSON object"
    unknown = (f"{shown(name)}: unknown field" for name in data if name not in known)
    missing = (f"{name}: is missing" for name, field in known.items() if field.required and name not in data)
    return next(chain(unknown, missing), None)


def reason(message):
    """Make a sentence that names the field of what msgspec says (``Expected `int`, got `str` - at `$.doors```)."""
    told, _, path = message.partition(" - at `$.")
    if not path:
        return told
    kind = "text" if "`str" in told.partition(", got")[0] else f"an integer from 0 to {MAX_INTEGER}"
    return f"{path.rstrip('`')}: must be {kind}"


def shown(name):
    """Give what may be repeated of a name that a client chose: 80 printable characters."""
    return "".join(islice(filter(str.isprintable, name), 80))


class BodiesPlugin(Plugin):
    """Read the body of a request into the record that a handler declares, and tidy the arguments of its path."""

    def __init__(self, path):
        """Take the record whose fields the arguments of paths are."""
        self.path = path

    def apply(self, callback, route):
        """Wrap a callback, so that it gets what it asks for, and is not run for a body that is too long."""
        body, kind = body_of(route)
        arguments = [name for name in cleaners(self.path) if f"<{name}" in route.rule]

        @wraps(callback)
        def wrapper(*args, **kwargs):
            data = kind.receive() if kind else check_length(LIMIT)
            try:
                for name in arguments:
                    kwargs[name] = self.path.tidy(name, kwargs[name])
                if kind:
                    kwargs[body] = kind.build(data, {name: kwargs[name] for name in arguments})
            except ValueError as error:
                raise HTTPError(400, str(error)) from None
            return callback(*args, **kwargs)

        return wrapper


def body_of(route):
    """Give the name and the type of the argument that holds the body, or None twice."""
    annotations = route.get_undecorated_callback().__annotations__.items()
    return next(((name, kind) for name, kind in annotations if hasattr(kind, "receive")), (None, None))


def check_length(limit):
    """Raise the 413 of a body that is announced as longer than `limit` bytes."""
    if int(request.environ.get("CONTENT_LENGTH") or 0) > limit:
        raise HTTPError(413, f"Body is larger than {limit} bytes")


def read_body(limit):
    """Give the body's bytes; raises the 400 or 413 of a body that is missing, cut short or longer than `limit` bytes.

    No more is asked for than was announced, for which some servers would wait without end (PEP 3333); of a body in
    chunks, whose length others do not tell, a byte beyond the limit.
    """
    check_length(limit)
    environ = request.environ
    in_chunks = "HTTP_TRANSFER_ENCODING" in environ
    length = limit + 1 if in_chunks else int(environ.get("CONTENT_LENGTH") or 0)
    if environ.get("server.unread"):  # it was not welcome, but would be now
        raise HTTPError(503, "Body was not read. Try again", Retry_After="1")
    try:
        body = environ["wsgi.input"].read(length) if length else b""
    except OSError:  # what gunicorn raises where the last chunk does not come
        raise HTTPError(400, "body: ended early") from None
    if len(body) > limit:
        raise HTTPError(413, f"Body is larger than {limit} bytes")
    if len(body) < length and not in_chunks:
        raise HTTPError(400, "body: ended early")
    if not body:
        raise HTTPError(400, "body: is missing")
    return body


def content_type():
    """Give the media type of the body without its parameters, in lower case."""
    return request.content_type.partition(";")[0].strip()
