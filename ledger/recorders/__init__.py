"""Where events are kept. One transaction is events, snapshots, private rows and inline projection rows together."""
