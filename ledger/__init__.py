"""What happened: the only room that decides, and the only writer of events."""
