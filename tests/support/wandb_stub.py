"""As much of a W&B server, on this machine's loopback, as `wandb sweep`, `wandb agent` and online runs need."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

SWEEP = "sweep0001"


class WandbStub:
    """Takes a sweep, hands out the given trials one by one, then tells the agent to leave.

    Args:
        trials: values by parameter.

    Attributes:
        config: the sweep as `wandb sweep` sent it.
        sent: id and values of the trials handed out.
        runs: of every run that logged here: ``sweep`` (it says it belongs to), ``config``, ``summary``, ``files``.
    """

    def __init__(self, trials: Sequence[Mapping[str, object]]) -> None:
        self.config: dict[str, Any] = {}
        self.sent: list[tuple[str, Mapping[str, object]]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self._waiting = list(trials)
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def _reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = json.dumps(stub.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = _reply

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> WandbStub:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        parts = path.strip("/").split("/")
        if parts == ["graphql"]:
            request = json.loads(body)
            return {"data": self._query(request["query"], request.get("variables") or {})}
        if parts[0] == "files" and parts[-1] == "file_stream":
            for line in json.loads(body).get("files", {}).get("wandb-summary.json", {}).get("content", []):
                self.runs[parts[3]]["summary"] = json.loads(line)
        elif parts[0] == "upload":
            self.runs[parts[1]]["files"].add("/".join(parts[2:]))
        return {}

    def _query(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        operation = (re.search(r"(?:query|mutation)\s+(\w+)", query) or [""] * 2)[1]
        project = {"id": "1", "name": "panbench", "entity": {"id": "1", "name": "somebody"}}
        if operation == "UpsertSweep":
            self.config = yaml.safe_load(variables["config"])
            return {"upsertSweep": {"sweep": {"name": SWEEP, "project": project}, "configValidationWarnings": []}}
        if operation == "SweepWithRuns":
            sweep = {"id": "1", "name": SWEEP, "state": "RUNNING", "config": yaml.safe_dump(self.config)}
            return {"project": {"sweep": {**sweep, "runs": {"edges": []}}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "agent"}}}
        if operation == "Heartbeat":
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(self._commands(variables))}}
        if operation == "UpsertBucket":
            return {"upsertBucket": {"bucket": {**self._run(variables), "project": project}, "inserted": True}}
        if operation == "CreateRunFiles":
            names = [
                {"name": name, "uploadUrl": f"{self.url}/upload/{variables['run']}/{name}"}
                for name in variables["files"]
            ]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": names}}
        if operation == "CreateArtifact":
            # One that is there already need not be uploaded.
            artifact = {"id": "1", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "1"}}}
            return {"createArtifact": {"artifact": artifact}}
        if operation == "ArtifactType":
            return {"project": None}
        viewer = {"id": "1", "entity": "somebody", "username": "somebody", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}, "features": []}}

    def _run(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        run = self.runs.setdefault(name, {"sweep": None, "config": {}, "summary": {}, "files": set()})
        if variables.get("sweep"):
            run["sweep"] = variables["sweep"]
        if variables.get("config"):
            run["config"] = {key: item["value"] for key, item in json.loads(variables["config"]).items()}
        fixed = {"description": "", "config": "{}", "sweepName": run["sweep"], "historyLineCount": 0}
        return {"id": name, "name": name, "displayName": name, **fixed}

    def _commands(self, variables: Mapping[str, Any]) -> list[dict[str, Any]]:
        state = json.loads(variables["runState"])
        if any(state.get(run) not in ("finished", "failed") for run, _ in self.sent if run in state):
            return []
        if not self._waiting:
            return [{"type": "exit"}]
        run, values = f"trial{len(self.sent)}", self._waiting.pop(0)
        self.sent.append((run, values))
        args = {name: {"value": value} for name, value in values.items()}
        return [{"type": "run", "run_id": run, "program": self.config["program"], "args": args}]
