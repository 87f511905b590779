"""From an experiment file to a directory of results: matrix, cells, policies, provenance, store."""
