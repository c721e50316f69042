"""What the ledger must survive: killed processes, power cuts, failing and full disks, jumping clocks, old backups.

Every trial has a twin that is broken on purpose and must be caught by it. The default tier needs Linux and,
for power cuts and disk errors, a C compiler. With `--full` the trials also use, where they are there, root, strace,
libfaketime, and FUSE (/dev/fuse, libfuse and the package mfusepy). What is missing is named in the skip.
"""
