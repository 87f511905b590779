"""What runs inside the guest: the first process, in C."""
