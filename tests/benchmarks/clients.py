"""The one client of most measurements: everything on, as a standard confidential client has it."""

from urllib.parse import quote_plus

SECRET = "Secr3t!"
SCOPE = ("read", "openid", "profile")
CLIENTS = f"""
[[client]]
id = "www"
secret = "{SECRET}"
auth = "client_secret"
scope = "{" ".join(SCOPE)}"
policy = "standard"
"""
FORM = f"client_id=www&client_secret={quote_plus(SECRET)}"
"""How it says who it is, in the body."""
