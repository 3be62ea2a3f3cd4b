"""Walk README's tour twice: paste each command into one shell, and compare what comes back.

``python .ci/tour.py`` starts the server of this folder on an empty database and a free port, and fails at the first
answer that is not the one the page shows, times and ids apart.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
VARYING = re.compile(r'"id":\d+|"at":"[^"]+"')


def steps(page):
    """Give the commands of the tour, each with the answer that is shown below it, or None."""
    tour = page.partition("\n## Tour\n")[2].partition("\n## ")[0]
    blocks = BLOCK.findall(tour)
    for (kind, text), (next_kind, answer) in zip(blocks, [*blocks[1:], ("sh", "")], strict=True):
        if kind == "sh":
            yield text, None if next_kind == "sh" else answer


def walk(shell, address):
    """Run the tour in a shell; ends the program at an answer that differs."""
    page = (HERE / "README.md").read_text().replace("http://127.0.0.1:8080", address)
    for number, (command, answer) in enumerate(steps(page), 1):
        shell.stdin.write(f"{command}\necho; echo END-{number}\n")
        shell.stdin.flush()
        lines = iter(shell.stdout.readline, f"END-{number}\n")
        told = VARYING.sub("", "".join(lines).replace("\r", "").strip())
        if answer is not None and told != VARYING.sub("", answer.strip()):
            sys.exit(f"README's tour, step {number}:\n{command}\nshows:\n{answer}\nbut it gives:\n{told}")
        print(f"step {number}: as shown")


def main():
    """Start the server, walk, and stop it."""
    with tempfile.TemporaryDirectory() as folder:
        pipe = subprocess.PIPE
        environment = {**os.environ, "DATABASE_URL": f"sqlite:///{folder}/tour.db"}
        server = subprocess.Popen(
            [sys.executable, "dealer.py", "--port", "0"],
            cwd=HERE,
            env=environment,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        shell = subprocess.Popen(["bash"], cwd=HERE, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        try:
            address = re.search(r"http://[^,]+", server.stdout.readline())[0]
            for _ in range(2):
                began = time.monotonic()
                walk(shell, address)
                print(f"the tour took {time.monotonic() - began:.1f} s")
        finally:
            shell.kill()
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
