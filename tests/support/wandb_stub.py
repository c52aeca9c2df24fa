"""As much of a W&B server, on this machine's loopback, as `wandb sweep` and `wandb agent` need."""

from __future__ import annotations

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
        reports: states of runs as the agent told them.
    """

    def __init__(self, trials: Sequence[Mapping[str, object]]) -> None:
        self.config: dict[str, Any] = {}
        self.sent: list[tuple[str, Mapping[str, object]]] = []
        self.reports: dict[str, str] = {}
        self._waiting = list(trials)
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = json.dumps({"data": stub.answer(body["query"], body.get("variables") or {})}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

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

    def answer(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        operation = (re.search(r"(?:query|mutation)\s+(\w+)", query) or [""] * 2)[1]
        project = {"name": "panbench", "entity": {"name": "somebody"}}
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
        viewer = {"id": "1", "entity": "somebody", "username": "somebody", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}}, "project": project}

    def _commands(self, variables: Mapping[str, Any]) -> list[dict[str, Any]]:
        state = json.loads(variables["runState"])
        self.reports |= state
        if any(state.get(run) not in ("finished", "failed") for run, _ in self.sent if run in state):
            return []
        if not self._waiting:
            return [{"type": "exit"}]
        run, values = f"trial{len(self.sent)}", self._waiting.pop(0)
        self.sent.append((run, values))
        args = {name: {"value": value} for name, value in values.items()}
        return [{"type": "run", "run_id": run, "program": self.config["program"], "args": args}]
