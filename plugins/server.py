"""Serve a WSGI application with waitress, so that no client keeps the others waiting.

Each kind of work has threads and a queue of its own, a `Lane`. Idle, slow and stalled clients cost a file descriptor
and no thread, and that not for long (`Limits`). A body that is too large, or that ``admits(environ)`` does not want, is
answered before it is read: the application finds an empty ``wsgi.input``, the announced ``CONTENT_LENGTH`` and
``environ["server.unread"]``. What the server refuses, the application words: it is called with a pair of status and
sentence, ``environ["server.error"]``. ``environ["server.waiting"]()`` counts the requests that wait, by lane.

The life of a connection, a `Channel`. Workers make the moves that are marked (w), all others the `Loop`, in one thread:

- *reading*: ``request`` is what has come of the next one. Whole, refused, or too slow (`Channel.tend`): → waiting.
  Nothing comes: → closed.
- *waiting*: ``requests`` begins with it; a lane's queue has the channel, or `Loop.own`, where the loop is to answer
  (`Loop.add_task`). Its turn comes (w), or its patience ends, and the loop refuses it (`Loop.tend`): → answering.
- *answering*: ``outbufs`` keeps what its client has not taken. Done (w): → waiting, where the next request came along.
  All is sent: → reading, or → lingering, where it was the last. More than `Limits.output` lies here for all clients
  together, and this one took nothing for longest: → closed (`Loop.make_room`).
- *lingering*: it has said that nothing follows, and reads on to no purpose, until ``hangup`` or the client closes, too.

A connection that is closed with an answer in hand is reset, so that no client takes a part for the whole. What is used
of waitress beyond its documentation is listed, and pinned, in ``test_server.py``.
"""

import logging
import re
import resource
import signal
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from math import inf

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.utilities import Error

log = logging.getLogger("dealer.server")

HEADERS, CHUNK_LINES = 2**15, 2**13  # bytes of all headers (repeated ones cost the square), and of lines between chunks
MEMORY, FILE = 2**20, 2**23  # bytes of output after which a buffer becomes a file, and after which another one is begun
SENTENCES = {  # in the place of waitress' own, which repeat the input
    400: "Bad HTTP request",
    431: f"Headers are larger than {HEADERS} bytes",
    500: "Internal server error",
    501: "Transfer-Encoding is not supported",
}
CODING = re.compile(rb"\r\ntransfer-encoding:([^\r\n]*)", re.IGNORECASE)
AMBIGUOUS = re.compile(rb"\n[ \t]|\A[^\n]*[\x00-\x09\x0b\x0c\x0e-\x1f\x7f]")  # folded lines; control in the first
HOST = re.compile(r"[\w.~%!$&'()*+;=:\[\]-]*", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """How long, in seconds, and for how many bytes clients are borne with."""

    idle: float = 60  # without a byte in either direction
    head: float = 30  # from the first byte of a request to the end of its headers
    body: float = 60  # to the end of its body, and more for what has come of that, at `pace` bytes a second
    pace: int = 2**12
    linger: float = 30  # reading to no purpose, and
    linger_idle: float = 2  # without a byte
    output: int = 2**28  # of answers that clients have not taken yet, all together, in memory and on disk
    grace: float = 9  # for what is in hand after a signal
    last_call: float = 0.2  # then, for what was sent before anyone could know
    tick: float = 1  # how often those that wait are looked after


@dataclass(frozen=True)
class Lane:
    """Threads for one kind of work, and how many seconds a request may wait for one of them."""

    threads: int  # without any the loop answers: the quickest way, for what never waits for anything
    patience: float = inf
    refusal: str = "Too many requests wait. Try again later"


class Request(HTTPRequestParser):
    """A request as it comes in: read strictly, and its body only where that is welcome."""

    command, path, query, request_uri, url_scheme = "GET", "/", "", "/", "http"  # where no first line could be read
    began = lane = environ = None
    deadline = inf  # by the monotonic clock, for its turn to come
    unread = False  # the body stays unread

    def __init__(self, adj, channel):
        super().__init__(adj)
        self.channel = channel

    def refuse(self, code, sentence=""):
        """Let a failure be answered; its sentence is told, if it is not one of `SENTENCES`."""
        self.error, self.completed = Error(sentence), True
        self.error.code = code

    def received(self, data):
        """Take in what belongs to this request; after a failure all there is, since nobody can tell what it was."""
        rest = data if self.began else data.lstrip(b"\r\n")  # RFC 9112 2.2; waitress makes a request of each empty line
        if not rest:
            return len(data)
        if not (self.began or rest[:1].isalpha()):  # no method: TLS, which would wait for an answer as we for the rest
            self.refuse(400)
        self.began = self.began or time.time()
        try:
            consumed = super().received(rest)
        except OSError as error:  # a large body is kept in a file, for which there may be no room
            log.error("A body could not be kept: %s", error.strerror)
            self.body_rcv = None
            self.refuse(503, "No room for a body of this size. Try again later")
        body = self.body_rcv
        if not self.error and self.chunked:  # whose length nobody announced, and whose lines would grow without end
            if len(body) + body.chunk_remainder > self.limit:
                self.refuse(413, f"Body is larger than {self.limit} bytes")
            elif len(body.control_line) + len(body.trailer) > CHUNK_LINES:
                self.refuse(400)
        self.expect_continue &= not self.completed  # waitress would ask for a body that will not come
        return len(data) if self.error or self.unread else len(data) - len(rest) + consumed

    def parse_header(self, head):
        """Read the headers, refuse what a proxy might understand differently (smuggling), and judge the body.

        RFC 9112: 2.2 and 5.2 (control characters, folded lines), 2.3 (versions), 3.2 (Host), 6.3 (length of a body).
        """
        try:
            super().parse_header(head)
        except ValueError as error:  # a number of thousands of digits, a "[" without "]"
            raise ParsingError("Unreadable") from error
        codings = [coding.strip(b" \t").lower() for coding in CODING.findall(head)]
        host = self.headers.get("HOST", "" if self.version == "1.0" else "?")
        if AMBIGUOUS.search(head) or self.version not in ("1.0", "1.1") or not HOST.fullmatch(host):
            raise ParsingError("Ambiguous")
        if codings and (codings != [b"chunked"] or not self.chunked or "CONTENT_LENGTH" in self.headers):
            raise ParsingError("Where the body ends is ambiguous")
        if self.chunked or self.content_length:
            environ, loop = WSGITask(self.channel, self).get_environment(), self.channel.server.loop
            self.limit = loop.limit_of(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            self.unread = self.content_length > self.limit or not loop.admits(environ)
        if self.unread:
            self.body_rcv, self.chunked, self.content_length = None, False, 0


class AppTask(WSGITask):
    """Runs the application, also to word a failure."""

    def get_environment(self):
        """Tell the application what went wrong before its time."""
        request, error = self.request, self.request.error
        if request.environ is None:
            extra = {"server.waiting": self.channel.server.loop.waiting, "server.unread": request.unread}
            request.environ = super().get_environment() | extra
        if error:
            request.environ["server.error"] = error.code, SENTENCES.get(error.code, error.body)
        return request.environ

    def build_response_header(self):
        """Keep the connection where the end of the answer is plain without a length: a 304, chunks (RFC 9112 6.3)."""
        asked = self.request.headers.get("CONNECTION", "").lower()
        last = self.close_on_finish or self.version == "1.0" or asked == "close"
        header = super().build_response_header()
        if last:
            return header
        self.close_on_finish = False
        return header.replace(b"\r\nConnection: close", b"", 1)

    def finish(self):
        """End the answer; that to a HEAD has no body, so no last chunk either (RFC 9110 9.3.2)."""
        if self.request.command == "HEAD":
            self.write(b"")
        else:
            super().finish()


class Channel(HTTPChannel):
    """One connection; see the life of one above."""

    task_class = error_task_class = AppTask
    hangup = None

    def parser_class(self, adj):
        """Make the next request (waitress has the class itself here)."""
        return Request(adj, self)

    def received(self, data):
        """Read on, unless that is to no purpose."""
        return not self.hangup and super().received(data)

    def service(self):
        """Answer the request whose turn it is, unless that took too long to come.

        It is the last one where the server ends, where nobody knows what follows, and for a client that sends requests
        without reading the answers, which would pile up.
        """
        request = self.requests[0]
        if time.monotonic() > request.deadline:
            request.refuse(503, request.lane.refusal)
        ending = self.server.loop.signals and len(self.requests) == 1
        if ending or request.error or request.unread or self.total_outbufs_len > MEMORY:
            request.headers["CONNECTION"] = "close"
        super().service()

    def write_soon(self, data):
        """Send, or keep for sending; begin a new buffer in time, for each keeps what was sent, too."""
        if self.current_outbuf_count > (FILE if self.outbufs[-1].overflowed else MEMORY):
            self.current_outbuf_count = self.adj.outbuf_high_watermark
            self.server.loop.make_room()
        return super().write_soon(data)

    def handle_close(self):
        """Close; after the last answer only half at first, and read on to no purpose (RFC 9112 9.6).

        Closing would reset the connection, and a client that is still sending might never see the answer.
        """
        if self.will_close and self.connected and not (self.requests or self.hangup):
            self.will_close, self.hangup = False, time.time() + self.server.loop.limits.linger
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
                return
        if self.socket and (self.requests or self.total_outbufs_len):
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        super().handle_close()

    def handle_expt(self):
        """Hang up on urgent data: HTTP has none, and the loop would report it without end."""
        super().handle_close()

    def tend(self, now, limits):
        """Close the connection of a client that takes too long to send, to read or to hang up."""
        request, idle = self.request, now - self.last_activity
        begun = request and request.began and not self.hangup
        over = idle > (limits.linger_idle if self.hangup else limits.idle) or now > (self.hangup or now)
        if begun and not self.total_outbufs_len:  # nothing is read while an answer waits for its client
            more = limits.body + request.body_bytes_received / limits.pace if request.headers_finished else limits.head
            over = over or now > request.began + more
        if over and begun and not self.requests:
            request.refuse(408, "Request came too slowly")
            self.request, self.requests = None, [request]
            self.server.loop.add_task(self)
        elif over and not self.requests:
            self.handle_close()


class Loop:
    """Moves all connections; behind the interface of waitress' queue, the queues of the lanes."""

    def __init__(self, lanes, lane_of, limit_of, admits, limits):
        self.lanes, self.lane_of, self.limit_of, self.admits, self.limits = lanes, lane_of, limit_of, admits, limits
        self.own, self.polled, self.servers, self.signals, self.tended = deque(), {}, [], [], 0.0
        self.queues = {name: ThreadedTaskDispatcher() for name, lane in lanes.items() if lane.threads}
        for name, queue in self.queues.items():
            queue.set_thread_count(lanes[name].threads)

    def add_task(self, channel):
        """Queue a channel by the request whose turn it is; a failure, which asks nobody, is for the loop."""
        request, queue = channel.requests[0], None
        if not request.error:
            name = self.lane_of(AppTask(channel, request).get_environment())
            queue, request.lane = self.queues.get(name), self.lanes[name]
            request.deadline = time.monotonic() + request.lane.patience
        (queue.add_task if queue else self.own.append)(channel)

    def waiting(self):
        """Give how many requests wait in each lane, by name."""
        return {name: len(queue.queue) for name, queue in self.queues.items()}

    def run(self):
        """Serve until a signal comes, then finish what was begun until all have their answers, or time is up."""
        while not self.signals:
            self.turn(self.limits.tick)
        called, end = time.monotonic() + self.limits.last_call, time.monotonic() + self.limits.grace
        for server in self.servers:
            wasyncore.dispatcher.close(server)  # the trigger stays open, for the workers pull it
        while (channels := self.channels()) and len(self.signals) == 1 and time.monotonic() < end:
            for channel in channels if time.monotonic() > called else ():
                # requests come first: they end after their output
                if not (channel.requests or channel.total_outbufs_len or channel.close_when_flushed or channel.hangup):
                    channel.handle_close()
            self.turn(0.05)
        for channel in channels:
            log.warning("Stopped before an answer was finished")
            channel.handle_close()

    def turn(self, seconds):
        """Wait until something happens and let it; what comes meanwhile has to wait until others had their turn."""
        wasyncore.loop(0 if self.own else seconds, use_poll=True, map=self.polled, count=1)  # select ends at 1,024
        for _ in range(len(self.own)):
            channel = self.own.popleft()
            try:
                channel.service()
                if channel.connected:
                    channel.handle_write()
            except Exception:
                channel.handle_error()
        if time.monotonic() >= self.tended + self.limits.tick:
            self.tended = time.monotonic()
            self.tend()

    def tend(self):
        """Look after those that wait: for their turn, where a lane may hang as a whole, and for their clients."""
        for queue in self.queues.values():
            with queue.lock:
                while queue.queue and time.monotonic() > queue.queue[0].requests[0].deadline:
                    self.own.append(queue.queue.popleft())
        for channel in self.channels():
            channel.tend(time.time(), self.limits)
        self.make_room()

    def make_room(self):
        """Close the connection of who took nothing for longest, while too much waits for all clients together."""
        waiting = [channel for channel in self.channels() if channel.total_outbufs_len]
        excess = sum(channel.total_outbufs_len for channel in waiting) - self.limits.output
        for channel in sorted(waiting, key=lambda channel: channel.last_activity):
            if excess > 0:
                excess -= channel.total_outbufs_len
                log.warning("An answer was given up: its client was slow to take it, and too much waits for such")
                self.servers[0].trigger.pull_trigger(channel.handle_close)

    def channels(self):
        """Give all connections."""
        return [channel for channel in list(self.polled.values()) if isinstance(channel, Channel)]


def serve(app, *, host, port, lanes, lane_of, limit_of, admits, ready=print, limits=None):
    """Serve until SIGTERM or SIGINT, then finish what was begun; a second signal cuts that short.

    ``lane_of(environ)`` names one of ``lanes``, ``limit_of(method, path)`` gives the bytes that a body may have,
    ``admits(environ)``, which must not wait, whether one is welcome. ``ready(address)`` is called once. Raises OSError.
    """
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns whenever a request has to wait (#231)
    loop = Loop(lanes, lane_of, limit_of, admits, limits or Limits())
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = 8192 if most == resource.RLIM_INFINITY else min(most, 8192)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    adjustments = Adjustments(
        server_name=host,
        ident=None,
        connection_limit=files // 2,  # as many may spill into files
        channel_timeout=2**31,  # `Channel.tend` closes instead, and stalled readers too (#267)
        recv_bytes=2**12,  # the most of one client's bytes that are parsed before the others' turn
        max_request_header_size=HEADERS,
        max_request_body_size=2**62,  # measured by `Request` instead
        outbuf_overflow=MEMORY,
        outbuf_high_watermark=2**40,  # no worker waits for a slow reader (#67, #242); `Limits.output` bounds it instead
        clear_untrusted_proxy_headers=False,
        log_socket_errors=False,
    )
    adjustments.send_bytes = 2**14  # less is sent when the answer is whole; given above, waitress would warn
    passive = socket.AI_PASSIVE | socket.AI_ADDRCONFIG  # each address of the host, of protocols that this machine has
    for family, *_, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, passive):
        sock = socket.create_server(address, family=family)
        where = (sock.family, sock.type, sock.proto, sock.getsockname())
        server = TcpWSGIServer(app, loop.polled, True, sock, loop, adjustments, where, bind_socket=False)
        server.channel_class, server.loop = Channel, loop
        loop.servers.append(server)

    def hear(number, frame):
        loop.signals.append(number)
        server.pull_trigger()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hear)
    address, port = loop.servers[0].effective_host, loop.servers[0].effective_port
    ready(f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}")
    loop.run()
