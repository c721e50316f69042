"""Heads of requests: what is found out about headers once, and kept for the next request of a connection."""

from api.heads import Headers, check_head

HEAD = [(b"host", b"localhost"), (b"content-type", b"text/plain"), (b"cookie", b"a"), (b"cookie", b"b")]


def test_each_name_has_its_first_value_and_repeats_are_known() -> None:
    """What stands once is looked up in one step; what stands twice is for whoever reads it to refuse."""
    headers = Headers(HEAD)
    assert {b"host": b"localhost", b"content-type": b"text/plain", b"cookie": b"a"} == headers.first
    assert {b"cookie"} == headers.twice
    assert HEAD == headers


def test_headers_of_others_become_such_and_ours_stay_themselves() -> None:
    """A list of another server's is read anew each time; what a connection keeps is the same object."""
    headers = Headers(HEAD)
    assert headers is Headers.of(headers)
    assert Headers.of(HEAD) is not Headers.of(HEAD)
    assert HEAD == Headers.of(HEAD)


def test_what_frames_a_request_is_told() -> None:
    """The length, 100 Continue, and whether a browser may be asking (RFC 9110 10.1.1, RFC 6454 7)."""
    said = check_head(
        "1.1", [(b"host", b"a"), (b"content-length", b"7"), (b"expect", b"100-continue"), (b"origin", b"b")]
    )
    assert ("1.1", 7, True, True) == said
