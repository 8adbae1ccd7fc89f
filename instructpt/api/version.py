"""The version of this code, stamped into every RunSpec and manifest."""

VERSION = "0.1.0"
