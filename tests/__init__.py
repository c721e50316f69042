"""What is shown: each file mirrors the package and file it tests; the rest try the whole house."""
