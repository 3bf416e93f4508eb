from typing import Any

import pytest

from rhizome_gateway.errors import ApiError
from rhizome_gateway.prompt.template_variables import template_variables


@pytest.mark.parametrize("effort", ["minimal", "low", "medium", "high", "xhigh", "max"])
def test_an_effort_is_a_variable(effort: str) -> None:
    assert template_variables(effort) == {"reasoning_effort": effort}


def test_no_effort_is_no_thinking() -> None:
    assert template_variables("none") == {"enable_thinking": False, "thinking": False}


def test_what_is_absent_or_null_is_no_variable() -> None:
    assert template_variables() == {}
    assert template_variables(None, {"enable_thinking": None}) == {}


def test_a_variable_of_its_own_wins() -> None:
    assert template_variables("none", {"enable_thinking": True})["enable_thinking"] is True


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"messages": []}, "unsupported_parameter"),
        ({"SECRET": 1}, "unsupported_parameter"),
        ({"thinking": ["SECRET"]}, "invalid_value"),
        ({"date_string": "SECRET" * 100}, "invalid_value"),
        ({"thinking": {"a": 1}}, "invalid_value"),
    ],
)
def test_other_variables_are_refused(given: dict[str, Any], code: str) -> None:
    with pytest.raises(ApiError) as failure:
        template_variables(None, given)
    assert (failure.value.status, failure.value.code) == (400, code)
    assert failure.value.param == "chat_template_kwargs"
    assert "SECRET" not in failure.value.message
