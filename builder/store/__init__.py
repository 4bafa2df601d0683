"""The store: immutable blobs, what made them, and the folders people load. See docs/store-format.md."""
