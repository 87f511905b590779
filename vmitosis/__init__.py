"""vMitosis (ASPLOS 2021) on Linux 6.12: both levels of a virtual machine's page tables, moved and replicated."""
