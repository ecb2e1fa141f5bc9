"""Every architecture of transformers that has an RMSNorm: built tiny, patched and compared."""
