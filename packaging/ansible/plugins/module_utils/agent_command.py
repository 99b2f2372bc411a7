# SPDX-License-Identifier: Apache-2.0
"""The one way the modules speak to licagent: its command with --json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

PROGRAM = "/usr/bin/licagent"

HEALTHY = 0
DEGRADED = 150
OPEN = 151
"""Exit statuses of `licagent status` that come with a whole answer (docs: commands)."""

ARGUMENTS: dict[str, dict[str, Any]] = {
    "executable": {"type": "path", "default": PROGRAM},
    "config": {"type": "path"},
}
"""What every module takes: where licagent is, and its settings file if not the usual one."""


class CommandFailed(Exception):
    """licagent ended with an error; `code` is its stable word (NOT_RUNNING, REFUSED...)."""

    def __init__(self, status: int, code: str, message: str, hint: str) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.status = status
        self.code = code


_ANSWER_S = "120"
"""How long a daemon may take to answer: a play that ends sooner costs more than one that waits."""


class Agent:
    """Runs commands of licagent and reads their JSON."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self._start: list[str] = [module.params["executable"]]
        if module.params["config"]:
            self._start += ["--config", module.params["config"]]

    def ask(
        self, *arguments: str, data: str | None = None, well: tuple[int, ...] = (HEALTHY,)
    ) -> tuple[int, dict[str, Any]]:
        """The exit status and the object printed; `data` is for standard input.

        Raises FileNotFoundError where licagent is not installed, CommandFailed for every exit
        status that is not in `well`.
        """
        status, output, words = self._run(arguments, data)
        try:
            answer = json.loads(output) if output.strip() else {}
        except ValueError:
            answer = {}
        if status in well and "error" not in answer:
            return status, answer
        raise _failure(status, answer, words)

    def lines(self, *arguments: str) -> Iterator[dict[str, Any]]:
        """The objects of a command that prints one a line."""
        status, output, words = self._run(arguments, None)
        if status != HEALTHY:
            answer = json.loads(output) if output.strip().startswith("{") else {}
            raise _failure(status, answer, words)
        for line in output.splitlines():
            if line.strip():
                yield json.loads(line)

    def _run(self, arguments: tuple[str, ...], data: str | None) -> tuple[int, str, str]:
        command = [*self._start, *arguments, "--json"]
        if "--timeout" not in arguments:
            command += ["--timeout", _ANSWER_S]
        status, output, words = self._module.run_command(
            command, data=data, handle_exceptions=False
        )
        return int(status), str(output), str(words)


def installed(agent: Agent, arguments: tuple[str, ...]) -> tuple[int, dict[str, Any]] | None:
    """As Agent.ask, or None where licagent is not installed or its daemon does not run."""
    try:
        return agent.ask(*arguments, well=(HEALTHY, DEGRADED, OPEN))
    except FileNotFoundError:
        return None
    except CommandFailed as failure:
        if failure.code == "NOT_RUNNING":
            return None
        raise


def _failure(status: int, answer: Mapping[str, Any], words: str) -> CommandFailed:
    error = answer.get("error") or {}
    problems = (error.get("details") or {}).get("problems") or ()
    message = str(error.get("message") or words.strip() or f"licagent ended with status {status}")
    for problem in problems:
        where = f"{problem.get('file')}:{problem.get('line')}"
        message += f"\n{where}: {problem.get('message')}"
    return CommandFailed(
        status, str(error.get("code") or ""), message, str(error.get("hint") or "")
    )
