"""What Prometheus makes of the stack: its linter, its scrapes, its rules."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.deploy.observability.conftest import (
    DEPLOY,
    JOBS,
    ROOT,
    TENANTS,
    Prometheus,
    Watched,
    families,
    promtool,
    series,
)

RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
GOOD_ENDS = 'gen_ai_server_request_duration_seconds_count{job="engine", error_type=""}'
_WORDS = frozenset(
    (
        *("sum", "min", "max", "avg", "count", "rate", "increase", "histogram_quantile", "min_over_time"),
        *("or", "and", "vector"),
    )
)
"""Of PromQL."""


@pytest.fixture(scope="module", autouse=True)
def asked(watched: Watched) -> None:
    """Every tenant asks, and one is refused."""
    for tenant in TENANTS:
        assert watched.chat("Count from 1 to 5", tenant).status_code == 200
    assert watched.chat("Hello", max_tokens=0).status_code == 400
    assert watched.chat("Hello", headers={"Authorization": "Bearer wrong"}).status_code == 401


@pytest.mark.parametrize("job", JOBS)
def test_names_and_units_follow_prometheus_rules(watched: Watched, job: str) -> None:
    page = watched.page(job).encode()
    done = subprocess.run([promtool(), "check", "metrics"], input=page, capture_output=True, check=False)
    said = done.stderr.decode().splitlines()
    # vLLM's names are vLLM's; a colon is for recording rules only.
    ours = [line for line in said if not re.fullmatch(r"vllm:\S+ metric names should not contain ':'", line)]
    theirs = [line for line in ours if line.startswith("vllm:")]
    assert ours == theirs, "\n".join(ours)
    assert all("lora_requests_info" in line or "cache_config_info" in line for line in theirs), theirs
    assert bool(said) == (job == "engine")


def test_the_three_services_are_scraped_and_their_numbers_arrive(
    watched: Watched, prometheus: Prometheus
) -> None:
    for job in JOBS:
        prometheus.wait(f'up{{job="{job}"}}')
    targets = prometheus.api("targets")["activeTargets"]
    assert {target["labels"]["job"]: target["health"] for target in targets} == dict.fromkeys(JOBS, "up")
    for name in (
        'gen_ai_server_request_duration_seconds_count{job="gateway", gen_ai_operation_name="chat"}',
        'gen_ai_server_request_duration_seconds_count{job="proxy", gen_ai_operation_name="text_completion"}',
        'gen_ai_server_request_duration_seconds_count{job="engine", gen_ai_provider_name="rhizome"}',
        'http_server_request_duration_seconds_count{http_response_status_code="200"}',
        'rhizome_gateway_tenant_generated_tokens_total{tenant="sales"}',
        'rhizome_gateway_auth_failures_total{reason="invalid_api_key"}',
        'rhizome_proxy_requests_total{face="grpc", code="OK"}',
        'rhizome_proxy_backend_kv_pages{job="proxy"}',
        'rhizome_engine_requests_completed_total{model="rhizome-demo"}',
        "rhizome_engine_inter_token_latency_seconds_count",
        'process_resident_memory_bytes{job="proxy"}',
    ):
        assert prometheus.wait(name) > 0
    whole = "rhizome_engine_generated_tokens_total"  # of requests under way too; there are none
    prometheus.wait(f"{whole} == rhizome_engine_request_generated_tokens_sum")


def test_dashboards_and_routers_that_know_vllm_find_its_names(
    watched: Watched, prometheus: Prometheus
) -> None:
    for name in (
        "vllm:kv_cache_usage_perc",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:num_preemptions_total",
    ):
        assert prometheus.wait(f'count({name}{{model_name="rhizome-demo"}})') == 1
    for name in (
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:prefix_cache_queries_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:inter_token_latency_seconds_count",
        "vllm:time_per_output_token_seconds_count",
        "vllm:request_time_per_output_token_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:request_queue_time_seconds_count",
        "vllm:request_prefill_time_seconds_count",
        "vllm:request_decode_time_seconds_count",
        "vllm:request_prompt_tokens_count",
        "vllm:request_generation_tokens_count",
        "vllm:cache_config_info{block_size='16', num_gpu_blocks!='0'}",
        "vllm:lora_requests_info{max_lora='0', running_lora_adapters='', waiting_lora_adapters=''}",
    ):
        assert prometheus.wait(name) > 0
    ended = 'sum by (instance) (vllm:request_success_total{finished_reason=~"stop|length"})'
    prometheus.wait(f"{ended} > 0 and {ended} == on (instance) sum by (instance) ({GOOD_ENDS})")
    assert prometheus.value("vllm:request_success_total{finished_reason='error'}") == 0


def test_the_rules_are_loaded_and_work(watched: Watched, prometheus: Prometheus) -> None:
    prometheus.wait('gen_ai_server_request_duration_seconds_count{job="gateway", error_type=""}')
    assert watched.chat("Hello").status_code == 200  # a rate is of what happened between two scrapes
    prometheus.wait("sum(model:gen_ai_requests:rate5m)")
    groups = prometheus.api("rules")["groups"]
    assert {group["name"] for group in groups} == {group["name"] for group in all_groups()}
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == sum(len(group["rules"]) for group in all_groups())
    assert not [rule["name"] for rule in rules if rule["health"] == "err"]
    assert not [rule["name"] for rule in rules if rule.get("alerts")], "nothing is wrong with this stack"


def test_rules_name_only_what_the_services_have(watched: Watched) -> None:
    known = {name for job in JOBS for name in series(watched.page(job))} | {"up"}
    rules = [rule for group in all_groups() for rule in group["rules"]]
    known |= {rule["record"] for rule in rules if "record" in rule}
    for rule in rules:
        assert names_in(rule["expr"]) <= known, rule


def test_every_alert_fires_in_a_unit_test_and_has_a_runbook() -> None:
    alerts = [rule for group in all_groups() for rule in group["rules"] if "alert" in rule]
    page = (ROOT / "docs" / "observability.md").read_text()
    tested = (DEPLOY / "prometheus" / "rules" / "tests" / "alerts.yml").read_text()
    fired = set(re.findall(r"runbook: docs/observability\.md#(\w+)", tested))
    for rule in alerts:
        anchor = rule["alert"].lower()
        assert rule["annotations"]["runbook"] == f"docs/observability.md#{anchor}"
        assert f"\n#### {rule['alert']}\n" in page, f"{rule['alert']} has no runbook"
        assert anchor in fired, f"{rule['alert']} never fires in a test"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_page_of_metrics_names_all_and_nothing_else(watched: Watched) -> None:
    """What a service has is in its table, and what is in the table the service has."""
    page = (ROOT / "docs" / "observability.md").read_text()
    for job in JOBS:
        table = page[page.index(f"### The {job}\n") :].partition("\n### ")[0]
        written = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
        families_ = families(watched.page(job))
        served = {name for name in families_ if not name.startswith(("process_", "python_", "vllm:"))}
        assert written == served, job
        theirs = {name for name in families_ if name.startswith("vllm:")}
        assert theirs <= set(re.findall(r"`(vllm:\w+)`", page))


def test_promtool_is_content() -> None:
    folder = DEPLOY / "prometheus"
    tests = [str(path) for path in sorted((folder / "rules" / "tests").glob("*.yml"))]
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", *tests]):
        done = subprocess.run([promtool(), *command], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def all_groups() -> list[dict[str, list[dict[str, dict[str, str]]]]]:
    """Groups of all files of rules."""
    return [group for path in RULES for group in yaml.safe_load(Path(path).read_text())["groups"]]


def names_in(expression: str) -> set[str]:
    """Metrics that an expression asks for."""
    bare = re.sub(r"\{[^}]*\}", " ", re.sub(r"\[[^\]]*\]", " ", expression))
    bare = re.sub(r"\b(by|on|without) ?\([^)]*\)", " ", bare)
    return {word for word in re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare) if word not in _WORDS}
