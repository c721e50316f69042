"""What is true now: one file per question, with its table, its rows and its query."""
