"""The protocol of page-table replicas as Promela models, and the checker that runs them (README.md)."""
