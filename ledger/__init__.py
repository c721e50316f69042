"""What happened: the only package that decides, and the only writer of events."""
