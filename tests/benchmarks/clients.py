"""The one client of the measurements: everything on, as a standard confidential client has it."""

from ledger.clients import ClientSpec, Settings

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
SPECS = [ClientSpec(client_id="www", settings=Settings(scope=SCOPE), secrets=(SECRET,))]
