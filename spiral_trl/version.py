"""The package's version, in one place: `setup.cfg` and reports read it here."""

__version__ = "0.1.0"
