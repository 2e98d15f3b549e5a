"""A W&B server on loopback that falls silent."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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
def silent_server(*, from_the_start: bool = False) -> Iterator[str]:
    """Serve, and give the address; whoever asks after a run has begun waits for ever."""
    begun, over = threading.Event(), threading.Event()
    if from_the_start:
        begun.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if begun.is_set():
                over.wait()
                return
            query = json.loads(body or b"{}").get("query", "") if "graphql" in self.path else ""
            reply = json.dumps({"data": answer(query)}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)
            if "upsertBucket" in query:
                begun.set()

        do_GET = do_PUT = do_POST  # noqa: N815 - http.server's names

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *args):
            pass  # a client that left

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            over.set()
            server.shutdown()
            thread.join()
