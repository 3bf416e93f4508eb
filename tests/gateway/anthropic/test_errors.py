import pytest
from anthropic.types.shared import ErrorResponse
from tests.gateway.anthropic.conftest import strictly

from rhizome_gateway.anthropic.errors import error_object
from rhizome_gateway.errors import ApiError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    501: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@pytest.mark.parametrize("status", TYPES)
def test_each_status_has_a_type_that_the_sdk_knows(status: int) -> None:
    error = strictly(ErrorResponse, error_object(ApiError(status, "No."), "req_1"))
    assert (error.error.type, error.error.message, error.request_id) == (TYPES[status], "No.", "req_1")


def test_the_message_names_the_field_once() -> None:
    def message(text: str, param: str) -> str:
        return str(error_object(ApiError(400, text, param=param), "")["error"]["message"])

    assert message("It must be more.", "max_tokens") == "max_tokens: It must be more."
    assert message("'max_tokens' must be more.", "max_tokens") == "'max_tokens' must be more."


def test_a_long_message_is_cut() -> None:
    message = error_object(ApiError(400, "é" * 5000, param="p" * 5000), "")["error"]["message"]
    assert len(message.encode()) <= 2048
