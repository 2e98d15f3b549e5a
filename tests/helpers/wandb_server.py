"""A W&B server on loopback that answers, fails, falls silent or dies."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, Literal

USER = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
BUCKET = {
    "id": "b",
    "name": "run",
    "displayName": "run",
    "config": "{}",
    "historyLineCount": 0,
    "project": {"id": "p", "name": "unimem", "entity": {"id": "e", "name": "me"}},
}


def answer(query: str) -> dict[str, Any]:
    """The least that W&B's client needs to begin a run."""
    found: dict[str, Any] = {}
    if "viewer" in query:
        found["viewer"] = USER | {"email": "", "admin": False}
    if "serverInfo" in query:
        found["serverInfo"] = {"cliVersionInfo": {"max_cli_version": "99"}, "features": []}
    if "__type" in query or "__schema" in query:
        found["__type"] = found["QueryType"] = found["MutationType"] = {"fields": [], "name": "x"}
    if "model(" in query or "project(" in query:
        found["model"] = found["project"] = None
    if "upsertBucket" in query:
        found["upsertBucket"] = {"bucket": BUCKET, "inserted": True}
    return found


@contextmanager
def wandb_server(
    *,
    status: int = 200,
    seconds: float = 0.0,
    silent: bool = False,
    then: Literal["answer", "silent", "gone"] = "answer",
    begun: Event | None = None,
) -> Iterator[str]:
    """Serve, and yield the address: each answer has this status and takes these seconds.

    A `silent` server never answers. Once a run has begun, `begun` is set, and the server does what
    `then` says.
    """
    begun, over = begun or Event(), Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if silent or (then == "silent" and begun.is_set()):
                over.wait()
                return
            time.sleep(seconds)
            query = json.loads(body or b"{}").get("query", "") if "graphql" in self.path else ""
            reply = {"data": answer(query)} if status == 200 else {"errors": []}
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(json.dumps(reply))))
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())
            if "upsertBucket" in query:
                begun.set()
                if then == "gone":
                    Thread(target=stop).start()

        do_GET = do_PUT = do_POST  # noqa: N815 - http.server's names

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *args):
            pass  # a client that left

    def stop() -> None:
        server.shutdown()
        server.server_close()

    server = Server(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        over.set()
        stop()
        thread.join()
