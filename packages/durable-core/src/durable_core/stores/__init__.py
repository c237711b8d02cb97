"""What stores are made of: `MemoryStore`, `open_store`, and parts for those who write stores."""
