"""DPoP (RFC 9449) where tokens are given back and asked about: who has nothing else to show shows the key there too."""

from pathlib import Path

from tests.asking import ISSUER_URL, asking, credentials
from tests.asking_with_proofs import BOUND, INTROSPECT, OTHER_KEY, REVOKE, TOKEN, shown, told, topics


async def test_a_bound_token_is_given_back_with_its_key(tmp_path: Path) -> None:
    """I-18, V88: a public client shows the key at the revocation endpoint too; without it the token is not its own."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpp", cnf=BOUND)

        async def give_back(member: str, text: str | None) -> tuple[int, str]:
            fields = {"token": issued[member], "client_id": "dpp"}
            answer = await ledger.form("/revoke", fields, headers=None if text is None else {"DPoP": text})
            return answer.status_code, answer.json()["error"] if answer.content else ""

        for member in ("refresh_token", "access_token"):
            assert (400, "invalid_grant") == await give_back(member, None)
            assert (400, "invalid_grant") == await give_back(member, shown(ledger, OTHER_KEY, htu=REVOKE))
            assert (400, "invalid_dpop_proof") == await give_back(member, shown(ledger))
        assert ["issued"] == topics(ledger, issued["grant_id"])
        text = shown(ledger, htu=f"{ISSUER_URL}/oauth/v2/oauth-revoke")
        assert (200, "") == await give_back("access_token", text)
        assert (400, "invalid_dpop_proof") == await give_back("refresh_token", text)
        assert (200, "") == await give_back("refresh_token", shown(ledger, htu=REVOKE))
        assert ["issued", "access_token_revoked", "revoked"] == topics(ledger, issued["grant_id"])


async def test_a_public_client_asks_about_bound_tokens_with_its_key(tmp_path: Path) -> None:
    """RFC 7662 2.2, I-18: without it nothing is told."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpp", cnf=BOUND)
        for member in ("refresh_token", "access_token"):
            fields = {"token": issued[member], "client_id": "dpp"}
            for text in (None, shown(ledger, OTHER_KEY, htu=INTROSPECT)):
                answer = await ledger.form("/introspect", fields, headers=None if text is None else {"DPoP": text})
                assert {"active": False} == answer.json()
            answer = await ledger.form("/introspect", fields, headers={"DPoP": shown(ledger)})
            assert (400, "invalid_dpop_proof") == told(answer)
            answer = await ledger.form("/introspect", fields, headers={"DPoP": shown(ledger, htu=INTROSPECT)})
            assert (True, BOUND) == (answer.json()["active"], answer.json()["cnf"])


async def test_a_proof_beside_no_token_of_ours_is_not_looked_at(tmp_path: Path) -> None:
    """Whoever has nothing of ours makes us check no signature and write nothing, wherever it is sent."""
    async with asking(tmp_path) as ledger:
        for token in ("nope", "rt1_" + 72 * "A", "at1_" + 72 * "A", "eyJhbGciOiJFUzI1NiJ9.e30.AA"):
            for path, htu in (("/token", TOKEN), ("/revoke", REVOKE), ("/introspect", INTROSPECT)):
                fields = {"grant_type": "refresh_token", "refresh_token": token, "token": token, "client_id": "spa"}
                answers = [
                    await ledger.form(path, fields, headers={"DPoP": text})
                    for text in (shown(ledger, htu=htu), "no.proof.atall")
                ]
                assert answers[0].content == answers[1].content
        assert [] == ledger.opened.rows("SELECT * FROM single_use")


async def test_who_authenticates_needs_no_key_there_and_none_is_looked_at(tmp_path: Path) -> None:
    """RFC 9449 defines proofs for the token endpoint: elsewhere they matter only to who has nothing else to show."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpc", cnf=BOUND)
        fields, headers = {"token": issued["access_token"], **credentials("dpc")}, {"DPoP": "no.proof.atall"}
        assert (await ledger.form("/introspect", fields, headers=headers)).json()["active"] is True
        assert 200 == (await ledger.form("/revoke", fields, headers=headers)).status_code
        assert {"active": False} == (await ledger.form("/introspect", fields)).json()
