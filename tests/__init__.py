"""What is shown: each file mirrors the room and file it tests; the rest try the whole house."""
