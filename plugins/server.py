"""Serve a WSGI application with waitress, so that no client keeps the others waiting.

- *Lanes*: long work has threads and a queue of its own; what waited there for longer than its `Lane` allows is refused.
- A body that is too large, or that ``admits(environ)`` does not want, is answered before it is read: the application
  finds an empty ``wsgi.input``, the announced ``CONTENT_LENGTH`` and ``environ["server.unread"]``.
- What the server itself refuses, the application words: it is called with ``environ["server.error"]``, a pair of status
  and sentence. So all errors look alike, and are logged in one place.
- Idle, slow and stalled clients cost a file descriptor and no thread, and that not for long.
- SIGTERM and SIGINT end it gracefully: no new connections, answers in hand are finished whole.

::

    passwords = Lane(threads=1, patience=5, refusal="Too many logins wait. Try again later")
    serve(app, host="::1", port=8080, lanes={None: Lane(4), "passwords": passwords}, lane_of=lane_of)

As in waitress, only the thread that calls `serve` reads, parses and closes; workers answer.
"""

import logging
import re
import select
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from errno import EADDRNOTAVAIL, EAFNOSUPPORT
from functools import partial
from io import BytesIO

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.utilities import BadRequest, Error

try:
    import resource
except ImportError:  # Windows
    resource = None

log = logging.getLogger("dealer.server")

BODY, UNASKED = 2**20, 2**16  # bytes of a body without ``limit_of``, and of one that is read without asking ``admits``
HEADERS, CHUNK_LINES = 2**18, 2**13  # bytes of all headers, and of a line between chunks
OUTPUT, SENT_AT_ONCE = 2**20, 2**16  # bytes of output in memory, and of one attempt to send
HEAD_SECONDS, BODY_SECONDS = 30, 300  # for the headers, and for a whole request, from its first byte
IDLE_SECONDS = 60  # without a byte in either direction
LINGER_SECONDS, LINGER_IDLE = 30, 2  # for reading to no purpose after an early answer: at most, and without a byte
CHUNKED_TURN = 2**10  # bytes of a body in chunks that are parsed before the others' turn
LAST_CALL = 0.2  # seconds after a signal in which is read what was sent before anyone could know

# Fixed, because waitress' own sentences repeat the input.
SENTENCES = {
    400: "Bad HTTP request",
    431: f"Headers are larger than {HEADERS} bytes",
    500: "Internal server error",
    501: "Transfer-Encoding is not supported",
}
LAST_WORDS = b'{"Error": "Internal server error"}'
# A control character, a CR or LF alone, a folded line: RFC 9112 forbids them, and readers differ about them.
MALFORMED = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\n(?<!\r\n)|\r(?!\n|\Z)|\n[ \t]")
EMPTY_LINES = re.compile(rb"(?:\r\n)*")
CODING = re.compile(rb"\r\ntransfer-encoding:([^\r\n]*)", re.IGNORECASE)
HOST = re.compile(r"[\w.~%!$&'()*+;=:\[\]-]*", re.ASCII)


@dataclass(frozen=True)
class Lane:
    """Threads for one kind of work, and how many seconds a request may wait for one of them.

    Without threads the one that reads the request answers it: the quickest way, for what never waits for anything.
    """

    threads: int
    patience: float | None = None
    refusal: str = "Too many requests wait. Try again later"


class Refusal(Error):
    """A failure whose sentence is ours, so that it may be told."""

    def __init__(self, code, sentence):
        super().__init__(sentence)
        self.code = code


class Request(HTTPRequestParser):
    """A request as it comes in: read strictly, and its body only where that is welcome."""

    command, path, query, request_uri, url_scheme = "GET", "/", "", "/", "http"  # where no first line could be read
    lane, queued_at = Lane(0), 0.0
    limit = BODY
    held = None  # what came of the body while it is asked whether that is welcome
    unread = False  # the body stays unread
    awaits_continue = False

    def __init__(self, adj, server):
        super().__init__(adj)
        self.server = server
        self.began = time.time()

    def received(self, data):
        """Take in what belongs to this request; after a failure all there is, since nobody can tell what it was."""
        if self.held is not None:
            self.held += data
            return len(data)
        try:
            consumed = super().received(data)
            self.error = self.error or self.fault_so_far(len(data))
        except OSError as error:  # a large body is kept in a file, for which there may be no room
            log.error("A body could not be kept: %s", error.strerror)
            self.body_rcv, self.error = None, Refusal(503, "No room for a body of this size. Try again later")
        if self.error:
            self.completed = True
        if self.completed:
            self.expect_continue = False  # else waitress asks for a body that will not come, and never answers
        return len(data) if self.error or self.unread else consumed

    def fault_so_far(self, news):
        """Find what would grow without end: headers that are none (TLS, lines that end in LF), an unannounced body."""
        body = self.body_rcv
        if not self.headers_finished and MALFORMED.search(self.header_plus, max(0, len(self.header_plus) - news - 1)):
            return BadRequest("")
        if self.chunked and len(body) + body.chunk_remainder > self.limit:
            return Refusal(413, f"Body is larger than {self.limit} bytes")
        if self.chunked and len(body.control_line) + len(body.trailer) > CHUNK_LINES:
            return BadRequest("")
        return None

    def parse_header(self, head):
        """Read the headers, refuse what a proxy might understand differently (smuggling), and judge the body."""
        try:
            super().parse_header(head)
        except ValueError as error:  # a number of thousands of digits, a "[" without "]"
            raise ParsingError("Unreadable") from error
        if MALFORMED.search(self.first_line) or b"\n " in head or b"\n\t" in head:
            raise ParsingError("Control character or folded line")
        if self.version not in ("1.0", "1.1"):
            raise ParsingError("Unknown version")
        if not HOST.fullmatch(self.headers.get("HOST", "" if self.version == "1.0" else "?")):
            raise ParsingError("Host is missing, repeated or malformed")
        codings = [coding.strip(b" \t") for coding in CODING.findall(head)]
        if codings and (codings != [b"chunked"] or not self.chunked or "CONTENT_LENGTH" in self.headers):
            raise ParsingError("Where the body ends is ambiguous")
        self.path = "/" + self.path.lstrip("/")  # as the application will see it
        if self.chunked or self.content_length:
            self.judge_body()

    def judge_body(self):
        """Leave a body unread that is too large, and hold one back that is not small until it is welcome."""
        self.limit = self.server.limit_of(self.command, self.path)
        if self.content_length > self.limit:
            self.refuse_body()
        elif self.server.admits and (self.chunked or self.content_length > UNASKED or self.limit > BODY):
            self.held = b""
            self.awaits_continue, self.expect_continue = self.expect_continue, False

    def refuse_body(self):
        """Count the request as complete."""
        self.unread = self.completed = True
        self.body_rcv, self.chunked, self.content_length = None, False, 0


@dataclass(frozen=True)
class Question:
    """Asks, as a task in a worker, whether a body is welcome."""

    channel: "Channel"
    request: Request

    def service(self):
        """Ask. Where that fails the body stays unread: the application will find out itself what is wrong."""
        server, welcome = self.channel.server, False
        try:
            environ = AppTask(self.channel, self.request).get_environment()
            welcome = server.admits({**environ, "wsgi.input": BytesIO()})
        except BaseException:  # as in AppTask
            log.exception("Could not find out whether a body is welcome")
        server.trigger.pull_trigger(partial(self.channel.settle, self.request, welcome))

    def cancel(self):
        """Ask nothing: the server ends."""


class AppTask(WSGITask):
    """Runs the application, and a second time to word a failure."""

    def service(self):
        """Answer, whatever the application raises (waitress would drop an OSError, and log the raw path)."""
        try:
            self.start()
            self.execute()
            self.finish()
            self.channel.send_together()
        except ClientDisconnected:
            self.close_on_finish = True
        except BaseException:  # even SystemExit: the connection would stay, unanswered, for ever
            log.exception("The application failed")
            self.close_on_finish = True
            if not self.wrote_header:
                self.answer_failure()

    def execute(self):
        """Run the application, and tell the client where this is the last answer."""
        ending = self.channel.server.stopping and len(self.channel.requests) == 1
        if ending or self.request.unread or self.request.error:
            self.set_close_on_finish()
        super().execute()

    def get_environment(self):
        """Tell the application what went wrong before its time."""
        environ, error = super().get_environment(), self.request.error
        if self.request.unread:
            environ["server.unread"] = True
        if error:
            environ["server.error"] = error.code, SENTENCES.get(error.code, error.body)
            environ["wsgi.input"] = BytesIO()
            environ.pop("CONTENT_LENGTH", None)
        return environ

    def answer_failure(self):
        """Let the application word its failure; should it fail in that too, say the least without it."""
        if not self.request.error:
            self.request.error = Refusal(500, SENTENCES[500])
            AppTask(self.channel, self.request).service()
        else:
            self.status, self.complete, self.content_length = "500 Internal Server Error", True, len(LAST_WORDS)
            self.response_headers = [("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff")]
            self.set_close_on_finish()
            with suppress(ClientDisconnected):
                self.write(b"" if self.request.command == "HEAD" else LAST_WORDS)


class Channel(HTTPChannel):
    """One connection."""

    task_class = error_task_class = AppTask
    paused = False  # nothing is read for now
    lingers = False  # the client may still be sending what will not be read
    postponed = False  # the next request waits until the client has read the last answer
    at_once = False  # the next request is for this thread to answer
    hangup = None  # when lingering ends

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.sendbuf_len = min(self.sendbuf_len, SENT_AT_ONCE)  # waitress copies as much for every attempt

    def parser_class(self, adj):
        """Make the next request (waitress has the class itself here)."""
        return Request(adj, self.server)

    def readable(self):
        """Tell the loop whether to read on: as waitress has it, in one step, for it is asked of each in every turn."""
        return not (
            self.paused or self.will_close or self.close_when_flushed or self.requests or self.total_outbufs_len
        )

    def recv(self, size):
        """Take in little at a time of a body in chunks: those may be of one byte each, and cost the more."""
        return super().recv(min(size, CHUNKED_TURN) if self.request is not None and self.request.chunked else size)

    def received(self, data):
        """Read on, and ask whether a body is welcome before taking in more of it."""
        if self.hangup:
            return False
        if self.request is None:
            data = data[EMPTY_LINES.match(data).end() :]  # RFC 9112 2.2; waitress would make a request of each
        going_on = super().received(data)
        if self.request is not None and self.request.held is not None:
            self.paused = True
            self.server.add_task(Question(self, self.request))
        return going_on

    def settle(self, request, welcome):
        """Go on with a request whose body was held back."""
        if not self.connected:
            return
        self.paused = False
        with self.requests_lock:
            held, request.held = request.held, None
            if not welcome:
                request.refuse_body()
                self.request = None
                self.requests.append(request)
                if len(self.requests) == 1:
                    self.server.add_task(self)
                return
            request.expect_continue = request.awaits_continue and not held
            if request.expect_continue and not self.requests:
                self.send_continue()
        self.received(held)

    def writable(self):
        """Tell the loop whether to write, or to look whether the next request's turn has come."""
        return self.total_outbufs_len or self.will_close or self.close_when_flushed or self.postponed or self.at_once

    def handle_read(self):
        """Read, and answer what needs no worker."""
        super().handle_read()
        self.answer_at_once()

    def handle_write(self):
        """Write, and go on with the next request once little is left to write."""
        super().handle_write()
        if self.postponed and self.connected and self.total_outbufs_len <= OUTPUT:
            self.postponed = False
            self.server.add_task(self)
        self.answer_at_once()

    def answer_at_once(self):
        """Answer one request that needs no worker; the next one of this client has to wait for its turn."""
        if self.at_once:
            self.at_once = False
            self.service()

    def write_soon(self, data):
        """Send, or keep for sending; begin a new buffer in time, for those in memory keep what was sent, too."""
        if self.current_outbuf_count > OUTPUT and not self.outbufs[-1].overflowed:
            self.current_outbuf_count = self.adj.outbuf_high_watermark
        return super().write_soon(data)

    def send_together(self):
        """Send what was kept, head and body of a small answer at once, while the request is still in hand."""
        with self.outbuf_lock:
            if self.connected and self.total_outbufs_len:
                self._flush_exception(self._flush_some, do_close=False)

    def service(self):
        """Answer the request whose turn it is, unless that took too long to come."""
        request = self.requests[0]
        lane = request.lane
        if lane.patience is not None and time.monotonic() - request.queued_at > lane.patience:
            request.error = Refusal(503, lane.refusal)
        self.lingers = bool(request.unread or request.error)
        super().service()

    def handle_close(self):
        """Close; after an early answer only half at first, and read on to no purpose (RFC 9112 9.6).

        Closing would reset the connection, and a client that is still sending might never see the answer.
        """
        if self.lingers and self.will_close and self.connected:
            self.lingers = self.will_close = False
            self.hangup = time.time() + LINGER_SECONDS
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
                return
        super().handle_close()

    def handle_expt(self):
        """Hang up on urgent data: HTTP has none, and the loop would report it without end."""
        super().handle_close()

    def overdue(self):
        """Tell whether this client takes too long to send, to read or to hang up."""
        now = time.time()
        idle = now - self.last_activity
        if self.requests and not (self.postponed or self.at_once):
            return False
        if self.hangup:
            return now > self.hangup or idle > LINGER_IDLE
        seconds = BODY_SECONDS if self.request and self.request.headers_finished else HEAD_SECONDS
        return idle > IDLE_SECONDS or (self.request is not None and now - self.request.began > seconds)

    def done(self):
        """Tell whether nothing is left to do for this client. Requests come first: they end after their output."""
        return self.overdue() or not (self.requests or self.total_outbufs_len or self.close_when_flushed or self.hangup)


class Queue(ThreadedTaskDispatcher):
    """The queue and the threads of one lane."""

    logger = log

    def add_task(self, task):
        """Queue a task; waitress would log a warning whenever one has to wait."""
        with self.lock:
            self.queue.append(task)
            self.queue_cv.notify()


class Lanes:
    """The lanes, behind the interface of waitress' one queue."""

    def __init__(self, lanes, lane_of):
        self.lanes, self.lane_of = lanes, lane_of
        self.queues = {name: Queue() for name in lanes}
        for name, lane in lanes.items():
            self.queues[name].set_thread_count(lane.threads)

    def add_task(self, task):
        """Queue a channel by the request whose turn it is; early answers and questions need no lane.

        Who sends requests without reading the answers gets no further ones: they would pile up.
        """
        if isinstance(task, Channel) and task.total_outbufs_len > OUTPUT:
            task.postponed = True
            return
        name, request = None, task.requests[0] if isinstance(task, Channel) else None
        if request and not request.error:
            name = self.lane_of(AppTask(task, request).get_environment())
            request.lane, request.queued_at = self.lanes[name], time.monotonic()
            task.at_once = not request.lane.threads
        if not (request and task.at_once):
            self.queues[name].add_task(task)

    def shutdown(self):
        """End the threads that are idle; tell whether those were all."""
        deadline = time.time() + 0.3
        for queue in self.queues.values():
            queue.set_thread_count(0)
        for queue in self.queues.values():
            queue.shutdown(timeout=deadline - time.time())
        return not any(queue.threads for queue in self.queues.values())


class Server(TcpWSGIServer):
    """Listens on one address."""

    channel_class = Channel
    stopping = False

    def __init__(self, app, polled, sock, lanes, adjustments, limit_of, admits):
        where = (sock.family, sock.type, sock.proto, sock.getsockname())
        super().__init__(app, polled, True, sock, lanes, adjustments, where, bind_socket=False)
        self.limit_of, self.admits = limit_of, admits
        self.loop = threading.get_ident()

    def pull_trigger(self):
        """Wake the loop, unless it is awake because it calls this itself."""
        if threading.get_ident() != self.loop:
            super().pull_trigger()

    def maintenance(self, now):
        """Have overdue connections closed: not here, while the loop collects what to wait for, but in a moment.

        (waitress marks them, and closes them when they can be written to, which a stalled reader never can.)
        """
        self.trigger.pull_trigger(self.close_channels)

    def close_channels(self, ended=Channel.overdue):
        """Close the connections that have ended; count the rest."""
        for channel in list(self.active_channels.values()):
            if ended(channel):
                channel.handle_close()
        return len(self.active_channels)

    def stop_listening(self):
        """Refuse new connections. The trigger stays open, for the workers pull it."""
        self.stopping = True
        wasyncore.dispatcher.close(self)


def serve(app, *, host, port, lanes, lane_of=None, limit_of=None, admits=None, grace=9.0, ready=None) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was begun, in ``grace`` seconds; a second signal cuts that short.

    ``lane_of(environ)`` names one of ``lanes``; the one named None is for all other work, which includes
    asking ``admits(environ)`` before a body that is not small is read. ``limit_of(method, path)`` gives the largest in
    bytes. ``ready(address)`` is called once. Raises OSError where it cannot listen.
    """
    sockets = listen(host, port)
    adjustments = adjust(sockets, host)
    polled = {}
    workers = Lanes(lanes, lane_of or (lambda environ: None))
    limit_of = limit_of or (lambda method, path: BODY)
    servers = [Server(app, polled, sock, workers, adjustments, limit_of, admits) for sock in sockets]
    with stop_signals(servers[0].trigger.pull_trigger) as signals:
        try:
            if ready:
                ready(address_of(sockets[0]))
            while not signals:
                poll(1, map=polled)
            finish(servers, polled, signals, grace)
        finally:
            for server in servers:
                server.close_channels(lambda channel: True)
            # A thread that still runs may pull a trigger, whose file descriptor must not have become something else.
            if workers.shutdown():
                wasyncore.close_all(polled)


poll = partial(wasyncore.loop, use_poll=True, count=1)  # select could not go beyond 1,024 connections


def finish(servers, polled, signals, grace):
    """Go on until all requests that came have their answers, or time is up."""
    begun = time.monotonic()
    for server in servers:
        server.stop_listening()
    while time.monotonic() < begun + LAST_CALL:
        poll(LAST_CALL / 4, map=polled)
    while sum(server.close_channels(Channel.done) for server in servers):
        if len(signals) > 1 or time.monotonic() > begun + grace:
            log.warning("Stopped before all answers were finished")
            return
        poll(0.1, map=polled)


def listen(host, port):
    """Bind each address of the host, but those of a protocol that this machine has not."""
    sockets, missing = [], None
    with ExitStack() as bound:
        for family, _, _, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE):
            try:
                sockets.append(bound.enter_context(socket.create_server(address, family=family)))
            except OSError as error:
                if error.errno not in (EADDRNOTAVAIL, EAFNOSUPPORT):
                    raise
                missing = error
        bound.pop_all()
    if missing and not sockets:
        raise missing
    return sockets


def address_of(sock):
    """Write an address as URLs do."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def adjust(sockets, host):
    """Give waitress' settings."""
    return Adjustments(
        sockets=sockets,
        server_name=host,
        ident=None,
        connection_limit=connection_limit(),
        cleanup_interval=1,  # how often `Server.maintenance` runs
        recv_bytes=2**12,  # the most of one client's bytes that are parsed before the others' turn
        max_request_header_size=HEADERS,
        max_request_body_size=2**62,  # measured by `Request` instead
        outbuf_overflow=OUTPUT,
        send_bytes=2**14,  # what is less is sent when the answer is whole
        outbuf_high_watermark=2**40,  # no worker waits for a slow reader: what is not yet read goes to a file
        clear_untrusted_proxy_headers=False,
        log_socket_errors=False,
    )


def connection_limit():
    """Raise the limit on open files, and give how many connections fit with as many files that they spill into."""
    if resource is None or not hasattr(select, "poll"):
        return 500  # what select takes on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return min(4096, files // 2)


@contextmanager
def stop_signals(wake):
    """Give a list that grows with each SIGTERM and SIGINT; threads other than the main one cannot hear them."""
    signals = []

    def hear(number, frame):
        signals.append(number)
        with suppress(OSError):
            wake()

    heard = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, hear) for number in heard}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
