"""How it is asked: one file per endpoint or command, parse, one call, format; no rules."""
