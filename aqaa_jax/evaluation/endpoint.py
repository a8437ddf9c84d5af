"""A chat-completions endpoint as OpenAI's API has it: patient with a busy server, strict with its reply."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BUSY = (408, 409, 429, 500, 502, 503, 504)


class EndpointError(ValueError):
    """No usable reply; the message says why."""


@dataclass(frozen=True)
class Endpoint:
    """``url`` ends before ``/chat/completions``. The key is read from the environment variable ``key_variable``."""

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    timeout: float = 60.0
    attempts: int = 4
    pause: float = 1.0  # seconds before the second attempt, doubled for every further one

    def complete(self, messages: Sequence[dict[str, str]], *, seed: int = 0) -> str:
        """The text of the reply. Raises ``EndpointError`` when there is none after ``attempts``."""
        body = {"model": self.model, "messages": list(messages), "temperature": self.temperature, "seed": seed}
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return self._content(self._post(body))
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code not in BUSY:
                    break
            except (OSError, http.client.HTTPException) as error:  # no connection, or one that broke off
                problem = str(error)
        raise EndpointError(f"{self.url}: {' '.join(problem.split())}")

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        address = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as reply:
            return json.loads(reply.read())

    def _content(self, reply: Any) -> str:
        try:
            return str(reply["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError):
            raise EndpointError(f"{self.url}: not a chat completion: {json.dumps(reply)[:200]}") from None
