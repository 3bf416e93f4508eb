"""`GET /v1/rhizome/pulse` and `/v1/rhizome/cache`: what the page shows beside `/v1/metrics`.

Keys see their own tenant's part of the cache and counts of tokens. Who operates the server sees all of it,
and the text where the engine tells it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from rhizome.engine.v1.engine_service_pb2 import (
    CACHE_TIER_DEVICE_AND_HOST,
    CACHE_TIER_HOST,
    CacheTree,
    CacheTreeNode,
    GetCacheTreeRequest,
)
from rhizome_gateway.auth.caller import Caller, caller_of
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.page.fleet import LONE_ENGINE, Fleet
from rhizome_gateway.page.stack_client import StackClient
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.errors import EngineError

router = APIRouter(prefix="/v1/rhizome", tags=["metrics"])

_MOST_NODES = 400
_LONGEST_TEXT = 4096
"""Characters of one node's text; a page shows no more."""
_TIERS = {CACHE_TIER_DEVICE_AND_HOST: "both", CACHE_TIER_HOST: "host"}


@router.get("/pulse", summary="How are the engines?", response_class=Response)
async def pulse(request: Request, since: float | None = None) -> Response:
    """The engines, what happened to them, and what the caller may see; with `since`, the figures after it."""
    fleet: Fleet = request.app.state.fleet
    stack: StackClient = request.app.state.stack
    admin = caller_of(request.scope).admin
    told = {
        "engines": await fleet.engines(),
        "events": fleet.events(),
        "trace_url": request.app.state.settings.trace_url or None,
        "admin": admin,
        "cache_text": admin and stack.tells_tokens,
    }
    if since is not None:
        told["history"] = fleet.history(since)
    return _json(told)


@router.get("/cache", summary="What is in the prefix cache?", response_class=Response)
async def cache(request: Request) -> Response:
    """The radix tree of each engine: the nodes used last, sizes, uses and locks; null where none is told."""
    caller = caller_of(request.scope)
    text = request.query_params.get("text") == "true"
    if text:
        caller.require_admin()
    stack: StackClient = request.app.state.stack
    session: EngineSession = request.app.state.session
    try:
        answer = await stack.cache_trees(_asked(caller, with_token_ids=text))
    except EngineError as error:
        if error.code is not grpc.StatusCode.UNIMPLEMENTED:
            raise session.unavailable() from None
        return _json({"trees": None})
    served = session.known_model
    tokenizer = served.tokenizer if text and served is not None else None
    trees = await asyncio.to_thread(lambda: [_tree(tree, tokenizer) for tree in answer.trees])
    return _json({"trees": trees})


def _asked(caller: Caller, *, with_token_ids: bool) -> GetCacheTreeRequest:
    asked = GetCacheTreeRequest(max_nodes=_MOST_NODES, with_token_ids=with_token_ids)
    if not caller.admin:
        asked.cache_namespace = caller.cache_namespace
    return asked


def _tree(tree: CacheTree, tokenizer: Tokenizer | None) -> dict[str, Any]:
    return {
        "engine": tree.engine or LONE_ENGINE,
        "page_size": tree.page_size,
        "pages_total": tree.pages_total,
        "host_pages_total": tree.host_pages_total,
        "truncated": tree.truncated,
        "namespaces": [
            {
                "name": namespace.cache_namespace,
                "cached_tokens": sum(node.tokens for node in namespace.nodes),
                "nodes": [_node(node, tokenizer) for node in namespace.nodes],
            }
            for namespace in tree.namespaces
        ],
    }


def _node(node: CacheTreeNode, tokenizer: Tokenizer | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": node.node_id,
        "parent": node.parent_id if node.HasField("parent_id") else None,
        "tokens": node.tokens,
        "uses": node.uses,
        "idle": node.idle_uses,
        "locks": node.locks,
        "pinned": node.pinned,
        "tier": _TIERS.get(node.tier, "device"),
    }
    if tokenizer is not None and node.token_ids:
        text = b"".join(tokenizer.token_bytes(token_id) for token_id in node.token_ids)
        shown["text"] = text.decode("utf-8", "replace")[:_LONGEST_TEXT]
    return shown


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json", headers={"cache-control": "no-store"})
