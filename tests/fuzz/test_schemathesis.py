"""The gateway does what its own OpenAPI document says, for whatever requests schemathesis makes of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeAlias

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi import checks as openapi_checks
from tests.fuzz.envelope import wrong_with_error

from rhizome_testing.gateway_process import GatewayProcess
from rhizome_testing.time_bounds import assert_within

SEED = 20_26
FUZZED_EACH = 60
LEAST_CASES = 2000
SLOWEST_S = 5.0  # the first grammar starts a process, on a machine that may be busy

CHECKS = [
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.unsupported_method,
    openapi_checks.allow_header_conformance,
]
Operation: TypeAlias = APIOperation[Any, Any, Any, Any]
OUR_TOOLS = ("function", "custom", "namespace")


class Attack:
    """Sends cases, and remembers what was wrong with the answers."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway
        self.session = requests.Session()
        self.session.trust_env = False
        self.failures: dict[str, str] = {}
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.slow: list[Case] = []

    def send(self, case: Case) -> None:
        started = time.monotonic()
        answer = case.call(base_url=self.gateway.url, session=self.session, timeout=30)
        if time.monotonic() - started >= SLOWEST_S:
            self.slow.append(case)
        path, status = case.operation.path, answer.status_code
        self.statuses[path, status] += 1
        headers = {name.lower(): values[0] for name, values in answer.headers.items()}
        if status >= 500 and status != 503:
            self._note(case, f"status {status}")
        elif status >= 400 and answer.request.method != "HEAD":
            self._note(case, wrong_with_error(path, status, headers, answer.content))
        checks = list(CHECKS)
        if not takes_unread_tools(case):
            checks.append(openapi_checks.negative_data_rejection)
        try:
            case.validate_response(answer, checks=checks)
        except FailureGroup as group:
            for failure in group.exceptions:
                self._note(case, f"{type(failure).__name__}: {failure}")

    def _note(self, case: Case, problem: str) -> None:
        if not problem:
            return
        key = f"{case.operation.label}: {problem[:300]}"
        self.failures.setdefault(key, case.as_curl_command()[:600])

    def seconds_of(self, case: Case) -> float:
        """How long one more answer takes."""
        started = time.monotonic()
        case.call(base_url=self.gateway.url, session=self.session, timeout=30)
        return time.monotonic() - started

    @property
    def report(self) -> str:
        return "\n".join(f"{key}\n    {curl}" for key, curl in self.failures.items())


def takes_unread_tools(case: Case) -> bool:
    """Of a tool that another server would run, only the type is read, so its fields may be anything."""
    body = case.body
    tools = body.get("tools") if isinstance(body, dict) else None
    if not (case.operation.path.startswith("/v1/responses") and isinstance(tools, list)):
        return False
    return any(
        isinstance(t, dict) and isinstance(t.get("type"), str) and t["type"] not in OUR_TOOLS for t in tools
    )


def operations(api: BaseSchema) -> Iterator[Operation]:
    for result in api.get_all_operations():
        yield result.ok()


@pytest.fixture(scope="module")
def document(gateway: GatewayProcess) -> Any:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"{gateway.url}/openapi.json", timeout=10).json()


@pytest.fixture(scope="module")
def api(document: Any) -> BaseSchema:
    return schemathesis.openapi.from_dict(document)


def test_the_document_is_valid_and_says_of_every_route_what_clients_need(
    document: Any, api: BaseSchema
) -> None:
    api.validate()
    found = [operation for methods in document["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in found]
    assert len(set(names)) == len(names)
    for operation in found:
        assert operation["summary"] and operation["tags"]
        assert "422" not in operation["responses"]  # FastAPI's, which is never sent
        assert {"200", "401", "404", "503"} <= set(operation["responses"])
        if "requestBody" in operation:
            assert operation["requestBody"]["required"]
            assert {"400", "408", "413", "415", "429"} <= set(operation["responses"])
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert {"bearer": []} in document["security"]
    assert document["paths"]["/health"]["get"]["security"] == []


def test_the_bounds_of_numbers_are_in_the_document(document: Any) -> None:
    fields = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert fields["top_logprobs"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 20}
    assert {"type": "null"} in fields["top_logprobs"]["anyOf"]


@pytest.mark.timeout(900)  # a minute where nobody else computes
def test_thousands_of_cases_are_answered_as_documented(
    gateway: GatewayProcess, document: Any, api: BaseSchema
) -> None:
    pid = gateway.pid
    attack = Attack(gateway)
    for operation in operations(api):
        send_the_edges(api, operation, attack)
        if operation.body:  # else nothing varies but names of models, which the edges have
            for mode in GenerationMode:
                send_at_random(operation, mode, attack)
    assert not attack.failures, attack.report
    assert sum(attack.statuses.values()) >= LEAST_CASES
    assert {path for path, status in attack.statuses if status == 200} == set(document["paths"])
    for case in attack.slow:
        assert_within(SLOWEST_S, partial(attack.seconds_of, case))
    assert (gateway.pid, gateway.running) == (pid, True)


def send_the_edges(api: BaseSchema, operation: Operation, attack: Attack) -> None:
    """Each constraint of each field kept and broken, methods and content types that are not there."""
    config = api.config.generation_for(operation=operation, phase="coverage")
    for case in api.iter_coverage_cases(
        operation, generation_modes=list(GenerationMode), generation_config=config
    ):
        attack.send(case)


def send_at_random(operation: Operation, mode: GenerationMode, attack: Attack) -> None:
    @seed(SEED)
    @settings(
        max_examples=FUZZED_EACH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Case) -> None:
        attack.send(case)

    run()
