"""Ways to make item embeddings: one file and one YAML each."""
