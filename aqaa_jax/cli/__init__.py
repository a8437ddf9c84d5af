"""The `aqaa` command: flags to config to call."""
