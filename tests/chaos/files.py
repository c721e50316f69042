"""What must be found in a database that was left behind, whoever wrote it and however that ended."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.chains import Chain, generation_of
from tests.chaos.ends import Ender
from tests.ledger_check import Checked, check_ledger, copied

HONEST = {"issued", "token_redeemed", "token_rotated", "scope_reduced", "scope_restored", "retry_served"}
"""What may ever be on record of a grant whose one holder is honest."""


def check_files(path: Path, chains: Sequence[Chain], enders: Sequence[Ender] = ()) -> Checked:
    """Assert that the store is whole, and that it holds all that was acknowledged to these clients (I-09).

    Whole: links, versions, generations, positions, private rows, and every snapshot and projection row equal to a
    replay (`check_ledger`). Nobody may be writing.
    """
    checked = check_ledger(path)
    with copied(path) as connection:
        topics: dict[str, dict[str, int]] = defaultdict(dict)
        for name, topic, count in connection.execute(
            "SELECT s.name, json_extract(e.body, '$.topic'), count(*) FROM events e JOIN streams s ON s.id = e.stream"
            " WHERE s.name LIKE 'grant:%' GROUP BY 1, 2"
        ):
            topics[name.removeprefix("grant:")][topic.removeprefix("grant.")] = count
        ended_people = {
            name.removeprefix("subject:")
            for (name,) in connection.execute("SELECT name FROM streams WHERE name LIKE 'subject:%'")
        }
        people = dict(
            connection.execute("SELECT s.name, p.subject_id FROM private_grants p JOIN streams s ON s.id = p.stream")
        )
    faults = [fault for chain in chains for fault in _faults_of_chain(chain, topics[chain.grant.grant_id])]
    for ender in enders:
        for end in ender.ends:
            by_epoch = people[f"grant:{end.grant_id}"] in ended_people
            if "revoked" not in topics[end.grant_id] and not (end.kind == "subject" and by_epoch):
                faults.append(f"{end.grant_id}: its end by {end.kind} was acknowledged and is not on record")
    report(faults)
    return checked


def report(faults: Sequence[str]) -> None:
    """Fail where there are faults, with the first of them."""
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:20])


def _faults_of_chain(chain: Chain, topics: dict[str, int]) -> list[str]:
    faults = [f"{chain!r}: {topic} is on record of an honest grant" for topic in sorted(topics.keys() - HONEST)]
    at_least, at_most = chain.redeemed_between()
    redeemed, rotated = topics.get("token_redeemed", 0), topics.get("token_rotated", 0)
    if not at_least <= redeemed <= at_most:
        faults.append(f"{chain!r}: {redeemed} redemptions on record, {at_least} to {at_most} were asked for")
    if not chain.reuses and rotated != redeemed:
        faults.append(f"{chain!r}: {redeemed} redemptions and {rotated} rotations")
    if rotated < generation_of(chain.token):
        faults.append(f"{chain!r}: the acknowledged rotation is lost, the log is at {rotated} (I-09)")
    return faults
