"""What measures speed counts right and fails where a request does. How fast anything is, is asserted nowhere."""

import json
import subprocess
import sys

import pytest

from tests.benchmarks import variants
from tests.benchmarks.load import ONCE, Job
from tests.benchmarks.refresh import check_events, drive, pid_of
from tests.benchmarks.variants import selected, table
from tests.benchmarks.ways import ways
from tests.certificates import authority
from tests.server_process import PROJECT
from tests.servers import Server
from tests.signers import TYPE, registered

VARIANTS = [
    "basic", "post", "none",
    "private_key_jwt-ES256", "private_key_jwt-PS256", "private_key_jwt-EdDSA",
    "dpop-one-key", "dpop-new-keys", "dpop-public",
    "jwt-ES256", "jwt-EdDSA", "jwt-RS256",
    "proxy-basic", "proxy-tls_client_auth", "proxy-self_signed",
    "tls-basic", "tls-basic-certificate", "tls-tls_client_auth", "tls-self_signed",
]  # fmt: skip


@pytest.mark.timeout(300)  # some twenty-five processes, one after the other
def test_one_command_measures_every_variant_and_counts_two_events_for_each_refresh(
    full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real servers, every way to say who one is: each answered, each answer two events, each beside its Basic. By
    default in this process, where servers are forked."""
    arguments = ["--rounds", "1", "--seconds", "0.1", "--connections", "2", "--json"]
    if full:
        command = [sys.executable, "-m", "tests.benchmarks.variants", *arguments]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False)
        assert 0 == done.returncode, done.stderr.decode()[-2000:]
        told = json.loads(done.stdout)
    else:
        variants.main(arguments)
        told = json.loads(capsys.readouterr().out)
    assert (1, 0.1, 2) == (told["rounds"], told["seconds"], told["connections"])
    found = {each["name"]: each for each in told["variants"]}
    assert VARIANTS == list(found)
    for each in found.values():
        assert 2 <= each["answers"] == sum(run["answers"] for run in each["runs"])
        assert 2 * each["answers"] == each["events"]
        assert 0 < each["median"]["p50_ms"] <= each["median"]["p99_ms"]
        compared = each["median"]["per_second"] / found[each["beside"]]["median"]["per_second"]
        assert 3 * [pytest.approx(compared)] == each["ratio"]["per_second"]
    assert {"basic", "proxy-basic", "tls-basic"} == {each["beside"] for each in found.values()}
    assert VARIANTS == [line.split()[0] for line in table(told).splitlines()[1 : 1 + len(VARIANTS)]]


def test_a_choice_of_variants_brings_what_they_are_compared_with() -> None:
    """A ratio needs its other side."""
    chosen = selected(ways(authority()), ["tls-self_signed"])
    assert ["basic", "tls-basic", "tls-self_signed"] == [way.name for way in chosen]


@pytest.mark.parametrize("events", [0, 1, 3])
def test_another_number_of_events_than_two_for_each_answer_is_caught(events: int) -> None:
    """The broken twin of a store that writes what it answers."""
    check_events(2, 1)
    with pytest.raises(AssertionError, match=f"{events} events for 1 answers"):
        check_events(events, 1)


def test_what_was_signed_ahead_is_sent_once_each_and_its_end_ends_the_run(shared_server: Server) -> None:
    """Two assertions, two refreshes, long before the time is up (RFC 7523)."""
    signer = registered("jwt", shared_server.issuer)
    found = drive(_job(shared_server, "jwt", [signer.assertion(), signer.assertion()]))
    assert (2, 1) == (found.answers, len(found.tokens))
    assert 200 == shared_server.refresh("jwt", found.tokens[0]).status


def test_a_request_that_fails_ends_the_run_with_its_answer(shared_server: Server) -> None:
    """The broken twin: the same assertion sent again is refused, and no figure comes out."""
    signed = registered("jwt", shared_server.issuer).assertion()
    with pytest.raises(AssertionError, match="invalid_client"):
        drive(_job(shared_server, "jwt", [signed, signed]))


def _job(server: Server, client: str, once: list[str]) -> Job:
    form = f"client_assertion_type={TYPE}&client_assertion={ONCE}"
    tokens = [server.issue(client).refresh_token]
    return Job(server.port, pid_of(server), tokens, connections=1, seconds=30, form=form, once=once)
