"""`GET /` and `/assets/…`: the page's files. They hold nothing secret, so they need no key."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rhizome_gateway.page.bundle import page_files

router = APIRouter(include_in_schema=False)

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Nothing but the page's own files runs or loads, and no text becomes markup."""

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "vary": "accept-encoding",
}
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"


@router.head("/")
@router.get("/")
async def page(request: Request) -> Response:
    """The page itself."""
    return _file("/", request)


@router.head("/assets/{name}")
@router.get("/assets/{name}")
async def asset(name: str, request: Request) -> Response:
    """Its script, its style, its icon."""
    return _file(f"/assets/{name}", request)


def _file(path: str, request: Request) -> Response:
    file = page_files().get(path)
    if file is None:
        raise HTTPException(404)
    coding = file.coding(request.headers.get("accept-encoding", ""))
    etag = file.etags[coding]
    headers = {
        **_HEADERS,
        "etag": etag,
        "cache-control": _FOR_EVER if file.immutable else _ASK_AGAIN,
    }
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in known or "*" in known:
        return Response(None, 304, headers)
    if coding != "identity":
        headers["content-encoding"] = coding
    return Response(file.bodies[coding], 200, headers, media_type=file.media_type)
