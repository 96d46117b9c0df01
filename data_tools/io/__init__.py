"""What all data tools share: reading rows and manifests as streams, work in shards, command lines."""
