"""A small server that stands in for W&B's, on this machine: it hangs, fails, refuses keys, or works until it does."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Generator

HANGS = 60.0  # seconds


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server's `mood` says."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        server.seen.append((self.path, body.decode("utf-8", "replace")))
        mood = server.mood
        if mood == "works until init":
            mood = "works" if self.path.endswith("graphql") else "hang"
        if mood == "hang":
            server.ended.wait(HANGS)
            self.close_connection = True
        elif mood == "works":
            self._answer(200, self._graphql(body) if self.path.endswith("graphql") else {})
        else:
            self._answer(int(mood), {"errors": [{"message": "no"}]})

    do_GET = do_PUT = do_POST

    def _graphql(self, body: bytes) -> dict:
        asked = json.loads(body)
        query, variables = asked.get("query", ""), asked.get("variables") or {}
        if "upsertBucket" in query:
            project = {"name": variables.get("project") or "p", "entity": {"name": "e"}}
            name = variables.get("name") or "x"
            bucket = {"id": "aWQ=", "name": name, "displayName": name, "historyLineCount": 0, "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in query:
            address = f"http://127.0.0.1:{self.server.server_address[1]}/upload"
            files = [{"name": name, "uploadUrl": f"{address}/{name}"} for name in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "aWQ=", "uploadHeaders": [], "files": files}}}
        if "serverInfo" in query:
            return {"data": {"serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "9"}}}}
        if "rtifact" in query:
            return {"data": None, "errors": [{"message": "no artifacts here"}]}
        viewer = {"id": "dg==", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"viewer": viewer, "model": {"bucket": None}, "project": None}}

    def _answer(self, code: int, tree: dict) -> None:
        data = json.dumps(tree).encode()
        with contextlib.suppress(OSError):
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *words) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """`seen` are the requests; `ended` lets those go that hang."""

    daemon_threads = True

    def __init__(self, mood: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mood = mood
        self.seen: list[tuple[str, str]] = []
        self.ended = threading.Event()


@contextlib.contextmanager
def serving(mood: str) -> Generator[Server]:
    """Hold a server whose mood is hang, 500, 401, works, or "works until init"."""
    server = Server(mood)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
        time.sleep(0.05)
