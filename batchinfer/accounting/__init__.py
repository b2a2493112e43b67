"""The costs of a run: from meter readings and records to device-seconds, dollars and the report."""
