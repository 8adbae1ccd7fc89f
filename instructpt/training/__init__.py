"""Training: tokenizers, packed token shards, mixtures, and a loop on DeepSpeed that ends in a Hugging Face folder."""
