"""Documents, corpora, manifests and the ledger of micro-shards."""
