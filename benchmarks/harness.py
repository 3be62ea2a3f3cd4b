"""Starts the contestants of the benchmarks, each in its own process with its own database, and measures them.

Only the standard library and `wrk` are used here; what a contestant needs is installed into an environment of its own.
"""

import hashlib
import http.client
import json
import os
import platform
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = Path(tempfile.gettempdir()) / "dealer-benchmarks"
ACCOUNT = {"username": "benchmark", "password": "measured fairly"}
SETTINGS = {
    "JWT_SECRET": "a secret of the benchmark, longer than 32 bytes",
    "JWT_TTL": "86400",
    "DJANGO_SETTINGS_MODULE": "django_peer.settings",
}
CONNECTIONS = 16
STOCK = 1000
CAR_BODY = '{"max_speed": {n}, "distance": {n}, "handler": "Auto Motors", "stock": "Germany"}'


@dataclass(frozen=True)
class Contestant:
    """How one of the servers is started; `{python}` and `{port}` are filled in."""

    name: str
    command: str
    folder: Path = HERE / "peers"
    requirements: Path = HERE / "requirements.txt"
    prepare: str = ""


PROJECT = Contestant(
    "This project",
    "{python} dealer.py --host 127.0.0.1 --port {port}",
    folder=ROOT,
    requirements=ROOT / "requirements.txt",
)
FLASK = Contestant(
    "Flask-RESTful, waitress",
    "{python} -m waitress --listen=127.0.0.1:{port} --threads=4 flask_app:app",
)
FASTAPI = Contestant(
    "FastAPI, uvicorn",
    "{python} -m uvicorn fastapi_app:app --port {port} --no-access-log",
)
DJANGO = Contestant(
    "Django REST Framework, gunicorn",
    "{python} -m gunicorn --bind 127.0.0.1:{port} --threads 4 --no-control-socket "
    "django.core.wsgi:get_wsgi_application()",
    prepare="{python} -m django migrate --run-syncdb --verbosity 0",
)
BARE = Contestant(
    "waitress alone",
    "{python} -m waitress --listen=127.0.0.1:{port} --threads=4 bare:app",
)
PEERS = (FLASK, FASTAPI, DJANGO)


class BenchmarkError(Exception):
    """Something answered otherwise than the benchmark needs, so no figure of it would mean anything."""


def cars(prefix, count, first=1):
    """Make cars with marks `<prefix>-000001` and on; as in a real stock, values repeat."""
    makers = ("Auto Motors", "Nordic Cars", "Piccolo Automobili")
    lands = ("Germany", "Sweden", "Italy")
    return [
        {
            "mark": f"{prefix}-{n:06d}",
            "max_speed": 100 + n * 7 % 300,
            "distance": n * 7919 % 1_000_003,
            "handler": makers[n % 3],
            "stock": lands[n % 3],
        }
        for n in range(first, first + count)
    ]


def environment(requirements):
    """Return the Python of a virtual environment that has these requirements, made on first use."""
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = CACHE / f"venv-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {requirements.relative_to(ROOT)} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", "-r", requirements], check=True)
        (folder / "complete").touch()
    return python


def free_port():
    """Return a port that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class SQLite:
    """Databases in files."""

    def url(self, folder):
        """Return the URL of the database of a contestant, whose files are in `folder`."""
        return f"sqlite:///{folder.resolve()}/cars.db"

    def copy(self, source, target):
        """Copy the folder of a contestant that does not run, with its database."""
        shutil.copytree(source, target)

    def remove(self, folder):
        """Remove a folder with the database in it."""
        shutil.rmtree(folder)


class PostgreSQL:
    """Databases of one server, made and removed with its own commands."""

    def __init__(self, url):
        """Take the URL of the server, without a database."""
        self.server = url.rstrip("/")

    def url(self, folder):
        """Return the URL of the database of a contestant, which is made on the first use of `folder`."""
        if not folder.exists():
            self.run(f'CREATE DATABASE "{self.name(folder)}"')
        return f"{self.server}/{self.name(folder)}"

    def copy(self, source, target):
        """Copy the folder of a contestant that does not run, with its database."""
        self.run(f'CREATE DATABASE "{self.name(target)}" TEMPLATE "{self.name(source)}"', "CHECKPOINT")
        shutil.copytree(source, target)

    def remove(self, folder):
        """Remove a folder with the database of its name."""
        self.run(f'DROP DATABASE "{self.name(folder)}" WITH (FORCE)')
        shutil.rmtree(folder)

    def name(self, folder):
        """Return the name of the database of a folder."""
        return "benchmark_" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]

    def run(self, *statements):
        """Run statements, each by itself."""
        options = [option for statement in statements for option in ("-c", statement)]
        subprocess.run(["psql", "-q", "-v", "ON_ERROR_STOP=1", f"{self.server}/postgres", *options], check=True)


class Server:
    """One contestant over the database of `folder`, in one process or several, which share that and the load."""

    def __init__(self, contestant, folder, token="", store=None, processes=1):
        self.contestant = contestant
        self.folder = folder
        self.token = token
        self.ports = [free_port() for _ in range(processes)]
        self.port = self.ports[0]
        store = store or SQLite()
        self.environ = os.environ | SETTINGS | {"DATABASE_URL": store.url(folder)}
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_error):
        self.stop()

    def command(self, template, port=None):
        """Fill in a command of the contestant."""
        python = environment(self.contestant.requirements)
        return [part.format(python=python, port=port) for part in template.split()]

    def prepare(self):
        """Run what a contestant wants done before its first start."""
        if self.contestant.prepare:
            command = self.command(self.contestant.prepare)
            subprocess.run(command, cwd=self.contestant.folder, env=self.environ, check=True)

    def start(self):
        """Start the processes and return the seconds until the first one gave its first answer."""
        self.processes = []
        times = [self.start_one(port) for port in self.ports]
        self.process = self.processes[0]
        return times[0]

    def start_one(self, port):
        """Start a process and return the seconds until it gave its first answer."""
        command = self.command(self.contestant.command, port)
        with open(self.folder / "log", "ab") as log:
            begin = time.perf_counter()
            process = subprocess.Popen(command, cwd=self.contestant.folder, env=self.environ, stdout=log, stderr=log)
        self.processes.append(process)
        while not self.answers(port):
            if process.poll() is not None or time.perf_counter() - begin > 60:
                raise BenchmarkError(f"{self.contestant.name} does not start: {self.last_words()}")
            time.sleep(0.002)
        return time.perf_counter() - begin

    def last_words(self):
        """Return the end of the log."""
        return (self.folder / "log").read_text()[-2000:]

    def answers(self, port):
        """Tell whether a process answers already."""
        try:
            return bool(self.request("GET", "/auto/car-000001", port=port))
        except (ConnectionError, http.client.HTTPException):
            return False

    def stop(self):
        """End the processes as an operator would."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise BenchmarkError(f"{self.contestant.name} does not stop") from None

    def connect(self, port=None):
        """Return a connection to the server."""
        return http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=120)

    def headers(self, **more):
        """Return the headers of a request, the token among them once there is one."""
        token = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return {"Content-Type": "application/json", **token, **more}

    def request(self, method, path, body=None, port=None):
        """Send one request over a connection of its own; return status, headers and body."""
        with closing(self.connect(port)) as connection:
            connection.request(method, path, body, self.headers())
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def expect(self, status, method, path, body=None):
        """Send one request and return the value it is answered with; any other status is an error."""
        got, _headers, content = self.request(method, path, body)
        if got != status:
            raise BenchmarkError(f"{self.contestant.name}: {method} {path} gave {got}: {content[:200]!r}")
        return json.loads(content)

    def log_in(self):
        """Register the benchmark's account and get its token."""
        self.expect(201, "POST", "/register", json.dumps(ACCOUNT))
        answer = self.expect(200, "POST", "/auth", json.dumps(ACCOUNT))
        self.token = answer.get("access_token") or answer["access"]

    def load(self, method, path, seconds, order="random", number=STOCK, body=None, following=None):
        """Let a wrk for each process send such requests for some seconds; return how many a second were answered."""
        arguments = [method, path, self.token or "none", order]
        parts = [str(part) for part in (body, following) if part]
        options = [
            "-t2",
            f"-c{CONNECTIONS // len(self.ports)}",
            f"-d{seconds}s",
            "--timeout",
            "60s",
            "-s",
            HERE / "load.lua",
        ]
        loads = []
        for index, port in enumerate(self.ports):
            first = str(number + index * 10_000_000 if order == "growing" else number)
            command = ["wrk", *options, f"http://127.0.0.1:{port}", "--", *arguments, first, *parts]
            loads.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return sum(self.rate(load, f"{method} {path}") for load in loads)

    def rate(self, load, what):
        """Return how many requests a second a wrk that has been started got answered."""
        output, _ = load.communicate()
        requests, microseconds, _latency, errors = map(
            int, re.search(r"^RESULT (.*)$", output, re.MULTILINE)[1].split()
        )
        if errors or not requests:
            raise BenchmarkError(f"{self.contestant.name}: {what}: {errors} errors in {requests} requests")
        return requests / microseconds * 1e6

    def memory(self):
        """Return the MiB held by the processes and their children; pages that a fork shares are counted once."""
        processes = [pid for process in self.processes for pid in family(process.pid)]
        anonymous = sum(kibibytes(pid, "smaps_rollup", "Pss_Anon") for pid in processes)
        return (anonymous + max(kibibytes(pid, "status", "RssFile") for pid in processes)) / 1024


def family(pid):
    """Yield a process id and those of all its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def kibibytes(pid, file, field):
    """Read one amount of memory from /proc."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)[1])


def seeded(contestant, folder, *uploads, store=None):
    """Make a database with an account and these cars through the contestant itself; return a token for it."""
    server = Server(contestant, folder, store=store)
    server.prepare()
    with server:
        server.log_in()
        for upload in uploads:
            server.expect(201, "POST", "/stock", json.dumps(upload))
    return server.token


def require_tools():
    """End with a clear sentence where wrk or /proc is missing."""
    if not shutil.which("wrk") or not Path("/proc/self/smaps_rollup").exists():
        sys.exit("This benchmark needs Linux and wrk (apt-get install wrk).")


def machine():
    """Describe the machine in one line, without its name."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model[1].strip() if model else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def processor_times():
    """Return the seconds of processor time there have been, how many were used, and how many by this benchmark."""
    user, nice, system, idle, waiting, *rest = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    used = user + nice + system + sum(rest)
    own = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    tick = os.sysconf("SC_CLK_TCK")
    return (used + idle + waiting) / tick, used / tick, own


def foreign_load(since):
    """Tell what other programs took since then, in a sentence; all servers must have ended."""
    total, used, own = (now - then for now, then in zip(processor_times(), since, strict=True))
    return f"Other programs took {max(0, used - own) / total:.0%} of the processors meanwhile."


def table(head, lines):
    """Render a Markdown table; all columns but the first are numbers."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
