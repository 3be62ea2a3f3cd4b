"""Settings: one table, a frozen dataclass, for the environment, the command line and its help.

Each field has a parser, which takes the text that was given and raises `ValueError`, and a line of help::

    @dataclass(frozen=True)
    class Settings:
        port: int = setting(8080, integer(1, 65535), "port to listen on")

    parser = OneLineParser(parents=[options(Settings)])
    given = vars(parser.parse_args())
    settings = load(Settings, {**os.environ, **given})

``PORT=9000`` in the environment and ``--port 9000`` say the same; the option wins.
"""

import argparse
import dataclasses
import re
from functools import partial
from ipaddress import ip_address

from plugins.bodies import whole_number

ORIGIN = re.compile(r"\*|https?://[a-z0-9.-]+(:[0-9]+)?|https?://\[[0-9a-f:]+\](:[0-9]+)?")


class SettingError(Exception):
    """A setting that cannot work; its text is one line that names it."""


def setting(default, parse, help, shown=None):
    """Give a field for a settings table; `shown` is what the help says of the default, if not its value."""
    shown = shown or ("none" if default in (None, ()) else str(default))
    return dataclasses.field(default=default, metadata={"parse": parse, "help": help, "shown": shown})


def load(table, given):
    """Give the settings of a mapping from names to texts; raises `SettingError` for the first that cannot work."""
    values = {}
    for field in dataclasses.fields(table):
        name = field.name.upper()
        if given.get(name):
            try:
                values[field.name] = field.metadata["parse"](given[name])
            except ValueError as error:
                raise SettingError(f"{name}: {error}") from None
    return table(**values)


def options(table):
    """Give a parser, to be a parent of others, with an option for each setting; only those given end in its result."""
    parser = OneLineParser(add_help=False, argument_default=argparse.SUPPRESS)
    for field in dataclasses.fields(table):
        name = field.name.upper()
        about = f"{field.metadata['help']} (environment: {name}; default: {field.metadata['shown']})"
        parser.add_argument("--" + field.name.replace("_", "-"), dest=name, metavar="…", help=about.replace("%", "%%"))
    return parser


class OneLineParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that refuses in one line, without its usage."""

    def error(self, message):
        """End the program with code 2; values are not repeated, since they may be passwords."""
        told, _, given = message.partition("unrecognized arguments: ")
        names = [word for word in given.split() if word.startswith("-")]
        message = f"{told}unknown: {' '.join(names)}" if given else message.partition(" (choose")[0]
        message = re.sub(r"=\S*|'[^']*'", "…", message)
        self.exit(2, f"{self.prog.partition(' ')[0]}: {message}\n")


def integer(low, high):
    """Give a parser of whole numbers from `low` to `high`."""
    return partial(whole_number, low=low, high=high)


def one_of(*choices):
    """Give a parser that takes one of a few words."""

    def parse(text):
        if text not in choices:
            raise ValueError("must be one of " + ", ".join(choices))
        return text

    return parse


def origins(text):
    """Parse origins (RFC 6454) that commas divide, ``*`` among them for any."""
    found = tuple(part.strip() for part in text.split(","))
    if not all(map(ORIGIN.fullmatch, found)):
        raise ValueError("must be origins like https://dealer.example, divided by commas")
    return found


def address(text):
    """Parse the address of a host, or ``*`` for any, as it is written in general."""
    try:
        return text if text == "*" else str(ip_address(text))
    except ValueError:
        raise ValueError("must be an IP address or *") from None
