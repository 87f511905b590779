"""nuKSM (PACT 2021): policies, metrics and experiments about where de-duplicated pages lie, and how they are found."""
