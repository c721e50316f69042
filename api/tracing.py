"""Headers by which others follow a request through their systems: another value each time, and none that says anything
to us. A connection may pass over them where it compares heads, so they mean nothing else here either."""

from typing import Final

TRACING: Final = frozenset({
    b"traceparent", b"tracestate", b"baggage", b"x-request-id", b"x-correlation-id", b"x-amzn-trace-id",
    b"x-cloud-trace-context", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"x-b3-sampled", b"b3",
    b"x-datadog-trace-id", b"x-datadog-parent-id", b"x-datadog-tags", b"sentry-trace", b"uber-trace-id",
    b"newrelic", b"cf-ray",
})  # fmt: skip
"""Their names, in lower case."""
