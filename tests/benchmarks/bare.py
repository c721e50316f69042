"""The reference: a bare Starlette endpoint that reads the same form and returns the same members. No store, no rule."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

PATH = "/oauth/v2/oauth-token"


async def token(request: Request) -> JSONResponse:
    form = await request.form()
    if form.get("grant_type") != "refresh_token":
        return JSONResponse({"error": "unsupported_grant_type"}, 400)
    return JSONResponse(
        {
            "access_token": "at1_" + "a" * 72,
            "refresh_token": str(form["refresh_token"]),
            "scope": "read openid profile",
            "token_type": "bearer",
            "expires_in": 300,
            "refresh_token_timeout": 2_592_000,
            "authorization_expires_in": 31_536_000,
        },
        headers={"Cache-Control": "no-store", "Pragma": "no-cache"},
    )


app = Starlette(routes=[Route(PATH, token, methods=["POST"])])
