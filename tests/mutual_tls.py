"""The whole server in a thread, over TLS that asks for client certificates or behind a proxy that tells them."""

import json
import ssl
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trustme

from api.server import Parser
from api.serving import Serving
from api.settings import Settings
from tests.certificates import Party
from tests.servers import CALLBACK, CHALLENGE, OPERATORS, clients_toml
from tests.serving import Running, serving
from tests.wire import (
    FORM,
    INTROSPECT_PATH,
    TOKEN_PATH,
    Answer,
    Connection,
    Json,
    check_answer,
    form_bytes,
    request_bytes,
)


class Ledger:
    """One server with its files, and short ways to ask it, with a client certificate or without."""

    def __init__(self, folder: Path, running: Running, trusting: ssl.SSLContext | None) -> None:
        self.folder = folder
        self.running = running
        self.trusting = trusting
        self._subjects = 0
        self._connections = 0

    def context(self, party: Party, *chain: Party, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        """A context of TLS that shows a certificate."""
        assert self.trusting is not None
        return party.shown_by(self.trusting, self.folder, *chain, version=version)

    def connect(self, shown: Party | ssl.SSLContext | None = None, *, source: str = "") -> Connection:
        """Connect, and wait until the other side is through, too: with TLS 1.3 a client learns late of a refusal.

        From an address of its own unless one is named, so that failures count together nowhere.
        """
        self._connections += 1
        source = source or f"127.1.{self._connections // 250}.{1 + self._connections % 250}"
        context = self.context(shown) if isinstance(shown, Party) else shown or self.trusting
        connection = self.running.connect(tls=context, source=source)
        try:
            assert 200 == connection.exchange(request_bytes("GET", "/healthz")).status
        except BaseException:
            connection.close()
            raise
        return connection

    def let_in(self, shown: Party | ssl.SSLContext) -> bool:
        """Whether the handshake lets a certificate in. In a thread of its own: OpenSSL keeps errors by thread, and
        Python 3.14 lets one that is left over come up where the next connection is used."""
        with ThreadPoolExecutor(1) as apart:
            return apart.submit(self._let_in, shown).result()

    def _let_in(self, shown: Party | ssl.SSLContext) -> bool:
        try:
            self.connect(shown).close()
        except (ssl.SSLError, ConnectionError):
            return False
        return True

    def form(
        self,
        path: str,
        fields: Mapping[str, str],
        shown: Connection | Party | ssl.SSLContext | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        source: str = "",
    ) -> Answer:
        """Post a form, over an open connection or over one of its own."""
        raw = request_bytes("POST", path, headers={"Content-Type": FORM, **(headers or {})}, body=form_bytes(fields))
        if isinstance(shown, Connection):
            answer = shown.exchange(raw)
        else:
            with self.connect(shown, source=source) as connection:
                answer = connection.exchange(raw)
        check_answer(answer, "POST", path)
        return answer

    def operator(self, role: str, method: str, path: str, body: str = "") -> Answer:
        headers = {"Authorization": f"Bearer {OPERATORS[role]}"} | (
            {"Content-Type": "application/json"} if body else {}
        )
        with self.connect() as connection:
            return connection.exchange(request_bytes(method, path, headers=headers, body=body.encode()))

    def issue(self, client: str, **members: Json) -> Json:
        """Issue a grant to a person of its own; the answer's body."""
        self._subjects += 1
        asked = {"client_id": client, "subject": f"person-{self._subjects}", "scope": "read", **members}
        answer = self.operator("issuer", "POST", "/grants", json.dumps(asked))
        assert 201 == answer.status, answer.body
        return answer.json()

    def authorize(self, client: str, scope: str = "read") -> str:
        """Let somebody sign in and agree; the code."""
        asked = {"client_id": client, "subject": "somebody", "scope": scope, "redirect_uri": CALLBACK}
        asked |= {"code_challenge": CHALLENGE, "code_challenge_method": "S256"}
        answer = self.operator("issuer", "POST", "/authorizations", json.dumps(asked))
        assert 201 == answer.status, answer.body
        return str(answer.json()["code"])

    def refresh(self, client: str, token: str, shown: Any = None, **more: Any) -> Answer:
        """Refresh with `client_id` in the body and nothing else, unless more is said."""
        named = {name: more.pop(name) for name in ("headers", "source") if name in more}
        fields = {"grant_type": "refresh_token", "refresh_token": token, "client_id": client, **more}
        return self.form(TOKEN_PATH, fields, shown, **named)

    def introspect(self, token: str) -> Json:
        """What the security operator is told of a token."""
        headers = {"Authorization": f"Bearer {OPERATORS['security']}"}
        answer = self.form(INTROSPECT_PATH, {"token": token}, headers=headers)
        assert 200 == answer.status, answer.body
        return answer.json()

    def topics(self, grant_id: str) -> list[str]:
        answer = self.operator("auditor", "GET", f"/grants/{grant_id}/events")
        return [event["topic"] for event in answer.json()["events"]]

    def reload(self, clients: str | None = None) -> None:
        """As SIGHUP, with other clients beside those of the transcripts where they are given."""
        if clients is not None:
            (self.folder / "clients.toml").write_text(clients_toml(more=clients), "utf-8")
        self.running.do(self.running.server.reload())


@contextmanager
def mutual(
    folder: Path, clients: str, *, parser: Parser = "auto", fast_loop: bool = True, tls: bool = True, **settings: Any
) -> Iterator[Ledger]:
    """Serve a ledger with more clients than those of the transcripts, until the block ends."""
    trusting = None
    if tls:
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost", "127.0.0.1")
        (folder / "tls.pem").write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        settings |= {"tls_cert": folder / "tls.pem", "tls_key": folder / "tls.pem"}
    else:
        settings["allow_plain_http"] = True
    (folder / "clients.toml").write_text(clients_toml(more=clients), "utf-8")
    all_settings = Settings(
        port=0,
        database_url=f"sqlite:///{folder / 'token-ledger.db'}",
        keys_file=folder / "token-ledger.keys",
        clients_file=folder / "clients.toml",
        refresh_burst=0,
        refresh_per_second=0,
        **settings,
    )
    served = Serving(all_settings)
    with serving(
        None,
        settings=all_settings,
        parser=parser,
        fast_loop=fast_loop,
        on_startup=served.start,
        on_shutdown=served.close,
        on_reload=served.reload,
    ) as running:
        yield Ledger(folder, running, trusting)
