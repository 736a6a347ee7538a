"""What an audit tells of updates, apart from its verdict."""

from __future__ import annotations

from swarm.audit.sights import round_seen
from swarm.identity import checksum
from swarm.merge import UpdateReport
from swarm.rounds import Submission

MEMBERS = [bytes([n]) * 20 for n in range(5)]


def test_who_was_left_out_and_who_stands_out_have_a_line_each() -> None:
    submissions = [Submission(member, bytes(32), 10) for member in MEMBERS[:4]]
    reports = [UpdateReport(norm, 0, 0.25, cosine=0.5) for norm in (1.0, 1.1, 0.9, 50.0)]
    found = round_seen(2, 7, submissions, reports, {MEMBERS[4]: "struck"})
    assert [update.member for update in found.updates] == [checksum(member) for member in MEMBERS[:4]]
    assert found.lines == [
        f"run 2 round 7: {checksum(MEMBERS[4])} was left out: struck",
        f"run 2 round 7: the update of {checksum(MEMBERS[3])} stands out: 47.7 times as long as the median",
    ]
