"""Tenants never meet in the cache; models and admin routes are refused with a 403."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_gateway.auth.caller import ANONYMOUS, Caller, caller_of
from rhizome_gateway.auth.keys_file import NAME
from rhizome_gateway.errors import ApiError

tenants = st.just("") | st.from_regex(NAME, fullmatch=True)
salts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)


@given(tenants, salts, tenants, salts)
def test_two_requests_share_a_namespace_only_with_the_same_tenant_and_salt(tenant, salt, other, other_salt):
    one = Caller(name="a", tenant=tenant).salted_namespace(salt)
    two = Caller(name="b", tenant=other).salted_namespace(other_salt)
    assert (one == two) == ((tenant, salt) == (other, other_salt))
    assert len(one) <= 256


@given(tenants, salts)
def test_a_salt_is_not_in_the_namespace_as_text(tenant, salt):
    namespace = Caller(name="a", tenant=tenant).salted_namespace(salt)
    assert salt is None or len(salt) < 8 or salt not in namespace.partition("#")[2]


def test_a_model_that_a_key_may_not_use_is_a_403():
    caller = Caller(name="a", tenant="a", models=("demo", "llama-?b"))
    caller.require_model("llama-8b")
    with pytest.raises(ApiError) as caught:
        caller.require_model("gpt-oss")
    error = caught.value
    assert (error.status, error.kind, error.code, error.param) == (
        403,
        "permission_error",
        "model_not_allowed",
        "model",
    )
    assert "gpt-oss" not in error.message


def test_patterns_do_not_backtrack_for_ever():
    caller = Caller(name="a", tenant="a", models=("*a" * 40 + "b",))
    assert not caller.allows("a" * 5000)


def test_admin_routes_are_for_admins():
    Caller(name="a", tenant="a", admin=True).require_admin()
    ANONYMOUS.require_admin()
    with pytest.raises(ApiError) as caught:
        Caller(name="a", tenant="a").require_admin()
    assert (caught.value.status, caught.value.kind) == (403, "permission_error")


def test_nobody_is_the_caller_where_nobody_checked():
    with pytest.raises(LookupError):
        caller_of({"type": "http"})
