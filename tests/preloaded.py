"""Commands in copies of one process that has imported PyTorch and MONAI: each saves the seconds that importing takes.

    python -m tests.preloaded SOCKET

A client sends ``{"module", "argv", "folder", "environment"}`` as JSON with its standard input, output and error, and
receives the exit status as text. ``CLIENT`` is the program of such a client, for ``python -c`` or a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path

CLIENT = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    given = {{"module": {module}, "argv": {argv}, "folder": os.getcwd(), "environment": dict(os.environ)}}
    message = json.dumps(given).encode()
    socket.send_fds(server, [len(message).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(message)
    sys.exit(int(server.recv(16) or 1))
"""
IMPORTED = (
    "pipeline.evaluate",
    "pipeline.predict",
    "pipeline.train",
    "monai.bundle",
    "monai.transforms",
    "ignite.engine",
)


def serve(place: str) -> None:
    """Wait for clients at a socket, and run what they ask for, each in a process of its own."""
    import importlib

    import torch  # noqa: F401

    for name in IMPORTED:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{place}.new")
        listener.listen(16)
        Path(f"{place}.new").rename(place)  # it is there when it answers
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(client)
            client.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _answer(client: socket.socket) -> None:
    length, streams, _, _ = socket.recv_fds(client, 4, 3)
    message = b""
    while len(message) < int.from_bytes(length, "big"):
        message += client.recv(1 << 16)
    worker = os.fork()
    if worker == 0:
        client.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os._exit(_run(**json.loads(message)))
    for stream in streams:
        os.close(stream)
    client.sendall(str(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])).encode())
    os._exit(0)


def _run(module: str, argv: list[str], folder: str, environment: dict[str, str]) -> int:
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    sys.executable = environment.get("PRELOADED_PYTHON", sys.executable)  # what a command starts begins here as well
    status: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        status = error.code or 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    if not isinstance(status, int):
        sys.stderr.write(f"{status}\n")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve(sys.argv[1])
