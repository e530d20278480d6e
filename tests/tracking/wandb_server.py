"""A server that answers the requests of W&B's client during an upload, and stores the uploaded data."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY = "wandb-history.jsonl"


class WandbServer:
    """Serves on a free port of this machine inside its ``with`` block.

    Attributes:
        operations: name and variables of each GraphQL request, in order.
        files: lines of each streamed file by run and name, written at the offset that the client names, as W&B does.
        runs: the last variables of ``UpsertBucket`` by run.
        uploaded: bytes of each uploaded file by its name.
        views: variables of each saved view and report.
        unknown: requests without an answer.
    """

    def __init__(self) -> None:
        self.operations: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[tuple[str, str], dict[int, str]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.uploaded: dict[str, bytes] = {}
        self.views: list[dict[str, Any]] = []
        self.unknown: list[str] = []
        self._lock = threading.Lock()
        kept = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with kept._lock:
                    answer = kept._answer(self.path, body)
                self._send(404 if answer is None else 200, answer or {})

            do_PUT = do_POST

            def do_GET(self) -> None:
                kept.unknown.append(self.path)
                self._send(404, {})

            def _send(self, code: int, value: Any) -> None:
                text = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Requests are not printed."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda *_: None  # a client may disconnect early
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def history(self, run: str) -> list[dict[str, Any]]:
        """The steps of a run in their order."""
        lines = self.files.get((run, HISTORY), {})
        return [json.loads(lines[number]) for number in sorted(lines)]

    def _UpsertBucket(self, **sent: Any) -> dict[str, Any]:
        run = sent["name"]
        self.runs[run] = self.runs.get(run, {}) | {
            name: value for name, value in sent.items() if value is not None
        }
        project = {"id": "project", "name": sent["project"], "entity": {"id": "entity", "name": "me"}}
        bucket = {
            "id": f"id-{run}",
            "name": run,
            "displayName": self.runs[run].get("displayName"),
            "description": None,
            "config": self.runs[run].get("config"),
            "sweepName": None,
            "project": project,
            "historyLineCount": len(self.files.get((run, HISTORY), {})),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": False}}

    def _Viewer(self) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": "me"}}]}
        viewer = {
            "id": "user",
            "entity": "me",
            "username": "me",
            "email": "me@here",
            "flags": "{}",
            "teams": teams,
        }
        return {"viewer": viewer}

    def _ProjectInternalId(self, **sent: Any) -> dict[str, Any]:
        return {"project": {"id": "project", "internalId": "7"}}

    def _upsertView(self, **sent: Any) -> dict[str, Any]:
        self.views.append(sent)
        project = {"id": "project", "name": sent["projectName"], "entityName": sent["entityName"]}
        view = {"id": "view", "project": project, "updatedAt": "2026-01-01T00:00:00Z"}
        for name in ("type", "name", "displayName", "description", "spec"):
            view[name] = sent[name]
        return {"upsertView": {"view": view, "inserted": True}}

    def _GetProjects(self, **sent: Any) -> dict[str, Any]:
        project = {
            "__typename": "Project",
            "id": "project",
            "name": "afl",
            "entityName": sent["entity"],
            "createdAt": "2026-01-01T00:00:00Z",
            "isBenchmark": False,
            "user": None,
        }
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": [{"node": project}]}}

    def _UpsertView2(self, **sent: Any) -> dict[str, Any]:
        self.views.append(sent)
        return {"upsertView": {"view": {"id": "view", "name": sent["name"]}, "inserted": True}}

    def _ServerFeaturesQuery(self) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _CreateArtifact(self, **sent: Any) -> dict[str, Any]:
        # A committed artifact needs no upload, so the client only sends the table as a file of the run.
        artifact = {"id": "artifact", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateRunFiles(self, **sent: Any) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{name}"} for name in sent["files"]]
        return {"createRunFiles": {"runID": f"id-{sent['run']}", "uploadHeaders": [], "files": files}}

    def _answer(self, path: str, body: bytes) -> dict[str, Any] | None:
        if path == "/graphql":
            request = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])[1]
            self.operations.append((operation, request.get("variables") or {}))
            answer = getattr(self, f"_{operation}", None)
            if answer is None:
                self.unknown.append(f"{operation}: {request['query']}")
                return {"errors": [{"message": f"no {operation} here"}]}
            return {"data": answer(**(request.get("variables") or {}))}
        if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            for name, part in (json.loads(body).get("files") or {}).items():
                lines = self.files.setdefault((found[1], name), {})
                lines |= dict(enumerate(part["content"], part["offset"]))
            return {}
        if path.startswith("/storage/"):
            self.uploaded[path.removeprefix("/storage/")] = body
            return {}
        self.unknown.append(path)
        return None
