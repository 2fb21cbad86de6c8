"""Back ends, one file each, behind the contract of ``runtime.engines.contract``."""
